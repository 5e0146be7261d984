//! Providers that fail: the user hears an apology instead of silence, and the next turn works.

use std::time::Duration;

use super::turns::{agent, conversation, is_clear};
use crate::{
    llm::Role,
    session::{
        command::{Command, Metric},
        input::{Input, SttInput},
        settings::Settings,
        simulation::{CALLER, Call, ms},
        state::AgentState::{Idle, Listening, Speaking, Thinking},
    },
    stt::SttError,
};

fn bundled(call: &Call) -> usize {
    call.times(|command| matches!(command, Command::PlayApology { .. })).len()
}

fn apologies(call: &Call) -> usize {
    call.metrics().iter().filter(|metric| **metric == Metric::Apology).count()
}

/// The second turn of the call works.
fn recovers(mut call: Call) {
    call.answers(["I am back."]);
    let at = call.now() + ms(2_000);
    call.user_says("are you there", at..at + ms(600));
    call.run_to_end();
    assert_eq!(call.agent_said().last().map(String::as_str), Some("I am back."));
    assert_eq!(call.state(), Idle);
}

#[test]
fn a_model_that_fails_is_apologised_for_and_the_next_turn_works() {
    let mut call = Call::new(agent());
    call.script.llm_failures = 1;
    call.user_says("book a table", ms(0)..ms(700));
    call.run_to_end();
    assert_eq!(call.agent_said(), [agent().apology]);
    assert_eq!((apologies(&call), bundled(&call)), (1, 0));
    recovers(call);
}

#[test]
fn a_model_that_stays_silent_is_given_up_and_apologised_for() {
    let mut call = Call::new(agent());
    call.script.llm_stalls_after = Some(0);
    call.user_says("book a table", ms(0)..ms(700));
    call.run_to_end();
    assert_eq!(call.times(|c| matches!(c, Command::CancelGeneration { .. })), [ms(6_200)]);
    assert_eq!(call.agent_said(), [agent().apology]);
    recovers(call);
}

#[test]
fn an_empty_answer_is_apologised_for() {
    for empty in ["", "\n "] {
        let mut call = Call::new(agent());
        call.answers([empty]);
        call.user_says("book a table", ms(0)..ms(700));
        call.run_to_end();
        assert_eq!(call.agent_said(), [agent().apology]);
        recovers(call);
    }
}

#[test]
fn a_model_that_dies_in_the_middle_is_heard_so_far_then_apologised_for() {
    let mut call = Call::new(agent());
    call.script.llm_dies_after = Some(3);
    call.answers(["We have a table at nine."]);
    call.user_says("book a table", ms(0)..ms(700));
    call.run_to_end();
    assert_eq!(call.agent_said(), ["We have a".to_owned(), agent().apology]);
    assert_eq!(apologies(&call), 1);
    recovers(call);
}

#[test]
fn a_model_that_stalls_in_the_middle_is_apologised_for() {
    let mut call = Call::new(agent());
    call.script.llm_stalls_after = Some(3);
    call.answers(["We have a table at nine."]);
    call.user_says("book a table", ms(0)..ms(700));
    call.run_to_end();
    assert_eq!(call.agent_said(), ["We have a".to_owned(), agent().apology]);
    recovers(call);
}

#[test]
fn an_answer_whose_tools_take_their_time_is_waited_for() {
    for before in [0, 3] {
        let mut call = Call::new(agent());
        call.script.llm_calls = Some((before, Duration::from_secs(20)));
        call.answers(["Let me see. We have a table at nine."]);
        call.user_says("book a table", ms(0)..ms(700));
        call.run_to_end();
        assert_eq!(call.agent_said(), ["Let me see. We have a table at nine."]);
        assert_eq!(apologies(&call), 0);
        recovers(call);
    }
}

#[test]
fn a_voice_that_fails_is_replaced_by_the_bundled_apology_and_its_text_is_not_history() {
    let mut call = Call::new(agent());
    call.script.tts_failures = 1;
    call.answers(["We have a table at nine."]);
    call.user_says("book a table", ms(0)..ms(700));
    call.run_to_end();
    assert_eq!((apologies(&call), bundled(&call)), (1, 1));
    assert!(call.agent_said().is_empty());
    assert_eq!(conversation(&mut call).len(), 2);
    recovers(call);
}

#[test]
fn a_voice_that_stays_silent_is_replaced_within_its_time() {
    let mut call = Call::new(agent());
    call.script.tts_silent = true;
    call.answers(["We have a table at nine."]);
    call.user_says("book a table", ms(0)..ms(700));
    call.run_to_end();
    let at = call.times(|command| matches!(command, Command::PlayApology { .. }));
    assert_eq!(at, [ms(4_500)]);
    call.script.tts_silent = false;
    recovers(call);
}

