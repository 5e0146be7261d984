//! When the user cuts the agent short, and when that was only noise.
//!
//! An interruption first holds the agent: playout falls silent, nothing is thrown away. Words of
//! the user confirm it; without words in time it was false, and the agent goes on where it was.
//! While the agent is thinking, speech holds the answer from the detector's first word: nothing is
//! heard yet that a pause would spoil.

use std::time::{Duration, Instant};

use crate::session::{settings::Settings, timers::later, turn::completeness::bare};

/// Noise that keeps coming back holds the agent for at most this long.
const MAX_HOLD: Duration = Duration::from_secs(10);
/// The same where recognition tells nothing before the user is silent.
const MAX_HOLD_WITHOUT_INTERIMS: Duration = Duration::from_mins(1);
/// After the end of a sound the words of it, if any, come within this time.
const GRACE: Duration = Duration::from_millis(300);
/// Where recognition tells words while the user speaks, speech without any is noise; if it lasts
/// this much longer than the minimum, recognition has stalled.
pub(in crate::session) const PATIENCE: Duration = Duration::from_secs(2);
/// Fewer words than this, said while the agent speaks, are said in passing...
const PASSING_WORDS: usize = 3;
/// ...unless the agent fell silent this soon after: then they answer it.
const ANSWER_WINDOW: Duration = Duration::from_secs(1);

/// The agent is held until it is known whether the user means to speak.
#[derive(Debug, Clone, Copy)]
pub(in crate::session) struct Hold {
    pub since: Instant,
}

impl Hold {
    /// When the hold is given up at the latest.
    fn limit(self, gives_interims: bool) -> Instant {
        let most = if gives_interims { MAX_HOLD } else { MAX_HOLD_WITHOUT_INTERIMS };
        later(self.since, most)
    }

    /// Until when to wait for words, from now.
    pub fn wait(self, settings: &Settings, gives_interims: bool, now: Instant) -> Instant {
        later(now, settings.false_interruption).min(self.limit(gives_interims)).max(now)
    }

    /// Until when to wait for the words of a sound that has ended while the agent was thinking.
    pub fn wait_for_tail(self, settings: &Settings, gives_interims: bool, now: Instant) -> Instant {
        if gives_interims { later(now, GRACE) } else { self.wait(settings, gives_interims, now) }
    }

    /// Whether the wait may be taken up once more: recognition that gives no interims cannot have
    /// told anything while the user still speaks.
    pub fn may_extend(self, speaking: bool, gives_interims: bool, now: Instant) -> bool {
        speaking && !gives_interims && now < self.limit(false)
    }
}

/// Words by which somebody shows to be listening.
pub(super) const LISTENING: &[&str] = &[
    "mm", "mmm", "hm", "hmm", "mhm", "mm-hm", "mm-hmm", "mmhm", "mmhmm", "uh-huh", "uhhuh", "huh",
    "uh", "um", "ah", "aha", "oh", "okay", "ok", "yeah", "yep", "yup", "yes", "right", "sure",
    "alright", "all", "i", "see", "got", "it", "cool", "great", "good", "nice", "exactly", "true",
    "ja", "genau", "gut", "klar", "stimmt", "oui", "ouais", "d'accord", "bien", "sí", "vale",
    "claro",
];
/// Together more than this many such words are a turn.
const MAX_BACKCHANNEL: usize = 4;

/// Whether these words, together, only show that the user listens: the agent need not stop.
pub(crate) fn is_backchannel(said: &str, open: &str) -> bool {
    let mut count = 0;
    let mut words = said.split_whitespace().chain(open.split_whitespace());
    words.all(|word| {
        count += 1;
        LISTENING.contains(&bare(word).as_str())
    }) && (1..=MAX_BACKCHANNEL).contains(&count)
        && !said.ends_with('?')
}

/// Whether words heard while the agent spoke ask for an answer once it is silent.
pub(in crate::session) fn asks_for_answer(
    text: &str,
    ended: Option<Instant>,
    interruptible: bool,
    now: Instant,
) -> bool {
    !interruptible
        || text.split_whitespace().nth(PASSING_WORDS - 1).is_some() && !is_backchannel(text, "")
        || ended.is_none_or(|at| now.saturating_duration_since(at) <= ANSWER_WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_passing_ask_for_no_answer_unless_the_agent_was_just_done() {
        let now = crate::clock::now() + Duration::from_secs(10);
        let long_ago = now.checked_sub(Duration::from_secs(4));
        assert!(!asks_for_answer("mm hm", long_ago, true, now));
        assert!(asks_for_answer("and at eight", long_ago, true, now));
        assert!(asks_for_answer("yes", Some(now), true, now));
        assert!(asks_for_answer("yes", long_ago, false, now), "it could not interrupt");
    }

    #[test]
    fn agreement_is_no_turn_but_anything_more_is() {
        for text in ["Mm-hm.", "okay", "Yeah, okay.", "I see.", "all right"] {
            assert!(is_backchannel(text, ""), "{text}");
        }
        for text in ["", "okay stop", "yes but not today", "wait", "right?"] {
            assert!(!is_backchannel(text, ""), "{text}");
        }
        assert!(!is_backchannel("okay", "and then"), "words that are still open count too");
    }

    #[test]
    fn noise_that_keeps_coming_back_does_not_hold_for_ever() {
        let since = crate::clock::now();
        let hold = Hold { since };
        let settings = Settings::default();
        assert_eq!(hold.wait(&settings, true, since), since + Duration::from_secs(2));
        let late = since + Duration::from_secs(9);
        assert_eq!(hold.wait(&settings, true, late), since + MAX_HOLD);
        assert!(hold.may_extend(true, false, late));
        assert!(!hold.may_extend(true, true, late));
    }
}
