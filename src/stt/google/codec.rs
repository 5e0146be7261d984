//! What Google is asked and what it answers, over streams that follow one another.
//!
//! A stream lives for five minutes at the most, and must not be without audio: it is ended while
//! nobody speaks, after four minutes or when no audio comes, and the next begins with the next audio.
//! A stream that is ended tells the rest of what was said at once, which is also how a final is asked
//! for. Each sample goes to one stream alone, so nothing is lost and nothing heard twice.

use std::{collections::VecDeque, sync::Arc};

use prost::Message;
use url::Url;

use super::{
    credentials::Credentials,
    proto::{
        AdaptationPhraseSet, Duration, ExplicitDecodingConfig, LINEAR16, PATH, Phrase, PhraseSet,
        RecognitionConfig, RecognitionFeatures, SPEECH_ACTIVITY_BEGIN, SpeechAdaptation,
        SpeechRecognitionAlternative, StreamingRecognitionConfig, StreamingRecognitionFeatures,
        StreamingRecognizeRequest, StreamingRecognizeResponse,
    },
};
use crate::{
    clock,
    net::grpc::{self, Status, Target},
    stt::{
        SttError, SttEvent, Transcript, Word,
        dialect::{Dialect, Junk, Outgoing, Received},
        driver::SAMPLE_RATE,
        telling::Telling,
    },
};

/// A stream is ended after so much audio, as soon as nobody speaks.
const LONG_MS: u64 = 240_000;
/// And after so much whoever speaks.
const LONGEST_MS: u64 = 285_000;
/// Nobody speaks: it has been quiet for so long.
const PAUSE_MS: u64 = 300;
/// Mean level from which audio may be speech: about -46 dBFS.
const LOUD: i64 = 160;
/// How much more likely the words are that may be expected; at most 20.
const BOOST: f32 = 10.0;
const PER_MS: u64 = SAMPLE_RATE as u64 / 1_000;
/// More words than this in one result are not kept.
const MAX_WORDS: usize = 4_096;
/// Longest text of one result, in bytes.
const MAX_TEXT: usize = 16 << 10;

/// What recognition is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `long`, `chirp_2`, `telephony` …
    pub model: String,
    /// BCP 47; without one it is `en-US`.
    pub language: Option<String>,
    pub punctuate: bool,
    /// Words that are likely to be said (names, products).
    pub keyterms: Vec<String>,
}

/// One stream, until all of it has come.
#[derive(Debug)]
struct Stream {
    number: u64,
    /// Where its time 0 is, in ms since the speaker's stream began.
    start_ms: u64,
    /// Audio that it was given, in samples.
    given: u64,
    /// Something loud came after its last final.
    has_speech: bool,
    is_open: bool,
}

/// Makes requests of audio, and events of responses.
#[derive(Debug)]
pub struct Codec {
    base: Url,
    credentials: Arc<Credentials>,
    /// The first request of a stream.
    opening: Vec<u8>,
    offset_ms: u64,
    /// Samples that this connection was given.
    given: u64,
    quiet_ms: u64,
    /// Streams that were begun on this connection.
    begun: u64,
    streams: VecDeque<Stream>,
    telling: Telling,
}

impl Codec {
    /// `recognizer`: `projects/P/locations/L/recognizers/_`.
    pub fn new(
        base: Url,
        recognizer: String,
        credentials: Arc<Credentials>,
        options: &Options,
    ) -> Self {
        let phrases = options.keyterms.iter();
        let phrases: Vec<Phrase> =
            phrases.map(|term| Phrase { value: term.clone(), boost: BOOST }).collect();
        let set = AdaptationPhraseSet { inline_phrase_set: Some(PhraseSet { phrases }) };
        let language = options.language.clone().unwrap_or_else(|| "en-US".into());
        let config = RecognitionConfig {
            explicit_decoding_config: Some(ExplicitDecodingConfig {
                encoding: LINEAR16,
                sample_rate_hertz: SAMPLE_RATE as i32,
                audio_channel_count: 1,
            }),
            model: options.model.clone(),
            language_codes: vec![if language == "multi" { "auto".into() } else { language }],
            features: Some(RecognitionFeatures {
                enable_word_time_offsets: true,
                enable_word_confidence: true,
                enable_automatic_punctuation: options.punctuate,
            }),
            adaptation: (!options.keyterms.is_empty())
                .then(|| SpeechAdaptation { phrase_sets: vec![set] }),
        };
        let streaming_features = StreamingRecognitionFeatures {
            enable_voice_activity_events: true,
            interim_results: true,
        };
        let opening = StreamingRecognizeRequest {
            recognizer,
            streaming_config: Some(StreamingRecognitionConfig {
                config: Some(config),
                streaming_features: Some(streaming_features),
            }),
            audio: Vec::new(),
        };
        Self {
            base,
            credentials,
            opening: opening.encode_to_vec(),
            offset_ms: 0,
            given: 0,
            quiet_ms: 0,
            begun: 0,
            streams: VecDeque::new(),
            telling: Telling::default(),
        }
    }

