//! Cuts streamed text into the pieces that are sent to be spoken.
//!
//! Long pieces sound better, the first one decides how soon anything is heard: so the first piece
//! goes out after a clause or a few words, later ones after a sentence or a long clause, and at any
//! word when what has been spoken so far is about to run out.

/// A first piece that ends a sentence or a clause; long enough not to be torn after `Dr.`
const FIRST_CLAUSE: usize = 4;
/// A first piece without any punctuation has at least this many bytes (about three words).
const FIRST_WORDS: usize = 16;
/// A later piece that ends a sentence has at least this many bytes.
const SENTENCE: usize = 20;
/// A later piece that ends a clause (comma, semicolon, colon, dash) has at least this many bytes.
const CLAUSE: usize = 60;
/// A later piece that ends anywhere between two words.
const WORDS: usize = 180;
/// No piece is longer: what breaks is said again from its beginning at the worst, and providers take no
/// more than a few times as much. Text without any white space is cut here all the same.
const LONGEST: usize = 1_000;

/// Text that waits to be sent.
#[derive(Debug, Default)]
pub struct Chunker {
    waiting: String,
    any_taken: bool,
}

/// What stands before a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boundary {
    Word,
    Clause,
    Sentence,
}

impl Chunker {
    pub fn push(&mut self, text: &str) {
        self.waiting.push_str(text);
    }

    /// The next piece to send now. `urgent`: any whole words are better than silence.
    pub fn take(&mut self, urgent: bool) -> Option<String> {
        let cut = self.cut(urgent)?;
        self.split(cut)
    }

    /// All that is left, as far as a piece may be long: no more text comes.
    pub fn take_rest(&mut self) -> Option<String> {
        let all = self.waiting.len();
        let is_heard = |at: &usize| !is_silent(&self.waiting[..*at]);
        let cut = (all > LONGEST).then(|| self.cut(true).filter(is_heard)).flatten();
        self.split(cut.unwrap_or(all))
    }

    /// Whether whole words wait that [`Chunker::take`] would give if it were urgent.
    pub fn has_words(&self) -> bool {
        self.cut(true).is_some_and(|at| !is_silent(&self.waiting[..at]))
    }

    /// What waits.
    pub fn as_str(&self) -> &str {
        &self.waiting
    }

    /// Whether nothing waits that could be heard.
    pub fn is_blank(&self) -> bool {
        is_silent(&self.waiting)
    }

    /// Begins anew with this text.
    pub fn restart(&mut self, text: String) {
        self.waiting = text;
        self.any_taken = false;
    }

    fn split(&mut self, at: usize) -> Option<String> {
        let rest = self.waiting.split_off(at);
        let piece = std::mem::replace(&mut self.waiting, rest);
        if is_silent(&piece) {
            // No provider speaks it, but it must not be lost between two pieces.
            self.waiting.insert_str(0, &piece);
            return None;
        }
        self.any_taken = true;
        Some(piece)
    }

    /// Where to cut: the last place that is good enough, so that a piece is as long as it can be.
    fn cut(&self, urgent: bool) -> Option<usize> {
        let (mut best, mut sentence) = (None, None);
        let mut spoken = 0;
        let mut boundary = Boundary::Word;
        let mut characters = self.waiting.char_indices().peekable();
        while let Some((at, c)) = characters.next() {
            if at >= LONGEST {
                // More is there than a piece may have: then rather whole sentences.
                best = sentence.or(best);
                break;
            }
            if !c.is_whitespace() {
                boundary = match c {
                    '.' | '!' | '?' | '…' => Boundary::Sentence,
                    ',' | ';' | ':' | '–' | '—' => Boundary::Clause,
                    // These end a sentence without any space after them.
                    '。' | '！' | '？' => {
                        let end = at + c.len_utf8();
                        if self.is_enough(end, Boundary::Sentence, urgent) {
                            best = Some(end);
                        }
                        Boundary::Sentence
                    }
                    // Closing quotes and brackets leave the end of a sentence one.
                    '"' | '\'' | ')' | ']' | '”' | '’' | '»' => boundary,
                    _ => Boundary::Word,
                };
                spoken = at + c.len_utf8();
                continue;
            }
            let ends_run = characters.peek().is_none_or(|(_, next)| !next.is_whitespace());
            if !ends_run || spoken == 0 {
                continue;
            }
            let boundary = if self.waiting[spoken..=at].contains('\n') {
                Boundary::Sentence
            } else {
                boundary
            };
            if self.is_enough(spoken, boundary, urgent) {
                best = Some(at + c.len_utf8());
                if boundary == Boundary::Sentence && !is_silent(&self.waiting[..spoken]) {
                    sentence = best;
                }
            }
        }
        best.or_else(|| {
            (self.waiting.len() > LONGEST)
                .then(|| (0..=LONGEST).rev().find(|at| self.waiting.is_char_boundary(*at)))
                .flatten()
        })
    }

