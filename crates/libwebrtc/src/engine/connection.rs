//! One peer connection: the peer behind a lock, its objects, and the task that drives it.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rtc_audio::Candidate;
use rtc_audio::data_channel::{ChannelKey, ChannelState};
use rtc_audio::ice::Transports;
use rtc_audio::net::{Protocol, Transmit};
use rtc_audio::peer::{Event, Peer, PeerState};
use rtc_audio::send_queue::EncodedFrame;
use rtc_audio::transceiver::{TrackChange, TransceiverId};
use tokio::sync::{Notify, watch};
use tokio::time::sleep_until;

use super::callback::Callback;
use super::clock;
use super::gather::{Gathered, Gatherer};
use super::interfaces::{Addresses, watch_addresses};
use super::net::{TcpEvent, TcpLinks, UdpSockets};
use crate::data_channel::{ChannelHandle, DataChannel};
use crate::ice_candidate::IceCandidate;
use crate::peer_connection::{
    IceCandidateError, IceGatheringState, OnConnectionChange, OnDataChannel, OnIceCandidate,
    OnIceCandidateError, OnIceConnectionChange, OnIceGatheringChange, OnNegotiationNeeded,
    OnSignalingChange, OnTrack, TrackEvent,
};
use crate::peer_connection_factory::IceServer;
use crate::rtp_transceiver::{RtpTransceiver, TransceiverHandle};
use crate::testing;

/// Longest sleep of a driver with nothing to do.
const IDLE: Duration = Duration::from_mins(1);
/// The largest datagram: no path of ours carries more.
const DATAGRAM: usize = 2_048;
/// Errors of servers kept until they can be told.
const MAX_ERRORS: usize = 16;
/// Datagrams taken in one go, so that sending is not starved.
const BATCH: usize = 32;

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
    searching: bool,
    /// Errors of servers from before anybody could be told.
    errors: Vec<IceCandidateError>,
}

/// What the application wants of the driver.
#[derive(Default)]
pub(crate) struct Orders {
    /// Use these servers and candidates.
    configure: Option<IceConfig>,
    /// Bind IPv6 loopback: the remote is there.
    pub(crate) loopback_v6: bool,
    /// Ask the servers again: ICE is being restarted.
    pub(crate) gather_again: bool,
}

/// Servers, and which candidates may be used.
#[derive(Debug, Clone)]
pub(crate) struct IceConfig {
    pub(crate) servers: Vec<IceServer>,
    pub(crate) transports: Transports,
}

