//! One peer connection without I/O.
//!
//! Feed it datagrams and time; after every call drain [`Peer::poll_transmit`] and
//! [`Peer::poll_event`] to `None`, then wait for [`Peer::poll_timeout`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use str0m::media::Mid;
use str0m::net::{Protocol, Receive, Transmit};
use str0m::rtp::{Extension, ExtensionMap};
use str0m::{Candidate, Event as RtcEvent, IceConnectionState, Input, Output, Rtc, RtcConfig};
use thiserror::Error;
use tracing::{debug, warn};

use crate::data_channel::{Channel, ChannelKey, ChannelState, SCTP_BUFFER};
use crate::ice::Transports;
use crate::jitter_buffer::Packet;
use crate::keyframe::KeyFrame;
use crate::negotiation::Negotiation;
pub use crate::negotiation::SignalingState;
use crate::stats::{Egress, Ingress, Stats};
use crate::transceiver::{Routes, Transceiver, TransceiverId};

/// Silence after which a path counts as lost. Checks are answered every 3 s at the latest, and
/// repeated sooner when they are not; str0m itself gives a path up only after half a minute.
const SILENT_AFTER: Duration = Duration::from_secs(6);
/// How long a lost path may come back before it counts as failed: str0m's ICE has no such state.
/// livekit-server fails a participant after 15 s of silence: an ICE restart must come before that.
const FAILED_AFTER: Duration = Duration::from_secs(6);
/// The same when the address is gone that we sent from: the remote goes on sending there, and only
/// an ICE restart tells it better.
const FAILED_AFTER_MOVE: Duration = Duration::from_millis(500);
/// The same when the remote has said goodbye (DTLS `close_notify`): signalling, which is slower at
/// times, tells whether the call is over or to be made anew.
const FAILED_AFTER_GOODBYE: Duration = Duration::from_secs(2);
/// How long the first connection may take.
pub(crate) const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// Datagrams kept that came before their path was found good: a flight of a handshake.
const EARLY: usize = 4;

/// Pace of connectivity checks while there is no path: the least that RFC 8445 §14.2 allows.
const ICE_PACING: Duration = Duration::from_millis(5);

/// Why a call on a peer failed.
#[derive(Debug, Error)]
pub enum PeerError {
    /// The description or candidate is not acceptable.
    #[error("invalid description: {0}")]
    Sdp(String),
    /// The call does not fit the state.
    #[error("{0}")]
    State(&'static str),
    /// The engine broke.
    #[error("engine: {0}")]
    Engine(String),
}

/// State of the whole connection (W3C `RTCPeerConnectionState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    /// Nothing was negotiated.
    New,
    /// ICE or DTLS is on its way.
    Connecting,
    /// Media and data flow.
    Connected,
    /// The path is lost, perhaps for a moment.
    Disconnected,
    /// The path did not come back, or the remote closed.
    Failed,
    /// Closed by us.
    Closed,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The connection changed its state.
    State(PeerState),
    /// The remote opened a channel.
    ChannelAdded(ChannelKey),
    /// A channel changed its state.
    ChannelState(ChannelKey, ChannelState),
    /// A message came.
    Message {
        /// On this channel.
        channel: ChannelKey,
        /// Binary or text.
        binary: bool,
        /// Its bytes.
        data: Vec<u8>,
    },
    /// So many bytes were handed to SCTP since the last such event.
    BytesSent(ChannelKey, u64),
    /// Audio came.
    Audio(TransceiverId, Packet),
    /// A key frame of a watched video is whole.
    KeyFrame(TransceiverId, KeyFrame),
}

/// A DTLS datagram from an address that ICE has not found good yet.
#[derive(Debug)]
struct Early {
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    data: Vec<u8>,
}

/// First bytes of DTLS records (RFC 7983 §7).
fn is_dtls(data: &[u8]) -> bool {
    data.first().is_some_and(|byte| (20..64).contains(byte))
}

