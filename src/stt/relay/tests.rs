//! Deepgram, then AssemblyAI, then Flux, against their doubles over loopback.

use super::*;
use crate::{
    doubles::{
        Doubles, Script,
        deepgram::SttScript,
        faults::Faulty,
        log::{Entry, What},
        serve,
    },
    net::{
        backoff::Backoff,
        url::{parse_base, with_version},
    },
    stt::{
        assemblyai::{AssemblyAi, AssemblyAiConfig, proto::Options as AssemblyAiOptions},
        deepgram::{Deepgram, DeepgramConfig, proto::Options},
        driver::Holding,
        testing::short,
    },
};

const LOUD_LEVEL: i16 = 3_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

struct Call {
    doubles: Doubles,
    audio: AudioSender,
    stream: SttStream,
    events: mpsc::Receiver<SttEvent>,
}

impl Call {
    async fn new(change: impl FnOnce(&mut Script)) -> Self {
        let mut script = Script::new(["book a table for two", "at eight"], []);
        change(&mut script);
        let doubles = serve(script).await.unwrap();
        let base = parse_base(&doubles.base_url()).unwrap();
        let holding = Holding { backoff: Backoff::new(ms(50), ms(50), 2), ..Holding::default() };
        let deepgram = |model: &str| {
            let options = Options { model: model.into(), ..Options::default() };
            let config = DeepgramConfig::new("key".into(), base.clone());
            Arc::new(Deepgram::new(DeepgramConfig { options, holding, ..config }))
        };
        let assemblyai = AssemblyAi::new(AssemblyAiConfig {
            api_key: "key".into(),
            base_url: with_version(&base, "v3"),
            options: AssemblyAiOptions {
                model: "universal-streaming-english".into(),
                format_turns: true,
                keyterms: vec![],
            },
            holding,
        });
        let all: Vec<Arc<dyn Stt>> =
            vec![deepgram("nova-3"), Arc::new(assemblyai), deepgram("flux-general-en")];
        let (audio, receiver) = audio_queue(60 * 16_000);
        let (sender, events) = mpsc::channel(64);
        let stream = Relay::new(all).unwrap().open(receiver, sender);
        Self { doubles, audio, stream, events }
    }

    fn hears(&self, length: Duration, level: i16) {
        let samples: Vec<i16> = (0..length.as_millis() * 16)
            .map(|n| if n % 20 < 10 { level } else { -level })
            .collect();
        self.audio.push(&samples);
    }

    fn says(&self, length: Duration) {
        self.hears(length, LOUD_LEVEL);
        self.hears(ms(600), 0);
    }

    async fn next(&mut self) -> Option<SttEvent> {
        tokio::time::timeout(Duration::from_secs(30), self.events.recv()).await.unwrap()
    }

    async fn next_within(&mut self, limit: Duration) -> SttEvent {
        tokio::time::timeout(limit, self.events.recv()).await.unwrap().unwrap()
    }

    async fn final_(&mut self) -> Transcript {
        loop {
            match self.next().await {
                Some(SttEvent::Final(transcript)) => return transcript,
                Some(event @ (SttEvent::Lost { .. } | SttEvent::Failed(_))) => {
                    panic!("{}", short(&event))
                }
                Some(_) => {}
                None => panic!("the stream has ended"),
            }
        }
    }

    async fn opened(&self, provider: &str) {
        let is =
            |entry: &Entry| entry.provider == provider && matches!(entry.what, What::Opened { .. });
        let log = self.doubles.log();
        tokio::time::timeout(Duration::from_secs(10), log.wait_for_count(1, is)).await.unwrap();
    }
}

fn down(script: SttScript) -> SttScript {
    script.refuse_always(503)
}

#[tokio::test]
async fn each_provider_is_understood() {
    for (nth, provider) in ["deepgram", "assemblyai", "deepgram-flux"].into_iter().enumerate() {
        let mut call = Call::new(|script| {
            if nth > 0 {
                script.stt = down(script.stt.clone());
            }
            if nth > 1 {
                script.assemblyai = down(script.assemblyai.clone());
            }
        })
        .await;
        call.opened(provider).await;
        call.says(ms(1_000));
        let first = call.final_().await;
        assert_eq!(first.text, "book a table for two", "{provider}");
        assert!(first.start_ms <= 100 && (900..=1_700).contains(&first.duration_ms), "{first:?}");
        call.says(ms(600));
        let second = call.final_().await;
        assert_eq!(second.text, "at eight", "{provider}");
        assert!((1_000..=1_700).contains(&second.start_ms), "{provider}: {second:?}");
    }
}

#[tokio::test]
async fn one_that_dies_in_mid_speech_loses_no_word_and_doubles_none() {
    let mut call = Call::new(|script| {
        script.stt = down(script.stt.clone().disconnect_after(ms(700)));
    })
    .await;
    call.opened("deepgram").await;
    call.says(ms(1_000));
    let first = call.final_().await;
    assert_eq!(first.text, "book a table for two");
    assert!(first.start_ms <= 100, "{first:?}");
    call.says(ms(600));
    assert_eq!(call.final_().await.text, "at eight");
    call.stream.control.send(SttControl::Close).await.unwrap();
    while let Some(event) = call.next().await {
        assert!(!matches!(event, SttEvent::Final(_)), "{event:?}");
    }
}

#[tokio::test]
async fn a_wrong_key_of_the_first_is_the_seconds_turn() {
    let mut call = Call::new(|script| script.stt = script.stt.clone().refuse_always(401)).await;
    call.says(ms(1_000));
    assert_eq!(call.final_().await.text, "book a table for two");
}

#[tokio::test(start_paused = true)]
async fn one_that_has_gone_deaf_is_replaced() {
    let mut call = Call::new(|script| {
        script.stt = script.stt.clone().stall_after(ms(100));
    })
    .await;
    call.opened("deepgram").await;
    call.hears(ms(1_500), LOUD_LEVEL);
    call.hears(ms(600), 0);
    assert_eq!(call.final_().await.text, "book a table for two");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_taken_again_is_noticed_in_the_same_call() {
    let mut call = Call::new(|script| {
        script.stt = script.stt.clone().refuse(401);
        script.assemblyai = script.assemblyai.clone().refuse_always(401);
        script.flux = script.flux.clone().refuse_always(401);
    })
    .await;
    call.says(ms(1_000));
    let begun = Instant::now();
    loop {
        if let SttEvent::Final(transcript) = call.next_within(Duration::from_mins(3)).await {
            assert_eq!(transcript.text, "book a table for two");
            break;
        }
    }
    assert!(begun.elapsed() >= Duration::from_secs(55), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn when_all_are_down_it_is_told_and_what_was_said_is_understood_later() {
    let mut call = Call::new(|script| {
        script.stt = script.stt.clone().refuse(503).refuse(503);
        script.assemblyai = down(script.assemblyai.clone());
        script.flux = down(script.flux.clone());
    })
    .await;
    call.says(ms(1_000));
    let mut lost = false;
    loop {
        match call.next().await.unwrap() {
            SttEvent::Lost { .. } | SttEvent::Failed(_) => lost = true,
            SttEvent::Final(transcript) => {
                assert_eq!(transcript.text, "book a table for two");
                break;
            }
            _ => {}
        }
    }
    assert!(lost);
}
