//! The audio that the provider has not made final yet: what a new connection is sent again.

use std::collections::VecDeque;

use super::driver::SAMPLE_RATE;

/// Of audio in which nobody speaks so much is kept: the beginning of a word may be soft.
const QUIET: u64 = SAMPLE_RATE as u64 / 2;
/// Mean level from which audio may be speech: about -46 dBFS.
const LOUD: i64 = 160;
/// Grown in steps of a quarter of a second.
const STEP: usize = SAMPLE_RATE as usize / 4;
/// What is kept for the next utterance.
const SPARE: usize = SAMPLE_RATE as usize;

/// Mono s16 samples from the last final to now, numbered from the stream's first sample; bounded,
/// the oldest go first.
#[derive(Debug)]
pub struct Backlog {
    samples: VecDeque<i16>,
    start: u64,
    capacity: usize,
    /// Number of the sample after the last loud ones.
    loud_until: u64,
}

impl Backlog {
    pub const fn new(capacity: usize) -> Self {
        Self { samples: VecDeque::new(), start: 0, capacity, loud_until: 0 }
    }

    /// Number of the oldest sample held.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// Number of the next sample to come.
    pub fn end(&self) -> u64 {
        self.start + self.samples.len() as u64
    }

    pub fn len(&self) -> usize {
        self.samples.len()
    }

    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Appends samples; gives whether they are loud enough to be speech.
    pub fn push(&mut self, samples: &[i16]) -> bool {
        // By steps, not by doubling: a pause without a final may be long.
        if self.samples.capacity() - self.samples.len() < samples.len() {
            self.samples.reserve_exact(samples.len().max(STEP));
        }
        self.samples.extend(samples);
        let surplus = self.samples.len().saturating_sub(self.capacity);
        self.samples.drain(..surplus);
        self.start += surplus as u64;
        let level: i64 = samples.iter().map(|sample| i64::from(sample.unsigned_abs())).sum();
        let loud = level >= LOUD * samples.len() as i64 && level > 0;
        if loud {
            self.loud_until = self.end();
        }
        loud
    }

    /// Until where nobody will miss anything: all that is held is too quiet for speech.
    pub fn quiet_until(&self) -> Option<u64> {
        (self.loud_until <= self.start).then(|| self.end().saturating_sub(QUIET))
    }

    /// Everything before sample `until` is final: it will not be needed again.
    pub fn settle(&mut self, until: u64) {
        let settled = until.min(self.end()).saturating_sub(self.start);
        self.samples.drain(..settled as usize);
        self.start += settled;
        // What a long utterance or an outage took is given back.
        if self.samples.capacity() > self.samples.len() + 2 * SPARE {
            self.samples.shrink_to(self.samples.len() + SPARE);
        }
    }

    /// All that is held.
    pub fn to_vec(&self) -> Vec<i16> {
        self.since(0).1
    }

    /// What is held from number `from` on, with the number of its first sample.
    pub fn since(&self, from: u64) -> (u64, Vec<i16>) {
        let from = from.clamp(self.start, self.end());
        (from, self.samples.range((from - self.start) as usize..).copied().collect())
    }

    /// At most `count` samples from number `from`, which is moved to the oldest held if that is
    /// later, as s16 little-endian.
    pub fn bytes(&self, from: u64, count: usize) -> Vec<u8> {
        let skip = (from.saturating_sub(self.start) as usize).min(self.samples.len());
        let count = count.min(self.samples.len() - skip);
        self.samples.range(skip..skip + count).flat_map(|sample| sample.to_le_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_final_goes_and_the_numbers_stay() {
        let mut backlog = Backlog::new(10);
        backlog.push(&[0, 1, 2, 3, 4]);
        backlog.settle(2);
        backlog.push(&[5]);
        assert_eq!((backlog.start(), backlog.end()), (2, 6));
        assert_eq!(backlog.bytes(4, 10), [4, 0, 5, 0]);
        assert_eq!(backlog.since(4), (4, vec![4, 5]));
        assert_eq!(backlog.since(0), (2, vec![2, 3, 4, 5]));
        assert_eq!(backlog.since(99), (6, vec![]));
        backlog.settle(1);
        assert_eq!(backlog.start(), 2);
        backlog.settle(u64::MAX);
        assert_eq!((backlog.start(), backlog.is_empty()), (6, true));
        assert!(backlog.bytes(9, 1).is_empty());
    }

    #[test]
    fn nobody_misses_what_is_quiet_and_a_loud_word_is_held_with_all_that_follows() {
        let quiet = QUIET as usize;
        let mut backlog = Backlog::new(30 * quiet);
        assert!(!backlog.push(&vec![20; 3 * quiet]));
        assert_eq!(backlog.quiet_until(), Some(2 * QUIET));
        backlog.settle(2 * QUIET);
        assert!(backlog.push(&vec![-400; quiet / 2]));
        assert!(!backlog.push(&vec![20; 5 * quiet]));
        assert_eq!(backlog.quiet_until(), None);
        backlog.settle(3 * QUIET + QUIET / 2);
        assert_eq!(backlog.quiet_until(), Some(backlog.end() - QUIET));
    }

    #[test]
    fn what_a_long_utterance_took_is_given_back() {
        let mut backlog = Backlog::new(60 * SPARE);
        for _ in 0..40 {
            backlog.push(&vec![400; STEP]);
        }
        assert!(backlog.samples.capacity() <= 10 * SPARE + STEP, "it grows by steps");
        backlog.settle(u64::MAX);
        assert!(backlog.samples.capacity() <= SPARE);
    }

    #[test]
    fn the_oldest_go_when_it_is_full() {
        let mut backlog = Backlog::new(3);
        backlog.push(&[0, 1, 2, 3, 4]);
        assert_eq!((backlog.start(), backlog.end()), (2, 5));
        assert_eq!(backlog.bytes(0, 1), [2, 0]);
    }
}
