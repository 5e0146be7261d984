//! What decides: when a turn has ended, what stops the agent, what is begun before that is known.

use std::time::Duration;

use super::turns::{LONG, agent, conversation, is_clear, is_resume};
use crate::{
    llm::Role,
    session::{
        command::{Command, Metric},
        input::{Input, SttInput, VadEvent},
        settings::{Detection, Interruption, Settings},
        simulation::{CALLER, Call, ms},
        state::AgentState::Idle,
    },
};

#[test]
fn a_whole_sentence_is_answered_sooner_than_an_unfinished_one() {
    for (text, taken) in [
        ("Book a table.", 1_000),
        ("book a table", 1_200),
        ("book a table for", 3_700),
        ("I would like, um", 3_700),
    ] {
        let mut call = Call::new(agent());
        call.user_says(text, ms(0)..ms(700));
        call.run_until(ms(4_000));
        assert_eq!(call.turn_committed_at(), Some(ms(taken)), "{text}");
    }
}

#[test]
fn recognitions_own_end_of_turn_is_taken_at_its_word_where_that_is_asked_for() {
    let mut call = Call::new(Settings { detection: Detection::Stt, ..agent() });
    call.user_says("book a table for", ms(0)..ms(700));
    let event = SttInput::EndOfTurn;
    call.input_at(ms(1_010), Input::Stt { speaker: CALLER, event });
    call.run_until(ms(2_000));
    assert_eq!(call.turn_committed_at(), Some(ms(1_010)));
}

#[test]
fn the_pauses_of_a_speaker_are_learnt() {
    let mut call = Call::new(Settings { dynamic_endpointing: true, ..agent() });
    // Each pause is longer than the threshold; the second one is waited for.
    call.user_says("book a table", ms(0)..ms(700));
    call.user_says("for two", ms(1_500)..ms(2_000));
    call.run_to_end();
    let before = call.turns_committed_at().len();
    call.user_says("and a car", ms(20_000)..ms(20_700));
    call.user_says("for me", ms(21_500)..ms(22_000));
    call.run_to_end();
    assert_eq!(before, 2, "cut off once");
    assert_eq!(call.turns_committed_at().len(), 3, "and not again");
}

#[test]
fn an_early_answer_is_kept_when_the_turn_is_taken_with_its_words() {
    let mut call = Call::new(Settings { preemptive_generation: true, ..agent() });
    call.answers(["For how many?", "Never said."]);
    call.user_says("book a table", ms(0)..ms(700));
    call.run_to_end();
    let asked = call.times(|c| matches!(c, Command::Generate { .. }));
    assert_eq!(asked, [ms(900)], "when the detector told the end; one request");
    assert_eq!(call.agent_said(), ["For how many?"]);
    // First text at 1,200 ms, while the turn is still waited for; the voice begins at 1,400 ms.
    assert_eq!(call.audible_at(), [ms(1_400)]);
}

#[test]
fn an_early_answer_waits_for_whoever_tells_the_end_first() {
    let mut call = Call::new(Settings { preemptive_generation: true, ..agent() });
    call.script.stt_final_delay = ms(50);
    call.answers(["For how many?"]);
    call.user_says("book a table", ms(0)..ms(700));
    // The detector tells it at 900 ms.
    call.input_at(ms(760), Input::Stt { speaker: CALLER, event: SttInput::EndOfTurn });
    call.run_to_end();
    assert_eq!(call.times(|c| matches!(c, Command::Generate { .. })), [ms(760)]);
    assert_eq!(call.agent_said(), ["For how many?"]);
    // The turn is taken at 1,200 ms all the same.
    assert_eq!(call.audible_at(), [ms(1_400)]);
}

