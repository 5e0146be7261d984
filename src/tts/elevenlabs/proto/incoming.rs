//! What the server says. Servers differ in the case of their keys, so every spelling seen is read.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

/// Longest frame that is taken from the server: 4 MiB of JSON hold about a minute of audio.
pub const MAX_FRAME_BYTES: usize = 4 << 20;
/// Longest alignment that is taken from one frame, in characters.
const MAX_ALIGNED_CHARS: usize = 20_000;
/// No character of one frame starts later or lasts longer than this; more is junk.
pub(super) const MAX_ALIGNED_MS: f64 = 600_000.0;
/// How much of a server's message is kept in an error.
const MAX_MESSAGE_CHARS: usize = 200;

/// When one character is spoken, in ms since the first sample of its frame's audio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlignedChar {
    /// Usually one character.
    pub text: String,
    pub start_ms: u64,
    pub duration_ms: u64,
}

/// What the server says.
#[derive(Clone, PartialEq)]
pub enum Frame {
    Speech {
        context: Option<String>,
        /// s16 little-endian; may end in half a sample, whose other half begins the next frame.
        pcm: Vec<u8>,
        alignment: Vec<AlignedChar>,
        /// Nothing follows in this context.
        is_final: bool,
    },
    Error(ServerError),
    /// Nothing that concerns us.
    Ignored,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Speech { context, pcm, alignment, is_final } => f
                .debug_struct("Speech")
                .field("context", context)
                .field("pcm_bytes", &pcm.len())
                .field("alignment_chars", &alignment.len())
                .field("is_final", is_final)
                .finish(),
            Self::Error(error) => f.debug_tuple("Error").field(error).finish(),
            Self::Ignored => f.write_str("Ignored"),
        }
    }
}

/// An error that the server told in a message, before it closes the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    pub context: Option<String>,
    /// `invalid_api_key`, `quota_exceeded`, …; empty when the server named none.
    pub code: String,
    pub message: String,
}

impl ServerError {
    /// The key is wrong or may not do this.
    pub fn is_unauthorized(&self) -> bool {
        const CODES: [&str; 6] = [
            "invalid_api_key",
            "invalid_authorization_header",
            "missing_permissions",
            "needs_authorization",
            "authentication_error",
            "unauthorized",
        ];
        CODES.contains(&self.code.as_str())
    }

    /// Whether the same request may do better on a new socket.
    pub fn is_retryable(&self) -> bool {
        const CODES: [&str; 7] = [
            "input_timeout_exceeded",
            "inactivity_timeout",
            "max_active_contexts",
            "too_many_concurrent_requests",
            "rate_limit_exceeded",
            "system_busy",
            "internal_error",
        ];
        self.code.is_empty() || CODES.contains(&self.code.as_str())
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.as_str(), self.message.as_str()) {
            ("", message) => f.write_str(message),
            (code, "") => f.write_str(code),
            (code, message) => write!(f, "{code}: {message}"),
        }
    }
}

/// A frame that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    #[error("not JSON of the expected shape: {0}")]
    Json(String),
    #[error("audio that is not base64")]
    Base64,
    #[error("a frame of {0} bytes")]
    TooLong(usize),
}

#[derive(Deserialize)]
struct WireFrame {
    audio: Option<String>,
    alignment: Option<WireAlignment>,
    #[serde(alias = "normalized_alignment", rename = "normalizedAlignment")]
    normalized: Option<WireAlignment>,
    #[serde(alias = "is_final", rename = "isFinal")]
    is_final: Option<bool>,
    #[serde(alias = "context_id", rename = "contextId")]
    context: Option<String>,
    error: Option<Text>,
    message: Option<Text>,
    detail: Option<Text>,
}

#[derive(Deserialize)]
struct WireAlignment {
    #[serde(alias = "characters", default)]
    chars: Option<Vec<String>>,
    #[serde(
        rename = "charStartTimesMs",
        alias = "charsStartTimesMs",
        alias = "char_start_times_ms",
        alias = "chars_start_times_ms",
        default
    )]
    starts: Option<Vec<Option<f64>>>,
    #[serde(
        rename = "charDurationsMs",
        alias = "charsDurationsMs",
        alias = "char_durations_ms",
        alias = "chars_durations_ms",
        default
    )]
    durations: Option<Vec<Option<f64>>>,
}

/// An error's text, given plainly or as `{status|code, message}`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Object {
        #[serde(alias = "code", alias = "type")]
        status: Option<String>,
        message: Option<String>,
    },
    Other(serde::de::IgnoredAny),
}

impl Text {
    fn into_parts(self) -> (Option<String>, Option<String>) {
        match self {
            Self::Plain(text) => (None, Some(text)),
            Self::Object { status, message } => (status, message),
            Self::Other(_) => (None, None),
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect()
}

/// Reads one text message of the server.
pub fn parse(message: &str) -> Result<Frame, ProtoError> {
    if message.len() > MAX_FRAME_BYTES {
        return Err(ProtoError::TooLong(message.len()));
    }
    let wire: WireFrame = serde_json::from_str(message)
        .map_err(|error| ProtoError::Json(shorten(&error.to_string())))?;
    if wire.error.is_some() || wire.detail.is_some() {
        let (error_code, error_text) = wire.error.map_or((None, None), Text::into_parts);
        let (detail_code, detail_text) = wire.detail.map_or((None, None), Text::into_parts);
        let message_text = wire.message.and_then(|text| text.into_parts().1);
        // `{"error": CODE, "message": TEXT}` is the socket's shape; elsewhere the code lies deeper.
        let code = error_code.or(detail_code).or_else(|| error_text.clone()).unwrap_or_default();
        let text = message_text.or(detail_text).or(error_text).unwrap_or_default();
        return Ok(Frame::Error(ServerError {
            context: wire.context,
            code: shorten(&code),
            message: shorten(&text),
        }));
    }
    let is_final = wire.is_final == Some(true);
    let pcm = match wire.audio.as_deref() {
        None | Some("") => Vec::new(),
        Some(audio) => STANDARD.decode(audio).map_err(|_| ProtoError::Base64)?,
    };
    let alignment = wire
        .alignment
        .map(aligned_chars)
        .filter(|chars| !chars.is_empty())
        .or_else(|| wire.normalized.map(aligned_chars))
        .unwrap_or_default();
    if pcm.is_empty() && alignment.is_empty() && !is_final {
        return Ok(Frame::Ignored);
    }
    Ok(Frame::Speech { context: wire.context, pcm, alignment, is_final })
}

fn aligned_chars(wire: WireAlignment) -> Vec<AlignedChar> {
    let starts = wire.starts.unwrap_or_default();
    let durations = wire.durations.unwrap_or_default();
    let ms = |value: Option<&Option<f64>>| match value {
        Some(Some(ms)) if ms.is_finite() => ms.clamp(0.0, MAX_ALIGNED_MS) as u64,
        _ => 0,
    };
    wire.chars
        .unwrap_or_default()
        .into_iter()
        .take(MAX_ALIGNED_CHARS.min(starts.len()))
        .enumerate()
        .map(|(at, text)| AlignedChar {
            text,
            start_ms: ms(starts.get(at)),
            duration_ms: ms(durations.get(at)),
        })
        .collect()
}
