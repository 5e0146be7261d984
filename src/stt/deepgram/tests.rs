//! The driver against the double, over loopback.

use std::time::Duration;

use tokio::sync::mpsc;

use super::*;
use crate::{
    audio::queue::{AudioSender, audio_queue},
    doubles::{
        Doubles, Script,
        deepgram::SttScript,
        faults::Faulty,
        log::{Entry, What},
        serve,
    },
    net::{backoff::Backoff, url::parse_base},
    stt::{SttControl, SttError},
};

const LOUD: i16 = 3_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A speaker, his stream, and what it told.
struct Call {
    doubles: Doubles,
    audio: AudioSender,
    stream: SttStream,
    events: mpsc::Receiver<SttEvent>,
}

impl Call {
    async fn new(script: SttScript) -> Self {
        Self::with(script, |_| {}).await
    }

    async fn with(script: SttScript, change: impl FnOnce(&mut DeepgramConfig)) -> Self {
        let doubles = serve(Script { stt: script, ..Script::default() }).await.unwrap();
        let mut config =
            DeepgramConfig::new("key".into(), parse_base(&doubles.base_url()).unwrap());
        config.holding.backoff = Backoff::new(ms(1), ms(5), 5);
        change(&mut config);
        let (audio, receiver) = audio_queue(60 * 16_000);
        let (sender, events) = mpsc::channel(8);
        let stream = Deepgram::new(config).open(receiver, sender);
        Self { doubles, audio, stream, events }
    }

    fn hears(&self, length: Duration, level: i16) -> Vec<i16> {
        let samples: Vec<i16> = (0..length.as_millis() * 16)
            .map(|n| if n % 20 < 10 { level } else { -level })
            .collect();
        self.audio.push(&samples);
        samples
    }

    fn speech(&self, length: Duration) -> Vec<i16> {
        self.hears(length, LOUD)
    }

    fn silence(&self, length: Duration) -> Vec<i16> {
        self.hears(length, 0)
    }

    async fn control(&self, control: SttControl) {
        self.stream.control.send(control).await.unwrap();
    }

    async fn next(&mut self) -> Option<SttEvent> {
        tokio::time::timeout(Duration::from_mins(2), self.events.recv()).await.unwrap()
    }

    /// Events until `last` is told, in short.
    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("ended after {told:?}"));
            told.push(short(&event));
            if told.last().unwrap() == last {
                return told;
            }
        }
    }

    /// All events to the end of the stream, in short.
    async fn rest(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(event) = self.next().await {
            told.push(short(&event));
        }
        told
    }

    async fn logged(&self, count: usize, is: impl FnMut(&Entry) -> bool) {
        let log = self.doubles.log();
        tokio::time::timeout(Duration::from_mins(10), log.wait_for_count(count, is)).await.unwrap();
    }
}

fn short(event: &SttEvent) -> String {
    match event {
        SttEvent::Interim(told) => format!("~{}", told.text),
        SttEvent::Final(told) => told.text.clone(),
        SttEvent::Usage { .. } => "Usage".into(),
        SttEvent::Lost { .. } => "Lost".into(),
        SttEvent::Failed(_) => "Failed".into(),
        other => format!("{other:?}"),
    }
}

fn is_text(text: &str) -> impl Fn(&Entry) -> bool {
    move |entry| matches!(&entry.what, What::Text(it) if it == text)
}

fn finals(told: &[String]) -> Vec<&str> {
    let other = |text: &str| {
        text.starts_with('~')
            || ["Connected", "SpeechStarted", "EndOfTurn", "Usage", "Lost", "Failed"]
                .contains(&text)
    };
    told.iter().map(String::as_str).filter(|text| !other(text)).collect()
}

#[tokio::test]
async fn interims_then_the_final_then_the_end_of_the_turn() {
    let mut call = Call::new(SttScript::new().utterance("book a table").then("for two")).await;
    assert_eq!(short(&call.next().await.unwrap()), "Connected");
    call.speech(ms(1_100));
    call.silence(ms(400));
    let told = call.until("EndOfTurn").await;
    assert_eq!(told[0], "SpeechStarted");
    assert!(told[1..].iter().any(|text| text.starts_with('~')), "{told:?}");
    assert_eq!(finals(&told), ["book a table", "for two"]);
}

#[tokio::test]
async fn finalize_brings_the_final_without_any_silence() {
    let mut call = Call::new(SttScript::new().utterance("stop")).await;
    // No whole number of messages: the rest must be sent before `Finalize`.
    call.speech(ms(470));
    call.control(SttControl::Finalize).await;
    let told = call.until("EndOfTurn").await;
    assert_eq!(finals(&told), ["stop"]);
    call.logged(1, is_text(proto::FINALIZE)).await;
}

