//! Sound over bad networks: two real peers in virtual time over an emulated link, seeded.
//!
//! `cargo test -p rtc-audio --test netem -- --nocapture` prints the table of docs/benchmarks.md.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a test stops at the first surprise and prints its table"
)]

use std::f64::consts::TAU;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rtc_audio::codec::audio_level;
use rtc_audio::net::Protocol;
use rtc_audio::peer::{Event, Peer, PeerState};
use rtc_audio::playout::{PULL, Playout, PlayoutStats, Pulled};
use rtc_audio::sdp::Direction;
use rtc_audio::send_queue::{SendQueue, TICK};
use rtc_audio::transceiver::{MediaType, TransceiverId};
use str0m_netem::{
    GilbertElliot, Input, Netem, NetemConfig, Output, Probability, RandomLoss, WithLen,
};

const RATE: u32 = 48_000;
/// Rate of the listener.
const HEARD: u32 = 16_000;
const TONE_HZ: f64 = 440.0;
const LOUD: f64 = 8_000.0;
/// Length of a row's call.
const CALL: Duration = Duration::from_secs(15);

#[derive(Debug, Clone)]
struct Datagram {
    source: SocketAddr,
    destination: SocketAddr,
    data: Vec<u8>,
}

impl WithLen for Datagram {
    fn len(&self) -> usize {
        self.data.len()
    }
}

/// Two peers, the links between them, a tone from the first and a listener at the second.
struct Call {
    peers: Vec<Peer>,
    /// What comes to the peer of the same index.
    links: [Netem<Datagram>; 2],
    now: Instant,
    id: TransceiverId,
    queue: SendQueue,
    playout: Playout,
    /// Frames of the tone that were sent.
    sent: u64,
    send_at: Instant,
    pull_at: Instant,
    /// When the first packet came and when the first sound was heard.
    first_packet: Option<Instant>,
    first_sound: Option<Instant>,
    heard: Vec<i16>,
}

impl Call {
    /// A call that is up, on a good link.
    fn connected() -> Self {
        #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
        let start = Instant::now();
        let peer = |port: u16| {
            let mut peer = Peer::new(start);
            peer.add_local_address(SocketAddr::from(([10, 0, 0, 1], port)));
            peer
        };
        let mut peers = vec![peer(1_000), peer(2_000)];
        let (track, stream) = (Some("track".to_owned()), Some("stream".to_owned()));
        let id = peers[0].add_transceiver(MediaType::Audio, Direction::SendOnly, track, stream);
        let good = |seed| Netem::new(NetemConfig::new().latency(ms(5)).seed(seed));
        let mut call = Self {
            peers,
            links: [good(1), good(2)],
            now: start,
            id,
            queue: SendQueue::new(RATE, 1).unwrap(),
            playout: Playout::new(HEARD, 1).unwrap(),
            sent: 0,
            send_at: start,
            pull_at: start,
            first_packet: None,
            first_sound: None,
            heard: Vec::new(),
        };
        call.negotiate(false);
        call.run_until("the connection", |call| {
            call.peers.iter().all(|peer| peer.state() == PeerState::Connected)
        });
        call
    }

    fn negotiate(&mut self, ice_restart: bool) {
        let (first, second) = self.peers.split_at_mut(1);
        let (first, second) = (&mut first[0], &mut second[0]);
        let offer = first.create_offer(ice_restart).unwrap();
        first.set_local_offer(&offer).unwrap();
        second.set_remote_offer(&offer).unwrap();
        let answer = second.create_answer().unwrap();
        second.set_local_answer(&answer).unwrap();
        first.set_remote_answer(&answer).unwrap();
    }

    fn set_links(&mut self, link: NetemConfig) {
        self.links = [1, 2].map(|seed| Netem::new(link.seed(seed)));
    }

