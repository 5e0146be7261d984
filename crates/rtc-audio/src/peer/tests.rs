use std::f64::consts::TAU;

use proptest::prelude::*;
use str0m_netem::{
    Input as LinkInput, Netem, NetemConfig, Output as LinkOutput, Probability, RandomLoss, WithLen,
};

use str0m::net::TcpType;

use super::*;
use crate::data_channel::ChannelInit;
use crate::ice::parse_candidate;
use crate::playout::{PULL, Playout, Pulled};
use crate::sdp::Direction;
use crate::send_queue::{SendQueue, TICK};
use crate::transceiver::MediaType;

const RATE: u32 = 48_000;

fn base() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
    Instant::now()
}

#[derive(Debug, Clone)]
struct Datagram {
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    data: Vec<u8>,
}

impl WithLen for Datagram {
    fn len(&self) -> usize {
        self.data.len()
    }
}

/// Two peers and the links between them, in virtual time.
struct Call {
    peers: Vec<Peer>,
    /// What comes to the peer of the same index.
    links: [Netem<Datagram>; 2],
    events: [Vec<Event>; 2],
    start: Instant,
    now: Instant,
}

impl Call {
    fn new(link: impl Fn(u64) -> NetemConfig) -> Self {
        let start = base();
        let peer = |port: u16| {
            let mut peer = Peer::new(start);
            peer.add_local_address(SocketAddr::from(([10, 0, 0, 1], port)));
            peer
        };
        Self {
            peers: vec![peer(1_000), peer(2_000)],
            links: [Netem::new(link(1)), Netem::new(link(2))],
            events: [Vec::new(), Vec::new()],
            start,
            now: start,
        }
    }

    fn clean() -> Self {
        Self::new(|seed| NetemConfig::new().latency(Duration::from_millis(10)).seed(seed))
    }

    fn negotiate(&mut self, from: usize, ice_restart: bool) {
        let to = 1 - from;
        let offer = self.peers[from].create_offer(ice_restart).unwrap();
        self.peers[from].set_local_offer(&offer).unwrap();
        self.peers[to].set_remote_offer(&offer).unwrap();
        let answer = self.peers[to].create_answer().unwrap();
        self.peers[to].set_local_answer(&answer).unwrap();
        self.peers[from].set_remote_answer(&answer).unwrap();
    }

    fn collect(&mut self) {
        for from in 0..2 {
            while let Some(transmit) = self.peers[from].poll_transmit() {
                let datagram = Datagram {
                    protocol: transmit.proto,
                    source: transmit.source,
                    destination: transmit.destination,
                    data: transmit.contents.to_vec(),
                };
                // There is no TCP here: only UDP gets through.
                if datagram.protocol == Protocol::Udp {
                    self.links[1 - from].handle_input(LinkInput::Packet(self.now, datagram));
                }
            }
            while let Some(event) = self.peers[from].poll_event() {
                self.events[from].push(event);
            }
        }
    }

    /// Lets a millisecond pass.
    fn step(&mut self) {
        self.collect();
        self.now += Duration::from_millis(1);
        for to in 0..2 {
            self.links[to].handle_input(LinkInput::Timeout(self.now));
            while let Some(output) = self.links[to].poll_output() {
                let LinkOutput::Packet(d) = output else { break };
                self.peers[to].handle_datagram(
                    self.now,
                    d.protocol,
                    d.source,
                    d.destination,
                    &d.data,
                );
            }
            if self.peers[to].poll_timeout().is_some_and(|at| at <= self.now) {
                self.peers[to].handle_timeout(self.now);
            }
        }
        self.collect();
    }

    fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let limit = self.now + Duration::from_secs(40);
        while !done(self) {
            assert!(self.now < limit, "{what} did not come within 40 s of virtual time");
            self.step();
        }
    }

    fn connect(&mut self) {
        self.run_until("the connection", |call| {
            call.peers.iter().all(|peer| peer.state() == PeerState::Connected)
        });
    }

    fn state(&self, peer: usize) -> PeerState {
        self.peers[peer].state()
    }

    /// Sends a tone from the first peer for `seconds`; gives what the second hears at 16 kHz.
    fn tone(&mut self, id: TransceiverId, seconds: u64) -> Vec<i16> {
        let mut queue = SendQueue::new(RATE, 1).unwrap();
        let mut playout = Playout::new(16_000, 1).unwrap();
        let mut out = vec![0; playout.pull_len()];
        let mut heard = Vec::new();
        let (mut send_at, mut pull_at) = (self.now, self.now);
        let end = self.now + Duration::from_secs(seconds);
        let mut sample = 0_u64;
        while self.now < end {
            if send_at <= self.now {
                send_at += TICK;
                let samples: Vec<i16> = (0..960)
                    .map(|i| (sample + i) as f64 / f64::from(RATE))
                    .map(|t| (f64::sin(t * 440.0 * TAU) * 8_000.0) as i16)
                    .collect();
                sample += 960;
                queue.push(&samples);
                let frame = queue.tick().unwrap().unwrap();
                assert!(self.peers[0].send_audio(self.now, id, &frame));
            }
            self.step();
            for event in self.events[1].drain(..) {
                if let Event::Audio(_, packet) = event {
                    playout.insert(packet);
                }
            }
            if pull_at <= self.now {
                pull_at += PULL;
                if playout.pull(self.now, &mut out) == Pulled::Audio {
                    heard.extend_from_slice(&out);
                }
            }
        }
        heard
    }
}

