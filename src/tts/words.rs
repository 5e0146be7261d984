//! Characters with times, gathered into words.

use crate::tts::TimedText;

/// How long a character is spoken, in ms, where no alignment tells: rather too long, so that a word
/// is said twice and not left out.
pub const MS_PER_CHAR: u64 = 68;

/// Gathers timed characters into words. A word carries the white space that follows it, so that the
/// concatenation of all words is the text.
#[derive(Debug, Default)]
pub struct WordGatherer {
    word: Option<TimedText>,
}

impl WordGatherer {
    /// Takes one character (or a few), spoken from `start_ms` to `end_ms` since the first sample of
    /// the speech; gives the word before it, when this begins a new one.
    pub fn push(&mut self, text: &str, start_ms: u64, end_ms: u64) -> Option<TimedText> {
        let is_space = !text.is_empty() && text.chars().all(char::is_whitespace);
        let end_ms = end_ms.max(start_ms);
        match &mut self.word {
            Some(word) if is_space || !word.text.ends_with(char::is_whitespace) => {
                word.text.push_str(text);
                // A pause belongs to no word: it ends with its last sounding character.
                if !is_space {
                    word.end_ms = word.end_ms.max(end_ms);
                }
                None
            }
            // Space before any word: it has to be kept, so it goes with the word that follows.
            None | Some(_) => {
                self.word.replace(TimedText { text: text.to_owned(), start_ms, end_ms })
            }
        }
    }

    /// The word that has not been given yet: the text is at its end.
    pub fn finish(&mut self) -> Option<TimedText> {
        self.word.take()
    }
}

/// The words of a piece spread over the audio it became, in proportion to their length: times are ms
/// since the first sample of the speech.
pub fn spread(piece: &str, start_ms: u64, end_ms: u64) -> Vec<TimedText> {
    let total = piece.chars().count().max(1) as u64;
    let length = end_ms.saturating_sub(start_ms);
    let mut words = WordGatherer::default();
    let mut all = Vec::new();
    for (at, c) in (0_u64..).zip(piece.chars()) {
        let from = start_ms + length * at / total;
        let to = start_ms + length * (at + 1) / total;
        all.extend(words.push(c.encode_utf8(&mut [0; 4]), from, to));
    }
    all.extend(words.finish());
    all
}

/// Bytes of the text that were spoken in this time, cut at the beginning of a word.
pub fn estimated(text: &str, ms: u64) -> usize {
    let chars = (ms / MS_PER_CHAR) as usize;
    let end = text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at);
    if end == text.len() {
        return end;
    }
    last_word(&text[..end])
}

/// Where the last word begins, or would.
pub fn last_word(text: &str) -> usize {
    let space = text.char_indices().rev().find(|(_, c)| c.is_whitespace());
    space.map_or(0, |(at, c)| at + c.len_utf8())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gather(text: &str) -> Vec<TimedText> {
        let mut gatherer = WordGatherer::default();
        let mut words: Vec<_> = text
            .chars()
            .enumerate()
            .filter_map(|(at, c)| {
                gatherer.push(&c.to_string(), at as u64 * 10, at as u64 * 10 + 10)
            })
            .collect();
        words.extend(gatherer.finish());
        words
    }

    #[test]
    fn a_word_carries_the_space_after_it_but_not_its_time() {
        let timed =
            |text: &str, start_ms, end_ms| TimedText { text: text.into(), start_ms, end_ms };
        assert_eq!(gather("Hi  there."), [timed("Hi  ", 0, 20), timed("there.", 40, 100)]);
    }

    #[test]
    fn an_estimate_ends_where_a_word_begins_whatever_the_space_is() {
        assert_eq!(estimated("One two three", 9 * MS_PER_CHAR), "One two ".len());
        assert_eq!(estimated("Quoi\u{a0}? Rien", 5 * MS_PER_CHAR), "Quoi\u{a0}".len());
        assert_eq!(estimated("One", 9 * MS_PER_CHAR), 3);
    }

    #[test]
    fn words_are_spread_over_the_audio() {
        let words = spread("ab cd ", 100, 700);
        let timed =
            |text: &str, start_ms, end_ms| TimedText { text: text.into(), start_ms, end_ms };
        assert_eq!(words, [timed("ab ", 100, 300), timed("cd ", 400, 600)]);
    }

    proptest! {
        #[test]
        fn words_concatenate_to_the_text(text in "[a-z .\n]{0,60}") {
            let words = gather(&text);
            let joined: String = words.iter().map(|word| word.text.as_str()).collect();
            prop_assert_eq!(joined, text);
            prop_assert!(words.windows(2).all(|pair| pair[0].end_ms <= pair[1].start_ms));
        }

        #[test]
        fn words_concatenate_and_stay_within_the_audio(
            piece in "[a-zé .]{0,40}", start in 0_u64..10_000, length in 0_u64..10_000,
        ) {
            let words = spread(&piece, start, start + length);
            let joined: String = words.iter().map(|word| word.text.as_str()).collect();
            prop_assert_eq!(joined, piece);
            prop_assert!(words.iter().all(|it| start <= it.start_ms && it.end_ms <= start + length));
        }
    }
}
