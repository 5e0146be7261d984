//! Text as it is read out: models write Markdown, emoji and addresses, which nobody pronounces well.
//!
//! Works word by word on a stream: a word is passed on when the white space after it has come, so
//! that it does not matter how the text was cut into tokens. Plain text passes unchanged.

use std::{collections::BTreeMap, sync::Arc};

/// Text without white space is passed on at this many bytes.
const LONGEST: usize = 240;
/// Digits in one number from which it is no quantity but a name: read digit by digit.
const LONG_NUMBER: usize = 7;

/// How words are said that a voice gets wrong, by the word as it is written. A word in small
/// letters stands for itself in any; one with capitals for itself alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pronunciations(BTreeMap<String, String>);

impl FromIterator<(String, String)> for Pronunciations {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(words: I) -> Self {
        Self(words.into_iter().collect())
    }
}

impl Pronunciations {
    /// The word with its core replaced; what is around it stays: `(SQL's)`.
    fn replace(&self, word: &str) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }
        let start = word.find(char::is_alphanumeric)?;
        let rest = word[start..].trim_end_matches(|c: char| !c.is_alphanumeric());
        // `C++` has its own end.
        let whole = word[start..].trim_end_matches(['.', ',', ';', ':', '!', '?', ')', '"', '”']);
        let owned = rest.split(['\'', '’']).next().unwrap_or_default();
        let (core, said) =
            [whole, rest, owned].into_iter().find_map(|core| Some((core, self.said(core)?)))?;
        Some(format!("{}{said}{}", &word[..start], &word[start + core.len()..]))
    }

    fn said(&self, core: &str) -> Option<&str> {
        let said = self.0.get(core).or_else(|| self.0.get(&core.to_lowercase()));
        said.map(String::as_str)
    }
}

/// The filter of one speech.
#[derive(Debug)]
pub struct Spoken {
    pronunciations: Arc<Pronunciations>,
    waiting: String,
    at_line_start: bool,
    in_fence: bool,
    /// The last word was left out: the space after it goes with it.
    is_dropped: bool,
}

impl Default for Spoken {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Spoken {
    pub const fn new(pronunciations: Arc<Pronunciations>) -> Self {
        Self {
            pronunciations,
            waiting: String::new(),
            at_line_start: true,
            in_fence: false,
            is_dropped: false,
        }
    }

    /// What can be read out of the text so far.
    pub fn push(&mut self, text: &str) -> String {
        self.waiting.push_str(text);
        let end = self.waiting.rfind(ends_word).map(|at| {
            let width = self.waiting[at..].chars().next().map_or(1, char::len_utf8);
            at + width
        });
        let end = end.or_else(|| (self.waiting.len() > LONGEST).then_some(self.waiting.len()));
        match end {
            Some(end) => self.pass(end),
            None => String::new(),
        }
    }

    /// The rest: no more text comes.
    pub fn finish(&mut self) -> String {
        self.pass(self.waiting.len())
    }

    fn pass(&mut self, end: usize) -> String {
        let rest = self.waiting.split_off(end);
        let text = std::mem::replace(&mut self.waiting, rest);
        let mut out = String::with_capacity(text.len());
        let mut left = text.as_str();
        while !left.is_empty() {
            let end = left.char_indices().find(|(_, c)| ends_word(*c));
            let word_end = end.map_or(left.len(), |(at, c)| {
                at + if c.is_whitespace() { 0 } else { c.len_utf8() }
            });
            let (word, after) = left.split_at(word_end);
            let space_end = after.find(|c: char| !c.is_whitespace()).unwrap_or(after.len());
            let (space, next) = after.split_at(space_end);
            left = next;
            if !word.is_empty() {
                let said = self.word(word);
                self.is_dropped = said.is_empty();
                out.push_str(&said);
            }
            let line_end = space.find('\n');
            if !self.is_dropped {
                out.push_str(space);
            } else if let Some(at) = line_end {
                out.push_str(&space[at..]);
                self.is_dropped = false;
            }
            if line_end.is_some() {
                self.at_line_start = true;
            } else if !word.is_empty() && !self.is_dropped {
                self.at_line_start = false;
            }
        }
        out
    }

