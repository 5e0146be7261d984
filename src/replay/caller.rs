//! A caller who lets the agent finish: the next utterance is spoken when the agent has been heard
//! and has then been quiet. Pure: 10 ms in, 10 ms out.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use crate::audio::level::dbfs;

/// Samples of 10 ms at 16 kHz.
pub const FRAME: usize = 160;
/// Louder than this is the agent's voice, in dBFS.
const AUDIBLE: f32 = -45.0;
/// Frames of quiet after which the agent has finished: 700 ms.
const FINISHED: u32 = 70;
/// Frames without a word of the agent after which the caller speaks all the same: 6 s.
const TIRED: u32 = 600;

/// What a caller has to say, mono s16 at 16 kHz.
#[derive(Debug)]
pub struct PoliteCaller {
    samples: Arc<[i16]>,
    /// Where each utterance lies in the samples.
    utterances: VecDeque<Range<usize>>,
    /// What is being said.
    saying: Range<usize>,
    /// Since the last utterance.
    heard: bool,
    quiet: u32,
}

impl PoliteCaller {
    pub fn new(samples: Arc<[i16]>, utterances: impl IntoIterator<Item = Range<usize>>) -> Self {
        let utterances = utterances
            .into_iter()
            .map(|range| range.start.min(samples.len())..range.end.min(samples.len()))
            .collect();
        Self { samples, utterances, saying: 0..0, heard: false, quiet: 0 }
    }

    /// Whether all has been said.
    pub fn is_done(&self) -> bool {
        self.utterances.is_empty() && self.saying.is_empty()
    }

    /// Hears 10 ms and appends the 10 ms said meanwhile.
    pub fn frame(&mut self, heard: &[i16], said: &mut Vec<i16>) {
        if dbfs(heard) > AUDIBLE {
            (self.heard, self.quiet) = (true, 0);
        } else {
            self.quiet = self.quiet.saturating_add(1);
        }
        let my_turn = self.quiet >= if self.heard { FINISHED } else { TIRED };
        if self.saying.is_empty()
            && my_turn
            && let Some(next) = self.utterances.pop_front()
        {
            self.saying = next;
        }
        let end = (self.saying.start + FRAME).min(self.saying.end);
        let now = self.samples.get(self.saying.start..end).unwrap_or_default();
        if !now.is_empty() {
            // What the agent says from here on is about this.
            (self.heard, self.quiet) = (false, 0);
        }
        said.extend_from_slice(now);
        said.resize(said.len() + FRAME - now.len(), 0);
        self.saying.start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOUD: [i16; FRAME] = [8_000; FRAME];
    const QUIET: [i16; FRAME] = [0; FRAME];

    /// Lets `frames` of what is heard pass; gives how many frames were spoken.
    fn pass(caller: &mut PoliteCaller, heard: &[i16], frames: u32) -> u32 {
        let mut spoken = 0;
        for _ in 0..frames {
            let mut said = Vec::new();
            caller.frame(heard, &mut said);
            assert_eq!(said.len(), FRAME);
            spoken += u32::from(said.iter().any(|sample| *sample != 0));
        }
        spoken
    }

    #[test]
    fn each_utterance_waits_for_the_agent_to_finish() {
        let samples = vec![1_000; FRAME * 5].into();
        let mut caller = PoliteCaller::new(samples, [0..FRAME * 2, FRAME * 3..FRAME * 4 + 80]);
        assert_eq!(pass(&mut caller, &QUIET, 50), 0, "the agent has not said hello");
        assert_eq!(pass(&mut caller, &LOUD, 300), 0);
        assert_eq!(pass(&mut caller, &QUIET, FINISHED - 1), 0);
        assert_eq!(pass(&mut caller, &QUIET, 10), 2);
        assert_eq!(pass(&mut caller, &QUIET, 200), 0, "the answer is waited for");
        assert!(!caller.is_done());
        assert_eq!(pass(&mut caller, &LOUD, 100), 0);
        assert_eq!(pass(&mut caller, &QUIET, FINISHED + 2), 2);
        assert!(caller.is_done());
    }

    #[test]
    fn an_agent_that_says_nothing_does_not_hold_the_caller_up() {
        let mut caller = PoliteCaller::new(vec![1_000; FRAME].into(), std::iter::once(0..9_999));
        assert_eq!(pass(&mut caller, &QUIET, TIRED), 1);
        assert!(caller.is_done());
    }
}
