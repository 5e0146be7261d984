//! When somebody speaks, by energy alone: enough for clean fixtures, and it never surprises a test.

/// Frames of 10 ms at 16 kHz.
const FRAME: usize = 160;
/// Root mean square of a frame that counts as sound: about -40 dBFS.
const LOUD: i64 = 300;
/// Sound for this long is speech.
const ONSET_MS: u64 = 50;

/// What 10 ms of audio did. Times are in ms since the first sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nobody speaks.
    Silence { now_ms: u64 },
    /// Speech has begun, some 10 ms ago.
    Started { at_ms: u64, now_ms: u64 },
    /// Speech goes on, or pauses for less than the hang-over.
    Speaking { now_ms: u64 },
    /// The hang-over has passed since the last sound, which ended at `at_ms`.
    Ended { at_ms: u64, now_ms: u64 },
}

/// Finds the stretches of speech in 16 kHz mono s16 audio.
#[derive(Debug, Clone)]
pub struct SpeechDetector {
    hang_over_ms: u64,
    partial: Vec<i16>,
    now_ms: u64,
    /// Where the sound that is going on began.
    sound_since: Option<u64>,
    last_sound_ms: u64,
    speaking: bool,
}

impl SpeechDetector {
    /// `hang_over_ms`: silence that ends a stretch of speech.
    pub fn new(hang_over_ms: u64) -> Self {
        Self {
            hang_over_ms,
            partial: Vec::with_capacity(FRAME),
            now_ms: 0,
            sound_since: None,
            last_sound_ms: 0,
            speaking: false,
        }
    }

    /// How long nothing has been heard, in ms.
    pub const fn silence_ms(&self) -> u64 {
        self.now_ms.saturating_sub(self.last_sound_ms)
    }

    /// Appends one step for each full 10 ms.
    pub fn push(&mut self, mut samples: &[i16], steps: &mut Vec<Step>) {
        while !samples.is_empty() {
            let (now, later) = samples.split_at(samples.len().min(FRAME - self.partial.len()));
            self.partial.extend(now);
            samples = later;
            if self.partial.len() == FRAME {
                let energy: i64 = self.partial.iter().map(|&s| i64::from(s) * i64::from(s)).sum();
                steps.push(self.step(energy >= LOUD * LOUD * FRAME as i64));
                self.partial.clear();
            }
        }
    }

    /// Forgets the speech that is going on; what follows is new.
    pub fn restart(&mut self) {
        self.sound_since = None;
        self.speaking = false;
    }

    fn step(&mut self, loud: bool) -> Step {
        let began = self.now_ms;
        self.now_ms += 10;
        let now_ms = self.now_ms;
        if loud {
            self.last_sound_ms = now_ms;
            let at_ms = *self.sound_since.get_or_insert(began);
            if !self.speaking && now_ms - at_ms >= ONSET_MS {
                self.speaking = true;
                return Step::Started { at_ms, now_ms };
            }
        } else if !self.speaking {
            self.sound_since = None;
        } else if now_ms - self.last_sound_ms >= self.hang_over_ms {
            self.restart();
            return Step::Ended { at_ms: self.last_sound_ms, now_ms };
        }
        if self.speaking { Step::Speaking { now_ms } } else { Step::Silence { now_ms } }
    }

    /// Of the audio heard in full frames, in ms.
    pub const fn now_ms(&self) -> u64 {
        self.now_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audio(ms: usize, amplitude: i16) -> Vec<i16> {
        (0..ms * 16).map(|n| if n % 20 < 10 { amplitude } else { -amplitude }).collect()
    }

    fn edges(parts: &[(usize, i16)]) -> Vec<Step> {
        let samples: Vec<i16> = parts.iter().flat_map(|&(ms, level)| audio(ms, level)).collect();
        let (mut detector, mut steps) = (SpeechDetector::new(200), Vec::new());
        for chunk in samples.chunks(313) {
            detector.push(chunk, &mut steps);
        }
        steps.retain(|step| matches!(step, Step::Started { .. } | Step::Ended { .. }));
        steps
    }

    #[test]
    fn speech_begins_with_its_first_sound_and_ends_after_the_hang_over() {
        assert_eq!(
            edges(&[(100, 0), (500, 3_000), (1_000, 20)]),
            [Step::Started { at_ms: 100, now_ms: 150 }, Step::Ended { at_ms: 600, now_ms: 800 },]
        );
    }

    #[test]
    fn a_pause_between_words_is_no_end_and_a_click_is_no_speech() {
        assert_eq!(
            edges(&[(300, 3_000), (150, 0), (300, 3_000)]),
            [Step::Started { at_ms: 0, now_ms: 50 }]
        );
        assert_eq!(edges(&[(100, 0), (30, 9_000), (500, 0)]), []);
    }
}