/// See the [module](self).
#[derive(Debug)]
pub struct Peer {
    pub(crate) rtc: Rtc,
    pub(crate) transceivers: Vec<Transceiver>,
    pub(crate) channels: Vec<Channel>,
    pub(crate) negotiation: Negotiation,
    pub(crate) routes: Routes,
    pub(crate) closed: bool,
    /// Data channels that the remote opened, and the bytes of their labels.
    pub(crate) opened: usize,
    pub(crate) opened_labels: usize,
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) remote_candidates: Vec<Candidate>,
    pub(crate) transports: Transports,
    next_id: u32,
    state: PeerState,
    pub(crate) ice: IceConnectionState,
    pub(crate) fail_at: Option<Instant>,
    /// When the remote was last heard.
    heard: Instant,
    /// Where media and data were last sent from.
    pub(crate) sent_from: Option<SocketAddr>,
    /// The address that we sent from is gone: only an ICE restart mends that.
    pub(crate) moved: bool,
    /// The remote has closed the connection.
    pub(crate) goodbye: bool,
    transmits: VecDeque<Transmit>,
    early: VecDeque<Early>,
    pub(crate) events: VecDeque<Event>,
    timeout: Option<Instant>,
    pub(crate) now: Instant,
    stats: Stats,
    datagrams: Datagrams,
}

/// Datagrams of a peer, of all protocols together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Datagrams {
    /// Handed out to be sent.
    pub sent: u64,
    /// Taken; what was no packet of this connection is not counted.
    pub received: u64,
}

/// RTP header extensions that are of use here. Transport-wide sequence numbers are not: audio keeps its
/// bitrate, so the feedback on them (every 50 ms to 100 ms, both ways) would steer nothing.
fn extensions() -> ExtensionMap {
    let mut map = ExtensionMap::empty();
    map.set(1, Extension::AudioLevel);
    map.set(4, Extension::RtpMid);
    map.set(10, Extension::RtpStreamId);
    map.set(11, Extension::RepairedRtpStreamId);
    map.set(13, Extension::VideoOrientation);
    map
}

impl Peer {
    /// Makes a peer whose time starts at `now`.
    pub fn new(now: Instant) -> Self {
        let rtc = RtcConfig::new()
            .set_rtp_mode(true)
            .clear_codecs()
            .enable_opus(true, true)
            .enable_vp8(true)
            .enable_vp9(true)
            .enable_h264(true)
            .enable_av1(true)
            .set_extension_map(extensions())
            .set_stats_interval(Some(Duration::from_secs(1)))
            .set_sctp_max_buffered_amount(SCTP_BUFFER)
            .build(now);
        let mut peer = Self {
            rtc,
            transceivers: Vec::new(),
            channels: Vec::new(),
            negotiation: Negotiation::default(),
            routes: Routes::new(),
            closed: false,
            opened: 0,
            opened_labels: 0,
            candidates: Vec::new(),
            remote_candidates: Vec::new(),
            transports: Transports::default(),
            next_id: 0,
            state: PeerState::New,
            ice: IceConnectionState::New,
            fail_at: None,
            heard: now,
            sent_from: None,
            moved: false,
            goodbye: false,
            transmits: VecDeque::new(),
            early: VecDeque::new(),
            events: VecDeque::new(),
            timeout: None,
            now,
            stats: Stats::default(),
            datagrams: Datagrams::default(),
        };
        peer.handle_timeout(now);
        peer
    }

