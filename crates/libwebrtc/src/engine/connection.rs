//! One peer connection: the peer behind a lock, and its objects.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rtc_audio::Candidate;
use rtc_audio::data_channel::{ChannelKey, ChannelState};
use rtc_audio::ice::Transports;
use rtc_audio::net::{Protocol, Transmit};
use rtc_audio::peer::{Event, Peer, PeerState};
use rtc_audio::send_queue::EncodedFrame;
use rtc_audio::transceiver::{TrackChange, TransceiverId};
use tokio::sync::Notify;

use super::callback::Callback;
use super::clock;
use super::driver::{Network, drive};
use super::interfaces::{Addresses, watch_addresses};
use super::sink::Listeners;
use super::udp::{SharedSockets, UdpSockets};
use crate::data_channel::ChannelHandle;
use crate::ice_candidate::IceCandidate;
use crate::peer_connection::{
    IceCandidateError, IceGatheringState, OnConnectionChange, OnDataChannel, OnIceCandidate,
    OnIceCandidateError, OnIceConnectionChange, OnIceGatheringChange, OnNegotiationNeeded,
    OnSignalingChange, OnTrack, TrackEvent,
};
use crate::peer_connection_factory::IceServer;
use crate::rtp_transceiver::{RtpTransceiver, TransceiverHandle};

/// Errors of servers kept until they can be told.
const MAX_ERRORS: usize = 16;
/// The callbacks of a connection.
#[derive(Default)]
pub(crate) struct Callbacks {
    pub(crate) connection: Callback<OnConnectionChange>,
    pub(crate) data_channel: Callback<OnDataChannel>,
    pub(crate) candidate: Callback<OnIceCandidate>,
    pub(crate) candidate_error: Callback<OnIceCandidateError>,
    pub(crate) ice: Callback<OnIceConnectionChange>,
    pub(crate) gathering: Callback<OnIceGatheringChange>,
    pub(crate) negotiation: Callback<OnNegotiationNeeded>,
    pub(crate) signaling: Callback<OnSignalingChange>,
    pub(crate) track: Callback<OnTrack>,
}

/// Something to tell the application, in order.
pub(crate) enum Notice {
    State(PeerState),
    Ice,
    Signaling(crate::peer_connection::SignalingState),
    Gathering(IceGatheringState),
    Candidate(IceCandidate),
    CandidateError(IceCandidateError),
    NegotiationNeeded,
    Track(TrackEvent),
    ChannelAdded(Arc<ChannelHandle>),
    ChannelState(Arc<ChannelHandle>, ChannelState),
    Message(Arc<ChannelHandle>, bool, Vec<u8>),
    BytesSent(Arc<ChannelHandle>, u64),
}

/// What the lock guards.
pub(crate) struct State {
    pub(crate) peer: Peer,
    pub(crate) transceivers: Vec<Arc<TransceiverHandle>>,
    pub(crate) channels: Vec<Arc<ChannelHandle>>,
    pub(crate) notices: VecDeque<Notice>,
    pub(crate) gathering: IceGatheringState,
    /// Mid of the first section of our first description: what candidates are told for. Before,
    /// none are told: the description carries them.
    pub(crate) told_for: Option<String>,
    /// What the driver is to do about its sockets and servers.
    pub(crate) orders: Orders,
    /// Servers are being asked.
    pub(super) searching: bool,
    /// Errors of servers from before anybody could be told.
    errors: Vec<IceCandidateError>,
    /// What the voice goes out by.
    pub(super) direct: SharedSockets,
    /// What cannot go out by those, for the driver.
    unsent: VecDeque<Transmit>,
    /// When the driver calls the peer at the latest.
    pub(super) wakes_at: Option<Instant>,
}

/// What the application wants of the driver.
#[derive(Default)]
pub(crate) struct Orders {
    /// Use these servers and candidates.
    pub(super) configure: Option<IceConfig>,
    /// Bind IPv6 loopback: the remote is there.
    pub(crate) loopback_v6: bool,
    /// Ask the servers again: ICE is being restarted.
    pub(crate) gather_again: bool,
    /// Connect and allocate anew: ICE is being restarted, and no path leads to the remote.
    pub(crate) renew_paths: bool,
}

/// Servers, and which candidates may be used.
#[derive(Debug, Clone)]
pub(crate) struct IceConfig {
    pub(crate) servers: Vec<IceServer>,
    pub(crate) transports: Transports,
}

