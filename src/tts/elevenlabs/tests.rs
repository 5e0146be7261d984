//! The driver against the double, over loopback.

use std::time::Duration;

use tokio::{net::TcpListener, sync::mpsc, time::timeout};

use super::*;
use crate::{
    doubles::{
        Context,
        elevenlabs::{self as double, ElevenLabsScript},
        faults::Faulty,
        log::{Log, What},
    },
    tts::SpeechId,
};

const BOUND: Duration = Duration::from_secs(10);
const KEY: &str = "el-key-51a7";

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A session's connection to a double.
struct Line {
    commands: mpsc::Sender<TtsCommand>,
    events: mpsc::Receiver<TtsEvent>,
    log: Log,
    /// Ends the double's connections when dropped.
    _stop: tokio_util::sync::DropGuard,
}

impl Line {
    async fn open(script: ElevenLabsScript) -> Self {
        Self::open_with(script, |_| {}).await
    }

    async fn open_with(
        script: ElevenLabsScript,
        change: impl FnOnce(&mut ElevenLabsConfig),
    ) -> Self {
        let context = Context::default();
        let router = axum::Router::new().nest("/v1", double::router(script, &context));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let mut config = ElevenLabsConfig::new(KEY.into(), "voice");
        config.base_url = base;
        change(&mut config);
        let (sender, events) = mpsc::channel(16);
        let connection = ElevenLabs::new(config).unwrap().connect(sender);
        let stop = context.stop.clone().drop_guard();
        Self { commands: connection.commands, events, log: context.log, _stop: stop }
    }

    async fn warm(script: ElevenLabsScript) -> Self {
        let line = Self::open(script).await;
        line.opened(1).await;
        line
    }

    async fn opened(&self, count: usize) {
        let is_open =
            |entry: &crate::doubles::log::Entry| matches!(entry.what, What::Opened { .. });
        timeout(BOUND, self.log.wait_for_count(count, is_open)).await.unwrap();
    }

    fn sockets(&self) -> usize {
        let entries = self.log.entries();
        entries.iter().filter(|entry| matches!(entry.what, What::Opened { .. })).count()
    }

    async fn say(&self, id: u64, text: &str) {
        let text = text.to_owned();
        self.commands.send(TtsCommand::Speak { id: SpeechId(id), text }).await.unwrap();
    }

    async fn finish(&self, id: u64) {
        self.commands.send(TtsCommand::Finish { id: SpeechId(id) }).await.unwrap();
    }

    async fn cancel(&self, id: u64) {
        self.commands.send(TtsCommand::Cancel { id: SpeechId(id) }).await.unwrap();
    }

    async fn event(&mut self) -> TtsEvent {
        timeout(BOUND, self.events.recv()).await.unwrap().unwrap()
    }

    async fn audio(&mut self) -> SpeechId {
        loop {
            if let TtsEvent::Audio { id, .. } = self.event().await {
                return id;
            }
        }
    }

    /// Everything up to the end of a speech.
    async fn heard(&mut self, speech: u64) -> Heard {
        let mut heard = Heard::default();
        loop {
            match self.event().await {
                TtsEvent::Audio { id, samples } if id.0 == speech => {
                    heard.samples += samples.len();
                }
                TtsEvent::Alignment { id, words } if id.0 == speech => heard.words.extend(words),
                TtsEvent::Usage { characters, .. } => heard.characters += characters,
                TtsEvent::End { id } if id.0 == speech => return heard,
                TtsEvent::Error { id, error } if id.0 == speech => {
                    heard.error = Some(error);
                    return heard;
                }
                _ => {}
            }
        }
    }
}

#[derive(Debug, Default)]
struct Heard {
    samples: usize,
    words: Vec<crate::tts::TimedText>,
    characters: u64,
    error: Option<TtsError>,
}

impl Heard {
    fn text(&self) -> String {
        self.words.iter().map(|word| word.text.as_str()).collect()
    }
}

#[tokio::test]
async fn the_first_piece_is_heard_while_the_model_still_talks() {
    let mut line = Line::warm(ElevenLabsScript::new()).await;
    line.say(1, "Sure.").await;
    line.say(1, " I can").await;
    assert_eq!(line.audio().await, SpeechId(1));
    line.say(1, " help you with that.").await;
    line.finish(1).await;
    let heard = line.heard(1).await;
    assert_eq!(heard.text(), "Sure. I can help you with that.");
    assert_eq!(heard.error, None);
    assert_eq!(heard.characters, 31);
}

