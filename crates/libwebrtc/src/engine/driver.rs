//! The task that drives a connection: its sockets, its time, its callbacks.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rtc_audio::ice::Transports;
use rtc_audio::net::{Protocol, Transmit};
use rtc_audio::peer::PeerState;
use tokio::sync::watch;
use tokio::task::yield_now;

use super::alarm::Alarm;
use super::clock;
use super::connection::{Connection, Notice, State};
use super::gather::{Gathered, Gatherer};
use super::interfaces::Addresses;
use super::moments::Moments;
use super::tcp::{TcpEvent, TcpLinks};
use super::udp::UdpSockets;
use crate::data_channel::DataChannel;
use crate::testing;

/// Longest sleep of a driver with nothing to do.
const IDLE: Duration = Duration::from_mins(1);
/// The largest datagram: no path of ours carries more.
const DATAGRAM: usize = 2_048;
/// Datagrams taken in one go, so that sending is not starved.
const BATCH: usize = 32;
/// So late may a moment be for what comes before it.
const OVERDUE: Duration = Duration::from_millis(5);
/// After a packet was missing, or many came at once, each wakes the driver for so long: what is asked
/// for again (NACK) must be asked for at once.
const UNSTEADY: Duration = Duration::from_secs(5);

/// What a driver reads and writes.
pub(super) struct Network {
    sockets: UdpSockets,
    links: TcpLinks,
    gatherer: Gatherer,
    interfaces: watch::Receiver<Addresses>,
    /// This host's addresses when they were last looked at.
    host: Addresses,
    transports: Transports,
    loopback_v6: bool,
    /// What was gathered and is to be seen to.
    gathered: Vec<Gathered>,
    /// Until then each datagram wakes the driver.
    unsteady_until: Option<Instant>,
}

impl Network {
    pub(super) fn new(sockets: UdpSockets, interfaces: watch::Receiver<Addresses>) -> Self {
        let host = interfaces.borrow().clone();
        Self {
            host,
            sockets,
            links: TcpLinks::new(),
            gatherer: Gatherer::new(),
            interfaces,
            transports: Transports::default(),
            loopback_v6: false,
            gathered: Vec::new(),
            unsteady_until: None,
        }
    }

    /// While there are moments at which listeners are played to, and nothing is missing of what
    /// they hear, those are soon enough to read what came, and to see to the peer's time.
    fn settle(&mut self, state: &mut State, plays: bool) {
        let now = clock::now();
        if state.peer.misses_packets() {
            self.unsteady_until = Some(now + UNSTEADY);
        }
        let steady = self.unsteady_until.is_none_or(|until| until <= now)
            && state.peer.state() == PeerState::Connected;
        self.sockets.watch(!(plays && steady), &mut state.direct);
        if !self.sockets.is_watched() {
            // The next moment is always soon enough.
            state.wakes_at = Some(now);
        }
    }

    /// Takes what came since the driver last looked.
    fn read(&mut self, state: &mut State, buffer: &mut [u8]) {
        let mut socket = 0;
        for _ in 0..BATCH {
            let Some((len, source, local, at)) = self.sockets.poll(&mut socket, buffer) else {
                return;
            };
            let datagram = buffer.get(..len).unwrap_or_default();
            self.on_datagram(state, source, local, at, datagram);
        }
        // So much comes only with pictures or files, and the rest must not wait.
        self.unsteady_until = Some(clock::now() + UNSTEADY);
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
        if std::mem::take(&mut state.orders.renew_paths) {
            self.links.end(|_| true);
            self.gatherer.renew_relays(&mut self.gathered);
            self.on_gathered(state);
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
        let before = std::mem::replace(&mut self.host, self.interfaces.borrow_and_update().clone());
        if self.transports != Transports::Relay {
            ips.extend_from_slice(&self.host);
            if self.loopback_v6 {
                ips.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
            }
        }
        let gone = self.sockets.keep(&ips);
        for address in &gone {
            log::debug!("{} is gone", address.ip());
            state.peer.remove_local_address(*address);
        }
        self.gatherer.remove_bases(&gone);
        let left: Vec<IpAddr> =
            before.iter().filter(|ip| !self.host.contains(ip)).copied().collect();
        self.gatherer.remove_paths(&left, &mut self.gathered);
        self.links.end(|ip| left.contains(&ip));
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
        state.direct = self.sockets.shared();
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
                Gathered::GivenUp { relayed } => {
                    state.peer.give_up_relayed(relayed);
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

    fn on_datagram(
        &mut self,
        state: &mut State,
        from: SocketAddr,
        to: SocketAddr,
        at: Instant,
        data: &[u8],
    ) {
        if self.gatherer.on_datagram(from, to, data, &mut self.gathered) {
            self.on_gathered(state);
        } else {
            state.peer.handle_datagram(at, Protocol::Udp, from, to, data);
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
        if state.peer.poll_timeout().is_some_and(|at| at <= now) {
            state.peer.handle_timeout(now);
        }
    }
}

/// Runs a connection until it is closed. Priorities: what the application did, then the network,
/// then time.
pub(super) async fn drive(
    connection: Arc<Connection>,
    mut network: Network,
    alarm: &'static Alarm,
) {
    let mut buffer = vec![0; DATAGRAM];
    let mut transmits = Vec::new();
    let mut notices = VecDeque::new();
    let mut moments = Moments::default();
    loop {
        testing::count_turn();
        let (timeout, moment, closed) = {
            let mut state = connection.state.lock();
            network.on_orders(&mut state);
            let timeout = state.collect(&connection, &mut transmits, &mut notices);
            let moment = moments.next(&connection.listeners, clock::now());
            network.settle(&mut state, moment.is_some());
            (timeout, moment, state.peer.is_closed())
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
        // An application that always has something to say must not keep others from being heard.
        if moment.is_some_and(|at| at + OVERDUE <= now) {
            act(&connection, &mut network, &mut moments, &mut buffer);
            yield_now().await;
            continue;
        }
        let timeout = timeout.filter(|_| network.sockets.is_watched());
        let deadline = [timeout, moment, network.gatherer.deadline(), Some(now + IDLE)];
        let deadline = deadline.into_iter().flatten().min().unwrap_or(now + IDLE);
        tokio::select! {
            biased;
            () = connection.wake.notified() => {}
            (len, source, local, at) = network.sockets.receive(&mut buffer) => {
                let mut state = connection.state.lock();
                let datagram = buffer.get(..len).unwrap_or_default();
                network.on_datagram(&mut state, source, local, at, datagram);
                network.read(&mut state, &mut buffer);
            }
            Some(event) = network.links.receive() => match event {
                TcpEvent::Frame { local, remote, data } => {
                    let now = clock::now();
                    let mut state = connection.state.lock();
                    state.peer.handle_datagram(now, Protocol::Tcp, remote, local, &data);
                }
                TcpEvent::Gone { link, local, remote } => {
                    network.links.forget(link, local, remote, clock::now());
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
            () = alarm.sleep_until(deadline) => {
                act(&connection, &mut network, &mut moments, &mut buffer);
            }
        }
    }
}

/// Does what is due at a moment, or at a deadline: takes what came, then plays.
fn act(
    connection: &Arc<Connection>,
    network: &mut Network,
    moments: &mut Moments,
    buffer: &mut [u8],
) {
    {
        let mut state = connection.state.lock();
        network.read(&mut state, buffer);
        network.on_time(&mut state);
        state.deliver(connection);
    }
    moments.play(&connection.listeners, clock::now());
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
