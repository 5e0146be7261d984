//! Aligns what the server says it spoke with the text that was sent.

use super::proto::AlignedChar;
use crate::tts::{TimedText, words::WordGatherer};

/// Turns aligned characters into words of the text as it was given.
///
/// The server answers with the text as sent, in which pieces are joined by a space of ours, or as
/// normalised. As long as it can be followed in the text, the words are cut from the text itself, so
/// that their concatenation is what was asked for; after that, the server's characters are taken.
#[derive(Debug, Default)]
pub struct Aligner {
    words: WordGatherer,
    /// Bytes of the text that have been spoken, while it can be followed.
    spoken: usize,
    lost: bool,
    any: bool,
    last_end_ms: u64,
}

impl Aligner {
    /// Takes one frame's characters. `text` is all that was sent in this speech; `base_ms` is where
    /// the frame's audio begins in the speech.
    pub fn push(&mut self, text: &str, base_ms: u64, chars: &[AlignedChar]) -> Vec<TimedText> {
        let mut words = Vec::new();
        for c in chars {
            self.any = true;
            let start_ms = base_ms.saturating_add(c.start_ms).max(self.last_end_ms);
            let end_ms = base_ms.saturating_add(c.start_ms + c.duration_ms).max(start_ms);
            let is_space = c.text.chars().all(char::is_whitespace);
            if !self.lost {
                let ahead = text.get(self.spoken..).unwrap_or_default();
                let spaces = ahead.len() - ahead.trim_start().len();
                if is_space {
                    // Ours, or one of several that the server made one of.
                    if let Some(space) = ahead[..spaces].chars().next() {
                        self.spoken += space.len_utf8();
                        words.extend(self.words.push(
                            space.encode_utf8(&mut [0; 4]),
                            start_ms,
                            end_ms,
                        ));
                    }
                    self.last_end_ms = end_ms;
                    continue;
                }
                if ahead[spaces..].starts_with(&c.text) {
                    if spaces > 0 {
                        words.extend(self.words.push(&ahead[..spaces], start_ms, start_ms));
                    }
                    self.spoken += spaces + c.text.len();
                } else {
                    self.lost = true;
                }
            }
            words.extend(self.words.push(&c.text, start_ms, end_ms));
            self.last_end_ms = end_ms;
        }
        words
    }

    /// The last word; `text` as in [`Aligner::push`].
    pub fn finish(&mut self, text: &str) -> Option<TimedText> {
        let mut word = self.words.finish()?;
        if self.lost && !text.ends_with(char::is_whitespace) {
            word.text.truncate(word.text.trim_end().len());
        }
        Some(word)
    }

    /// The last word of a speech that broke off, if it is whole. The beginning of one is said again.
    pub fn break_off(&mut self, text: &str) -> Option<TimedText> {
        let goes_on = text
            .get(self.spoken..)
            .is_some_and(|ahead| ahead.chars().next().is_some_and(|next| !next.is_whitespace()));
        let is_followed = !self.lost;
        let word = self.finish(text)?;
        let is_cut = is_followed && goes_on && !word.text.ends_with(char::is_whitespace);
        (!is_cut).then_some(word)
    }

    /// Whether audible text was sent that has not been spoken yet; `None` when that isn't known.
    pub fn is_behind(&self, text: &str) -> Option<bool> {
        (self.any && !self.lost)
            .then(|| text.get(self.spoken..).unwrap_or_default().chars().any(char::is_alphanumeric))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &str) -> Vec<AlignedChar> {
        text.chars()
            .enumerate()
            .map(|(at, c)| AlignedChar {
                text: c.to_string(),
                start_ms: at as u64 * 10,
                duration_ms: 10,
            })
            .collect()
    }

    fn speak(text: &str, frames: &[&str]) -> Vec<TimedText> {
        let mut aligner = Aligner::default();
        let mut words = Vec::new();
        let mut base = 0;
        for f in frames {
            words.extend(aligner.push(text, base, &frame(f)));
            base += f.chars().count() as u64 * 10;
        }
        words.extend(aligner.finish(text));
        words
    }

    #[test]
    fn a_speech_that_breaks_off_tells_whole_words_alone() {
        for (spoken, last) in [
            ("One tw", None),
            ("One two", Some("two")),
            ("One two ", Some("two ")),
            ("One ", Some("One ")),
        ] {
            let mut aligner = Aligner::default();
            aligner.push("One two three", 0, &frame(spoken));
            let told = aligner.break_off("One two three").map(|word| word.text);
            assert_eq!(told.as_deref(), last, "{spoken}");
        }
        let mut aligner = Aligner::default();
        aligner.push("One two", 0, &frame("One two"));
        assert_eq!(aligner.break_off("One two").map(|word| word.text).as_deref(), Some("two"));
    }

    fn joined(words: &[TimedText]) -> String {
        words.iter().map(|word| word.text.as_str()).collect()
    }

    #[test]
    fn times_of_later_frames_go_on_where_the_earlier_ended() {
        let words = speak("Hello there.", &["Hello th", "ere. "]);
        assert_eq!(joined(&words), "Hello there.");
        assert_eq!(words[1], TimedText { text: "there.".into(), start_ms: 60, end_ms: 120 });
    }

    #[test]
    fn spaces_are_those_of_the_text() {
        assert_eq!(
            joined(&speak("One.\n\nTwo。Three", &["One. Two。 Three "])),
            "One.\n\nTwo。Three"
        );
        assert_eq!(joined(&speak("a  b", &["a  b "])), "a  b");
    }

    #[test]
    fn a_normalised_text_is_taken_as_it_comes() {
        let words = speak("It is 3 now", &["It is three now "]);
        assert_eq!(joined(&words), "It is three now");
    }

    #[test]
    fn it_is_known_whether_anything_is_still_to_be_spoken() {
        let mut aligner = Aligner::default();
        assert_eq!(aligner.is_behind("Hi you!"), None);
        aligner.push("Hi you!", 0, &frame("Hi "));
        assert_eq!(aligner.is_behind("Hi you!"), Some(true));
        aligner.push("Hi you!", 30, &frame("you"));
        assert_eq!(aligner.is_behind("Hi you!"), Some(false));
        aligner.push("Hi you!", 60, &frame("#"));
        assert_eq!(aligner.is_behind("Hi you!"), None);
    }
}
