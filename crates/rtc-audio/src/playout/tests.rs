use std::f64::consts::TAU;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::codec::{FRAME_RTP, audio_level};
use crate::jitter_buffer::Origin;
use crate::send_queue::SendQueue;

const RATE: u32 = 48_000;
/// Rate of the listener.
const HEARD: u32 = 16_000;
const TONE_HZ: f64 = 400.0;
const LOUD: f64 = 8_000.0;
/// The most that the tone itself moves from one sample of the listener to the next.
const SLOPE: f64 = LOUD * TAU * TONE_HZ / HEARD as f64;

fn base() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
    Instant::now()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Packets of a tone, one every 20 ms from `start` on.
fn tone(start: Instant, count: u64) -> Vec<Packet> {
    let mut queue = SendQueue::new(RATE, 1).unwrap();
    (0..count)
        .map(|sequence| {
            let samples: Vec<i16> = (0..u64::from(FRAME_RTP))
                .map(|i| (sequence * u64::from(FRAME_RTP) + i) as f64 / f64::from(RATE))
                .map(|t| (f64::sin(t * TONE_HZ * TAU) * LOUD) as i16)
                .collect();
            queue.push(&samples);
            Packet {
                ssrc: 1,
                sequence,
                timestamp: sequence * u64::from(FRAME_RTP),
                duration: FRAME_RTP,
                arrival: start + ms(sequence * 20),
                origin: Origin::Sent,
                payload: queue.tick().unwrap().unwrap().payload,
            }
        })
        .collect()
}