#[test]
fn an_early_answer_is_dropped_unheard_when_the_user_goes_on() {
    let mut call = Call::new(Settings { preemptive_generation: true, ..agent() });
    call.answers(["Stale.", "A table for two, yes."]);
    call.user_says("book a table", ms(0)..ms(700));
    call.user_says("for two", ms(1_100)..ms(1_600));
    call.run_to_end();
    assert_eq!(call.times(|c| matches!(c, Command::CancelGeneration { .. })), [ms(1_160)]);
    assert_eq!(call.agent_said(), ["A table for two, yes."]);
    assert!(!call.heard().contains("Stale"));
    assert_eq!(conversation(&mut call)[1], (Role::User, "book a table for two".into()));
}

#[test]
fn no_more_than_three_answers_are_begun_early_in_a_turn() {
    let mut call = Call::new(Settings {
        preemptive_generation: true,
        silence_threshold: ms(2_000),
        ..agent()
    });
    for n in 0..6 {
        call.user_says("one more", ms(n * 1_000)..ms(n * 1_000 + 500));
    }
    call.run_to_end();
    assert_eq!(call.times(|c| matches!(c, Command::Generate { .. })).len(), 4);
}

/// A call in which the agent is in the middle of a long answer at 4 s; it began at 1.6 s.
fn answering() -> Call {
    let mut call = Call::new(Settings { interruption: Interruption::Adaptive, ..agent() });
    call.answers([LONG]);
    call.user_says("book a table", ms(0)..ms(600));
    call
}

#[test]
fn agreement_does_not_stop_the_agent_however_long_and_late_recognised() {
    for delay in [50, 500] {
        let mut call = answering();
        call.script.stt_interim_delay = Some(ms(delay));
        call.user_says("yeah okay okay", ms(4_000)..ms(4_800));
        call.run_to_end();
        assert!(call.times(is_clear).is_empty());
        assert_eq!(call.heard(), LONG);
    }
}

#[test]
fn agreement_that_is_known_only_once_the_agent_is_silent_lets_it_go_on_at_once() {
    let mut call = Call::new(Settings { interruption: Interruption::Adaptive, ..agent() });
    call.script.stt_interim_delay = None;
    call.answers([LONG]);
    call.user_says("book a table", ms(0)..ms(600));
    call.user_says("yeah okay", ms(4_000)..ms(4_800));
    call.run_to_end();
    assert_eq!(call.times(is_clear), [ms(4_500)]);
    let resumed = call.times(is_resume);
    assert!(resumed.len() == 1 && resumed[0] <= ms(5_100), "{resumed:?}");
    assert_eq!(call.heard(), LONG);
}

#[test]
fn agreement_that_turns_into_more_interrupts() {
    let mut call = answering();
    call.user_says("okay but make it tomorrow", ms(4_000)..ms(5_500));
    call.run_to_end();
    assert_eq!(call.times(is_clear), [ms(4_750)], "with the interim that holds the second word");
    assert!(call.metrics().contains(&Metric::Interruption));
}

#[test]
fn a_pause_after_the_first_word_of_an_interruption_does_not_begin_it_anew() {
    let mut call = answering();
    call.script.stt_interim_delay = Some(ms(250));
    call.user_says("wait", ms(4_000)..ms(4_350));
    call.user_says("that is not what I asked", ms(4_700)..ms(6_500));
    call.run_until(ms(6_500));
    // 350 ms before the pause, 150 ms after it.
    assert_eq!(call.times(is_clear), [ms(4_850)]);
}

#[test]
fn noise_does_not_stop_the_agent_where_recognition_tells_words_in_time() {
    let mut call = answering();
    call.noise(ms(3_000)..ms(5_000));
    call.run_to_end();
    assert!(call.times(is_clear).is_empty());
}

#[test]
fn speech_without_words_for_long_stops_the_agent_for_recognition_may_have_stalled() {
    let mut call = answering();
    call.noise(ms(3_000)..ms(7_000));
    call.run_until(ms(7_000));
    assert_eq!(call.times(is_clear), [ms(5_500)]);
}