    const fn is_enough(&self, bytes: usize, boundary: Boundary, urgent: bool) -> bool {
        if urgent {
            return true;
        }
        let least = match (self.any_taken, boundary) {
            (false, Boundary::Word) => FIRST_WORDS,
            (false, Boundary::Clause | Boundary::Sentence) => FIRST_CLAUSE,
            (true, Boundary::Sentence) => SENTENCE,
            (true, Boundary::Clause) => CLAUSE,
            (true, Boundary::Word) => WORDS,
        };
        bytes >= least
    }
}

/// White space, punctuation or emoji alone: a provider would give no audio for it.
fn is_silent(text: &str) -> bool {
    !text.chars().any(char::is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The pieces that come out while words go in one by one.
    fn stream(text: &str) -> Vec<String> {
        let mut chunker = Chunker::default();
        let mut pieces = Vec::new();
        for token in text.split_inclusive(' ') {
            // As models do it: the space comes with the word after it.
            chunker.push(token.trim_end());
            pieces.extend(chunker.take(false));
            if token.ends_with(' ') {
                chunker.push(" ");
            }
        }
        pieces.extend(chunker.take_rest());
        pieces
    }

    #[test]
    fn the_first_clause_goes_out_as_soon_as_it_is_known_to_end() {
        let mut chunker = Chunker::default();
        chunker.push("Sure.");
        assert_eq!(chunker.take(false), None, "it may go on as in 3.5");
        chunker.push(" I");
        assert_eq!(chunker.take(false).as_deref(), Some("Sure. "));
        chunker.push(" can help");
        assert_eq!(chunker.take(false), None);
        assert_eq!(chunker.take(true).as_deref(), Some("I can "));
        assert_eq!(chunker.take_rest().as_deref(), Some("help"));
        assert_eq!(chunker.take_rest(), None);
    }

    #[test]
    fn a_first_sentence_without_punctuation_goes_out_after_a_few_words() {
        assert_eq!(
            stream("I would be glad to help you out with that. What day suits you best?"),
            ["I would be glad to ", "help you out with that. ", "What day suits you best?"]
        );
    }

    #[test]
    fn decimals_are_not_torn() {
        let mut chunker = Chunker::default();
        chunker.push("It is 3.");
        assert_eq!(chunker.take(false), None);
        chunker.push("5 degrees.");
        assert_eq!(chunker.take(false), None);
        assert_eq!(chunker.take_rest().as_deref(), Some("It is 3.5 degrees."));
    }

    #[test]
    fn no_piece_is_longer_than_the_longest_and_none_is_torn_within_a_word() {
        for finished in [false, true] {
            let mut chunker = Chunker::default();
            let text = "Every word of this is said. ".repeat(150);
            chunker.push(&text);
            let mut all = String::new();
            let next = |chunker: &mut Chunker| {
                if finished { chunker.take_rest() } else { chunker.take(false) }
            };
            while let Some(piece) = next(&mut chunker) {
                assert!(piece.len() <= LONGEST && piece.ends_with("said. "), "{piece:?}");
                all.push_str(&piece);
            }
            assert_eq!(all, text);
        }
    }

    #[test]
    fn dots_before_a_long_text_keep_nothing_of_it_back() {
        for text in ["... ".to_owned() + &"word ".repeat(300), ".".repeat(2_000) + " word"] {
            let mut chunker = Chunker::default();
            chunker.push(&text);
            let pieces: Vec<_> = std::iter::from_fn(|| chunker.take_rest()).collect();
            assert_eq!(pieces.concat(), text);
        }
    }

    #[test]
    fn text_without_spaces_is_cut_too() {
        let mut chunker = Chunker::default();
        chunker.push("今日は。明日");
        assert_eq!(chunker.take(false).as_deref(), Some("今日は。"));
        chunker.push(&"x".repeat(3_000));
        assert!(chunker.take(false).is_some_and(|piece| piece.len() <= LONGEST));
    }

    #[test]
    fn what_makes_no_sound_is_kept_for_the_next_piece() {
        let mut chunker = Chunker::default();
        chunker.push("… \n ");
        assert_eq!(chunker.take(true), None);
        assert_eq!(chunker.take_rest(), None);
        assert!(chunker.is_blank());
        chunker.push("Yes");
        assert_eq!(chunker.take_rest().as_deref(), Some("… \n Yes"));
    }

    proptest! {
        #[test]
        fn pieces_concatenate_to_the_text(
            tokens in proptest::collection::vec(("[a-zä。., \n]{0,12}", any::<bool>()), 0..40),
        ) {
            let mut chunker = Chunker::default();
            let mut pieces = String::new();
            for (token, urgent) in &tokens {
                chunker.push(token);
                if let Some(piece) = chunker.take(*urgent) {
                    prop_assert!(!is_silent(&piece));
                    pieces.push_str(&piece);
                }
            }
            let rest = chunker.take_rest().unwrap_or_default();
            let all: String = tokens.iter().map(|(token, _)| token.as_str()).collect();
            pieces.push_str(&rest);
            prop_assert!(all.starts_with(&pieces));
            prop_assert!(is_silent(&all[pieces.len()..]));
        }
    }
}
