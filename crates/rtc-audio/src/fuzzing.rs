//! What a fuzzer feeds: one function a target, which no input may make panic or hang.
//!
//! `fuzz/` runs them under libFuzzer; the tests beside this module replay the seeds of
//! `fixtures/fuzz` and thousands of mutations of them, the same ones every time.

#![allow(clippy::missing_panics_doc, reason = "a panic is what a fuzzer looks for")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use str0m::net::Protocol;

use crate::codec::packet_duration;
use crate::data_channel::{Channel, ChannelInit};
use crate::ice::parse_candidate;
use crate::ice_server::ServerUrl;
use crate::jitter_buffer::{Origin, Packet};
use crate::peer::{Event, Peer, PeerState};
use crate::playout::{PULL, Playout, Pulled};
use crate::sdp::{Direction, sections};
use crate::stun::Binding;
use crate::transceiver::MediaType;
use crate::turn::{Relay, RelayConfig, frame};

/// What an input is fed to.
pub type Target = fn(&[u8]);

/// The targets by name, as their folders of seeds and their programs in `fuzz/` are called.
pub const TARGETS: [(&str, Target); 6] = [
    ("sdp", sdp),
    ("candidate", candidate),
    ("rtp", rtp),
    ("datagrams", datagrams),
    ("messages", messages),
    ("servers", servers),
];

/// The most that one input does: a fuzzer is to find depth, not length.
const STEPS: usize = 512;

const LEFT: ([u8; 4], u16) = ([10, 0, 0, 1], 1_000);
const RIGHT: ([u8; 4], u16) = ([10, 0, 0, 2], 2_000);

fn start() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
    Instant::now()
}

fn peer(start: Instant, address: ([u8; 4], u16)) -> Peer {
    let mut peer = Peer::new(start);
    peer.add_local_address(SocketAddr::from(address));
    peer
}

fn discard_output(peer: &mut Peer) {
    while peer.poll_transmit().is_some() {}
    while peer.poll_event().is_some() {}
}

/// A description of the remote: read, offered to a new peer, and as the answer to an offer.
pub fn sdp(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let found = sections(&text);
    assert!(found.len() <= text.matches("m=").count(), "a section without its line");
    let start = start();
    let mut answerer = peer(start, LEFT);
    answerer.add_transceiver(MediaType::Audio, Direction::SendRecv, None, None);
    if answerer.set_remote_offer(&text).is_ok() {
        if let Ok(answer) = answerer.create_answer() {
            let _ = answerer.set_local_answer(&answer);
        }
        // The same offer again is a renegotiation.
        let _ = answerer.set_remote_offer(&text);
    }
    let mut offerer = peer(start, RIGHT);
    offerer.add_transceiver(MediaType::Audio, Direction::SendRecv, Some("t".into()), None);
    let _ = offerer.create_channel(ChannelInit { label: "data".into(), ..ChannelInit::default() });
    if let Ok(offer) = offerer.create_offer(false) {
        let _ = offerer.set_local_offer(&offer);
        let _ = offerer.set_remote_answer(&text);
    }
    for peer in [&mut answerer, &mut offerer] {
        peer.handle_timeout(start + Duration::from_secs(1));
        peer.close();
        discard_output(peer);
    }
}

/// Candidate lines of the remote, one a line.
pub fn candidate(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let start = start();
    let mut peer = peer(start, LEFT);
    for line in text.lines().take(STEPS) {
        if let Ok(Some(candidate)) = parse_candidate(line) {
            // What was read is written in a form that is read again.
            let written = candidate.to_sdp_string();
            assert!(matches!(parse_candidate(&written), Ok(Some(_))), "{written}");
        }
        let _ = peer.add_remote_candidate(line);
    }
    peer.handle_timeout(start + Duration::from_millis(50));
    discard_output(&mut peer);
}

