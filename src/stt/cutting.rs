//! Cuts a stream of audio into utterances, by loudness alone: the session's own detector says when a
//! turn ends (`Finalize`); this finds what belongs to it.

use std::collections::VecDeque;

use crate::stt::driver::SAMPLE_RATE;

const PER_MS: usize = SAMPLE_RATE as usize / 1_000;
/// What is judged at a time: 20 ms.
const FRAME: usize = 20 * PER_MS;
/// Mean level from which audio may be speech: about -46 dBFS.
const LOUD: i64 = 160;
/// Sound for this long is speech.
const ONSET: usize = 60 * PER_MS;
/// Kept from before the onset: the beginning of a word may be soft.
const PRE_ROLL: usize = 300 * PER_MS;
/// Silence that ends an utterance, should nobody say so before.
const HANG_OVER: usize = 800 * PER_MS;
/// An utterance is cut at this length.
const LONGEST: usize = 28_000 * PER_MS;

/// One stretch of speech.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Utterance {
    /// In ms since the stream's first sample.
    pub start_ms: u64,
    pub samples: Vec<i16>,
}

impl Utterance {
    pub const fn duration_ms(&self) -> u64 {
        (self.samples.len() / PER_MS) as u64
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    Started,
    Utterance(Utterance),
}

/// What of the audio goes through the [`Gate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passed<'a> {
    /// Speech, from `start_ms` of the stream on, with what was kept from before it.
    Started {
        start_ms: u64,
        samples: Vec<i16>,
    },
    More(&'a [i16]),
    Ended,
}

/// Lets through what may be speech.
#[derive(Debug, Default)]
pub struct Gate {
    partial: Vec<i16>,
    /// Samples seen so far.
    seen: u64,
    before: VecDeque<i16>,
    loud: usize,
    quiet: usize,
    /// Samples that went through since the start; none while it is shut.
    passed: Option<usize>,
}

impl Gate {
    /// 16 kHz mono s16.
    pub fn push(&mut self, samples: &[i16], mut each: impl FnMut(Passed<'_>)) {
        for sample in samples {
            self.partial.push(*sample);
            if self.partial.len() == FRAME {
                let frame = std::mem::take(&mut self.partial);
                self.frame(&frame, &mut each);
                self.partial = frame;
                self.partial.clear();
            }
        }
    }

    /// The turn has ended: shuts the gate; `true` if it was open.
    pub fn shut(&mut self) -> bool {
        self.loud = 0;
        self.quiet = 0;
        self.passed.take().is_some()
    }

    fn frame(&mut self, frame: &[i16], each: &mut impl FnMut(Passed<'_>)) {
        self.seen += frame.len() as u64;
        let level: i64 = frame.iter().map(|sample| i64::from(sample.unsigned_abs())).sum();
        let is_loud = level >= LOUD * frame.len() as i64;
        if let Some(passed) = &mut self.passed {
            *passed += frame.len();
            let is_long = *passed >= LONGEST;
            each(Passed::More(frame));
            self.quiet = if is_loud { 0 } else { self.quiet + frame.len() };
            if self.quiet >= HANG_OVER || is_long {
                self.shut();
                each(Passed::Ended);
            }
            return;
        }
        self.before.extend(frame);
        let surplus = self.before.len().saturating_sub(PRE_ROLL + ONSET);
        self.before.drain(..surplus);
        self.loud = if is_loud { self.loud + frame.len() } else { 0 };
        if self.loud < ONSET {
            return;
        }
        let samples: Vec<i16> = self.before.drain(..).collect();
        let start = self.seen - samples.len() as u64;
        self.quiet = 0;
        self.passed = Some(samples.len());
        each(Passed::Started { start_ms: start / PER_MS as u64, samples });
    }
}

/// Give it audio as it comes, take cuts out.
#[derive(Debug, Default)]
pub struct Cutter {
    gate: Gate,
    /// What is being said, and where it begins.
    speech: Option<(u64, Vec<i16>)>,
}

impl Cutter {
    /// 16 kHz mono s16.
    pub fn push(&mut self, samples: &[i16]) -> Vec<Cut> {
        let mut cuts = Vec::new();
        let speech = &mut self.speech;
        self.gate.push(samples, |passed| match passed {
            Passed::Started { start_ms, samples } => {
                *speech = Some((start_ms, samples));
                cuts.push(Cut::Started);
            }
            Passed::More(more) => {
                if let Some((_, samples)) = speech {
                    samples.extend(more);
                }
            }
            Passed::Ended => cuts.extend(utterance(speech)),
        });
        cuts
    }

    /// The turn has ended: what has been said of it.
    pub fn finalize(&mut self) -> Option<Cut> {
        self.gate.shut();
        utterance(&mut self.speech)
    }
}

fn utterance(speech: &mut Option<(u64, Vec<i16>)>) -> Option<Cut> {
    let (start_ms, samples) = speech.take()?;
    Some(Cut::Utterance(Utterance { start_ms, samples }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audio(ms: usize, level: i16) -> Vec<i16> {
        vec![level; ms * PER_MS]
    }

    fn brief(cuts: &[Cut]) -> Vec<(u64, u64)> {
        let utterances = cuts.iter().filter_map(|cut| match cut {
            Cut::Started => None,
            Cut::Utterance(it) => Some((it.start_ms, it.duration_ms())),
        });
        utterances.collect()
    }

    #[test]
    fn silence_ends_an_utterance_and_its_beginning_is_kept() {
        let mut cutter = Cutter::default();
        assert!(cutter.push(&audio(1_000, 0)).is_empty());
        assert_eq!(cutter.push(&audio(1_000, 2_000)), [Cut::Started]);
        assert_eq!(brief(&cutter.push(&audio(1_000, 0))), [(700, 2_100)]);
        assert_eq!(cutter.finalize(), None);
    }

    #[test]
    fn a_finalize_ends_it_at_once_and_a_click_is_none() {
        let mut cutter = Cutter::default();
        cutter.push(&audio(40, 2_000));
        cutter.push(&audio(500, 0));
        assert_eq!(cutter.finalize(), None);
        cutter.push(&audio(500, 2_000));
        let cut = cutter.finalize();
        assert_eq!(brief(cut.as_slice()), [(240, 800)]);
    }

    #[test]
    fn an_endless_speech_is_cut() {
        let mut cutter = Cutter::default();
        let cuts = cutter.push(&audio(60_000, 2_000));
        assert_eq!(brief(&cuts).len(), 2);
    }
}
