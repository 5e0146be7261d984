//! The messages of `google.cloud.speech.v2.Speech/StreamingRecognize` that are used, by their numbers in
//! googleapis' `google/cloud/speech/v2/cloud_speech.proto`. What is left out is skipped when read.

/// The method.
pub const PATH: &str = "/google.cloud.speech.v2.Speech/StreamingRecognize";
/// The longest audio of one message, in bytes.
pub const MAX_AUDIO: usize = 15 << 10;
/// `ExplicitDecodingConfig.AudioEncoding`
pub const LINEAR16: i32 = 1;
/// `StreamingRecognizeResponse.SpeechEventType`
pub const SPEECH_ACTIVITY_BEGIN: i32 = 2;

/// The first of a stream has a recognizer and a configuration, the others audio.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingRecognizeRequest {
    #[prost(string, tag = "3")]
    pub recognizer: String,
    #[prost(message, optional, tag = "6")]
    pub streaming_config: Option<StreamingRecognitionConfig>,
    #[prost(bytes = "vec", tag = "5")]
    pub audio: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingRecognitionConfig {
    #[prost(message, optional, tag = "1")]
    pub config: Option<RecognitionConfig>,
    #[prost(message, optional, tag = "2")]
    pub streaming_features: Option<StreamingRecognitionFeatures>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingRecognitionFeatures {
    #[prost(bool, tag = "1")]
    pub enable_voice_activity_events: bool,
    #[prost(bool, tag = "2")]
    pub interim_results: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RecognitionConfig {
    #[prost(message, optional, tag = "8")]
    pub explicit_decoding_config: Option<ExplicitDecodingConfig>,
    #[prost(string, tag = "9")]
    pub model: String,
    #[prost(string, repeated, tag = "10")]
    pub language_codes: Vec<String>,
    #[prost(message, optional, tag = "2")]
    pub features: Option<RecognitionFeatures>,
    #[prost(message, optional, tag = "6")]
    pub adaptation: Option<SpeechAdaptation>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ExplicitDecodingConfig {
    #[prost(int32, tag = "1")]
    pub encoding: i32,
    #[prost(int32, tag = "2")]
    pub sample_rate_hertz: i32,
    #[prost(int32, tag = "3")]
    pub audio_channel_count: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RecognitionFeatures {
    #[prost(bool, tag = "2")]
    pub enable_word_time_offsets: bool,
    #[prost(bool, tag = "3")]
    pub enable_word_confidence: bool,
    #[prost(bool, tag = "4")]
    pub enable_automatic_punctuation: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SpeechAdaptation {
    #[prost(message, repeated, tag = "1")]
    pub phrase_sets: Vec<AdaptationPhraseSet>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AdaptationPhraseSet {
    #[prost(message, optional, tag = "2")]
    pub inline_phrase_set: Option<PhraseSet>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PhraseSet {
    #[prost(message, repeated, tag = "3")]
    pub phrases: Vec<Phrase>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Phrase {
    #[prost(string, tag = "1")]
    pub value: String,
    /// 0..20
    #[prost(float, tag = "2")]
    pub boost: f32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingRecognizeResponse {
    /// At most one final, then interims.
    #[prost(message, repeated, tag = "6")]
    pub results: Vec<StreamingRecognitionResult>,
    #[prost(int32, tag = "3")]
    pub speech_event_type: i32,
    #[prost(message, optional, tag = "7")]
    pub speech_event_offset: Option<Duration>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingRecognitionResult {
    /// The best first.
    #[prost(message, repeated, tag = "1")]
    pub alternatives: Vec<SpeechRecognitionAlternative>,
    #[prost(bool, tag = "2")]
    pub is_final: bool,
    /// From the stream's beginning.
    #[prost(message, optional, tag = "4")]
    pub result_end_offset: Option<Duration>,
    #[prost(string, tag = "6")]
    pub language_code: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SpeechRecognitionAlternative {
    #[prost(string, tag = "1")]
    pub transcript: String,
    /// 0: not told.
    #[prost(float, tag = "2")]
    pub confidence: f32,
    #[prost(message, repeated, tag = "3")]
    pub words: Vec<WordInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WordInfo {
    #[prost(message, optional, tag = "1")]
    pub start_offset: Option<Duration>,
    #[prost(message, optional, tag = "2")]
    pub end_offset: Option<Duration>,
    #[prost(string, tag = "3")]
    pub word: String,
    #[prost(float, tag = "4")]
    pub confidence: f32,
}

/// `google.protobuf.Duration`
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Duration {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Duration {
    pub const fn from_ms(ms: u64) -> Self {
        Self { seconds: (ms / 1_000) as i64, nanos: (ms % 1_000) as i32 * 1_000_000 }
    }

    /// In ms; below zero, and beyond a day, is nonsense.
    pub fn ms(&self) -> u64 {
        let seconds = self.seconds.clamp(0, 86_400) as u64;
        seconds * 1_000 + u64::from(self.nanos.clamp(0, 999_999_999) as u32) / 1_000_000
    }
}
