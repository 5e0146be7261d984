//! One peer connection: the peer behind a lock, its objects, and the task that drives it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rtc_audio::data_channel::{ChannelKey, ChannelState};
use rtc_audio::net::{Protocol, Transmit};
use rtc_audio::peer::{Event, Peer, PeerState};
use rtc_audio::send_queue::EncodedFrame;
use rtc_audio::transceiver::{TrackChange, TransceiverId};
use tokio::sync::Notify;
use tokio::time::sleep_until;

use super::callback::Callback;
use super::clock;
use super::net::{TcpEvent, TcpLinks, UdpSockets};
use crate::data_channel::{ChannelHandle, DataChannel};
use crate::ice_candidate::IceCandidate;
use crate::peer_connection::{
    OnConnectionChange, OnDataChannel, OnIceCandidate, OnIceCandidateError, OnIceConnectionChange,
    OnIceGatheringChange, OnNegotiationNeeded, OnSignalingChange, OnTrack, TrackEvent,
};
use crate::rtp_transceiver::{RtpTransceiver, TransceiverHandle};

/// Longest sleep of a driver with nothing to do.
const IDLE: Duration = Duration::from_mins(1);
/// The largest datagram: no path of ours carries more.
const DATAGRAM: usize = 2_048;
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
    Gathered,
    Candidate(IceCandidate),
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
    pub(crate) gathered: bool,
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
    /// Binds the sockets and starts the driver.
    pub(crate) fn start() -> Result<Arc<Self>, crate::RtcError> {
        let runtime = super::runtime()?;
        let guard = runtime.enter();
        let sockets = UdpSockets::bind().map_err(|error| crate::RtcError {
            error_type: crate::RtcErrorType::Internal,
            message: format!("no UDP socket can be bound: {error}"),
        })?;
        let mut peer = Peer::new(clock::now());
        for address in sockets.addresses() {
            peer.add_local_address(address);
        }
        let connection = Arc::new(Self {
            state: Mutex::new(State {
                peer,
                transceivers: Vec::new(),
                channels: Vec::new(),
                notices: VecDeque::new(),
                gathered: false,
            }),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            callbacks: Callbacks::default(),
        });
        runtime.spawn(drive(Arc::clone(&connection), sockets));
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

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl State {
    pub(crate) fn transceiver(&self, id: TransceiverId) -> Option<&Arc<TransceiverHandle>> {
        self.transceivers.iter().find(|t| t.id == id)
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

/// Runs a connection until it is closed. Priorities: what the application did, then the network,
/// then time.
async fn drive(connection: Arc<Connection>, mut sockets: UdpSockets) {
    let mut links = TcpLinks::new();
    let mut buffer = vec![0; DATAGRAM];
    let mut transmits = Vec::new();
    let mut notices = VecDeque::new();
    loop {
        let (timeout, closed) = {
            let mut state = connection.state.lock();
            let timeout = state.collect(&connection, &mut transmits, &mut notices);
            (timeout, state.peer.is_closed())
        };
        for transmit in transmits.drain(..) {
            if transmit.proto == Protocol::Udp {
                sockets.send(transmit.source, transmit.destination, &transmit.contents);
            } else {
                let now = clock::now();
                links.send(transmit.source, transmit.destination, &transmit.contents, now);
            }
        }
        for notice in notices.drain(..) {
            tell(&connection, notice);
        }
        if closed {
            return;
        }
        let now = clock::now();
        let deadline = timeout.map_or(now + IDLE, |at| at.min(now + IDLE));
        tokio::select! {
            biased;
            () = connection.wake.notified() => {}
            (len, source, local) = sockets.receive(&mut buffer) => {
                let now = clock::now();
                let mut state = connection.state.lock();
                let datagram = buffer.get(..len).unwrap_or_default();
                state.peer.handle_datagram(now, Protocol::Udp, source, local, datagram);
                for _ in 1..BATCH {
                    let Some((len, source, local)) = sockets.try_receive(&mut buffer) else {
                        break;
                    };
                    let datagram = buffer.get(..len).unwrap_or_default();
                    state.peer.handle_datagram(now, Protocol::Udp, source, local, datagram);
                }
            }
            Some(event) = links.receive() => match event {
                TcpEvent::Frame { local, remote, data } => {
                    let now = clock::now();
                    let mut state = connection.state.lock();
                    state.peer.handle_datagram(now, Protocol::Tcp, remote, local, &data);
                }
                TcpEvent::Gone { local, remote } => links.forget(local, remote, clock::now()),
            },
            () = sleep_until(deadline.into()) => {
                connection.state.lock().peer.handle_timeout(clock::now());
            }
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
        Notice::Gathered => {
            callbacks.gathering.call(|f| f(crate::peer_connection::IceGatheringState::Complete));
        }
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