/// A peer connection as its handles and its driver share it.
pub(crate) struct Connection {
    pub(super) state: Mutex<State>,
    pub(super) wake: Notify,
    closed: AtomicBool,
    pub(crate) callbacks: Callbacks,
    /// Those who hear a track of it.
    pub(crate) listeners: Arc<Listeners>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl Connection {
    /// Binds the sockets and starts the driver. Host candidates are there when it returns; what
    /// servers have to tell comes later.
    pub(crate) fn start(config: IceConfig) -> Result<Arc<Self>, crate::RtcError> {
        let place = super::place()?;
        let runtime = place.handle();
        let guard = runtime.enter();
        let interfaces = watch_addresses();
        let ips: Addresses = match config.transports {
            Transports::Relay => Addresses::default(),
            Transports::All | Transports::NoHost => Arc::clone(&interfaces.borrow()),
        };
        let sockets = UdpSockets::bind(&ips).map_err(|error| crate::RtcError {
            error_type: crate::RtcErrorType::Internal,
            message: format!("no UDP socket can be bound: {error}"),
        })?;
        let mut peer = Peer::new(clock::now());
        peer.set_transports(config.transports);
        for address in sockets.addresses() {
            peer.add_local_address(address);
        }
        let connection = Arc::new(Self {
            state: Mutex::new(State {
                peer,
                transceivers: Vec::new(),
                channels: Vec::new(),
                notices: VecDeque::new(),
                gathering: IceGatheringState::New,
                told_for: None,
                searching: !config.servers.is_empty(),
                errors: Vec::new(),
                direct: sockets.shared(),
                unsent: VecDeque::new(),
                wakes_at: None,
                orders: Orders { configure: Some(config), ..Orders::default() },
            }),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            callbacks: Callbacks::default(),
            listeners: Arc::default(),
        });
        let network = Network::new(sockets, interfaces);
        let driven = drive(Arc::clone(&connection), network, place.alarm());
        runtime.spawn(async move {
            driven.await;
            drop(place);
        });
        drop(guard);
        Ok(connection)
    }

    /// Changes or reads the state, then lets the driver see to the consequences.
    pub(crate) fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.state.lock());
        self.wake.notify_one();
        result
    }

    /// Reads the state.
    pub(crate) fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        read(&self.state.lock())
    }

    /// Sends a frame from where it was encoded: to wake the driver for each would cost more than
    /// the sending.
    pub(crate) fn send_audio(&self, id: TransceiverId, frame: &EncodedFrame) {
        let wake = {
            let mut state = self.state.lock();
            state.peer.send_audio(clock::now(), id, frame) && state.send_directly()
        };
        if wake {
            self.wake.notify_one();
        }
    }

    pub(crate) fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.with(|state| {
                state.peer.close();
                for transceiver in &state.transceivers {
                    transceiver.end();
                }
            });
        }
    }

    /// Uses these servers and candidates from now on.
    pub(crate) fn configure(&self, config: IceConfig) {
        self.with(|state| {
            state.peer.set_transports(config.transports);
            state.searching |= !config.servers.is_empty();
            state.orders.configure = Some(config);
        });
    }

    /// Lets go of what the application gave: nothing more will be told, and a callback that holds a
    /// handle to the connection would keep both for ever.
    pub(super) fn forget(&self) {
        let callbacks = &self.callbacks;
        callbacks.connection.set(None);
        callbacks.data_channel.set(None);
        callbacks.candidate.set(None);
        callbacks.candidate_error.set(None);
        callbacks.ice.set(None);
        callbacks.gathering.set(None);
        callbacks.negotiation.set(None);
        callbacks.signaling.set(None);
        callbacks.track.set(None);
        let (channels, transceivers) = {
            let mut state = self.state.lock();
            state.notices.clear();
            state.unsent.clear();
            state.direct.clear();
            (state.channels.clone(), std::mem::take(&mut state.transceivers))
        };
        for channel in channels {
            channel.on_state.set(None);
            channel.on_message.set(None);
            channel.on_buffered.set(None);
        }
        drop(transceivers);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl State {
    /// No path leads to the remote. A restart of ICE begins anew: ask before.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self.peer.state(), PeerState::Disconnected | PeerState::Failed)
    }

    /// ICE is being restarted, by whichever side; `lost`: the path before it.
    pub(crate) fn look_for_paths_again(&mut self, lost: bool) {
        self.orders.gather_again = true;
        self.orders.renew_paths |= lost;
    }

    pub(crate) fn transceiver(&self, id: TransceiverId) -> Option<&Arc<TransceiverHandle>> {
        self.transceivers.iter().find(|t| t.id == id)
    }

    /// Our first description is set: candidates are told from now on.
    pub(crate) fn tell_candidates(&mut self, mid: String) {
        if self.told_for.is_some() {
            return;
        }
        self.told_for = Some(mid);
        self.set_gathering(IceGatheringState::Gathering);
        let known: Vec<Candidate> = self.peer.local_candidates().cloned().collect();
        for candidate in &known {
            self.tell_candidate(candidate);
        }
        let errors = std::mem::take(&mut self.errors);
        self.notices.extend(errors.into_iter().map(Notice::CandidateError));
        self.note_searching(self.searching);
    }

    /// Like candidates, errors are told once our first description is set: gathering begins with
    /// it (W3C WebRTC §4.4.1.6), and the application may not listen before.
    pub(super) fn tell_error(&mut self, error: IceCandidateError) {
        if self.told_for.is_some() {
            self.notices.push_back(Notice::CandidateError(error));
        } else if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    pub(super) fn tell_candidate(&mut self, candidate: &Candidate) {
        let Some(mid) = &self.told_for else { return };
        let candidate =
            IceCandidate { mid: mid.clone(), mline: 0, text: candidate.to_sdp_string() };
        self.notices.push_back(Notice::Candidate(candidate));
    }

    fn set_gathering(&mut self, gathering: IceGatheringState) {
        if self.gathering != gathering && self.told_for.is_some() {
            self.gathering = gathering;
            self.notices.push_back(Notice::Gathering(gathering));
        }
    }

    pub(super) fn note_searching(&mut self, searching: bool) {
        self.searching = searching;
        self.set_gathering(if searching {
            IceGatheringState::Gathering
        } else {
            IceGatheringState::Complete
        });
    }

    fn channel(&self, key: ChannelKey) -> Option<Arc<ChannelHandle>> {
        self.channels.iter().find(|c| c.key == key).cloned()
    }

    /// Brings the transceiver objects up to date with what a description changed.
    pub(crate) fn apply_tracks(&mut self, connection: &Arc<Connection>, changes: Vec<TrackChange>) {
        let known: Vec<_> = self.peer.transceivers().iter().map(|t| (t.id(), t.media())).collect();
        for (id, media) in known {
            if self.transceiver(id).is_none() {
                self.transceivers.push(TransceiverHandle::new(connection, id, media, Vec::new()));
            }
        }
        for change in changes {
            match change {
                TrackChange::Ended { id } => {
                    if let Some(transceiver) = self.transceiver(id) {
                        transceiver.remote_ended();
                    }
                }
                TrackChange::Started { id, streams } => {
                    let Some(handle) = self.transceiver(id).cloned() else { continue };
                    handle.remote_started(streams);
                    // Whoever sends here now has other keys, or none.
                    self.peer.set_opening(id, None);
                    let transceiver = RtpTransceiver { handle };
                    let receiver = transceiver.receiver();
                    let Some(track) = receiver.track() else { continue };
                    let streams = receiver.streams();
                    self.notices.push_back(Notice::Track(TrackEvent {
                        receiver,
                        streams,
                        track,
                        transceiver,
                    }));
                }
            }
        }
    }

    /// Sends what the peer has to send, as far as it goes over UDP from here; gives whether the
    /// driver has something to do.
    fn send_directly(&mut self) -> bool {
        while let Some(transmit) = self.peer.poll_transmit() {
            if transmit.proto != Protocol::Udp || !self.direct.send(&transmit) {
                self.unsent.push_back(transmit);
            }
        }
        let earlier = |at: Instant| self.wakes_at.is_none_or(|wakes_at| at < wakes_at);
        !self.unsent.is_empty()
            || !self.notices.is_empty()
            || self.peer.has_events()
            || self.peer.poll_timeout().is_some_and(earlier)
    }

    /// Takes what the peer has to send and to say; gives when it wants to be called again.
    pub(super) fn collect(
        &mut self,
        connection: &Arc<Connection>,
        transmits: &mut Vec<Transmit>,
        notices: &mut VecDeque<Notice>,
    ) -> Option<Instant> {
        transmits.extend(self.unsent.drain(..));
        transmits.extend(std::iter::from_fn(|| self.peer.poll_transmit()));
        self.deliver(connection);
        notices.append(&mut self.notices);
        self.wakes_at = self.peer.poll_timeout();
        self.wakes_at
    }

    /// Gives listeners what came for them.
    pub(super) fn deliver(&mut self, connection: &Arc<Connection>) {
        while let Some(event) = self.peer.poll_event() {
            self.on_event(connection, event);
        }
    }

    fn on_event(&mut self, connection: &Arc<Connection>, event: Event) {
        let notice = match event {
            Event::Audio(id, packet) => {
                if let Some(transceiver) = self.transceiver(id) {
                    transceiver.deliver(&packet);
                }
                return;
            }
            Event::KeyFrame(id, frame) => {
                if let Some(transceiver) = self.transceiver(id) {
                    transceiver.deliver_key_frame(&frame);
                }
                return;
            }
            Event::State(state) => {
                self.notices.push_back(Notice::Ice);
                Notice::State(state)
            }
            Event::ChannelAdded(key) => {
                let Some(channel) = self.peer.channel(key) else { return };
                let handle = ChannelHandle::new(connection, key, channel.init().label.clone());
                self.channels.push(Arc::clone(&handle));
                Notice::ChannelAdded(handle)
            }
            Event::ChannelState(key, state) => {
                let Some(channel) = self.channel(key) else { return };
                Notice::ChannelState(channel, state)
            }
            Event::Message { channel, binary, data } => {
                let Some(channel) = self.channel(channel) else { return };
                Notice::Message(channel, binary, data)
            }
            Event::BytesSent(key, bytes) => {
                let Some(channel) = self.channel(key) else { return };
                Notice::BytesSent(channel, bytes)
            }
        };
        self.notices.push_back(notice);
    }
}
