//! Which model a turn needs: a small one for the everyday, a large one where thought is asked for.
//!
//! Rules and a few features of the last words, microseconds in all: a question to a model about which
//! model to ask would cost the caller a round trip. In doubt it is the large one.

use crate::llm::model::Turn;

/// A turn with this many words or more is no simple question.
const LONG: usize = 28;
/// Points from which the large model is asked.
const ENOUGH: u32 = 2;
/// Words longer than this are cut before they are compared.
const MAX_WORD: usize = 32;
/// Words that are looked at.
const MAX_WORDS: usize = 200;

/// Asks for thought, whatever else is said.
const THOUGHT: [&str; 24] = [
    "why",
    "explain",
    "compare",
    "difference",
    "analyse",
    "analyze",
    "evaluate",
    "calculate",
    "recommend",
    "strategy",
    "tradeoff",
    "summarise",
    "summarize",
    "prove",
    "derive",
    "diagnose",
    "warum",
    "erkläre",
    "vergleiche",
    "porque",
    "explica",
    "pourquoi",
    "explique",
    "comparer",
];
/// Turns of phrase that join thoughts.
const JOINTS: [&str; 14] = [
    "because",
    "although",
    "instead",
    "unless",
    "whereas",
    "however",
    "therefore",
    "depending",
    "should",
    "would",
    "better",
    "plan",
    "if",
    "versus",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Small,
    Large,
}

impl Size {
    /// As metrics have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }
}

/// How an agent chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Routing {
    #[default]
    Auto,
    AlwaysLarge,
}

/// The model that the last of these turns needs.
pub fn size(turns: &[Turn]) -> Size {
    let said = turns.iter().rev().find_map(|turn| match turn {
        Turn::User(text) => Some(text.as_str()),
        // In the middle of tools the question is the one before them.
        _ => None,
    });
    let Some(said) = said else { return Size::Small };
    if points(said) >= ENOUGH { Size::Large } else { Size::Small }
}

fn points(said: &str) -> u32 {
    let words: Vec<String> = said
        .split(|c: char| !c.is_alphanumeric() && c != '\'')
        .filter(|word| !word.is_empty())
        .take(MAX_WORDS)
        .map(|word| word.chars().take(MAX_WORD).flat_map(char::to_lowercase).collect())
        .collect();
    let has =
        |list: &[&str]| words.iter().filter(|word| list.contains(&word.as_str())).count() as u32;
    let mut points = 0;
    if words.len() >= LONG {
        points += 2;
    } else if words.len() >= LONG / 2 {
        points += 1;
    }
    // One word that asks for thought is enough in a sentence, not in "Why?".
    if has(&THOUGHT) > 0 {
        points += if words.len() >= 4 { 2 } else { 1 };
    }
    points += has(&JOINTS).min(2);
    if said.matches('?').count() > 1 {
        points += 1;
    }
    // Sums: two numbers and more.
    if words.iter().filter(|word| word.chars().all(|c| c.is_ascii_digit())).count() > 2 {
        points += 1;
    }
    let phrases = ["how does", "how do", "how would", "step by step", "pros and cons", "what if"];
    let lower = said.to_lowercase();
    if phrases.iter().any(|phrase| lower.contains(phrase)) {
        points += 1;
    }
    points
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size_of(said: &str) -> Size {
        size(&[Turn::System("Explain why and compare.".into()), Turn::User(said.into())])
    }

    #[test]
    fn the_everyday_goes_to_the_small_model() {
        for said in [
            "Hello.",
            "What time do you open on Saturday?",
            "Yes, a table for two please.",
            "My number is 555 0123.",
            "Can you spell that?",
            "Why?",
            "Thanks, goodbye!",
        ] {
            assert_eq!(size_of(said), Size::Small, "{said}");
        }
    }

    #[test]
    fn what_asks_for_thought_goes_to_the_large_model() {
        for said in [
            "Can you explain why my bill is higher this month?",
            "What's the difference between the two plans?",
            "If I cancel now, would it be better to pay for the year instead?",
            "How does the warranty work, and what if I lose the receipt?",
            "I was charged 30 in May, 45 in June and 60 in July, calculate what I owe.",
            "Warum ist das teurer geworden?",
        ] {
            assert_eq!(size_of(said), Size::Large, "{said}");
        }
    }

    #[test]
    fn only_the_last_words_of_the_user_count() {
        let turns = [
            Turn::User("Explain the difference between them.".into()),
            Turn::Assistant { text: "Because of the price.".into(), calls: vec![] },
            Turn::User("Okay, thanks.".into()),
        ];
        assert_eq!(size(&turns), Size::Small);
        assert_eq!(size(&[]), Size::Small);
    }

    proptest! {
        #[test]
        fn no_words_can_hurt(said in "\\PC{0,300}") {
            let _ = size_of(&said);
        }
    }
}
