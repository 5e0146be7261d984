//! Random calls with providers that are slow or fail: each ends in IDLE, every word kept.

use proptest::prelude::*;

use crate::{
    llm::Role,
    session::{
        command::Command,
        settings::Settings,
        simulation::{Call, ms},
        state::AgentState,
    },
};

/// A random call: what the user says and when, and which providers fail.
#[derive(Debug, Clone)]
pub(super) struct Random {
    /// Gap before, words, ms a word; without words it is noise.
    said: Vec<(u64, usize, u64)>,
    faults: [bool; 5],
    timing: [u64; 5],
}

pub(super) fn call() -> impl Strategy<Value = Random> {
    let said = prop::collection::vec((150..6_000u64, 0..6usize, 120..500u64), 1..6);
    (said, prop::array::uniform5(prop::bool::weighted(0.1)), prop::array::uniform5(0..800u64))
        .prop_map(|(said, faults, timing)| Random { said, faults, timing })
}

pub(super) fn simulated(random: &Random) {
    let settings = Settings {
        greeting: Some("Hello, what can I do?".into()),
        preemptive_generation: random.timing[1].is_multiple_of(2),
        ..Settings::default()
    };
    let mut call = Call::new(settings);
    call.script.stt_interim_delay = Some(ms(random.timing[0]));
    call.script.stt_final_delay = ms(random.timing[0] + random.timing[1]);
    call.script.stt_finalize_delay = ms(random.timing[0] + 20);
    call.script.llm_first_token = ms(random.timing[2]);
    call.script.llm_per_token = ms(random.timing[3] / 4);
    call.script.tts_first_audio = ms(random.timing[4]);
    call.script.llm_failures = u32::from(random.faults[0]);
    call.script.tts_failures = u32::from(random.faults[1]);
    call.script.llm_dies_after = random.faults[2].then_some(3);
    call.script.llm_stalls_after = random.faults[3].then_some(3);
    call.script.tts_dies_after = random.faults[4].then_some(ms(700));
    let answer = "One moment please while I look through all of the books.";
    call.answers([answer, answer, answer]);
    let mut at = ms(500);
    let mut words = Vec::new();
    for (gap, count, each) in &random.said {
        at += ms(*gap);
        let said: Vec<_> = (0..*count).map(|n| format!("w{}", words.len() + n)).collect();
        let until = at + ms(each * (*count).max(1) as u64);
        if said.is_empty() {
            call.noise(at..until);
        } else {
            call.user_says(&said.join(" "), at..until);
        }
        words.extend(said);
        at = until;
    }
    call.run_to_end();
    assert_eq!(call.state(), AgentState::Idle);
    let rows = call.user_said().join(" ");
    assert_eq!(rows, words.join(" "), "each word comes out once, in order");
    // What the transcript holds as the agent's is what was played, but for the words that the
    // last report of playout was too early for: at most one a speech.
    let heard = call.heard();
    let said = call.agent_said().join(" ");
    let mut rest = heard.split_whitespace();
    for word in said.split_whitespace() {
        assert!(rest.any(|heard| heard == word), "{word:?} of {said:?} not in {heard:?}");
    }
    let missing = heard.split_whitespace().count() - said.split_whitespace().count();
    let speeches = call.times(|c| matches!(c, Command::Play { .. })).len();
    assert!(missing <= speeches, "{said:?} of {heard:?}");
    // And the model is shown each word of the user once, in order, but for those in passing.
    let history = call.history();
    let shown = history.iter().filter(|message| message.role == Role::User);
    let shown: Vec<_> = shown.flat_map(|message| message.text.split(' ')).collect();
    let mut spoken = words.iter();
    for word in &shown {
        assert!(spoken.any(|said| said == word), "{word:?} twice or out of order");
    }
}
