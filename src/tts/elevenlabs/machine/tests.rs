//! One session over sockets that are written down: what is sent, what is told.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::*;

mod failing;
mod speaking;

const RATE: u32 = 16_000;

/// A machine in virtual time, with what it did since it was last asked.
struct Bench {
    machine: Machine,
    start: Instant,
    now: Instant,
}

fn id(id: u64) -> SpeechId {
    SpeechId(id)
}

fn settings(multi: bool) -> Settings {
    Settings {
        multi,
        voice: VoiceSettings::default(),
        schedule: vec![],
        dictionaries: vec![],
        sample_rate: RATE,
        audio_timeout: Duration::from_millis(2_500),
        connect_budget: Duration::from_millis(2_500),
        resends: 2,
        inactivity: Duration::from_mins(3),
        jitter: 0.0,
    }
}

impl Bench {
    /// Not connected yet.
    fn cold(multi: bool) -> Self {
        let start = crate::clock::now();
        let mut machine = Machine::new(settings(multi));
        assert_eq!(machine.poll_action(), Some(Action::Connect));
        Self { machine, start, now: start }
    }

    fn warm(multi: bool) -> Self {
        let mut bench = Self::cold(multi);
        bench.machine.handle_connected(bench.now);
        bench
    }

    /// Lets time pass, with every time-out on the way.
    fn run_until(&mut self, ms: u64) {
        let end = self.start + Duration::from_millis(ms);
        for _ in 0..10_000 {
            let Some(at) = self.machine.poll_timeout().filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(at);
            self.machine.handle_timeout(self.now);
        }
        panic!("a time-out that is never dealt with: {:?}", self.machine);
    }

    fn say(&mut self, speech: u64, text: &str) {
        let command = TtsCommand::Speak { id: id(speech), text: text.into() };
        self.machine.handle_command(command, self.now);
    }

    fn finish(&mut self, speech: u64) {
        self.machine.handle_command(TtsCommand::Finish { id: id(speech) }, self.now);
    }

    fn cancel(&mut self, speech: u64) {
        self.machine.handle_command(TtsCommand::Cancel { id: id(speech) }, self.now);
    }

    fn connected(&mut self) {
        self.machine.handle_connected(self.now);
    }

    fn unreachable(&mut self) {
        self.machine.handle_refused(Refusal::Unreachable("down".into()), self.now);
    }

    fn lost(&mut self) {
        self.machine.handle_lost("reset", self.now);
    }

    fn receive(&mut self, message: &Value) {
        self.machine.handle_message(&message.to_string(), self.now).unwrap();
    }

    /// The server speaks `text`, 10 ms a character.
    fn speak(&mut self, context: &str, text: &str) {
        let count = text.chars().count();
        let pcm = vec![0_u8; count * RATE as usize / 100 * 2];
        self.receive(&json!({
            "audio": STANDARD.encode(pcm), "contextId": context, "isFinal": null,
            "alignment": {
                "chars": text.chars().map(String::from).collect::<Vec<_>>(),
                "charStartTimesMs": (0..count).map(|at| at * 10).collect::<Vec<_>>(),
                "charDurationsMs": vec![10; count],
            },
        }));
    }

    fn ended(&mut self, context: &str) {
        self.receive(&json!({"audio": null, "contextId": context, "isFinal": true}));
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.machine.poll_action()).collect()
    }

    /// What was sent, in short: `init s1-1`, `s1-1:text`, `close s1-1`, `eos`.
    fn sent(&mut self) -> Vec<String> {
        self.actions()
            .into_iter()
            .map(|action| match action {
                Action::Send(message) => {
                    let message: Value = serde_json::from_str(&message).unwrap();
                    let context = message["context_id"].as_str().unwrap_or("-");
                    match message["text"].as_str() {
                        _ if message["close_context"] == true => format!("close {context}"),
                        Some(_) if message["voice_settings"].is_object() => {
                            format!("init {context}")
                        }
                        Some("") if context == "-" => "eos".into(),
                        Some("") => format!("alive {context}"),
                        Some(text) => {
                            assert_eq!(message["flush"], true);
                            format!("{context}:{text}")
                        }
                        None => panic!("{message}"),
                    }
                }
                other => format!("{other:?}"),
            })
            .collect()
    }

    fn events(&mut self) -> Vec<TtsEvent> {
        std::iter::from_fn(|| self.machine.poll_event()).collect()
    }

    /// The events in short; audio in ms.
    fn told(&mut self) -> Vec<String> {
        self.events()
            .into_iter()
            .map(|event| match event {
                TtsEvent::Audio { id, samples } => {
                    format!("{} audio {}", id.0, samples.len() as u32 * 1_000 / RATE)
                }
                TtsEvent::Alignment { id, words } => {
                    let text: String = words.iter().map(|word| word.text.as_str()).collect();
                    format!("{} words {text:?}", id.0)
                }
                TtsEvent::End { id } => format!("{} end", id.0),
                TtsEvent::Error { id, error } => format!("{} error {error}", id.0),
                TtsEvent::Usage { characters, .. } => format!("usage {characters}"),
            })
            .collect()
    }
}