#[test]
fn a_voice_that_dies_in_the_middle_keeps_what_was_heard_and_cancels_the_generation() {
    let mut call = Call::new(agent());
    call.script.tts_dies_after = Some(ms(1_000));
    call.script.llm_per_token = ms(400);
    call.answers(["We have a table at nine."]);
    call.user_says("book a table", ms(0)..ms(700));
    call.run_to_end();
    let said = call.agent_said();
    assert_eq!(said, [call.heard().trim()]);
    assert!("We have a table at nine.".starts_with(&said[0]) && !said[0].is_empty());
    assert_eq!(conversation(&mut call).last(), Some(&(Role::Assistant, said[0].clone())));
    assert_eq!(call.times(|c| matches!(c, Command::CancelGeneration { .. })).len(), 1);
    assert_eq!((apologies(&call), bundled(&call)), (1, 1));
    recovers(call);
}

#[test]
fn an_apology_that_cannot_be_spoken_is_played_from_the_bundle() {
    let mut call = Call::new(agent());
    call.script.llm_failures = 1;
    call.script.tts_failures = 1;
    call.user_says("book a table", ms(0)..ms(700));
    call.run_to_end();
    assert_eq!((apologies(&call), bundled(&call)), (1, 1));
    assert!(call.agent_said().is_empty());
    recovers(call);
}

#[test]
fn an_apology_that_breaks_off_is_not_said_again() {
    let mut call = Call::new(agent());
    call.script.llm_failures = 1;
    call.script.tts_dies_after = Some(ms(800));
    call.user_says("book a table", ms(0)..ms(700));
    call.run_to_end();
    assert_eq!((apologies(&call), bundled(&call)), (1, 0));
    recovers(call);
}

#[test]
fn without_an_apology_nothing_is_said() {
    let mut call = Call::new(Settings { apology: String::new(), ..agent() });
    call.script.llm_failures = 1;
    call.user_says("book a table", ms(0)..ms(700));
    call.run_to_end();
    let states: Vec<_> = call.states().into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, [Listening, Thinking, Idle]);
    assert_eq!(apologies(&call), 0);
    recovers(call);
}

#[test]
fn speech_without_a_transcript_is_no_hang() {
    let mut call = Call::new(agent());
    call.script.stt_silent = true;
    call.user_says("book a table", ms(0)..ms(700));
    call.run_until(ms(4_000));
    assert_eq!(call.states(), [(ms(60), Listening), (ms(3_700), Idle)]);
    call.script.stt_silent = false;
    recovers(call);
}

#[test]
fn recognition_that_gives_up_while_the_user_speaks_is_apologised_for() {
    let mut call = Call::new(agent());
    call.script.stt_silent = true;
    call.user_says("book a table", ms(0)..ms(2_000));
    let event = SttInput::Failed(SttError::Unauthorized { status: 401 });
    call.input_at(ms(1_000), Input::Stt { speaker: CALLER, event });
    call.run_until(ms(1_500));
    assert_eq!(call.state(), Speaking);
    call.run_until(ms(20_000));
    assert_eq!(call.agent_said(), [agent().apology]);
    assert_eq!(call.state(), Idle);
}

#[test]
fn recognition_that_gives_up_loses_no_word_that_was_recognised() {
    let mut call = Call::new(agent());
    call.script.stt_finalize_delay = Duration::from_mins(1);
    call.script.stt_final_delay = Duration::from_mins(1);
    call.user_says("book a table", ms(0)..ms(700));
    let event = SttInput::Failed(SttError::Unreachable("gone".into()));
    call.input_at(ms(1_000), Input::Stt { speaker: CALLER, event });
    call.run_until(ms(1_100));
    assert_eq!(call.user_said(), ["book a table"]);
    assert_eq!(call.turns_committed_at(), [ms(1_000)]);
}

#[test]
fn speech_while_recognition_is_down_is_apologised_for_at_its_end() {
    let mut call = Call::new(agent());
    call.script.stt_silent = true;
    call.input_at(ms(0), Input::Stt { speaker: CALLER, event: SttInput::Lost });
    call.user_says("book a table", ms(1_000)..ms(1_700));
    call.run_until(ms(1_900));
    assert_eq!(call.state(), Speaking);
    call.run_until(ms(20_000));
    assert_eq!(call.agent_said(), [agent().apology]);
}

#[test]
fn playout_that_stalls_is_given_up() {
    let mut call = Call::new(agent());
    call.input_at(ms(500), Input::Say { text: "Hello there.".into(), interruptible: true });
    call.run_until(ms(800));
    // The track stops telling: the simulated one is told to go, the machine is not.
    let id = crate::tts::SpeechId(1);
    let error = crate::tts::TtsError::Interrupted("lost".into());
    let event = crate::session::input::TtsInput::Error(error);
    call.input_at(ms(900), Input::Tts { id, event });
    call.run_to_end();
    assert_eq!(call.state(), Idle);
    assert_eq!(call.times(is_clear).len(), 1);
    recovers(call);
}
