//! Deepgram's live transcription protocol, v1 (<https://developers.deepgram.com/reference/speech-to-text/listen-streaming>):
//! what is asked in the URL, the three text messages we send, and what the server's messages mean.
//!
//! Nothing here does I/O. A message of the server is read leniently: a field that is missing or of
//! another type counts as absent, a message of an unknown type as nothing.

use serde_json::Value;
use url::Url;

use crate::stt::{
    SttEvent, Transcript, Word,
    dialect::{Dialect, Junk, Outgoing, Received},
    driver::SAMPLE_RATE,
};

/// Keeps a connection open on which no audio flows: it is closed after 10 s (NET-0001).
pub const KEEP_ALIVE: &str = r#"{"type":"KeepAlive"}"#;
/// Asks for the finals of all audio sent so far.
pub const FINALIZE: &str = r#"{"type":"Finalize"}"#;
/// Asks for the last finals, then `Metadata` and the end of the connection.
pub const CLOSE_STREAM: &str = r#"{"type":"CloseStream"}"#;

/// Times beyond this (a year, in ms) are nonsense and cut to it.
const MAX_MS: f64 = 365.0 * 24.0 * 3_600_000.0;
/// More words than this in one result are not kept.
const MAX_WORDS: usize = 4_096;

/// What recognition is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub model: String,
    /// BCP 47, or `multi`; Deepgram's own default (English) when missing.
    pub language: Option<String>,
    /// Silence that ends an utterance (`speech_final`), in ms; 0: never.
    pub endpointing_ms: u32,
    /// Gap between words that ends an utterance (`UtteranceEnd`), in ms, at least 1000; 0: never.
    pub utterance_end_ms: u32,
    /// Numbers, dates and the like as one writes them.
    pub smart_format: bool,
    pub punctuate: bool,
    /// Words that are likely to be said (names, products).
    pub keyterms: Vec<String>,
    /// Keep the audio out of the provider's model improvement programme.
    pub opt_out_of_training: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model: "nova-3".into(),
            language: None,
            endpointing_ms: 150,
            utterance_end_ms: 1_000,
            smart_format: false,
            punctuate: true,
            keyterms: Vec::new(),
            opt_out_of_training: true,
        }
    }
}

impl Options {
    /// Sets the query of the `listen` URL.
    pub fn write_query(&self, url: &mut Url) {
        let mut query = url.query_pairs_mut();
        query.clear();
        query.append_pair("model", &self.model);
        query.append_pair("encoding", "linear16");
        query.append_pair("sample_rate", &SAMPLE_RATE.to_string());
        query.append_pair("channels", "1");
        query.append_pair("interim_results", "true");
        query.append_pair("vad_events", "true");
        query.append_pair("smart_format", if self.smart_format { "true" } else { "false" });
        query.append_pair("punctuate", if self.punctuate { "true" } else { "false" });
        match self.endpointing_ms {
            0 => query.append_pair("endpointing", "false"),
            ms => query.append_pair("endpointing", &ms.to_string()),
        };
        if self.utterance_end_ms > 0 {
            // Below one second the server refuses the request.
            let ms = self.utterance_end_ms.max(1_000);
            query.append_pair("utterance_end_ms", &ms.to_string());
        }
        if let Some(language) = &self.language {
            query.append_pair("language", language);
        }
        // Models before nova-3 know `keywords` only.
        let key = if self.model.starts_with("nova-3") { "keyterm" } else { "keywords" };
        for term in &self.keyterms {
            query.append_pair(key, term);
        }
        if self.opt_out_of_training {
            query.append_pair("mip_opt_out", "true");
        }
    }
}

/// Makes events of the server's messages. One lives as long as the stream, across connections.
#[derive(Debug, Clone)]
pub struct Codec {
    url: Url,
    /// Where the current connection's time 0 is, in ms since the stream's first sample.
    offset_ms: u64,
    /// `SpeechStarted` was told and the speech has not ended.
    speaking: bool,
    /// An interim with text is the last thing that was shown.
    interim_shown: bool,
    /// A `Final` was told that no `EndOfTurn` has followed yet.
    turn_open: bool,
}

impl Codec {
    /// `base` carries the version: `https://api.deepgram.com/v1`.
    pub fn new(base: &Url, options: &Options) -> Self {
        let mut url = crate::net::url::socket(base, &["listen"]);
        options.write_query(&mut url);
        Self { url, offset_ms: 0, speaking: false, interim_shown: false, turn_open: false }
    }
}

