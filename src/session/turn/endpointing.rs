//! Fixed endpointing: a turn ends when the silence threshold has passed since the true end of
//! speech and its last words are final.
//!
//! Recognition's own end of turn is a hint that never commits before the threshold.

use std::time::{Duration, Instant};

use crate::session::{
    settings::Settings,
    timers::{Timer, later},
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
        (Timer::Endpointing, threshold)
    } else {
        (Timer::Transcript, later(ear.ended, settings.transcript_timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_counts_from_the_true_end_of_speech() {
        let began = crate::clock::now();
        let ended = began + Duration::from_millis(700);
        let ear = Ear {
            speaking: false,
            began,
            ended,
            text: true,
            open: false,
            asked: true,
            last_words: Some(ended + Duration::from_millis(300)),
            gives_interims: true,
        };
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
}
