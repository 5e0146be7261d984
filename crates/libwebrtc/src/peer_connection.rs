//! Peer connections.

#![allow(clippy::unused_async, reason = "the signatures are those that livekit awaits")]

use std::fmt::{self, Debug};
use std::sync::Arc;

use rtc_audio::ice::names_loopback_v6;
use rtc_audio::sdp::restarts_ice;
use rtc_audio::transceiver::MediaType as EngineMedia;

use crate::audio_track::Kind;
use crate::data_channel::{ChannelHandle, DataChannel, DataChannelInit};
use crate::engine::connection::{Connection, Notice, State};
use crate::ice_candidate::IceCandidate;
use crate::media_stream::MediaStream;
use crate::media_stream_track::MediaStreamTrack;
use crate::peer_connection_factory::RtcConfiguration;
use crate::rtp_receiver::RtpReceiver;
use crate::rtp_sender::RtpSender;
use crate::rtp_transceiver::{
    RtpTransceiver, RtpTransceiverDirection, RtpTransceiverInit, TransceiverHandle,
};
use crate::session_description::{SdpType, SessionDescription};
use crate::stats::{self, RtcStats};
use crate::{MediaType, RtcError};

mod states;

pub(crate) use states::ice_state;
pub use states::{IceConnectionState, IceGatheringState, PeerConnectionState, SignalingState};

/// What an offer is to hold.
#[derive(Debug, Clone, Default)]
pub struct OfferOptions {
    /// New ICE credentials (RFC 8445 §9).
    pub ice_restart: bool,
    /// A section to receive audio, where there is none for audio.
    pub offer_to_receive_audio: bool,
    /// A section to receive video, where there is none for video.
    pub offer_to_receive_video: bool,
}

/// What an answer is to hold: nothing to choose.
#[derive(Debug, Clone, Default)]
pub struct AnswerOptions {}

/// Limits of the send bitrate of a connection, in bits per second. Audio has a fixed rate here:
/// they are checked and remembered by nobody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BitrateSettings {
    /// Floor.
    pub min_bitrate_bps: Option<u64>,
    /// Start.
    pub start_bitrate_bps: Option<u64>,
    /// Cap.
    pub max_bitrate_bps: Option<u64>,
}

/// Why a STUN or TURN server gave no candidate. No secret is in it.
#[derive(Debug, Clone)]
pub struct IceCandidateError {
    /// Local address, empty where it is not known.
    pub address: String,
    /// Local port.
    pub port: i32,
    /// Server.
    pub url: String,
    /// STUN error; 701 when the server cannot be reached (W3C WebRTC §4.8.1), 400 when its URL
    /// is of no use.
    pub error_code: i32,
    /// Its text, or what happened.
    pub error_text: String,
}

/// The remote began to send a track.
#[derive(Debug, Clone)]
pub struct TrackEvent {
    /// Receives it.
    pub receiver: RtpReceiver,
    /// Streams it belongs to.
    pub streams: Vec<MediaStream>,
    /// The track.
    pub track: MediaStreamTrack,
    /// Its section.
    pub transceiver: RtpTransceiver,
}

/// Called with the new state.
pub type OnConnectionChange = Box<dyn FnMut(PeerConnectionState) + Send + Sync>;
/// Called with each channel that the remote opens.
pub type OnDataChannel = Box<dyn FnMut(DataChannel) + Send + Sync>;
/// Called with each candidate of ours.
pub type OnIceCandidate = Box<dyn FnMut(IceCandidate) + Send + Sync>;
/// Called with each server that gave no candidate.
pub type OnIceCandidateError = Box<dyn FnMut(IceCandidateError) + Send + Sync>;
/// Called with the new state.
pub type OnIceConnectionChange = Box<dyn FnMut(IceConnectionState) + Send + Sync>;
/// Called with the new state.
pub type OnIceGatheringChange = Box<dyn FnMut(IceGatheringState) + Send + Sync>;
/// Called when an offer is due.
pub type OnNegotiationNeeded = Box<dyn FnMut(u32) + Send + Sync>;
/// Called with the new state.
pub type OnSignalingChange = Box<dyn FnMut(SignalingState) + Send + Sync>;
/// Called with each track that the remote begins to send.
pub type OnTrack = Box<dyn FnMut(TrackEvent) + Send + Sync>;

/// Closes the connection when the last handle goes.
struct Owner {
    connection: Arc<Connection>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.connection.close();
    }
}

/// A handle to a peer connection, which is closed when the last one is dropped.
///
/// Callbacks run one after another on the engine's threads, in the order of what happened, with
/// no lock held: they may call anything here, but should not block.
#[derive(Clone)]
pub struct PeerConnection {
    owner: Arc<Owner>,
}

