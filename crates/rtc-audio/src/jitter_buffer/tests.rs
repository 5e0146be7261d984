use proptest::prelude::*;

use super::*;

fn base() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
    Instant::now()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Mono SILK of 20 ms with a copy of the frame before (RFC 6716 §3.1 and §4.2.4).
const WITH_COPY: [u8; 4] = [9 << 3, 0xc0, 0, 0];

/// The packet of `sequence`, sent every 20 ms, which takes `transit`.
fn packet(start: Instant, sequence: u64, transit: Duration) -> Packet {
    Packet {
        ssrc: 1,
        sequence,
        timestamp: sequence * u64::from(FRAME_RTP),
        duration: FRAME_RTP,
        arrival: start + ms(sequence * 20) + transit,
        origin: Origin::Sent,
        payload: Arc::from(WITH_COPY.as_slice()),
    }
}

fn played(step: &Step) -> Option<u64> {
    match step {
        Step::Play { packet, .. } => Some(packet.sequence),
        _ => None,
    }
}

/// Pulls a frame, as a player with nothing queued does.
fn next(buffer: &mut JitterBuffer, now: Instant) -> Step {
    let step = buffer.next(now, 0);
    if step == Step::Wait {
        buffer.waited(FRAME_RTP);
    }
    step
}

/// Lets packets of `(sequence, arrival in ms)` come and pulls a frame every 20 ms from 30 on.
fn run(arrivals: &[(u64, u64)], frames: u64) -> (Vec<Step>, Counters) {
    let start = base();
    let mut buffer = JitterBuffer::default();
    let mut coming: Vec<_> = arrivals.to_vec();
    coming.sort_by_key(|(_, at)| *at);
    let mut coming = coming.into_iter().peekable();
    let steps = (0..frames)
        .map(|frame| {
            let now = 30 + frame * 20;
            while let Some((sequence, at)) = coming.next_if(|(_, at)| *at <= now) {
                let mut packet = packet(start, sequence, Duration::ZERO);
                packet.arrival = start + ms(at);
                buffer.insert(packet);
            }
            next(&mut buffer, start + ms(now))
        })
        .collect();
    (steps, buffer.counters())
}

fn order(steps: &[Step]) -> Vec<u64> {
    steps.iter().filter_map(played).collect()
}

#[test]
fn nothing_before_the_initial_delay_and_the_first_packet_right_after() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    assert_eq!(next(&mut buffer, start), Step::Idle);
    buffer.insert(packet(start, 0, Duration::ZERO));
    assert_eq!(next(&mut buffer, start + ms(29)), Step::Idle);
    assert_eq!(played(&next(&mut buffer, start + ms(30))), Some(0));
}

#[test]
fn reordered_packets_play_in_order() {
    let (steps, counters) = run(&[(1, 0), (0, 5), (3, 50), (2, 60), (4, 80)], 6);
    assert_eq!(order(&steps), [0, 1, 2, 3, 4]);
    assert_eq!((counters.late, counters.concealed, counters.recovered), (0, 0, 0));
}

#[test]
fn a_duplicate_plays_once_and_is_counted() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    buffer.insert(packet(start, 0, Duration::ZERO));
    buffer.insert(packet(start, 0, ms(3)));
    assert_eq!((buffer.len(), buffer.counters().duplicates), (1, 1));
}

#[test]
fn a_single_loss_is_recovered_from_the_next_packet() {
    let (steps, counters) = run(&[(0, 0), (2, 40), (3, 60)], 4);
    assert!(matches!(&steps[1], Step::Recover { duration: FRAME_RTP, .. }), "{steps:?}");
    assert_eq!(played(&steps[2]), Some(2));
    assert_eq!((counters.recovered, counters.concealed), (1, 0));
}

#[test]
fn a_longer_loss_is_concealed_and_its_end_recovered() {
    let (steps, _) = run(&[(0, 0), (3, 20), (4, 40)], 4);
    assert_eq!(steps[1], Step::Conceal { duration: FRAME_RTP });
    assert!(matches!(&steps[2], Step::Recover { .. }));
    assert_eq!(played(&steps[3]), Some(3));
}

