//! Makes peer connections and tracks.

use std::fmt;

use rtc_audio::ice::Transports;

use crate::engine::connection::IceConfig;
use crate::peer_connection::PeerConnection;
use crate::rtp_parameters::{
    AUDIO_LEVEL_URI, RtpCapabilities, RtpHeaderExtensionCapability, opus_capability, red_capability,
};
use crate::rtp_transceiver::RtpTransceiverDirection;
use crate::{MediaType, RtcError};

/// A STUN or TURN server. A URL that is of no use is told by `on_ice_candidate_error`; the others
/// are used all the same.
#[derive(Clone)]
pub struct IceServer {
    /// `stun:host[:port]` (RFC 7064), `turn:host[:port][?transport=udp|tcp]`, `turns:host[:port]`
    /// (RFC 7065).
    pub urls: Vec<String>,
    /// For TURN, long-term credentials.
    pub username: String,
    /// For TURN, long-term credentials.
    pub password: String,
}

impl fmt::Debug for IceServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IceServer").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// Whether candidates are gathered anew when the network changes. They always are.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum ContinualGatheringPolicy {
    /// No.
    GatherOnce,
    /// Yes.
    GatherContinually,
}

/// Which candidates may be used.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum IceTransportsType {
    /// Only a TURN server's: no socket of this host is offered or used towards the remote.
    Relay,
    /// None of this host: the remote is told of STUN and TURN servers' alone.
    NoHost,
    /// All.
    All,
}

/// Configuration of a peer connection. Start from `default` and set what is needed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RtcConfiguration {
    /// STUN and TURN servers.
    pub ice_servers: Vec<IceServer>,
    /// Whether candidates are gathered anew.
    pub continual_gathering_policy: ContinualGatheringPolicy,
    /// Which candidates may be used.
    pub ice_transport_type: IceTransportsType,
    /// SCTP parameters in the description (draft-hancke-tsvwg-snap). Not offered by this engine;
    /// taken when the remote offers it.
    pub enable_sctp_snap: bool,
}

impl Default for RtcConfiguration {
    fn default() -> Self {
        Self {
            ice_servers: Vec::new(),
            continual_gathering_policy: ContinualGatheringPolicy::GatherContinually,
            ice_transport_type: IceTransportsType::All,
            enable_sctp_snap: false,
        }
    }
}

impl RtcConfiguration {
    pub(crate) fn into_ice(self) -> IceConfig {
        let transports = match self.ice_transport_type {
            IceTransportsType::All => Transports::All,
            IceTransportsType::NoHost => Transports::NoHost,
            IceTransportsType::Relay => Transports::Relay,
        };
        IceConfig { servers: self.ice_servers, transports }
    }
}

/// Makes peer connections and tracks. All of a process share the engine's threads.
#[derive(Clone, Debug, Default)]
pub struct PeerConnectionFactory {
    _private: (),
}

impl PeerConnectionFactory {
    /// Received video is not rendered here: the same as `default`.
    pub fn with_zero_playout_delay() -> Self {
        Self::default()
    }

    /// Neither option concerns audio: the same as `default`.
    pub fn with_options(_zero_playout_delay: bool, _enable_warp: bool) -> Self {
        Self::default()
    }

    /// Binds a UDP port on every usable address of the host, IPv4 and IPv6, and starts a connection
    /// (`Relay` binds none). STUN and TURN servers are asked at once; nothing waits for them.
    pub fn create_peer_connection(
        &self,
        config: RtcConfiguration,
    ) -> Result<PeerConnection, RtcError> {
        PeerConnection::start(config)
    }

    /// What can be sent: Opus.
    pub fn get_rtp_sender_capabilities(&self, media_type: MediaType) -> RtpCapabilities {
        capabilities(media_type)
    }

    /// What can be received: Opus, in RED or not.
    pub fn get_rtp_receiver_capabilities(&self, media_type: MediaType) -> RtpCapabilities {
        capabilities(media_type)
    }
}

fn capabilities(media_type: MediaType) -> RtpCapabilities {
    if media_type != MediaType::Audio {
        return RtpCapabilities { codecs: Vec::new(), header_extensions: Vec::new() };
    }
    RtpCapabilities {
        codecs: vec![opus_capability(), red_capability()],
        header_extensions: vec![RtpHeaderExtensionCapability {
            uri: AUDIO_LEVEL_URI.to_owned(),
            direction: RtpTransceiverDirection::SendRecv,
        }],
    }
}

