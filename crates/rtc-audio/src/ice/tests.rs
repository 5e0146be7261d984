use std::time::{Duration, Instant};

use super::*;
use crate::data_channel::{ChannelInit, ChannelState};
use crate::peer::{Event, PeerState};

const STEP: Duration = Duration::from_millis(1);

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Two peers, and a network of 1 ms between those addresses that are up.
struct Call {
    peers: Vec<Peer>,
    on_the_way: Vec<(usize, SocketAddr, SocketAddr, Vec<u8>)>,
    /// Addresses that no datagram leaves or reaches.
    down: Vec<SocketAddr>,
    /// What the peers sent from.
    sources: Vec<SocketAddr>,
    /// Messages that came to each.
    messages: [usize; 2],
    now: Instant,
}

/// The same channel on both sides, without a word about it on the wire.
fn channel() -> ChannelInit {
    ChannelInit { negotiated: Some(1), ..ChannelInit::default() }
}

impl Call {
    fn new() -> Self {
        #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
        let now = Instant::now();
        Self {
            peers: vec![Peer::new(now), Peer::new(now)],
            on_the_way: Vec::new(),
            down: Vec::new(),
            sources: Vec::new(),
            messages: [0, 0],
            now,
        }
    }

    fn negotiate(&mut self) -> (String, String) {
        for peer in &mut self.peers {
            peer.create_channel(channel()).unwrap();
        }
        let offer = self.peers[0].create_offer(false).unwrap();
        self.peers[0].set_local_offer(&offer).unwrap();
        self.peers[1].set_remote_offer(&offer).unwrap();
        let answer = self.peers[1].create_answer().unwrap();
        self.peers[1].set_local_answer(&answer).unwrap();
        self.peers[0].set_remote_answer(&answer).unwrap();
        (offer, answer)
    }

    fn restart(&mut self) {
        let offer = self.peers[0].create_offer(true).unwrap();
        self.peers[0].set_local_offer(&offer).unwrap();
        self.peers[1].set_remote_offer(&offer).unwrap();
        let answer = self.peers[1].create_answer().unwrap();
        self.peers[1].set_local_answer(&answer).unwrap();
        self.peers[0].set_remote_answer(&answer).unwrap();
    }

    fn step(&mut self) {
        self.now += STEP;
        for (to, source, destination, data) in std::mem::take(&mut self.on_the_way) {
            self.peers[to].handle_datagram(self.now, Protocol::Udp, source, destination, &data);
        }
        for from in 0..2 {
            let peer = &mut self.peers[from];
            if peer.poll_timeout().is_some_and(|at| at <= self.now) {
                peer.handle_timeout(self.now);
            }
            while let Some(event) = peer.poll_event() {
                self.messages[from] += usize::from(matches!(event, Event::Message { .. }));
            }
            while let Some(t) = self.peers[from].poll_transmit() {
                let down = [t.source, t.destination].iter().any(|end| self.down.contains(end));
                if t.proto == Protocol::Udp && !down {
                    self.sources.push(t.source);
                    let data = t.contents.to_vec();
                    self.on_the_way.push((1 - from, t.source, t.destination, data));
                }
            }
        }
    }

    fn run(&mut self, limit: Duration, what: &str, done: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            assert!(self.now < end, "{what} did not come within {limit:?}");
            self.step();
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.run(time + STEP, "the end", |call| call.now >= end);
    }

    /// Both send a message, and both hear it soon.
    fn talk(&mut self, within: Duration) {
        let before = self.messages;
        for peer in &mut self.peers {
            let key = peer.channels[0].key;
            peer.send_message(key, true, b"hello").unwrap();
        }
        self.run(within, "a message both ways", |call| {
            call.messages[0] > before[0] && call.messages[1] > before[1]
        });
    }

    fn connect(&mut self) {
        let both = |call: &Self| call.peers.iter().all(|p| p.state() == PeerState::Connected);
        self.run(Duration::from_secs(5), "the connection", both);
        let open = |call: &Self| {
            call.peers.iter().all(|peer| peer.channels[0].state == ChannelState::Open)
        };
        self.run(Duration::from_secs(5), "the channel", open);
    }
}

#[test]
fn a_peer_that_loses_the_address_it_sent_from_fails_at_once_and_moves_by_an_ice_restart() {
    let mut call = Call::new();
    let (first, second) = (address("10.0.0.1:1000"), address("10.0.0.2:1000"));
    call.peers[0].add_local_address(first);
    call.peers[1].add_local_address(address("10.0.0.9:9000"));
    call.negotiate();
    call.connect();

    let told = call.peers[0].add_local_address(second);
    assert_eq!(told.len(), 2);
    for candidate in told {
        call.peers[1].add_remote_candidate(&candidate.to_sdp_string()).unwrap();
    }
    call.pass(Duration::from_secs(2));
    call.talk(Duration::from_millis(100));

    call.down.push(first);
    call.peers[0].remove_local_address(first);
    assert!(call.peers[0].local_candidates().all(|c| c.local().ip() == second.ip()));
    call.sources.clear();
    call.run(Duration::from_millis(600), "the failure", |call| {
        call.peers[0].state() == PeerState::Failed
    });
    call.restart();
    call.connect();
    call.talk(Duration::from_secs(2));
    assert!(!call.sources.contains(&first));
}