    fn open(&mut self) -> Option<&mut Stream> {
        self.streams.back_mut().filter(|stream| stream.is_open)
    }

    fn end(&mut self) -> Vec<Outgoing> {
        let Some(stream) = self.open() else { return Vec::new() };
        stream.is_open = false;
        vec![Outgoing::End]
    }

    fn response(
        &mut self,
        stream: u64,
        response: StreamingRecognizeResponse,
        events: &mut Vec<SttEvent>,
    ) -> Received {
        let mut received = Received::default();
        let Some(at) = self.streams.iter_mut().find(|it| it.number == stream) else {
            return received;
        };
        let start_ms = at.start_ms;
        if response.speech_event_type == SPEECH_ACTIVITY_BEGIN {
            self.telling.starts(events);
        }
        let mut interim = Transcript { start_ms, ..Transcript::default() };
        for result in response.results {
            let end_ms = result.result_end_offset.map_or(0, |offset| offset.ms());
            let Some(best) = result.alternatives.into_iter().next() else { continue };
            let mut told = transcript(best, start_ms, end_ms);
            told.language = Some(result.language_code).filter(|code| !code.is_empty());
            if result.is_final {
                at.has_speech = false;
                received.finalized = true;
                received.settled_ms = Some(start_ms + end_ms);
                self.telling.ends(told, events);
            } else {
                // The likely words, then the unlikely ones.
                let text = [interim.text.as_str(), told.text.as_str()].join(" ");
                interim = Transcript { text: text.trim().to_owned(), ..told };
            }
        }
        if !interim.text.is_empty() {
            self.telling.interim(interim, events);
        }
        received
    }
}

fn transcript(best: SpeechRecognitionAlternative, start_ms: u64, end_ms: u64) -> Transcript {
    let at = |offset: Option<Duration>| offset.map(|offset| start_ms + offset.ms());
    let words = best.words.into_iter().take(MAX_WORDS).filter_map(|word| {
        let from = at(word.start_offset).unwrap_or(start_ms);
        Some(Word {
            text: word.word,
            start_ms: from,
            end_ms: at(word.end_offset)?.max(from),
            confidence: sane(word.confidence),
        })
    });
    let words: Vec<Word> = words.collect();
    let end_ms = start_ms + end_ms;
    let begin_ms = words.first().map_or(start_ms, |word| word.start_ms).min(end_ms);
    let text = best.transcript.trim();
    Transcript {
        text: text[..text.floor_char_boundary(MAX_TEXT)].to_owned(),
        start_ms: begin_ms,
        duration_ms: end_ms - begin_ms,
        // 0 says that it is not told.
        confidence: if best.confidence > 0.0 { sane(best.confidence) } else { 1.0 },
        words,
        language: None,
    }
}

fn sane(confidence: f32) -> f32 {
    if confidence.is_finite() { confidence.clamp(0.0, 1.0) } else { 0.0 }
}