    fn word(&mut self, word: &str) -> String {
        if word.starts_with("```") {
            // Code is read as it stands; its fence and the language's name are not.
            self.in_fence = !self.in_fence;
            return String::new();
        }
        let is_mark = |marks: &str| !word.is_empty() && word.chars().all(|c| marks.contains(c));
        if self.at_line_start && (is_mark("#") || is_mark("-*+•>=_") || is_mark("|-:")) {
            return String::new();
        }
        if word == "|" {
            return ",".into();
        }
        if word == "&" {
            return "and".into();
        }
        let plain = without_emoji(&without_links(word));
        let plain = without_emphasis(&plain);
        self.pronunciations
            .replace(&plain)
            .or_else(|| address(&plain))
            .or_else(|| telephone(&plain))
            .unwrap_or_else(|| digits(&plain))
    }
}

fn ends_word(c: char) -> bool {
    c.is_whitespace() || matches!(c, '。' | '！' | '？' | '、' | '，')
}

/// `[text](https://…)` is its text, wherever it was cut into words.
fn without_links(word: &str) -> String {
    let mut text = word.to_owned();
    while let Some(at) = text.find("](") {
        let Some(length) = text[at..].find(')') else { break };
        text.replace_range(at..=at + length, "");
    }
    match text.strip_prefix("![").or_else(|| text.strip_prefix('[')) {
        // A bracket of its own is not pronounced either.
        Some(rest) => rest.strip_suffix(']').unwrap_or(rest).to_owned(),
        None => text,
    }
}

fn without_emoji(word: &str) -> String {
    word.chars().filter(|c| !is_emoji(*c)).collect()
}

/// Pictures, flags, and the signs that join them.
fn is_emoji(c: char) -> bool {
    matches!(u32::from(c),
        0x1_f000..=0x1_faff | 0x2600..=0x27bf | 0x2b00..=0x2bff | 0xfe0f | 0x200d | 0x20e3
        | 0xe_0020..=0xe_007f)
}

/// Marks around a word, and pairs within it.
fn without_emphasis(word: &str) -> String {
    let text = word.replace("**", "").replace("__", "").replace("~~", "").replace('`', "");
    let inner = text.trim_matches(['*', '_', '~']);
    if !inner.chars().any(char::is_alphanumeric) {
        return text;
    }
    // What closes a sentence may stand after the mark: *so*.
    let bare = inner.trim_end_matches(['.', ',', ';', ':', '!', '?', ')', '"', '”', '’']);
    let tail = &inner[bare.len()..];
    format!("{}{tail}", bare.trim_matches(['*', '_']).replace('_', " "))
}

/// A web or mail address, as people say it.
fn address(word: &str) -> Option<String> {
    let start = word.find(char::is_alphanumeric)?;
    let (before, rest) = word.split_at(start);
    let bare = rest.trim_end_matches(['.', ',', ';', ':', '!', '?', ')', ']', '"', '”', '>']);
    let tail = rest[bare.len()..].trim_start_matches(['>', ']']);
    let before = before.trim_end_matches(['<', '[']);
    let spoken = if let Some((user, host)) = bare.split_once('@') {
        let is_host =
            host.contains('.') && host.chars().all(|c| c.is_alphanumeric() || ".-".contains(c));
        if user.is_empty() || !is_host {
            return None;
        }
        format!("{} at {}", dots(user), dots(host))
    } else {
        let without_scheme = bare.strip_prefix("https://").or_else(|| bare.strip_prefix("http://"));
        let host = without_scheme.or_else(|| bare.starts_with("www.").then_some(bare))?;
        let host = host.split(['/', '?', '#']).next().unwrap_or_default();
        dots(host.strip_prefix("www.").unwrap_or(host))
    };
    Some(format!("{before}{spoken}{tail}"))
}

fn dots(host: &str) -> String {
    host.replace('.', " dot ").replace('_', " underscore ")
}

/// A telephone number in groups: `555-010-9999`, `+49-30-1234567`. Dates are not.
fn telephone(word: &str) -> Option<String> {
    let start = word.find(|c: char| c == '+' || c.is_ascii_digit())?;
    let bare = word[start..].trim_end_matches(|c: char| !c.is_ascii_digit());
    let tail = &word[start + bare.len()..];
    let groups: Vec<&str> = bare.trim_start_matches('+').split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let is_number = groups
        .iter()
        .all(|group| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit()));
    let has_plus = bare.starts_with('+');
    let is_date = matches!(lengths[..], [4, 1..=2, 1..=2] | [1..=2, 1..=2, 4]);
    let is_long = lengths.iter().sum::<usize>() >= LONG_NUMBER;
    if !is_number || !is_long || !(groups.len() > 1 || has_plus) || (is_date && !has_plus) {
        return None;
    }
    let spaced = |group: &&str| {
        let digits: Vec<String> = group.chars().map(String::from).collect();
        digits.join(" ")
    };
    // A comma is a short pause.
    let said: Vec<String> = groups.iter().map(spaced).collect();
    let plus = if has_plus { "plus " } else { "" };
    Some(format!("{}{plus}{}{tail}", &word[..start], said.join(", ")))
}

