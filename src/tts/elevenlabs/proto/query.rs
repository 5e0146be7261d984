//! The address of a socket.

use url::Url;

use crate::net;

/// `output_format` of raw PCM, mono s16 little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    Pcm8000,
    Pcm16000,
    Pcm22050,
    Pcm24000,
    Pcm44100,
    Pcm48000,
}

impl OutputFormat {
    pub const ALL: [Self; 6] = [
        Self::Pcm8000,
        Self::Pcm16000,
        Self::Pcm22050,
        Self::Pcm24000,
        Self::Pcm44100,
        Self::Pcm48000,
    ];

    /// As written in the query.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pcm8000 => "pcm_8000",
            Self::Pcm16000 => "pcm_16000",
            Self::Pcm22050 => "pcm_22050",
            Self::Pcm24000 => "pcm_24000",
            Self::Pcm44100 => "pcm_44100",
            Self::Pcm48000 => "pcm_48000",
        }
    }

    /// In Hz.
    pub const fn sample_rate(self) -> u32 {
        match self {
            Self::Pcm8000 => 8_000,
            Self::Pcm16000 => 16_000,
            Self::Pcm22050 => 22_050,
            Self::Pcm24000 => 24_000,
            Self::Pcm44100 => 44_100,
            Self::Pcm48000 => 48_000,
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == name)
    }

    pub fn from_rate(rate: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.sample_rate() == rate)
    }
}

/// What the address of a socket says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query<'a> {
    pub model_id: &'a str,
    pub output_format: OutputFormat,
    /// In s; the server takes at most 180.
    pub inactivity_timeout: u32,
    /// The server starts on every piece at once instead of collecting by `chunk_length_schedule`.
    pub auto_mode: bool,
    pub language_code: Option<&'a str>,
}

/// The socket's address. `base` carries the version (`https://api.elevenlabs.io/v1`); http becomes
/// ws.
pub fn socket_url(base: &Url, voice_id: &str, multi: bool, query: &Query<'_>) -> Url {
    let endpoint = if multi { "multi-stream-input" } else { "stream-input" };
    let mut url = net::url::socket(base, &["text-to-speech", voice_id, endpoint]);
    let mut pairs = url.query_pairs_mut();
    pairs
        .append_pair("model_id", query.model_id)
        .append_pair("output_format", query.output_format.as_str())
        .append_pair("inactivity_timeout", &query.inactivity_timeout.to_string())
        .append_pair("sync_alignment", "true");
    if query.auto_mode {
        pairs.append_pair("auto_mode", "true");
    }
    if let Some(language) = query.language_code {
        pairs.append_pair("language_code", language);
    }
    drop(pairs);
    url
}