impl Dialect for Codec {
    fn provider(&self) -> &'static str {
        "google"
    }

    fn url(&self) -> Url {
        self.base.clone()
    }

    fn key_header(&self) -> (&'static str, &'static str) {
        ("", "")
    }

    fn streams(&self) -> Option<Target> {
        let credentials = self.credentials.clone();
        let authorize = move || {
            let header = credentials.header(clock::unix_ms() / 1_000);
            header.map(|header| vec![header]).map_err(|error| error.to_string())
        };
        Some(Target { base: self.base.clone(), path: PATH, authorize: Arc::new(authorize) })
    }

    fn audio(&mut self, pcm: Vec<u8>) -> Vec<Outgoing> {
        let pairs = pcm.as_chunks::<2>().0;
        let samples = pairs.len() as u64;
        let level: i64 =
            pairs.iter().map(|pair| i64::from(i16::from_le_bytes(*pair).unsigned_abs())).sum();
        let is_loud = level >= LOUD * samples as i64 && level > 0;
        self.quiet_ms = if is_loud { 0 } else { self.quiet_ms + samples / PER_MS };
        let mut messages = Vec::with_capacity(2);
        if self.open().is_none() {
            self.streams.push_back(Stream {
                number: self.begun,
                start_ms: self.offset_ms + self.given / PER_MS,
                given: 0,
                has_speech: false,
                is_open: true,
            });
            self.begun += 1;
            messages.push(Outgoing::Binary(self.opening.clone()));
        }
        self.given += samples;
        let request = StreamingRecognizeRequest { audio: pcm, ..Default::default() };
        messages.push(Outgoing::Binary(request.encode_to_vec()));
        let is_pause = self.quiet_ms >= PAUSE_MS;
        let Some(stream) = self.open() else { return messages };
        stream.given += samples;
        stream.has_speech |= is_loud;
        let length_ms = stream.given / PER_MS;
        if length_ms >= LONGEST_MS || (length_ms >= LONG_MS && is_pause) {
            messages.extend(self.end());
        }
        messages
    }

    /// A stream without audio is ended by the server: better by us.
    fn keep_alive(&mut self) -> Option<Outgoing> {
        self.end().pop()
    }

    fn finalize(&mut self) -> Vec<Outgoing> {
        if self.open().is_some_and(|stream| stream.has_speech) { self.end() } else { Vec::new() }
    }

    fn close(&mut self) -> Vec<Outgoing> {
        self.end()
    }

    fn is_settled(&self) -> bool {
        self.streams.is_empty()
    }

    fn connected(&mut self, offset_ms: u64) {
        self.offset_ms = offset_ms;
        self.telling.connected();
        self.given = 0;
        self.begun = 0;
        self.streams.clear();
    }

    fn skipped(&mut self, ms: u64) {
        // What follows is another stream's: this one's time goes on without a gap.
        self.offset_ms += ms;
        if let Some(stream) = self.open() {
            stream.start_ms += ms;
        }
    }

    fn receive(&mut self, _text: &str, _events: &mut Vec<SttEvent>) -> Result<Received, Junk> {
        Err(Junk)
    }

    fn receive_message(
        &mut self,
        stream: u64,
        bytes: &[u8],
        events: &mut Vec<SttEvent>,
    ) -> Result<Received, Junk> {
        let response = StreamingRecognizeResponse::decode(bytes).map_err(|_| Junk)?;
        Ok(self.response(stream, response, events))
    }

    fn ended(
        &mut self,
        stream: u64,
        status: &Status,
        was_asked: bool,
        events: &mut Vec<SttEvent>,
    ) -> Received {
        let mut received = Received::default();
        let Status { code, message } = status;
        match *code {
            grpc::OK if was_asked => {
                let Some(done) = self.streams.pop_front_if(|it| it.number == stream) else {
                    return received;
                };
                received.finalized = true;
                received.settled_ms = Some(done.start_ms + done.given / PER_MS);
                // What was shown of it and never became final was nothing.
                self.telling.interim(Transcript::default(), events);
            }
            grpc::UNAUTHENTICATED => {
                received.refused = Some(SttError::Unauthorized { status: 401 });
            }
            grpc::PERMISSION_DENIED => {
                received.refused = Some(SttError::Unauthorized { status: 403 });
            }
            grpc::INVALID_ARGUMENT | grpc::NOT_FOUND | grpc::UNIMPLEMENTED => {
                let message = message.clone();
                received.refused = Some(SttError::Rejected { status: 400, message });
            }
            _ => received.lost = Some(format!("gRPC status {code}: {message}")),
        }
        received
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stt::{google::proto::StreamingRecognitionResult, testing::short};

    fn codec() -> Codec {
        let options = Options {
            model: "long".into(),
            language: None,
            punctuate: true,
            keyterms: vec!["Ada".into()],
        };
        let credentials = Arc::new(Credentials::new(&"key".into()).unwrap());
        let recognizer = "projects/p/locations/global/recognizers/_".into();
        let mut codec =
            Codec::new(Url::parse("https://host").unwrap(), recognizer, credentials, &options);
        codec.connected(5_000);
        codec
    }

    fn sound(ms: usize, level: i16) -> Vec<u8> {
        level.to_le_bytes().repeat(ms * 16)
    }

    /// `o`pening, `a`udio, `e`nd.
    fn given(codec: &mut Codec, seconds: usize, level: i16) -> String {
        let mut told = String::new();
        for _ in 0..seconds * 10 {
            for message in codec.audio(sound(100, level)) {
                told.push(match message {
                    Outgoing::End => 'e',
                    Outgoing::Binary(bytes) => {
                        let request = StreamingRecognizeRequest::decode(&bytes[..]).unwrap();
                        if request.audio.is_empty() { 'o' } else { 'a' }
                    }
                    Outgoing::Text(_) => panic!("there are no texts"),
                });
            }
        }
        told
    }

    fn heard(
        codec: &mut Codec,
        stream: u64,
        text: &str,
        end_ms: u64,
        is_final: bool,
    ) -> Vec<String> {
        let words = vec![super::super::proto::WordInfo {
            start_offset: Some(Duration::from_ms(200)),
            end_offset: Some(Duration::from_ms(end_ms)),
            word: text.into(),
            confidence: 0.5,
        }];
        let response = StreamingRecognizeResponse {
            results: vec![StreamingRecognitionResult {
                alternatives: vec![SpeechRecognitionAlternative {
                    transcript: format!(" {text}"),
                    confidence: 0.9,
                    words,
                }],
                is_final,
                result_end_offset: Some(Duration::from_ms(end_ms)),
                language_code: "en-us".into(),
            }],
            ..Default::default()
        };
        let mut events = Vec::new();
        codec.receive_message(stream, &response.encode_to_vec(), &mut events).unwrap();
        if let Some(SttEvent::Final(told)) =
            events.iter().find(|it| matches!(it, SttEvent::Final(_)))
        {
            let start = codec.streams[0].start_ms;
            assert_eq!((told.start_ms, told.words[0].end_ms), (start + 200, start + end_ms));
        }
        events.iter().map(short).collect()
    }

    #[test]
    fn the_first_request_says_what_is_wanted() {
        let mut codec = codec();
        let Some(Outgoing::Binary(bytes)) = codec.audio(sound(50, 0)).into_iter().next() else {
            panic!("nothing is asked");
        };
        let request = StreamingRecognizeRequest::decode(&bytes[..]).unwrap();
        assert_eq!(request.recognizer, "projects/p/locations/global/recognizers/_");
        let config = request.streaming_config.unwrap().config.unwrap();
        assert_eq!(
            (config.model.as_str(), &config.language_codes[..]),
            ("long", &["en-US".into()][..])
        );
        assert_eq!(config.explicit_decoding_config.unwrap().sample_rate_hertz, 16_000);
        let set = config.adaptation.unwrap().phrase_sets[0].inline_phrase_set.clone().unwrap();
        assert_eq!(set.phrases[0].value, "Ada");
    }

    #[test]
    fn a_stream_is_replaced_in_a_pause_after_four_minutes() {
        let mut codec = codec();
        assert!(!given(&mut codec, 239, 0).contains('e'));
        assert!(!given(&mut codec, 5, 3_000).contains('e'), "somebody speaks");
        assert_eq!(given(&mut codec, 1, 0), "aaaeoaaaaaaa");
        assert_eq!(codec.streams[1].start_ms, 5_000 + 244_300);
    }

    #[test]
    fn who_speaks_on_and_on_is_cut_before_the_server_does() {
        let mut codec = codec();
        given(&mut codec, 284, 3_000);
        assert_eq!(given(&mut codec, 1, 3_000).matches('e').count(), 1);
    }

    #[test]
    fn a_final_is_asked_for_by_ending_the_stream_if_there_is_one_to_come() {
        let mut codec = codec();
        given(&mut codec, 1, 0);
        assert!(codec.finalize().is_empty());
        given(&mut codec, 1, 3_000);
        assert_eq!(codec.finalize(), [Outgoing::End]);
        assert!(codec.finalize().is_empty());
        given(&mut codec, 1, 0);
        assert_eq!(
            heard(&mut codec, 0, "hello", 1_900, true),
            ["SpeechStarted", "hello", "EndOfTurn"]
        );
        let ok = Status { code: grpc::OK, message: String::new() };
        let received = codec.ended(0, &ok, true, &mut Vec::new());
        assert_eq!(received.settled_ms, Some(7_000));
        // The second's time begins where the first's ended.
        assert_eq!(heard(&mut codec, 1, "you", 700, false), ["SpeechStarted", "~you"]);
        assert_eq!(codec.keep_alive(), Some(Outgoing::End));
        let received = codec.ended(1, &ok, true, &mut Vec::new());
        assert_eq!(received.settled_ms, Some(8_000));
        assert!(codec.is_settled());
    }

    #[test]
    fn a_status_tells_whether_trying_again_may_help() {
        let mut codec = codec();
        let mut ended = |code| {
            let status = Status { code, message: "no".into() };
            codec.ended(0, &status, false, &mut Vec::new())
        };
        assert_eq!(ended(16).refused, Some(SttError::Unauthorized { status: 401 }));
        assert!(matches!(ended(3).refused, Some(SttError::Rejected { .. })));
        assert!(ended(11).lost.is_some() && ended(0).lost.is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_can_hurt(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut codec = codec();
            codec.audio(sound(100, 3_000));
            let _ = codec.receive_message(0, &bytes, &mut Vec::new());
        }
    }
}
