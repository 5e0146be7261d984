//! When a turn ends: after a silence since the true end of speech, once its last words are final.
//!
//! How long that silence is depends on the detection: a fixed threshold; recognition's own word;
//! or, by how the words read and the voice sounds, anything from the confident delay to the longest
//! wait. A dynamic threshold grows with the pauses that this speaker makes.

use std::time::{Duration, Instant};

use crate::session::{
    settings::{Detection, Settings},
    timers::{Timer, later},
    turn::completeness::Score,
};

/// Speech without a single word for this long is no speech.
const SPEECH_GUARD: Duration = Duration::from_mins(1);

/// What endpointing looks at.
#[derive(Debug, Clone, Copy)]
pub(in crate::session) struct Ear {
    /// The detector hears speech.
    pub speaking: bool,
    /// When that speech began.
    pub began: Instant,
    /// The true end of speech.
    pub ended: Instant,
    /// There are final words.
    pub text: bool,
    /// Recognition is still at a segment.
    pub open: bool,
    /// Recognition was asked to close that segment.
    pub asked: bool,
    /// When recognition last told something new in this turn.
    pub last_words: Option<Instant>,
    pub gives_interims: bool,
    /// What the words and the voice say about the end; none while the last words are awaited.
    pub score: Option<Score>,
    /// Recognition told that the turn has ended.
    pub told_end: bool,
    /// The average of this speaker's pauses inside turns.
    pub usual_pause: Option<Duration>,
}

/// Silence after which a turn with such an end is taken.
pub(in crate::session) fn silence(ear: Ear, settings: &Settings) -> Duration {
    let most = settings.max_endpointing.max(settings.silence_threshold);
    let threshold = match ear.usual_pause.filter(|_| settings.dynamic_endpointing) {
        Some(usual) => scaled(usual, PAUSE_MARGIN).clamp(settings.silence_threshold, most),
        None => settings.silence_threshold,
    };
    match (settings.detection, ear.score) {
        (Detection::Silence, _) | (Detection::Heuristic | Detection::Semantic, None) => threshold,
        (Detection::Stt, _) if ear.told_end => Duration::ZERO,
        (Detection::Stt, _) => most,
        (Detection::Heuristic | Detection::Semantic, Some(score)) => {
            let least = settings.confident_endpointing.min(settings.silence_threshold);
            if score >= SURE {
                least
            } else if score >= 0.0 {
                between(threshold, least, score / SURE)
            } else {
                // A small doubt is worth a small wait.
                let doubt = (score / SURELY_NOT).min(1.0);
                between(threshold, most, doubt * doubt)
            }
        }
    }
}

/// Pauses vary: the threshold lies this far above their average.
const PAUSE_MARGIN: f32 = 1.3;
/// From this score on a turn is surely finished, and needs no second opinion.
pub(in crate::session) const SURE: Score = 1.0;
/// The turn model is asked no sooner after its last question.
pub(in crate::session) const ASK_AGAIN: Duration = Duration::from_millis(600);
/// From this score down the user surely goes on.
const SURELY_NOT: Score = -3.0;

/// `share` (0..1) of the way from one to the other.
fn between(from: Duration, to: Duration, share: f32) -> Duration {
    let share = share.clamp(0.0, 1.0);
    scaled(from, 1.0 - share) + scaled(to, share)
}

/// Whole ms: shares are no exact numbers.
fn scaled(duration: Duration, by: f32) -> Duration {
    Duration::from_millis((duration.as_millis() as f32 * by).round() as u64)
}

/// The average of pauses, the later ones counting for more.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::session) struct Pauses {
    average: Option<Duration>,
}

/// How much the newest pause counts.
const NEWEST: f32 = 0.35;
/// Gaps between words are no pauses, and after so long a silence the user has begun anew.
const PAUSE: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(150)..=Duration::from_secs(4);

impl Pauses {
    pub fn learn(&mut self, pause: Duration) {
        if !PAUSE.contains(&pause) {
            return;
        }
        self.average = Some(match self.average {
            Some(average) => scaled(average, 1.0 - NEWEST) + scaled(pause, NEWEST),
            None => pause,
        });
    }

    /// A turn without any pause: they are getting rarer.
    pub fn none_made(&mut self) {
        self.average = self.average.map(|average| scaled(average, 1.0 - NEWEST));
    }

    pub fn usual(self) -> Option<Duration> {
        self.average
    }
}

