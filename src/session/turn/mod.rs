//! Whose turn it is: when the user's turn has ended, and when the user interrupts.

pub(super) mod completeness;
pub(super) mod endpointing;
pub(crate) mod interruption;
pub(super) mod preemption;
pub(crate) mod word_class;

use std::time::Instant;

use self::completeness::Score;
use super::history::join;

/// What is kept of words that were not answered, in bytes.
const MAX_CARRIED: usize = 4 * 1024;

/// The linked user's turn while it is being spoken. The words of the segment that recognition is
/// still at are the speaker's.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Words said in passing while the agent spoke: no turn, but part of the next one.
    carried: String,
    /// The finals, joined.
    pub text: String,
    /// The true end of speech, as far as it is known; none while the user speaks.
    pub ended: Option<Instant>,
    /// When recognition last told something new.
    pub last_words: Option<Instant>,
    /// When the user was last given the floor.
    pub listening_since: Option<Instant>,
    /// Words of it were typed: they ask for an answer, however few.
    pub typed: bool,
    /// Recognition told words of the speech that is going on.
    pub has_words: bool,
    /// ... for good: no interim can take them back.
    pub has_finals: bool,
    /// The detector reported this turn's end: it knows better than recognition's pace.
    pub detector_ended: bool,
    /// Recognition was asked to close the segment since the end of speech.
    pub finalize_sent: bool,
    /// Recognition told the end of the turn.
    pub told_end: bool,
    /// What the turn model made of the end of speech.
    pub sound: Option<Score>,
    /// When the turn model was last asked.
    pub sound_asked: Option<Instant>,
    /// ... and it has not answered, nor has the user gone on.
    pub awaits_sound: bool,
    /// The user paused in it, and went on.
    pub paused: bool,
    /// Answers to it that were begun before it was taken.
    pub tries: u32,
}

impl Turn {
    /// Speech begins anew; the words said before stay.
    pub fn speech_begins(&mut self) {
        self.ended = None;
        self.has_words = false;
        self.has_finals = false;
        self.detector_ended = false;
        self.finalize_sent = false;
        self.told_end = false;
        self.sound = None;
        self.awaits_sound = false;
    }

    pub fn add(&mut self, text: &str) {
        join(&mut self.text, text);
    }

    /// A turn that had been committed goes on: its words come first.
    pub fn reopen(&mut self, mut said: String) {
        join(&mut said, &self.text);
        self.text = said;
    }

    /// All words so far, those of the segment that recognition is still at included.
    pub fn whole(&self, open: &str) -> String {
        let mut text = self.carried.clone();
        join(&mut text, &self.text);
        join(&mut text, open);
        text
    }

    /// The words so far ask for no answer, but are not forgotten.
    pub fn carry(&mut self) {
        if self.carried.len() + self.text.len() < MAX_CARRIED {
            join(&mut self.carried, &self.text);
        }
        self.text.clear();
    }

    /// Takes all words of the turn; the next one begins.
    pub fn take(&mut self) -> String {
        let mut text = std::mem::take(&mut self.carried);
        join(&mut text, &self.text);
        *self = Self::default();
        text
    }
}