#[tokio::test]
async fn an_end_of_speech_is_sent_in_short_messages() {
    let script = SttScript::new().utterance("what now").hang_over(ms(200));
    let mut call = Call::new(script).await;
    // What waits is taken 200 ms at a time. The double needs 200 ms of silence, and has 180 until the
    // last 30 ms are sent, too.
    call.speech(ms(1_020));
    call.silence(ms(210));
    assert_eq!(finals(&call.until("EndOfTurn").await), ["what now"]);
}

#[tokio::test]
async fn close_brings_the_last_final_and_ends_the_stream() {
    let mut call = Call::new(SttScript::new().utterance("good bye")).await;
    call.speech(ms(470));
    call.control(SttControl::Close).await;
    let told = call.rest().await;
    assert_eq!(finals(&told), ["good bye"]);
    assert_eq!(told.last().unwrap(), "Usage");
    call.stream.task.await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_audio_closes_too() {
    let mut call = Call::new(SttScript::new().utterance("good bye")).await;
    call.speech(ms(470));
    let (other, _) = audio_queue(1);
    drop(std::mem::replace(&mut call.audio, other));
    assert_eq!(finals(&call.rest().await), ["good bye"]);
}

#[tokio::test]
async fn a_connection_lost_amid_an_utterance_loses_and_doubles_no_word() {
    let script = SttScript::new()
        .utterance("one")
        .utterance("book a table")
        .utterance("three")
        .disconnect_after(ms(1_400))
        .record_audio();
    let mut call = Call::new(script).await;
    call.speech(ms(500));
    call.silence(ms(500));
    // Broken in here, 400 ms into the second utterance.
    let speech = call.speech(ms(600));
    call.silence(ms(400));
    call.speech(ms(300));
    call.silence(ms(400));
    let mut told = Vec::new();
    let mut times = Vec::new();
    while finals(&told).len() < 3 {
        let event = call.next().await.unwrap();
        if let SttEvent::Final(told) = &event {
            times.push((told.words[0].start_ms, told.words[told.words.len() - 1].end_ms));
        }
        told.push(short(&event));
    }
    assert_eq!(finals(&told), ["one", "book a table", "three"]);
    assert_eq!(told.iter().filter(|it| *it == "Lost").count(), 1);
    assert_eq!(times, [(0, 500), (1_000, 1_600), (2_000, 2_300)]);
    let again = call.doubles.log().audio(2);
    assert!(again.windows(speech.len()).any(|window| window == speech));
    assert!(again.len() < 16 * 2_700, "what was final is not sent again");
}

#[tokio::test]
async fn a_slow_connection_loses_no_audio() {
    let script = SttScript::new().utterance("early bird").slow_connect(ms(30)).record_audio();
    let mut call = Call::new(script).await;
    let mut sent = call.speech(ms(500));
    sent.extend(call.silence(ms(400)));
    assert_eq!(finals(&call.until("EndOfTurn").await), ["early bird"]);
    call.doubles.log().wait_for(|log| (log.audio(1).len() >= sent.len()).then_some(())).await;
    assert_eq!(call.doubles.log().audio(1), sent);
}

#[tokio::test]
async fn a_turn_finalized_during_an_outage_is_finalized_after_it() {
    let script = SttScript::new().utterance("hello").refuse(503).refuse(503);
    let mut call =
        Call::with(script, |config| config.holding.backoff = Backoff::new(ms(30), ms(30), 5)).await;
    call.speech(ms(500));
    call.control(SttControl::Finalize).await;
    assert_eq!(finals(&call.until("EndOfTurn").await), ["hello"]);
}

#[tokio::test]
async fn close_during_an_outage_still_brings_the_last_words() {
    let script = SttScript::new().utterance("last words").refuse(503);
    let mut call = Call::with(script, |config| {
        config.holding.backoff = Backoff::new(Duration::from_secs(30), Duration::from_secs(30), 5);
    })
    .await;
    assert_eq!(short(&call.next().await.unwrap()), "Lost");
    call.speech(ms(500));
    call.control(SttControl::Close).await;
    assert_eq!(finals(&call.rest().await), ["last words"]);
}

#[tokio::test]
async fn a_refused_key_fails_once_and_is_not_tried_again() {
    let mut call = Call::new(SttScript::new().refuse(401)).await;
    let event = call.next().await.unwrap();
    assert_eq!(event, SttEvent::Failed(SttError::Unauthorized { status: 401 }));
    call.speech(ms(500));
    call.control(SttControl::Close).await;
    assert_eq!(call.rest().await, Vec::<String>::new());
    assert_eq!(call.doubles.log().entries().len(), 1);
}

#[tokio::test]
async fn a_refused_request_says_why() {
    let mut call = Call::new(SttScript::new().refuse(400)).await;
    let Some(SttEvent::Failed(SttError::Rejected { status, message })) = call.next().await else {
        panic!("not rejected")
    };
    assert_eq!(status, 400);
    assert!(message.contains("refused as scripted"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn retries_are_spent_one_by_one_then_a_probe_finds_the_provider_back() {
    let script = SttScript::new().utterance("hello");
    let script = (0..7).fold(script, |script, _| script.refuse(500));
    let mut call = Call::with(script, |config| config.holding.backoff = Backoff::default()).await;
    let mut waits = Vec::new();
    loop {
        match call.next().await.unwrap() {
            SttEvent::Lost { retry_in, .. } => waits.push(retry_in.as_secs_f64()),
            event => {
                assert_eq!(short(&event), "Failed");
                break;
            }
        }
    }
    assert_eq!(waits.len(), 5);
    for (wait, longest) in waits.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0]) {
        assert!((longest * 0.75..=longest).contains(wait), "{waits:?}");
    }
    // The first probe is refused in silence, the second gets through.
    assert_eq!(short(&call.next().await.unwrap()), "Connected");
    call.speech(ms(500));
    call.silence(ms(400));
    assert_eq!(finals(&call.until("EndOfTurn").await), ["hello"]);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_asks_for_peace_gets_it() {
    let mut call = Call::new(SttScript::new().refuse_for(429, 7)).await;
    let Some(SttEvent::Lost { retry_in, .. }) = call.next().await else { panic!("not lost") };
    assert_eq!(retry_in, Duration::from_secs(7));
    assert_eq!(short(&call.next().await.unwrap()), "Connected");
}

#[tokio::test(start_paused = true)]
async fn a_silent_source_is_kept_connected() {
    let mut call = Call::new(SttScript::new().utterance("still here")).await;
    call.logged(15, is_text(proto::KEEP_ALIVE)).await;
    call.speech(ms(500));
    call.silence(ms(400));
    let told = call.until("EndOfTurn").await;
    assert_eq!(told[..2], ["Connected", "SpeechStarted"]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_without_a_word_is_replaced_in_time() {
    let mut call = Call::new(SttScript::new().utterance("hello").stall_after(ms(300))).await;
    assert_eq!(short(&call.next().await.unwrap()), "Connected");
    let start = tokio::time::Instant::now();
    call.speech(ms(500));
    call.silence(ms(400));
    let told = call.until("EndOfTurn").await;
    assert_eq!(finals(&told), ["hello"]);
    assert_eq!(told.iter().filter(|it| *it == "Lost").count(), 1);
    assert!(start.elapsed() <= Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn losing_the_connection_now_and_then_never_uses_the_retries_up() {
    // The silence after each final is heard twice: it is not final when the connection breaks.
    let script = SttScript::new().disconnect_after(ms(1_000));
    let script = (0..20).fold(script, |script, _| script.disconnect_after(ms(1_300)));
    let mut call = Call::new(script).await;
    call.until("Connected").await;
    for n in 1..=20 {
        call.speech(ms(300));
        call.silence(ms(250));
        let told = call.until("EndOfTurn").await;
        assert_eq!(finals(&told), [format!("utterance {n}")]);
        call.silence(ms(500));
        assert_eq!(call.until("Connected").await, ["Usage", "Lost", "Connected"]);
    }
}

#[tokio::test]
async fn usage_adds_up_to_what_was_sent() {
    let mut call = Call::new(SttScript::new()).await;
    call.silence(Duration::from_secs(25));
    call.control(SttControl::Close).await;
    let mut reports = Vec::new();
    while let Some(event) = call.next().await {
        if let SttEvent::Usage { audio_ms, .. } = event {
            reports.push(audio_ms);
        }
    }
    assert_eq!(reports, [10_000, 10_000, 5_000]);
}

#[tokio::test]
async fn a_session_that_listens_no_more_ends_the_stream() {
    let call = Call::new(SttScript::new()).await;
    drop(call.events);
    tokio::time::timeout(Duration::from_secs(10), call.stream.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_session_that_takes_no_events_for_a_while_gets_every_final() {
    let mut call = Call::new(SttScript::new()).await;
    for _ in 0..50 {
        call.speech(ms(300));
        call.silence(ms(250));
    }
    call.control(SttControl::Finalize).await;
    call.logged(1, is_text(proto::FINALIZE)).await;
    call.control(SttControl::Close).await;
    let told = call.rest().await;
    assert_eq!(finals(&told).len(), 50);
}

#[test]
fn the_key_is_in_no_debug_output() {
    let base = parse_base("https://api.deepgram.com/v1").unwrap();
    let deepgram = Deepgram::new(DeepgramConfig::new("hush-hush".into(), base));
    assert!(!format!("{deepgram:?}").contains("hush"));
}
