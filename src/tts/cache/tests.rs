//! Phrases before ElevenLabs' double, over loopback.

use tokio::time::timeout;

use super::*;
use crate::{
    doubles::{Doubles, Script, elevenlabs::ElevenLabsScript, faults::Faulty, serve},
    tts::{
        elevenlabs::{ElevenLabs, ElevenLabsConfig},
        relay::Relay,
    },
};

const BOUND: Duration = Duration::from_secs(20);
const GREETING: &str = "Hello there, how can I help?";

struct Line {
    doubles: Doubles,
    phrases: Phrases,
    commands: mpsc::Sender<TtsCommand>,
    events: mpsc::Receiver<TtsEvent>,
}

/// What a speech became: its words, its length in ms, what was charged, whether it was whole.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    words: String,
    ms: u64,
    /// When the last word ends, in ms.
    until: u64,
    characters: u64,
    whole: bool,
}

impl Line {
    async fn open(script: ElevenLabsScript, disk: Option<Disk>) -> Self {
        let doubles = serve(Script { tts: script, ..Script::default() }).await.unwrap();
        let mut config = ElevenLabsConfig::new("key".into(), "voice");
        config.base_url = doubles.base_url();
        config.connect_budget = Duration::from_millis(400);
        let voice: Arc<dyn Tts> =
            Arc::new(Relay::new(vec![Arc::new(ElevenLabs::new(config).unwrap())]).unwrap());
        let phrases = Phrases::new(voice.clone(), "key".into(), [GREETING.to_owned()], disk);
        let (sender, events) = mpsc::channel(256);
        let commands = Cached::new(voice, phrases.clone()).connect(sender).commands;
        Self { doubles, phrases, commands, events }
    }

    async fn fetched(&self) {
        let fetched = async {
            while self.phrases.0.known.lock().is_fetching {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(BOUND, fetched).await.unwrap();
    }

    async fn speaks(&mut self, id: u64, pieces: &[&str]) -> Heard {
        let id = SpeechId(id);
        for text in pieces {
            let text = (*text).to_owned();
            self.commands.send(TtsCommand::Speak { id, text }).await.unwrap();
        }
        self.commands.send(TtsCommand::Finish { id }).await.unwrap();
        let mut heard = Heard::default();
        loop {
            match timeout(BOUND, self.events.recv()).await.unwrap().unwrap() {
                TtsEvent::Audio { samples, .. } => heard.ms += samples.len() as u64 / 24,
                TtsEvent::Alignment { words, .. } => {
                    for word in words {
                        heard.until = word.end_ms;
                        heard.words.push_str(&word.text);
                    }
                }
                TtsEvent::Usage { characters, .. } => heard.characters += characters,
                TtsEvent::End { .. } => {
                    heard.whole = true;
                    return heard;
                }
                TtsEvent::Error { .. } => return heard,
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_greeting_needs_no_provider_once_it_was_spoken() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new(folder.path().to_owned(), 1 << 20);
    let mut first = Line::open(ElevenLabsScript::new(), Some(disk.clone())).await;
    first.fetched().await;
    let heard = first.speaks(1, &[GREETING]).await;
    assert_eq!((heard.words.trim_end(), heard.characters, heard.whole), (GREETING, 0, true));
    assert!(heard.ms > 1_000);
    // Another process, and nobody to speak.
    let down = ElevenLabsScript::new().refuse_always(500);
    let mut second = Line::open(down, Some(disk)).await;
    second.fetched().await;
    assert_eq!(second.speaks(1, &[GREETING]).await, heard);
    assert!(!second.speaks(2, &["Something else."]).await.whole);
    first.doubles.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_voice_goes_on_behind_a_phrase() {
    let mut line = Line::open(ElevenLabsScript::new(), None).await;
    line.fetched().await;
    let alone = line.speaks(1, &[GREETING]).await;
    let more = format!("{GREETING} And");
    let heard = line.speaks(2, &[&more, " more of it."]).await;
    let words: Vec<_> = heard.words.split_whitespace().collect();
    assert_eq!(words.join(" "), format!("{GREETING} And more of it."));
    assert!(heard.ms > alone.ms && heard.whole);
    // The times of the voice's own words count from the beginning of the whole.
    assert!(heard.until > alone.ms && heard.until <= heard.ms, "{heard:?}");
    assert!((1..30).contains(&heard.characters), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_model_streams_is_no_phrase_and_what_repeats_becomes_one() {
    let mut line = Line::open(ElevenLabsScript::new(), None).await;
    line.fetched().await;
    let mut id = 0;
    let mut charged = Vec::new();
    for pieces in [&["Certainly. "][..], &["One ", "moment."], &["One ", "moment."], &["Bye."]] {
        for _ in 0..3 {
            id += 1;
            charged.push(line.speaks(id, pieces).await.characters > 0);
            line.fetched().await;
        }
    }
    let third = [true, true, false];
    let never = [true; 3];
    assert_eq!(charged, [third, never, never, third].concat());
}

#[tokio::test(start_paused = true)]
async fn a_phrase_that_cannot_be_spoken_ahead_is_tried_again_later() {
    let script = ElevenLabsScript::new().refuse_always(401);
    let line = Line::open(script, None).await;
    line.fetched().await;
    let tries = || line.doubles.log().entries().len();
    let before = tries();
    line.phrases.fetch();
    line.fetched().await;
    assert_eq!(tries(), before, "not at once");
    tokio::time::advance(PAUSE).await;
    line.phrases.fetch();
    line.fetched().await;
    assert!(tries() > before);
}

#[test]
fn a_phrase_ends_where_a_word_does() {
    #[derive(Debug)]
    struct Mute;
    impl Tts for Mute {
        fn provider(&self) -> &'static str {
            "mute"
        }
        fn model(&self) -> &'static str {
            ""
        }
        fn sample_rate(&self) -> u32 {
            24_000
        }
        fn connect(&self, _: mpsc::Sender<TtsEvent>) -> TtsConnection {
            unreachable!()
        }
    }
    let fixed = ["One moment.", "One moment. Please.", "", "…"].map(String::from);
    let phrases = Phrases::new(Arc::new(Mute), String::new(), fixed, None);
    assert_eq!(phrases.0.known.lock().fixed.len(), 2);
    let phrase = |length| Arc::new(Phrase { samples: vec![0; length], words: Vec::new() });
    phrases.0.known.lock().put("One moment.", phrase(1));
    phrases.0.known.lock().put("One moment. Please.", phrase(2));
    let found = |text: &str| phrases.find(text).map(|(at, it)| (at, it.samples.len()));
    assert_eq!(found(" One moment."), Some((12, 1)));
    assert_eq!(found("One moment. Please. So"), Some((19, 2)));
    assert_eq!(found("One moment.5"), None);
    assert_eq!(found("One"), None);
}
