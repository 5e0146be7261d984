//! An answer that is begun before the turn is taken.
//!
//! The model is asked as soon as the words look whole, while the silence is still being waited for.
//! What it writes is kept aside: it is spoken when the turn is taken with those very words, and
//! dropped unheard when the user goes on.

use std::time::Instant;

use crate::session::{input::GenerationId, speaker::is_same_word, turn::completeness::Score};

/// Answers begun early in one turn; the user who keeps going on is then waited for.
pub(in crate::session) const MAX_TRIES: u32 = 3;
/// Below this score the user surely goes on: no answer is begun.
pub(in crate::session) const WORTH_TRYING: Score = -1.0;
/// What is kept of an early answer, in bytes.
const MAX_KEPT: usize = 64 * 1024;

/// An answer begun early.
#[derive(Debug)]
pub(in crate::session) struct Early {
    pub id: GenerationId,
    pub asked_at: Instant,
    /// The words that it answers.
    words: String,
    /// What came of it so far.
    pub text: String,
    pub ended: bool,
}

impl Early {
    pub fn new(id: GenerationId, words: String, now: Instant) -> Self {
        Self { id, asked_at: now, words, text: String::new(), ended: false }
    }

    /// Whether it answers these words, whatever their marks and capitals.
    pub fn answers(&self, words: &str) -> bool {
        let mut ours = self.words.split_whitespace();
        let mut theirs = words.split_whitespace();
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some(one), Some(other)) if is_same_word(one, other) => {}
                _ => return false,
            }
        }
    }

    /// Keeps what the model writes; whether there is room for it.
    pub fn keep(&mut self, text: &str) -> bool {
        let fits = self.text.len() + text.len() <= MAX_KEPT;
        if fits {
            self.text.push_str(text);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_early_answer_fits_the_same_words_only() {
        let early = Early::new(GenerationId(1), "book a table".into(), crate::clock::now());
        assert!(early.answers("Book a table."));
        assert!(!early.answers("Book a table for two."));
        assert!(!early.answers("Book a"));
    }
}
