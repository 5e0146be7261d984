//! From speech probabilities, frame by frame, to the starts and ends of speech.

use std::time::Duration;

use crate::session::input::VadEvent;

/// Samples in a millisecond at 16 kHz, which the detector counts in.
const PER_MS: u32 = 16;

/// When probabilities make speech.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// A frame at or above this probability (0..1) is speech.
    pub enter: f32,
    /// Once in speech, only a frame below this one is silence.
    pub exit: f32,
    /// Speech shorter than this is not told.
    pub min_speech: Duration,
    /// Silence shorter than this does not end speech.
    pub min_silence: Duration,
    /// How late the probabilities are.
    pub lag: Lag,
}

/// How long after the true start or end of speech the probabilities show it. Added to what is
/// measured, so that events tell of true speech and true silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    pub start_ms: u32,
    pub end_ms: u32,
}

/// Finds speech in one stream of probabilities. Pure: time is the samples it was told of.
#[derive(Debug, Clone)]
pub struct Detector {
    thresholds: Thresholds,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// `run` samples of what may become speech.
    Silence { run: u32 },
    /// `run` samples of what may become silence.
    Speech { run: u32 },
}

impl Detector {
    pub fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, state: State::Silence { run: 0 } }
    }

    pub fn is_speech(&self) -> bool {
        matches!(self.state, State::Speech { .. })
    }

    /// Whether speech is going on and nothing says yet that it ends.
    pub fn is_mid_speech(&self) -> bool {
        matches!(self.state, State::Speech { run: 0 })
    }

    /// Whether there is no speech and nothing says yet that it begins.
    pub fn is_quiet(&self) -> bool {
        matches!(self.state, State::Silence { run: 0 })
    }

    /// Takes the probability (0..1) of the next `samples` samples at 16 kHz.
    pub fn push(&mut self, probability: f32, samples: u32) -> Option<VadEvent> {
        let Thresholds { enter, exit, min_speech, min_silence, lag } = self.thresholds;
        let (run, goes_on, lag_ms, minimum) = match &mut self.state {
            // Between the thresholds a run goes on, but none begins.
            State::Silence { run } => {
                let goes_on = probability >= enter || probability >= exit && *run > 0;
                (run, goes_on, lag.start_ms, min_speech)
            }
            State::Speech { run } => {
                let goes_on = probability < exit || probability < enter && *run > 0;
                (run, goes_on, lag.end_ms, min_silence)
            }
        };
        *run = if goes_on { run.saturating_add(samples) } else { 0 };
        let ms = (*run / PER_MS).saturating_add(lag_ms);
        if !goes_on || u128::from(ms) < minimum.as_millis() {
            return None;
        }
        Some(match self.state {
            State::Silence { .. } => {
                self.state = State::Speech { run: 0 };
                VadEvent::Started { speech_ms: ms }
            }
            State::Speech { .. } => {
                self.state = State::Silence { run: 0 };
                VadEvent::Ended { silence_ms: ms }
            }
        })
    }

    /// Ends the stream: speech that is going on ends here.
    pub fn end(&mut self) -> Option<VadEvent> {
        match std::mem::replace(&mut self.state, State::Silence { run: 0 }) {
            State::Speech { run: 0 } => Some(VadEvent::Ended { silence_ms: 0 }),
            State::Speech { run } => {
                let silence_ms = (run / PER_MS).saturating_add(self.thresholds.lag.end_ms);
                Some(VadEvent::Ended { silence_ms })
            }
            State::Silence { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 10 ms at 16 kHz.
    const FRAME: u32 = 160;

    fn detector() -> Detector {
        Detector::new(Thresholds {
            enter: 0.7,
            exit: 0.4,
            min_speech: Duration::from_millis(60),
            min_silence: Duration::from_millis(100),
            lag: Lag::default(),
        })
    }

    /// Pushes `count` frames; the events with the frame (from 1) that brought them.
    fn run(detector: &mut Detector, probability: f32, count: u32) -> Vec<(u32, VadEvent)> {
        (1..=count).filter_map(|n| Some((n, detector.push(probability, FRAME)?))).collect()
    }

    const STARTED: VadEvent = VadEvent::Started { speech_ms: 60 };
    const ENDED: VadEvent = VadEvent::Ended { silence_ms: 100 };

    #[test]
    fn speech_and_silence_are_told_after_their_minimum() {
        let mut detector = detector();
        assert_eq!(run(&mut detector, 0.9, 50), [(6, STARTED)]);
        assert_eq!(run(&mut detector, 0.1, 50), [(10, ENDED)]);
    }

    #[test]
    fn mid_speech_is_from_its_start_until_the_first_frame_of_silence() {
        let mut detector = detector();
        let mut mid_speech = |probability: f32, count: u32| {
            (0..count)
                .map(|_| {
                    detector.push(probability, FRAME);
                    detector.is_mid_speech()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(mid_speech(0.9, 7), [false, false, false, false, false, true, true]);
        assert_eq!(mid_speech(0.1, 1), [false]);
        assert_eq!(mid_speech(0.9, 1), [true]);
        assert!(!mid_speech(0.1, 20).contains(&true));
    }

    #[test]
    fn what_is_too_short_is_not_told() {
        let mut detector = detector();
        assert_eq!(run(&mut detector, 0.9, 5), []);
        assert_eq!(run(&mut detector, 0.1, 1), []);
        assert_eq!(run(&mut detector, 0.9, 5), []);
        run(&mut detector, 0.9, 1);
        assert_eq!(run(&mut detector, 0.1, 9), []);
        assert_eq!(run(&mut detector, 0.9, 1), []);
        assert_eq!(run(&mut detector, 0.1, 9), []);
    }

    #[test]
    fn between_the_thresholds_things_stay_as_they_are() {
        let mut detector = detector();
        assert_eq!(run(&mut detector, 0.5, 100), []);
        assert_eq!(run(&mut detector, 0.7, 1), []);
        assert_eq!(run(&mut detector, 0.5, 5), [(5, STARTED)]);
        assert_eq!(run(&mut detector, 0.5, 100), []);
        assert_eq!(run(&mut detector, 0.39, 1), []);
        assert_eq!(run(&mut detector, 0.5, 9), [(9, ENDED)]);
    }

    #[test]
    fn the_lag_of_the_probabilities_counts_as_speech_and_as_silence() {
        let mut detector = detector();
        detector.thresholds.lag = Lag { start_ms: 30, end_ms: 200 };
        assert_eq!(run(&mut detector, 0.9, 3), [(3, STARTED)]);
        assert_eq!(run(&mut detector, 0.1, 1), [(1, VadEvent::Ended { silence_ms: 210 })]);
    }

    #[test]
    fn speech_that_is_going_on_ends_with_the_stream() {
        let mut detector = detector();
        assert_eq!(detector.end(), None);
        run(&mut detector, 0.9, 10);
        assert_eq!(detector.end(), Some(VadEvent::Ended { silence_ms: 0 }));
        assert_eq!(detector.end(), None);
        run(&mut detector, 0.9, 10);
        run(&mut detector, 0.1, 3);
        assert_eq!(detector.end(), Some(VadEvent::Ended { silence_ms: 30 }));
    }

    proptest! {
        #[test]
        fn starts_and_ends_take_turns(frames in prop::collection::vec(0.0_f32..1.0, 0..500)) {
            let mut detector = detector();
            let mut speaking = false;
            for probability in frames {
                match detector.push(probability, FRAME) {
                    Some(VadEvent::Started { .. }) => prop_assert!(!std::mem::replace(&mut speaking, true)),
                    Some(VadEvent::Ended { .. }) => prop_assert!(std::mem::replace(&mut speaking, false)),
                    Some(VadEvent::Faint) | None => {}
                }
                prop_assert_eq!(detector.is_speech(), speaking);
            }
        }
    }
}
