//! When a paced source ticks: every 20 ms, for hours, without drift.
//!
//! The arithmetic alone; the driver sleeps until [`Pacer::deadline`]. Ticks count RTP time, so their
//! count must stay with the clock: time that cannot be made up for is told, to be skipped, and a
//! tick taken early is paid back in the next silence.

use std::time::{Duration, Instant};

use crate::send_queue::TICK;

/// What is late by no more is made up for by a burst (of five packets), which a jitter buffer
/// forgives. A host suspended for longer has left a hole that no burst fills.
const CATCH_UP: Duration = Duration::from_millis(100);

/// See the [module](self).
#[derive(Debug)]
pub struct Pacer {
    /// The next tick's time. Whole ticks from the first, so that sources which begin together are
    /// woken together for ever.
    next: Instant,
    /// A tick is to be taken then, before its time.
    early: Option<Instant>,
    /// Ticks taken before their time: one at most.
    ahead: u32,
}

impl Pacer {
    /// The first tick is due then.
    pub fn new(first: Instant) -> Self {
        Self { next: first, early: None, ahead: 0 }
    }

    /// When the next tick is due.
    pub fn deadline(&self) -> Instant {
        self.early.unwrap_or(self.next)
    }

    /// The due tick is done; it was `quiet` if it sent no sound. Gives the ticks that are lost.
    pub fn ticked(&mut self, now: Instant, quiet: bool) -> u32 {
        if self.early.take().is_some() {
            self.ahead += 1;
        } else {
            self.next += TICK;
        }
        if quiet {
            self.next += TICK * std::mem::take(&mut self.ahead);
        }
        let late = now.saturating_duration_since(self.next);
        if late > CATCH_UP { self.pass(late) } else { 0 }
    }

    /// The deadline of a rest of so many ticks.
    pub fn rest_until(&self, ticks: u32) -> Instant {
        self.next + TICK * ticks.saturating_sub(1)
    }

    /// A rest is over by time. Gives the ticks that went by in it; the next is due.
    pub fn rested(&mut self, now: Instant) -> u32 {
        self.pass(now.saturating_duration_since(self.next))
    }

    /// A rest is over because there is sound, which goes out at once; the tick after it is due when
    /// this one had been. Gives the ticks that went by in it.
    pub fn woken(&mut self, now: Instant) -> u32 {
        let mut passed = self.rested(now);
        if self.next < now {
            self.next += TICK;
            passed = passed.saturating_add(1);
        }
        self.early = (self.next > now).then_some(now);
        passed
    }

    fn pass(&mut self, time: Duration) -> u32 {
        let ticks = (time.as_nanos() / TICK.as_nanos()).min(u128::from(u32::MAX)) as u32;
        self.next += TICK * ticks;
        ticks
    }
}

#[cfg(test)]
mod tests;