impl Dialect for Codec {
    fn provider(&self) -> &'static str {
        "deepgram"
    }

    /// Deepgram takes 20 to 250 ms. At the end of speech, on which an answer waits, each message more
    /// brings its final sooner; in the middle of speech and in long silences they are longer.
    fn chunk_ms(&self) -> u64 {
        20
    }

    fn url(&self) -> Url {
        self.url.clone()
    }

    fn key_header(&self) -> (&'static str, &'static str) {
        ("authorization", "Token ")
    }

    fn keep_alive(&mut self) -> Option<Outgoing> {
        Some(Outgoing::Text(KEEP_ALIVE.into()))
    }

    fn finalize(&mut self) -> Vec<Outgoing> {
        vec![Outgoing::Text(FINALIZE.into())]
    }

    fn close(&mut self) -> Vec<Outgoing> {
        vec![Outgoing::Text(CLOSE_STREAM.into())]
    }

    fn connected(&mut self, offset_ms: u64) {
        self.offset_ms = offset_ms;
        // What was shown is told again; that its beginning is silent takes nothing of it back.
        self.interim_shown = false;
    }

    fn skipped(&mut self, ms: u64) {
        self.offset_ms += ms;
    }

    fn receive(&mut self, text: &str, events: &mut Vec<SttEvent>) -> Result<Received, Junk> {
        let message: Value = serde_json::from_str(text).map_err(|_| Junk)?;
        let mut received = Received::default();
        match message.get("type").and_then(Value::as_str).ok_or(Junk)? {
            "Results" => self.results(&message, events, &mut received),
            "SpeechStarted" => self.speech_started(events),
            "UtteranceEnd" => self.end_turn(events),
            "Metadata" => received.is_last = true,
            "Error" => {
                let text = ["description", "message", "variant"]
                    .into_iter()
                    .find_map(|key| message.get(key)?.as_str())
                    .unwrap_or("no description");
                received.error = Some(text.chars().take(300).collect());
            }
            // Types that a later version of the service adds.
            _ => {}
        }
        Ok(received)
    }
}

impl Codec {
    fn results(&mut self, message: &Value, events: &mut Vec<SttEvent>, received: &mut Received) {
        let flag = |key: &str| message.get(key).and_then(Value::as_bool).unwrap_or(false);
        let transcript = self.transcript(message);
        let says_something = !transcript.text.is_empty();
        if flag("is_final") {
            received.finalized = flag("from_finalize");
            received.settled_ms = Some(transcript.start_ms + transcript.duration_ms);
            if says_something {
                self.speech_started(events);
                events.push(SttEvent::Final(transcript));
                self.turn_open = true;
            } else {
                self.clear_interim(events);
                self.speaking = self.turn_open;
            }
            self.interim_shown = false;
            // What was finalized on request is a turn's end: the request says so.
            if flag("speech_final") || received.finalized {
                self.end_turn(events);
            }
        } else if says_something {
            self.speech_started(events);
            self.interim_shown = true;
            events.push(SttEvent::Interim(transcript));
        } else {
            self.clear_interim(events);
        }
    }

    /// `SpeechStarted` may repeat or be missing on the wire: words are as good.
    fn speech_started(&mut self, events: &mut Vec<SttEvent>) {
        if !std::mem::replace(&mut self.speaking, true) {
            events.push(SttEvent::SpeechStarted);
        }
    }

    fn clear_interim(&mut self, events: &mut Vec<SttEvent>) {
        if std::mem::take(&mut self.interim_shown) {
            events.push(SttEvent::Interim(Transcript::default()));
        }
    }

    /// `speech_final` and `UtteranceEnd` may both tell of one end.
    fn end_turn(&mut self, events: &mut Vec<SttEvent>) {
        if std::mem::take(&mut self.turn_open) {
            self.speaking = self.interim_shown;
            events.push(SttEvent::EndOfTurn);
        }
    }

    fn transcript(&self, message: &Value) -> Transcript {
        let best = message.pointer("/channel/alternatives/0").unwrap_or(&Value::Null);
        let words: Vec<Word> = best
            .get("words")
            .and_then(Value::as_array)
            .map(|words| words.iter().take(MAX_WORDS).filter_map(|word| self.word(word)).collect())
            .unwrap_or_default();
        let start_ms = milliseconds(message.get("start"))
            .map(|ms| self.offset_ms + ms)
            .or_else(|| words.first().map(|word| word.start_ms))
            .unwrap_or(self.offset_ms);
        let duration_ms = milliseconds(message.get("duration"))
            .or_else(|| words.last().map(|word| word.end_ms.saturating_sub(start_ms)))
            .unwrap_or(0);
        Transcript {
            text: string(best, "transcript").unwrap_or_default(),
            start_ms,
            duration_ms,
            confidence: confidence(best),
            words,
            language: best
                .pointer("/languages/0")
                .or_else(|| message.pointer("/channel/detected_language"))
                .and_then(Value::as_str)
                .map(str::to_owned),
        }
    }

