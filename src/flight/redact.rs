//! Words taken out of a flight.
//!
//! What decides about turns is kept: marks, words that sentences do not end with, whether a word is
//! a number. Every other letter becomes an `x`, every digit a `0`, number by number.

use crate::{
    llm::{LlmError, LlmEvent},
    session::{
        input::{Input, ParticipantEvent, SttInput, TtsInput},
        machine::SessionIds,
        settings::Settings,
        word_class::{self, WordClass},
    },
    stt::{SttError, Transcript},
    tts::TtsError,
};

/// Letters and digits made unreadable, all of them; the length stays.
pub fn shape(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            _ if c.is_alphabetic() => 'x',
            _ if c.is_numeric() => '0',
            _ => c,
        })
        .collect()
}

/// The same, each word and each number as one sign: what is left when lengths may differ.
pub fn outline(text: &str) -> String {
    let mut out = String::new();
    for c in shape(text).chars() {
        if !(matches!(c, 'x' | '0') && out.ends_with(c)) {
            out.push(c);
        }
    }
    out
}

/// A user's words: what tells about the end of a turn stays, what tells about the user goes.
pub fn words(text: &str, language: Option<&str>) -> String {
    let mut out = String::with_capacity(text.len());
    for piece in text.split_inclusive(char::is_whitespace) {
        match word_class::of(piece, language) {
            WordClass::Function => out.push_str(piece),
            WordClass::Other => out.push_str(&shape(piece)),
            WordClass::NumberWord => {
                let end = piece.trim_end_matches(|c: char| !c.is_alphanumeric()).len();
                out.push_str(word_class::a_number(language));
                out.push_str(&piece[end..]);
            }
        }
    }
    out
}

/// An input without the words in it.
pub fn input(input: &Input, language: Option<&str>) -> Input {
    let mut input = input.clone();
    match &mut input {
        Input::Stt { event: SttInput::Interim(heard) | SttInput::Final(heard), .. } => {
            transcript(heard, language);
        }
        Input::Participant { event: ParticipantEvent::Joined { identity, name }, .. } => {
            *identity = shape(identity);
            *name = shape(name);
        }
        Input::Chat { text, .. } => *text = words(text, language),
        Input::Say { text, .. } | Input::Llm { event: LlmEvent::Text(text), .. } => {
            *text = shape(text);
        }
        Input::HandOver { settings: next, agent_name, .. } => {
            **next = settings(next);
            *agent_name = shape(agent_name);
        }
        Input::Tts { event: TtsInput::Alignment(timed), .. } => {
            for word in timed {
                word.text = shape(&word.text);
            }
        }
        // Providers quote what they refuse.
        Input::Llm { event: LlmEvent::Error(error), .. } => match error {
            LlmError::Rejected { message, .. }
            | LlmError::Unreachable(message)
            | LlmError::Interrupted(message) => *message = shape(message),
            LlmError::Unauthorized { .. } | LlmError::Timeout(_) => {}
        },
        Input::Stt { event: SttInput::Failed(error), .. } => match error {
            SttError::Rejected { message, .. }
            | SttError::Unreachable(message)
            | SttError::Protocol(message) => *message = shape(message),
            SttError::Unauthorized { .. } => {}
        },
        Input::Tts { event: TtsInput::Error(error), .. } => match error {
            TtsError::Rejected(message)
            | TtsError::Unreachable(message)
            | TtsError::Interrupted(message) => *message = shape(message),
            TtsError::Unauthorized { .. } | TtsError::Timeout(_) => {}
        },
        _ => {}
    }
    input
}

fn transcript(heard: &mut Transcript, language: Option<&str>) {
    heard.text = words(&heard.text, language);
    for word in &mut heard.words {
        word.text = words(&word.text, language);
    }
}

/// Settings without what is said by them.
pub fn settings(settings: &Settings) -> Settings {
    let hidden = |text: &Option<String>| text.as_deref().map(shape);
    Settings {
        system_prompt: shape(&settings.system_prompt),
        greeting: hidden(&settings.greeting),
        farewell: hidden(&settings.farewell),
        away_prompt: hidden(&settings.away_prompt),
        apology: shape(&settings.apology),
        ..settings.clone()
    }
}

/// The session's names without those of people; the prefix is random.
pub fn ids(ids: &SessionIds) -> SessionIds {
    SessionIds {
        prefix: ids.prefix.clone(),
        agent_identity: shape(&ids.agent_identity),
        agent_name: shape(&ids.agent_name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        session::input::{GenerationId, SpeakerId},
        tts::SpeechId,
    };

    #[test]
    fn names_and_numbers_go_and_what_ends_a_turn_stays() {
        let said = "My name is Kowalski, and my number is four one 555.";
        assert_eq!(
            words(said, Some("en")),
            "my xxxx is xxxxxxxx, and my xxxxxx is ten ten 000.".replacen("my", "My", 1)
        );
    }

    #[test]
    fn what_a_provider_quotes_of_the_user_goes_too() {
        let quoted = || "refused: Kowalski".to_owned();
        let id = GenerationId(1);
        let rejected = LlmError::Rejected { status: 400, message: quoted() };
        let speech = SpeechId(1);
        for told in [
            Input::Llm { id, event: LlmEvent::Error(rejected) },
            Input::Stt {
                speaker: SpeakerId(1),
                event: SttInput::Failed(SttError::Protocol(quoted())),
            },
            Input::Tts { id: speech, event: TtsInput::Error(TtsError::Interrupted(quoted())) },
        ] {
            let redacted = format!("{:?}", input(&told, None));
            assert!(redacted.contains("xxxxxxx: xxxxxxxx"), "{redacted}");
        }
    }

    #[test]
    fn redacting_twice_changes_nothing() {
        for text in ["Call me at 555 0192, Anna.", "uh, K O W", "and the"] {
            let once = words(text, None);
            assert_eq!(words(&once, None), once);
            assert_eq!(outline(&once).len(), outline(text).len(), "{once}");
        }
    }
}