/// Takes an input apart.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn short(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    /// So many bytes, or those that are left.
    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// Packets of RTP into a playout. The input: a byte that chooses rate, channels, whether to pull
/// ahead, and whether the playout is unpaced, then packets of: sequence step (signed byte), timestamp step in 2.5 ms (signed byte), ms
/// until it comes (byte), length (byte), payload.
pub fn rtp(data: &[u8]) {
    let mut input = Reader(data);
    let format = input.byte().unwrap_or_default();
    let rates = crate::codec::SAMPLE_RATES;
    let rate = rates[usize::from(format >> 1) % rates.len()];
    let channels = u32::from(format & 1) + 1;
    let (early, unpaced) = (format & 0x80 != 0, format & 0x40 != 0);
    let playout =
        if unpaced { Playout::unpaced(rate, channels) } else { Playout::new(rate, channels) };
    let Ok(mut playout) = playout else { return };
    let mut out = vec![0; playout.pull_len()];
    let start = start();
    let (mut now, mut pulled_at) = (start, start);
    // Far enough from zero that steps back stay above it.
    let (mut sequence, mut timestamp) = (1_u64 << 20, 1_u64 << 40);
    for _ in 0..STEPS {
        let (Some(step), Some(time), Some(wait), Some(len)) =
            (input.byte(), input.byte(), input.byte(), input.byte())
        else {
            break;
        };
        let (step, time) = (step.cast_signed(), time.cast_signed());
        // A step of -128 is a jump as a new sender makes it.
        let jump = i64::from(i16::MAX) * 4;
        let step = if step == i8::MIN { jump } else { i64::from(step) };
        let time = if time == i8::MIN { jump * 960 } else { i64::from(time) * 120 };
        sequence = sequence.saturating_add_signed(step);
        timestamp = timestamp.saturating_add_signed(time);
        now += Duration::from_millis(u64::from(wait));
        let payload = input.bytes(usize::from(len));
        if let Some(duration) = packet_duration(payload) {
            let payload = Arc::from(payload);
            // A packet may also come inside another, or late at our request; and a sender may
            // change its SSRC.
            let origin = [Origin::Sent, Origin::Redundant, Origin::Resent][usize::from(wait % 3)];
            let ssrc = 1 + u32::from(wait == u8::MAX);
            let arrival = now;
            playout.insert(Packet {
                ssrc,
                sequence,
                timestamp,
                duration,
                arrival,
                origin,
                payload,
            });
        }
        while pulled_at + PULL <= now {
            pulled_at += PULL;
            let _ = playout.pull(pulled_at, &mut out);
            while early && playout.pull_ahead(pulled_at, &mut out) == Pulled::Audio {}
        }
    }
    // Whatever came, it plays out and comes to rest in silence or nothing.
    for _ in 0..200 {
        pulled_at += PULL;
        if playout.pull(pulled_at, &mut out) == Pulled::Nothing {
            break;
        }
    }
    let stats = playout.stats();
    assert!(stats.concealed_samples <= stats.samples + u64::from(rate), "{stats:?}");
}

/// Protocol, source, destination, content.
type Datagram = (Protocol, SocketAddr, SocketAddr, Vec<u8>);

/// Two peers with a hostile network between them. The input decides what becomes of each datagram;
/// where it ends, they get through.
struct Link<'a> {
    /// Two of them; large, so on the heap.
    peers: Vec<Peer>,
    now: Instant,
    input: Reader<'a>,
    messages: usize,
}

impl<'a> Link<'a> {
    fn negotiated(input: Reader<'a>, ordered: bool) -> Option<Self> {
        let now = start();
        let mut peers = vec![peer(now, LEFT), peer(now, RIGHT)];
        peers[0].add_transceiver(MediaType::Audio, Direction::SendRecv, Some("a".into()), None);
        let init = ChannelInit { label: "data".into(), unordered: !ordered, ..Default::default() };
        peers[0].create_channel(init).ok()?;
        let offer = peers[0].create_offer(false).ok()?;
        peers[0].set_local_offer(&offer).ok()?;
        peers[1].set_remote_offer(&offer).ok()?;
        let answer = peers[1].create_answer().ok()?;
        peers[1].set_local_answer(&answer).ok()?;
        peers[0].set_remote_answer(&answer).ok()?;
        Some(Self { peers, now, input, messages: 0 })
    }

