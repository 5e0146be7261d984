//! The moments at which the connections and sources of the process do their work.
//!
//! They lie on one grid, so that those on one thread of the engine are woken once for all: to wake
//! up costs more than what is to be done then.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rtc_audio::playout::PULL;

use super::sink::Listeners;

/// A playout that is so late (a suspended host) does not catch up frame by frame.
const GIVE_UP_AFTER: Duration = Duration::from_millis(500);

/// Pulls from one moment of an unpaced listener to the next: a packet of 20 ms.
const STEP: u32 = 2;
/// The same for one who wants frames in batches.
const BATCH_STEP: u32 = 6;

/// Where the grid begins.
static FIRST: OnceLock<Instant> = OnceLock::new();

/// The first moment after `now` that is a whole number of such steps from the very first.
pub(super) fn moment_after(now: Instant, step: Duration) -> Instant {
    let first = *FIRST.get_or_init(|| now);
    let into = now.saturating_duration_since(first).as_nanos() % step.as_nanos();
    now + step.saturating_sub(Duration::from_nanos(into as u64))
}

/// How long a listener may go without being played to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rest {
    /// Pulls until the next, at least 1.
    pulls: u32,
    /// It may be so many in step with all others of the process.
    in_step: bool,
}

impl Rest {
    /// As long as anybody may.
    pub(super) const LONGEST: Self = Self { pulls: BATCH_STEP, in_step: true };

    /// Of one who hears at a steady pace, and has had so many pulls ahead.
    pub(super) fn paced(ahead: u32) -> Self {
        Self { pulls: 1 + ahead, in_step: false }
    }

    /// Of one who takes what there is, in batches if need be. Where nothing came, `dry`, none are
    /// waited for: what comes next may be the beginning of speech.
    pub(super) fn unpaced(dry: bool, batching: bool) -> Self {
        let pulls = if batching && !dry { BATCH_STEP } else { STEP };
        Self { pulls, in_step: true }
    }

    /// The soonest possible.
    pub(super) fn cut_short(self) -> Self {
        Self { pulls: 1, ..self }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self { pulls: self.pulls.min(other.pulls), in_step: self.in_step && other.in_step }
    }
}

/// When a connection's listeners are played to.
#[derive(Debug, Default)]
pub(super) struct Moments {
    next: Option<Instant>,
    /// Pulls since the moment before it.
    pulls: u32,
}

impl Moments {
    /// When the next is, once there are listeners.
    pub(super) fn next(&mut self, listeners: &Listeners, now: Instant) -> Option<Instant> {
        if self.next.is_none() && !listeners.is_empty() {
            (self.next, self.pulls) = (Some(moment_after(now, PULL)), 1);
        }
        self.next
    }

    /// Plays to the listeners if it is time.
    pub(super) fn play(&mut self, listeners: &Listeners, now: Instant) {
        let Some(due) = self.next.filter(|due| *due <= now) else { return };
        let late = now > due + GIVE_UP_AFTER;
        let rest = listeners.play(now, if late { 1 } else { self.pulls });
        let next = |rest: Rest| match rest {
            _ if late => moment_after(now, PULL),
            Rest { pulls, in_step: true } => moment_after(due, PULL * pulls),
            Rest { pulls, in_step: false } => due + PULL * pulls,
        };
        self.next = rest.map(next);
        let since = self.next.map_or(PULL, |next| next - due);
        self.pulls = if late { 1 } else { (since.as_nanos() / PULL.as_nanos()) as u32 };
    }
}
