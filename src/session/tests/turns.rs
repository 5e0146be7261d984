//! Turns and answers: the calls that go well.

use std::time::Duration;

use crate::{
    llm::Role,
    session::{
        command::{Command, Metric},
        input::{Input, PlayoutEvent, SttInput, TtsInput, VadEvent},
        settings::{Interruption, Settings},
        simulation::{CALLER, Call, ms},
        state::AgentState::{self, Idle, Listening, Speaking, Thinking},
        state::UserState,
    },
    stt::Transcript,
};

/// Some 6 s of speech.
pub(super) const LONG: &str = "One moment please, I will look through the whole book of \
                    reservations for a free table this evening.";

pub(super) fn agent() -> Settings {
    Settings {
        system_prompt: "Be brief.".into(),
        interruption: Interruption::Speech,
        echo_warm_up: Duration::ZERO,
        ..Settings::default()
    }
}

pub(super) fn names(call: &Call) -> Vec<AgentState> {
    call.states().into_iter().map(|(_, state)| state).collect()
}

pub(super) fn is_clear(command: &Command) -> bool {
    matches!(command, Command::ClearPlayout { .. })
}

pub(super) fn is_resume(command: &Command) -> bool {
    matches!(command, Command::Resume { .. })
}

pub(super) fn conversation(call: &mut Call) -> Vec<(Role, String)> {
    call.history().iter().map(|message| (message.role, message.text.clone())).collect()
}

/// A call in which the agent is in the middle of a long answer at 4 s; it began at 1.6 s.
pub(super) fn answering() -> Call {
    let mut call = Call::new(agent());
    call.answers([LONG]);
    call.user_says("book a table", ms(0)..ms(600));
    call
}

#[test]
fn a_turn_is_committed_when_the_threshold_has_passed_since_the_true_end_of_speech() {
    let mut call = Call::new(agent());
    call.user_says("book a table", ms(0)..ms(700));
    call.run_until(ms(1_300));
    assert_eq!(call.turn_committed_at(), Some(ms(1_200)));
    assert!(call.metrics().contains(&Metric::EndpointingDelay { ms: 500 }));
}

#[test]
fn a_final_that_comes_after_the_threshold_commits_at_once() {
    let mut call = Call::new(agent());
    call.script.stt_final_delay = ms(900);
    call.script.stt_finalize_delay = ms(900);
    call.user_says("book a table", ms(0)..ms(700));
    call.run_until(ms(3_000));
    assert_eq!(call.turn_committed_at(), Some(ms(1_600)));
}

#[test]
fn recognition_is_asked_for_the_final_at_the_end_of_speech_once() {
    let mut call = Call::new(agent());
    call.user_says("book a table", ms(0)..ms(700));
    call.run_until(ms(1_200));
    let asked = call.times(|command| matches!(command, Command::FinalizeStt { .. }));
    assert_eq!(asked, [ms(900)]);
}

#[test]
fn a_final_that_does_not_come_commits_the_interim_at_the_longest_wait() {
    let mut call = Call::new(agent());
    call.script.stt_final_delay = ms(6_000);
    call.script.stt_finalize_delay = ms(6_000);
    call.user_says("book a table", ms(0)..ms(700));
    call.run_until(ms(4_000));
    assert_eq!(call.turn_committed_at(), Some(ms(3_700)));
    assert_eq!(call.user_said(), ["book a table"]);
    call.run_to_end();
    assert_eq!(call.user_said(), ["book a table"], "the late final had come out already");
}

#[test]
fn a_turn_is_the_concatenation_of_its_segments_and_pauses_do_not_end_it() {
    let mut call = Call::new(agent());
    call.script.stt_final_delay = ms(100);
    call.user_says("book a table", ms(0)..ms(700));
    call.user_says("for two", ms(1_100)..ms(1_500));
    call.run_until(ms(2_100));
    assert_eq!(call.turns_committed_at(), [ms(2_000)]);
    assert_eq!(call.user_said(), ["book a table", "for two"]);
    let said = conversation(&mut call);
    assert_eq!(said.last(), Some(&(Role::User, "book a table for two".into())));
    let ids: Vec<_> = call.rows().iter().map(|row| row.id.clone()).collect();
    assert_eq!(ids, ["call-u1", "call-u2"]);
}

