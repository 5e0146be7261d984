//! How long to wait before the next attempt, and when to give up.
//!
//! Consecutive failures are counted, so a long session that loses its connection now and then never
//! runs out of retries.

use std::time::Duration;

/// Delays of 1 s, doubling, at most 30 s, five in a row; reset on success. Each is shortened by up
/// to a quarter at random, so that many sessions that lost one provider do not return at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    retries: u32,
    failures: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(30), 5)
    }
}

impl Backoff {
    /// `first` delay, doubled after each failure up to `longest`; `retries` consecutive attempts.
    pub const fn new(first: Duration, longest: Duration, retries: u32) -> Self {
        Self { first, longest, retries, failures: 0 }
    }

    /// Counts a failure and gives the wait before the next attempt, `None` when all retries are
    /// spent. `random` in 0..1 is the jitter (see [`super::random_fraction`]).
    pub fn next_delay(&mut self, random: f64) -> Option<Duration> {
        if self.failures >= self.retries {
            return None;
        }
        let delay = self.first.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures += 1;
        let random = if random.is_finite() { random.clamp(0.0, 1.0) } else { 0.0 };
        Some(delay.min(self.longest).mul_f64(1.0 - random / 4.0))
    }

    /// The connection has proved itself: the next failure is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Consecutive failures so far.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether the next failure is the last.
    pub const fn is_spent(&self) -> bool {
        self.failures >= self.retries
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(backoff: &mut Backoff) -> Vec<u64> {
        std::iter::from_fn(|| backoff.next_delay(0.0)).map(|delay| delay.as_secs()).collect()
    }

    #[test]
    fn five_retries_double_from_one_second() {
        assert_eq!(seconds(&mut Backoff::default()), [1, 2, 4, 8, 16]);
    }

    #[test]
    fn no_delay_is_longer_than_the_longest() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), 8);
        assert_eq!(seconds(&mut backoff), [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn success_gives_all_retries_back() {
        let mut backoff = Backoff::default();
        assert_eq!(seconds(&mut backoff).len(), 5);
        assert!(backoff.is_spent());
        backoff.reset();
        assert_eq!(seconds(&mut backoff), [1, 2, 4, 8, 16]);
    }

    proptest! {
        #[test]
        fn jitter_only_shortens_and_by_a_quarter_at_most(random in any::<f64>(), failures in 0_u32..5) {
            let mut with = Backoff { failures, ..Backoff::default() };
            let mut without = with;
            let (jittered, full) =
                (with.next_delay(random).unwrap(), without.next_delay(0.0).unwrap());
            prop_assert!(jittered <= full && jittered >= full.mul_f64(0.75));
        }
    }
}
