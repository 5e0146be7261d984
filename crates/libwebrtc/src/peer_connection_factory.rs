//! Makes peer connections and tracks.

use crate::peer_connection::PeerConnection;
use crate::rtp_parameters::{
    AUDIO_LEVEL_URI, RtpCapabilities, RtpHeaderExtensionCapability, opus_capability,
};
use crate::rtp_transceiver::RtpTransceiverDirection;
use crate::{MediaType, RtcError};

/// A STUN or TURN server. Not used by this engine, which connects from host addresses.
#[derive(Debug, Clone)]
pub struct IceServer {
    /// `stun:…`, `turn:…`
    pub urls: Vec<String>,
    /// For TURN.
    pub username: String,
    /// For TURN.
    pub password: String,
}

/// Whether candidates are gathered anew when the network changes.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum ContinualGatheringPolicy {
    /// No.
    GatherOnce,
    /// Yes. Not done by this engine.
    GatherContinually,
}

/// Which candidates may be used.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum IceTransportsType {
    /// Only a TURN server's: refused by this engine.
    Relay,
    /// None of this host: refused by this engine.
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

    /// Binds a UDP port on every IPv4 address of the host and starts a connection. `Relay` and
    /// `NoHost` are refused: a connection that was to hide this host must not use its addresses.
    pub fn create_peer_connection(
        &self,
        config: RtcConfiguration,
    ) -> Result<PeerConnection, RtcError> {
        match config.ice_transport_type {
            IceTransportsType::All => PeerConnection::start(&config),
            IceTransportsType::Relay => Err(RtcError::unsupported("a TURN relay")),
            IceTransportsType::NoHost => {
                Err(RtcError::unsupported("a connection without host candidates"))
            }
        }
    }

    /// What can be sent: Opus.
    pub fn get_rtp_sender_capabilities(&self, media_type: MediaType) -> RtpCapabilities {
        capabilities(media_type)
    }

    /// What can be received: Opus.
    pub fn get_rtp_receiver_capabilities(&self, media_type: MediaType) -> RtpCapabilities {
        capabilities(media_type)
    }
}

fn capabilities(media_type: MediaType) -> RtpCapabilities {
    if media_type != MediaType::Audio {
        return RtpCapabilities { codecs: Vec::new(), header_extensions: Vec::new() };
    }
    RtpCapabilities {
        codecs: vec![opus_capability()],
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
                    RtcVideoTrack::new(label, None)
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
