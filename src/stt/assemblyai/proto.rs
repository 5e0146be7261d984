//! AssemblyAI's universal streaming, v3 (<https://www.assemblyai.com/docs/api-reference/streaming-api>):
//! what is asked in the URL, the messages we send, and what the server's mean.
//!
//! A message of audio must last 50 to 1000 ms, or the server closes. With formatted turns the end of
//! a turn is told twice: the formatted one is the final. A message is read leniently: a field that is
//! missing or of another type counts as absent, a message of an unknown type as nothing.

use serde_json::Value;
use url::Url;

use crate::stt::{
    SttError, SttEvent, Transcript, Word,
    dialect::{Dialect, Junk, Outgoing, Received},
    driver::SAMPLE_RATE,
    telling::Telling,
};

/// Ends the turn that is going on.
pub const FORCE_ENDPOINT: &str = r#"{"type":"ForceEndpoint"}"#;
pub const KEEP_ALIVE: &str = r#"{"type":"KeepAlive"}"#;
/// Asks for the last turn, then `Termination` and the end of the connection.
pub const TERMINATE: &str = r#"{"type":"Terminate"}"#;

/// More words than this in one turn are not kept.
const MAX_WORDS: usize = 4_096;

/// What recognition is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Such as `universal-streaming-english` or `universal-streaming-multilingual`.
    pub model: String,
    /// Punctuation and capitals, at the cost of some time.
    pub format_turns: bool,
    /// Words that are likely to be said (names, products).
    pub keyterms: Vec<String>,
}

/// Makes events of the server's messages.
#[derive(Debug, Clone)]
pub struct Codec {
    url: Url,
    formats: bool,
    /// Where the current connection's time 0 is, in ms since the stream's first sample.
    offset_ms: u64,
    telling: Telling,
    /// The last turn that was told as ended, on this connection.
    ended: Option<u64>,
}

impl Codec {
    /// `base` carries the version: `https://streaming.assemblyai.com/v3`.
    pub fn new(base: &Url, options: &Options) -> Self {
        let mut url = crate::net::url::socket(base, &["ws"]);
        let mut query = url.query_pairs_mut();
        query.append_pair("sample_rate", &SAMPLE_RATE.to_string());
        query.append_pair("encoding", "pcm_s16le");
        query.append_pair("speech_model", &options.model);
        query.append_pair("format_turns", if options.format_turns { "true" } else { "false" });
        if !options.keyterms.is_empty() {
            let terms = Value::from(options.keyterms.clone());
            query.append_pair("keyterms_prompt", &terms.to_string());
        }
        drop(query);
        let formats = options.format_turns;
        Self { url, formats, offset_ms: 0, telling: Telling::default(), ended: None }
    }

    fn turn(&mut self, message: &Value, events: &mut Vec<SttEvent>, received: &mut Received) {
        let flag = |key: &str| message.get(key).and_then(Value::as_bool).unwrap_or(false);
        let order = message.get("turn_order").and_then(Value::as_u64);
        // What comes after a turn's end about the same turn has been overtaken.
        if order.is_some() && order == self.ended {
            return;
        }
        let is_final = flag("end_of_turn") && (flag("turn_is_formatted") || !self.formats);
        let transcript = self.transcript(message, is_final);
        if !is_final {
            self.telling.interim(transcript, events);
            return;
        }
        self.ended = order;
        received.finalized = true;
        received.settled_ms = Some(transcript.start_ms + transcript.duration_ms);
        self.telling.ends(transcript, events);
    }

    fn transcript(&self, message: &Value, is_final: bool) -> Transcript {
        let all = message.get("words").and_then(Value::as_array);
        let words: Vec<Word> =
            all.into_iter().flatten().take(MAX_WORDS).filter_map(|word| self.word(word)).collect();
        // `transcript` has the words that are final alone; an interim shows the others too.
        let spoken = words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ");
        let told = string(message, "transcript").unwrap_or_default();
        let sum: f32 = words.iter().map(|word| word.confidence).sum();
        let start_ms = words.first().map_or(self.offset_ms, |word| word.start_ms);
        let end_ms = words.last().map_or(start_ms, |word| word.end_ms).max(start_ms);
        Transcript {
            text: if (is_final && !told.is_empty()) || spoken.is_empty() { told } else { spoken },
            start_ms,
            duration_ms: end_ms - start_ms,
            confidence: if words.is_empty() { 0.0 } else { sum / words.len() as f32 },
            words,
            language: string(message, "language_code"),
        }
    }