    fn word(&self, word: &Value) -> Option<Word> {
        let start_ms = self.offset_ms + milliseconds(word.get("start"))?;
        let end_ms = milliseconds(word.get("end")).map_or(start_ms, |ms| self.offset_ms + ms);
        Some(Word {
            text: string(word, "punctuated_word").or_else(|| string(word, "word"))?,
            start_ms,
            end_ms: end_ms.max(start_ms),
            confidence: confidence(word),
        })
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
    use serde_json::json;

    use super::*;

    fn codec() -> Codec {
        Codec::new(&Url::parse("https://host/v1").unwrap(), &Options::default())
    }

    fn play(lines: &str) -> Vec<SttEvent> {
        let (mut codec, mut events) = (codec(), Vec::new());
        for line in lines.lines().filter(|line| !line.is_empty()) {
            // What is junk must change nothing; what is not must not fail.
            let _ = codec.receive(line, &mut events);
        }
        events
    }

    fn told(events: &[SttEvent]) -> Vec<String> {
        events
            .iter()
            .map(|event| match event {
                SttEvent::Interim(transcript) => format!("~{}", transcript.text),
                SttEvent::Final(transcript) => transcript.text.clone(),
                other => format!("{other:?}"),
            })
            .collect()
    }

    fn results(text: &str, is_final: bool, speech_final: bool) -> String {
        json!({"type": "Results", "start": 0.0, "duration": 1.0, "is_final": is_final,
            "speech_final": speech_final,
            "channel": {"alternatives": [{"transcript": text, "confidence": 0.9}]}})
        .to_string()
    }

    #[test]
    fn a_silent_beginning_of_another_connection_takes_no_words_back() {
        let (mut codec, mut events) = (codec(), Vec::new());
        codec.receive(&results("book a", false, false), &mut events).unwrap();
        codec.connected(0);
        codec.receive(&results("", false, false), &mut events).unwrap();
        codec.receive(&results("book a table", false, false), &mut events).unwrap();
        codec.receive(&results("", false, false), &mut events).unwrap();
        assert_eq!(told(&events), ["SpeechStarted", "~book a", "~book a table", "~"]);
    }

    #[test]
    fn a_recorded_call_becomes_two_turns() {
        let events = play(include_str!("../../../fixtures/providers/deepgram.jsonl"));
        assert_eq!(
            told(&events),
            [
                "SpeechStarted",
                "~I'd like",
                "~I'd like to book a",
                "I'd like to book a table",
                "~for two",
                "for two at eight.",
                "EndOfTurn",
                "SpeechStarted",
                "~Under",
                "Under the name Ada.",
                "EndOfTurn",
            ]
        );
        let SttEvent::Final(first) = &events[3] else { panic!("{:?}", events[3]) };
        assert_eq!((first.start_ms, first.duration_ms), (0, 2_180));
        assert!((first.confidence - 0.997).abs() < 0.001);
        assert_eq!(first.words.len(), 6);
        let table = &first.words[5];
        assert_eq!((table.text.as_str(), table.start_ms, table.end_ms), ("table", 1_680, 2_080));
    }

    #[test]
    fn odd_messages_are_survived_and_their_words_kept() {
        let events = play(include_str!("../../../fixtures/providers/deepgram_odd.jsonl"));
        assert_eq!(told(&events), ["SpeechStarted", "~no times", "bare", "EndOfTurn"]);
    }

    #[test]
    fn an_empty_final_is_not_told_but_takes_the_interim_back() {
        let lines = [results("uh", false, false), results("", true, false)].join("\n");
        assert_eq!(told(&play(&lines)), ["SpeechStarted", "~uh", "~"]);
        assert_eq!(told(&play(&results("", true, true))), Vec::<String>::new());
    }

    #[test]
    fn an_end_is_told_once() {
        let lines = [
            results("yes", true, true).as_str(),
            r#"{"type":"UtteranceEnd","channel":[0,1],"last_word_end":0.8}"#,
            &results("no", true, false),
            r#"{"type":"UtteranceEnd","channel":[0,1],"last_word_end":2.0}"#,
            &results("", true, true),
        ]
        .join("\n");
        assert_eq!(
            told(&play(&lines)),
            ["SpeechStarted", "yes", "EndOfTurn", "SpeechStarted", "no", "EndOfTurn"]
        );
    }

    #[test]
    fn what_was_finalized_on_request_ends_the_turn() {
        let mut codec = codec();
        let mut events = Vec::new();
        let message = json!({"type": "Results", "start": 1.0, "duration": 0.5, "is_final": true,
            "speech_final": false, "from_finalize": true,
            "channel": {"alternatives": [{"transcript": "stop"}]}});
        let received = codec.receive(&message.to_string(), &mut events).unwrap();
        assert!(received.finalized);
        assert_eq!(received.settled_ms, Some(1_500));
        assert_eq!(told(&events), ["SpeechStarted", "stop", "EndOfTurn"]);
    }

    #[test]
    fn times_go_on_across_connections() {
        let mut codec = codec();
        let mut events = Vec::new();
        codec.connected(60_000);
        let message = json!({"type": "Results", "start": 1.5, "duration": 0.5, "is_final": true,
            "channel": {"alternatives": [{"transcript": "a",
                "words": [{"word": "a", "start": 1.6, "end": 1.7}]}]}});
        let received = codec.receive(&message.to_string(), &mut events).unwrap();
        assert_eq!(received.settled_ms, Some(62_000));
        let Some(SttEvent::Final(told)) = events.last() else { panic!("{events:?}") };
        assert_eq!(
            (told.start_ms, told.words[0].start_ms, told.words[0].end_ms),
            (61_500, 61_600, 61_700)
        );
    }

    #[test]
    fn the_query_says_what_is_sent_and_wanted() {
        let mut url = Url::parse("wss://host/v1/listen").unwrap();
        let options = Options {
            language: Some("de".into()),
            utterance_end_ms: 200,
            keyterms: vec!["Ada & Co".into()],
            opt_out_of_training: false,
            ..Options::default()
        };
        options.write_query(&mut url);
        assert_eq!(
            url.query().unwrap(),
            "model=nova-3&encoding=linear16&sample_rate=16000&channels=1&interim_results=true\
             &vad_events=true&smart_format=false&punctuate=true&endpointing=150\
             &utterance_end_ms=1000&language=de&keyterm=Ada+%26+Co"
        );
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        let key = prop::sample::select(vec![
            "type",
            "start",
            "duration",
            "is_final",
            "speech_final",
            "from_finalize",
            "channel",
            "alternatives",
            "transcript",
            "words",
            "word",
            "end",
            "confidence",
            "languages",
        ]);
        leaf.prop_recursive(4, 64, 8, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key.clone().prop_map(str::to_owned), inner), 0..8)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let text = String::from_utf8_lossy(&bytes);
            let _ = codec().receive(&text, &mut Vec::new());
        }