/// Share of the energy at 440 Hz, over pieces of 100 ms: concealment may shift the phase.
fn share(samples: &[i16]) -> f64 {
    let (mut at, mut all) = (0.0, 0.0);
    for piece in samples.chunks_exact(1_600) {
        let (mut re, mut im) = (0.0, 0.0);
        for (i, sample) in piece.iter().enumerate() {
            let phase = i as f64 * 440.0 * TAU / 16_000.0;
            re += f64::from(*sample) * phase.cos();
            im += f64::from(*sample) * phase.sin();
            all += f64::from(*sample) * f64::from(*sample);
        }
        at += 2.0 * (re * re + im * im) / piece.len() as f64;
    }
    if all == 0.0 { 0.0 } else { at / all }
}

fn send_only(peer: &mut Peer) -> TransceiverId {
    let (track, stream) = (Some("track".to_owned()), Some("stream".to_owned()));
    peer.add_transceiver(MediaType::Audio, Direction::SendOnly, track, stream)
}

#[test]
fn a_tone_survives_a_clean_link() {
    let mut call = Call::clean();
    let id = send_only(&mut call.peers[0]);
    call.negotiate(0, false);
    call.connect();
    let heard = call.tone(id, 2);
    assert!(heard.len() > 16_000 * 18 / 10, "{}", heard.len());
    assert!(share(&heard) > 0.97, "{}", share(&heard));
}

#[test]
fn a_tone_survives_loss_and_jitter() {
    let mut call = Call::new(|seed| {
        NetemConfig::new()
            .latency(Duration::from_millis(40))
            .jitter(Duration::from_millis(30))
            .loss(RandomLoss::new(Probability::new(0.05)))
            .seed(seed)
    });
    let id = send_only(&mut call.peers[0]);
    call.negotiate(0, false);
    call.connect();
    let heard = call.tone(id, 10);
    assert!(heard.len() > 16_000 * 97 / 10, "frames come steadily: {}", heard.len());
    assert!(share(&heard) > 0.99, "{}", share(&heard));
}

#[test]
fn sequence_numbers_may_wrap_on_a_bad_link() {
    let mut call = Call::new(|seed| {
        NetemConfig::new()
            .latency(Duration::from_millis(40))
            .jitter(Duration::from_millis(30))
            .loss(RandomLoss::new(Probability::new(0.05)))
            .seed(seed)
    });
    let id = send_only(&mut call.peers[0]);
    call.negotiate(0, false);
    call.connect();
    call.peers[0].transceivers[0].sequence = (1 << 16) - 100;
    let heard = call.tone(id, 4);
    assert!(heard.len() > 16_000 * 37 / 10, "frames come steadily: {}", heard.len());
    assert!(share(&heard) > 0.98, "{}", share(&heard));
}

#[test]
fn remote_streams_are_told_and_withdrawn() {
    let mut call = Call::clean();
    let id = send_only(&mut call.peers[0]);
    call.negotiate(0, false);
    let receiving = call.peers[1].transceivers()[0].clone();
    assert_eq!(receiving.remote_streams(), ["stream"]);
    call.peers[0].remove_track(id);
    call.negotiate(0, false);
    assert!(!call.peers[1].transceivers()[0].remote_sends());
}

#[test]
fn an_answer_without_a_track_of_its_own_sends_nothing() {
    let mut call = Call::clean();
    call.peers[0].add_track(MediaType::Audio, "ours".to_owned(), None);
    call.negotiate(0, false);
    assert!(!call.peers[0].transceivers()[0].remote_sends());
    // The other adds its own later, on the same section.
    call.peers[1].add_track(MediaType::Audio, "theirs".to_owned(), None);
    call.negotiate(1, false);
    assert_eq!(call.peers[1].transceivers().len(), 1);
    assert!(call.peers[0].transceivers()[0].remote_sends());
}