/// The one thing to wait for next. [`Timer::Endpointing`] commits the turn, or asks recognition to
/// close the segment that it is still at.
pub(in crate::session) fn next(ear: Ear, settings: &Settings) -> (Timer, Instant) {
    if ear.speaking {
        let last = ear.last_words.unwrap_or(ear.began);
        // Recognition that reports while the user speaks has fallen silent: what the detector
        // takes for speech, once or again and again, is something else.
        return if (ear.text || ear.open) && ear.gives_interims {
            (Timer::MaxEndpointing, later(last, settings.max_endpointing))
        } else {
            (Timer::SpeechGuard, later(last.max(ear.began), SPEECH_GUARD))
        };
    }
    let threshold = later(ear.ended, settings.silence_threshold);
    if ear.open && !ear.asked {
        (Timer::Endpointing, threshold)
    } else if ear.open {
        let at = later(ear.ended, settings.max_endpointing).max(threshold);
        // Interims that come late still get the time to become final.
        let settled = ear.last_words.map_or(at, |last| later(last, settings.silence_threshold));
        (Timer::MaxEndpointing, at.max(settled))
    } else if ear.text {
        (Timer::Endpointing, later(ear.ended, silence(ear, settings)))
    } else {
        (Timer::Transcript, later(ear.ended, settings.transcript_timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who spoke up to `ended`, has been understood and is silent.
    fn quiet(began: Instant, ended: Instant) -> Ear {
        Ear {
            speaking: false,
            began,
            ended,
            text: true,
            open: false,
            asked: true,
            last_words: None,
            gives_interims: true,
            score: None,
            told_end: false,
            usual_pause: None,
        }
    }

    #[test]
    fn the_threshold_counts_from_the_true_end_of_speech() {
        let began = crate::clock::now();
        let ended = began + Duration::from_millis(700);
        let last_words = Some(ended + Duration::from_millis(300));
        let ear = Ear { last_words, ..quiet(began, ended) };
        let settings = Settings::default();
        assert_eq!(
            next(ear, &settings),
            (Timer::Endpointing, began + Duration::from_millis(1_200))
        );
        let open = Ear { open: true, ..ear };
        assert_eq!(
            next(open, &settings),
            (Timer::MaxEndpointing, began + Duration::from_millis(3_700))
        );
        let unasked = Ear { open: true, asked: false, ..ear };
        assert_eq!(next(unasked, &settings).0, Timer::Endpointing);
        let nothing = Ear { text: false, ..ear };
        assert_eq!(
            next(nothing, &settings),
            (Timer::Transcript, began + Duration::from_millis(3_700))
        );
        let going_on = Ear { speaking: true, ..ear };
        assert_eq!(
            next(going_on, &settings),
            (Timer::MaxEndpointing, began + Duration::from_secs(4))
        );
    }

    fn silence_of(score: Score, settings: &Settings) -> u128 {
        let now = crate::clock::now();
        let usual_pause = Some(Duration::from_millis(800));
        let ear = Ear { score: Some(score), usual_pause, ..quiet(now, now) };
        silence(ear, settings).as_millis()
    }

    #[test]
    fn the_surer_the_end_the_shorter_the_silence() {
        let settings = Settings { dynamic_endpointing: false, ..Settings::default() };
        assert_eq!(silence_of(3.0, &settings), 200);
        assert_eq!(silence_of(0.5, &settings), 350);
        assert_eq!(silence_of(0.0, &settings), 500);
        assert_eq!(silence_of(-1.5, &settings), 1_125);
        assert_eq!(silence_of(-9.0, &settings), 3_000);
        let quick = Settings { silence_threshold: Duration::from_millis(150), ..settings.clone() };
        assert_eq!(silence_of(3.0, &quick), 150, "never later than the threshold");
        let silence_alone = Settings { detection: Detection::Silence, ..settings };
        assert_eq!(silence_of(3.0, &silence_alone), 500);
    }

    #[test]
    fn a_speaker_who_pauses_is_waited_for_unless_surely_finished() {
        let settings = Settings { dynamic_endpointing: true, ..Settings::default() };
        assert_eq!(silence_of(0.0, &settings), 1_040);
        assert_eq!(silence_of(3.0, &settings), 200);
    }

    #[test]
    fn later_pauses_count_for_more_and_are_forgotten_when_none_are_made() {
        let mut pauses = Pauses::default();
        pauses.learn(Duration::from_millis(50));
        assert_eq!(pauses.usual(), None, "a gap between words");
        pauses.learn(Duration::from_millis(400));
        pauses.learn(Duration::from_millis(1_400));
        assert_eq!(pauses.usual().unwrap().as_millis(), 750);
        for _ in 0..3 {
            pauses.none_made();
        }
        assert!(pauses.usual().unwrap() < Duration::from_millis(250));
    }
}
