//! What was heard, by the clock: several streams laid into one stereo timeline.
//!
//! Pure: 16 kHz, users on the left, the agent on the right. A stream that goes on is laid end to
//! end; after a pause it is laid where the clock says.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::audio::fade::fade_out;

pub const RATE: u32 = 16_000;
/// A stream whose samples come later than this, 200 ms, has paused.
const JITTER: u64 = RATE as u64 / 5;
/// A stream goes on before its time by so much: a voice is handed over ahead of it (`LEAD_MS`), and what
/// a network held back comes at once. 600 ms.
const EARLY: u64 = RATE as u64 * 3 / 5;
/// Samples are waited for this long before a frame is given out.
const DELAY: Duration = Duration::from_millis(400);
/// Nothing is laid further ahead than this.
const AHEAD: u64 = RATE as u64 * 2;
/// 20 ms: one Opus frame.
pub const FRAME: usize = RATE as usize / 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Left.
    User,
    /// Right.
    Agent,
}

impl Side {
    fn channel(self) -> usize {
        match self {
            Self::User => 0,
            Self::Agent => 1,
        }
    }
}

/// Where a stream has got to; one for each microphone and one for the voice.
#[derive(Debug, Default)]
pub struct Cursor {
    next: Option<u64>,
}

#[derive(Debug)]
pub struct Timeline {
    begun: Instant,
    /// The position of the first of `mixed`.
    base: u64,
    mixed: VecDeque<[i16; 2]>,
}

impl Timeline {
    pub fn new(begun: Instant) -> Self {
        Self { begun, base: 0, mixed: VecDeque::new() }
    }

