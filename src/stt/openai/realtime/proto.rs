//! OpenAI's realtime transcription
//! (<https://platform.openai.com/docs/guides/realtime-transcription>): what we send, and what the
//! server's events mean.
//!
//! There is no detection of turns at the server: a `Gate` lets speech through, and what went through
//! is committed as one item when the speech ends. So each item's place in time is known, and silence
//! costs nothing. Items may be completed in any order; they are told in the order of the speech.
//!
//! A message is read leniently: a field that is missing or of another type counts as absent, an event
//! of an unknown type as nothing.

use std::{collections::VecDeque, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use url::Url;

use crate::{
    audio::resample::Resampler,
    stt::{
        SttError, SttEvent, Transcript,
        cutting::{Gate, Passed},
        dialect::{Dialect, Junk, Outgoing, Received},
        driver::SAMPLE_RATE,
        openai::proto::Options,
        telling::Telling,
    },
};

pub const COMMIT: &str = r#"{"type":"input_audio_buffer.commit"}"#;
/// Of the PCM that is sent, in Hz: the only one that is taken.
pub const RATE: u32 = 24_000;
/// Samples of the shortest item that is taken: 100 ms.
const SHORTEST: usize = RATE as usize / 10;
/// A session lives for half an hour at the least.
const LIFETIME: Duration = Duration::from_mins(25);
/// Items that are not completed; beyond this the connection is of no use.
const MAX_PENDING: usize = 64;
/// Longest text of one item, in bytes.
const MAX_TEXT: usize = 16 << 10;
const PER_MS: u64 = SAMPLE_RATE as u64 / 1_000;

/// Whether this model tells words while they are being said.
pub fn streams(model: &str) -> bool {
    model.contains("realtime") || model.contains("live")
}

/// One utterance at the server.
#[derive(Debug, Default)]
struct Item {
    /// Told when it is committed, or with its first words.
    id: Option<String>,
    start_ms: u64,
    end_ms: u64,
    /// So far.
    text: String,
    is_committed: bool,
    is_complete: bool,
    /// Samples sent, at [`RATE`].
    sent: usize,
}

/// Makes messages of audio, and events of the server's messages.
#[derive(Debug)]
pub struct Codec {
    url: Url,
    greeting: String,
    /// Where the current connection's time 0 is, in ms since the stream's first sample.
    offset_ms: u64,
    /// Samples that this connection was given.
    given: u64,
    gate: Gate,
    resampler: Option<Resampler>,
    /// In the order of the speech; the last may still be spoken.
    items: VecDeque<Item>,
    telling: Telling,
    /// The words that were told last.
    shown: String,
    /// The server has taken what it is asked.
    is_agreed: bool,
}

impl Codec {
    /// `base` carries the version: `https://api.openai.com/v1`.
    pub fn new(base: &Url, options: &Options) -> Self {
        let mut url = crate::net::url::socket(base, &["realtime"]);
        url.query_pairs_mut().append_pair("intent", "transcription");
        let mut transcription = json!({"model": options.model});
        if let Some(language) = options.short_language() {
            transcription["language"] = language.into();
        }
        if !options.keyterms.is_empty() {
            transcription["prompt"] = options.keyterms.join(", ").into();
        }
        let greeting = json!({
            "type": "session.update",
            "session": {
                "type": "transcription",
                "audio": {"input": {
                    "format": {"type": "audio/pcm", "rate": RATE},
                    "transcription": transcription,
                    "turn_detection": null,
                }},
            },
        });
        Self {
            url,
            greeting: greeting.to_string(),
            offset_ms: 0,
            given: 0,
            gate: Gate::default(),
            resampler: None,
            items: VecDeque::new(),
            telling: Telling::default(),
            shown: String::new(),
            is_agreed: false,
        }
    }

    fn append(&mut self, samples: &[i16]) -> String {
        if let Some(item) = self.items.back_mut() {
            item.sent += samples.len();
        }
        let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        let audio = BASE64_STANDARD.encode(bytes);
        // Base64 needs no escapes.
        format!(r#"{{"type":"input_audio_buffer.append","audio":"{audio}"}}"#)
    }

    /// What has been said is one item.
    fn commit(&mut self) -> Vec<String> {
        let mut rest = Vec::new();
        if let Some(mut resampler) = self.resampler.take() {
            resampler.flush(&mut rest);
        }
        let sent = self.items.back().map_or(0, |item| item.sent);
        let missing = SHORTEST.saturating_sub(sent + rest.len());
        rest.resize(rest.len() + missing, 0);
        let mut messages = Vec::new();
        if !rest.is_empty() {
            messages.push(self.append(&rest));
        }
        let now_ms = self.offset_ms + self.given / PER_MS;
        if let Some(item) = self.items.back_mut() {
            item.is_committed = true;
            item.end_ms = now_ms.max(item.start_ms);
        }
        messages.push(COMMIT.to_owned());
        messages
    }

    fn is_open(&self) -> bool {
        self.items.back().is_some_and(|item| !item.is_committed)
    }

    /// The item of this name; if none has it, it is the first that has no name yet.
    fn item(&mut self, message: &Value) -> Option<&mut Item> {
        let id = message.get("item_id")?.as_str()?;
        let known = self.items.iter().position(|item| item.id.as_deref() == Some(id));
        let at = known.or_else(|| self.items.iter().position(|item| item.id.is_none()))?;
        let item = self.items.get_mut(at)?;
        item.id.get_or_insert_with(|| id.chars().take(200).collect());
        Some(item)
    }

    fn tell(&mut self, events: &mut Vec<SttEvent>, received: &mut Received) {
        while let Some(item) = self.items.pop_front_if(|item| item.is_complete) {
            received.finalized = true;
            received.settled_ms = Some(item.end_ms);
            self.telling.ends(transcript(&item, item.end_ms), events);
            self.shown.clear();
        }
        let now_ms = self.offset_ms + self.given / PER_MS;
        if let Some(item) = self.items.front()
            && !item.text.trim().is_empty()
            && item.text != self.shown
        {
            self.shown.clone_from(&item.text);
            let until = if item.is_committed { item.end_ms } else { now_ms };
            self.telling.interim(transcript(item, until), events);
        }
    }

    fn complain(&mut self, message: &Value, received: &mut Received) {
        let of = |key: &str| message.pointer(key).and_then(Value::as_str).unwrap_or_default();
        let (kind, code) = (of("/error/type"), of("/error/code"));
        let text: String = of("/error/message").chars().take(300).collect();
        let about = if code.is_empty() { kind } else { code };
        let said = format!("{about}: {text}");
        match code {
            "invalid_api_key" | "unauthorized" => {
                received.refused = Some(SttError::Unauthorized { status: 401 });
            }
            "insufficient_quota" => {
                received.refused = Some(SttError::Rejected { status: 429, message: said });
            }
            // Nothing was in it: there is nothing to wait for.
            "input_audio_buffer_commit_empty" => {
                let at = self.items.iter().position(|item| item.id.is_none() && item.is_committed);
                if let Some(item) = at.and_then(|at| self.items.get_mut(at)) {
                    item.is_complete = true;
                    item.text.clear();
                }
            }
            _ if kind == "invalid_request_error" && !self.is_agreed => {
                received.refused = Some(SttError::Rejected { status: 400, message: said });
            }
            _ if kind == "invalid_request_error" && code != "session_expired" => {
                received.error = Some(said);
            }
            _ => received.lost = Some(said),
        }
    }
}

fn transcript(item: &Item, until_ms: u64) -> Transcript {
    let text = item.text.trim().to_owned();
    Transcript {
        // The service tells none.
        confidence: if text.is_empty() { 0.0 } else { 1.0 },
        text,
        start_ms: item.start_ms,
        duration_ms: until_ms.saturating_sub(item.start_ms),
        ..Transcript::default()
    }
}

impl Dialect for Codec {
    fn provider(&self) -> &'static str {
        "openai-realtime"
    }

    fn url(&self) -> Url {
        self.url.clone()
    }

    fn key_header(&self) -> (&'static str, &'static str) {
        ("authorization", "Bearer ")
    }

    fn greeting(&self) -> Option<String> {
        Some(self.greeting.clone())
    }

    fn audio(&mut self, pcm: Vec<u8>) -> Vec<Outgoing> {
        let pairs = pcm.as_chunks::<2>().0;
        let samples: Vec<i16> = pairs.iter().map(|pair| i16::from_le_bytes(*pair)).collect();
        let offset_ms = self.offset_ms;
        let mut gate = std::mem::take(&mut self.gate);
        let mut sound = Vec::new();
        let mut messages = Vec::new();
        // What of this chunk came before the end of an utterance is sent before its commit.
        gate.push(&samples, |passed| match passed {
            Passed::Started { start_ms, samples } => {
                self.items.push_back(Item { start_ms: offset_ms + start_ms, ..Item::default() });
                // These rates are always convertible.
                self.resampler = Resampler::new(SAMPLE_RATE, RATE).ok();
                if let Some(resampler) = &mut self.resampler {
                    resampler.push(&samples, &mut sound);
                }
            }
            Passed::More(more) => {
                if let Some(resampler) = &mut self.resampler {
                    resampler.push(more, &mut sound);
                }
            }
            Passed::Ended => {
                if !sound.is_empty() {
                    let part = std::mem::take(&mut sound);
                    messages.push(self.append(&part));
                }
                messages.extend(self.commit());
            }
        });
        self.gate = gate;
        self.given += samples.len() as u64;
        if !sound.is_empty() {
            messages.push(self.append(&sound));
        }
        messages.into_iter().map(Outgoing::Text).collect()
    }

    /// Pings are enough.
    fn keep_alive(&mut self) -> Option<Outgoing> {
        None
    }

    fn finalize(&mut self) -> Vec<Outgoing> {
        self.gate.shut();
        let messages = if self.is_open() { self.commit() } else { Vec::new() };
        messages.into_iter().map(Outgoing::Text).collect()
    }

    fn close(&mut self) -> Vec<Outgoing> {
        self.finalize()
    }

    fn is_settled(&self) -> bool {
        self.items.is_empty()
    }

    fn lifetime(&self) -> Option<Duration> {
        Some(LIFETIME)
    }

    fn connected(&mut self, offset_ms: u64) {
        self.offset_ms = offset_ms;
        self.telling.connected();
        self.given = 0;
        self.gate = Gate::default();
        self.resampler = None;
        self.items.clear();
        self.shown.clear();
        self.is_agreed = false;
    }

    fn skipped(&mut self, ms: u64) {
        self.offset_ms += ms;
    }

    fn receive(&mut self, text: &str, events: &mut Vec<SttEvent>) -> Result<Received, Junk> {
        let message: Value = serde_json::from_str(text).map_err(|_| Junk)?;
        let mut received = Received::default();
        let string = |key: &str| message.get(key).and_then(Value::as_str).unwrap_or_default();
        match message.get("type").and_then(Value::as_str).ok_or(Junk)? {
            "session.updated" => self.is_agreed = true,
            "input_audio_buffer.committed" => _ = self.item(&message),
            "conversation.item.input_audio_transcription.delta" => {
                let delta = string("delta");
                if let Some(item) = self.item(&message)
                    && item.text.len() + delta.len() <= MAX_TEXT
                {
                    item.text.push_str(delta);
                }
                self.tell(events, &mut received);
            }
            "conversation.item.input_audio_transcription.completed" => {
                let whole = string("transcript");
                // Of what is still being said nothing is complete.
                if let Some(item) = self.item(&message).filter(|item| item.is_committed) {
                    whole[..whole.floor_char_boundary(MAX_TEXT)].clone_into(&mut item.text);
                    item.is_complete = true;
                }
                self.tell(events, &mut received);
            }
            "conversation.item.input_audio_transcription.failed" => {
                let why = message.pointer("/error/message").and_then(Value::as_str);
                let why = why.unwrap_or("the transcription failed");
                received.lost = Some(why.chars().take(300).collect());
            }
            "error" => {
                self.complain(&message, &mut received);
                self.tell(events, &mut received);
            }
            _ => {}
        }
        if self.items.len() > MAX_PENDING {
            received.lost = Some("nothing is completed".into());
        }
        Ok(received)
    }

    /// The key is refused by a close frame, after the upgrade.
    fn refusal(&self, code: u16, reason: &str) -> Option<SttError> {
        let is_about_key = reason.contains("invalid_api_key") || reason.contains("unauthorized");
        (code == 3000 || is_about_key).then_some(SttError::Unauthorized { status: 401 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stt::testing;

    fn codec() -> Codec {
        let options = Options {
            model: "gpt-4o-transcribe".into(),
            language: Some("en-US".into()),
            keyterms: vec!["Ada".into(), "Oslo".into()],
        };
        Codec::new(&Url::parse("https://host/v1").unwrap(), &options)
    }

    fn sound(ms: usize, level: i16) -> Vec<u8> {
        (0..ms * 16)
            .flat_map(|n| (if n % 20 < 10 { level } else { -level }).to_le_bytes())
            .collect()
    }

    /// Kinds of the messages, and the samples in them.
    fn brief(messages: &[String]) -> (Vec<String>, usize) {
        let mut samples = 0;
        let kinds = messages.iter().map(|message| {
            let message: Value = serde_json::from_str(message).unwrap();
            if let Some(audio) = message["audio"].as_str() {
                samples += BASE64_STANDARD.decode(audio).unwrap().len() / 2;
            }
            message["type"].as_str().unwrap().rsplit('.').next().unwrap().to_owned()
        });
        (kinds.collect(), samples)
    }

    fn texts(messages: Vec<Outgoing>) -> Vec<String> {
        let texts = messages.into_iter().map(|message| match message {
            Outgoing::Text(text) => text,
            other => panic!("audio goes as text: {other:?}"),
        });
        texts.collect()
    }

    fn given(codec: &mut Codec, ms: usize, level: i16) -> Vec<String> {
        texts(codec.audio(sound(ms, level)))
    }

    #[test]
    fn what_is_wanted_is_asked_for() {
        let codec = codec();
        assert_eq!(codec.url().as_str(), "wss://host/v1/realtime?intent=transcription");
        let greeting: Value = serde_json::from_str(&codec.greeting().unwrap()).unwrap();
        assert_eq!(greeting["session"]["type"], "transcription");
        let input = &greeting["session"]["audio"]["input"];
        assert_eq!(input["format"], json!({"type": "audio/pcm", "rate": 24_000}));
        let expected =
            json!({"model": "gpt-4o-transcribe", "language": "en", "prompt": "Ada, Oslo"});
        assert_eq!(input["transcription"], expected);
        assert!(input["turn_detection"].is_null() && input.get("turn_detection").is_some());
    }

    #[test]
    fn only_speech_is_sent_and_its_end_is_a_commit() {
        let mut codec = codec();
        codec.connected(5_000);
        assert!(given(&mut codec, 2_000, 0).is_empty());
        let mut messages = given(&mut codec, 500, 3_000);
        messages.extend(texts(codec.finalize()));
        let (kinds, samples) = brief(&messages);
        assert_eq!(kinds, ["append", "append", "commit"]);
        // 500 ms and 300 ms from before, at 24 kHz.
        assert_eq!(samples, 800 * 24);
        assert!(codec.finalize().is_empty());
        let item = &codec.items[0];
        assert_eq!((item.start_ms, item.end_ms), (6_700, 7_500));

        given(&mut codec, 500, 3_000);
        let (kinds, _) = brief(&given(&mut codec, 1_000, 0));
        assert_eq!(kinds, ["append", "append", "commit"], "silence ends it too");
    }

    #[test]
    fn a_short_item_is_filled_up_to_what_is_taken() {
        let mut codec = codec();
        codec.connected(0);
        let mut messages = given(&mut codec, 60, 3_000);
        messages.extend(texts(codec.finalize()));
        assert_eq!(brief(&messages).1, SHORTEST);
    }

    const RECORDED: &str = include_str!("../../../../fixtures/providers/openai-realtime.jsonl");

    #[test]
    fn items_are_told_in_the_order_of_the_speech() {
        let mut codec = codec();
        codec.connected(5_000);
        for _ in 0..2 {
            given(&mut codec, 700, 3_000);
            codec.finalize();
        }
        let (told, settled) = testing::play(&mut codec, RECORDED);
        assert_eq!(
            told,
            [
                "SpeechStarted",
                "~I'd like",
                "~I'd like a table",
                "I'd like a table.",
                "EndOfTurn",
                "SpeechStarted",
                "At eight.",
                "EndOfTurn",
            ]
        );
        assert_eq!(settled, [6_400]);
        assert!(codec.is_settled());
    }

    #[test]
    fn failures_are_told_by_whether_trying_again_may_help() {
        let received = |codec: &mut Codec, kind: &str, code: &str| {
            let error = json!({"type": "error", "error": {
                "type": kind, "code": code, "message": "no",
            }});
            codec.receive(&error.to_string(), &mut Vec::new()).unwrap()
        };
        let mut codec = codec();
        codec.connected(0);
        let refused = received(&mut codec, "invalid_request_error", "invalid_value").refused;
        assert!(refused.is_some_and(|error| !error.is_retryable()));
        codec.receive(r#"{"type":"session.updated"}"#, &mut Vec::new()).unwrap();
        let told = received(&mut codec, "invalid_request_error", "invalid_value");
        assert!(told.refused.is_none() && told.lost.is_none() && told.error.is_some());
        assert!(received(&mut codec, "server_error", "").lost.is_some());
        assert!(received(&mut codec, "invalid_request_error", "session_expired").lost.is_some());
        given(&mut codec, 300, 3_000);
        codec.finalize();
        received(&mut codec, "invalid_request_error", "input_audio_buffer_commit_empty");
        assert!(codec.is_settled());
    }

    proptest! {
        #[test]
        fn no_json_can_hurt(value in testing::any_json(), junk in "\\PC{0,60}", speaks: bool) {
            let mut codec = codec();
            if speaks {
                given(&mut codec, 300, 3_000);
            }
            testing::feed(&mut codec, &value, &junk);
        }
    }
}