#[test]
fn a_peer_that_loses_an_address_it_did_not_use_stays_connected() {
    let mut call = Call::new();
    let (first, second) = (address("10.0.0.1:1000"), address("10.0.0.2:1000"));
    call.peers[0].add_local_address(first);
    call.peers[0].add_local_address(second);
    call.peers[1].add_local_address(address("10.0.0.9:9000"));
    call.negotiate();
    call.connect();
    call.talk(Duration::from_secs(1));
    let used = call.peers[0].sent_from.unwrap();
    let unused = if used == first { second } else { first };
    call.down.push(unused);
    call.peers[0].remove_local_address(unused);
    call.pass(Duration::from_secs(40));
    assert_eq!(call.peers[0].state(), PeerState::Connected);
    call.talk(Duration::from_millis(100));
}

/// Two peers with a path, and what the first has to say about an outage of it.
fn outage(lasts: Duration) -> (Call, Vec<(Duration, PeerState)>) {
    let mut call = Call::new();
    let host = address("10.0.0.1:1000");
    call.peers[0].add_local_address(host);
    call.peers[1].add_local_address(address("10.0.0.9:9000"));
    call.negotiate();
    call.connect();
    call.pass(Duration::from_secs(10));
    call.down.push(host);
    let start = call.now;
    let mut states = vec![];
    while call.now < start + Duration::from_secs(40) {
        if call.now >= start + lasts {
            call.down.clear();
        }
        call.step();
        let state = call.peers[0].state();
        if states.last().map_or(PeerState::Connected, |(_, last)| *last) != state {
            states.push((call.now - start, state));
        }
    }
    (call, states)
}

#[test]
fn a_path_that_comes_back_within_nine_seconds_is_used_again_without_a_restart() {
    let (mut call, states) = outage(Duration::from_secs(8));
    let [(lost, PeerState::Disconnected), (back, PeerState::Connected)] = states.as_slice() else {
        panic!("{states:?}");
    };
    assert!((3..=6).contains(&lost.as_secs()), "{lost:?}");
    assert!((8..=11).contains(&back.as_secs()), "{back:?}");
    call.talk(Duration::from_secs(4));
}

#[test]
fn a_path_that_stays_away_fails_in_twelve_seconds() {
    let (_, states) = outage(Duration::from_secs(100));
    let [(_, PeerState::Disconnected), (failed, PeerState::Failed)] = states.as_slice() else {
        panic!("{states:?}");
    };
    assert!((9..=12).contains(&failed.as_secs()), "{failed:?}");
}

#[test]
fn a_hidden_host_is_told_nowhere_and_connects() {
    let mut call = Call::new();
    let (host, mapped) = (address("10.0.0.1:1000"), address("203.0.113.9:4000"));
    call.peers[0].set_transports(Transports::NoHost);
    assert!(call.peers[0].add_local_address(host).is_empty());
    let told = call.peers[0].add_reflexive(mapped, host).unwrap();
    assert!(!told.to_sdp_string().contains("10.0.0.1"));
    assert!(call.peers[0].add_reflexive(mapped, host).is_none(), "it is known");
    let other = address("10.0.0.9:9000");
    call.peers[1].add_local_address(other);
    let (offer, _) = call.negotiate();
    let told: Vec<&str> = offer.lines().filter(|line| line.contains("candidate:")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("203.0.113.9 4000 typ srflx") && !offer.contains("10.0.0.1"));
    assert_eq!(call.peers[0].local_candidates().count(), 1);
    call.connect();
    call.talk(Duration::from_secs(1));
}

#[test]
fn a_relay_only_peer_uses_nothing_but_its_relay() {
    let mut call = Call::new();
    let (host, relayed) = (address("10.0.0.1:1000"), address("203.0.113.1:50000"));
    let peer = &mut call.peers[0];
    peer.add_local_address(host);
    peer.set_transports(Transports::Relay);
    assert!(peer.add_local_address(address("10.0.0.2:1000")).is_empty());
    assert!(peer.add_reflexive(address("203.0.113.9:4000"), host).is_none());
    assert!(peer.add_relayed(relayed, host).is_some());
    call.peers[1].add_local_address(address("10.0.0.9:9000"));
    let (offer, _) = call.negotiate();
    let told: Vec<&str> = offer.lines().filter(|line| line.contains("candidate:")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("203.0.113.1 50000 typ relay") && !offer.contains("10.0.0."));
    call.connect();
    call.talk(Duration::from_secs(1));
    assert!(call.sources.iter().all(|s| [relayed, address("10.0.0.9:9000")].contains(s)));

    // The allocation goes: there is no path any more, and the peer says so.
    call.down.push(relayed);
    call.peers[0].remove_local_address(relayed);
    call.run(Duration::from_mins(1), "the end", |call| call.peers[0].state() == PeerState::Failed);
}

#[test]
fn ipv6_loopback_is_seen_in_candidates_alone() {
    let line = "candidate:1 1 udp 2113929471 ::1 9999 typ host";
    assert!(names_loopback_v6(line));
    assert!(names_loopback_v6(&format!("v=0\r\na={line}\r\n")));
    assert!(!names_loopback_v6("candidate:1 1 udp 2113929471 127.0.0.1 9999 typ host"));
    assert!(!names_loopback_v6("c=IN IP6 ::1"));
}
