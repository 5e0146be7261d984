//! The driver against the double, over loopback.

use std::time::Duration;

use super::*;
use crate::{
    audio::queue::{AudioSender, audio_queue},
    doubles::{Doubles, Script, deepgram::SttScript, faults::Faulty, log::What, serve},
    net::backoff::Backoff,
    stt::{SttControl, Transcript, testing::short},
};

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
    async fn new(change: impl FnOnce(SttScript) -> SttScript) -> Self {
        let mut script = Script::new(["book a table for two", "at eight"], []);
        script.google_speech = change(script.google_speech);
        let doubles = serve(script).await.unwrap();
        let holding = Holding { backoff: Backoff::new(ms(20), ms(20), 3), ..Holding::default() };
        let base = format!("http://{}/projects/p/locations/global", doubles.address());
        let google = GoogleSpeech::new(GoogleSpeechConfig {
            key: "key".into(),
            base_url: Url::parse(&base).unwrap(),
            options: Options {
                model: "long".into(),
                language: None,
                punctuate: true,
                keyterms: vec![],
            },
            holding,
        });
        let (audio, receiver) = audio_queue(60 * 16_000);
        let (sender, events) = mpsc::channel(64);
        let stream = google.unwrap().open(receiver, sender);
        Self { doubles, audio, stream, events }
    }

    fn hears(&self, length: u64, level: i16) {
        let samples: Vec<i16> =
            (0..length * 16).map(|n| if n % 20 < 10 { level } else { -level }).collect();
        self.audio.push(&samples);
    }

    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut told = Vec::new();
        while told.last().is_none_or(|it| it != last) {
            let event = tokio::time::timeout(Duration::from_mins(1), self.events.recv());
            told.push(short(&event.await.unwrap().unwrap()));
        }
        told
    }

    async fn final_(&mut self) -> Transcript {
        loop {
            let event = tokio::time::timeout(Duration::from_mins(1), self.events.recv());
            if let SttEvent::Final(transcript) = event.await.unwrap().unwrap() {
                return transcript;
            }
        }
    }

    /// Streams that were opened.
    fn opened(&self) -> usize {
        let entries = self.doubles.log().entries();
        entries.iter().filter(|entry| matches!(entry.what, What::Opened { .. })).count()
    }
}

#[tokio::test]
async fn interims_then_the_final_then_the_end_of_the_turn() {
    let mut call = Call::new(|it| it).await;
    call.hears(1_200, 3_000);
    call.hears(600, 0);
    let told = call.until("EndOfTurn").await;
    assert_eq!(told[..3], ["Connected", "SpeechStarted", "~book"], "{told:?}");
    assert!(told.contains(&"book a table for two".into()), "{told:?}");
}

#[tokio::test]
async fn finalize_brings_the_final_at_once_and_times_go_on() {
    let mut call = Call::new(|it| it.final_delay(ms(5_000))).await;
    call.hears(1_200, 3_000);
    call.hears(150, 0);
    call.until("~book a table for two").await;
    call.stream.control.send(SttControl::Finalize).await.unwrap();
    let first = call.final_().await;
    assert_eq!(first.text, "book a table for two");
    assert!(first.start_ms <= 100, "{first:?}");
    call.hears(1_000, 0);
    call.hears(600, 3_000);
    call.hears(150, 0);
    call.until("~at eight").await;
    call.stream.control.send(SttControl::Finalize).await.unwrap();
    let second = call.final_().await;
    assert_eq!(second.text, "at eight");
    assert!((2_300..=2_500).contains(&second.start_ms), "{second:?}");
    assert!(call.opened() >= 2);
}

#[tokio::test]
async fn what_fails_is_tried_again_and_nothing_is_lost_or_doubled() {
    for fault in [
        (|it| it.refuse(500)) as fn(SttScript) -> SttScript,
        |it| it.disconnect_after(ms(600)),
        |it| it.fail_after(ms(600)),
        |it| it.malformed_after(ms(600)),
    ] {
        let mut call = Call::new(fault).await;
        call.hears(1_200, 3_000);
        call.hears(600, 0);
        let mut told = call.until("EndOfTurn").await;
        call.hears(600, 3_000);
        call.hears(600, 0);
        told.extend(call.until("EndOfTurn").await);
        let finals: Vec<_> =
            told.iter().filter(|it| *it == "book a table for two" || *it == "at eight").collect();
        assert_eq!(finals, ["book a table for two", "at eight"], "{told:?}");
    }
}

#[tokio::test]
async fn a_wrong_key_is_told() {
    let mut call = Call::new(|it| it.refuse_always(401)).await;
    call.hears(500, 0);
    call.until("Failed").await;
}

#[tokio::test]
async fn the_last_words_are_waited_for_on_close() {
    let mut call = Call::new(|it| it).await;
    call.until("Connected").await;
    call.hears(1_200, 3_000);
    call.stream.control.send(SttControl::Close).await.unwrap();
    call.until("book a table for two").await;
    call.stream.task.await.unwrap();
}

/// The double ends a stream after 300 s, as the service does.
#[tokio::test(start_paused = true)]
async fn twenty_minutes_of_speech_lose_no_utterance_and_double_none() {
    let mut call = Call::new(|it| it).await;
    call.until("Connected").await;
    let mut heard = Vec::new();
    let mut lost = 0;
    for _ in 0..200 {
        for (length, level) in [(2_000, 3_000), (4_000, 0)] {
            for _ in 0..length / 100 {
                call.hears(100, level);
                tokio::time::sleep(ms(100)).await;
                while let Ok(event) = call.events.try_recv() {
                    match event {
                        SttEvent::Final(transcript) => heard.push(transcript),
                        SttEvent::Lost { .. } | SttEvent::Failed(_) => lost += 1,
                        _ => {}
                    }
                }
            }
        }
    }
    assert_eq!((heard.len(), lost), (200, 0));
    assert_eq!(heard[1].text, "at eight");
    for (nth, transcript) in heard.iter().enumerate().skip(2) {
        assert_eq!(transcript.text, format!("utterance {}", nth + 1));
        let off = transcript.start_ms.abs_diff(nth as u64 * 6_000);
        assert!(off <= 150, "{nth}: {transcript:?}");
    }
    assert!((5..=6).contains(&call.opened()), "{}", call.opened());
}

#[test]
fn the_project_is_the_service_accounts_or_the_addresses() {
    let made = |base: &str| {
        let google = GoogleSpeech::new(GoogleSpeechConfig {
            key: "key".into(),
            base_url: Url::parse(base).unwrap(),
            options: Options {
                model: "long".into(),
                language: None,
                punctuate: true,
                keyterms: vec![],
            },
            holding: Holding::default(),
        });
        google.map(|google| google.0.recognizer.clone())
    };
    let found = made("https://eu-speech.googleapis.com/projects/p/locations/eu/");
    assert_eq!(found.unwrap(), "projects/p/locations/eu/recognizers/_");
    assert_eq!(
        made("https://speech.googleapis.com").unwrap_err(),
        GoogleSpeechConfigError::Project
    );
    assert_eq!(
        made("https://speech.googleapis.com/v1/x").unwrap_err(),
        GoogleSpeechConfigError::Path
    );
}