/// Long numbers are telephone or order numbers.
fn digits(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut run = String::new();
    for c in word.chars().chain(std::iter::once('\0')) {
        if c.is_ascii_digit() {
            run.push(c);
            continue;
        }
        if run.len() >= LONG_NUMBER {
            let spaced: Vec<String> = run.chars().map(String::from).collect();
            out.push_str(&spaced.join(" "));
        } else {
            out.push_str(&run);
        }
        run.clear();
        if c != '\0' {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spoken(text: &str) -> String {
        let mut filter = Spoken::default();
        let mut out = filter.push(text);
        out.push_str(&filter.finish());
        out
    }

    #[test]
    fn plain_text_passes_unchanged() {
        for text in [
            "It is 3.5 degrees, isn't it? Yes — at 9:30.",
            "  Two\n\nlines. ",
            "2*3 is 6, that's 50% of $12.",
            "Grüße aus Köln。今日は。",
            "",
        ] {
            assert_eq!(spoken(text), text);
        }
    }

    #[test]
    fn markdown_is_not_read_out() {
        assert_eq!(
            spoken("# Title\nSome **bold text** and *so*."),
            "Title\nSome bold text and so."
        );
        assert_eq!(spoken("- one\n- two\n* three"), "one\ntwo\nthree");
        assert_eq!(spoken("Run `ls -l` now: ```sh\nls\n```\nok"), "Run ls -l now: \nls\n\nok");
        assert_eq!(spoken("~~no~~ __yes__ snake_case"), "no yes snake case");
        assert_eq!(spoken("> quoted"), "quoted");
    }

    #[test]
    fn links_are_their_text() {
        assert_eq!(spoken("See [our page](https://x.example/a)."), "See our page.");
        assert_eq!(spoken("![a map](https://x.example/m.png) here"), "a map here");
    }

    #[test]
    fn addresses_are_said_as_people_say_them() {
        assert_eq!(spoken("At https://www.example.com/a/b?c=1."), "At example dot com.");
        assert_eq!(spoken("(www.example.org)"), "(example dot org)");
        assert_eq!(spoken("Write to ada@example.com!"), "Write to ada at example dot com!");
        assert_eq!(spoken("@ada"), "@ada");
    }

    #[test]
    fn emoji_are_left_out() {
        assert_eq!(spoken("Great 🎉 news 👍🏽!"), "Great news !");
        assert_eq!(spoken("🇩🇪"), "");
    }

    #[test]
    fn long_numbers_are_read_digit_by_digit() {
        assert_eq!(spoken("Call 5550123 or 110."), "Call 5 5 5 0 1 2 3 or 110.");
        assert_eq!(spoken("It costs 1,250,000."), "It costs 1,250,000.");
        assert_eq!(spoken("(555-010-9999)."), "(5 5 5, 0 1 0, 9 9 9 9).");
        assert_eq!(spoken("+49-30-1234567,"), "plus 4 9, 3 0, 1 2 3 4 5 6 7,");
        assert_eq!(spoken("+15550100999"), "plus 1 5 5 5 0 1 0 0 9 9 9");
        assert_eq!(spoken("On 2026-11-22, 9-5, +3."), "On 2026-11-22, 9-5, +3.");
    }

    #[test]
    fn words_are_said_as_they_were_asked_to_be() {
        let words = [("SQL", "sequel"), ("nginx", "engine x"), ("C++", "see plus plus")];
        let words = words.into_iter().map(|(word, said)| (word.to_owned(), said.to_owned()));
        let mut filter = Spoken::new(Arc::new(words.collect()));
        let mut out = filter.push("**SQL** and (SQL's) sql, Nginx. NGINX: C++, C");
        out.push_str(&filter.finish());
        assert_eq!(out, "sequel and (sequel's) sql, engine x. engine x: see plus plus, C");
    }

    #[test]
    fn a_word_is_passed_on_with_the_space_after_it() {
        let mut filter = Spoken::default();
        assert_eq!(filter.push("Hel"), "");
        assert_eq!(filter.push("lo **wor"), "Hello ");
        assert_eq!(filter.push("ld** now"), "world ");
        assert_eq!(filter.finish(), "now");
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_text_was_cut(
            text in "([a-z]{1,5}|\\*\\*|# |- |`|🎉|\n| |\\[a\\]\\(b\\)|12345678|。){0,25}",
            step in 1_usize..9,
        ) {
            let whole = spoken(&text);
            let mut filter = Spoken::default();
            let chars: Vec<char> = text.chars().collect();
            let mut out = String::new();
            for piece in chars.chunks(step) {
                out.push_str(&filter.push(&piece.iter().collect::<String>()));
            }
            out.push_str(&filter.finish());
            prop_assert_eq!(out, whole);
        }

        #[test]
        fn no_text_can_hurt(text in "\\PC{0,120}") {
            let _ = spoken(&text);
        }
    }
}
