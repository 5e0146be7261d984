//! How loud a speaker usually is, and whether the speech that is going on is far from that.

/// Samples of speech after which its loudness is judged: 250 ms at 16 kHz.
const JUDGED_AFTER: u32 = 4_000;
/// Speech this much below the speaker's own is somebody else's, or an echo; in dB.
const FAINT_DB: f32 = 9.0;
/// How fast the usual loudness follows fainter speech; louder speech it follows at once.
const FORGETTING: f32 = 0.15;

/// Follows the loudness of one speaker's stream. Pure: time is the samples it was told of.
#[derive(Debug, Clone, Default)]
pub(super) struct Loudness {
    /// Of the stretches of speech so far, in dB.
    usual: Option<f32>,
    /// Of the stretch that is going on.
    energy: f64,
    samples: u32,
    judged: bool,
}

impl Loudness {
    /// Takes the next frame (16 kHz mono); true once in a stretch of speech, if that is faint.
    pub fn push(&mut self, frame: &[i16], is_speech: bool) -> bool {
        if !is_speech {
            self.end();
            return false;
        }
        self.energy += frame.iter().map(|s| f64::from(*s) * f64::from(*s)).sum::<f64>();
        self.samples = self.samples.saturating_add(frame.len() as u32);
        if self.judged || self.samples < JUDGED_AFTER {
            return false;
        }
        self.judged = true;
        self.is_faint()
    }

    fn is_faint(&self) -> bool {
        self.usual.is_some_and(|usual| self.level() < usual - FAINT_DB)
    }

    fn level(&self) -> f32 {
        let mean = self.energy / f64::from(self.samples.max(1));
        10.0 * (mean.max(1.0) as f32).log10()
    }

    fn end(&mut self) {
        if self.judged {
            let level = self.level();
            let usual = self.usual.unwrap_or(level);
            let share = if level > usual { 1.0 } else { FORGETTING };
            self.usual = Some(usual + (level - usual) * share);
        }
        (self.energy, self.samples, self.judged) = (0.0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half a second of speech at this amplitude; whether it was called faint, and how often.
    fn speak(loudness: &mut Loudness, amplitude: i16) -> usize {
        let faint = (0..50).filter(|_| loudness.push(&[amplitude; 160], true)).count();
        loudness.push(&[0; 160], false);
        faint
    }

    #[test]
    fn speech_far_below_the_usual_is_faint_once_and_the_usual_is_learnt() {
        let mut loudness = Loudness::default();
        assert_eq!(speak(&mut loudness, 300), 0, "nothing is usual yet");
        assert_eq!(speak(&mut loudness, 4_000), 0);
        assert_eq!(speak(&mut loudness, 3_000), 0);
        assert_eq!(speak(&mut loudness, 800), 1);
    }

    #[test]
    fn a_speaker_who_lowers_the_voice_for_good_is_learnt_anew() {
        let mut loudness = Loudness::default();
        speak(&mut loudness, 8_000);
        let faint: usize = (0..20).map(|_| speak(&mut loudness, 1_500)).sum();
        assert!((1..=8).contains(&faint), "{faint}");
        assert_eq!(speak(&mut loudness, 1_500), 0);
    }
}