#[test]
fn a_loss_whose_copy_the_next_packet_lacks_is_concealed() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    for sequence in [0, 2] {
        let mut packet = packet(start, sequence, Duration::ZERO);
        packet.payload = Arc::from([31 << 3, 1, 2, 3].as_slice());
        buffer.insert(packet);
    }
    assert_eq!(played(&next(&mut buffer, start + ms(80))), Some(0));
    assert_eq!(next(&mut buffer, start + ms(100)), Step::Conceal { duration: FRAME_RTP });
}

#[test]
fn a_redundant_copy_fills_a_hole_and_never_replaces_what_came() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    let redundant = |sequence| Packet {
        origin: Origin::Redundant,
        arrival: start + ms(40),
        ..packet(start, sequence, Duration::ZERO)
    };
    buffer.insert(packet(start, 0, Duration::ZERO));
    buffer.insert(packet(start, 2, Duration::ZERO));
    buffer.insert(redundant(1));
    buffer.insert(redundant(0));
    let all: Vec<_> = (0..3).map(|i| next(&mut buffer, start + ms(80 + i * 20))).collect();
    assert_eq!(order(&all), [0, 1, 2]);
    let counters = buffer.counters();
    assert_eq!((counters.received, counters.redundant, counters.duplicates), (2, 1, 0));
    // What came too late inside another packet is no late packet.
    buffer.insert(redundant(1));
    assert_eq!(buffer.counters().late, 0);
}

#[test]
fn a_late_packet_plays_where_nothing_newer_came() {
    // Packet 1 comes 110 ms after it was due to be played; nothing overtook it.
    let (steps, counters) = run(&[(0, 0), (1, 160), (2, 165)], 9);
    assert_eq!(order(&steps), [0, 1, 2]);
    assert_eq!((counters.starved, counters.late), (1, 0));
}

#[test]
fn what_is_lost_while_the_stream_waited_adds_no_delay() {
    // Packets 1 to 5 are lost; sound was made up for most of their time when 6 came.
    let (steps, counters) = run(&[(0, 0), (6, 120), (7, 140), (8, 160)], 14);
    assert_eq!(order(&steps), [0, 6, 7, 8]);
    let skips = steps.iter().filter(|step| matches!(step, Step::Skip { .. })).count();
    assert!(skips >= 3, "{steps:?}");
    assert_eq!(counters.concealed + counters.recovered, 5);
}

#[test]
fn a_dead_stream_falls_silent_and_a_new_talkspurt_waits_its_delay_again() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    buffer.insert(packet(start, 0, Duration::ZERO));
    let mut now = start + ms(30);
    assert_eq!(played(&next(&mut buffer, now)), Some(0));
    for _ in 0..100 {
        now += ms(20);
        assert_eq!(next(&mut buffer, now), Step::Wait);
    }
    buffer.insert(packet(start, 101, Duration::ZERO));
    let arrival = start + ms(2_020);
    assert_eq!(next(&mut buffer, arrival + ms(10)), Step::Wait);
    let due = arrival + buffer.target();
    assert_eq!(played(&next(&mut buffer, due)), Some(101));
}

#[test]
fn a_pause_of_the_sender_is_no_loss_and_its_end_comes_with_the_pull_nearest_to_the_delay() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    buffer.insert(packet(start, 0, Duration::ZERO));
    assert_eq!(played(&next(&mut buffer, start + ms(30))), Some(0));
    for frame in 0..23 {
        assert_eq!(next(&mut buffer, start + ms(50 + frame * 20)), Step::Wait);
    }
    // The next in sequence, but half a second later in time.
    let mut resumed = packet(start, 1, Duration::ZERO);
    resumed.timestamp = 48 * 520;
    resumed.arrival = start + ms(520);
    buffer.insert(resumed);
    assert_eq!(next(&mut buffer, start + ms(544)), Step::Wait);
    let step = next(&mut buffer, start + ms(546));
    assert!(matches!(step, Step::Play { join: Join::Pause, .. }), "{step:?}");
    assert_eq!((buffer.counters().concealed, buffer.counters().recovered), (0, 0));
}