#[test]
fn a_faint_voice_stops_the_agent_by_its_words_alone() {
    let faint = Input::Vad { speaker: CALLER, event: VadEvent::Faint };
    let mut call = answering();
    call.script.stt_interim_delay = None;
    call.noise(ms(3_000)..ms(5_000));
    call.input_at(ms(3_300), faint.clone());
    call.run_until(ms(7_000));
    assert!(call.times(is_clear).is_empty());
    let mut call = answering();
    call.script.stt_interim_delay = None;
    call.user_says("no wait I meant tomorrow", ms(3_000)..ms(4_500));
    call.input_at(ms(3_300), faint);
    call.run_until(ms(7_000));
    assert_eq!(call.times(is_clear), [ms(4_900)], "with the final");
}

#[test]
fn right_after_the_agents_first_sound_only_words_interrupt() {
    let mut call = Call::new(Settings { echo_warm_up: ms(3_000), ..agent() });
    call.answers([LONG]);
    call.user_says("book a table", ms(0)..ms(600));
    call.noise(ms(2_000)..ms(4_000));
    call.run_until(ms(4_400));
    assert!(call.times(is_clear).is_empty(), "its echo, most likely");
    call.noise(ms(6_000)..ms(7_000));
    call.run_until(ms(7_000));
    assert_eq!(call.times(is_clear), [ms(6_500)]);
}

#[test]
fn who_spoke_right_after_the_agents_first_sound_and_speaks_still_interrupts() {
    let mut call = Call::new(Settings { echo_warm_up: ms(3_000), ..agent() });
    call.script.stt_interim_delay = None;
    call.answers([LONG]);
    call.user_says("book a table", ms(0)..ms(600));
    // Heard from 1,600 ms on.
    call.noise(ms(2_000)..ms(6_000));
    call.run_until(ms(6_000));
    assert_eq!(call.times(is_clear), [ms(4_600)]);
}

#[test]
fn a_user_who_is_away_is_asked_back_twice() {
    let mut call =
        Call::new(Settings { away_prompt: Some("Are you still there?".into()), ..agent() });
    call.run_until(Duration::from_mins(5));
    assert_eq!(call.agent_said(), ["Are you still there?"; 2]);
    assert_eq!(call.state(), Idle);
    let start = Duration::from_mins(5);
    call.user_says("yes", start..start + ms(300));
    call.run_until(start + Duration::from_mins(5));
    assert_eq!(call.agent_said().len(), 5, "asked back, answered, and asked back twice more");
}

/// When the turn model was asked.
fn asked(call: &Call) -> Vec<Duration> {
    call.times(|c| matches!(c, Command::AskTurnModel { .. }))
}

fn semantic() -> Settings {
    Settings { detection: Detection::Semantic, ..agent() }
}

#[test]
fn the_turn_model_is_asked_at_the_end_of_speech_and_its_answer_weighed() {
    for (probability, taken) in [(0.97, 1_100), (0.03, 2_000)] {
        let mut call = Call::new(semantic());
        call.user_says("book a table", ms(0)..ms(700));
        call.input_at(ms(1_020), Input::TurnEnd { speaker: CALLER, probability });
        call.run_until(ms(4_000));
        assert_eq!(asked(&call), [ms(900)]);
        let at = call.turn_committed_at().unwrap();
        assert_eq!(at < ms(1_200), taken < 1_200, "{probability}: {at:?}");
    }
}

#[test]
fn the_turn_model_is_not_asked_about_noise_nor_again_and_again() {
    let mut call = Call::new(semantic());
    call.noise(ms(0)..ms(700));
    call.run_until(ms(4_000));
    assert!(asked(&call).is_empty(), "nothing was said");
    call.user_says("book a table for", ms(10_000)..ms(10_700));
    for flutter in [11_000, 11_300, 11_600, 11_900] {
        call.noise(ms(flutter)..ms(flutter + 60));
    }
    call.run_until(ms(14_000));
    assert!(asked(&call).windows(2).all(|two| two[1] >= two[0] + ms(600)), "{:?}", asked(&call));
}