#[tokio::test]
async fn words_concatenate_to_the_text_with_times_that_grow_within_the_audio() {
    let mut line = Line::warm(ElevenLabsScript::new()).await;
    let text = "Good morning, Mr. Smith.\nIt is 3.5 degrees – and cloudy!";
    for token in text.split_inclusive(' ') {
        line.say(1, token).await;
    }
    line.finish(1).await;
    let heard = line.heard(1).await;
    assert_eq!(heard.text(), text);
    let end = heard.words.last().unwrap().end_ms;
    assert!(heard.words.windows(2).all(|pair| pair[0].end_ms <= pair[1].start_ms));
    assert!(end <= heard.samples as u64 / 24, "{end} ms of {} samples", heard.samples);
    assert!(heard.samples as u64 / 24 >= text.chars().count() as u64 * 60);
}

#[tokio::test]
async fn two_speeches_in_sequence_use_one_socket() {
    let mut line = Line::warm(ElevenLabsScript::new()).await;
    for speech in [1, 2] {
        line.say(speech, "Hello there.").await;
        line.finish(speech).await;
        assert_eq!(line.heard(speech).await.text(), "Hello there.");
    }
    assert_eq!(line.sockets(), 1);
}

#[tokio::test]
async fn cancel_stops_the_audio_and_frees_the_context() {
    let mut line = Line::warm(ElevenLabsScript::new().speed(1.0)).await;
    line.say(1, "This is going to be a rather long story about nothing. ").await;
    line.audio().await;
    line.cancel(1).await;
    line.say(2, "Yes.").await;
    line.finish(2).await;
    let mut after_usage = false;
    loop {
        match line.event().await {
            // What was on its way before the command arrived.
            TtsEvent::Usage { .. } => after_usage = true,
            TtsEvent::Audio { id, .. } if after_usage => assert_eq!(id, SpeechId(2)),
            TtsEvent::End { id } => {
                assert_eq!(id, SpeechId(2));
                break;
            }
            TtsEvent::Error { id, error } => panic!("{id:?}: {error}"),
            _ => {}
        }
    }
    let closes =
        line.log.texts("elevenlabs").iter().filter(|m| m.contains("close_context")).count();
    assert_eq!(closes, 2);
    assert_eq!(line.sockets(), 1);
}

#[tokio::test]
async fn a_sixth_speech_waits_and_is_spoken_all_the_same() {
    let mut line = Line::warm(ElevenLabsScript::new()).await;
    for speech in 1..=7 {
        line.say(speech, "Hello there.").await;
        line.finish(speech).await;
    }
    let mut ended = Vec::new();
    while ended.len() < 7 {
        match line.event().await {
            TtsEvent::End { id } => ended.push(id.0),
            TtsEvent::Error { id, error } => panic!("{id:?}: {error}"),
            _ => {}
        }
    }
    assert_eq!(line.sockets(), 1);
}

#[tokio::test]
async fn a_drop_before_the_first_audio_is_not_heard() {
    let mut line = Line::warm(ElevenLabsScript::new().disconnect_after(ms(0))).await;
    line.say(1, "Hello there, ").await;
    line.opened(2).await;
    line.say(1, "my friend.").await;
    line.finish(1).await;
    let heard = line.heard(1).await;
    assert_eq!(heard.error, None);
    assert_eq!(heard.text(), "Hello there, my friend.");
}

#[tokio::test]
async fn a_drop_in_mid_speech_is_told_and_the_next_speech_is_spoken() {
    let mut line = Line::warm(ElevenLabsScript::new().disconnect_after(ms(300))).await;
    line.say(1, "Hello there, my friend.").await;
    line.finish(1).await;
    let heard = line.heard(1).await;
    assert!(matches!(heard.error, Some(TtsError::Interrupted(_))), "{heard:?}");
    assert!(heard.samples > 0);
    line.say(2, "I am sorry.").await;
    line.finish(2).await;
    assert_eq!(line.heard(2).await.text(), "I am sorry.");
}

#[tokio::test]
async fn a_stall_before_the_first_audio_costs_a_time_out_and_no_more() {
    let script = ElevenLabsScript::new().stall_after(ms(0));
    let mut line = Line::open_with(script, |config| config.audio_timeout = ms(300)).await;
    line.say(1, "Hello there.").await;
    line.finish(1).await;
    let heard = line.heard(1).await;
    assert_eq!((heard.error.as_ref(), heard.text().as_str()), (None, "Hello there."));
    assert_eq!(line.sockets(), 2);
}

