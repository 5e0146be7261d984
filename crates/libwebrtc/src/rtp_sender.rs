//! The sending half of a transceiver.

#![allow(clippy::unused_async, reason = "the signatures are those that livekit awaits")]

use std::fmt::{self, Debug};
use std::sync::Arc;

use rtc_audio::transceiver::MediaType;

use crate::RtcError;
use crate::media_stream_track::MediaStreamTrack;
use crate::rtp_parameters::{
    AUDIO_LEVEL_URI, RtcpParameters, RtpHeaderExtensionParameters, RtpParameters, opus_parameters,
};
use crate::rtp_transceiver::TransceiverHandle;
use crate::stats::{self, RtcStats};

/// What encodes video. Nothing does here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum VideoEncoderBackend {
    /// The usual.
    #[default]
    Auto,
    /// The CPU.
    Software,
    /// Any hardware.
    Hardware,
    /// NVIDIA.
    Nvenc,
    /// VA-API.
    Vaapi,
    /// Apple.
    VideoToolbox,
    /// The application.
    PreEncoded,
}

impl VideoEncoderBackend {
    /// None is available.
    pub fn list_available() -> impl IntoIterator<Item = Self> {
        std::iter::empty()
    }
}

/// A handle to a sender.
#[derive(Clone)]
pub struct RtpSender {
    pub(crate) handle: Arc<TransceiverHandle>,
}

impl RtpSender {
    /// The track it sends.
    pub fn track(&self) -> Option<MediaStreamTrack> {
        self.handle.sending.lock().clone()
    }

    /// Figures of what it sends.
    pub async fn get_stats(&self) -> Result<Vec<RtcStats>, RtcError> {
        let Some(connection) = self.handle.connection.upgrade() else { return Ok(Vec::new()) };
        Ok(connection.read(|state| stats::of_sender(state, &self.handle)))
    }

    /// Replaces the track without negotiation (W3C `replaceTrack`).
    pub fn set_track(&self, track: Option<MediaStreamTrack>) -> Result<(), RtcError> {
        let Some(connection) = self.handle.connection.upgrade() else {
            return Err(RtcError::state("the connection is closed"));
        };
        if let Some(track) = &track {
            crate::peer_connection::check_sendable(track)?;
        }
        self.handle.set_sending(&connection, track);
        Ok(())
    }

    /// Its parameters.
    pub fn parameters(&self) -> RtpParameters {
        let audio = self.handle.media == MediaType::Audio;
        let mut parameters = RtpParameters::default();
        parameters.encodings.clone_from(&self.handle.encodings.lock());
        if audio {
            parameters.codecs.push(opus_parameters());
            parameters.header_extensions.push(RtpHeaderExtensionParameters {
                uri: AUDIO_LEVEL_URI.to_owned(),
                id: 1,
                encrypted: false,
            });
        }
        let cname = self.track().map(|track| track.id()).unwrap_or_default();
        parameters.rtcp = RtcpParameters { cname, reduced_size: false };
        parameters
    }

    /// Takes over the encodings: for audio the first one's `max_bitrate`, which is the encoder's
    /// target then, and `active`.
    pub fn set_parameters(&self, parameters: RtpParameters) -> Result<(), RtcError> {
        let encoding = parameters.encodings.first().cloned();
        *self.handle.encodings.lock() = parameters.encodings;
        let (Some(encoding), Some(MediaStreamTrack::Audio(track))) = (encoding, self.track())
        else {
            return Ok(());
        };
        if let crate::audio_track::Kind::Local(local) = &track.kind {
            if let Some(bitrate) = encoding.max_bitrate {
                local.set_bitrate(bitrate);
            }
            if let Some(connection) = self.handle.connection.upgrade() {
                local.detach(self.handle.id, &connection);
                if encoding.active {
                    local.attach(&connection, self.handle.id);
                }
            }
        }
        Ok(())
    }

    /// Video is not sent: there is no backend to choose.
    pub fn set_video_encoder_backend(&self, backend: VideoEncoderBackend) {
        log::debug!("no video encoder {backend:?} here");
    }
}

impl Debug for RtpSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RtpSender").field("track", &self.track()).finish()
    }
}
