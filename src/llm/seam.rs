//! Where one model's answer goes on in another's: nothing is said twice, no word is torn.

/// Text that waits for a word to be whole is let go at this many bytes.
const LONGEST_WORD: usize = 64;

/// Lets text through up to the last whole word, so that what was told ends between two words
/// whenever the stream breaks off.
#[derive(Debug, Default)]
pub struct WholeWords(String);

impl WholeWords {
    /// What can be told now.
    pub fn push(&mut self, text: &str) -> String {
        self.0.push_str(text);
        let held = self.0.chars().rev().take_while(|c| is_part_of_word(*c));
        let held: usize = held.map(char::len_utf8).sum();
        if held > LONGEST_WORD {
            return std::mem::take(&mut self.0);
        }
        let rest = self.0.split_off(self.0.len() - held);
        std::mem::replace(&mut self.0, rest)
    }

    /// The answer is complete: the last word.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.0)
    }
}

/// Scripts that write no spaces (CJK and what follows) have no words to wait for.
fn is_part_of_word(c: char) -> bool {
    (c.is_alphanumeric() || c == '\'' || c == '’') && u32::from(c) < 0x2e80
}

/// Takes out of a continuation what repeats the end, or all, of what has been told.
#[derive(Debug)]
pub struct Seam {
    told: Vec<String>,
    /// What stands after the last word told: it is not repeated either.
    tail: String,
    ends_in_space: bool,
    held: String,
    is_open: bool,
}

impl Seam {
    /// `told`: the answer so far; empty: nothing is looked for.
    pub fn new(told: &str) -> Self {
        Self {
            told: words(told).map(|(word, _)| word).collect(),
            tail: told[words(told).last().map_or(0, |(_, end)| end)..].trim().to_owned(),
            ends_in_space: told.ends_with(char::is_whitespace),
            held: String::new(),
            is_open: told.is_empty(),
        }
    }

    /// The part of the text that is new; empty as long as it may be a repetition.
    pub fn push(&mut self, text: &str) -> String {
        self.pass(text, false)
    }

    /// No more text comes.
    pub fn finish(&mut self) -> String {
        self.pass("", true)
    }

    fn pass(&mut self, text: &str, is_last: bool) -> String {
        if self.is_open {
            return text.to_owned();
        }
        self.held.push_str(text);
        let mut said: Vec<(String, usize)> = words(&self.held).collect();
        let is_torn = said.last().is_some_and(|(_, end)| *end == self.held.len());
        if is_torn && !is_last {
            said.pop();
        }
        // Each place of what was told from which the new words go along with it.
        let along =
            |from: usize| said.iter().zip(&self.told[from..]).all(|((said, _), told)| said == told);
        let may_go_on =
            (0..self.told.len()).any(|from| said.len() < self.told.len() - from && along(from));
        if may_go_on && !is_last {
            return String::new();
        }
        let repeated = (0..self.told.len())
            .map(|from| (self.told.len() - from, from))
            .find(|(length, from)| *length <= said.len() && along(*from));
        let cut = repeated.map_or(0, |(length, _)| said[length - 1].1);
        self.is_open = true;
        let rest = self.held.split_off(cut);
        self.held.clear();
        let same = (cut > 0 && !self.tail.is_empty()).then(|| rest.strip_prefix(&self.tail));
        self.join(same.flatten().unwrap_or(&rest))
    }

    fn join(&self, rest: &str) -> String {
        let begins_in_space = rest.starts_with(char::is_whitespace);
        let needs_space = rest.starts_with(char::is_alphanumeric) && !self.told.is_empty();
        match (self.ends_in_space, begins_in_space) {
            (true, true) => rest.trim_start().to_owned(),
            (false, false) if needs_space => format!(" {rest}"),
            _ => rest.to_owned(),
        }
    }
}