#[test]
fn an_inactive_answer_can_be_revived() {
    let mut call = Call::clean();
    let receive =
        |peer: &mut Peer| peer.add_transceiver(MediaType::Audio, Direction::RecvOnly, None, None);
    receive(&mut call.peers[0]);
    // The remote has nothing to send yet: it answers `inactive`.
    call.negotiate(0, false);
    assert_eq!(call.peers[1].transceivers()[0].current_direction(), Some(Direction::Inactive));
    let id = call.peers[1].add_track(MediaType::Audio, "late".to_owned(), Some("s".to_owned()));
    call.negotiate(1, false);
    call.connect();
    let mut queue = SendQueue::new(RATE, 1).unwrap();
    queue.push(&[1_000; 960]);
    let frame = queue.tick().unwrap().unwrap();
    let now = call.now;
    assert!(call.peers[1].send_audio(now, id, &frame));
    call.run_until("audio", |call| {
        call.events[0].iter().any(|event| matches!(event, Event::Audio(..)))
    });
}

#[test]
fn messages_of_any_size_arrive_in_order() {
    let mut call = Call::clean();
    let init = ChannelInit { label: "data".to_owned(), ..ChannelInit::default() };
    let key = call.peers[0].create_channel(init).unwrap();
    call.negotiate(0, false);
    call.run_until("the channel", |call| {
        call.peers[0].channel(key).is_some_and(|c| c.state() == ChannelState::Open)
    });
    let sizes = [1, 15_000, 60_000, 200_000, 3, 250_000, 250_000];
    for size in sizes {
        call.peers[0].send_message(key, true, &vec![7; size]).unwrap();
    }
    let arrived = |call: &Call| -> Vec<usize> {
        call.events[1]
            .iter()
            .filter_map(|event| match event {
                Event::Message { data, .. } => Some(data.len()),
                _ => None,
            })
            .collect()
    };
    call.run_until("all messages", |call| arrived(call).len() == sizes.len());
    assert_eq!(arrived(&call), sizes);
    let told: u64 = call.events[0]
        .iter()
        .filter_map(|event| match event {
            Event::BytesSent(_, bytes) => Some(*bytes),
            _ => None,
        })
        .sum();
    assert_eq!(told, sizes.iter().sum::<usize>() as u64);
}

#[test]
fn negotiated_channels_open_on_both_sides() {
    let mut call = Call::clean();
    let init =
        ChannelInit { label: "agreed".to_owned(), negotiated: Some(100), ..ChannelInit::default() };
    let ours = call.peers[0].create_channel(init.clone()).unwrap();
    let theirs = call.peers[1].create_channel(init.clone()).unwrap();
    assert!(call.peers[0].create_channel(init).is_err(), "the id is in use");
    call.negotiate(0, false);
    call.run_until("both", |call| {
        let open = |peer: &Peer, key| {
            peer.channel(key).is_some_and(|c: &Channel| c.state() == ChannelState::Open)
        };
        open(&call.peers[0], ours) && open(&call.peers[1], theirs)
    });
    assert_eq!(call.peers[0].channels().len(), 1, "no channel that nobody made");
    assert_eq!(call.peers[1].channels().len(), 1);
}

#[test]
fn an_offer_that_is_taken_back_leaves_nothing_behind() {
    let mut call = Call::clean();
    let init = ChannelInit { negotiated: Some(100), ..ChannelInit::default() };
    call.peers[0].create_channel(init).unwrap();
    send_only(&mut call.peers[0]);
    let first = call.peers[0].create_offer(false).unwrap();
    call.peers[0].set_local_offer(&first).unwrap();
    call.peers[0].rollback();
    assert_eq!(call.peers[0].signaling_state(), SignalingState::Stable);
    call.negotiate(0, false);
    call.connect();
    assert_eq!(call.peers[1].transceivers().len(), 1);
}

#[test]
fn setting_the_old_answer_again_makes_room_for_an_ice_restart() {
    let mut call = Call::clean();
    send_only(&mut call.peers[0]);
    call.negotiate(0, false);
    call.connect();
    let answer = call.peers[0].remote_description().unwrap().0.to_owned();
    let offer = call.peers[0].create_offer(false).unwrap();
    call.peers[0].set_local_offer(&offer).unwrap();
    call.peers[0].set_remote_answer(&answer).unwrap();
    assert_eq!(call.peers[0].signaling_state(), SignalingState::Stable);
    call.negotiate(0, true);
    call.connect();
}