    fn word(&self, word: &Value) -> Option<Word> {
        // Up to a year; beyond that it is nonsense.
        let at = |key: &str| {
            let ms = word.get(key)?.as_f64()?.clamp(0.0, 365.0 * 24.0 * 3_600_000.0);
            Some(self.offset_ms + ms as u64)
        };
        let start_ms = at("start")?;
        let confidence = word.get("confidence").and_then(Value::as_f64).unwrap_or(0.0);
        Some(Word {
            text: string(word, "text")?,
            start_ms,
            end_ms: at("end").unwrap_or(start_ms).max(start_ms),
            confidence: confidence.clamp(0.0, 1.0) as f32,
        })
    }
}

impl Dialect for Codec {
    fn provider(&self) -> &'static str {
        "assemblyai"
    }

    fn url(&self) -> Url {
        self.url.clone()
    }

    fn key_header(&self) -> (&'static str, &'static str) {
        ("authorization", "")
    }

    fn whole_chunks(&self) -> bool {
        true
    }

    fn keep_alive(&mut self) -> Option<Outgoing> {
        Some(Outgoing::Text(KEEP_ALIVE.into()))
    }

    fn finalize(&mut self) -> Vec<Outgoing> {
        vec![Outgoing::Text(FORCE_ENDPOINT.into())]
    }

    fn close(&mut self) -> Vec<Outgoing> {
        vec![Outgoing::Text(TERMINATE.into())]
    }

    fn connected(&mut self, offset_ms: u64) {
        self.offset_ms = offset_ms;
        self.telling.connected();
        self.ended = None;
    }

    fn skipped(&mut self, ms: u64) {
        self.offset_ms += ms;
    }

    fn receive(&mut self, text: &str, events: &mut Vec<SttEvent>) -> Result<Received, Junk> {
        let message: Value = serde_json::from_str(text).map_err(|_| Junk)?;
        let mut received = Received::default();
        if let Some(error) = message.get("error").and_then(Value::as_str) {
            received.error = Some(error.chars().take(300).collect());
            return Ok(received);
        }
        match message.get("type").and_then(Value::as_str).ok_or(Junk)? {
            "SpeechStarted" => self.telling.starts(events),
            "Turn" => self.turn(&message, events, &mut received),
            "Termination" => received.is_last = true,
            // `Begin`, and what later versions add.
            _ => {}
        }
        Ok(received)
    }

    /// The key is refused by a close frame, after the upgrade.
    fn refusal(&self, code: u16, reason: &str) -> Option<SttError> {
        match code {
            1008 | 4001 => Some(SttError::Unauthorized { status: 401 }),
            // Bad sample rate, unpaid, bad schema, and the like.
            4000 | 4002..=4005 | 4010..=4013 | 4100..=4104 => {
                Some(SttError::Rejected { status: 400, message: format!("{code} {reason}") })
            }
            _ => None,
        }
    }
}

fn string(of: &Value, key: &str) -> Option<String> {
    Some(of.get(key)?.as_str()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stt::testing;

    fn codec(format_turns: bool) -> Codec {
        let options = Options {
            model: "universal-streaming-english".into(),
            format_turns,
            keyterms: vec!["Ada".into()],
        };
        Codec::new(&Url::parse("https://host/v3").unwrap(), &options)
    }

    #[test]
    fn what_is_wanted_is_asked_for_in_the_url() {
        assert_eq!(
            codec(true).url().as_str(),
            "wss://host/v3/ws?sample_rate=16000&encoding=pcm_s16le\
             &speech_model=universal-streaming-english&format_turns=true\
             &keyterms_prompt=%5B%22Ada%22%5D"
        );
    }

    const RECORDED: &str = include_str!("../../../fixtures/providers/assemblyai.jsonl");

    #[test]
    fn a_formatted_turn_is_told_once() {
        let mut codec = codec(true);
        codec.connected(5_000);
        let (told, settled) = testing::play(&mut codec, RECORDED);
        assert_eq!(
            told,
            [
                "SpeechStarted",
                "~i'd",
                "~i'd like a",
                "~i'd like a table",
                "I'd like a table.",
                "EndOfTurn",
                "SpeechStarted",
                "~at",
                "At eight.",
                "EndOfTurn",
            ]
        );
        assert_eq!(settled, [6_300, 7_980]);
    }

    #[test]
    fn without_formatting_the_first_end_counts() {
        let (told, _) = testing::play(&mut codec(false), RECORDED);
        assert_eq!(told[3..5], ["i'd like a table", "EndOfTurn"]);
        assert_eq!(told.iter().filter(|it| *it == "EndOfTurn").count(), 2);
    }

    #[test]
    fn a_refused_key_is_told_by_the_close() {
        let codec = codec(true);
        assert_eq!(codec.refusal(1008, "no"), Some(SttError::Unauthorized { status: 401 }));
        assert_eq!(codec.refusal(1011, "oops"), None);
    }

    proptest! {
        #[test]
        fn no_json_can_hurt(value in testing::any_json(), junk in "\\PC{0,60}", formats: bool) {
            testing::feed(&mut codec(formats), &value, &junk);
        }
    }
}