/// A peer connection as its handles and its driver share it.
pub(crate) struct Connection {
    state: Mutex<State>,
    wake: Notify,
    closed: AtomicBool,
    pub(crate) callbacks: Callbacks,
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
        let runtime = super::runtime()?;
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
                orders: Orders { configure: Some(config), ..Orders::default() },
            }),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            callbacks: Callbacks::default(),
        });
        runtime.spawn(drive(Arc::clone(&connection), Network::new(sockets, interfaces)));
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

    pub(crate) fn send_audio(&self, id: TransceiverId, frame: &EncodedFrame) {
        let sent = self.state.lock().peer.send_audio(clock::now(), id, frame);
        if sent {
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
    fn forget(&self) {
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
    fn tell_error(&mut self, error: IceCandidateError) {
        if self.told_for.is_some() {
            self.notices.push_back(Notice::CandidateError(error));
        } else if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    fn tell_candidate(&mut self, candidate: &Candidate) {
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

    fn note_searching(&mut self, searching: bool) {
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

    /// Takes what the peer has to send and to say; gives when it wants to be called again.
    fn collect(
        &mut self,
        connection: &Arc<Connection>,
        transmits: &mut Vec<Transmit>,
        notices: &mut VecDeque<Notice>,
    ) -> Option<Instant> {
        transmits.extend(std::iter::from_fn(|| self.peer.poll_transmit()));
        while let Some(event) = self.peer.poll_event() {
            self.on_event(connection, event);
        }
        notices.append(&mut self.notices);
        self.peer.poll_timeout()
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

/// What a driver reads and writes.
struct Network {
    sockets: UdpSockets,
    links: TcpLinks,
    gatherer: Gatherer,
    interfaces: watch::Receiver<Addresses>,
    transports: Transports,
    loopback_v6: bool,
    /// What was gathered and is to be seen to.
    gathered: Vec<Gathered>,
}

impl Network {
    fn new(sockets: UdpSockets, interfaces: watch::Receiver<Addresses>) -> Self {
        Self {
            sockets,
            links: TcpLinks::new(),
            gatherer: Gatherer::new(),
            interfaces,
            transports: Transports::default(),
            loopback_v6: false,
            gathered: Vec::new(),
        }
    }

    fn send(&mut self, transmit: &Transmit) {
        let Transmit { proto, source, destination, contents } = transmit;
        if *proto != Protocol::Udp {
            self.links.send(*source, *destination, contents, clock::now());
        } else if !self.gatherer.send(*source, *destination, contents) {
            self.sockets.send(*source, *destination, contents);
        }
    }

    fn bases(&self) -> Vec<SocketAddr> {
        self.sockets.addresses().collect()
    }

    fn on_orders(&mut self, state: &mut State) {
        if std::mem::take(&mut state.orders.loopback_v6) && !self.loopback_v6 {
            self.loopback_v6 = true;
            self.follow_interfaces(state);
        }
        if std::mem::take(&mut state.orders.gather_again) {
            let bases = self.bases();
            self.gatherer.gather_again(clock::now(), &bases, &mut self.gathered);
            self.on_gathered(state);
        }
        let Some(config) = state.orders.configure.take() else { return };
        if self.transports != config.transports {
            self.transports = config.transports;
            self.follow_interfaces(state);
        }
        let now = clock::now();
        let bases = self.bases();
        self.gatherer.configure(now, &config.servers, &bases, &mut self.gathered);
        self.on_gathered(state);
    }

    /// Brings the sockets in line with the addresses of this host that may be used.
    fn follow_interfaces(&mut self, state: &mut State) {
        let mut ips: Vec<IpAddr> = Vec::new();
        if self.transports != Transports::Relay {
            ips.extend_from_slice(&self.interfaces.borrow_and_update());
            if self.loopback_v6 {
                ips.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
            }
        }
        let gone = self.sockets.keep(&ips);
        for address in &gone {
            log::debug!("{} is gone", address.ip());
            state.peer.remove_local_address(*address);
        }
        self.gatherer.remove_bases(&gone, &mut self.gathered);
        let mut new = Vec::new();
        for ip in ips {
            match self.sockets.add(ip) {
                Ok(Some(address)) => {
                    new.push(address);
                    for candidate in state.peer.add_local_address(address) {
                        state.tell_candidate(&candidate);
                    }
                }
                Ok(None) => {}
                Err(error) => log::debug!("no socket on {ip}: {error}"),
            }
        }
        if !new.is_empty() {
            self.gatherer.gather_again(clock::now(), &new, &mut self.gathered);
        }
        self.on_gathered(state);
    }

    fn on_gathered(&mut self, state: &mut State) {
        for gathered in self.gathered.drain(..) {
            let candidate = match gathered {
                Gathered::Reflexive { mapped, base } => state.peer.add_reflexive(mapped, base),
                Gathered::Relayed { relayed, local } => state.peer.add_relayed(relayed, local),
                Gathered::Gone { relayed } => {
                    state.peer.remove_local_address(relayed);
                    None
                }
                Gathered::Parcel { to, peer, data } => {
                    state.peer.handle_datagram(clock::now(), Protocol::Udp, peer, to, &data);
                    None
                }
                Gathered::Error(error) => {
                    state.tell_error(error);
                    None
                }
            };
            if let Some(candidate) = candidate {
                state.tell_candidate(&candidate);
            }
        }
        let searching = self.gatherer.is_searching();
        if state.searching != searching {
            state.note_searching(searching);
        }
    }

    fn on_datagram(&mut self, state: &mut State, from: SocketAddr, to: SocketAddr, data: &[u8]) {
        if self.gatherer.on_datagram(from, to, data, &mut self.gathered) {
            self.on_gathered(state);
        } else {
            state.peer.handle_datagram(clock::now(), Protocol::Udp, from, to, data);
        }
    }

    fn on_time(&mut self, state: &mut State) {
        let now = clock::now();
        if self.gatherer.deadline().is_some_and(|at| at <= now) {
            let sockets = &self.sockets;
            let send = |base, server, request: &[u8]| sockets.send(base, server, request);
            self.gatherer.on_time(now, send, &mut self.gathered);
            self.on_gathered(state);
        }
        state.peer.handle_timeout(now);
    }
}

/// Runs a connection until it is closed. Priorities: what the application did, then the network,
/// then time.
async fn drive(connection: Arc<Connection>, mut network: Network) {
    let mut buffer = vec![0; DATAGRAM];
    let mut transmits = Vec::new();
    let mut notices = VecDeque::new();
    loop {
        testing::count_turn();
        let (timeout, closed) = {
            let mut state = connection.state.lock();
            network.on_orders(&mut state);
            let timeout = state.collect(&connection, &mut transmits, &mut notices);
            (timeout, state.peer.is_closed())
        };
        for transmit in transmits.drain(..) {
            network.send(&transmit);
        }
        for notice in notices.drain(..) {
            tell(&connection, notice);
        }
        if closed {
            connection.forget();
            return;
        }
        let now = clock::now();
        let deadline = [timeout, network.gatherer.deadline(), Some(now + IDLE)];
        let deadline = deadline.into_iter().flatten().min().unwrap_or(now + IDLE);
        tokio::select! {
            biased;
            () = connection.wake.notified() => {}
            (len, source, local) = network.sockets.receive(&mut buffer) => {
                let mut state = connection.state.lock();
                let datagram = buffer.get(..len).unwrap_or_default();
                network.on_datagram(&mut state, source, local, datagram);
                for _ in 1..BATCH {
                    let Some((len, source, local)) = network.sockets.try_receive(&mut buffer)
                    else {
                        break;
                    };
                    let datagram = buffer.get(..len).unwrap_or_default();
                    network.on_datagram(&mut state, source, local, datagram);
                }
            }
            Some(event) = network.links.receive() => match event {
                TcpEvent::Frame { local, remote, data } => {
                    let now = clock::now();
                    let mut state = connection.state.lock();
                    state.peer.handle_datagram(now, Protocol::Tcp, remote, local, &data);
                }
                TcpEvent::Gone { local, remote } => {
                    network.links.forget(local, remote, clock::now());
                }
            },
            Some(finding) = network.gatherer.next() => {
                let mut state = connection.state.lock();
                let bases = network.bases();
                let now = clock::now();
                network.gatherer.on_finding(now, finding, &bases, &mut network.gathered);
                network.on_gathered(&mut state);
            }
            Ok(()) = network.interfaces.changed() => {
                network.follow_interfaces(&mut connection.state.lock());
            }
            () = sleep_until(deadline.into()) => network.on_time(&mut connection.state.lock()),
        }
    }
}

/// Runs the application's callback for one notice, outside of every lock.
fn tell(connection: &Arc<Connection>, notice: Notice) {
    let callbacks = &connection.callbacks;
    match notice {
        Notice::State(state) => callbacks.connection.call(|f| f(state.into())),
        Notice::Ice => {
            let state = connection.read(|state| state.peer.state());
            callbacks.ice.call(|f| f(crate::peer_connection::ice_state(state)));
        }
        Notice::Signaling(state) => callbacks.signaling.call(|f| f(state)),
        Notice::Gathering(state) => callbacks.gathering.call(|f| f(state)),
        Notice::CandidateError(error) => callbacks.candidate_error.call(|f| f(error)),
        Notice::Candidate(candidate) => callbacks.candidate.call(|f| f(candidate)),
        Notice::NegotiationNeeded => callbacks.negotiation.call(|f| f(0)),
        Notice::Track(event) => callbacks.track.call(|f| f(event)),
        Notice::ChannelAdded(handle) => {
            callbacks.data_channel.call(|f| f(DataChannel { handle }));
        }
        Notice::ChannelState(handle, state) => handle.on_state.call(|f| f(state.into())),
        Notice::Message(handle, binary, data) => {
            handle.on_message.call(|f| f(crate::data_channel::DataBuffer { data: &data, binary }));
        }
        Notice::BytesSent(handle, bytes) => handle.on_buffered.call(|f| f(bytes)),
    }
}