    /// Lets a millisecond pass.
    fn step(&mut self) {
        self.collect();
        self.now += ms(1);
        for to in 0..2 {
            self.links[to].handle_input(Input::Timeout(self.now));
            while let Some(Output::Packet(d)) = self.links[to].poll_output() {
                self.peers[to].handle_datagram(
                    self.now,
                    Protocol::Udp,
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

    fn collect(&mut self) {
        for from in 0..2 {
            while let Some(transmit) = self.peers[from].poll_transmit() {
                if transmit.proto != Protocol::Udp {
                    continue;
                }
                let (source, destination) = (transmit.source, transmit.destination);
                let data = transmit.contents.to_vec();
                let datagram = Datagram { source, destination, data };
                self.links[1 - from].handle_input(Input::Packet(self.now, datagram));
            }
        }
        while self.peers[0].poll_event().is_some() {}
        while let Some(event) = self.peers[1].poll_event() {
            if let Event::Audio(_, packet) = event {
                self.first_packet.get_or_insert(self.now);
                self.playout.insert(packet);
            }
        }
    }

    fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let limit = self.now + Duration::from_mins(1);
        while !done(self) {
            assert!(self.now < limit, "{what} did not come within a minute of virtual time");
            self.step();
        }
    }

    /// Sends and plays the tone for so long.
    fn talk(&mut self, length: Duration) {
        let end = self.now + length;
        self.send_at = self.send_at.max(self.now);
        // The two sides' clocks have no phase in common.
        self.pull_at = self.pull_at.max(self.now + ms(3));
        while self.now < end {
            self.step();
            if self.send_at <= self.now {
                self.send_at += TICK;
                let samples: Vec<i16> = (0..960)
                    .map(|i| (self.sent + i) as f64 / f64::from(RATE))
                    .map(|t| (f64::sin(t * TONE_HZ * TAU) * LOUD) as i16)
                    .collect();
                self.sent += 960;
                self.queue.push(&samples);
                let frame = self.queue.tick().unwrap().unwrap();
                self.peers[0].send_audio(self.now, self.id, &frame);
            }
            if self.pull_at <= self.now {
                self.pull_at += PULL;
                let mut out = vec![0; self.playout.pull_len()];
                let pulled = self.playout.pull(self.now, &mut out);
                self.hear(pulled, &out);
                while self.playout.pull_ahead(self.now, &mut out) == Pulled::Audio {
                    self.hear(Pulled::Audio, &out);
                }
            }
        }
    }

    fn hear(&mut self, pulled: Pulled, samples: &[i16]) {
        if pulled == Pulled::Audio {
            if audio_level(samples) > -40 {
                self.first_sound.get_or_insert(self.now);
            }
            self.heard.extend_from_slice(samples);
        }
    }

    /// From the first packet's arrival to the first sound.
    fn first_sound(&self) -> Duration {
        let (packet, sound) = (self.first_packet.unwrap(), self.first_sound.unwrap());
        sound - packet
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn percent(percent: f32) -> RandomLoss {
    RandomLoss::new(Probability::new(percent / 100.0))
}

/// Share of the energy at the tone's pitch, over pieces of 100 ms.
fn share(samples: &[i16]) -> f64 {
    let (mut at, mut all) = (0.0, 0.0);
    for piece in samples.chunks_exact(HEARD as usize / 10) {
        let (mut re, mut im) = (0.0, 0.0);
        for (i, sample) in piece.iter().enumerate() {
            let phase = i as f64 * TONE_HZ * TAU / f64::from(HEARD);
            re += f64::from(*sample) * phase.cos();
            im += f64::from(*sample) * phase.sin();
            all += f64::from(*sample) * f64::from(*sample);
        }
        at += 2.0 * (re * re + im * im) / piece.len() as f64;
    }
    if all == 0.0 { 0.0 } else { at / all }
}

/// The largest step between samples, in steps of the tone itself.
fn steepest(samples: &[i16]) -> f64 {
    let step = |pair: &[i16]| (f64::from(pair[0]) - f64::from(pair[1])).abs();
    let most = samples.windows(2).map(step).fold(0.0, f64::max);
    most / (LOUD * TAU * TONE_HZ / f64::from(HEARD))
}

/// What came of one call.
#[derive(Debug)]
struct Row {
    name: &'static str,
    /// Share of the packets that did not come.
    lost: f64,
    /// Share of the samples that were made up.
    concealed: f64,
    /// Mean time from a packet's arrival to its playout, in ms.
    delay: f64,
    share: f64,
    steepest: f64,
    first_sound: Duration,
    /// Samples heard, of those that there was time for.
    heard: f64,
    stats: PlayoutStats,
}

fn measure((name, link, red): Network, unpaced: bool) -> Row {
    let mut call = Call::connected();
    if unpaced {
        call.playout = Playout::unpaced(HEARD, 1).unwrap();
    }
    call.peers[0].allow_red(call.id, red);
    call.set_links(link);
    call.talk(CALL);
    let stats = call.playout.stats();
    let time = (call.now - call.first_sound.unwrap()).as_secs_f64();
    let (sent, heard) = (call.sent / 960, call.heard.len());
    // What is on its way yet is not lost.
    for _ in 0..300 {
        call.step();
    }
    let came = call.playout.stats().buffer.received - call.playout.stats().buffer.duplicates;
    Row {
        name,
        lost: 1.0 - came as f64 / sent as f64,
        concealed: stats.concealed_samples as f64 / stats.samples as f64,
        delay: stats.delay_sum.as_secs_f64() * 1_000.0 / stats.emitted_samples as f64,
        share: share(&call.heard[HEARD as usize / 10..]),
        steepest: steepest(&call.heard),
        first_sound: call.first_sound(),
        heard: heard as f64 / (time * f64::from(HEARD)),
        stats,
    }
}

const JITTER_5_LOSS: &str = "5 % loss, ±30 ms jitter";
const ALONE: &str = "the same without copies (RED)";

/// Name, link, and whether the sender adds copies.
type Network = (&'static str, NetemConfig, bool);

fn networks() -> Vec<Network> {
    let link = NetemConfig::new().latency(ms(40));
    let far = NetemConfig::new().latency(ms(100));
    let bursts = GilbertElliot::new().good_duration(60.0).bad_duration(5.0);
    let jitter = |ms_: u64| NetemConfig::new().latency(ms(ms_ + 10)).jitter(ms(ms_));
    vec![
        ("no loss, no jitter", link, true),
        ("1 % loss", link.loss(percent(1.0)), true),
        ("5 % loss", link.loss(percent(5.0)), true),
        ("10 % loss", link.loss(percent(10.0)), true),
        ("20 % loss", link.loss(percent(20.0)), true),
        ("loss in bursts of 5 packets", link.loss(bursts), true),
        ("±30 ms jitter", jitter(30), true),
        ("±100 ms jitter", jitter(100), true),
        (JITTER_5_LOSS, jitter(30).loss(percent(5.0)), true),
        (ALONE, jitter(30).loss(percent(5.0)), false),
        ("every 5th early, 2 % twice", link.reorder_gap(5).duplicate(Probability::new(0.02)), true),
        ("200 ms round trip, 5 % loss", far.loss(percent(5.0)), true),
    ]
}

#[test]
fn sound_survives_bad_networks() {
    let rows = table(false);
    let clean = &rows[0];
    assert!(clean.delay < 40.0, "{clean:?}");
}

#[test]
fn who_listens_unpaced_hears_as_much_and_sooner() {
    let rows = table(true);
    assert!(rows[0].delay < 15.0, "{:?}", rows[0]);
}

/// Prints and checks what comes of every network.
fn table(unpaced: bool) -> Vec<Row> {
    let networks = networks();
    let (left, right) = networks.split_at(networks.len() / 2);
    let all = |part: &[Network]| -> Vec<Row> {
        part.iter().map(|network| measure(*network, unpaced)).collect()
    };
    let rows: Vec<Row> = std::thread::scope(|scope| {
        let first = scope.spawn(|| all(left));
        let mut second = all(right);
        let mut rows = first.join().unwrap();
        rows.append(&mut second);
        rows
    });
    println!("{}:", if unpaced { "unpaced" } else { "paced" });
    println!("| network | lost | concealed | delay, ms | tone's share | first sound, ms |");
    println!("|---|---|---|---|---|---|");
    for row in &rows {
        println!(
            "| {} | {:.1} % | {:.1} % | {:.0} | {:.4} | {} |",
            row.name,
            row.lost * 100.0,
            row.concealed * 100.0,
            row.delay,
            row.share,
            row.first_sound.as_millis()
        );
    }
    let row = |name: &str| rows.iter().find(|row| row.name == name).unwrap();
    let clean = row("no loss, no jitter");
    assert!(clean.first_sound <= ms(45), "{clean:?}");
    assert_eq!(clean.stats.concealed_samples, 0, "{clean:?}");
    assert!(clean.share > 0.999, "{clean:?}");
    let usual = row(JITTER_5_LOSS);
    assert!(usual.share >= 0.99, "{usual:?}");
    assert!(usual.concealed < 0.08 && usual.delay < 80.0, "{usual:?}");
    assert!(usual.stats.buffer.redundant > 30, "{usual:?}");
    let alone = row(ALONE);
    assert!(alone.share >= 0.95 && alone.concealed < 0.08, "{alone:?}");
    let worst = row("20 % loss");
    assert!(worst.share >= 0.95 && worst.concealed < 0.08, "{worst:?}");
    let unsteady = row("±100 ms jitter");
    assert!(unsteady.share >= 0.99 && unsteady.concealed < 0.01, "{unsteady:?}");
    for row in &rows {
        assert!(row.steepest < 2.0, "a click: {row:?}");
        assert!(row.first_sound <= ms(70), "{row:?}");
        assert!(row.heard > 0.995, "{row:?}");
    }
    rows
}

/// From an ICE restart to the first sound after it.
fn restart(call: &mut Call) -> Duration {
    call.negotiate(true);
    let restarted = call.now;
    call.first_sound = None;
    call.talk(ms(3_000));
    call.first_sound.expect("sound within 3 s") - restarted
}

#[test]
fn sound_is_back_within_two_seconds_of_an_ice_restart() {
    let mut call = Call::connected();
    call.talk(ms(1_000));
    let dead = NetemConfig::new().loss(percent(100.0));
    call.set_links(dead);
    call.run_until("the loss", |call| {
        call.peers.iter().all(|peer| peer.state() == PeerState::Disconnected)
    });
    // What was being played is over.
    call.talk(ms(1_000));
    let link = NetemConfig::new().latency(ms(50));
    call.set_links(link);
    let took = restart(&mut call);
    println!("sound {took:?} after an ICE restart over a path of 100 ms");
    assert!(took < Duration::from_secs(2), "{took:?}");
    let end = &call.heard[call.heard.len() - HEARD as usize..];
    assert!(share(end) > 0.99, "{}", share(end));
}

#[test]
fn an_ice_restart_in_a_call_is_not_heard() {
    let mut call = Call::connected();
    call.talk(ms(1_000));
    let made_up = call.playout.stats().concealed_samples;
    assert!(restart(&mut call) <= ms(20));
    assert_eq!(call.playout.stats().concealed_samples, made_up);
    assert!(share(&call.heard[HEARD as usize / 2..]) > 0.99);
}

#[test]
fn what_is_missing_on_a_short_path_is_asked_for_and_on_a_long_one_not() {
    for (latency, expected) in [(15, true), (90, false)] {
        let mut call = Call::connected();
        // A sender that adds no copies: with them there is nothing to ask for.
        call.peers[0].allow_red(call.id, false);
        call.set_links(NetemConfig::new().latency(ms(latency)));
        // The round trip is known from the path's checks by then.
        call.talk(ms(8_000));
        call.set_links(NetemConfig::new().latency(ms(latency)).loss(percent(5.0)));
        call.talk(ms(5_000));
        let receiver = &call.peers[1];
        let nacks = receiver.ingress(receiver.transceivers()[0].id()).nacks;
        assert_eq!(nacks > 0, expected, "{nacks} with a path of {latency} ms");
    }
}
