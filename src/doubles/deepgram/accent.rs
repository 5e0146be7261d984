//! How each provider says what the ears have heard: the wire of v1 comes in, each one's own goes out.

use serde_json::{Value, json};

/// Samples of the shortest message of audio that AssemblyAI takes (50 ms).
const LEAST: usize = 800;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accent {
    V1,
    Flux,
    AssemblyAi,
}

impl Accent {
    pub const fn provider(self) -> &'static str {
        match self {
            Self::V1 => "deepgram",
            Self::Flux => "deepgram-flux",
            Self::AssemblyAi => "assemblyai",
        }
    }

    pub const fn path(self) -> &'static str {
        match self {
            Self::V1 => "/v1/listen",
            Self::Flux => "/v2/listen",
            Self::AssemblyAi => "/v3/ws",
        }
    }

    pub const fn key_prefix(self) -> &'static str {
        match self {
            Self::V1 | Self::Flux => "Token ",
            Self::AssemblyAi => "",
        }
    }

    pub const fn encoding(self) -> &'static str {
        match self {
            Self::V1 | Self::Flux => "linear16",
            Self::AssemblyAi => "pcm_s16le",
        }
    }
}

/// What one connection says.
#[derive(Debug)]
pub struct Speech {
    accent: Accent,
    /// AssemblyAI tells each end twice when asked for formatted turns.
    formats: bool,
    turn: u64,
    sequence: u64,
    /// The segments of the turn that are closed: words as v1 has them.
    words: Vec<Value>,
    /// Where the turn's first segment begins, in s.
    since: Option<f64>,
    started: bool,
}

impl Speech {
    pub const fn new(accent: Accent, formats: bool) -> Self {
        let words = Vec::new();
        Self { accent, formats, turn: 0, sequence: 0, words, since: None, started: false }
    }

    pub fn greeting(&mut self) -> Option<Value> {
        match self.accent {
            Accent::V1 => None,
            Accent::Flux => Some(json!({
                "type": "Connected", "request_id": "double", "sequence_id": self.next(),
            })),
            Accent::AssemblyAi => {
                Some(json!({"type": "Begin", "id": "double", "expires_at": 1_760_010_000}))
            }
        }
    }

    /// The last message before the close.
    pub fn goodbye(&mut self, connection: u64, now_ms: u64) -> Option<Value> {
        let seconds = now_ms as f64 / 1_000.0;
        match self.accent {
            Accent::V1 => Some(json!({
                "type": "Metadata", "transaction_key": "deprecated", "channels": 1,
                "request_id": format!("double-{connection}"), "duration": seconds,
            })),
            Accent::Flux => None,
            Accent::AssemblyAi => Some(json!({
                "type": "Termination", "audio_duration_seconds": seconds.round(),
                "session_duration_seconds": seconds.round(),
            })),
        }
    }

    /// Whether a message of so many samples breaks the protocol.
    pub fn refuses(&self, samples: usize) -> bool {
        self.accent == Accent::AssemblyAi && !(LEAST..=20 * LEAST).contains(&samples)
    }

    /// A message of v1 in this provider's words.
    pub fn say(&mut self, message: Value) -> Vec<Value> {
        if self.accent == Accent::V1 {
            return vec![message];
        }
        match message["type"].as_str() {
            Some("SpeechStarted") if self.accent == Accent::AssemblyAi => {
                let ms = message["timestamp"].as_f64().unwrap_or(0.0) * 1_000.0;
                vec![json!({"type": "SpeechStarted", "timestamp": ms.round()})]
            }
            Some("Results") => self.results(&message),
            _ => Vec::new(),
        }
    }

    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence - 1
    }

    fn results(&mut self, message: &Value) -> Vec<Value> {
        let flag = |key: &str| message[key] == true;
        let (start, length) =
            (message["start"].as_f64().unwrap_or(0.0), message["duration"].as_f64().unwrap_or(0.0));
        let said = message.pointer("/channel/alternatives/0/words").and_then(Value::as_array);
        let mut words = self.words.clone();
        words.extend(said.cloned().unwrap_or_default());
        if words.is_empty() {
            return Vec::new();
        }
        let since = *self.since.get_or_insert(start);
        let is_end = flag("is_final") && (flag("speech_final") || flag("from_finalize"));
        let out = self.turn(&words, since, start + length, is_end);
        if is_end {
            self.turn += 1;
            self.words.clear();
            self.since = None;
            self.started = false;
        } else if flag("is_final") {
            self.words = words;
        }
        out
    }

    fn turn(&mut self, words: &[Value], since: f64, until: f64, is_end: bool) -> Vec<Value> {
        let text = |key: &str| {
            let words = words.iter().filter_map(|word| word[key].as_str());
            words.collect::<Vec<_>>().join(" ")
        };
        let turn = self.turn;
        if self.accent == Accent::Flux {
            let event = match (is_end, std::mem::replace(&mut self.started, true)) {
                (true, _) => "EndOfTurn",
                (false, true) => "Update",
                (false, false) => "StartOfTurn",
            };
            let brief: Vec<Value> = words
                .iter()
                .map(|word| {
                    json!({"word": word["punctuated_word"], "confidence": word["confidence"]})
                })
                .collect();
            return vec![json!({
                "type": "TurnInfo", "request_id": "double", "sequence_id": self.next(),
                "event": event, "turn_index": turn, "audio_window_start": since,
                "audio_window_end": until, "transcript": text("punctuated_word"), "words": brief,
                "end_of_turn_confidence": if is_end { 0.9 } else { 0.1 },
            })];
        }
        let ms = |value: &Value| (value.as_f64().unwrap_or(0.0) * 1_000.0).round();
        let message = |key: &str, formatted: bool| {
            let words: Vec<Value> = words
                .iter()
                .map(|word| {
                    json!({
                        "start": ms(&word["start"]), "end": ms(&word["end"]), "text": word[key],
                        "confidence": word["confidence"], "word_is_final": is_end,
                    })
                })
                .collect();
            json!({
                "type": "Turn", "turn_order": turn, "turn_is_formatted": formatted,
                "end_of_turn": is_end, "transcript": if is_end { text(key) } else { String::new() },
                "end_of_turn_confidence": if is_end { 0.9 } else { 0.1 }, "words": words,
                "utterance": "",
            })
        };
        let mut out = vec![message("word", false)];
        if is_end && self.formats {
            out.push(message("punctuated_word", true));
        }
        out
    }
}
