//! The public surface of LiveKit's `libwebrtc` crate over a pure-Rust engine.
//!
//! Names and signatures are those that `livekit` 0.10 compiles against; the engine underneath is
//! [`rtc_audio`] over str0m, driven by a few threads of its own. Audio, data channels and
//! negotiation are real. What is not there gives an error that says so: publishing video, audio
//! devices and packet trailers. [End-to-end encryption](native::frame_cryptor) is that of the other
//! SDKs.

#![allow(clippy::needless_pass_by_value, reason = "the signatures are those that livekit calls")]

use thiserror::Error;

mod engine;
mod enum_dispatch;

pub mod audio_frame;
pub mod audio_source;
pub mod audio_stream;
pub mod audio_track;
pub mod data_channel;
pub mod ice_candidate;
pub mod media_stream;
pub mod media_stream_track;
pub mod native;
pub mod peer_connection;
pub mod peer_connection_factory;
pub mod prelude;
pub mod rtp_parameters;
pub mod rtp_receiver;
pub mod rtp_sender;
pub mod rtp_transceiver;
pub mod session_description;
pub mod stats;
#[doc(hidden)]
pub mod testing;
pub mod video_frame;
pub mod video_source;
pub mod video_stream;
pub mod video_track;

/// Kind of a media section.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum MediaType {
    /// Opus.
    Audio,
    /// Received sections only.
    Video,
    /// Data channels.
    Data,
    /// None of these.
    Unsupported,
}

/// What kind of fault an [`RtcError`] is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum RtcErrorType {
    /// The engine, or something it lacks.
    Internal,
    /// A description or candidate is not acceptable.
    InvalidSdp,
    /// The call does not fit the state.
    InvalidState,
}

/// Why a call failed.
#[derive(Error, Debug)]
#[error("an RtcError occurred: {error_type:?} - {message}")]
pub struct RtcError {
    /// The kind of fault.
    pub error_type: RtcErrorType,
    /// What a reader may do about it.
    pub message: String,
}

impl RtcError {
    pub(crate) fn state(message: impl Into<String>) -> Self {
        Self { error_type: RtcErrorType::InvalidState, message: message.into() }
    }

    pub(crate) fn unsupported(what: &str) -> Self {
        Self {
            error_type: RtcErrorType::Internal,
            message: format!("{what} is not part of this audio engine"),
        }
    }
}

impl From<rtc_audio::peer::PeerError> for RtcError {
    fn from(error: rtc_audio::peer::PeerError) -> Self {
        use rtc_audio::peer::PeerError;
        let error_type = match &error {
            PeerError::Sdp(_) => RtcErrorType::InvalidSdp,
            PeerError::State(_) => RtcErrorType::InvalidState,
            PeerError::Engine(_) => RtcErrorType::Internal,
        };
        Self { error_type, message: error.to_string() }
    }
}