    fn connected(&self) -> bool {
        self.peers.iter().all(|peer| peer.state() == PeerState::Connected)
    }

    /// Lets 5 ms pass. `hostile` says whether the input has a say.
    fn step(&mut self, hostile: bool) {
        let mut inbox: [Vec<Datagram>; 2] = Default::default();
        for from in 0..2 {
            while let Some(transmit) = self.peers[from].poll_transmit() {
                if transmit.proto != Protocol::Udp {
                    continue;
                }
                let mut data = transmit.contents.to_vec();
                let mut copies = 1;
                if hostile {
                    match self.input.byte().map(|fate| fate % 8) {
                        Some(1) => copies = 0,
                        Some(2) => copies = 3,
                        Some(3) => {
                            let at = usize::from(self.input.short().unwrap_or_default());
                            let flip = self.input.byte().unwrap_or(0xFF);
                            if let Some(byte) = data.get_mut(at) {
                                *byte ^= flip;
                            }
                        }
                        Some(4) => {
                            let len = usize::from(self.input.short().unwrap_or_default());
                            data.truncate(len.min(data.len()));
                        }
                        Some(5) => {
                            let len = usize::from(self.input.byte().unwrap_or_default());
                            data = self.input.bytes(len).to_vec();
                        }
                        Some(6) => {
                            let len = usize::from(self.input.byte().unwrap_or_default());
                            data.extend_from_slice(self.input.bytes(len));
                        }
                        _ => {}
                    }
                }
                for _ in 0..copies {
                    let (source, destination) = (transmit.source, transmit.destination);
                    inbox[1 - from].push((transmit.proto, source, destination, data.clone()));
                }
            }
            while let Some(event) = self.peers[from].poll_event() {
                self.messages += usize::from(matches!(event, Event::Message { .. }));
            }
        }
        self.now += Duration::from_millis(5);
        for (peer, inbox) in self.peers.iter_mut().zip(inbox) {
            for (protocol, source, destination, data) in inbox {
                peer.handle_datagram(self.now, protocol, source, destination, &data);
            }
            if peer.poll_timeout().is_some_and(|at| at <= self.now) {
                peer.handle_timeout(self.now);
            }
        }
    }

    fn close(mut self) {
        for peer in &mut self.peers {
            peer.close();
            discard_output(peer);
        }
    }
}

/// STUN, DTLS, SRTP and SCTP of a call whose datagrams the input loses, repeats, breaks and
/// replaces. A datagram that is none of a peer's goes in first.
pub fn datagrams(data: &[u8]) {
    let mut input = Reader(data);
    let len = usize::from(input.byte().unwrap_or_default());
    let stray = input.bytes(len);
    let Some(mut link) = Link::negotiated(input, true) else { return };
    let (ours, theirs) = (SocketAddr::from(LEFT), SocketAddr::from(RIGHT));
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        link.peers[0].handle_datagram(link.now, protocol, theirs, ours, stray);
    }
    for _ in 0..STEPS {
        if link.input.0.is_empty() {
            break;
        }
        link.step(true);
    }
    link.peers[0].handle_datagram(link.now, Protocol::Udp, theirs, ours, stray);
    link.step(false);
    link.close();
}