#[test]
fn interims_carry_the_id_of_their_final() {
    let mut call = Call::new(agent());
    call.user_says("book a table", ms(0)..ms(700));
    call.run_until(ms(1_100));
    let rows: Vec<_> = call
        .log()
        .iter()
        .filter_map(|(_, command)| match command {
            Command::Transcript(row) => Some((row.id.as_str(), row.text.as_str(), row.is_final)),
            _ => None,
        })
        .collect();
    assert_eq!(
        rows,
        [
            ("call-u1", "book", false),
            ("call-u1", "book a", false),
            ("call-u1", "book a table", false),
            ("call-u1", "book a table", true)
        ]
    );
}

#[test]
fn a_segment_is_timed_from_the_first_sample_of_its_stream() {
    let mut call = Call::new(agent());
    call.user_says("book a table", ms(300)..ms(900));
    call.run_until(ms(2_000));
    let row = call.rows()[0].clone();
    assert_eq!((row.start_ms, row.duration_ms), (300, 600));
}

#[test]
fn a_segment_without_times_is_timed_by_the_detector() {
    let mut call = Call::new(agent());
    call.noise(ms(300)..ms(900));
    let heard = Transcript { text: "book a table".into(), ..Transcript::default() };
    let event = SttInput::Final(heard);
    call.input_at(ms(1_300), Input::Stt { speaker: CALLER, event });
    call.run_until(ms(2_000));
    let row = call.rows()[0].clone();
    assert_eq!((row.start_ms, row.duration_ms), (300, 600));
}

#[test]
fn an_answered_turn_goes_through_all_states_and_back() {
    let mut call = Call::new(agent());
    call.answers(["For how many?"]);
    call.user_says("book a table", ms(0)..ms(700));
    call.run_to_end();
    assert_eq!(names(&call), [Listening, Thinking, Speaking, Idle]);
    assert_eq!(call.agent_said(), ["For how many?"]);
    assert_eq!(
        conversation(&mut call),
        [
            (Role::System, "Be brief.".into()),
            (Role::User, "book a table".into()),
            (Role::Assistant, "For how many?".into())
        ]
    );
    // 500 ms threshold, 300 ms to the first token, 200 ms to the first audio.
    assert_eq!(call.audible_at(), [ms(1_700)]);
    let metrics = call.metrics();
    assert!(metrics.contains(&Metric::Ttft { ms: 300 }));
    assert!(metrics.contains(&Metric::Ttfb { ms: 200 }));
    assert!(metrics.contains(&Metric::ResponseLatency { ms: 1_000 }));
}

#[test]
fn the_first_words_of_the_model_are_spoken_before_the_last_are_there() {
    let mut call = Call::new(agent());
    call.answers(["For how many?"]);
    call.user_says("book a table", ms(0)..ms(700));
    call.run_until(ms(1_500));
    let log = call.log();
    let first = log.iter().position(|(_, command)| matches!(command, Command::Speak { .. }));
    let (at, next) = &log[first.expect("spoken") + 1];
    assert_eq!(*at, ms(1_500));
    assert!(matches!(next, Command::Play { .. }));
    assert!(!log.iter().any(|(_, command)| matches!(command, Command::FinishSpeech { .. })));
}

#[test]
fn the_second_turn_is_asked_with_the_first_in_the_history() {
    let mut call = Call::new(agent());
    call.answers(["For how many?", "Done."]);
    call.user_says("book a table", ms(0)..ms(700));
    call.user_says("for two", ms(4_000)..ms(4_500));
    call.run_to_end();
    let asked = call.log().iter().rev().find_map(|(_, command)| match command {
        Command::Generate { request, .. } => Some(request.messages.clone()),
        _ => None,
    });
    let texts: Vec<_> = asked.expect("asked").iter().map(|m| m.text.clone()).collect();
    assert_eq!(texts, ["Be brief.", "book a table", "For how many?", "for two"]);
}

#[test]
fn the_agents_words_are_shown_as_they_are_heard() {
    let mut call = answering();
    call.run_until(ms(3_000));
    let shown = call.log().iter().rev().find_map(|(_, command)| match command {
        Command::Transcript(row) if !row.is_final => Some(row.text.clone()),
        _ => None,
    });
    let shown = shown.expect("paced with the audio");
    assert!(LONG.starts_with(&shown) && shown.len() < LONG.len() / 2);
    assert!(call.heard().starts_with(&shown));
    assert!(call.agent_said().is_empty());
    call.run_to_end();
    assert_eq!(call.agent_said(), [LONG]);
}

#[test]
fn words_that_the_detector_misses_are_a_turn_all_the_same() {
    let mut call = Call::new(agent());
    call.user_whispers("book a table", ms(0)..ms(700));
    call.run_to_end();
    assert_eq!(names(&call), [Listening, Thinking, Speaking, Idle]);
    assert_eq!(call.user_said(), ["book a table"]);
}

