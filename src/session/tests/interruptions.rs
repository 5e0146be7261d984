//! Who may cut whom short, and what is kept of what was said.

use crate::{
    llm::Role,
    session::{
        command::{Command, Metric},
        input::Input,
        settings::Settings,
        simulation::{CALLER, Call, ms},
        state::AgentState::{Idle, Listening, Speaking, Thinking},
    },
};

use super::turns::{LONG, agent, answering, conversation, is_clear, is_resume, names};

#[test]
fn an_interruption_silences_the_agent_after_the_minimum_of_speech() {
    let mut call = answering();
    call.script.stt_interim_delay = None;
    call.user_says("no wait I meant tomorrow", ms(4_000)..ms(5_500));
    call.run_until(ms(4_499));
    assert_eq!(call.state(), Speaking);
    call.run_until(ms(4_500));
    assert_eq!(call.times(is_clear), [ms(4_500)]);
    assert_eq!(call.state(), Listening);
    call.run_to_end();
    assert!(call.metrics().contains(&Metric::Interruption));
    assert!(call.times(is_resume).is_empty());
}

#[test]
fn the_history_keeps_exactly_what_was_heard_of_an_interrupted_answer() {
    for alignment in [true, false] {
        let mut call = answering();
        call.script.tts_alignment = alignment;
        call.user_says("no wait I meant tomorrow", ms(4_000)..ms(5_500));
        call.run_until(ms(5_000));
        let heard = call.heard();
        let said = call.agent_said();
        assert_eq!(said.len(), 1, "the row was closed at the interruption");
        assert!(!said[0].is_empty() && LONG.starts_with(&said[0]));
        if alignment {
            assert_eq!(said[0], heard.trim());
        }
        call.run_to_end();
        assert_eq!(conversation(&mut call)[2], (Role::Assistant, said[0].clone()));
        assert_eq!(conversation(&mut call)[3], (Role::User, "no wait I meant tomorrow".into()));
    }
}

#[test]
fn words_known_at_the_interruption_confirm_it_at_once() {
    let mut call = answering();
    call.user_says("no wait I meant tomorrow", ms(4_000)..ms(5_500));
    call.run_until(ms(4_500));
    let at: Vec<_> = call
        .log()
        .iter()
        .filter(|(at, _)| *at == ms(4_500))
        .map(|(_, command)| command.clone())
        .collect();
    assert!(matches!(at[0], Command::ClearPlayout { .. }));
    assert_eq!(at[1], Command::SetState(Listening));
    assert_eq!(at[2], Command::Metric(Metric::Interruption));
    assert!(matches!(at[3], Command::CancelSpeech { .. }));
    assert!(matches!(&at[4], Command::Transcript(row) if row.is_final));
    assert_eq!(at.len(), 5);
}

#[test]
fn an_interruption_cancels_the_generation_that_still_runs() {
    let mut call = answering();
    call.script.llm_per_token = ms(300);
    call.user_says("no wait I meant tomorrow", ms(3_000)..ms(4_500));
    call.run_until(ms(3_500));
    assert_eq!(call.times(|c| matches!(c, Command::CancelGeneration { .. })), [ms(3_500)]);
}

#[test]
fn a_false_interruption_resumes_where_the_agent_stopped() {
    let mut call = answering();
    call.noise(ms(4_000)..ms(4_700));
    call.run_until(ms(6_499));
    assert_eq!(call.state(), Listening);
    let silent_since = call.heard();
    call.run_until(ms(6_500));
    assert_eq!(call.state(), Speaking);
    assert_eq!(call.times(is_resume), [ms(6_500)]);
    assert!(call.metrics().contains(&Metric::FalseInterruption));
    call.run_to_end();
    assert!(call.heard().starts_with(&silent_since));
    assert_eq!(call.heard(), LONG, "nothing repeated, nothing lost");
    assert_eq!(call.agent_said(), [LONG]);
    assert_eq!(names(&call), [Listening, Thinking, Speaking, Listening, Speaking, Idle]);
}

#[test]
fn endless_noise_does_not_silence_the_agent_for_ever() {
    let mut call = answering();
    call.noise(ms(4_000)..ms(60_000));
    call.run_until(ms(20_000));
    assert_eq!(call.agent_said(), [LONG]);
    assert_eq!(call.times(is_resume).len(), 1);
}