#[tokio::test]
async fn a_provider_that_never_speaks_is_a_time_out() {
    let script = ElevenLabsScript::new().stall_after(ms(0)).stall_after(ms(0));
    let mut line = Line::open_with(script, |config| config.audio_timeout = ms(200)).await;
    line.say(1, "Hello there.").await;
    line.finish(1).await;
    assert_eq!(line.heard(1).await.error, Some(TtsError::Timeout(200)));
}

#[tokio::test]
async fn a_malformed_message_is_passed_over() {
    let mut line = Line::warm(ElevenLabsScript::new().malformed_after(ms(120))).await;
    line.say(1, "Hello there.").await;
    line.finish(1).await;
    let heard = line.heard(1).await;
    assert_eq!((heard.error.as_ref(), heard.text().as_str()), (None, "Hello there."));
}

#[tokio::test]
async fn a_refused_key_is_told_and_stays_out_of_sight() {
    let config = ElevenLabsConfig::new(KEY.into(), "voice");
    assert!(!format!("{config:?}").contains(KEY));
    assert!(!format!("{:?}", ElevenLabs::new(config).unwrap()).contains(KEY));
    let mut line = Line::open(ElevenLabsScript::new().refuse_always(401)).await;
    line.say(1, "Hello there.").await;
    line.finish(1).await;
    assert_eq!(line.heard(1).await.error, Some(TtsError::Unauthorized { status: 401 }));
}

#[tokio::test]
async fn refusals_that_pass_are_waited_for() {
    let mut line = Line::open(ElevenLabsScript::new().refuse(503).refuse(503).refuse(503)).await;
    line.say(1, "Hello there.").await;
    line.finish(1).await;
    let heard = line.heard(1).await;
    assert_eq!((heard.error.as_ref(), heard.text().as_str()), (None, "Hello there."));
}

#[tokio::test]
async fn a_provider_that_is_down_is_given_up_in_time() {
    let script = ElevenLabsScript::new().refuse_always(503);
    let mut line = Line::open_with(script, |config| config.connect_budget = ms(400)).await;
    line.say(1, "Hello there.").await;
    let heard = line.heard(1).await;
    assert!(matches!(heard.error, Some(TtsError::Unreachable(_))), "{heard:?}");
}

#[tokio::test]
async fn single_streams_have_the_next_socket_open_before_it_is_needed() {
    let script = ElevenLabsScript::new();
    let mut line = Line::open_with(script, |config| config.multi = false).await;
    for speech in 1..=3 {
        line.opened(speech as usize).await;
        line.say(speech, "Hello there.").await;
        line.opened(speech as usize + 1).await;
        line.finish(speech).await;
        let heard = line.heard(speech).await;
        assert_eq!((heard.error.as_ref(), heard.text().as_str()), (None, "Hello there."));
    }
    line.say(4, "A long story that is not wanted any more. ").await;
    line.audio().await;
    line.cancel(4).await;
    line.say(5, "Yes.").await;
    line.finish(5).await;
    assert_eq!(line.heard(5).await.text(), "Yes.");
}

#[tokio::test]
async fn without_auto_mode_the_first_words_are_flushed_too() {
    let script = ElevenLabsScript::new();
    let mut line = Line::open_with(script, |config| config.auto_mode = false).await;
    line.say(1, "Sure. I").await;
    assert_eq!(line.audio().await, SpeechId(1));
    let init = line.log.texts("elevenlabs")[0].clone();
    assert!(init.contains("chunk_length_schedule"), "{init}");
}

#[tokio::test]
async fn the_task_ends_when_nobody_commands() {
    let context = Context::default();
    let (sender, _events) = mpsc::channel(16);
    let mut config = ElevenLabsConfig::new(KEY.into(), "voice");
    config.base_url = "http://127.0.0.1:1/v1".into();
    let connection = ElevenLabs::new(config).unwrap().connect(sender);
    drop(connection.commands);
    timeout(BOUND, connection.task).await.unwrap().unwrap();
    drop(context);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let refused = |change: fn(&mut ElevenLabsConfig)| {
        let mut config = ElevenLabsConfig::new(KEY.into(), "voice");
        change(&mut config);
        ElevenLabs::new(config).unwrap_err().to_string()
    };
    assert!(refused(|config| config.output_rate = 44_100).contains("44100 Hz"));
    assert!(refused(|config| config.output_rate = 12_345).contains("12345 Hz"));
    assert!(refused(|config| config.base_url = "file:///x".into()).contains("base URL"));
    assert!(refused(|config| config.voice_id = " ".into()).contains("voice id"));
    assert!(refused(|config| config.voice.stability = f32::NAN).contains("stability"));
    assert!(refused(|config| config.chunk_length_schedule = vec![20]).contains("50..500"));
}