#[test]
fn words_that_go_on_after_the_detector_gave_up_put_the_commit_off() {
    let mut call = Call::new(agent());
    call.script.stt_word_times = true;
    call.user_says("book a", ms(0)..ms(400));
    call.user_whispers("quiet table", ms(500)..ms(1_500));
    call.run_until(ms(2_500));
    assert_eq!(call.turns_committed_at(), [ms(2_000)]);
}

#[test]
fn recognitions_end_of_turn_never_commits_before_the_threshold() {
    let mut call = Call::new(agent());
    call.script.stt_final_delay = ms(50);
    call.user_says("book a table", ms(0)..ms(700));
    call.input_at(ms(800), Input::Stt { speaker: CALLER, event: SttInput::EndOfTurn });
    call.run_until(ms(2_000));
    assert_eq!(call.turn_committed_at(), Some(ms(1_200)));
}

#[test]
fn a_detector_that_never_lets_go_does_not_keep_the_user_waiting() {
    let mut call = Call::new(agent());
    call.noise(ms(0)..ms(60_000));
    call.user_says("book a table", ms(0)..ms(700));
    call.run_until(ms(5_000));
    // The last word was told at 1,100 ms: nothing new came for the longest wait.
    assert_eq!(call.turn_committed_at(), Some(ms(4_100)));
}

#[test]
fn a_detector_that_claims_speech_again_and_again_does_not_keep_the_user_waiting() {
    let mut call = Call::new(agent());
    call.user_says("book a table", ms(0)..ms(700));
    for n in 2..20 {
        call.noise(ms(n * 500)..ms(n * 500 + 100));
    }
    call.run_until(ms(6_000));
    // The final came at 1,000 ms; since then nothing but clicks.
    assert_eq!(call.turn_committed_at(), Some(ms(4_060)));
}

#[test]
fn noise_without_words_ends_in_idle() {
    let mut call = Call::new(agent());
    call.noise(ms(0)..ms(300));
    call.run_until(ms(3_400));
    assert_eq!(call.states(), [(ms(60), Listening), (ms(3_300), Idle)]);
    assert!(call.turns_committed_at().is_empty());
}

#[test]
fn endless_noise_without_words_ends_in_idle() {
    let mut call = Call::new(agent());
    call.noise(ms(0)..Duration::from_mins(10));
    call.run_until(Duration::from_secs(61));
    assert_eq!(names(&call), [Listening, Idle]);
}

/// What recognition tells of the caller at `at`, for good or not.
fn told(call: &mut Call, at: u64, text: &str, is_final: bool) {
    let heard = Transcript { text: text.into(), ..Transcript::default() };
    let event = if is_final { SttInput::Final(heard) } else { SttInput::Interim(heard) };
    call.input_at(ms(at), Input::Stt { speaker: CALLER, event });
}

#[test]
fn words_that_recognition_takes_back_are_no_row_and_no_turn() {
    let mut call = Call::new(agent());
    call.noise(ms(0)..ms(400));
    told(&mut call, 300, "yes", false);
    told(&mut call, 700, "", false);
    call.run_to_end();
    assert_eq!(names(&call), [Listening, Idle]);
    assert!(call.user_said().is_empty());
    let shown: Vec<_> = call.log().iter().filter_map(|(_, command)| row_of(command)).collect();
    assert_eq!(shown, [("call-u1", "yes"), ("call-u1", "")], "who watches sees it go");
}

#[test]
fn words_that_are_told_again_after_all_take_the_row_that_was_emptied() {
    let mut call = Call::new(Settings { preemptive_generation: true, ..agent() });
    call.answers_with("For two, yes.");
    call.noise(ms(0)..ms(700));
    told(&mut call, 400, "a cable for", false);
    told(&mut call, 950, "", false);
    told(&mut call, 1_000, "a table for two.", true);
    call.run_to_end();
    let shown: Vec<_> = call.log().iter().filter_map(|(_, command)| row_of(command)).collect();
    let theirs: Vec<_> = shown.into_iter().filter(|(id, _)| id.starts_with("call-u")).collect();
    let same = "call-u1";
    assert_eq!(theirs, [(same, "a cable for"), (same, ""), (same, "a table for two.")]);
    assert_eq!(conversation(&mut call)[1], (Role::User, "a table for two.".into()));
}

