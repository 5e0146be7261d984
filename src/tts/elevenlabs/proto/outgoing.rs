//! What is sent.

use serde::Serialize;

/// How the voice speaks, each 0..1 except `speed` (0.7..1.2).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct VoiceSettings {
    pub stability: f32,
    pub similarity_boost: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_speaker_boost: Option<bool>,
}

impl Default for VoiceSettings {
    fn default() -> Self {
        Self {
            stability: 0.5,
            similarity_boost: 0.75,
            style: None,
            speed: None,
            use_speaker_boost: None,
        }
    }
}

/// A pronunciation dictionary of the account, in one of its versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DictionaryLocator {
    pub pronunciation_dictionary_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
}

#[derive(Serialize)]
struct GenerationConfig<'a> {
    chunk_length_schedule: &'a [u16],
}

#[derive(Serialize, Default)]
struct Outgoing<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    voice_settings: Option<VoiceSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation_config: Option<GenerationConfig<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pronunciation_dictionary_locators: &'a [DictionaryLocator],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    flush: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    close_context: bool,
}

impl Outgoing<'_> {
    fn encode(&self) -> String {
        // Strings, numbers and bools alone: there is nothing that could fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What opens a context, or a single stream (`context` is `None` for `stream-input` throughout).
/// `schedule` is how many characters the server collects before each generation, 50..500 each; empty
/// leaves it to the server. Dictionaries hold for all of the context.
pub fn init(
    context: Option<&str>,
    settings: VoiceSettings,
    schedule: &[u16],
    dictionaries: &[DictionaryLocator],
) -> String {
    Outgoing {
        text: Some(" "),
        context_id: context,
        voice_settings: Some(settings),
        generation_config: (!schedule.is_empty())
            .then_some(GenerationConfig { chunk_length_schedule: schedule }),
        pronunciation_dictionary_locators: dictionaries,
        ..Outgoing::default()
    }
    .encode()
}

/// A piece of text; a space is added where it does not end in one, as the server asks for. `flush`
/// has it spoken now instead of waiting for more.
pub fn text(context: Option<&str>, piece: &str, flush: bool) -> String {
    let spaced;
    let text = if piece.ends_with(' ') {
        piece
    } else {
        spaced = format!("{piece} ");
        &spaced
    };
    Outgoing { text: Some(text), context_id: context, flush, ..Outgoing::default() }.encode()
}

/// Has what was sent so far spoken now.
pub fn flush(context: Option<&str>) -> String {
    Outgoing { text: Some(" "), context_id: context, flush: true, ..Outgoing::default() }.encode()
}

/// Nothing more comes for this context; what was flushed is still spoken.
pub fn close_context(context: &str) -> String {
    Outgoing { context_id: Some(context), close_context: true, ..Outgoing::default() }.encode()
}

/// Ends a single stream; what was sent is still spoken.
pub fn end_of_stream() -> String {
    Outgoing { text: Some(""), ..Outgoing::default() }.encode()
}

/// Resets the inactivity clock of a context that has been opened. On a single stream an empty text
/// would end it, so there a space is sent.
pub fn keep_alive(context: Option<&str>) -> String {
    let text = if context.is_some() { "" } else { " " };
    Outgoing { text: Some(text), context_id: context, ..Outgoing::default() }.encode()
}
