//! Whether a provider is worth asking: a circuit breaker, without clock or I/O of its own.
//!
//! One failure opens it: whoever talks to somebody cannot afford to find out twice. After a while
//! one caller is let through to see (half open); success closes it, failure doubles the while.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Rest after the first failure.
const FIRST: Duration = Duration::from_secs(5);
/// Longest rest.
const LONGEST: Duration = Duration::from_mins(2);
/// Rest after a refusal that only an operator can mend.
const REFUSED: Duration = Duration::from_mins(1);
/// A probe of which nothing is heard for so long has been given up.
const PROBE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// One caller is finding out.
    HalfOpen {
        since: Instant,
    },
}

/// How bad a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It may work again in a moment.
    Passing,
    /// Credentials or account: it will not mend by itself.
    Refused,
}

#[derive(Debug, Clone, Copy)]
struct Breaker {
    state: State,
    failures: u32,
}

impl Breaker {
    fn admits(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until } if now < until => false,
            State::HalfOpen { since } if now < since + PROBE => false,
            State::Open { .. } | State::HalfOpen { .. } => {
                self.state = State::HalfOpen { since: now };
                true
            }
        }
    }

    fn failed(&mut self, severity: Severity, now: Instant) {
        let rest = match severity {
            Severity::Passing => FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST),
            Severity::Refused => REFUSED,
        };
        // Calls that were under way when it opened tell nothing new.
        if !matches!(self.state, State::Open { until } if now < until) {
            self.failures = self.failures.saturating_add(1);
        }
        self.state = State::Open { until: now + rest };
    }
}

/// The health of one provider, shared by all sessions that use it.
#[derive(Debug)]
pub struct Health(Mutex<Breaker>);

impl Default for Health {
    fn default() -> Self {
        Self(Mutex::new(Breaker { state: State::Closed, failures: 0 }))
    }
}

impl Health {
    /// Whether to ask it now. In half-open state `true` is told to one caller, who must report.
    pub fn admits(&self, now: Instant) -> bool {
        self.0.lock().admits(now)
    }

    pub fn succeeded(&self) {
        *self.0.lock() = Breaker { state: State::Closed, failures: 0 };
    }

    pub fn failed(&self, severity: Severity, now: Instant) {
        self.0.lock().failed(severity, now);
    }

    /// Nothing is known to be wrong.
    pub fn is_closed(&self) -> bool {
        matches!(self.0.lock().state, State::Closed)
    }
}

/// The order in which to try: those that are admitted, then the rest. Silence would be worse than
/// asking somebody who failed a moment ago.
pub fn order<'a>(healths: impl Iterator<Item = &'a Health>, now: Instant) -> Vec<usize> {
    let (mut admitted, mut rest) = (Vec::new(), Vec::new());
    for (at, health) in healths.enumerate() {
        // Once somebody sound is found nobody behind is probed: a probe is taken up only when used.
        let take = if admitted.is_empty() { health.admits(now) } else { health.is_closed() };
        if take { &mut admitted } else { &mut rest }.push(at);
    }
    admitted.append(&mut rest);
    admitted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn one_failure_opens_it_and_one_probe_at_a_time_closes_it() {
        let (health, start) = (Health::default(), crate::clock::now());
        assert!(health.admits(start));
        health.failed(Severity::Passing, start);
        assert!(!health.admits(at(start, 4)));
        assert!(health.admits(at(start, 5)), "half open");
        assert!(!health.admits(at(start, 6)), "one probe at a time");
        health.succeeded();
        assert!(health.admits(at(start, 6)) && health.is_closed());
    }

    #[test]
    fn each_failed_probe_doubles_the_rest() {
        let (health, start) = (Health::default(), crate::clock::now());
        health.failed(Severity::Passing, start);
        assert!(health.admits(at(start, 5)));
        health.failed(Severity::Passing, at(start, 5));
        assert!(!health.admits(at(start, 14)));
        assert!(health.admits(at(start, 15)));
    }

    #[test]
    fn a_refusal_rests_a_minute() {
        let (health, start) = (Health::default(), crate::clock::now());
        health.failed(Severity::Refused, start);
        assert!(!health.admits(at(start, 59)));
        assert!(health.admits(at(start, 60)));
    }

    #[test]
    fn a_probe_that_is_never_heard_of_is_given_up() {
        let (health, start) = (Health::default(), crate::clock::now());
        health.failed(Severity::Passing, start);
        assert!(health.admits(at(start, 5)));
        assert!(health.admits(at(start, 35)));
    }

    #[test]
    fn the_sick_are_asked_last() {
        let healths: Vec<Health> = (0..3).map(|_| Health::default()).collect();
        let start = crate::clock::now();
        healths[0].failed(Severity::Passing, start);
        assert_eq!(order(healths.iter(), start), [1, 2, 0]);
        assert_eq!(order(healths.iter(), at(start, 5)), [0, 1, 2]);
        assert_eq!(order(healths.iter(), at(start, 5)), [1, 2, 0], "it is being probed");
    }

    proptest! {
        #[test]
        fn it_always_admits_somebody_again(
            steps in proptest::collection::vec((0_u64..200, 0_u8..3), 0..40),
        ) {
            let (health, start) = (Health::default(), crate::clock::now());
            let mut now = 0;
            for (wait, what) in steps {
                now += wait;
                match what {
                    0 => health.failed(Severity::Passing, at(start, now)),
                    1 => health.failed(Severity::Refused, at(start, now)),
                    _ => {
                        if health.admits(at(start, now)) {
                            health.succeeded();
                        }
                    }
                }
            }
            prop_assert!(health.admits(at(start, now + LONGEST.as_secs())));
        }
    }
}
