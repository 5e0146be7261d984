//! Which of the latest packets of a stream came, to see what is missing as soon as it is.

use std::time::{Duration, Instant};

/// Packets looked back on.
const WINDOW: u64 = 64;
/// Of those, how many may still be wanted if they come now: 160 ms of 20 ms frames.
const WANTED: u32 = 8;
/// When no packet comes for longer than this, none is missing: the stream pauses or is over.
const STREAM_PAUSES: Duration = Duration::from_millis(200);
/// Round trips above this bring a packet back too late for any delay that one would talk with.
const MAX_ROUND_TRIP: Duration = Duration::from_millis(100);

/// See the [module](self).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Arrivals {
    stream: Option<u32>,
    highest: u64,
    /// Bit n says that packet `highest - n` came.
    came: u64,
    /// When the latest came.
    latest: Option<Instant>,
    /// Since when missing packets are being asked for.
    asking: Option<(Instant, Duration)>,
}

impl Arrivals {
    /// Takes down that a packet came; gives whether it was missing before.
    pub(crate) fn add(&mut self, ssrc: u32, sequence: u64, now: Instant) -> bool {
        self.latest = Some(now);
        if self.stream != Some(ssrc) {
            // What was sent before the first packet is nobody's loss.
            *self = Self { stream: Some(ssrc), highest: sequence, came: u64::MAX, ..*self };
            return false;
        }
        if let Some(ahead) = sequence.checked_sub(self.highest + 1) {
            self.came = self.came.checked_shl(ahead as u32 + 1).filter(|_| ahead < WINDOW).map_or(
                // A jump: the gap is as good as never sent.
                u64::MAX,
                |came| came | 1,
            );
            self.highest = sequence;
            return false;
        }
        let missed = self.misses(sequence);
        if missed {
            self.came |= 1 << (self.highest - sequence);
        }
        missed
    }

    /// Says whether the packet is one of the latest and did not come.
    pub(crate) fn misses(&self, sequence: u64) -> bool {
        let behind = self.highest.checked_sub(sequence).filter(|behind| *behind < WINDOW);
        behind.is_some_and(|behind| self.came & (1 << behind) == 0)
    }

    /// Says whether a packet is missing now that is still wanted.
    pub(crate) fn misses_any(&self, now: Instant) -> bool {
        let comes = |at: Instant| now.saturating_duration_since(at) < STREAM_PAUSES;
        self.latest.is_some_and(comes) && self.has_holes()
    }

    fn has_holes(&self) -> bool {
        self.stream.is_some() && self.came.trailing_ones() < WANTED
    }

    /// Decides, after each packet, whether missing ones are to be asked for (NACK): if they may
    /// come back in time over a path with this round trip. Gives the decision when it changes.
    pub(crate) fn ask(&mut self, now: Instant, round_trip: Option<Duration>) -> Option<bool> {
        let near = round_trip.filter(|round_trip| *round_trip <= MAX_ROUND_TRIP);
        match (self.asking, near) {
            (None, Some(round_trip)) if self.has_holes() => {
                self.asking = Some((now, round_trip));
                Some(true)
            }
            (Some(_), Some(_)) if self.has_holes() => None,
            (Some(_), _) => {
                self.asking = None;
                Some(false)
            }
            (None, _) => None,
        }
    }

    /// Says whether a packet that was missing comes as the answer to our asking.
    pub(crate) fn was_asked_for(&self, now: Instant) -> bool {
        self.asking.is_some_and(|(since, round_trip)| {
            now.saturating_duration_since(since) >= round_trip.mul_f32(0.9)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn base() -> Instant {
        #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
        Instant::now()
    }

    #[test]
    fn a_gap_is_missing_until_it_is_filled() {
        let mut arrivals = Arrivals::default();
        assert!(!arrivals.add(1, 100, base()));
        assert!(!arrivals.misses(99), "sent before we listened");
        assert!(!arrivals.add(1, 103, base()));
        assert!(arrivals.misses(101) && arrivals.misses(102));
        assert!(arrivals.add(1, 101, base()));
        assert!(!arrivals.add(1, 101, base()), "a duplicate");
        assert!(!arrivals.misses(101) && arrivals.misses(102));
        assert!(!arrivals.add(2, 7, base()), "another stream");
        assert!(!arrivals.misses(6));
    }

    #[test]
    fn nothing_is_missing_of_a_stream_that_pauses() {
        let (mut arrivals, start) = (Arrivals::default(), base());
        arrivals.add(1, 0, start);
        arrivals.add(1, 2, start);
        assert!(arrivals.misses_any(start + Duration::from_millis(199)));
        assert!(!arrivals.misses_any(start + Duration::from_millis(200)));
    }

    #[test]
    fn missing_packets_are_asked_for_while_they_are_wanted_and_near() {
        let near = Some(Duration::from_millis(40));
        let mut arrivals = Arrivals::default();
        arrivals.add(1, 0, base());
        assert_eq!(arrivals.ask(base(), near), None);
        arrivals.add(1, 2, base());
        assert_eq!(arrivals.ask(base(), None), None, "who knows how far it is?");
        assert_eq!(arrivals.ask(base(), Some(Duration::from_millis(101))), None);
        let asked = base();
        assert_eq!(arrivals.ask(asked, near), Some(true));
        assert_eq!(arrivals.ask(asked, near), None, "asked already");
        assert!(!arrivals.was_asked_for(asked + Duration::from_millis(20)), "reordered");
        assert!(arrivals.was_asked_for(asked + Duration::from_millis(40)));
        for sequence in 3..9 {
            arrivals.add(1, sequence, base());
            assert_eq!(arrivals.ask(asked, near), None);
        }
        arrivals.add(1, 9, base());
        assert_eq!(arrivals.ask(asked, near), Some(false), "160 ms later");
    }

    proptest! {
        #[test]
        fn nothing_that_came_is_missing(sequences in proptest::collection::vec(0_u64..200, 1..200)) {
            let mut arrivals = Arrivals::default();
            for (at, sequence) in sequences.iter().enumerate() {
                arrivals.add(1, *sequence, base());
                prop_assert!(sequences[..=at].iter().all(|came| !arrivals.misses(*came)));
            }
        }
    }
}