/// Says whether a track can be sent at all.
pub(crate) fn check_sendable(track: &MediaStreamTrack) -> Result<(), RtcError> {
    match track {
        MediaStreamTrack::Video(_) => Err(RtcError::unsupported("publishing video")),
        MediaStreamTrack::Audio(track) => match &track.kind {
            Kind::Remote(_) => Err(RtcError::unsupported("publishing a remote track")),
            Kind::Local(local) if !local.has_source() => {
                Err(RtcError::unsupported("capturing from an audio device"))
            }
            Kind::Local(_) => Ok(()),
        },
    }
}

impl PeerConnection {
    pub(crate) fn start(config: RtcConfiguration) -> Result<Self, RtcError> {
        let connection = Connection::start(config.into_ice())?;
        Ok(Self { owner: Arc::new(Owner { connection }) })
    }

    fn connection(&self) -> &Arc<Connection> {
        &self.owner.connection
    }

    /// Changes the state and reports a change of the signaling state.
    fn negotiate<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        self.connection().with(|state| {
            let before = state.peer.signaling_state();
            let result = change(state);
            let after = state.peer.signaling_state();
            if before != after {
                state.notices.push_back(Notice::Signaling(after.into()));
            }
            result
        })
    }

    /// Uses these servers and candidates from now on. New servers are asked at once, those that
    /// failed are asked again; candidates that may not be used any more are given up at once, and
    /// an ICE restart makes the remote forget them.
    pub fn set_configuration(&self, config: RtcConfiguration) -> Result<(), RtcError> {
        if self.connection().is_closed() {
            return Err(RtcError::state("the connection is closed"));
        }
        self.connection().configure(config.into_ice());
        Ok(())
    }

    /// Checks the limits. There is no bandwidth estimator that they could steer.
    pub fn set_bitrate(&self, settings: BitrateSettings) -> Result<(), RtcError> {
        if self.connection().is_closed() {
            return Err(RtcError::state("the connection is closed"));
        }
        let BitrateSettings { min_bitrate_bps, start_bitrate_bps, max_bitrate_bps } = settings;
        let above = |a: Option<u64>, b: Option<u64>| matches!((a, b), (Some(a), Some(b)) if a > b);
        if above(min_bitrate_bps, start_bitrate_bps)
            || above(start_bitrate_bps, max_bitrate_bps)
            || above(min_bitrate_bps, max_bitrate_bps)
        {
            return Err(RtcError::state("min, start and max bitrate contradict one another"));
        }
        Ok(())
    }

    /// Writes an offer of what is wanted now.
    pub async fn create_offer(
        &self,
        options: OfferOptions,
    ) -> Result<SessionDescription, RtcError> {
        for (wanted, media) in [
            (options.offer_to_receive_audio, EngineMedia::Audio),
            (options.offer_to_receive_video, EngineMedia::Video),
        ] {
            let connection = self.connection();
            connection.with(|state| {
                let known = state.peer.transceivers().iter().any(|t| t.media() == media);
                if wanted && !known {
                    let direction = RtpTransceiverDirection::RecvOnly.to_engine();
                    state.peer.add_transceiver(media, direction, None, None);
                    state.apply_tracks(connection, Vec::new());
                }
            });
        }
        let text = self.negotiate(|state| {
            if options.ice_restart {
                let lost = state.is_lost();
                state.look_for_paths_again(lost);
            }
            state.peer.create_offer(options.ice_restart)
        })?;
        Ok(SessionDescription { text, sdp_type: SdpType::Offer })
    }

    /// Writes the answer to the offer that was set.
    pub async fn create_answer(
        &self,
        _options: AnswerOptions,
    ) -> Result<SessionDescription, RtcError> {
        let text = self.negotiate(|state| state.peer.create_answer())?;
        Ok(SessionDescription { text, sdp_type: SdpType::Answer })
    }

    /// Applies our description. An offer may have been edited: its directions count.
    pub async fn set_local_description(&self, desc: SessionDescription) -> Result<(), RtcError> {
        self.negotiate(|state| {
            match desc.sdp_type {
                SdpType::Offer => state.peer.set_local_offer(&desc.text)?,
                SdpType::Answer => state.peer.set_local_answer(&desc.text)?,
                SdpType::Rollback => state.peer.rollback(),
                SdpType::PrAnswer => return Err(RtcError::unsupported("a provisional answer")),
            }
            if desc.sdp_type != SdpType::Rollback {
                let mid = rtc_audio::sdp::sections(&desc.text)
                    .first()
                    .map(|section| section.mid.clone())
                    .unwrap_or_default();
                state.tell_candidates(mid);
            }
            Ok(())
        })
    }

    /// Applies the remote's description. Transceivers are up to date when it returns.
    pub async fn set_remote_description(&self, desc: SessionDescription) -> Result<(), RtcError> {
        let connection = self.connection();
        self.negotiate(|state| {
            let changes = match desc.sdp_type {
                SdpType::Offer => {
                    let held = state.peer.remote_description().map(|(text, _)| text);
                    let restarts = held.is_some_and(|held| restarts_ice(held, &desc.text));
                    let lost = state.is_lost();
                    let changes = state.peer.set_remote_offer(&desc.text)?;
                    if restarts {
                        state.look_for_paths_again(lost);
                    }
                    changes
                }
                SdpType::Answer => state.peer.set_remote_answer(&desc.text)?,
                SdpType::Rollback => {
                    state.peer.rollback();
                    Vec::new()
                }
                SdpType::PrAnswer => return Err(RtcError::unsupported("a provisional answer")),
            };
            state.apply_tracks(connection, changes);
            state.orders.loopback_v6 |= names_loopback_v6(&desc.text);
            Ok(())
        })
    }

    /// Adds a candidate of the remote.
    pub async fn add_ice_candidate(&self, candidate: IceCandidate) -> Result<(), RtcError> {
        self.connection().with(|state| {
            state.peer.add_remote_candidate(&candidate.text)?;
            state.orders.loopback_v6 |= names_loopback_v6(&candidate.text);
            Ok(())
        })
    }

    /// Makes a data channel. The first one takes an offer to open.
    pub fn create_data_channel(
        &self,
        label: &str,
        init: DataChannelInit,
    ) -> Result<DataChannel, RtcError> {
        let init = init.to_engine(label)?;
        let connection = self.connection();
        connection.with(|state| {
            let key = state.peer.create_channel(init)?;
            let handle = ChannelHandle::new(connection, key, label.to_owned());
            state.channels.push(Arc::clone(&handle));
            state.notices.push_back(Notice::NegotiationNeeded);
            Ok(DataChannel { handle })
        })
    }

    /// Sends a track on a transceiver of its kind that sends nothing yet, else on a new one that
    /// also receives.
    pub fn add_track<T: AsRef<str>>(
        &self,
        track: MediaStreamTrack,
        streams_ids: &[T],
    ) -> Result<RtpSender, RtcError> {
        check_sendable(&track)?;
        let stream = streams_ids.first().map(|id| id.as_ref().to_owned());
        let connection = self.connection();
        let handle = connection.with(|state| {
            let id = state.peer.add_track(EngineMedia::Audio, track.id(), stream);
            state.apply_tracks(connection, Vec::new());
            state.notices.push_back(Notice::NegotiationNeeded);
            state.transceiver(id).cloned()
        });
        let handle = handle.ok_or_else(|| RtcError::state("the transceiver is gone"))?;
        handle.set_sending(connection, Some(track));
        Ok(RtpSender { handle })
    }

    /// Stops sending, from the next offer on; the track hears no more of it at once.
    pub fn remove_track(&self, sender: RtpSender) -> Result<(), RtcError> {
        let connection = self.connection();
        // livekit takes back senders of a connection before this one, whose sections have other numbers.
        if !std::ptr::eq(sender.handle.connection.as_ptr(), Arc::as_ptr(connection)) {
            return Err(RtcError::state("the sender is another connection's"));
        }
        sender.handle.set_sending(connection, None);
        connection.with(|state| {
            state.peer.remove_track(sender.handle.id);
            state.notices.push_back(Notice::NegotiationNeeded);
        });
        Ok(())
    }

    /// Figures of the whole connection, at most a second old.
    pub async fn get_stats(&self) -> Result<Vec<RtcStats>, RtcError> {
        Ok(self.connection().read(stats::of_connection))
    }

    /// Adds a section that sends an audio track.
    pub fn add_transceiver(
        &self,
        track: MediaStreamTrack,
        init: RtpTransceiverInit,
    ) -> Result<RtpTransceiver, RtcError> {
        check_sendable(&track)?;
        self.add(EngineMedia::Audio, Some(track), init)
    }

    /// Adds a section without a track.
    pub fn add_transceiver_for_media(
        &self,
        media_type: MediaType,
        init: RtpTransceiverInit,
    ) -> Result<RtpTransceiver, RtcError> {
        let media = match media_type {
            MediaType::Audio => EngineMedia::Audio,
            MediaType::Video => EngineMedia::Video,
            MediaType::Data | MediaType::Unsupported => {
                return Err(RtcError::state("a transceiver is for audio or video"));
            }
        };
        self.add(media, None, init)
    }

    fn add(
        &self,
        media: EngineMedia,
        track: Option<MediaStreamTrack>,
        init: RtpTransceiverInit,
    ) -> Result<RtpTransceiver, RtcError> {
        let connection = self.connection();
        if connection.is_closed() {
            return Err(RtcError::state("the connection is closed"));
        }
        let handle = connection.with(|state| {
            let id = state.peer.add_transceiver(
                media,
                init.direction.to_engine(),
                track.as_ref().map(MediaStreamTrack::id),
                init.stream_ids.first().cloned(),
            );
            let handle = TransceiverHandle::new(connection, id, media, init.send_encodings);
            state.transceivers.push(Arc::clone(&handle));
            state.notices.push_back(Notice::NegotiationNeeded);
            handle
        });
        if track.is_some() {
            handle.set_sending(connection, track);
        }
        Ok(RtpTransceiver { handle })
    }

    /// Says goodbye and ends all tracks and channels.
    pub fn close(&self) {
        self.connection().close();
    }

    /// Asks for an offer with `ice_restart` through `on_negotiation_needed`.
    pub fn restart_ice(&self) {
        self.connection().with(|state| state.notices.push_back(Notice::NegotiationNeeded));
    }

    /// State of the whole connection.
    pub fn connection_state(&self) -> PeerConnectionState {
        self.connection().read(|state| state.peer.state().into())
    }

    /// State of ICE.
    pub fn ice_connection_state(&self) -> IceConnectionState {
        self.connection().read(|state| ice_state(state.peer.state()))
    }

    /// State of gathering.
    pub fn ice_gathering_state(&self) -> IceGatheringState {
        self.connection().read(|state| state.gathering)
    }

    /// Where offer and answer stand.
    pub fn signaling_state(&self) -> SignalingState {
        self.connection().read(|state| state.peer.signaling_state().into())
    }

    /// Our description that holds.
    pub fn current_local_description(&self) -> Option<SessionDescription> {
        self.connection().read(|state| {
            let (text, answer) = state.peer.local_description()?;
            Some(describe(text, answer))
        })
    }

    /// The remote's description that holds.
    pub fn current_remote_description(&self) -> Option<SessionDescription> {
        self.connection().read(|state| {
            let (text, answer) = state.peer.remote_description()?;
            Some(describe(text, answer))
        })
    }

    /// Senders that have a track.
    pub fn senders(&self) -> Vec<RtpSender> {
        self.transceivers().iter().map(RtpTransceiver::sender).collect()
    }

    /// All receivers.
    pub fn receivers(&self) -> Vec<RtpReceiver> {
        self.transceivers().iter().map(RtpTransceiver::receiver).collect()
    }

    /// All transceivers.
    pub fn transceivers(&self) -> Vec<RtpTransceiver> {
        let handles = self.connection().read(|state| state.transceivers.clone());
        handles.into_iter().map(|handle| RtpTransceiver { handle }).collect()
    }

    /// Replaces the callback for the connection's state.
    pub fn on_connection_state_change(&self, f: Option<OnConnectionChange>) {
        self.connection().callbacks.connection.set(f);
    }

    /// Replaces the callback for channels that the remote opens.
    pub fn on_data_channel(&self, f: Option<OnDataChannel>) {
        self.connection().callbacks.data_channel.set(f);
    }

    /// Replaces the callback for candidates of ours. The descriptions carry them, too.
    pub fn on_ice_candidate(&self, f: Option<OnIceCandidate>) {
        self.connection().callbacks.candidate.set(f);
    }

    /// Replaces the callback for servers that gave no candidate.
    pub fn on_ice_candidate_error(&self, f: Option<OnIceCandidateError>) {
        self.connection().callbacks.candidate_error.set(f);
    }

    /// Replaces the callback for the state of ICE.
    pub fn on_ice_connection_state_change(&self, f: Option<OnIceConnectionChange>) {
        self.connection().callbacks.ice.set(f);
    }

    /// Replaces the callback for the state of gathering.
    pub fn on_ice_gathering_state_change(&self, f: Option<OnIceGatheringChange>) {
        self.connection().callbacks.gathering.set(f);
    }

    /// Replaces the callback that says that an offer is due.
    pub fn on_negotiation_needed(&self, f: Option<OnNegotiationNeeded>) {
        self.connection().callbacks.negotiation.set(f);
    }

    /// Replaces the callback for the signaling state.
    pub fn on_signaling_state_change(&self, f: Option<OnSignalingChange>) {
        self.connection().callbacks.signaling.set(f);
    }

    /// Replaces the callback for tracks that the remote begins to send.
    pub fn on_track(&self, f: Option<OnTrack>) {
        self.connection().callbacks.track.set(f);
    }
}

fn describe(text: &str, answer: bool) -> SessionDescription {
    let sdp_type = if answer { SdpType::Answer } else { SdpType::Offer };
    SessionDescription { text: text.to_owned(), sdp_type }
}

impl Debug for PeerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerConnection")
            .field("state", &self.connection_state())
            .finish_non_exhaustive()
    }
}
