use proptest::prelude::*;

use super::*;

fn base() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
    Instant::now()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The packet of `sequence`, sent every 20 ms, which takes `transit`.
fn packet(start: Instant, sequence: u64, transit: Duration) -> Packet {
    Packet {
        sequence,
        timestamp: sequence * u64::from(FRAME_RTP),
        duration: FRAME_RTP,
        arrival: start + ms(sequence * 20) + transit,
        payload: Arc::from([sequence as u8].as_slice()),
    }
}

fn played(step: &Step) -> Option<u64> {
    match step {
        Step::Play { packet, .. } => Some(packet.sequence),
        _ => None,
    }
}

/// Lets packets of `(sequence, arrival in ms)` come and pulls a frame every 20 ms from 60 on.
fn run(arrivals: &[(u64, u64)], frames: u64) -> Vec<Step> {
    let start = base();
    let mut buffer = JitterBuffer::default();
    let mut coming: Vec<_> = arrivals.to_vec();
    coming.sort_by_key(|(_, at)| *at);
    let mut coming = coming.into_iter().peekable();
    (0..frames)
        .map(|frame| {
            let now = 60 + frame * 20;
            while let Some((sequence, at)) = coming.next_if(|(_, at)| *at <= now) {
                let mut packet = packet(start, sequence, Duration::ZERO);
                packet.arrival = start + ms(at);
                buffer.insert(packet);
            }
            buffer.next(start + ms(now))
        })
        .collect()
}

#[test]
fn nothing_before_the_target_delay_and_the_first_packet_right_after() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    assert_eq!(buffer.next(start), Step::Idle);
    buffer.insert(packet(start, 0, Duration::ZERO));
    assert_eq!(buffer.next(start + ms(59)), Step::Idle);
    assert_eq!(played(&buffer.next(start + ms(60))), Some(0));
}

#[test]
fn reordered_packets_play_in_order() {
    let steps = run(&[(1, 0), (0, 5), (3, 50), (2, 60), (4, 80)], 5);
    assert_eq!(steps.iter().filter_map(played).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
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
    let steps = run(&[(0, 0), (2, 40), (3, 60)], 4);
    assert!(matches!(&steps[1], Step::Recover { payload, duration: FRAME_RTP } if payload[0] == 2));
    assert_eq!(played(&steps[2]), Some(2));
}

#[test]
fn a_longer_loss_is_concealed_and_its_end_recovered() {
    let steps = run(&[(0, 0), (3, 20), (4, 40)], 4);
    assert_eq!(steps[1], Step::Conceal { duration: FRAME_RTP });
    assert!(matches!(&steps[2], Step::Recover { payload, .. } if payload[0] == 3));
    assert_eq!(played(&steps[3]), Some(3));
}

#[test]
fn a_late_packet_plays_where_nothing_newer_came() {
    // Packet 1 comes 90 ms after it was due to be played; nothing overtook it.
    let steps = run(&[(0, 0), (1, 170), (2, 175)], 9);
    assert_eq!(steps.iter().filter_map(played).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_dead_stream_falls_silent_and_a_new_talkspurt_waits_its_delay_again() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    buffer.insert(packet(start, 0, Duration::ZERO));
    let mut now = start + ms(60);
    assert_eq!(played(&buffer.next(now)), Some(0));
    let mut concealed = 0;
    while buffer.next(now) != Step::Silence {
        concealed += 1;
        now += ms(20);
    }
    assert_eq!(concealed, MAX_CONCEALED);
    buffer.insert(packet(start, 100, Duration::ZERO));
    let arrival = start + ms(2_000);
    assert_eq!(buffer.next(arrival), Step::Silence);
    assert_eq!(played(&buffer.next(arrival + buffer.target())), Some(100));
}

#[test]
fn a_pause_of_the_sender_is_no_loss_and_its_end_waits_the_delay() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    buffer.insert(packet(start, 0, Duration::ZERO));
    assert_eq!(played(&buffer.next(start + ms(60))), Some(0));
    for frame in 0..u64::from(MAX_CONCEALED) {
        assert!(matches!(buffer.next(start + ms(80 + frame * 20)), Step::Conceal { .. }));
    }
    assert_eq!(buffer.next(start + ms(200)), Step::Silence);
    // The next in sequence, but half a second later in time.
    let mut next = packet(start, 1, Duration::ZERO);
    next.timestamp = 48 * 520;
    next.arrival = start + ms(520);
    buffer.insert(next);
    assert_eq!(buffer.next(start + ms(570)), Step::Silence);
    assert_eq!(played(&buffer.next(start + ms(580))), Some(1));
    assert_eq!((buffer.counters().concealed, buffer.counters().recovered), (0, 0));
}

#[test]
fn a_short_pause_is_kept_as_long_as_it_was() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    buffer.insert(packet(start, 0, Duration::ZERO));
    assert_eq!(played(&buffer.next(start + ms(60))), Some(0));
    let mut next = packet(start, 1, Duration::ZERO);
    next.timestamp = 48 * 70;
    next.arrival = start + ms(70);
    buffer.insert(next);
    assert_eq!(buffer.next(start + ms(80)), Step::Silence);
    assert_eq!(played(&buffer.next(start + ms(130))), Some(1));
}

#[test]
fn jitter_raises_the_target_and_calm_lowers_it() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    for sequence in 0..300 {
        buffer.insert(packet(start, sequence, ms(sequence % 5 * 25)));
        let now = start + ms(sequence * 20 + 200);
        buffer.next(now);
    }
    assert!(buffer.target() >= ms(110), "{:?}", buffer.target());
    for sequence in 300..900 {
        buffer.insert(packet(start, sequence, ms(0)));
        buffer.next(start + ms(sequence * 20 + 200));
    }
    assert_eq!(buffer.target(), MIN_TARGET);
}

#[test]
fn delay_that_is_not_needed_is_reported_as_surplus() {
    let start = base();
    let mut buffer = JitterBuffer::default();
    let mut surplus = Duration::ZERO;
    for sequence in 0..200 {
        buffer.insert(packet(start, sequence, Duration::ZERO));
        // Played 200 ms after arrival throughout.
        let Some(behind) = sequence.checked_sub(10) else { continue };
        if let Step::Play { surplus: now, .. } = buffer.next(start + ms(behind * 20 + 200)) {
            surplus = now;
        }
    }
    assert!(surplus >= ms(100), "{surplus:?}");
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
    assert_eq!(played(&buffer.next(at + buffer.target())), Some(3));
}

proptest! {
    /// Whatever comes, in whatever order and however late: packets play in order, each once, and
    /// never more steps are needed for a frame than the buffer holds packets.
    #[test]
    fn any_arrivals_play_in_order(
        arrivals in proptest::collection::vec((0_u64..100, 0_u64..3_000), 0..200)
    ) {
        let steps = run(&arrivals, 200);
        let order: Vec<_> = steps.iter().filter_map(played).collect();
        prop_assert!(order.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn hostile_numbers_do_not_panic(
        packets in proptest::collection::vec((any::<u64>(), any::<u64>(), 1_u32..5_760), 0..100)
    ) {
        let start = base();
        let mut buffer = JitterBuffer::default();
        for (i, (sequence, timestamp, duration)) in packets.into_iter().enumerate() {
            let arrival = start + ms(i as u64 * 7);
            // Extended from 16 and 32 bits, they stay far below the type's limits.
            let (sequence, timestamp) = (sequence >> 2, timestamp >> 2);
            buffer.insert(Packet { sequence, timestamp, duration, arrival, payload: Arc::from([]) });
            let _ = buffer.next(arrival + ms(3));
        }
    }
}
