//! Whether words read like a whole turn: the last word, the marks, open lists and numbers.
//!
//! The answer is a log-odds estimate, so that what is heard (melody, the audio model) can be added
//! to it. Its weights were set by hand; `antiphon eval` says how good they are.

/// How sure words are about a turn's end, as log-odds: above 0 it has rather ended.
pub(in crate::session) type Score = f32;

/// Words that sentences do not end with.
pub(super) struct Lexicon {
    /// Sounds of somebody who is still thinking.
    pub fillers: &'static [&'static str],
    /// Conjunctions, articles, possessives: something must follow.
    pub openers: &'static [&'static str],
    /// Prepositions, auxiliaries, pronouns: something mostly follows.
    pub leaners: &'static [&'static str],
    /// What begins a clause that needs another one.
    pub subordinators: &'static [&'static str],
    /// Number words, for numbers told digit by digit.
    pub numbers: &'static [&'static str],
    /// Whole answers of one word or two.
    pub answers: &'static [&'static str],
    /// Verbs that a question inside a sentence ends with, and words that begin one.
    pub copulas: &'static [&'static str],
    pub askers: &'static [&'static str],
}

const ENGLISH: Lexicon = Lexicon {
    fillers: &["um", "uh", "er", "erm", "hmm", "hm", "ah", "uhm", "umm"],
    openers: &[
        "and", "or", "but", "because", "if", "that", "which", "while", "than", "then", "when",
        "the", "a", "an", "my", "your", "his", "our", "their", "its", "very", "whether", "until",
        "unless", "although", "nor", "every", "dot", "plus",
    ],
    leaners: &[
        "of", "from", "with", "at", "to", "for", "in", "on", "by", "about", "into", "under",
        "over", "between", "as", "through", "without", "is", "are", "was", "were", "be", "been",
        "am", "would", "could", "will", "can", "should", "may", "might", "must", "have", "has",
        "had", "do", "does", "i", "we", "they", "he", "she", "i'm", "it's", "we're", "i'd", "i'll",
        "i've", "who", "where", "want", "need", "this", "some", "any", "another", "next", "last",
        "these", "those", "well", "like", "so",
    ],
    subordinators: &["if", "when", "while", "because", "since", "although", "as", "whenever"],
    numbers: &[
        "double", "triple", "hundred", "zero", "oh", "one", "two", "three", "four", "five", "six",
        "seven", "eight", "nine", "ten",
    ],
    answers: &[
        "yes", "no", "yeah", "yep", "nope", "okay", "ok", "sure", "thanks", "hello", "hi", "bye",
        "goodbye", "right", "exactly", "correct", "stop", "never", "nothing", "maybe",
    ],
    copulas: &[
        "is", "are", "was", "were", "am", "be", "do", "does", "has", "have", "can", "should",
    ],
    askers: &["where", "what", "who", "how", "when", "which", "why", "whether"],
};

const GERMAN: Lexicon = Lexicon {
    fillers: &["ähm", "äh", "hm", "hmm", "ehm", "also", "naja"],
    openers: &[
        "und", "oder", "aber", "weil", "wenn", "dass", "als", "der", "die", "das", "ein", "eine",
        "einen", "einem", "einer", "mein", "meine", "meinen", "dein", "ihr", "ihre", "sehr", "ob",
        "denn", "sondern", "bevor", "damit", "punkt",
    ],
    leaners: &[
        "von",
        "für",
        "in",
        "im",
        "zu",
        "zum",
        "zur",
        "bei",
        "nach",
        "aus",
        "über",
        "unter",
        "ist",
        "sind",
        "war",
        "wird",
        "kann",
        "könnte",
        "würde",
        "muss",
        "soll",
        "habe",
        "hat",
        "ich",
        "wir",
        "sie",
        "er",
        "am",
        "um",
        "ohne",
        "bis",
        "bitte",
        "nächsten",
        "letzten",
    ],
    subordinators: &["wenn", "weil", "falls", "obwohl", "während", "bevor", "nachdem", "da"],
    numbers: &[
        "null", "eins", "ein", "zwei", "zwo", "drei", "vier", "fünf", "sechs", "sieben", "acht",
        "neun", "zehn",
    ],
    answers: &["ja", "nein", "doch", "okay", "danke", "hallo", "genau", "gut", "stopp", "tschüss"],
    copulas: &["ist", "sind", "war", "hat", "kann", "soll", "muss"],
    askers: &["wo", "was", "wer", "wie", "wann", "welche", "warum", "ob"],
};

