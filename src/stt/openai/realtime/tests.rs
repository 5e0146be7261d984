//! The driver against the double, over loopback.

use std::time::Duration;

use super::*;
use crate::{
    audio::queue::{AudioSender, audio_queue},
    doubles::{Doubles, Script, deepgram::SttScript, faults::Faulty, serve},
    net::{backoff::Backoff, url::parse_base},
    stt::{SttControl, testing::short},
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
    async fn new(model: &str, change: impl FnOnce(SttScript) -> SttScript) -> Self {
        let mut script = Script::new(["book a table for two", "at eight"], []);
        script.realtime = change(script.realtime);
        let doubles = serve(script).await.unwrap();
        let options = Options { model: model.into(), language: None, keyterms: vec![] };
        let holding = Holding { backoff: Backoff::new(ms(20), ms(20), 3), ..Holding::default() };
        let base_url = parse_base(&doubles.base_url()).unwrap();
        let config = RealtimeConfig { api_key: "key".into(), base_url, options, holding };
        let (audio, receiver) = audio_queue(60 * 16_000);
        let (sender, events) = mpsc::channel(64);
        let stream = Realtime::new(config).open(receiver, sender);
        Self { _doubles: doubles, audio, stream, events }
    }

    fn hears(&self, length: u64, level: i16) {
        let samples: Vec<i16> =
            (0..length * 16).map(|n| if n % 20 < 10 { level } else { -level }).collect();
        self.audio.push(&samples);
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
async fn an_utterance_is_closed_by_silence_or_on_request() {
    let mut call = Call::new("gpt-4o-transcribe", |it| it).await;
    call.hears(500, 0);
    call.hears(1_200, 3_000);
    call.hears(1_000, 0);
    let told = call.until("EndOfTurn").await;
    assert!(told.contains(&"book a table for two".into()), "{told:?}");
    call.hears(600, 3_000);
    call.stream.control.send(SttControl::Finalize).await.unwrap();
    let told = call.until("EndOfTurn").await;
    assert!(told.contains(&"at eight".into()), "{told:?}");
}

#[tokio::test]
async fn words_are_told_while_they_are_said_by_models_that_do() {
    let mut call = Call::new("gpt-realtime-whisper", |it| it).await;
    call.hears(1_200, 3_000);
    let told = call.until("~book a table").await;
    assert!(told.contains(&"~book".into()) && !told.contains(&"EndOfTurn".into()), "{told:?}");
}

#[tokio::test]
async fn what_fails_is_tried_again_and_nothing_is_lost_or_doubled() {
    for fault in [
        (|it| it.refuse(500)) as fn(SttScript) -> SttScript,
        |it| it.disconnect_after(ms(600)),
        |it| it.fail_after(ms(600)),
        |it| it.malformed_after(ms(600)),
    ] {
        let mut call = Call::new("gpt-4o-transcribe", fault).await;
        call.hears(1_200, 3_000);
        call.hears(1_000, 0);
        let mut told = call.until("EndOfTurn").await;
        call.hears(600, 3_000);
        call.hears(1_000, 0);
        told.extend(call.until("EndOfTurn").await);
        let finals: Vec<_> =
            told.iter().filter(|it| *it == "book a table for two" || *it == "at eight").collect();
        assert_eq!(finals, ["book a table for two", "at eight"], "{told:?}");
    }
}

#[tokio::test]
async fn a_wrong_key_is_told() {
    let mut call = Call::new("gpt-4o-transcribe", |it| it.refuse_always(401)).await;
    call.until("Failed").await;
}

#[tokio::test]
async fn the_last_words_are_waited_for_on_close() {
    let mut call = Call::new("gpt-4o-transcribe", |it| it).await;
    call.until("Connected").await;
    call.hears(1_200, 3_000);
    call.stream.control.send(SttControl::Close).await.unwrap();
    call.until("book a table for two").await;
}
