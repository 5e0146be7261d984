//! ElevenLabs, then OpenAI, against their doubles over loopback.

use tokio::time::timeout;

use super::*;
use crate::{
    doubles::{
        Doubles, Script, elevenlabs::ElevenLabsScript, faults::Faulty, serve, speech::SpeechScript,
    },
    tts::{
        SpeechId,
        elevenlabs::{ElevenLabs, ElevenLabsConfig},
        openai::{OpenAiTts, OpenAiTtsConfig},
    },
};

const BOUND: Duration = Duration::from_secs(20);
const TEXT: &str = "Certainly. A table for four it is. We look forward to seeing you.";

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

struct Line {
    _doubles: Doubles,
    commands: mpsc::Sender<TtsCommand>,
    events: mpsc::Receiver<TtsEvent>,
}

impl Line {
    async fn open(tts: ElevenLabsScript, speech: SpeechScript) -> Self {
        let doubles = serve(Script { tts, speech, ..Script::default() }).await.unwrap();
        let mut eleven = ElevenLabsConfig::new("key".into(), "voice");
        eleven.base_url = doubles.base_url();
        eleven.audio_timeout = ms(400);
        eleven.connect_budget = ms(400);
        eleven.resends = 0;
        let mut openai = OpenAiTtsConfig::new("key".into(), "alloy");
        openai.base_url = doubles.base_url();
        openai.audio_timeout = ms(400);
        let voices: Vec<Arc<dyn Tts>> = vec![
            Arc::new(ElevenLabs::new(eleven).unwrap()),
            Arc::new(OpenAiTts::new(openai).unwrap()),
        ];
        let (sender, events) = mpsc::channel(64);
        let commands = Relay::new(voices).unwrap().connect(sender).commands;
        Self { _doubles: doubles, commands, events }
    }

    async fn speaks(&mut self, id: u64, text: &str) -> (String, Option<TtsError>, u64) {
        let id = SpeechId(id);
        for token in text.split_inclusive(' ') {
            let text = token.to_owned();
            self.commands.send(TtsCommand::Speak { id, text }).await.unwrap();
        }
        self.commands.send(TtsCommand::Finish { id }).await.unwrap();
        let (mut words, mut heard) = (String::new(), 0);
        loop {
            match timeout(BOUND, self.events.recv()).await.unwrap().unwrap() {
                TtsEvent::Audio { samples, .. } => heard += samples.len() as u64,
                TtsEvent::Alignment { words: told, .. } => {
                    words.extend(told.into_iter().map(|word| word.text));
                }
                TtsEvent::Usage { .. } => {}
                TtsEvent::End { .. } => return (words, None, heard / 24),
                TtsEvent::Error { error, .. } => return (words, Some(error), heard / 24),
            }
        }
    }
}

#[tokio::test]
async fn whatever_breaks_all_words_are_spoken_once() {
    type Break = fn(ElevenLabsScript) -> ElevenLabsScript;
    let faults: [(&str, Break); 8] = [
        ("refused", |it| it.refuse_always(503)),
        ("wrong key", |it| it.refuse_always(401)),
        ("stalls before", |it| it.stall_after(ms(0))),
        ("dies before", |it| it.disconnect_after(ms(0)).disconnect_after(ms(0))),
        ("dies early", |it| it.disconnect_after(ms(600))),
        ("dies late", |it| it.disconnect_after(ms(3_000))),
        ("stalls", |it| it.stall_after(ms(1_200))),
        ("fails", |it| it.fail_after(ms(900))),
    ];
    for (name, fault) in faults {
        let mut line = Line::open(fault(ElevenLabsScript::new()), SpeechScript::new()).await;
        let (words, error, heard_ms) = line.speaks(1, TEXT).await;
        assert_eq!((words.as_str(), error), (TEXT, None), "{name}");
        let whole = TEXT.chars().count() as u64 * 60;
        // At most the word in whose middle it broke is heard a second time.
        assert!((whole..whole + 900).contains(&heard_ms), "{name}: {heard_ms} of {whole} ms");
        let (words, error, _) = line.speaks(2, "And again.").await;
        assert_eq!((words.as_str(), error), ("And again.", None), "{name}");
    }
}

#[tokio::test]
async fn when_both_are_down_it_is_told() {
    let tts = ElevenLabsScript::new().refuse_always(503);
    let speech = SpeechScript::new().refuse_always(500);
    let mut line = Line::open(tts, speech).await;
    assert!(matches!(line.speaks(1, TEXT).await.1, Some(TtsError::Unreachable(_))));
}
