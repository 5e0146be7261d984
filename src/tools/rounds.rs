//! What tools were called in a conversation and what came of it, put back where it happened.
//!
//! The session's history holds words alone. A round of calls is remembered from the moment it begins:
//! an interruption leaves behind what was called, and a call that outlives it tells its result later.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

use crate::llm::model::{ToolCall, ToolResult, Turn};

/// Rounds that are remembered.
const MAX_ROUNDS: usize = 32;
/// Arguments and results that are remembered, in bytes; the newest round whatever its size.
const MAX_BYTES: usize = 32 << 10;

/// Calls at the same time, and the user's words that led to them.
#[derive(Debug, Clone, PartialEq)]
struct Round {
    id: u64,
    /// All rounds of one answer have the same.
    answer: u64,
    after: String,
    calls: Vec<ToolCall>,
    results: Vec<ToolResult>,
}

impl Round {
    fn bytes(&self) -> usize {
        let calls = self.calls.iter().map(|call| call.arguments.len());
        calls.chain(self.results.iter().map(|result| result.text.len())).sum()
    }
}

#[derive(Debug, Default)]
struct Kept {
    rounds: VecDeque<Round>,
    next: u64,
}

/// The rounds of one session.
#[derive(Debug, Clone, Default)]
pub struct Rounds(Arc<Mutex<Kept>>);

impl Rounds {
    /// Names an answer.
    pub fn answer(&self) -> u64 {
        let mut kept = self.0.lock();
        kept.next += 1;
        kept.next
    }

    /// Remembers calls that are asked for now, and names the round. Until it is settled a call counts
    /// as ended by an interruption.
    pub fn begin(&self, answer: u64, after: &str, calls: &[ToolCall]) -> u64 {
        let results = calls.iter().map(|call| ToolResult {
            id: call.id.clone(),
            name: call.name.clone(),
            text: "ended without a result: the user interrupted".into(),
            is_error: true,
        });
        let mut kept = self.0.lock();
        kept.next += 1;
        let id = kept.next;
        let round = Round {
            id,
            answer,
            after: after.to_owned(),
            calls: calls.to_vec(),
            results: results.collect(),
        };
        kept.rounds.push_back(round);
        kept.shrink();
        id
    }

    /// A round's `nth` call goes on whatever happens.
    pub fn under_way(&self, round: u64, nth: usize) {
        self.change(round, nth, |result| {
            "still under way".clone_into(&mut result.text);
            result.is_error = false;
        });
    }

    /// Remembers what came of a round's `nth` call.
    pub fn settle(&self, round: u64, nth: usize, result: &ToolResult) {
        self.change(round, nth, |at| *at = result.clone());
    }

    fn change(&self, round: u64, nth: usize, change: impl FnOnce(&mut ToolResult)) {
        let mut kept = self.0.lock();
        let known = kept.rounds.iter_mut().find(|known| known.id == round);
        if let Some(result) = known.and_then(|known| known.results.get_mut(nth)) {
            change(result);
        }
        kept.shrink();
    }

    /// Puts the rounds behind the words that led to them. What the agent said in them is in the
    /// session's own turns, as far as it was heard.
    pub fn woven(&self, turns: Vec<Turn>) -> Vec<Turn> {
        let kept = self.0.lock();
        let places = places(&turns, &kept.rounds);
        let mut out = Vec::with_capacity(turns.len() + kept.rounds.len() * 2);
        for (nth, turn) in turns.into_iter().enumerate() {
            out.push(turn);
            let here = kept.rounds.iter().zip(&places).filter(|(_, place)| **place == Some(nth));
            for (round, _) in here {
                out.push(Turn::Assistant { text: String::new(), calls: round.calls.clone() });
                out.push(Turn::Results(round.results.clone()));
            }
        }
        out
    }
}

impl Kept {
    fn shrink(&mut self) {
        let mut bytes: usize = self.rounds.iter().map(Round::bytes).sum();
        while self.rounds.len() > MAX_ROUNDS || (bytes > MAX_BYTES && self.rounds.len() > 1) {
            bytes -= self.rounds.pop_front().map_or(0, |round| round.bytes());
        }
    }
}