const FRENCH: Lexicon = Lexicon {
    fillers: &["euh", "heu", "hum", "bah", "ben", "alors", "donc"],
    openers: &[
        "et", "ou", "mais", "parce", "que", "qui", "si", "quand", "le", "la", "les", "un", "une",
        "des", "du", "mon", "ma", "mes", "votre", "vos", "très", "car", "point",
    ],
    leaners: &[
        "de", "à", "au", "aux", "pour", "dans", "en", "sur", "avec", "par", "chez", "sans", "est",
        "suis", "sont", "je", "nous", "vous", "il", "elle", "voudrais", "veux", "ai", "cette",
        "ce",
    ],
    subordinators: &["si", "quand", "comme", "lorsque", "puisque"],
    numbers: &[
        "zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "dix",
    ],
    answers: &["oui", "non", "si", "merci", "bonjour", "salut", "exactement", "stop", "voilà"],
    copulas: &["est", "sont", "suis"],
    askers: &["où", "que", "qui", "comment", "quand", "pourquoi"],
};

const SPANISH: Lexicon = Lexicon {
    fillers: &["eh", "em", "este", "pues", "bueno", "mmm"],
    openers: &[
        "y", "o", "pero", "porque", "que", "si", "cuando", "el", "la", "los", "las", "un", "una",
        "mi", "su", "tu", "muy", "punto",
    ],
    leaners: &[
        "de", "del", "a", "al", "para", "en", "con", "por", "sin", "sobre", "es", "son", "está",
        "yo", "quiero", "quisiera", "necesito", "tengo", "me", "este", "esta",
    ],
    subordinators: &["si", "cuando", "como", "aunque", "mientras"],
    numbers: &[
        "cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez",
    ],
    answers: &["sí", "no", "vale", "gracias", "hola", "claro", "exacto", "adiós"],
    copulas: &["es", "son", "está"],
    askers: &["dónde", "qué", "quién", "cómo", "cuándo", "cuál"],
};

pub(super) fn lexicon(language: Option<&str>) -> &'static Lexicon {
    let is = |code: &str| language.is_some_and(|language| language.starts_with(code));
    match () {
        () if is("de") => &GERMAN,
        () if is("fr") => &FRENCH,
        () if is("es") => &SPANISH,
        () => &ENGLISH,
    }
}

/// Words of a longest run that is looked at; longer turns are judged by their end.
const TAIL: usize = 24;

/// How whole a turn's words are. `punctuates`: recognition sets marks, so that a missing one tells
/// something.
pub(in crate::session) fn score(text: &str, language: Option<&str>, punctuates: bool) -> Score {
    let lexicon = lexicon(language);
    let text = text.trim_end();
    let Some(last) = text.chars().next_back() else { return 0.0 };
    let tail: Vec<String> = text.split_whitespace().rev().take(TAIL).map(bare).collect();
    let Some(word) = tail.first().map(String::as_str) else { return 0.0 };
    let among = |list: &[&str]| list.contains(&word);
    let mut score = match last {
        '?' => 2.6,
        '!' => 2.4,
        '.' => 2.0,
        ',' | ';' | ':' | '-' | '–' | '…' => -2.6,
        _ if punctuates => -0.35,
        _ => 0.0,
    };
    if among(lexicon.fillers) {
        score -= 4.0;
    } else if among(lexicon.openers) {
        score -= 4.5;
    } else if among(lexicon.leaners) {
        score -= match last {
            '?' => 0.8,
            // "Can you tell me where it is" and "the one I was thinking of." are whole.
            _ if is_embedded_question(&tail, lexicon) => 0.8,
            '.' | '!' => 2.2,
            _ => 3.0,
        };
    }
    if tail.len() <= 2 && tail.iter().any(|word| lexicon.answers.contains(&word.as_str())) {
        score += 1.6;
    }
    score + number(&tail, last, lexicon) + list(text) + clause(text, &tail, lexicon)
}

/// "… where my order is": a question inside a sentence ends with its verb.
fn is_embedded_question(tail: &[String], lexicon: &Lexicon) -> bool {
    let verb = tail.first().is_some_and(|word| lexicon.copulas.contains(&word.as_str()));
    verb && tail.iter().skip(2).any(|word| lexicon.askers.contains(&word.as_str()))
}

/// How much the sound counts beside the words.
const SOUND_WEIGHT: f32 = 0.25;

/// What the turn model's probability adds to the words' score: its log-odds, weighed, and bounded so
/// that sound alone never decides against clear words.
pub(in crate::session) fn sound(probability: f32) -> Score {
    if probability.is_nan() {
        return 0.0;
    }
    let p = probability.clamp(0.02, 0.98);
    (p / (1.0 - p)).ln() * SOUND_WEIGHT
}