        #[test]
        fn random_results_are_survived_with_sane_numbers(
            mut message in json_value(), kind in "Results|SpeechStarted|UtteranceEnd|Metadata|Error",
        ) {
            let mut codec = codec();
            codec.connected(5_000);
            if let Value::Object(fields) = &mut message {
                fields.insert("type".into(), kind.into());
            }
            let mut events = Vec::new();
            let _ = codec.receive(&message.to_string(), &mut events);
            for event in events {
                if let SttEvent::Interim(told) | SttEvent::Final(told) = event {
                    prop_assert!((0.0..=1.0).contains(&told.confidence));
                    prop_assert!(told.words.iter().all(|word| word.start_ms <= word.end_ms));
                }
            }
        }

        /// Whatever the order of results: an end follows a final, once; interims are cleared or closed.
        #[test]
        fn an_end_always_follows_a_final(
            steps in prop::collection::vec((prop::bool::ANY, prop::bool::ANY, prop::bool::ANY), 0..40),
        ) {
            let lines: Vec<String> = steps
                .into_iter()
                .map(|(text, is_final, ends)| results(if text { "word" } else { "" }, is_final, is_final && ends))
                .collect();
            let mut open = false;
            for event in play(&lines.join("\n")) {
                match event {
                    SttEvent::Final(_) => open = true,
                    SttEvent::EndOfTurn => prop_assert!(std::mem::take(&mut open)),
                    _ => {}
                }
            }
        }
    }
}