    // ------------------------------------------------------------------ I/O

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = self.now.max(now);
        if self.fail_at.is_some_and(|at| at <= now) {
            self.fail_at = None;
            if self.state != PeerState::Connected {
                self.set_state(PeerState::Failed);
            }
        }
        if self.state == PeerState::Connected && now >= self.heard + SILENT_AFTER {
            self.on_lost(FAILED_AFTER);
        }
        if let Err(error) = self.rtc.handle_input(Input::Timeout(now)) {
            warn!(%error, "timeout");
        }
        self.drain();
        self.retry_early(now);
        self.flush_channels();
    }

    /// Takes a datagram (for TCP: one frame of RFC 4571). `destination` is the address of the
    /// local candidate it came to. What is no packet of this connection is dropped.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
    ) {
        // What came before the peer was last called is told of now.
        let now = self.now.max(now);
        self.now = now;
        if self.receive(now, protocol, source, destination, data) {
            self.retry_early(now);
            self.flush_channels();
        } else if is_dtls(data) && self.early.len() < EARLY {
            let data = data.to_vec();
            self.early.push_back(Early { protocol, source, destination, data });
        }
    }

    /// Says whether the datagram was one of this connection.
    fn receive(
        &mut self,
        now: Instant,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
    ) -> bool {
        let Ok(receive) = Receive::new(protocol, source, destination, data) else {
            return false;
        };
        let input = Input::Receive(now, receive);
        if !self.rtc.accepts(&input) {
            return false;
        }
        if let Err(error) = self.rtc.handle_input(input) {
            debug!(%error, "datagram refused");
        }
        self.datagrams.received += 1;
        self.heard = now;
        if self.state == PeerState::Disconnected && !self.moved && self.has_path() {
            self.on_path();
        }
        self.drain();
        true
    }

    /// The remote may find the path, and begin DTLS on it, before we do. What came too early is
    /// tried again then: DTLS itself would repeat it only after a second (RFC 6347 §4.2.4.1).
    fn retry_early(&mut self, now: Instant) {
        for _ in 0..self.early.len() {
            let Some(early) = self.early.pop_front() else { return };
            let Early { protocol, source, destination, data } = early;
            if !self.receive(now, protocol, source, destination, &data) {
                let data = Early { protocol, source, destination, data };
                self.early.push_back(data);
            }
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        let transmit = self.transmits.pop_front();
        self.datagrams.sent += u64::from(transmit.is_some());
        transmit
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether [`Self::poll_event`] has one.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Whether a packet of audio is missing that may still come in time.
    pub fn misses_packets(&self) -> bool {
        self.transceivers.iter().any(|transceiver| transceiver.arrivals.misses_any(self.now))
    }

    /// When [`Self::handle_timeout`] is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        // str0m takes one step of ICE a time-out and asks for one every 50 ms, which the first
        // sound would wait for.
        let checking = self.ice == IceConnectionState::Checking && self.fail_at.is_some();
        let check = checking.then(|| self.now + ICE_PACING);
        let silence = (self.state == PeerState::Connected).then(|| self.heard + SILENT_AFTER);
        [self.timeout.map(|at| check.map_or(at, |check| at.min(check))), self.fail_at, silence]
            .into_iter()
            .flatten()
            .min()
    }

    /// Says goodbye; drain [`Self::poll_transmit`] once more, then drop the peer.
    pub fn close(&mut self) {
        if self.closed {
            return;
        }
        self.closed = true;
        self.fail_at = None;
        if let Err(error) = self.rtc.close() {
            debug!(%error, "close");
        }
        self.drain();
        for index in 0..self.channels.len() {
            self.set_channel_state(index, ChannelState::Closed);
        }
        self.set_state(PeerState::Closed);
    }

    /// Says whether [`Self::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    // ---------------------------------------------------------- transceivers

    pub(crate) fn new_id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    /// All transceivers, in the order they were made.
    pub fn transceivers(&self) -> &[Transceiver] {
        &self.transceivers
    }

    /// One transceiver.
    pub fn transceiver(&self, id: TransceiverId) -> Option<&Transceiver> {
        self.transceivers.iter().find(|t| t.id == id)
    }

    pub(crate) fn by_mid(&self, mid: Mid) -> Option<usize> {
        self.transceivers.iter().position(|t| t.mid == Some(mid))
    }

    // ----------------------------------------------------------------- state

    /// State of the whole connection.
    pub fn state(&self) -> PeerState {
        self.state
    }

    /// State of ICE.
    pub fn ice_state(&self) -> IceConnectionState {
        self.ice
    }

    /// Figures, at most a second old.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Datagrams in and out.
    pub fn datagrams(&self) -> Datagrams {
        self.datagrams
    }

    /// Figures of what a transceiver receives.
    pub fn ingress(&self, id: TransceiverId) -> Ingress {
        let mid = self.transceiver(id).and_then(|t| t.mid);
        mid.map(|mid| self.stats.ingress(mid)).unwrap_or_default()
    }

    /// Figures of what a transceiver sends.
    pub fn egress(&self, id: TransceiverId) -> Egress {
        let mid = self.transceiver(id).and_then(|t| t.mid);
        mid.map(|mid| self.stats.egress(mid)).unwrap_or_default()
    }

    fn set_state(&mut self, state: PeerState) {
        if self.state == state || self.state == PeerState::Closed {
            return;
        }
        self.state = state;
        self.events.push_back(Event::State(state));
    }

    fn on_ice(&mut self, ice: IceConnectionState) {
        self.ice = ice;
        match ice {
            IceConnectionState::New => {}
            IceConnectionState::Checking => {
                if self.fail_at.is_none() {
                    self.fail_at = Some(self.now + CONNECT_WITHIN);
                }
                self.set_state(PeerState::Connecting);
            }
            IceConnectionState::Connected | IceConnectionState::Completed => self.on_path(),
            IceConnectionState::Disconnected => {
                // While a path is looked for, that there is none yet shortens nothing.
                let known = self.fail_at;
                self.on_lost(FAILED_AFTER);
                self.fail_at = known.or(self.fail_at);
            }
        }
    }

    fn has_path(&self) -> bool {
        matches!(self.ice, IceConnectionState::Connected | IceConnectionState::Completed)
    }

    /// The path is lost, and fails after so long. What is lost already does not fail any later.
    fn on_lost(&mut self, fail_after: Duration) {
        if self.state == PeerState::Failed {
            return;
        }
        let at = self.now + fail_after;
        self.fail_at = Some(match self.fail_at {
            Some(known) if self.state == PeerState::Disconnected => known.min(at),
            _ => at,
        });
        self.set_state(PeerState::Disconnected);
    }

    /// An address that candidates of ours had is gone.
    pub(crate) fn on_address_gone(&mut self, address: SocketAddr) {
        if self.sent_from == Some(address)
            && matches!(self.state, PeerState::Connected | PeerState::Disconnected)
        {
            self.moved = true;
            self.on_lost(FAILED_AFTER_MOVE);
        }
    }

    fn on_path(&mut self) {
        // str0m's own states change for other reasons, too: what counts is that it is heard.
        let silent = self.now >= self.heard + SILENT_AFTER;
        if self.moved || self.goodbye || (self.state == PeerState::Disconnected && silent) {
            return;
        }
        if self.rtc.is_connected() {
            self.fail_at = None;
            self.set_state(PeerState::Connected);
        } else {
            self.set_state(PeerState::Connecting);
        }
    }

    // ---------------------------------------------------------------- output

    /// Takes all output of str0m: it must be empty before the next change.
    pub(crate) fn drain(&mut self) {
        loop {
            match self.rtc.poll_output() {
                Ok(Output::Timeout(at)) => {
                    self.timeout = Some(at);
                    break;
                }
                Ok(Output::Transmit(transmit)) => {
                    // RFC 7983 §7: what begins with 0..4 is a check.
                    if transmit.contents.first().is_some_and(|byte| *byte >= 4) {
                        self.sent_from = Some(transmit.source);
                    }
                    self.transmits.push_back(transmit);
                }
                Ok(Output::Event(event)) => self.on_event(event),
                Err(error) => {
                    warn!(%error, "connection broke");
                    if !self.rtc.is_alive() {
                        self.timeout = None;
                        self.set_state(PeerState::Failed);
                    }
                    break;
                }
            }
        }
    }

    fn on_event(&mut self, event: RtcEvent) {
        match event {
            RtcEvent::IceConnectionStateChange(state) => self.on_ice(state),
            RtcEvent::Connected => {
                self.early.clear();
                self.on_path();
            }
            RtcEvent::RtpPacket(packet) => self.on_rtp(&packet),
            RtcEvent::ChannelOpen(id, label) => self.on_channel_open(id, label),
            RtcEvent::ChannelData(data) => {
                let channel = self.channels.iter_mut().find(|c| c.id == Some(data.id));
                let Some(channel) = channel else { return };
                channel.counters.messages_received += 1;
                channel.counters.bytes_received += data.data.len() as u64;
                let channel = channel.key;
                self.events.push_back(Event::Message {
                    channel,
                    binary: data.binary,
                    data: data.data,
                });
            }
            RtcEvent::ChannelClose(id) => {
                let index = self.channels.iter().position(|c| c.id == Some(id));
                if let Some(index) = index {
                    self.set_channel_state(index, ChannelState::Closed);
                    if let Some(channel) = self.channels.get_mut(index) {
                        channel.id = None;
                    }
                }
            }
            RtcEvent::Closed if !self.closed => {
                self.goodbye = true;
                self.on_lost(FAILED_AFTER_GOODBYE);
            }
            RtcEvent::PeerStats(stats) => self.stats.on_peer(&stats),
            RtcEvent::MediaIngressStats(stats) => self.stats.on_ingress(&stats),
            RtcEvent::MediaEgressStats(stats) => self.stats.on_egress(&stats),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