#[test]
fn recognition_without_interims_is_given_until_the_user_is_silent() {
    let mut call = Call::new(agent());
    call.script.stt_interim_delay = None;
    call.answers([LONG]);
    call.user_says("book a table", ms(0)..ms(600));
    call.user_says("no wait I meant tomorrow at nine with all of my family", ms(4_000)..ms(9_000));
    call.run_until(ms(9_500));
    assert!(call.times(is_resume).is_empty(), "never spoken over the user");
    assert!(call.metrics().contains(&Metric::Interruption));
}

#[test]
fn a_short_noise_does_not_interrupt() {
    let mut call = answering();
    call.noise(ms(4_000)..ms(4_250));
    call.run_to_end();
    assert!(call.times(is_clear).is_empty());
}

#[test]
fn a_noise_that_only_the_detectors_hangover_makes_long_resumes_as_soon_as_that_is_known() {
    let mut call = answering();
    call.noise(ms(4_000)..ms(4_400));
    call.run_to_end();
    assert_eq!(call.times(is_resume), [ms(4_600)]);
    assert_eq!(call.heard(), LONG);
}

#[test]
fn enough_words_interrupt_before_the_minimum_of_speech() {
    let mut call = Call::new(Settings { min_interruption_words: 2, ..agent() });
    call.answers([LONG]);
    call.user_says("book a table", ms(0)..ms(600));
    call.user_says("no wait", ms(4_000)..ms(4_200));
    call.run_until(ms(4_400));
    assert_eq!(call.times(is_clear), [ms(4_350)]);
}

#[test]
fn words_in_passing_do_not_cut_the_agent_but_are_kept() {
    let mut call = answering();
    call.user_says("mm hm", ms(3_000)..ms(3_300));
    call.user_says("and for six people please", ms(12_000)..ms(13_000));
    call.run_to_end();
    assert!(call.times(is_clear).is_empty());
    assert_eq!(call.user_said(), ["book a table", "mm hm", "and for six people please"]);
    assert_eq!(call.turns_committed_at().len(), 2);
    assert!(
        conversation(&mut call).contains(&(Role::User, "mm hm and for six people please".into()))
    );
}

#[test]
fn a_short_answer_right_before_the_agent_is_done_is_answered() {
    let mut call = Call::new(agent());
    call.answers(["Shall I book it for you?", "Booked."]);
    call.user_says("book a table", ms(0)..ms(600));
    // Audible from 1,600 to 3,040 ms.
    call.user_says("yes", ms(2_500)..ms(2_800));
    call.run_to_end();
    assert_eq!(call.agent_said(), ["Shall I book it for you?", "Booked."]);
}

#[test]
fn speech_that_the_agent_may_not_be_cut_short_in_is_heard_to_its_end_then_answered() {
    let mut call = Call::new(Settings {
        greeting: Some("This call is recorded for legal reasons, thank you.".into()),
        greeting_interruptible: false,
        ..agent()
    });
    call.answers(["Hello."]);
    call.user_says("hello there", ms(700)..ms(1_800));
    call.run_to_end();
    assert!(call.times(is_clear).is_empty());
    assert_eq!(
        call.agent_said(),
        ["This call is recorded for legal reasons, thank you.", "Hello."]
    );
    assert_eq!(names(&call), [Speaking, Idle, Listening, Thinking, Speaking, Idle]);
}

#[test]
fn typed_text_interrupts_and_is_answered() {
    let mut call = answering();
    call.answers(["Tomorrow, then."]);
    call.input_at(ms(4_000), Input::Chat { speaker: CALLER, text: "make it tomorrow".into() });
    call.run_to_end();
    assert_eq!(call.times(is_clear), [ms(4_000)]);
    assert_eq!(names(&call), [Listening, Thinking, Speaking, Thinking, Speaking, Idle]);
    assert_eq!(call.user_said(), ["book a table", "make it tomorrow"]);
    assert_eq!(call.agent_said().last().map(String::as_str), Some("Tomorrow, then."));
    let said = conversation(&mut call);
    assert_eq!(said[3], (Role::User, "make it tomorrow".into()));
}