/// Words in lower case without punctuation, with where each ends.
fn words(text: &str) -> impl Iterator<Item = (String, usize)> {
    let mut rest = text.char_indices().peekable();
    std::iter::from_fn(move || {
        while rest.next_if(|(_, c)| !c.is_alphanumeric()).is_some() {}
        let mut word = String::new();
        let mut end = 0;
        while let Some((at, c)) = rest.next_if(|(_, c)| c.is_alphanumeric()) {
            word.extend(c.to_lowercase());
            end = at + c.len_utf8();
        }
        (!word.is_empty()).then_some((word, end))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joined(told: &str, tokens: &[&str]) -> String {
        let mut seam = Seam::new(told);
        let mut all = told.to_owned();
        for token in tokens {
            all.push_str(&seam.push(token));
        }
        all.push_str(&seam.finish());
        all
    }

    const WHOLE: &str = "We are open from nine to five.";

    #[test]
    fn a_continuation_is_taken_as_it_comes() {
        assert_eq!(joined("We are open ", &["from", " nine to five."]), WHOLE);
        assert_eq!(joined("We are open", &["from", " nine to five."]), WHOLE);
        assert_eq!(joined("We are open", &[" from", " nine to five."]), WHOLE);
        assert_eq!(joined("", &["We are ", "open."]), "We are open.");
    }

    #[test]
    fn an_answer_begun_anew_is_not_repeated() {
        assert_eq!(joined("We are open from ", &["We", " are open", " from nine to five."]), WHOLE);
        assert_eq!(joined("We are open from", &["we are open from nine to five."]), WHOLE);
        assert_eq!(
            joined("Sure. We are open", &["We are open from nine."]),
            "Sure. We are open from nine."
        );
    }

    #[test]
    fn the_last_words_are_not_repeated() {
        assert_eq!(joined("We are open from ", &["open", " from", " nine to five."]), WHOLE);
        assert_eq!(joined("We are open ", &["...open from nine to five."]), WHOLE);
        assert_eq!(joined("Yes.", &["Yes."]), "Yes.");
    }

    #[test]
    fn punctuation_keeps_its_place() {
        assert_eq!(joined("Yes", &[", of course."]), "Yes, of course.");
        assert_eq!(joined("Well, yes", &["yes", ", of course."]), "Well, yes, of course.");
    }

    #[test]
    fn no_word_is_told_in_part() {
        let mut whole = WholeWords::default();
        assert_eq!(whole.push("Su"), "");
        assert_eq!(whole.push("re"), "");
        assert_eq!(whole.push(". I ca"), "Sure. I ");
        assert_eq!(whole.push("n’t "), "can’t ");
        assert_eq!(whole.push("今日"), "今日");
        assert_eq!(whole.push("end"), "");
        assert_eq!(whole.finish(), "end");
        assert_eq!(whole.push(&"x".repeat(65)).len(), 65);
    }

    proptest! {
        #[test]
        fn a_restart_or_a_continuation_gives_the_same_answer(
            words in proptest::collection::hash_set("[a-z]{2,8}", 2..12),
            cut in 0_usize..12,
            from in 0_usize..12,
            step in 1_usize..7,
        ) {
            // Different words, so that there is one right place to go on.
            let words: Vec<String> = words.into_iter().collect();
            let cut = cut.min(words.len());
            let from = from.min(cut);
            let mut told = words[..cut].join(" ");
            if cut > 0 {
                told.push(' ');
            }
            let new = words[from..].join(" ");
            let bytes: Vec<&str> = new.as_bytes().chunks(step).map(|c| std::str::from_utf8(c).unwrap()).collect();
            prop_assert_eq!(joined(&told, &bytes).trim_end().to_owned(), words.join(" "));
        }

        #[test]
        fn whole_words_concatenate_to_the_text(tokens in proptest::collection::vec("[a-zé今'. ]{0,9}", 0..20)) {
            let mut whole = WholeWords::default();
            let mut all = String::new();
            for token in &tokens {
                all.push_str(&whole.push(token));
            }
            all.push_str(&whole.finish());
            prop_assert_eq!(all, tokens.concat());
        }
    }
}
