//! How long packets took on their way, against the fastest of the last seconds.
//!
//! A transit is the arrival less the RTP time, as in RFC 3550 §6.4.1: with an unknown constant in
//! it, so that only differences mean something.

use std::time::Instant;

use crate::codec::RTP_CLOCK;

/// Transits remembered: 5 s of 20 ms frames.
const REMEMBERED: usize = 256;
/// In a stream with pauses so many span minutes, in which clocks drift: older ones are left out.
const OLDEST_US: i64 = 10_000_000;
/// Packets between looking back on all of them.
const EVERY: usize = 8;
/// Until there are so many, the slowest counts instead of the quantile.
const SETTLED: usize = 50;
/// Share of the packets that must come in time, in percent. The rest is made up for; catching the
/// last of them would cost more delay than they are worth.
const IN_TIME_PERCENT: usize = 97;
/// A jump by this much is no jitter: the sender's clock moved.
pub(crate) const RESYNC_US: i64 = 1_000_000;
/// The drift is measured between the fastest packets of spans of this length.
const SPAN_US: i64 = 10_000_000;
const SPANS: usize = 8;
/// Spans needed to tell drift from jitter.
const SPANS_NEEDED: usize = 4;

#[derive(Debug, Clone, Copy, Default)]
struct Transit {
    /// Since the origin, in microseconds.
    at: i64,
    /// In microseconds.
    took: i64,
}

#[derive(Debug)]
pub(crate) struct Transits {
    recent: [Transit; REMEMBERED],
    len: usize,
    at: usize,
    origin: Option<(Instant, u64)>,
    fastest: i64,
    tail: i64,
    /// The fastest of each of the last spans, the current one last.
    spans: [Transit; SPANS],
    span_count: usize,
}

impl Default for Transits {
    fn default() -> Self {
        Self {
            recent: [Transit::default(); REMEMBERED],
            len: 0,
            at: 0,
            origin: None,
            fastest: 0,
            tail: 0,
            spans: [Transit::default(); SPANS],
            span_count: 0,
        }
    }
}

impl Transits {
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Adds one; gives how much longer than the fastest all but the slowest packets take, in
    /// microseconds.
    pub(crate) fn add(&mut self, timestamp: u64, arrival: Instant) -> Option<i64> {
        if self.len > 0 && self.relative(timestamp, arrival).abs() > RESYNC_US {
            self.clear();
        }
        if self.origin.is_none() {
            self.origin = Some((arrival, timestamp));
        }
        let transit = self.transit(timestamp, arrival)?;
        self.recent[self.at] = transit;
        self.at = (self.at + 1) % REMEMBERED;
        self.len = (self.len + 1).min(REMEMBERED);
        self.add_to_span(transit);
        if self.len == 1 {
            self.fastest = transit.took;
        }
        self.fastest = self.fastest.min(transit.took);
        if !self.is_settled() {
            // Few samples say little about the tail.
            let slowest = self.recent[..self.len].iter().map(|t| t.took).max();
            self.tail = slowest.unwrap_or(transit.took) - self.fastest;
        } else if self.at.is_multiple_of(EVERY) {
            self.look_back(transit.at - OLDEST_US);
        }
        Some(self.tail)
    }

    /// Looks at all that is remembered and not older than `since`.
    fn look_back(&mut self, since: i64) {
        let mut all = [0; REMEMBERED];
        let mut count = 0;
        for transit in &self.recent[..self.len] {
            if transit.at >= since {
                all[count] = transit.took;
                count += 1;
            }
        }
        let all = &mut all[..count];
        self.fastest = all.iter().copied().min().unwrap_or(self.fastest);
        let rank = (count * IN_TIME_PERCENT / 100).min(count.saturating_sub(1));
        if !all.is_empty() {
            let (_, tail, _) = all.select_nth_unstable(rank);
            self.tail = *tail - self.fastest;
        }
    }

    /// Says whether enough was seen to believe in calm.
    pub(crate) fn is_settled(&self) -> bool {
        self.len >= SETTLED
    }

    /// How long after its fastest possible arrival the sample of this RTP time would be played,
    /// if it were played at `at`; in microseconds.
    pub(crate) fn relative(&self, timestamp: u64, at: Instant) -> i64 {
        self.transit(timestamp, at).map_or(0, |transit| transit.took.saturating_sub(self.fastest))
    }

    /// How much faster than ours the sender's clock runs.
    pub(crate) fn drift_ppm(&self) -> f64 {
        if self.span_count < SPANS_NEEDED {
            return 0.0;
        }
        // The last span is not over: its fastest packet may be yet to come.
        let (first, last) = (self.spans[0], self.spans[self.span_count - 2]);
        (first.took - last.took) as f64 * 1e6 / (last.at - first.at).max(1) as f64
    }

    fn add_to_span(&mut self, transit: Transit) {
        let span = |t: Transit| t.at.div_euclid(SPAN_US);
        if let Some(last) = self.spans[..self.span_count].last_mut()
            && span(*last) >= span(transit)
        {
            if transit.took < last.took {
                *last = transit;
            }
            return;
        }
        if self.span_count == SPANS {
            self.spans.copy_within(1.., 0);
            self.span_count -= 1;
        }
        self.spans[self.span_count] = transit;
        self.span_count += 1;
    }

    fn transit(&self, timestamp: u64, at: Instant) -> Option<Transit> {
        let (start, first) = self.origin?;
        let elapsed = at
            .checked_duration_since(start)
            .map(|d| d.as_micros() as i64)
            .or_else(|| start.checked_duration_since(at).map(|d| -(d.as_micros() as i64)))?;
        let ticks = i128::from(timestamp) - i128::from(first);
        let media = ticks.checked_mul(1_000_000)? / i128::from(RTP_CLOCK);
        let took = elapsed.saturating_sub(i64::try_from(media).ok()?);
        Some(Transit { at: elapsed, took })
    }
}