#[test]
fn a_short_pause_is_kept_as_long_as_it_was() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    buffer.insert(packet(start, 0, Duration::ZERO));
    assert_eq!(played(&next(&mut buffer, start + ms(30))), Some(0));
    let mut resumed = packet(start, 1, Duration::ZERO);
    resumed.timestamp = 48 * 70;
    resumed.arrival = start + ms(70);
    buffer.insert(resumed);
    assert_eq!(next(&mut buffer, start + ms(80)), Step::Wait);
    assert_eq!(played(&next(&mut buffer, start + ms(100))), Some(1));
}

#[test]
fn a_sender_whose_clock_stands_still_in_a_pause_is_not_thought_late() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    for sequence in 0..100 {
        buffer.insert(packet(start, sequence, Duration::ZERO));
        next(&mut buffer, start + ms(sequence * 20 + 30));
    }
    for frame in 0..50 {
        next(&mut buffer, start + ms(2_030 + frame * 20));
    }
    // Muted for as long, and not a sample further.
    let late = ms(700);
    buffer.insert(packet(start, 100, late));
    let arrival = start + ms(2_000) + late;
    assert_eq!(played(&next(&mut buffer, arrival + ms(30))), Some(100));
    for sequence in 101..130 {
        buffer.insert(packet(start, sequence, late));
    }
    assert!(buffer.target() <= ms(30), "{:?}", buffer.target());
}

/// A buffer that has played packets 0 to 99, and when it will have waited for two seconds in vain.
fn stalled(start: Instant) -> (JitterBuffer, Instant) {
    let mut buffer = JitterBuffer::default();
    for sequence in 0..100 {
        buffer.insert(packet(start, sequence, Duration::ZERO));
        assert_eq!(played(&next(&mut buffer, start + ms(sequence * 20 + 30))), Some(sequence));
    }
    for frame in 0..100 {
        assert_eq!(next(&mut buffer, start + ms(2_030 + frame * 20)), Step::Wait);
    }
    (buffer, start + ms(4_030))
}

#[test]
fn what_a_full_buffer_drops_is_the_oldest() {
    let start = base();
    for burst in [100, CAPACITY as u64, 150, 250] {
        let (mut buffer, now) = stalled(start);
        for sequence in 100..100 + burst {
            buffer.insert(Packet { arrival: now, ..packet(start, sequence, Duration::ZERO) });
        }
        let steps: Vec<_> = (0..60).map(|at| next(&mut buffer, now + ms(40 + at * 20))).collect();
        let played = order(&steps);
        assert!((20..=40).contains(&played.len()), "{} of {burst}", played.len());
        assert_eq!(played.last(), Some(&(99 + burst)));
        assert!(played.is_sorted() && buffer.counters().restarts == 0);
    }
}

#[test]
fn what_piles_up_little_by_little_is_no_longer_than_what_comes_at_once() {
    let start = base();
    for keeps_all in [false, true] {
        let (mut buffer, mut now) = stalled(start);
        buffer.keeps_all = keeps_all;
        let mut played = 0;
        for sequence in 100..200 {
            buffer.insert(Packet { arrival: now, ..packet(start, sequence, Duration::ZERO) });
            now += ms(3);
            if sequence % 6 == 0 {
                played += order(&[next(&mut buffer, now)]).len();
            }
        }
        assert_eq!(buffer.len() <= 36, !keeps_all, "{} packets wait", buffer.len());
        assert_eq!(played + buffer.len() == 100, keeps_all);
    }
}