#[test]
fn the_words_before_those_that_were_taken_back_are_answered() {
    let mut call = Call::new(agent());
    call.answers_with("Which day?");
    call.noise(ms(0)..ms(700));
    told(&mut call, 600, "book a table", true);
    told(&mut call, 800, "um", false);
    told(&mut call, 1_000, "", true);
    call.run_to_end();
    assert_eq!(call.turns_committed_at(), [ms(1_200)]);
    assert_eq!(call.user_said(), ["book a table"]);
    assert_eq!(call.agent_said(), ["Which day?"]);
}

#[test]
fn what_an_interim_adds_to_words_that_came_out_already_goes_with_their_final() {
    let mut call = Call::new(agent());
    call.noise(ms(0)..ms(700));
    told(&mut call, 600, "book a table", false);
    // No final comes, and at 3,700 ms the turn is taken as it is.
    told(&mut call, 3_800, "Book a table for", false);
    told(&mut call, 3_900, "Book a table.", true);
    call.run_to_end();
    assert_eq!(call.user_said(), ["book a table"]);
    assert!(call.log().iter().any(|(_, command)| row_of(command) == Some(("call-u2", ""))));
}

fn row_of(command: &Command) -> Option<(&str, &str)> {
    match command {
        Command::Transcript(row) => Some((&row.id, &row.text)),
        _ => None,
    }
}

#[test]
fn the_user_who_goes_on_while_the_agent_thinks_continues_the_turn() {
    let mut call = Call::new(agent());
    call.script.llm_first_token = ms(1_500);
    call.answers(["Stale.", "A table for two, yes."]);
    call.user_says("book a table", ms(0)..ms(700));
    call.user_says("for two", ms(1_500)..ms(2_000));
    call.run_to_end();
    assert_eq!(names(&call), [Listening, Thinking, Listening, Thinking, Speaking, Idle]);
    assert_eq!(call.agent_said(), ["A table for two, yes."]);
    assert_eq!(conversation(&mut call)[1], (Role::User, "book a table for two".into()));
    assert_eq!(call.times(|c| matches!(c, Command::CancelGeneration { .. })).len(), 1);
}

#[test]
fn an_answer_that_is_ready_to_be_heard_waits_for_the_user_who_goes_on() {
    let mut call = Call::new(agent());
    call.answers(["Stale.", "For two, yes."]);
    call.user_says("book a table", ms(0)..ms(700));
    // The detector tells at 1,660 ms, the first audio comes at 1,700 ms, the words at 2,050 ms.
    call.user_says("for two", ms(1_600)..ms(2_400));
    call.run_to_end();
    assert_eq!(call.agent_said(), ["For two, yes."]);
    assert!(!call.heard().contains("Stale"));
}

#[test]
fn a_late_final_after_the_commit_continues_the_turn() {
    let mut call = Call::new(agent());
    call.user_says("book a table", ms(0)..ms(700));
    let heard = Transcript { text: "for two".into(), ..Transcript::default() };
    let event = SttInput::Final(heard);
    call.input_at(ms(1_400), Input::Stt { speaker: CALLER, event });
    call.run_until(ms(1_400));
    assert_eq!(call.turns_committed_at(), [ms(1_200), ms(1_400)]);
    assert_eq!(conversation(&mut call)[1], (Role::User, "book a table for two".into()));
}

#[test]
fn a_noise_while_the_agent_thinks_only_delays_the_answer() {
    let mut call = Call::new(agent());
    call.answers(["For how many?"]);
    call.user_says("book a table", ms(0)..ms(700));
    call.noise(ms(1_550)..ms(1_750));
    call.run_to_end();
    assert_eq!(call.agent_said(), ["For how many?"]);
    assert_eq!(call.turns_committed_at().len(), 1);
    // The noise is over at 1,950 ms for the detector; its words had 300 ms to come.
    assert_eq!(call.audible_at(), [ms(2_250)]);
}

#[test]
fn the_greeting_is_spoken_on_join_unless_the_user_was_faster() {
    let greeting = Settings { greeting: Some("Hello.".into()), ..agent() };
    let mut call = Call::new(greeting);
    call.run_to_end();
    assert_eq!(call.agent_said(), ["Hello."]);
    assert_eq!(names(&call), [Speaking, Idle]);
}

#[test]
fn the_longest_turn_is_cut_and_only_what_was_heard_is_kept() {
    let mut call = Call::new(Settings { max_speak: ms(2_000), ..agent() });
    call.answers([LONG]);
    call.user_says("book a table", ms(0)..ms(600));
    call.run_to_end();
    assert_eq!(call.times(is_clear), [ms(3_600)]);
    let said = call.agent_said();
    assert!(said[0].len() < LONG.len() && LONG.starts_with(&said[0]));
    assert_eq!(said[0], call.heard().trim());
    assert_eq!(names(&call), [Listening, Thinking, Speaking, Idle]);
}

