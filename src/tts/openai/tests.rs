//! The driver against the double, over loopback.

use tokio::time::timeout;

use super::*;
use crate::doubles::{
    Doubles, Script,
    faults::Faulty,
    log::{Entry, What},
    serve,
    speech::SpeechScript,
};

const BOUND: Duration = Duration::from_secs(10);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

struct Line {
    doubles: Doubles,
    commands: mpsc::Sender<TtsCommand>,
    events: mpsc::Receiver<TtsEvent>,
}

/// What a speech became.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    ms: u64,
    words: String,
    characters: u64,
    error: Option<TtsError>,
}

impl Line {
    async fn open(speech: SpeechScript) -> Self {
        let doubles = serve(Script { speech, ..Script::default() }).await.unwrap();
        let mut config = OpenAiTtsConfig::new("key".into(), "alloy");
        config.base_url = doubles.base_url();
        config.audio_timeout = ms(300);
        let (sender, events) = mpsc::channel(64);
        let commands = OpenAiTts::new(config).unwrap().connect(sender).commands;
        Self { doubles, commands, events }
    }

    async fn say(&self, id: u64, text: &str) {
        let text = text.to_owned();
        self.commands.send(TtsCommand::Speak { id: SpeechId(id), text }).await.unwrap();
    }

    async fn finish(&self, id: u64) {
        self.commands.send(TtsCommand::Finish { id: SpeechId(id) }).await.unwrap();
    }

    async fn heard(&mut self) -> Heard {
        let (mut heard, mut count) = (Heard::default(), 0);
        loop {
            heard.ms = count / 24;
            match timeout(BOUND, self.events.recv()).await.unwrap().unwrap() {
                TtsEvent::Audio { samples, .. } => count += samples.len() as u64,
                TtsEvent::Alignment { words, .. } => {
                    heard.words.extend(words.into_iter().map(|word| word.text));
                }
                TtsEvent::Usage { characters, .. } => heard.characters += characters,
                TtsEvent::End { .. } => return heard,
                TtsEvent::Error { error, .. } => {
                    heard.error = Some(error);
                    return heard;
                }
            }
        }
    }

    fn requests(&self) -> usize {
        let is = |entry: &&Entry| matches!(&entry.what, What::Request { target, .. } if target.ends_with("speech"));
        self.doubles.log().entries().iter().filter(is).count()
    }
}

const TEXT: &str = "Certainly. A table for four it is. We look forward to it.";

#[tokio::test]
async fn a_speech_is_spoken_in_pieces_with_all_its_words() {
    let mut line = Line::open(SpeechScript::new()).await;
    for token in TEXT.split_inclusive(' ') {
        line.say(1, token).await;
    }
    line.finish(1).await;
    let heard = line.heard().await;
    assert_eq!((heard.words.as_str(), heard.error), (TEXT, None));
    assert_eq!(heard.ms, TEXT.chars().count() as u64 * 60);
    assert_eq!(heard.characters, TEXT.chars().count() as u64);
    assert!((2..=3).contains(&line.requests()), "{}", line.requests());
}

#[tokio::test]
async fn a_piece_of_which_nothing_was_heard_is_asked_for_again() {
    for script in [
        SpeechScript::new().refuse(500),
        SpeechScript::new().disconnect_after(ms(0)),
        SpeechScript::new().stall_after(ms(0)),
    ] {
        let mut line = Line::open(script).await;
        line.say(1, "Hello there.").await;
        line.finish(1).await;
        let heard = line.heard().await;
        assert_eq!((heard.words.as_str(), heard.error), ("Hello there.", None));
    }
}

#[tokio::test]
async fn what_breaks_off_is_told() {
    for script in
        [SpeechScript::new().disconnect_after(ms(240)), SpeechScript::new().stall_after(ms(240))]
    {
        let mut line = Line::open(script).await;
        line.say(1, "Hello there.").await;
        line.finish(1).await;
        let heard = line.heard().await;
        assert!(matches!(heard.error, Some(TtsError::Interrupted(_))), "{heard:?}");
        assert_eq!(heard.ms, 240);
    }
}

#[tokio::test]
async fn what_slow_speech_would_have_said_before_it_broke_is_told() {
    let mut line = Line::open(SpeechScript::new().disconnect_after(ms(900))).await;
    line.say(1, "Hello there my dear friend.").await;
    line.finish(1).await;
    let heard = line.heard().await;
    assert!(matches!(heard.error, Some(TtsError::Interrupted(_))), "{heard:?}");
    assert_eq!(heard.words, "Hello there ");
}

#[tokio::test]
async fn a_wrong_key_is_told_and_not_tried_again() {
    let mut line = Line::open(SpeechScript::new().refuse(401)).await;
    line.say(1, "Hello.").await;
    line.finish(1).await;
    assert_eq!(line.heard().await.error, Some(TtsError::Unauthorized { status: 401 }));
    assert_eq!(line.requests(), 1);
}

#[tokio::test]
async fn a_cancelled_speech_frees_its_connection_and_says_no_more() {
    let mut line = Line::open(SpeechScript::new().stall_after(ms(120))).await;
    line.say(1, "Hello there. ").await;
    let first =
        async { while !matches!(line.events.recv().await, Some(TtsEvent::Audio { .. })) {} };
    timeout(BOUND, first).await.unwrap();
    line.commands.send(TtsCommand::Cancel { id: SpeechId(1) }).await.unwrap();
    let closed = line.doubles.log().wait_for_count(1, |entry| entry.what == What::Closed);
    timeout(BOUND, closed).await.unwrap();
    line.say(2, "Yes.").await;
    line.finish(2).await;
    assert_eq!(line.heard().await.words, "Yes.");
}

#[tokio::test]
async fn a_speech_without_anything_to_say_ends() {
    let mut line = Line::open(SpeechScript::new()).await;
    line.say(1, " … ").await;
    line.finish(1).await;
    assert_eq!(line.heard().await, Heard::default());
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let refused = |change: fn(&mut OpenAiTtsConfig)| {
        let mut config = OpenAiTtsConfig::new("key".into(), "alloy");
        change(&mut config);
        OpenAiTts::new(config).unwrap_err()
    };
    assert_eq!(refused(|config| config.voice = " ".into()), OpenAiTtsConfigError::Voice);
    assert_eq!(refused(|config| config.model.clear()), OpenAiTtsConfigError::Model);
    assert_eq!(refused(|config| config.speed = Some(9.0)), OpenAiTtsConfigError::Speed);
}
