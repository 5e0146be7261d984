//! One allocation on one TURN server (RFC 8656), without I/O.
//!
//! [`turn_client_proto`] holds the protocol's state: authentication, refreshing of the allocation,
//! of permissions and of channels. Here are its bounds: how long a server may take, what waits for
//! a permission, and which errors end an attempt at once.
//!
//! Feed whole messages and time; after every call drain [`Relay::poll_transmit`] and
//! [`Relay::poll_event`] to `None`, then wait for [`Relay::poll_timeout`].

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tracing::debug;
use turn_client_proto::api::{
    Transmit, TransmitBuild, TurnClientApi, TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet,
};
use turn_client_proto::client::TurnClient;
use turn_client_proto::tcp::TurnClientTcp;
use turn_client_proto::types::message::ALLOCATE;
use turn_client_proto::types::stun::attribute::ErrorCode;
use turn_client_proto::types::stun::message::{Message, MessageClass};
use turn_client_proto::types::{AddressFamily, Instant as Time, TransportType, TurnCredentials};
use turn_client_proto::udp::TurnClientUdp;

/// How long a server may take to give an address.
const ALLOCATE_WITHIN: Duration = Duration::from_secs(10);
/// Datagrams that wait for permissions: a flight of checks.
const WAITING: usize = 32;
/// Peers that have a channel at most. Further ones are reached by longer messages.
const CHANNELS: usize = 8;
/// Peers remembered to have been refused.
const REFUSED: usize = 32;
/// How long a refused peer is not asked for again.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// Steps of the protocol taken in one go.
const STEPS: usize = 16;
/// Least time between two time-outs.
const TICK: Duration = Duration::from_millis(5);
/// Unauthorized: the first one carries the realm (RFC 8489 §9.2.4).
const UNAUTHORIZED: u16 = 401;
const STALE_NONCE: u16 = 438;
/// No answer (W3C WebRTC §4.8.1).
pub const UNREACHABLE: u16 = 701;
/// The longest head of a message: of STUN (RFC 8489 §5).
const STUN_HEAD: usize = 20;

/// Where and as whom to allocate.
#[derive(Clone)]
pub struct RelayConfig {
    /// Our end of the path to the server.
    pub local: SocketAddr,
    /// The server.
    pub server: SocketAddr,
    /// Whether that path is a stream (TCP, TLS), where messages carry padding.
    pub stream: bool,
    /// Whether an IPv6 address is wanted (RFC 6156).
    pub ipv6: bool,
    /// For the long-term credentials.
    pub username: String,
    /// For the long-term credentials.
    pub password: String,
}

impl std::fmt::Debug for RelayConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayConfig")
            .field("local", &self.local)
            .field("server", &self.server)
            .field("stream", &self.stream)
            .field("ipv6", &self.ipv6)
            .finish_non_exhaustive()
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayEvent {
    /// There is a relayed address.
    Allocated(SocketAddr),
    /// There is none, and this is over.
    Failed {
        /// The STUN error, or [`UNREACHABLE`].
        code: u16,
        /// What the server said, or what happened.
        text: String,
    },
    /// There was an address, and this is over.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Allocating { until: Instant, challenged: bool },
    Allocated,
    Over,
}

