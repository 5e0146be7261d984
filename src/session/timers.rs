//! The session's timers: named in one enum, kept in one table.

use std::time::{Duration, Instant};

/// Every deadline that a session can wait for. Of timers that are due, the earliest fires first;
/// of equals, the first in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Timer {
    /// LISTENING: the silence threshold has passed.
    Endpointing,
    /// LISTENING: the final transcript (or the end of speech) does not come; commit what is there.
    MaxEndpointing,
    /// LISTENING: speech has ended and no transcript came.
    Transcript,
    /// LISTENING: the detector claims speech for ever, without words.
    SpeechGuard,
    /// SPEAKING: the user's speech has lasted long enough to interrupt.
    MinInterruption,
    /// The agent is held and no words came: it goes on.
    FalseInterruption,
    /// The model's next text is awaited.
    LlmText,
    /// The first audio of a speech is awaited.
    TtsFirstAudio,
    /// THINKING has lasted too long for whatever reason.
    Thinking,
    /// The playout of a speech has stopped progressing.
    Playout,
    /// Longest agent turn.
    MaxSpeak,
    /// IDLE: the user counts as away.
    UserAway,
    /// A graceful end, or the last words before any end, that take too long.
    Drain,
}

const COUNT: usize = Timer::Drain as usize + 1;
const ALL: [Timer; COUNT] = [
    Timer::Endpointing,
    Timer::MaxEndpointing,
    Timer::Transcript,
    Timer::SpeechGuard,
    Timer::MinInterruption,
    Timer::FalseInterruption,
    Timer::LlmText,
    Timer::TtsFirstAudio,
    Timer::Thinking,
    Timer::Playout,
    Timer::MaxSpeak,
    Timer::UserAway,
    Timer::Drain,
];

#[derive(Debug, Default)]
pub(super) struct Timers {
    at: [Option<Instant>; COUNT],
}

impl Timers {
    pub fn set(&mut self, timer: Timer, at: Instant) {
        self.at[timer as usize] = Some(at);
    }

    pub fn get(&self, timer: Timer) -> Option<Instant> {
        self.at[timer as usize]
    }

    pub fn clear(&mut self, timers: &[Timer]) {
        for timer in timers {
            self.at[*timer as usize] = None;
        }
    }

    /// Clears all but the bound on an end, which outlives every state.
    pub fn clear_states(&mut self) {
        let drain = self.get(Timer::Drain);
        self.at = [None; COUNT];
        self.at[Timer::Drain as usize] = drain;
    }

    pub fn clear_all(&mut self) {
        self.at = [None; COUNT];
    }

    pub fn next(&self) -> Option<Instant> {
        self.at.iter().flatten().min().copied()
    }

    /// Takes the earliest timer that is due.
    pub fn take_due(&mut self, now: Instant) -> Option<Timer> {
        let due = ALL
            .into_iter()
            .filter_map(|timer| self.get(timer).map(|at| (at, timer)))
            .filter(|(at, _)| *at <= now)
            .min_by_key(|(at, timer)| (*at, *timer as u8))?
            .1;
        self.clear(&[due]);
        Some(due)
    }
}

/// `at + by`, for settings of any size: nothing in a session waits for more than a day.
pub(super) fn later(at: Instant, by: Duration) -> Instant {
    at + by.min(Duration::from_hours(24))
}

/// `at - ms`, or `at` where the clock does not reach back that far.
pub(super) fn earlier(at: Instant, ms: u32) -> Instant {
    at.checked_sub(Duration::from_millis(u64::from(ms))).unwrap_or(at)
}

/// Whole ms from one instant to a later one, else 0.
pub(super) fn ms_between(from: Instant, to: Instant) -> u64 {
    to.saturating_duration_since(from).as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_due_timer_fires_first_and_once() {
        let now = crate::clock::now();
        let mut timers = Timers::default();
        timers.set(Timer::UserAway, now);
        timers.set(Timer::Transcript, now + Duration::from_millis(5));
        timers.set(Timer::Endpointing, now + Duration::from_millis(5));
        timers.set(Timer::Drain, now + Duration::from_millis(50));
        let soon = now + Duration::from_millis(10);
        assert_eq!(timers.next(), Some(now));
        let fired: Vec<_> = std::iter::from_fn(|| timers.take_due(soon)).collect();
        assert_eq!(fired, [Timer::UserAway, Timer::Endpointing, Timer::Transcript]);
        assert_eq!(timers.next(), Some(now + Duration::from_millis(50)));
    }
}