/// A number or a name told piece by piece goes on, the more surely the shorter it is; a full stop
/// after it says otherwise.
fn number(tail: &[String], last: char, lexicon: &Lexicon) -> Score {
    let is_digits = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    let is_piece = |word: &&String| {
        let mut letters = word.chars();
        let is_letter =
            matches!((letters.next(), letters.next()), (Some(c), None) if c.is_alphabetic());
        lexicon.numbers.contains(&word.as_str())
            || is_letter && word.as_str() != "i"
            || word.len() <= 4 && is_digits(word)
    };
    let pieces = tail.iter().take_while(is_piece);
    let digits: usize = pieces.map(|word| if is_digits(word) { word.len() } else { 1 }).sum();
    let score = match digits {
        0 | 1 => 0.0,
        2..=5 => -2.4,
        6..=8 => -1.4,
        _ => 0.4,
    };
    if last == '.' { score * 0.6 } else { score }
}

/// Items with commas between them and no last one yet.
fn list(text: &str) -> Score {
    let Some((before, item)) = text.rsplit_once(", ") else { return 0.0 };
    let words = item.split_whitespace().count();
    let is_last = item.split_whitespace().next().is_some_and(|word| {
        matches!(bare(word).as_str(), "and" | "or" | "und" | "oder" | "et" | "ou" | "y" | "o")
    });
    let is_item = (1..=3).contains(&words) && before.split_whitespace().count() > 2;
    // "Thank you, Anna." has a comma too: only one more piece of evidence.
    if is_item && !is_last && !item.ends_with(['.', '?', '!']) { -1.0 } else { 0.0 }
}

/// "If it rains on Monday" needs a second clause.
fn clause(text: &str, tail: &[String], lexicon: &Lexicon) -> Score {
    let sentence = text.trim_end_matches(['.', '!', '?', ',']);
    let sentence = sentence.rsplit_once(['.', '!', '?']).map_or(sentence, |(_, rest)| rest);
    let mut words = sentence.split_whitespace();
    let opens =
        words.next().is_some_and(|word| lexicon.subordinators.contains(&bare(word).as_str()));
    let short = tail.len() < 8;
    if opens && short && !sentence.contains(',') { -1.6 } else { 0.0 }
}

/// A word without its marks, in small letters.
pub(super) fn bare(word: &str) -> String {
    word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn english(text: &str) -> Score {
        score(text, Some("en-US"), true)
    }

    #[test]
    fn a_sentence_with_its_mark_is_whole() {
        let whole = [
            "Please cancel my order.",
            "What is that for?",
            "Yes.",
            "No, thanks.",
            "On Monday, please.",
            "Can you tell me where my order is?",
            "Can you hear me well?",
        ];
        for text in whole {
            assert!(english(text) >= 1.0, "{text} {}", english(text));
        }
    }

    #[test]
    fn a_conjunction_an_article_or_a_filler_at_the_end_waits_for_more_whatever_the_mark() {
        for text in ["four adults and", "I would like to, um", "Calling about the.", "because"] {
            assert!(english(text) <= -1.5, "{text} {}", english(text));
        }
    }

    #[test]
    fn a_question_inside_a_sentence_may_end_with_its_verb() {
        assert!(english("Can you tell me where my parcel is") > -1.5);
        assert!(english("I think my parcel is") < -2.5);
    }

    #[test]
    fn a_number_told_piece_by_piece_is_not_over_after_its_first_pieces() {
        assert!(english("My number is four one five,") < -2.0);
        assert!(english("My number is 415") < -1.5);
        assert!(english("It's spelled K, O") < -1.5);
        assert!(english("four one five five five five zero one nine two.") > 1.0);
        assert!(english("Tomorrow at eight.") > 1.0, "one number is a time of day");
    }

    #[test]
    fn sound_tips_the_scales_of_unclear_words_alone() {
        assert!(sound(0.5).abs() < 1e-6);
        assert!(sound(1.0) > 0.9 && sound(0.0) < -0.9);
        assert!(english("I will think about that now") + sound(0.95) > 0.3);
        assert!(english("and the") + sound(1.0) < -2.0);
        assert!(sound(f32::NAN).abs() < 1e-6);
    }

    #[test]
    fn an_open_list_and_an_open_clause_wait() {
        assert!(english("I need apples, two batteries") < -1.0);
        assert!(english("I need apples, two batteries, and coffee.") > 1.0);
        assert!(english("If it rains on Monday") < -1.5);
    }

    #[test]
    fn without_marks_nothing_is_said_by_their_absence() {
        assert!(score("book a table", None, false).abs() < 0.01);
        assert!(score("book a table", None, true) < 0.0);
    }

    #[test]
    fn other_languages_have_their_own_words() {
        assert!(score("Ich möchte einen Tisch und", Some("de"), true) < -2.0);
        assert!(score("Je voudrais une", Some("fr"), true) < -2.0);
        assert!(score("Quiero un vuelo a", Some("es-419"), true) < -2.0);
        assert!(score("Das ist alles.", Some("de"), true) >= 1.0);
    }
}