/// What only a native build has.
pub mod native {
    use super::PeerConnectionFactory;
    use crate::audio_source::native::NativeAudioSource;
    use crate::audio_track::{Kind, RtcAudioTrack};
    use crate::engine::source::LocalAudio;
    use crate::video_source::native::NativeVideoSource;
    use crate::video_track::RtcVideoTrack;

    macro_rules! devices {
        ($($(#[$doc:meta])* fn $name:ident(&self $(, $argument:ident: $kind:ty)*) $(-> $result:ty = $value:expr)?;)+) => {
            /// Tracks of local sources, and audio devices, of which there are none: every call
            /// about a device says so.
            pub trait PeerConnectionFactoryExt {
                /// A track of a video source. Publishing it is an error.
                fn create_video_track(&self, label: &str, source: NativeVideoSource)
                -> RtcVideoTrack;
                /// A track of a source; `label` becomes its id.
                fn create_audio_track(&self, label: &str, source: NativeAudioSource)
                -> RtcAudioTrack;
                /// A track of a microphone. Publishing it is an error.
                fn create_device_audio_track(&self, label: &str) -> RtcAudioTrack;
                $($(#[$doc])* fn $name(&self $(, $argument: $kind)*) $(-> $result)?;)+
            }

            impl PeerConnectionFactoryExt for PeerConnectionFactory {
                fn create_video_track(&self, label: &str, _source: NativeVideoSource)
                -> RtcVideoTrack {
                    RtcVideoTrack::new(label)
                }

                fn create_audio_track(&self, label: &str, source: NativeAudioSource)
                -> RtcAudioTrack {
                    RtcAudioTrack::new(label, Kind::Local(LocalAudio::new(Some(source.source))))
                }

                fn create_device_audio_track(&self, label: &str) -> RtcAudioTrack {
                    log::error!("there is no device audio in this engine");
                    RtcAudioTrack::new(label, Kind::Local(LocalAudio::new(None)))
                }

                $(fn $name(&self $(, $argument: $kind)*) $(-> $result)? {
                    $(let _ = $argument;)*
                    $($value)?
                })+
            }
        };
    }

    devices! {
        /// None.
        fn playout_devices(&self) -> i16 = 0;
        /// None.
        fn recording_devices(&self) -> i16 = 0;
        /// Empty.
        fn playout_device_name(&self, index: u16) -> String = String::new();
        /// Empty.
        fn recording_device_name(&self, index: u16) -> String = String::new();
        /// Empty.
        fn playout_device_guid(&self, index: u16) -> String = String::new();
        /// Empty.
        fn recording_device_guid(&self, index: u16) -> String = String::new();
        /// Fails.
        fn set_playout_device(&self, index: u16) -> bool = false;
        /// Fails.
        fn set_recording_device(&self, index: u16) -> bool = false;
        /// Fails.
        fn set_playout_device_by_guid(&self, guid: &str) -> bool = false;
        /// Fails.
        fn set_recording_device_by_guid(&self, guid: &str) -> bool = false;
        /// Fails.
        fn stop_recording(&self) -> bool = false;
        /// Fails.
        fn init_recording(&self) -> bool = false;
        /// Fails.
        fn start_recording(&self) -> bool = false;
        /// Never.
        fn recording_is_initialized(&self) -> bool = false;
        /// Fails.
        fn stop_playout(&self) -> bool = false;
        /// Fails.
        fn init_playout(&self) -> bool = false;
        /// Fails.
        fn start_playout(&self) -> bool = false;
        /// Never.
        fn playout_is_initialized(&self) -> bool = false;
        /// Never.
        fn builtin_aec_is_available(&self) -> bool = false;
        /// Never.
        fn builtin_agc_is_available(&self) -> bool = false;
        /// Never.
        fn builtin_ns_is_available(&self) -> bool = false;
        /// Fails.
        fn enable_builtin_aec(&self, enable: bool) -> bool = false;
        /// Fails.
        fn enable_builtin_agc(&self, enable: bool) -> bool = false;
        /// Fails.
        fn enable_builtin_ns(&self, enable: bool) -> bool = false;
        /// Does nothing.
        fn set_adm_recording_enabled(&self, enabled: bool);
        /// Never.
        fn adm_recording_enabled(&self) -> bool = false;
        /// Does nothing.
        fn set_adm_playout_enabled(&self, enabled: bool);
        /// Never.
        fn adm_playout_enabled(&self) -> bool = false;
        /// Fails.
        fn acquire_platform_adm(&self) -> bool = false;
        /// Does nothing.
        fn release_platform_adm(&self);
        /// None.
        fn platform_adm_ref_count(&self) -> i32 = 0;
        /// Never.
        fn is_platform_adm_active(&self) -> bool = false;
    }
}