    fn position(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.begun);
        (since.as_micros() as u64).saturating_mul(u64::from(RATE)) / 1_000_000
    }

    /// Lays samples that arrived at `now`.
    pub fn lay(&mut self, side: Side, cursor: &mut Cursor, samples: &[i16], now: Instant) {
        let arrived = self.position(now).saturating_sub(samples.len() as u64);
        let goes_on =
            cursor.next.filter(|next| arrived <= next + JITTER && *next <= arrived + EARLY);
        let from = goes_on.unwrap_or(arrived);
        let channel = side.channel();
        for (sample, at) in samples.iter().zip(from..) {
            let Some(index) = at.checked_sub(self.base) else { continue };
            if index >= AHEAD {
                break;
            }
            let index = index as usize;
            if index >= self.mixed.len() {
                self.mixed.resize(index + 1, [0; 2]);
            }
            let there = &mut self.mixed[index][channel];
            *there = there.saturating_add(*sample);
        }
        cursor.next = Some(from + samples.len() as u64);
    }

    /// What was laid beyond `now` will not be heard, but for the 10 ms in which the track fades out. The
    /// stream is the only one on its side.
    pub fn cut(&mut self, side: Side, cursor: &mut Cursor, now: Instant) {
        let heard = self.position(now).saturating_sub(self.base) as usize;
        let channel = side.channel();
        let mut fading: Vec<i16> =
            self.mixed.iter().skip(heard).take(FRAME / 2).map(|there| there[channel]).collect();
        fade_out(&mut fading);
        let fading = fading.into_iter().chain(std::iter::repeat(0));
        for (there, sample) in self.mixed.iter_mut().skip(heard).zip(fading) {
            there[channel] = sample;
        }
        cursor.next = None;
    }

    /// The next 20 ms, interleaved, once nothing more is awaited for it; or at once when `all`.
    pub fn next_frame(&mut self, now: Instant, all: bool) -> Option<[i16; 2 * FRAME]> {
        let end = self.base + FRAME as u64;
        let due = self.position(now.checked_sub(DELAY).unwrap_or(self.begun)) >= end;
        let rest = all && !self.mixed.is_empty();
        if !due && !rest {
            return None;
        }
        let mut frame = [0; 2 * FRAME];
        for pair in frame.chunks_exact_mut(2) {
            pair.copy_from_slice(&self.mixed.pop_front().unwrap_or_default());
        }
        self.base = end;
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(timeline: &mut Timeline, now: Instant) -> Vec<[i16; 2]> {
        let mut out = Vec::new();
        while let Some(frame) = timeline.next_frame(now, false) {
            out.extend(frame.chunks_exact(2).map(|pair| [pair[0], pair[1]]));
        }
        out
    }

    #[test]
    fn a_stream_that_goes_on_has_no_gaps_and_a_pause_is_silence() {
        let begun = crate::clock::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let (mut timeline, mut cursor) = (Timeline::new(begun), Cursor::default());
        // 10 ms each, arriving with jitter.
        for (ms, value) in [(100, 1), (125, 2), (127, 3), (140, 4)] {
            timeline.lay(Side::User, &mut cursor, &[value; 160], at(ms));
        }
        timeline.lay(Side::User, &mut cursor, &[9; 160], at(1_010));
        let mixed = frames(&mut timeline, at(2_000));
        let left = |ms: usize| mixed[ms * 16][0];
        assert_eq!(
            [left(89), left(90), left(100), left(110), left(120), left(130)],
            [0, 1, 2, 3, 4, 0]
        );
        assert_eq!([left(999), left(1_000), left(1_011)], [0, 9, 0]);
        assert!(mixed.iter().all(|pair| pair[1] == 0), "the other side is silent");
    }

    #[test]
    fn what_is_handed_over_ahead_is_laid_end_to_end_and_what_is_cleared_is_not_there() {
        let begun = crate::clock::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let (mut timeline, mut cursor) = (Timeline::new(begun), Cursor::default());
        let mut frame = 0;
        let mut hand_over = |timeline: &mut Timeline, cursor: &mut Cursor, frames, ms| {
            for _ in 0..frames {
                frame += 1;
                timeline.lay(Side::Agent, cursor, &[frame; 160], at(ms));
            }
        };
        // As the playout does: twenty frames, and ten whenever ten are left.
        hand_over(&mut timeline, &mut cursor, 20, 10);
        for ms in [110, 210, 310] {
            hand_over(&mut timeline, &mut cursor, 10, ms);
        }
        timeline.cut(Side::Agent, &mut cursor, at(350));
        hand_over(&mut timeline, &mut cursor, 1, 400);
        let mixed = frames(&mut timeline, at(1_000));
        for ms in 0..350 {
            assert_eq!(mixed[ms * 16][1] as usize, ms / 10 + 1, "at {ms} ms");
        }
        let fading = mixed[350 * 16..360 * 16].iter().map(|pair| pair[1]);
        assert!(fading.is_sorted_by(|a, b| a >= b), "it fades out");
        assert!(mixed[360 * 16..390 * 16].iter().all(|pair| pair[1] == 0), "it was cleared");
        assert_eq!(mixed[390 * 16][1], 51);
    }

    #[test]
    fn two_users_are_mixed_and_the_agent_is_on_its_own_side() {
        let begun = crate::clock::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut timeline = Timeline::new(begun);
        let [mut ann, mut bob, mut agent] = [(); 3].map(|()| Cursor::default());
        timeline.lay(Side::User, &mut ann, &[i16::MAX; 320], at(20));
        timeline.lay(Side::User, &mut bob, &[5; 320], at(20));
        timeline.lay(Side::Agent, &mut agent, &[7; 320], at(20));
        let mixed = frames(&mut timeline, at(420));
        assert_eq!(mixed.len(), 320);
        assert!(mixed.iter().all(|pair| *pair == [i16::MAX, 7]), "and never wraps around");
        assert!(timeline.next_frame(at(420), false).is_none(), "the rest is awaited");
    }

    #[test]
    fn nothing_is_laid_far_ahead_or_into_what_is_given_out() {
        let begun = crate::clock::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let (mut timeline, mut cursor) = (Timeline::new(begun), Cursor::default());
        assert!(!frames(&mut timeline, at(1_000)).is_empty());
        timeline.lay(Side::User, &mut cursor, &[1; 160], at(100));
        timeline.lay(Side::User, &mut Cursor::default(), &[1; 160], at(100_000));
        assert!(timeline.mixed.len() <= AHEAD as usize);
    }
}