#[test]
fn a_lost_path_fails_and_an_ice_restart_brings_it_back() {
    let mut call = Call::clean();
    let id = send_only(&mut call.peers[0]);
    call.negotiate(0, false);
    call.connect();
    let dead = || NetemConfig::new().loss(RandomLoss::new(Probability::new(1.0)));
    call.links = [Netem::new(dead()), Netem::new(dead())];
    call.run_until("the loss", |call| call.state(0) == PeerState::Disconnected);
    call.run_until("the failure", |call| call.state(0) == PeerState::Failed);
    let alive = || NetemConfig::new().latency(Duration::from_millis(5));
    call.links = [Netem::new(alive()), Netem::new(alive())];
    call.negotiate(0, true);
    call.connect();
    assert!(share(&call.tone(id, 1)) > 0.9);
}

#[test]
fn an_ice_restart_has_its_time_whatever_was_left_of_the_old_path_s() {
    let mut call = Call::clean();
    let relayed = SocketAddr::from(([10, 0, 0, 9], 9_000));
    let local = SocketAddr::from(([10, 0, 0, 1], 1_000));
    call.peers[0].set_transports(Transports::Relay);
    call.peers[0].add_relayed(relayed, local).unwrap();
    send_only(&mut call.peers[0]);
    call.negotiate(0, false);
    call.connect();
    let dead = || NetemConfig::new().loss(RandomLoss::new(Probability::new(1.0)));
    call.links = [Netem::new(dead()), Netem::new(dead())];
    call.run_until("the loss", |call| call.state(0) == PeerState::Disconnected);
    let almost = call.now + Duration::from_millis(5_500);
    call.run_until("almost the failure", |call| call.now >= almost);
    call.negotiate(0, true);
    // Meanwhile the old path's address goes, and with it the last pair that could be tried.
    call.peers[0].give_up_relayed(relayed);
    let later = call.now + Duration::from_secs(10);
    call.run_until("ten seconds", |call| call.now >= later);
    assert_ne!(call.state(0), PeerState::Failed);
    let alive = || NetemConfig::new().latency(Duration::from_millis(5));
    call.links = [Netem::new(alive()), Netem::new(alive())];
    call.peers[0].add_relayed(SocketAddr::from(([10, 0, 0, 9], 9_001)), local).unwrap();
    call.run_until("the path", |call| call.state(0) == PeerState::Connected);
}

#[test]
fn nothing_is_queued_after_either_side_s_goodbye() {
    for closing in 0..2 {
        let mut call = Call::clean();
        let id = send_only(&mut call.peers[0]);
        call.negotiate(0, false);
        call.connect();
        let mut queue = SendQueue::new(48_000, 1).unwrap();
        let frame = queue.tick().unwrap().unwrap();
        let now = call.now;
        assert!(call.peers[0].send_audio(now, id, &frame));
        call.peers[closing].close();
        call.run_until("the goodbye", |call| call.state(0) != PeerState::Connected);
        let now = call.now;
        assert!(!call.peers[0].send_audio(now, id, &frame));
    }
}

#[test]
fn the_data_channels_that_a_remote_opens_are_bounded() {
    let mut call = Call::clean();
    let open = |call: &mut Call, label: usize| {
        let init = ChannelInit { label: "x".repeat(label), ..ChannelInit::default() };
        call.peers[0].create_channel(init)
    };
    assert!(open(&mut call, 1_201).is_err(), "it would not fit into a packet");
    let anchor = ChannelInit { negotiated: Some(1_000), ..ChannelInit::default() };
    assert!(call.peers[0].create_channel(anchor).is_err(), "the engine's own");
    open(&mut call, 1).unwrap();
    call.negotiate(0, false);
    call.connect();
    for _ in 0..60 {
        open(&mut call, 1_200).unwrap();
    }
    let later = call.now + Duration::from_secs(5);
    call.run_until("five seconds", |call| call.now >= later);
    assert_eq!(call.peers[1].channels().len(), 1 + 54, "64 KB of labels");
    open(&mut call, 1).unwrap();
    call.run_until("one more", |call| call.peers[1].channels().len() == 56);
}

#[test]
fn closing_tells_the_other_side() {
    let mut call = Call::clean();
    send_only(&mut call.peers[0]);
    call.negotiate(0, false);
    call.connect();
    call.peers[0].close();
    assert_eq!(call.state(0), PeerState::Closed);
    let before = call.now;
    call.run_until("the goodbye", |call| call.state(1) == PeerState::Disconnected);
    assert!(call.now - before < Duration::from_secs(1), "not by time-out");
    // Signalling has its say before the connection is made anew.
    call.run_until("the failure", |call| call.state(1) == PeerState::Failed);
    let after = call.now - before;
    assert!(after > Duration::from_secs(2) && after < Duration::from_secs(3), "{after:?}");
    assert!(call.now > call.start);
}

