//! Deepgram's Flux, `/v2/listen` (<https://developers.deepgram.com/reference/speech-to-text/listen-flux>):
//! recognition that knows turns. It is sent 80 ms at a time; there is neither KeepAlive nor Finalize.
//!
//! A server's message is read leniently: a field that is missing or of another type counts as
//! absent, a message of an unknown type as nothing.

use serde_json::Value;
use url::Url;

use super::proto::{CLOSE_STREAM, Options};
use crate::stt::{
    SttEvent, Transcript, Word,
    dialect::{Dialect, Junk, Outgoing, Received},
    driver::SAMPLE_RATE,
    telling::Telling,
};

/// Times beyond this (a year, in ms) are nonsense and cut to it.
const MAX_MS: f64 = 365.0 * 24.0 * 3_600_000.0;
/// More words than this in one turn are not kept.
const MAX_WORDS: usize = 4_096;

/// Makes events of the server's messages.
#[derive(Debug, Clone)]
pub struct Codec {
    url: Url,
    /// Where the current connection's time 0 is, in ms since the stream's first sample.
    offset_ms: u64,
    telling: Telling,
    /// The last turn that was told as ended, on this connection.
    ended: Option<u64>,
}

impl Codec {
    /// `base` carries v1's version, as for the other models.
    pub fn new(base: &Url, options: &Options) -> Self {
        let base = crate::net::url::with_version(base, "v2");
        let mut url = crate::net::url::socket(&base, &["listen"]);
        let mut query = url.query_pairs_mut();
        query.append_pair("model", &options.model);
        query.append_pair("encoding", "linear16");
        query.append_pair("sample_rate", &SAMPLE_RATE.to_string());
        for term in &options.keyterms {
            query.append_pair("keyterm", term);
        }
        if options.opt_out_of_training {
            query.append_pair("mip_opt_out", "true");
        }
        drop(query);
        Self { url, offset_ms: 0, telling: Telling::default(), ended: None }
    }

    fn turn(&mut self, message: &Value, events: &mut Vec<SttEvent>, received: &mut Received) {
        let index = message.get("turn_index").and_then(Value::as_u64);
        // What comes after a turn's end about the same turn has been overtaken.
        if index.is_some() && index == self.ended {
            return;
        }
        let transcript = self.transcript(message);
        match message.get("event").and_then(Value::as_str).unwrap_or_default() {
            "StartOfTurn" => {
                self.telling.starts(events);
                self.telling.interim(transcript, events);
            }
            "Update" | "EagerEndOfTurn" | "TurnResumed" => self.telling.interim(transcript, events),
            "EndOfTurn" => {
                self.ended = index;
                received.finalized = true;
                received.settled_ms = Some(transcript.start_ms + transcript.duration_ms);
                self.telling.ends(transcript, events);
            }
            _ => {}
        }
    }

    fn transcript(&self, message: &Value) -> Transcript {
        let at = |key: &str| milliseconds(message.get(key)).map(|ms| self.offset_ms + ms);
        let start_ms = at("audio_window_start").unwrap_or(self.offset_ms);
        let end_ms = at("audio_window_end").unwrap_or(start_ms).max(start_ms);
        let all = message.get("words").and_then(Value::as_array);
        let words: Vec<&Value> = all.into_iter().flatten().take(MAX_WORDS).collect();
        let sum: f32 = words.iter().map(|word| confidence(word)).sum();
        Transcript {
            text: string(message, "transcript").unwrap_or_default(),
            start_ms,
            duration_ms: end_ms - start_ms,
            confidence: if words.is_empty() { 0.0 } else { sum / words.len() as f32 },
            words: words.iter().filter_map(|word| self.word(word)).collect(),
            language: message.pointer("/languages/0").and_then(Value::as_str).map(str::to_owned),
        }
    }