/// Channels opened, written to and closed as the input says, on a link that works. A byte chooses
/// what is done and by whom, a second one on which channel.
pub fn messages(data: &[u8]) {
    let mut input = Reader(data);
    let ordered = input.byte().unwrap_or_default() & 1 == 0;
    let Some(mut link) = Link::negotiated(input, ordered) else { return };
    for _ in 0..STEPS {
        if link.connected() {
            break;
        }
        link.step(false);
    }
    if !link.connected() {
        return;
    }
    for _ in 0..STEPS / 4 {
        let (Some(what), Some(which)) = (link.input.byte(), link.input.byte()) else { break };
        let side = usize::from(what & 1);
        let peer = &link.peers[side];
        let channel = {
            let channels = peer.channels();
            channels.get(usize::from(which) % channels.len().max(1)).map(Channel::key)
        };
        match (what >> 1) % 5 {
            0 => {
                let len = usize::from(link.input.byte().unwrap_or_default());
                let label = String::from_utf8_lossy(link.input.bytes(len)).into_owned();
                let init = ChannelInit {
                    label,
                    unordered: which & 1 == 1,
                    max_retransmits: (which & 2 == 2).then_some(0),
                    negotiated: (which & 4 == 4).then(|| u16::from(which >> 3)),
                    ..ChannelInit::default()
                };
                let _ = link.peers[side].create_channel(init);
            }
            1 | 2 => {
                // Sizes up to what makes SCTP fragment and its buffer fill.
                let len = usize::from(link.input.byte().unwrap_or_default());
                let content = link.input.bytes(len);
                let message = content.repeat(1 + usize::from(which) * 4);
                if let Some(channel) = channel {
                    let _ = link.peers[side].send_message(channel, what & 64 == 0, &message);
                }
            }
            3 => {
                if let Some(channel) = channel {
                    link.peers[side].close_channel(channel);
                }
            }
            _ => (0..=which % 16).for_each(|_| link.step(false)),
        }
    }
    for _ in 0..20 {
        link.step(false);
    }
    link.close();
}

/// Answers of a STUN and of a TURN server, after a URL that names them. A message is a length
/// (byte) and its bytes; it gets the transaction id of what was asked last, without which it would
/// be passed over.
pub fn servers(data: &[u8]) {
    let mut input = Reader(data);
    let len = usize::from(input.byte().unwrap_or_default());
    let _ = ServerUrl::parse(&String::from_utf8_lossy(input.bytes(len)));
    let start = start();
    let (ours, server, other) =
        (SocketAddr::from(LEFT), SocketAddr::from(RIGHT), SocketAddr::from(([10, 0, 0, 3], 9)));
    let mut binding = Binding::new(start, ours, server);
    let asked = binding.poll(start).and_then(Result::ok).map(<[u8]>::to_vec).unwrap_or_default();
    let stream = input.byte().unwrap_or_default() & 1 == 1;
    let config = RelayConfig {
        local: ours,
        server,
        stream,
        ipv6: false,
        username: "user".into(),
        password: "password".into(),
    };
    let (mut relay, mut now) = (Relay::new(start, config), start);
    let mut request = Vec::new();
    for _ in 0..STEPS / 4 {
        while let Some(message) = relay.poll_transmit() {
            request = message;
        }
        while relay.poll_event().is_some() {}
        let Some(len) = input.byte() else { break };
        let mut message = input.bytes(usize::from(len)).to_vec();
        let _ = frame(&message);
        let mut answer = message.clone();
        copy_id(&asked, &mut answer);
        let _ = binding.handle(server, ours, &answer);
        copy_id(&request, &mut message);
        let _ = relay.handle_message(now, &message);
        relay.send(now, other, &message);
        now += Duration::from_millis(200);
        if relay.poll_timeout().is_some_and(|at| at <= now) {
            relay.handle_timeout(now);
        }
    }
    relay.close(now);
}

/// The transaction id of STUN is its bytes 8 to 20 (RFC 8489 §5).
fn copy_id(from: &[u8], to: &mut [u8]) {
    if let (Some(from), Some(to)) = (from.get(8..20), to.get_mut(8..20)) {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests;
