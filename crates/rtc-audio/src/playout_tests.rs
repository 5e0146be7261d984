use std::f64::consts::TAU;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::codec::FRAME_RTP;
use crate::send_queue::SendQueue;

const RATE: u32 = 48_000;

fn base() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
    Instant::now()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Packets of a 440 Hz tone, one every 20 ms from `start` on.
fn tone(start: Instant, count: u64) -> Vec<Packet> {
    let mut queue = SendQueue::new(RATE, 1).unwrap();
    (0..count)
        .map(|sequence| {
            let samples: Vec<i16> = (0..u64::from(FRAME_RTP))
                .map(|i| (sequence * u64::from(FRAME_RTP) + i) as f64 / f64::from(RATE))
                .map(|t| (f64::sin(t * 440.0 * TAU) * 8_000.0) as i16)
                .collect();
            queue.push(&samples);
            Packet {
                sequence,
                timestamp: sequence * u64::from(FRAME_RTP),
                duration: FRAME_RTP,
                arrival: start + ms(sequence * 20),
                payload: queue.tick().unwrap().unwrap().payload,
            }
        })
        .collect()
}

/// Plays packets at 16 kHz for `frames` of 10 ms.
fn play(start: Instant, mut packets: Vec<Packet>, frames: u64) -> (Vec<i16>, PlayoutStats) {
    packets.sort_by_key(|packet| packet.arrival);
    let mut coming = packets.into_iter().peekable();
    let mut playout = Playout::new(16_000, 1).unwrap();
    let mut heard = Vec::new();
    let mut out = vec![0; playout.pull_len()];
    for frame in 0..frames {
        let now = start + ms(frame * 10);
        while let Some(packet) = coming.next_if(|packet| packet.arrival <= now) {
            playout.insert(packet);
        }
        if playout.pull(now, &mut out) == Pulled::Audio {
            heard.extend_from_slice(&out);
        }
    }
    (heard, playout.stats())
}

#[test]
fn the_first_sound_is_out_70_ms_after_the_first_packet() {
    let start = base();
    let (heard, _) = play(start, tone(start, 20), 8);
    assert_eq!(heard.len(), 160 * 2, "two pulls from 60 ms on");
    assert!(audio_level(&heard) > -30, "{}", audio_level(&heard));
}

#[test]
fn without_loss_nothing_is_made_up() {
    let start = base();
    let (heard, stats) = play(start, tone(start, 100), 200);
    assert_eq!(heard.len(), 160 * (200 - 6));
    assert_eq!((stats.concealed_samples, stats.shed_frames), (0, 0));
}

#[test]
fn one_lost_packet_in_ten_is_hardly_audible() {
    let start = base();
    let packets = tone(start, 200).into_iter().filter(|p| p.sequence % 10 != 5).collect();
    let (heard, stats) = play(start, packets, 390);
    assert_eq!(stats.buffer.recovered, 20 - 1);
    let quiet = heard.chunks(160).skip(2).filter(|frame| audio_level(frame) < -40).count();
    assert!(quiet <= 4, "{quiet} frames of {} are quiet", heard.len() / 160);
}

#[test]
fn the_end_of_a_stream_is_silence_without_end() {
    let start = base();
    let (heard, _) = play(start, tone(start, 20), 400);
    assert_eq!(heard.len(), 160 * (400 - 6));
    assert_eq!(audio_level(&heard[heard.len() - 1_600..]), -127);
}

#[test]
fn garbage_is_concealed_and_counted() {
    let start = base();
    let mut packets = tone(start, 20);
    packets[7].payload = Arc::from([0xff_u8; 40].as_slice());
    packets[8].payload = Arc::from([].as_slice());
    let (heard, stats) = play(start, packets, 40);
    assert_eq!(heard.len(), 160 * (40 - 6));
    assert!(stats.undecodable >= 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Loss, duplication and delay at random: frames come out steadily from the start on.
    #[test]
    fn samples_come_steadily(
        fate in proptest::collection::vec((0_u8..10, 0_u64..120), 60)
    ) {
        let start = base();
        let mut packets = Vec::new();
        for (packet, (kind, delay)) in tone(start, 60).into_iter().zip(fate) {
            let late = Packet { arrival: packet.arrival + ms(delay), ..packet.clone() };
            match kind {
                0 => {}
                1 => packets.extend([late.clone(), late]),
                _ => packets.push(late),
            }
        }
        let first = packets.iter().map(|packet| packet.arrival).min();
        let (heard, _) = play(start, packets, 200);
        if let Some(first) = first {
            let filling = (first - start).as_millis().div_ceil(10) as usize + 6;
            // Jitter seen while filling does not put off the start.
            prop_assert!(heard.len() >= 160 * (200 - filling - 1));
        }
    }
}