    /// Words have times only in some versions.
    fn word(&self, word: &Value) -> Option<Word> {
        let start_ms = self.offset_ms + milliseconds(word.get("start"))?;
        let end_ms = milliseconds(word.get("end")).map_or(start_ms, |ms| self.offset_ms + ms);
        Some(Word {
            text: string(word, "word")?,
            start_ms,
            end_ms: end_ms.max(start_ms),
            confidence: confidence(word),
        })
    }
}

impl Dialect for Codec {
    fn provider(&self) -> &'static str {
        "deepgram"
    }

    fn url(&self) -> Url {
        self.url.clone()
    }

    fn key_header(&self) -> (&'static str, &'static str) {
        ("authorization", "Token ")
    }

    fn chunk_ms(&self) -> u64 {
        80
    }

    fn keep_alive(&mut self) -> Option<Outgoing> {
        None
    }

    fn finalize(&mut self) -> Vec<Outgoing> {
        Vec::new()
    }

    fn close(&mut self) -> Vec<Outgoing> {
        vec![Outgoing::Text(CLOSE_STREAM.into())]
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
        match message.get("type").and_then(Value::as_str).ok_or(Junk)? {
            "TurnInfo" => self.turn(&message, events, &mut received),
            "Error" => {
                let text = string(&message, "description").unwrap_or_default();
                received.error = Some(text.chars().take(300).collect());
            }
            // `Connected`, `ConfigureSuccess`, and what later versions add.
            _ => {}
        }
        Ok(received)
    }
}

fn string(of: &Value, key: &str) -> Option<String> {
    Some(of.get(key)?.as_str()?.trim().to_owned())
}

/// 0..1; 0 when missing.
fn confidence(of: &Value) -> f32 {
    of.get("confidence").and_then(Value::as_f64).map_or(0.0, |value| value.clamp(0.0, 1.0) as f32)
}

/// Seconds on the wire.
fn milliseconds(seconds: Option<&Value>) -> Option<u64> {
    let ms = seconds?.as_f64()? * 1_000.0;
    Some(ms.round().clamp(0.0, MAX_MS) as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stt::testing;

    fn codec() -> Codec {
        let options = Options {
            model: "flux-general-en".into(),
            keyterms: vec!["Ada".into()],
            ..Options::default()
        };
        Codec::new(&Url::parse("https://host/v1").unwrap(), &options)
    }

    #[test]
    fn it_is_asked_for_beside_the_first_version() {
        assert_eq!(
            codec().url().as_str(),
            "wss://host/v2/listen?model=flux-general-en&encoding=linear16&sample_rate=16000\
             &keyterm=Ada&mip_opt_out=true"
        );
    }

    #[test]
    fn a_recorded_call_becomes_two_turns() {
        let lines = include_str!("../../../fixtures/providers/deepgram-flux.jsonl");
        let mut codec = codec();
        codec.connected(10_000);
        let (told, settled) = testing::play(&mut codec, lines);
        assert_eq!(
            told,
            [
                "SpeechStarted",
                "~I'd",
                "~I'd like to book",
                "~I'd like to book a table",
                "~I'd like to book a table for two",
                "I'd like to book a table for two.",
                "EndOfTurn",
                "SpeechStarted",
                "~At",
                "At eight.",
                "EndOfTurn",
            ]
        );
        assert_eq!(settled, [12_480, 14_080]);
    }

    #[test]
    fn an_update_that_an_end_has_overtaken_changes_nothing() {
        let turn = |event: &str| {
            format!(r#"{{"type":"TurnInfo","event":"{event}","turn_index":0,"transcript":"yes"}}"#)
        };
        let lines = [turn("EndOfTurn"), turn("Update"), turn("EndOfTurn")].join("\n");
        let (told, _) = testing::play(&mut codec(), &lines);
        assert_eq!(told, ["SpeechStarted", "yes", "EndOfTurn"]);
    }

    proptest! {
        #[test]
        fn no_json_can_hurt(value in testing::any_json(), junk in "\\PC{0,60}") {
            testing::feed(&mut codec(), &value, &junk);
        }
    }
}
