//! Allocations a packet costs in the steady state, beside those of str0m alone.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failure in a helper fails the test that calls it"
)]

mod pair;

use std::sync::Arc;
use std::time::Instant;

use allocation_counter::measure;
use pair::{Bare, End, Ours, Pair, base};
use rtc_audio::send_queue::{EncodedFrame, SendQueue, TICK};
use str0m::rtp::{ExtensionValues, RtpWrite};

const WARM_UP: usize = 1_000;
const PACKETS: usize = 1_000;

/// What sends a packet with such a payload.
trait Sends: End {
    fn send(&mut self, now: Instant, at: u32, payload: &[u8]);
}

impl Sends for Ours {
    fn send(&mut self, now: Instant, at: u32, payload: &[u8]) {
        let frame = EncodedFrame {
            payload: Arc::from(payload),
            timestamp: at * 960,
            marker: false,
            level: -30,
            samples: 480,
        };
        assert!(self.peer.send_audio(now, self.id.unwrap(), &frame));
    }
}

impl Sends for Bare {
    fn send(&mut self, now: Instant, at: u32, payload: &[u8]) {
        let extensions = ExtensionValues {
            audio_level: Some(-30),
            voice_activity: Some(true),
            ..ExtensionValues::default()
        };
        let sequence = (1_000 + u64::from(at)).into();
        let write = RtpWrite::new(111.into(), sequence, at * 960, now, payload);
        let mut direct = self.rtc.direct_api();
        let stream = direct.stream_tx_by_mid(self.mid.unwrap(), None).unwrap();
        stream.write_rtp(write.ext_vals(extensions));
        self.timeout(now);
    }
}

/// Allocations of a packet's way from one end to the other, RTCP and statistics included.
fn per_packet<A: Sends, B: End>(a: A, b: B, now: Instant, red: bool) -> f64 {
    let mut pair = Pair::connect(a, b, now, |answer| {
        if red { answer.to_owned() } else { answer.replace(" 63 111", " 111 63") }
    });
    let payload = [0x78; 80];
    let mut at = 0;
    let mut run = |packets: usize| {
        for _ in 0..packets {
            pair.a.send(pair.now, at, &payload);
            pair.deliver();
            pair.step(TICK);
            at += 1;
        }
    };
    run(WARM_UP);
    measure(|| run(PACKETS)).count_total as f64 / PACKETS as f64
}

#[test]
fn a_packet_costs_no_allocation_of_ours() {
    let now = base();
    let bare = |port, sends| Bare::new(now, port, sends, true);
    let ours = |port, sends| Ours::new(now, port, sends);
    // What str0m 0.25 itself costs, the payload included: a change of str0m is to be noticed.
    let least = per_packet(bare(1_000, true), bare(2_000, false), now, false);
    assert!((6.0..6.5).contains(&least), "str0m alone: {least} allocations a packet");
    let sent = per_packet(ours(1_000, true), bare(2_000, false), now, false);
    assert!(sent <= least, "sent by us: {sent} instead of {least}");
    // A copy of the last packet comes from the payload kept; the payload around both is one more.
    let redundant = per_packet(ours(1_000, true), bare(2_000, false), now, true);
    assert!(redundant <= least + 1.0, "with RED: {redundant} instead of {least}");
    let received = per_packet(bare(1_000, true), ours(2_000, false), now, false);
    assert!(received <= least, "received by us: {received} instead of {least}");
}

#[test]
fn encoding_costs_the_payload_alone() {
    let mut queue = SendQueue::new(24_000, 1).unwrap();
    let samples = [3_000, -3_000].repeat(240);
    let mut run = |frames: usize| {
        for _ in 0..frames {
            queue.push(&samples);
            assert!(queue.tick().unwrap().is_some());
        }
    };
    run(50);
    assert_eq!(measure(|| run(50)).count_total, 50);
}
