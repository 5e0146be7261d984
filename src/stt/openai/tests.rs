//! The driver against the double, over loopback.

use super::*;
use crate::{
    audio::queue::{AudioSender, audio_queue},
    doubles::{Doubles, Script, deepgram::SttScript, faults::Faulty, serve},
    stt::testing::short,
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

struct Call {
    _doubles: Doubles,
    audio: AudioSender,
    stream: SttStream,
    events: mpsc::Receiver<SttEvent>,
}

impl Call {
    async fn new(change: impl FnOnce(SttScript) -> SttScript) -> Self {
        let mut script = Script::new(["book a table", "at eight"], []);
        script.transcriptions = change(script.transcriptions);
        let doubles = serve(script).await.unwrap();
        let mut config = OpenAiSttConfig::new("key".into(), "gpt-4o-transcribe");
        config.base_url = doubles.base_url();
        config.backoff = Backoff::new(ms(1), ms(5), 3);
        config.timeout = ms(2_000);
        let (audio, receiver) = audio_queue(60 * 16_000);
        let (sender, events) = mpsc::channel(64);
        let stream = OpenAiStt::new(config).unwrap().open(receiver, sender);
        Self { _doubles: doubles, audio, stream, events }
    }

    fn hears(&self, length: u64, level: i16) {
        self.audio.push(&vec![level; length as usize * 16]);
    }

    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut told = Vec::new();
        while told.last().is_none_or(|it| it != last) {
            let event = tokio::time::timeout(Duration::from_secs(20), self.events.recv());
            told.push(short(&event.await.unwrap().unwrap()));
        }
        told
    }
}

#[tokio::test]
async fn an_utterance_is_sent_when_it_ends_by_silence_or_on_request() {
    let mut call = Call::new(|it| it).await;
    call.hears(500, 0);
    call.hears(700, 3_000);
    call.hears(900, 0);
    let told = call.until("EndOfTurn").await;
    assert_eq!(told, ["Connected", "SpeechStarted", "Usage", "book a table", "EndOfTurn"]);
    call.hears(600, 3_000);
    call.until("SpeechStarted").await;
    call.stream.control.send(SttControl::Finalize).await.unwrap();
    assert_eq!(call.until("EndOfTurn").await, ["Usage", "at eight", "EndOfTurn"]);
}

#[tokio::test]
async fn what_fails_is_tried_again_and_nothing_is_lost() {
    for fault in [
        (|it| it.refuse(500)) as fn(SttScript) -> SttScript,
        |it| it.malformed_after(ms(0)),
        |it| it.stall_after(ms(0)),
    ] {
        let mut call = Call::new(fault).await;
        call.hears(700, 3_000);
        call.hears(900, 0);
        let told = call.until("EndOfTurn").await;
        assert!(told.contains(&"Lost".into()), "{told:?}");
        assert_eq!(told.iter().filter(|it| *it == "book a table").count(), 1);
    }
}

#[tokio::test]
async fn a_wrong_key_is_told() {
    let mut call = Call::new(|it| it.refuse_always(401)).await;
    call.hears(700, 3_000);
    call.hears(900, 0);
    call.until("Failed").await;
}

#[tokio::test]
async fn the_last_words_are_waited_for_on_close() {
    let mut call = Call::new(|it| it).await;
    call.hears(700, 3_000);
    call.stream.control.send(SttControl::Close).await.unwrap();
    call.until("book a table").await;
}