/// Plays packets at 16 kHz for `frames` of 10 ms.
fn play(start: Instant, mut packets: Vec<Packet>, frames: u64) -> (Vec<i16>, PlayoutStats) {
    packets.sort_by_key(|packet| packet.arrival);
    let mut coming = packets.into_iter().peekable();
    let mut playout = Playout::new(HEARD, 1).unwrap();
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

/// Share of the energy at the tone's pitch, over pieces of 50 ms.
fn share(samples: &[i16]) -> f64 {
    let (mut at, mut all) = (0.0, 0.0);
    for piece in samples.chunks_exact(HEARD as usize / 20) {
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

/// The largest step from one sample to the next, in steps of the tone itself.
fn steepest(samples: &[i16]) -> f64 {
    let step = |pair: &[i16]| (f64::from(pair[0]) - f64::from(pair[1])).abs();
    samples.windows(2).map(step).fold(0.0, f64::max) / SLOPE
}

#[test]
fn the_first_sound_is_out_40_ms_after_the_first_packet() {
    let start = base();
    let (heard, _) = play(start, tone(start, 20), 5);
    assert_eq!(heard.len(), 160 * 2, "two pulls from 30 ms on");
    assert!(audio_level(&heard) > -30, "{}", audio_level(&heard));
}

/// What a listener has of the packets that takes all there is every `step` pulls, frame by frame:
/// the samples, and the pull with which each frame came.
fn take(
    start: Instant,
    mut packets: Vec<Packet>,
    pulls: u64,
    (step, mut playout): (u64, Playout),
) -> (Vec<i16>, Vec<u64>, PlayoutStats) {
    packets.sort_by_key(|packet| packet.arrival);
    let mut coming = packets.into_iter().peekable();
    let (mut heard, mut times, mut out) = (Vec::new(), Vec::new(), vec![0; playout.pull_len()]);
    for pull in (step..=pulls).step_by(step as usize) {
        let now = start + ms(pull * 10);
        while let Some(packet) = coming.next_if(|packet| packet.arrival <= now) {
            playout.insert(packet);
        }
        let mut give = |pulled: Pulled, out: &[i16]| {
            if pulled == Pulled::Audio {
                heard.extend_from_slice(out);
                times.push(pull);
            }
            pulled
        };
        for behind in (0..step).rev() {
            let pulled = playout.pull(start + ms((pull - behind) * 10), &mut out);
            give(pulled, &out);
        }
        while give(playout.pull_ahead(now, &mut out), &out) == Pulled::Audio {}
    }
    (heard, times, playout.stats())
}

fn paced() -> Playout {
    Playout::new(HEARD, 1).unwrap()
}

fn unpaced() -> Playout {
    Playout::unpaced(HEARD, 1).unwrap()
}

#[test]
fn the_second_half_of_a_packet_can_be_had_with_the_first() {
    let start = base();
    let (steady, _) = play(start, tone(start, 100), 190);
    let (heard, times, _) = take(start, tone(start, 100), 189, (1, paced()));
    let (most, least) = (steady.len().max(heard.len()), steady.len().min(heard.len()));
    assert!(most - least <= 160, "the last frame may be early");
    assert!(heard[..least] == steady[..least], "the same sound");
    let pulls = times.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(pulls < 100 && times.len() > 180, "{} frames in {pulls} pulls", times.len());
    assert!(times.chunk_by(|a, b| a == b).all(|pull| pull.len() <= 2), "one pull ahead at most");
}

#[test]
fn unpaced_a_packet_is_given_as_soon_as_it_is_in_order() {
    let start = base();
    for step in [1, 2, 4] {
        let (heard, times, stats) = take(start, tone(start, 300), 600, (step, unpaced()));
        assert_eq!(stats.concealed_samples, 0);
        // Left out as by a paced playout, for whom that is delay.
        assert_eq!((stats.accelerations, stats.decelerations), (1, 0));
        // From when the buffer has begun to play on, and before anything is left out.
        for (frame, at) in times.iter().enumerate().take(150).skip(8) {
            let came = frame as u64 / 2 * 2;
            assert!(*at < came + step + 1, "frame {frame} in pull {at}, a step being {step}");
        }
        let heard = &heard[..160 * 590];
        assert!(steepest(heard) < 1.5, "{}", steepest(heard));
        assert!(share(&heard[1_600..]) > 0.999, "{}", share(&heard[1_600..]));
    }
}

#[test]
fn unpaced_what_is_missing_is_waited_for_as_long_as_ever() {
    let start = base();
    // Every fifth comes after the one behind it, which teaches patience.
    let mut packets = tone(start, 200);
    for packet in packets.iter_mut().skip(4).step_by(5) {
        packet.arrival += ms(30);
    }
    let (_, times, stats) = take(start, packets.clone(), 399, (1, unpaced()));
    let learnt = 160 * 20;
    assert!(stats.concealed_samples < learnt, "{}", stats.concealed_samples);
    assert_eq!(stats.buffer.late + stats.buffer.concealed, 0);
    let held = times[100..].chunk_by(|a, b| a == b).map(<[u64]>::len).max();
    assert_eq!(held, Some(4), "the one behind it came out with it");
    // Lost, it is made up for, and nothing behind it is held up for longer.
    packets.remove(104);
    let (_, times, lossy) = take(start, packets, 399, (1, unpaced()));
    assert_eq!(lossy.buffer.concealed + lossy.buffer.recovered, 1);
    assert!((times.len() as i64 - 399).abs() < 10, "{} frames", times.len());
}

#[test]
fn unpaced_a_network_that_stood_still_gives_all_at_once_and_time_is_caught_up_with() {
    let start = base();
    let mut packets = tone(start, 400);
    for packet in &mut packets[50..60] {
        packet.arrival = start + ms(1_200);
    }
    let (heard, times, stats) = take(start, packets, 798, (2, unpaced()));
    assert_eq!(stats.buffer.late + stats.buffer.concealed + stats.buffer.discarded, 0);
    assert!(stats.concealed_samples > 160 * 10, "{}", stats.concealed_samples);
    let burst = times.chunk_by(|a, b| a == b).map(<[u64]>::len).max();
    assert!(burst >= Some(20), "{burst:?} frames at once");
    // What was made up was left out of what came after, but for the delay that is aimed at since.
    assert!((times.len() as i64 - 798).abs() < 12, "{} frames in 798 pulls", times.len());
    assert!(steepest(&heard) < 2.0, "{}", steepest(&heard));
}

#[test]
fn unpaced_a_sender_in_a_hurry_is_not_followed() {
    let start = base();
    let mut packets = tone(start, 120);
    // Two seconds within one.
    for packet in &mut packets[10..110] {
        packet.arrival = start + ms(200 + (packet.sequence - 10) * 10);
    }
    let (_, times, _) = take(start, packets, 120, (1, unpaced()));
    let most = times.iter().filter(|at| **at <= 120).count();
    assert!(most <= 120 + MOST_AHEAD as usize, "{most} frames in 120 pulls");
}

#[test]
fn unpaced_pauses_are_as_long_as_the_sender_made_them() {
    let start = base();
    let mut packets = tone(start, 100);
    for packet in &mut packets[50..] {
        packet.arrival += ms(1_000);
        packet.timestamp += 48_000;
    }
    for step in [1, 4] {
        let (heard, times, stats) = take(start, packets.clone(), 296, (step, unpaced()));
        assert_eq!((stats.concealed_samples, stats.concealment_events), (0, 0));
        assert!(steepest(&heard[..160 * 290]) < 1.5, "{}", steepest(&heard[..160 * 290]));
        assert!((times.len() as i64 - 296).abs() < 8, "{} frames in 296 pulls", times.len());
    }
}

#[test]
fn a_playout_is_dry_in_a_pause_and_not_before_the_first_packet() {
    let start = base();
    let mut playout = unpaced();
    let mut out = vec![0; playout.pull_len()];
    assert!(!playout.is_dry());
    for packet in tone(start, 10) {
        playout.insert(packet);
    }
    let mut dry = Vec::new();
    for pull in 0..60 {
        let _ = playout.pull(start + ms(pull * 10), &mut out);
        while playout.pull_ahead(start + ms(pull * 10), &mut out) == Pulled::Audio {}
        dry.push(playout.is_dry());
    }
    let first = dry.iter().position(|dry| *dry);
    // 10 packets, which are played from 30 ms on, and 60 ms.
    assert!((24..=30).contains(&first.unwrap()), "{first:?}");
    assert!(dry[first.unwrap()..].iter().all(|dry| *dry));
    let [mut packet] = <[Packet; 1]>::try_from(tone(start, 1)).unwrap();
    (packet.sequence, packet.timestamp, packet.arrival) = (10, 48 * 600, start + ms(600));
    playout.insert(packet);
    for pull in 60..66 {
        let _ = playout.pull(start + ms(pull * 10), &mut out);
    }
    assert!(!playout.is_dry());
}

#[test]
fn without_loss_nothing_is_made_up_and_the_delay_settles_at_the_least() {
    let start = base();
    let (heard, stats) = play(start, tone(start, 300), 590);
    assert_eq!(heard.len(), 160 * (590 - 3));
    assert_eq!((stats.concealed_samples, stats.decelerations), (0, 0));
    assert_eq!(stats.accelerations, 1, "from 30 ms to 20 ms");
    assert_eq!(stats.removed_samples, u64::from(HEARD) / 100);
    let late = stats.delay_sum.as_secs_f64() / stats.emitted_samples as f64;
    assert!((0.02..0.035).contains(&late), "{late}");
    assert!(share(&heard[1_600..]) > 0.999, "{}", share(&heard[1_600..]));
}

#[test]
fn one_lost_packet_in_ten_is_hardly_audible() {
    let start = base();
    let packets = tone(start, 200).into_iter().filter(|p| p.sequence % 10 != 5).collect();
    let (heard, stats) = play(start, packets, 390);
    // Opus thinks the beginning of a tone a voice, which gets copies.
    assert_eq!((stats.buffer.recovered, stats.buffer.concealed), (3, 16));
    assert_eq!(stats.concealed_samples, 16 * 320, "copies are no concealment");
    assert!(share(&heard[1_600..]) > 0.94, "{}", share(&heard[1_600..]));
    assert!(steepest(&heard) < 2.0, "{}", steepest(&heard));
}

#[test]
fn starvation_fades_to_silence_and_the_stream_comes_back_without_a_click() {
    let start = base();
    for gap in [1, 2, 3, 5, 8, 20, 40] {
        let mut packets = tone(start, 100);
        packets.retain(|packet| !(40..40 + gap).contains(&packet.sequence));
        let (heard, stats) = play(start, packets, 190);
        assert!(steepest(&heard) < 2.0, "{} after a gap of {gap}", steepest(&heard));
        assert!(stats.concealment_events <= 1, "{} events", stats.concealment_events);
        if gap >= 20 {
            assert_eq!(stats.concealment_events, 1, "a gap of {gap}");
            let made_up = stats.concealed_samples / (160 * 2);
            assert!(made_up + 5 >= gap && made_up <= gap + 5, "{made_up} frames of {gap}");
            let silent = heard.chunks(160).filter(|frame| audio_level(frame) < -70).count();
            assert!(silent as u64 >= gap * 2 - 18, "{silent} silent frames of {gap} lost");
        }
        let end = &heard[heard.len() - 160 * 25..];
        assert!(share(end) > 0.99, "{} after a gap of {gap}", share(end));
        let delay = stats.buffer.late;
        assert_eq!(delay, 0);
    }
}

#[test]
fn late_packets_stretch_the_sound_without_a_click() {
    let start = base();
    let mut packets = tone(start, 200);
    // Half way, the path gets 50 ms longer.
    for packet in &mut packets[100..] {
        packet.arrival += ms(50);
    }
    let (heard, stats) = play(start, packets, 395);
    assert_eq!(stats.buffer.late + stats.buffer.concealed, 0);
    assert!(stats.concealed_samples < u64::from(HEARD) / 10, "{}", stats.concealed_samples);
    assert!(steepest(&heard) < 1.5, "{}", steepest(&heard));
    assert!(share(&heard[1_600..]) > 0.99, "{}", share(&heard[1_600..]));
}

#[test]
fn the_end_of_a_stream_is_silence_without_end_and_no_concealment() {
    let start = base();
    let (heard, stats) = play(start, tone(start, 20), 400);
    assert_eq!(heard.len(), 160 * (400 - 3));
    assert_eq!(audio_level(&heard[heard.len() - 1_600..]), -127);
    assert!(steepest(&heard) < 1.5, "{}", steepest(&heard));
    assert_eq!(stats.concealed_samples, 0);
}

#[test]
fn a_pause_of_the_sender_is_silent_and_no_concealment() {
    let start = base();
    let mut packets = tone(start, 100);
    for packet in &mut packets[50..] {
        packet.arrival += ms(1_000);
        packet.timestamp += 48_000;
    }
    let (heard, stats) = play(start, packets, 290);
    assert_eq!((stats.concealed_samples, stats.concealment_events), (0, 0));
    assert!(steepest(&heard) < 1.5, "{}", steepest(&heard));
    let silent = heard.chunks(160).filter(|frame| audio_level(frame) == -127).count();
    assert!((80..=95).contains(&silent), "{silent}");
}

#[test]
fn discontinuous_transmission_is_no_concealment() {
    let start = base();
    let mut packets = tone(start, 50);
    // The encoder falls silent and gives a sign of life of one byte every 400 ms.
    let pauses = (0..10_u64).map(|i| Packet {
        sequence: 50 + i,
        timestamp: 48_000 + i * 19_200,
        arrival: start + ms(1_000 + i * 400),
        payload: Arc::from([9_u8 << 3].as_slice()),
        ..packets[0].clone()
    });
    packets.extend(pauses.collect::<Vec<_>>());
    let voice = tone(start, 50).into_iter().map(|packet| Packet {
        sequence: packet.sequence + 60,
        timestamp: packet.timestamp + 48 * 4_700,
        arrival: packet.arrival + ms(4_700),
        ..packet
    });
    packets.extend(voice.collect::<Vec<_>>());
    let (heard, stats) = play(start, packets, 565);
    assert_eq!((stats.concealed_samples, stats.buffer.starved), (0, 0));
    assert_eq!(stats.buffer.concealed + stats.buffer.recovered, 0);
    assert!(steepest(&heard) < 1.5, "{}", steepest(&heard));
    let end = &heard[heard.len() - 160 * 50..];
    assert!(share(end) > 0.99, "the voice is back: {}", share(end));
}

#[test]
fn another_ssrc_on_the_same_section_leaves_no_hole() {
    let start = base();
    let mut packets = tone(start, 200);
    for packet in &mut packets[100..] {
        packet.ssrc = 2;
        packet.sequence += 30_000;
        packet.timestamp += 5_000_000;
    }
    let (heard, stats) = play(start, packets, 390);
    assert_eq!(stats.buffer.restarts, 1);
    let silent = heard.chunks(160).filter(|frame| audio_level(frame) < -40).count();
    assert_eq!(silent, 0);
    assert!(steepest(&heard) < 2.0, "{}", steepest(&heard));
}

#[test]
fn garbage_is_concealed_and_counted() {
    let start = base();
    let mut packets = tone(start, 20);
    packets[7].payload = Arc::from([0xff_u8; 40].as_slice());
    packets[8].payload = Arc::from([].as_slice());
    let (heard, stats) = play(start, packets, 40);
    assert_eq!(heard.len(), 160 * (40 - 3));
    assert!(stats.undecodable >= 1);
}

#[test]
fn a_stereo_listener_hears_both_sides() {
    let start = base();
    let mut playout = Playout::new(48_000, 2).unwrap();
    let mut out = vec![0; playout.pull_len()];
    let packets = tone(start, 60);
    for (i, packet) in packets.into_iter().enumerate() {
        // Some lost, some late: every path is taken with two channels.
        if i % 7 != 3 {
            playout.insert(packet);
        }
        for half in 0..2 {
            let now = start + ms(i as u64 * 20 + half * 10 + u64::from(i % 11 == 5) * 60);
            if playout.pull(now, &mut out) == Pulled::Audio {
                let apart = |frame: &[i16]| (i32::from(frame[0]) - i32::from(frame[1])).abs();
                let apart = out.chunks(2).map(apart).max();
                assert!(apart < Some(300), "{apart:?} apart");
            }
        }
    }
    assert!(playout.stats().emitted_samples > 48_000);
}

/// An hour in which the sender's clock is off by 100 ppm: 360 ms to be made up for.
#[test]
fn an_hour_with_a_slow_sender_leaves_no_gap_and_no_growing_delay() {
    let stats = an_hour_of_drift(-100, paced(), 1);
    assert_delay(&stats, 10..50);
}

#[test]
fn an_hour_with_a_fast_sender_leaves_no_gap_and_no_growing_delay() {
    let stats = an_hour_of_drift(100, paced(), 1);
    assert_delay(&stats, 10..50);
}

#[test]
fn unpaced_an_hour_of_drift_leaves_no_gap_and_stays_with_our_clock() {
    std::thread::scope(|scope| {
        for ppm in [-100, 100] {
            scope.spawn(move || assert_delay(&an_hour_of_drift(ppm, unpaced(), 2), 0..20));
        }
    });
}

fn assert_delay(stats: &PlayoutStats, expected: std::ops::Range<u128>) {
    let delay = stats.delay_sum / u32::try_from(stats.emitted_samples).unwrap();
    assert!(expected.contains(&delay.as_millis()), "{delay:?} of delay on average");
}

fn an_hour_of_drift(ppm: i64, mut playout: Playout, step: u64) -> PlayoutStats {
    const SECONDS: u64 = 3_600;
    let start = base();
    // A second of the tone, over and over: it fits a second exactly.
    let second: Vec<_> = tone(start, 100).drain(50..).map(|packet| packet.payload).collect();
    let mut out = vec![0; playout.pull_len()];
    let (mut sequence, mut last) = (0_u64, Vec::new());
    let (mut longest, mut frames) = (0, 0);
    for pull in (step..=SECONDS * 100).step_by(step as usize) {
        let now = start + ms(pull * 10);
        loop {
            let real = sequence as i64 * 20_000 * 1_000_000 / (1_000_000 + ppm);
            let arrival = start + Duration::from_micros(real as u64);
            if arrival > now {
                break;
            }
            playout.insert(Packet {
                ssrc: 1,
                sequence,
                timestamp: sequence * u64::from(FRAME_RTP),
                duration: FRAME_RTP,
                arrival,
                origin: Origin::Sent,
                payload: Arc::clone(&second[sequence as usize % 50]),
            });
            sequence += 1;
        }
        longest = longest.max(playout.buffer.len());
        let mut heard = |pulled: Pulled, out: &[i16]| {
            frames += u64::from(pulled == Pulled::Audio);
            if pulled == Pulled::Audio && pull >= SECONDS * 100 - 500 {
                last.extend_from_slice(out);
            }
            pulled
        };
        for behind in (0..step).rev() {
            let pulled = playout.pull(start + ms((pull - behind) * 10), &mut out);
            heard(pulled, &out);
        }
        // One that is paced is pulled at its pace.
        while step > 1 && heard(playout.pull_ahead(now, &mut out), &out) == Pulled::Audio {}
    }
    let stats = playout.stats();
    assert!(frames.abs_diff(SECONDS * 100) < 5, "{frames} frames in an hour");
    assert_eq!((stats.concealed_samples, stats.buffer.late), (0, 0), "{ppm} ppm");
    assert!(longest <= 3, "{longest} packets wait");
    let stretched = stats.inserted_samples as i64 - stats.removed_samples as i64;
    let expected = -ppm * SECONDS as i64 * i64::from(HEARD) / 1_000_000;
    assert!((stretched - expected).abs() < 320, "{stretched} of {expected} samples");
    assert!((stats.drift_ppm - ppm as f64).abs() < 5.0, "{}", stats.drift_ppm);
    let quiet = last.chunks(160).filter(|frame| audio_level(frame) < -20).count();
    assert_eq!(quiet, 0);
    stats
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
            let filling = (first - start).as_millis().div_ceil(10) as usize + 3;
            // Jitter seen while filling does not put off the start.
            prop_assert!(heard.len() >= 160 * (200 - filling - 1));
        }
    }
}