#[test]
fn a_packet_that_is_dated_into_the_future_holds_up_nothing() {
    let start = base();
    for ahead in [1 << 31, 48_000 * 3] {
        let (mut buffer, mut played) = (JitterBuffer::default(), 0);
        for pair in 0..100 {
            for sequence in [pair * 2, pair * 2 + 1] {
                let mut packet = packet(start, sequence, Duration::ZERO);
                packet.timestamp += if sequence == 100 { ahead } else { 0 };
                buffer.insert(packet);
            }
            let steps = [60, 80].map(|at| next(&mut buffer, start + ms(pair * 40 + at)));
            played += order(&steps).len();
        }
        assert!(played >= 190, "{played} of 200");
    }
}

#[test]
fn an_outage_counts_as_lost_however_long_and_a_pause_does_not() {
    for gap in [25, 26, 60, 127, 200, 1_000] {
        let start = base();
        for is_pause in [false, true] {
            let mut buffer = JitterBuffer::default();
            buffer.insert(packet(start, 0, Duration::ZERO));
            assert_eq!(played(&next(&mut buffer, start + ms(30))), Some(0));
            for frame in 0..gap {
                assert_eq!(next(&mut buffer, start + ms(50 + frame * 20)), Step::Wait);
            }
            let mut back = packet(start, gap + 1, Duration::ZERO);
            back.sequence = if is_pause { 1 } else { gap + 1 };
            let arrival = back.arrival;
            buffer.insert(back);
            let steps: Vec<_> =
                (0..30).map(|at| next(&mut buffer, arrival + ms(30 + at * 10))).collect();
            let join = steps.iter().find_map(|step| match step {
                Step::Play { join, .. } => Some(*join),
                _ => None,
            });
            let counters = buffer.counters();
            let lost = counters.concealed + counters.recovered;
            let expected = if is_pause { (Join::Pause, 0) } else { (Join::Next, gap) };
            assert_eq!((join.unwrap(), lost), expected, "{gap}: {steps:?}");
        }
    }
}

#[test]
fn jitter_raises_the_target_at_once_and_calm_lowers_it_slowly() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    for sequence in 0..50 {
        buffer.insert(packet(start, sequence, ms(sequence % 5 * 25)));
        next(&mut buffer, start + ms(sequence * 20 + 200));
    }
    assert!(buffer.target() >= ms(110), "{:?}", buffer.target());
    let calm = |buffer: &mut JitterBuffer, sequences: std::ops::Range<u64>| {
        for sequence in sequences {
            buffer.insert(packet(start, sequence, ms(0)));
            next(buffer, start + ms(sequence * 20 + 200));
        }
    };
    calm(&mut buffer, 50..100);
    assert!(buffer.target() >= ms(110), "{:?}", buffer.target());
    calm(&mut buffer, 100..700);
    assert_eq!(buffer.target(), MIN_TARGET);
}

#[test]
fn the_target_stays_in_bounds_whatever_the_jitter() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    for sequence in 0..400 {
        buffer.insert(packet(start, sequence, ms(sequence * 7919 % 700)));
        next(&mut buffer, start + ms(sequence * 20 + 200));
        assert!((MIN_TARGET..=MAX_TARGET).contains(&buffer.target()));
    }
    assert_eq!(buffer.target(), MAX_TARGET);
}

#[test]
fn loss_makes_room_for_the_packet_that_carries_the_copy() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    for sequence in 0..200 {
        if sequence % 20 != 7 {
            buffer.insert(packet(start, sequence, Duration::ZERO));
        }
        next(&mut buffer, start + ms(sequence * 20 + 30));
    }
    assert_eq!(buffer.target(), ms(30));
}

#[test]
fn delay_that_is_not_needed_is_surplus() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    for sequence in 0..200 {
        buffer.insert(packet(start, sequence, Duration::ZERO));
        // Played 200 ms after arrival throughout.
        let Some(behind) = sequence.checked_sub(10) else { continue };
        let now = start + ms(behind * 20 + 200);
        next(&mut buffer, now);
    }
    let now = start + ms(190 * 20 + 200);
    // Whatever the player still holds is played before the next packet.
    assert_eq!(buffer.surplus(now, 0), Some(180_000));
    assert_eq!(buffer.surplus(now, FRAME_RTP), Some(200_000));
}