#[test]
fn text_typed_in_silence_is_answered() {
    let mut call = Call::new(agent());
    call.input_at(ms(500), Input::Chat { speaker: CALLER, text: " hello ".into() });
    call.run_to_end();
    assert_eq!(names(&call), [Thinking, Speaking, Idle]);
    assert!(!call.metrics().iter().any(|m| matches!(m, Metric::ResponseLatency { .. })));
}

#[test]
fn what_the_application_says_waits_for_what_is_being_said() {
    let mut call = answering();
    let text = "Your taxi is here.".to_owned();
    call.input_at(ms(3_000), Input::Say { text, interruptible: true });
    call.run_to_end();
    assert_eq!(call.agent_said(), [LONG, "Your taxi is here."]);
    assert!(call.times(is_clear).is_empty());
}

#[test]
fn the_user_counts_as_away_after_a_while_and_is_back_on_speech() {
    let mut call = Call::new(agent());
    call.user_says("book a table", ms(20_000)..ms(20_600));
    call.run_until(ms(21_000));
    let users: Vec<_> = call
        .log()
        .iter()
        .filter_map(|(at, command)| match command {
            Command::SetUserState(state) => Some((*at, *state)),
            _ => None,
        })
        .collect();
    assert_eq!(
        users,
        [
            (ms(15_000), UserState::Away),
            (ms(20_060), UserState::Speaking),
            (ms(20_800), UserState::Listening)
        ]
    );
}

#[test]
fn events_of_a_cancelled_speech_or_generation_change_nothing() {
    let mut call = answering();
    call.user_says("no wait I meant tomorrow", ms(4_000)..ms(5_500));
    call.run_until(ms(5_000));
    let id = crate::tts::SpeechId(1);
    let before = call.log().len();
    call.input_at(ms(5_001), Input::Playout { id, event: PlayoutEvent::Drained { ms: 9_000 } });
    call.input_at(ms(5_002), Input::Tts { id, event: TtsInput::End });
    call.run_until(ms(5_003));
    assert_eq!(call.log().len(), before);
    assert_eq!(call.state(), Listening);
}

#[test]
fn playout_that_ends_before_the_model_does_waits_for_the_rest_of_the_answer() {
    let mut call = Call::new(agent());
    call.script.llm_per_token = ms(1_000);
    call.answers(["One two three."]);
    call.user_says("count to three", ms(0)..ms(700));
    call.run_until(ms(2_000));
    let id = crate::tts::SpeechId(1);
    call.input_at(ms(2_100), Input::Tts { id, event: TtsInput::End });
    call.input_at(ms(2_150), Input::Playout { id, event: PlayoutEvent::Drained { ms: 240 } });
    call.run_to_end();
    assert_eq!(names(&call), [Listening, Thinking, Speaking, Thinking, Speaking, Idle]);
    assert_eq!(call.agent_said(), ["One", "two three."]);
}

#[test]
fn a_transcriber_neither_generates_nor_speaks() {
    let mut call =
        Call::new(Settings { transcribe_only: true, greeting: Some("Hello.".into()), ..agent() });
    call.user_says("book a table", ms(0)..ms(700));
    call.input_at(ms(3_000), Input::Say { text: "Hello.".into(), interruptible: true });
    call.input_at(ms(3_000), Input::Chat { speaker: CALLER, text: "typed".into() });
    call.run_to_end();
    assert_eq!(names(&call), [Listening, Idle]);
    assert_eq!(call.user_said(), ["book a table", "typed"]);
    assert!(
        call.times(|c| matches!(c, Command::Generate { .. } | Command::Speak { .. })).is_empty()
    );
}

#[test]
fn a_detector_that_repeats_itself_changes_nothing() {
    let mut call = Call::new(agent());
    call.user_says("book a table", ms(0)..ms(700));
    let started = VadEvent::Started { speech_ms: 60 };
    call.input_at(ms(200), Input::Vad { speaker: CALLER, event: started });
    let ended = VadEvent::Ended { silence_ms: 200 };
    call.input_at(ms(1_000), Input::Vad { speaker: CALLER, event: ended });
    call.run_until(ms(1_300));
    assert_eq!(call.turn_committed_at(), Some(ms(1_200)));
}