#[test]
fn an_offer_with_every_section_livekit_wants() {
    let mut peer = Peer::new(base());
    for media in [MediaType::Audio, MediaType::Video] {
        for _ in 0..3 {
            peer.add_transceiver(media, Direction::RecvOnly, None, None);
        }
    }
    peer.create_channel(ChannelInit::default()).unwrap();
    let offer = peer.create_offer(false).unwrap();
    let sections = crate::sdp::sections(&offer);
    assert_eq!(sections.len(), 7);
    assert!(sections.iter().all(|section| !section.rejected));
    assert!(offer.contains("a=ice-ufrag") && offer.contains("useinbandfec=1"));
}

#[test]
fn candidates_are_read_and_hostile_ones_refused() {
    let host = "candidate:1 1 udp 2130706431 127.0.0.1 7882 typ host";
    assert!(parse_candidate(host).unwrap().is_some());
    let tcp = "candidate:1 1 tcp 1671430143 127.0.0.1 7881 typ host tcptype passive";
    let candidate = parse_candidate(tcp).unwrap().unwrap();
    assert_eq!((candidate.proto(), candidate.tcptype()), (Protocol::Tcp, Some(TcpType::Passive)));
    assert!(parse_candidate("").unwrap().is_none(), "end of candidates");
    let mdns = "candidate:1 1 udp 1 0d5a.local 9 typ host";
    assert!(parse_candidate(mdns).unwrap().is_none());
    assert!(parse_candidate("candidate:1 1 udp").is_err());
    assert!(parse_candidate("candidate:x y z w 1.2.3.4 99999999 typ what").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_candidate_makes_it_panic(text in "(candidate:)?[ -~]{0,80}") {
        let mut peer = Peer::new(base());
        let _ = peer.add_remote_candidate(&text);
    }

    /// A real offer with a piece cut out, doubled or overwritten.
    #[test]
    fn no_offer_makes_it_panic(at in 0.0..1.0_f64, len in 0_usize..60, with in "[ -~\r\n]{0,40}") {
        let mut from = Peer::new(base());
        send_only(&mut from);
        from.create_channel(ChannelInit::default()).unwrap();
        let offer = from.create_offer(false).unwrap();
        let start = (offer.len() as f64 * at) as usize;
        let end = (start + len).min(offer.len());
        let hostile = format!("{}{with}{}", &offer[..start], &offer[end..]);
        let mut peer = Peer::new(base());
        if peer.set_remote_offer(&hostile).is_ok() {
            let answer = peer.create_answer().unwrap();
            let _ = peer.set_local_answer(&answer);
            from.set_local_offer(&offer).unwrap();
            let _ = from.set_remote_answer(&answer);
        }
    }

    #[test]
    fn no_datagram_makes_it_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut peer = Peer::new(base());
        let address = SocketAddr::from(([10, 0, 0, 1], 1_000));
        peer.add_local_address(address);
        peer.handle_datagram(base(), Protocol::Udp, address, address, &data);
    }
}

#[test]
fn dtls_before_its_path_is_kept_in_bounds_and_other_strays_are_not() {
    let mut peer = Peer::new(base());
    let address = SocketAddr::from(([10, 0, 0, 1], 1_000));
    peer.add_local_address(address);
    let stranger = SocketAddr::from(([10, 0, 0, 2], 2_000));
    let mut strays = |first_byte: u8| {
        for _ in 0..10 {
            let data = [first_byte; 60];
            peer.handle_datagram(base(), Protocol::Udp, stranger, address, &data);
        }
        peer.early.len()
    };
    assert_eq!(strays(128), 0, "RTP");
    assert_eq!(strays(22), EARLY, "a handshake");
}

/// The handshake must not wait for DTLS to repeat itself, whichever side finds the path first.
#[test]
fn connecting_takes_a_few_round_trips() {
    for (there, back) in [(5, 40), (40, 5), (20, 20)] {
        let delay = |seed| if seed == 1 { there } else { back };
        let link = |seed| NetemConfig::new().latency(Duration::from_millis(delay(seed))).seed(seed);
        let mut call = Call::new(link);
        send_only(&mut call.peers[0]);
        call.negotiate(0, false);
        call.connect();
        let took = call.now - call.start;
        assert!(took < Duration::from_millis(230), "{took:?} for {there} and {back} ms");
    }
}