#[test]
fn a_restarted_stream_is_taken_up_where_it_goes_on() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    buffer.insert(packet(start, 50_000, Duration::ZERO));
    let mut again = packet(start, 3, Duration::ZERO);
    again.arrival = start + ms(1_000_200);
    let at = again.arrival;
    buffer.insert(again);
    let due = at + buffer.target();
    assert_eq!(played(&next(&mut buffer, due)), Some(3));
}

#[test]
fn another_ssrc_starts_afresh_after_the_initial_delay_and_strays_of_the_old_are_dropped() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    for sequence in 0..5 {
        buffer.insert(packet(start, sequence, Duration::ZERO));
        next(&mut buffer, start + ms(sequence * 20 + 30));
    }
    let other = |sequence: u64, arrival: u64| Packet {
        ssrc: 2,
        sequence: 40_000 + sequence,
        timestamp: 7_000_000 + sequence * u64::from(FRAME_RTP),
        arrival: start + ms(arrival),
        ..packet(start, 0, Duration::ZERO)
    };
    buffer.insert(other(0, 100));
    buffer.insert(packet(start, 5, Duration::ZERO));
    buffer.insert(other(1, 120));
    assert_eq!(next(&mut buffer, start + ms(120)), Step::Wait);
    let step = next(&mut buffer, start + ms(130));
    assert!(matches!(&step, Step::Play { packet, join: Join::Fresh } if packet.ssrc == 2));
    let step = next(&mut buffer, start + ms(150));
    assert!(matches!(&step, Step::Play { packet, join: Join::Next } if packet.ssrc == 2));
    assert_eq!((buffer.counters().restarts, buffer.counters().late), (1, 1));
}

#[test]
fn drift_of_the_clocks_is_measured() {
    let start = base();
    for ppm in [-100.0_f64, 100.0] {
        let mut buffer = JitterBuffer::default();
        for sequence in 0..6_000_u64 {
            let mut packet = packet(start, sequence, Duration::ZERO);
            let real = sequence as f64 * 20_000.0 / (1.0 + ppm / 1e6);
            let jitter = sequence * 7919 % 20 * 1_000;
            packet.arrival = start + Duration::from_micros(real as u64 + jitter);
            let now = packet.arrival;
            buffer.insert(packet);
            next(&mut buffer, now);
        }
        assert!((buffer.drift_ppm() - ppm).abs() < 5.0, "{} of {ppm}", buffer.drift_ppm());
    }
}

proptest! {
    /// Whatever comes, in whatever order and however late: packets play in order, each once.
    #[test]
    fn any_arrivals_play_in_order(
        arrivals in proptest::collection::vec((0_u64..100, 0_u64..3_000), 0..200)
    ) {
        let (steps, _) = run(&arrivals, 200);
        prop_assert!(order(&steps).windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn hostile_numbers_do_not_panic(
        packets in proptest::collection::vec(
            (0_u32..3, any::<u64>(), any::<u64>(), 1_u32..5_760, 0_u8..3, 0_u64..400),
            0..100,
        )
    ) {
        let start = base();
        let mut buffer = JitterBuffer::default();
        let mut now = start;
        for (ssrc, sequence, timestamp, duration, origin, after) in packets {
            now += ms(after);
            let origin = match origin {
                0 => Origin::Sent,
                1 => Origin::Resent,
                _ => Origin::Redundant,
            };
            // Half of them are possible ones.
            let shift = if sequence % 2 == 0 { 16 } else { 0 };
            let (sequence, timestamp) = (sequence >> shift, timestamp >> shift);
            let payload = Arc::from(WITH_COPY.as_slice());
            buffer.insert(Packet {
                ssrc, sequence, timestamp, duration, arrival: now, origin, payload,
            });
            for _ in 0..3 {
                let _ = next(&mut buffer, now + ms(3));
            }
            let _ = (buffer.surplus(now, 480), buffer.drift_ppm());
        }
    }
}
