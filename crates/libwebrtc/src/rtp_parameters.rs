//! Parameters of senders and receivers.

use crate::rtp_transceiver::RtpTransceiverDirection;

/// Priority of a stream; not used by this engine.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Priority {
    /// Less than low.
    VeryLow,
    /// The usual.
    Low,
    /// More.
    Medium,
    /// Most.
    High,
}

/// What video gives up when bandwidth is short; not used by this engine.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub enum DegradationPreference {
    /// Neither.
    MaintainFramerateAndResolution,
    /// Resolution.
    MaintainFramerate,
    /// Frame rate.
    MaintainResolution,
    /// Both.
    #[default]
    Balanced,
}

/// A header extension (RFC 8285).
#[derive(Debug, Clone)]
pub struct RtpHeaderExtensionParameters {
    /// What it is.
    pub uri: String,
    /// Its id in packets.
    pub id: i32,
    /// RFC 6904.
    pub encrypted: bool,
}

/// Parameters of a sender or receiver.
#[derive(Debug, Clone, Default)]
pub struct RtpParameters {
    /// Codecs in use.
    pub codecs: Vec<RtpCodecParameters>,
    /// Header extensions in use.
    pub header_extensions: Vec<RtpHeaderExtensionParameters>,
    /// Encodings sent.
    pub encodings: Vec<RtpEncodingParameters>,
    /// RTCP.
    pub rtcp: RtcpParameters,
    degradation: Option<DegradationPreference>,
}

impl RtpParameters {
    /// Remembers the preference.
    pub fn set_degradation_preference(&mut self, preference: DegradationPreference) {
        self.degradation = Some(preference);
    }

    /// The preference that was set.
    pub fn degradation_preference(&self) -> Option<DegradationPreference> {
        self.degradation
    }
}

/// A codec in use.
#[derive(Debug, Clone, Default)]
pub struct RtpCodecParameters {
    /// RTP payload type.
    pub payload_type: u8,
    /// Such as `audio/opus`.
    pub mime_type: String,
    /// RTP clock in Hz.
    pub clock_rate: Option<u64>,
    /// Channels.
    pub channels: Option<u16>,
}

/// RTCP parameters.
#[derive(Debug, Clone, Default)]
pub struct RtcpParameters {
    /// Canonical name (RFC 3550 §6.5.1).
    pub cname: String,
    /// RFC 5506.
    pub reduced_size: bool,
}

/// One encoding of a sender.
#[derive(Debug, Clone)]
pub struct RtpEncodingParameters {
    /// Says whether it is sent.
    pub active: bool,
    /// In bits per second.
    pub max_bitrate: Option<u64>,
    /// Of video.
    pub max_framerate: Option<f64>,
    /// Not used.
    pub priority: Priority,
    /// Simulcast id (RFC 8851).
    pub rid: String,
    /// Of video.
    pub scale_resolution_down_by: Option<f64>,
    /// Of video.
    pub scalability_mode: Option<String>,
    /// Says whether `ssrc` is known.
    pub has_ssrc: bool,
    /// RTP source.
    pub ssrc: u32,
}

impl Default for RtpEncodingParameters {
    fn default() -> Self {
        Self {
            active: true,
            max_bitrate: None,
            max_framerate: None,
            priority: Priority::Low,
            rid: String::new(),
            scale_resolution_down_by: None,
            scalability_mode: None,
            has_ssrc: false,
            ssrc: 0,
        }
    }
}

/// A codec that could be used.
#[derive(Debug, Clone)]
pub struct RtpCodecCapability {
    /// Channels.
    pub channels: Option<u16>,
    /// RTP clock in Hz.
    pub clock_rate: Option<u64>,
    /// Such as `audio/opus`.
    pub mime_type: String,
    /// `a=fmtp` without payload type.
    pub sdp_fmtp_line: Option<String>,
}

/// A header extension that could be used.
#[derive(Debug, Clone)]
pub struct RtpHeaderExtensionCapability {
    /// What it is.
    pub uri: String,
    /// By default.
    pub direction: RtpTransceiverDirection,
}

/// What could be used.
#[derive(Debug, Clone)]
pub struct RtpCapabilities {
    /// Codecs.
    pub codecs: Vec<RtpCodecCapability>,
    /// Header extensions.
    pub header_extensions: Vec<RtpHeaderExtensionCapability>,
}

/// Audio level of a client (RFC 6464).
pub(crate) const AUDIO_LEVEL_URI: &str = "urn:ietf:params:rtp-hdrext:ssrc-audio-level";

const RED: &str = "audio/red";

/// Redundant audio (RFC 2198) around Opus.
pub(crate) fn red_capability() -> RtpCodecCapability {
    RtpCodecCapability {
        channels: Some(2),
        clock_rate: Some(48_000),
        mime_type: RED.to_owned(),
        sdp_fmtp_line: Some("111/111".to_owned()),
    }
}

/// Says whether such preferences leave RED in; without any, all that can be done is.
pub(crate) fn allows_red(preferences: &[RtpCodecCapability]) -> bool {
    preferences.is_empty()
        || preferences.iter().any(|codec| codec.mime_type.eq_ignore_ascii_case(RED))
}

pub(crate) fn opus_capability() -> RtpCodecCapability {
    RtpCodecCapability {
        channels: Some(2),
        clock_rate: Some(48_000),
        mime_type: "audio/opus".to_owned(),
        sdp_fmtp_line: Some("minptime=10;useinbandfec=1".to_owned()),
    }
}

pub(crate) fn opus_parameters() -> RtpCodecParameters {
    RtpCodecParameters {
        payload_type: 111,
        mime_type: "audio/opus".to_owned(),
        clock_rate: Some(48_000),
        channels: Some(2),
    }
}
