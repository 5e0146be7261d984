//! What a word is good for in judging a turn: what a redacted recording keeps of it.

use super::{
    completeness::{bare, lexicon},
    interruption::LISTENING,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WordClass {
    /// Tells about the sentence, nothing about who says it.
    Function,
    NumberWord,
    Other,
}

pub(crate) fn of(word: &str, language: Option<&str>) -> WordClass {
    let lexicon = lexicon(language);
    let word = bare(word);
    let is_in = |list: &[&str]| list.contains(&word.as_str());
    let lists =
        [lexicon.fillers, lexicon.openers, lexicon.leaners, lexicon.subordinators, lexicon.answers];
    if lists.into_iter().any(is_in) || is_in(LISTENING) {
        WordClass::Function
    } else if is_in(lexicon.numbers) {
        WordClass::NumberWord
    } else {
        WordClass::Other
    }
}

/// A number word that is nothing else.
pub(crate) fn a_number(language: Option<&str>) -> &'static str {
    lexicon(language).numbers.last().copied().unwrap_or_default()
}