/// The turn behind which each round belongs; none: its turn has been dropped from the history.
///
/// Found from the end, where history and rounds are both whole. The session may have joined further
/// words to a turn that was never answered; the same words may have been said before.
fn places(turns: &[Turn], rounds: &VecDeque<Round>) -> Vec<Option<usize>> {
    let said = |nth: usize| match &turns[nth] {
        Turn::User(text) => Some(text.as_str()),
        _ => None,
    };
    let mut places = vec![None; rounds.len()];
    let mut end = turns.len();
    let mut later: Option<(&Round, usize)> = None;
    for (at, round) in rounds.iter().enumerate().rev() {
        let find = |end: usize| {
            let same = (0..end).rev().find(|nth| said(*nth) == Some(round.after.as_str()));
            same.or_else(|| {
                (0..end).rev().find(|nth| said(*nth).is_some_and(|it| joined(it, round)))
            })
        };
        let place = match later {
            Some((other, place)) if other.answer == round.answer => Some(place),
            // Another answer to the same words is most likely to the time they were said before.
            Some((other, place)) if other.after == round.after => find(place).or(Some(place)),
            _ => find(end),
        };
        places[at] = place;
        if let Some(place) = place {
            end = place + 1;
            later = Some((round, place));
        }
    }
    places
}

/// Whether the words go on after those that led to the round.
fn joined(said: &str, round: &Round) -> bool {
    said.strip_prefix(round.after.as_str())
        .is_some_and(|rest| round.after.is_empty() || rest.starts_with(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str) -> ToolCall {
        ToolCall { id: id.into(), name: "t".into(), arguments: "{}".into(), signature: None }
    }

    fn result(id: &str, text: &str) -> ToolResult {
        ToolResult { id: id.into(), name: "t".into(), text: text.into(), is_error: false }
    }

    /// Rounds of an answer each, named by id, after these words.
    fn rounds(all: &[(&str, &str)]) -> Rounds {
        let rounds = Rounds::default();
        for (id, after) in all {
            let answer = rounds.answer();
            let round = rounds.begin(answer, after, &[call(id)]);
            rounds.settle(round, 0, &result(id, "r"));
        }
        rounds
    }

    fn brief(turns: &[Turn]) -> Vec<String> {
        let brief = turns.iter().map(|turn| match turn {
            Turn::User(text) => text.clone(),
            Turn::Results(results) => format!("<{}>", results[0].id),
            Turn::Assistant { calls, .. } if !calls.is_empty() => "call".into(),
            _ => "said".into(),
        });
        brief.collect()
    }

    fn woven(rounds: &Rounds, said: &[&str]) -> String {
        let turns = said.iter().flat_map(|text| {
            [Turn::User((*text).into()), Turn::Assistant { text: "A.".into(), calls: Vec::new() }]
        });
        brief(&rounds.woven(turns.collect())).join(" ")
    }

    #[test]
    fn rounds_are_woven_in_where_they_happened() {
        let all = rounds(&[("0", "a"), ("1", "b"), ("2", "b and"), ("3", "c")]);
        // `a` has been dropped from the history.
        assert_eq!(
            woven(&all, &["b and more", "c"]),
            "b and more call <1> call <2> said c call <3> said"
        );
    }

    #[test]
    fn words_that_were_said_twice_keep_their_own_rounds() {
        let all = rounds(&[("1", "yes"), ("2", "book it"), ("3", "yes")]);
        assert_eq!(
            woven(&all, &["yes please", "yes", "book it", "yes"]),
            "yes please said yes call <1> said book it call <2> said yes call <3> said"
        );
        // Answered twice, said once.
        let all = rounds(&[("1", "yes"), ("2", "yes")]);
        assert_eq!(woven(&all, &["no", "yes"]), "no said yes call <1> call <2> said");
    }

    #[test]
    fn rounds_of_one_answer_stay_together() {
        let all = Rounds::default();
        let answer = all.answer();
        for id in ["1", "2"] {
            all.begin(answer, "yes", &[call(id)]);
        }
        assert_eq!(woven(&all, &["yes", "yes"]), "yes said yes call <1> call <2> said");
    }

    #[test]
    fn what_was_not_settled_says_so() {
        let all = Rounds::default();
        let round = all.begin(1, "a", &[call("1"), call("2")]);
        all.under_way(round, 1);
        let results = |all: &Rounds| match &all.woven(vec![Turn::User("a".into())])[2] {
            Turn::Results(results) => results.clone(),
            other => panic!("{other:?}"),
        };
        let told = results(&all);
        assert!(told[0].is_error && told[0].text.contains("interrupted"), "{told:?}");
        assert!(!told[1].is_error && told[1].text.contains("under way"), "{told:?}");
        all.settle(round, 1, &result("2", "booked"));
        all.settle(round, 7, &result("7", "nobody's"));
        assert_eq!(results(&all)[1].text, "booked");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let all = Rounds::default();
        for _ in 0..100 {
            all.begin(1, "a", &[call("1")]);
        }
        assert_eq!(all.0.lock().rounds.len(), MAX_ROUNDS);
        let round = all.begin(1, "a", &[call("1")]);
        all.settle(round, 0, &result("1", &"x".repeat(MAX_BYTES)));
        assert_eq!(all.0.lock().rounds.len(), 1);
    }
}
