//! Personal data out of a transcript: e-mail addresses and long numbers (telephone, card, account).
//!
//! By shape alone: what a name or an address is cannot be told so, and is left.

use std::borrow::Cow;

const MARK: &str = "[redacted]";
/// Fewer digits are an amount, a year, a time.
const MIN_DIGITS: usize = 7;

/// The text without them; borrowed when there are none.
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut copied = 0;
    let mut at = 0;
    while let Some(next) = text[at..].chars().next() {
        // What was in front of it has just gone, or it is the text's beginning.
        let before = text[copied..at].chars().next_back();
        if let Some(end) = email(text, at, before).or_else(|| number(text, at, before)) {
            out.push_str(&text[copied..at]);
            out.push_str(MARK);
            (at, copied) = (end, end);
        } else {
            at += next.len_utf8();
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// Where a run of digits, with what people write between them, ends; beginning at `at`.
fn number(text: &str, at: usize, before: Option<char>) -> Option<usize> {
    if before.is_some_and(char::is_alphanumeric) {
        return None;
    }
    let (mut digits, mut end, mut gap) = (0, at, 0);
    for (offset, character) in text[at..].char_indices() {
        if character.is_ascii_digit() {
            digits += 1;
            gap = 0;
            end = at + offset + 1;
        } else if matches!(character, ' ' | '-' | '.' | '/' | '(' | ')' | '+') && gap < 2 {
            if digits == 0 && !matches!(character, '+' | '(') {
                return None;
            }
            gap += 1;
        } else {
            break;
        }
    }
    (digits >= MIN_DIGITS).then_some(end)
}

/// Where an e-mail address that begins at `at` ends.
fn email(text: &str, at: usize, before: Option<char>) -> Option<usize> {
    let local = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '%');
    if before.is_some_and(local) {
        return None;
    }
    let length = text[at..].find(|c| !local(c)).filter(|length| *length > 0)?;
    let domain = text[at + length..].strip_prefix('@')?;
    let end = domain
        .find(|c: char| !(c.is_alphanumeric() || matches!(c, '.' | '-')))
        .unwrap_or(domain.len());
    let domain = domain[..end].trim_end_matches(['.', '-']);
    domain.contains('.').then_some(at + length + 1 + domain.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_and_long_numbers_go_and_the_rest_stays() {
        for (text, expected) in [
            ("Write to ann.lee+x@mail.example.org.", "Write to [redacted]."),
            ("Call +49 (0)30 123-4567 now", "Call [redacted] now"),
            ("4111 1111 1111 1111, thanks", "[redacted], thanks"),
            ("Ann@example.com and bob@example.com", "[redacted] and [redacted]"),
            ("12345678", "[redacted]"),
        ] {
            assert_eq!(redact(text), expected);
        }
        for text in
            ["in 2026 at 18:30", "for 1,500 euros", "room 101 at 9", "me@home", "A1234567", ""]
        {
            assert!(matches!(redact(text), Cow::Borrowed(_)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_can_be_redacted_and_then_nothing_is_left(text in "\\PC{0,60}") {
            let once = redact(&text).into_owned();
            prop_assert_eq!(redact(&once).into_owned(), once);
        }
    }
}