/// See the [module](self).
pub struct Relay {
    client: TurnClient,
    config: RelayConfig,
    origin: Instant,
    phase: Phase,
    closing: bool,
    waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    refused: VecDeque<(IpAddr, Instant)>,
    channels: Vec<SocketAddr>,
    transmits: VecDeque<Vec<u8>>,
    events: VecDeque<RelayEvent>,
    timeout: Instant,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay")
            .field("config", &self.config)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl Relay {
    /// Begins to allocate.
    pub fn new(now: Instant, config: RelayConfig) -> Self {
        let mut turn = TurnConfig::new(TurnCredentials::new(&config.username, &config.password));
        if config.ipv6 {
            turn.set_address_family(AddressFamily::IPV6);
        }
        let (local, server) = (config.local, config.server);
        let client = if config.stream {
            TurnClient::Tcp(TurnClientTcp::allocate(local, server, turn))
        } else {
            TurnClient::Udp(TurnClientUdp::allocate(local, server, turn))
        };
        let mut relay = Self {
            client,
            config,
            origin: now,
            phase: Phase::Allocating { until: now + ALLOCATE_WITHIN, challenged: false },
            closing: false,
            waiting: VecDeque::new(),
            refused: VecDeque::new(),
            channels: Vec::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            timeout: now,
        };
        relay.step(now);
        relay
    }

    /// The protocol's clock: from the origin, so that virtual time stays virtual.
    fn time(&self, now: Instant) -> Time {
        Time::from_nanos(now.saturating_duration_since(self.origin).as_nanos() as i64)
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.phase {
            Phase::Allocating { until, .. } if until <= now => {
                self.fail(UNREACHABLE, "the TURN server does not answer");
            }
            _ => self.step(now),
        }
    }

    /// Takes one message of the server, without padding. Gives what it relays, and from whom.
    pub fn handle_message(&mut self, now: Instant, data: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
        if self.phase == Phase::Over {
            return None;
        }
        if let Some((code, text)) = self.refusal(data) {
            self.fail(code, &text);
            return None;
        }
        let transport = self.client.transport();
        let message = Transmit::new(data, transport, self.config.server, self.config.local);
        let time = self.time(now);
        let relayed = match self.client.recv(message, time) {
            // A channel, or a peer that permission was asked for: the server lets no other through.
            TurnRecvRet::PeerData(data) => Some((data.peer, data.data().to_vec())),
            TurnRecvRet::Handled | TurnRecvRet::Ignored(_) | TurnRecvRet::PeerIcmp { .. } => None,
        };
        if relayed.is_none() {
            self.step(now);
        }
        relayed
    }

    /// An error that no further attempt would change. The protocol takes such errors only when
    /// they are signed, which a server that does not know the user cannot do.
    fn refusal(&mut self, data: &[u8]) -> Option<(u16, String)> {
        let Phase::Allocating { until, challenged } = self.phase else { return None };
        let message = Message::from_bytes(data).ok()?;
        if !message.has_method(ALLOCATE) || message.class() != MessageClass::Error {
            return None;
        }
        let error = message.attribute::<ErrorCode>().ok()?;
        match error.code() {
            STALE_NONCE => None,
            UNAUTHORIZED if !challenged => {
                self.phase = Phase::Allocating { until, challenged: true };
                None
            }
            code => Some((code, error.reason().to_owned())),
        }
    }

    /// Sends to a peer, once it is permitted. Dropped when too much waits.
    pub fn send(&mut self, now: Instant, peer: SocketAddr, data: &[u8]) {
        if self.phase != Phase::Allocated || peer.is_ipv6() != self.config.ipv6 {
            return;
        }
        if !self.client.have_permission(TransportType::Udp, peer.ip()) {
            self.ask_permission(now, peer.ip());
            if self.waiting.len() < WAITING {
                self.waiting.push_back((peer, data.to_vec()));
            }
            return;
        }
        // A check may be the only one that this peer ever gets; what comes after is worth a channel
        // (RFC 7983 §7: STUN begins with 0..4).
        let is_check = data.first().is_some_and(|byte| *byte < 4);
        if !is_check && self.channels.len() < CHANNELS && !self.channels.contains(&peer) {
            self.channels.push(peer);
            let time = self.time(now);
            if let Err(error) = self.client.bind_channel(TransportType::Udp, peer, time) {
                debug!(%error, "no channel");
            }
            self.step(now);
        }
        self.relay(now, peer, data);
    }

    fn relay(&mut self, now: Instant, peer: SocketAddr, data: &[u8]) {
        let time = self.time(now);
        match self.client.send_to(TransportType::Udp, peer, data, time) {
            Ok(Some(message)) => {
                let message = TransmitBuild::build(message).data;
                self.push(message);
            }
            Ok(None) => {}
            Err(error) => debug!(%error, "not relayed"),
        }
    }

    /// RFC 8656 §12.5: over a stream, channel data is padded to four bytes.
    fn push(&mut self, mut message: Vec<u8>) {
        if self.config.stream {
            message.resize(message.len().next_multiple_of(4), 0);
        }
        self.transmits.push_back(message);
    }

    fn ask_permission(&mut self, now: Instant, ip: IpAddr) {
        self.refused.retain(|(_, until)| now < *until);
        if self.refused.iter().any(|(refused, _)| *refused == ip) {
            return;
        }
        let time = self.time(now);
        // An error says that it was asked for already, or that the allocation is gone, which an
        // event tells.
        if self.client.create_permission(TransportType::Udp, ip, time).is_ok() {
            self.step(now);
        }
    }

    /// Gives the address back. Drain [`Self::poll_transmit`] and go on until
    /// [`RelayEvent::Gone`], for a while.
    pub fn close(&mut self, now: Instant) {
        if self.closing || self.phase == Phase::Over {
            return;
        }
        self.closing = true;
        let time = self.time(now);
        if self.phase == Phase::Allocated && self.client.delete(time).is_ok() {
            self.step(now);
        } else {
            self.end();
        }
    }

    fn step(&mut self, now: Instant) {
        if self.phase == Phase::Over {
            return;
        }
        let time = self.time(now);
        self.timeout = now + TICK;
        for _ in 0..STEPS {
            let polled = self.client.poll(time);
            let mut progress = false;
            while let Some(message) = self.client.poll_transmit(time) {
                progress = true;
                self.push(message.data.to_vec());
            }
            while let Some(event) = self.client.poll_event() {
                progress = true;
                self.on_event(now, &event);
            }
            match polled {
                TurnPollRet::Closed => {
                    match self.phase {
                        Phase::Allocating { .. } => {
                            self.fail(UNREACHABLE, "the TURN server gave no address");
                        }
                        Phase::Allocated => self.end(),
                        Phase::Over => {}
                    }
                    return;
                }
                TurnPollRet::WaitUntil(at) if at <= time && progress => {}
                TurnPollRet::WaitUntil(at) => {
                    let wait = at.saturating_duration_since(time).max(TICK);
                    self.timeout = now + wait;
                    break;
                }
                // Allocations of TCP are never asked for.
                TurnPollRet::AllocateTcpSocket { .. } | TurnPollRet::TcpClose { .. } => {}
            }
        }
        if let Phase::Allocating { until, .. } = self.phase {
            self.timeout = self.timeout.min(until);
        }
    }

    fn on_event(&mut self, now: Instant, event: &TurnEvent) {
        match *event {
            TurnEvent::AllocationCreated(_, address) => {
                if matches!(self.phase, Phase::Allocating { .. }) {
                    self.phase = Phase::Allocated;
                    self.events.push_back(RelayEvent::Allocated(address));
                }
            }
            TurnEvent::AllocationCreateFailed(_) => {
                if matches!(self.phase, Phase::Allocating { .. }) {
                    self.fail(UNREACHABLE, "the TURN server gave no address");
                }
            }
            TurnEvent::PermissionCreated(_, ip) => {
                for (peer, data) in std::mem::take(&mut self.waiting) {
                    if peer.ip() == ip {
                        self.relay(now, peer, &data);
                    } else {
                        self.waiting.push_back((peer, data));
                    }
                }
            }
            TurnEvent::PermissionCreateFailed(_, ip) => {
                self.waiting.retain(|(peer, _)| peer.ip() != ip);
                if self.refused.len() < REFUSED {
                    self.refused.push_back((ip, now + REFUSED_FOR));
                }
            }
            // Without a channel, longer messages do.
            TurnEvent::ChannelCreated(..)
            | TurnEvent::ChannelCreateFailed(..)
            | TurnEvent::TcpConnected(_)
            | TurnEvent::TcpConnectFailed(_) => {}
        }
    }

    fn fail(&mut self, code: u16, text: &str) {
        self.phase = Phase::Over;
        self.events.push_back(RelayEvent::Failed { code, text: text.to_owned() });
    }

    fn end(&mut self) {
        self.phase = Phase::Over;
        self.events.push_back(RelayEvent::Gone);
    }

    /// The next message to the server.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called at the latest; never when this is over.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.phase != Phase::Over).then_some(self.timeout)
    }
}

/// How long the first message of a stream is, without and with its padding. `Ok(None)` when its
/// head is not complete, an error when it is none.
pub fn frame(data: &[u8]) -> Result<Option<(usize, usize)>, NoFrame> {
    let &[first, _, high, low, ..] = data else { return Ok(None) };
    let body = usize::from(u16::from_be_bytes([high, low]));
    // RFC 8489 §5: STUN begins with two zero bits, RFC 8656 §12: channel data with 0x40 to 0x4F.
    match first >> 6 {
        0 if body.is_multiple_of(4) => Ok(Some((STUN_HEAD + body, STUN_HEAD + body))),
        1 => Ok(Some((4 + body, (4 + body).next_multiple_of(4)))),
        _ => Err(NoFrame),
    }
}

/// A stream that carries something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoFrame;

#[cfg(test)]
mod tests;
