//! Who is in the room, and the ends of a session.

use std::time::Duration;

use super::turns::{agent, conversation};
use crate::{
    llm::Role,
    session::{
        command::Command,
        input::{Input, ParticipantEvent, SpeakerId, SttInput, VadEvent},
        machine::LAST_WORDS,
        settings::Settings,
        simulation::{CALLER, Call, ms},
        state::{AgentState::Idle, CloseReason},
    },
    stt::Transcript,
};

const OTHER: SpeakerId = SpeakerId(2);
const ANSWER: &str = "One moment please, I will look through the whole book.";

fn joined(speaker: SpeakerId, identity: &str) -> Input {
    let event =
        ParticipantEvent::Joined { identity: identity.to_owned(), name: identity.to_owned() };
    Input::Participant { speaker, event }
}

fn left(speaker: SpeakerId) -> Input {
    Input::Participant { speaker, event: ParticipantEvent::Left }
}

fn said(speaker: SpeakerId, text: &str) -> Input {
    let heard = Transcript { text: text.to_owned(), ..Transcript::default() };
    Input::Stt { speaker, event: SttInput::Final(heard) }
}

fn last(call: &Call) -> Option<Command> {
    call.log().last().map(|(_, command)| command.clone())
}

#[test]
fn others_are_transcribed_but_not_answered() {
    let mut call = Call::new(agent());
    call.input_at(ms(100), joined(OTHER, "other"));
    let event = VadEvent::Started { speech_ms: 60 };
    call.input_at(ms(200), Input::Vad { speaker: OTHER, event });
    call.input_at(ms(900), said(OTHER, "never mind me"));
    call.run_to_end();
    assert!(call.states().is_empty());
    let row = call.rows()[0].clone();
    assert_eq!((row.speaker_id.as_str(), row.text.as_str()), ("other", "never mind me"));
    call.input_at(ms(2_000), left(OTHER));
    call.run_until(ms(2_100));
    assert!(!call.session().is_closed(), "only the linked one's leaving ends the session");
}

#[test]
fn the_last_words_before_a_hang_up_are_kept_and_so_is_what_was_heard() {
    let mut call = Call::new(agent());
    call.script.stt_final_delay = Duration::from_mins(1);
    call.script.stt_finalize_delay = Duration::from_mins(1);
    call.input_at(ms(0), Input::Say { text: ANSWER.into(), interruptible: false });
    call.user_says("forget it goodbye", ms(1_000)..ms(1_900));
    call.input_at(ms(2_100), left(CALLER));
    call.run_until(ms(10_000));
    assert_eq!(call.times(|command| matches!(command, Command::CancelSpeech { .. })), [ms(2_100)]);
    assert_eq!(call.user_said(), ["forget it goodbye"]);
    let heard = call.agent_said();
    assert!(!heard[0].is_empty() && ANSWER.starts_with(&heard[0]));
    assert_eq!(conversation(&mut call).last(), Some(&(Role::Assistant, heard[0].clone())));
    assert_eq!(last(&call), Some(Command::Leave { reason: CloseReason::ParticipantLeft }));
    assert!(call.session().is_closed());
    assert_eq!(call.session().poll_timeout(), None);
}

#[test]
fn a_session_that_outlives_its_participant_serves_the_next() {
    let mut call = Call::new(Settings { close_on_participant_left: false, ..agent() });
    call.answers([ANSWER, "Hello, next."]);
    call.user_says("book a table", ms(0)..ms(700));
    call.input_at(ms(3_000), left(CALLER));
    call.run_until(ms(4_000));
    assert_eq!(call.state(), Idle);
    call.input_at(ms(5_000), joined(OTHER, "next"));
    call.input_at(ms(6_000), said(OTHER, "hello"));
    call.run_to_end();
    assert_eq!(call.agent_said().last().map(String::as_str), Some("Hello, next."));
}

#[test]
fn the_link_moves_to_who_is_already_there() {
    let mut call = Call::new(Settings { close_on_participant_left: false, ..agent() });
    call.input_at(ms(100), joined(OTHER, "other"));
    call.input_at(ms(1_000), left(CALLER));
    call.input_at(ms(2_000), said(OTHER, "and now me"));
    call.run_to_end();
    assert_eq!(call.turns_committed_at().len(), 1);
}

#[test]
fn a_call_that_is_closed_falls_silent_and_waits_for_the_last_words() {
    let mut call = Call::new(agent());
    call.input_at(ms(0), Input::Say { text: ANSWER.into(), interruptible: false });
    call.script.stt_finalize_delay = ms(2_000);
    call.user_says("no a table for two", ms(1_000)..ms(2_000));
    let reason = CloseReason::RoomClosed;
    call.input_at(ms(2_010), Input::Close { reason });
    call.run_until(ms(20_000));
    assert_eq!(call.times(|command| matches!(command, Command::CancelSpeech { .. })), [ms(2_010)]);
    assert_eq!(call.user_said(), ["no a table for two"], "not what was known at the end of it");
    assert_eq!(call.times(|command| matches!(command, Command::Leave { .. })), [ms(4_010)]);
    assert!(call.turns_committed_at().is_empty());
}

#[test]
fn last_words_that_do_not_come_end_as_they_were_and_only_once() {
    let mut call = Call::new(agent());
    call.script.stt_final_delay = Duration::from_mins(1);
    call.script.stt_finalize_delay = Duration::from_mins(1);
    call.user_says("book a table", ms(0)..ms(700));
    let reason = CloseReason::RoomClosed;
    call.input_at(ms(860), Input::Close { reason });
    call.input_at(ms(1_862), Input::Close { reason: CloseReason::Terminated });
    call.input_at(ms(861) + LAST_WORDS, said(CALLER, "too late"));
    call.run_until(ms(20_000));
    assert_eq!(call.user_said(), ["book a table"]);
    assert_eq!(last(&call), Some(Command::Leave { reason }));
    let left = call.times(|command| matches!(command, Command::Leave { .. }));
    assert_eq!(left, [ms(860) + LAST_WORDS]);
}

#[test]
fn a_graceful_end_finishes_the_sentence_and_says_farewell() {
    let mut call = Call::new(Settings { farewell: Some("Goodbye.".into()), ..agent() });
    call.answers([ANSWER]);
    call.user_says("book a table", ms(0)..ms(700));
    call.input_at(ms(3_000), Input::Drain);
    call.user_says("hello are you there", ms(3_500)..ms(4_500));
    call.run_to_end();
    assert_eq!(call.agent_said(), [ANSWER, "Goodbye."]);
    assert_eq!(call.user_said(), ["book a table", "hello are you there"]);
    assert_eq!(last(&call), Some(Command::Leave { reason: CloseReason::Drained }));
}

#[test]
fn a_graceful_end_in_silence_leaves_at_once() {
    let mut call = Call::new(agent());
    call.input_at(ms(1_000), Input::Drain);
    call.run_until(ms(1_000));
    assert_eq!(last(&call), Some(Command::Leave { reason: CloseReason::Drained }));
}

#[test]
fn a_graceful_end_is_bounded() {
    let mut call = Call::new(agent());
    let text = ANSWER.repeat(10);
    call.input_at(ms(0), Input::Say { text, interruptible: true });
    call.input_at(ms(1_000), Input::Drain);
    call.run_until(ms(30_000));
    assert_eq!(call.times(|c| matches!(c, Command::Leave { .. })), [ms(11_000)]);
    assert_eq!(call.agent_said().len(), 1);
}

#[test]
fn a_graceful_end_with_a_voice_that_is_down_still_leaves() {
    let mut call = Call::new(Settings { farewell: Some("Goodbye.".into()), ..agent() });
    call.script.tts_silent = true;
    call.input_at(ms(1_000), Input::Drain);
    call.run_until(ms(30_000));
    assert_eq!(call.times(|c| matches!(c, Command::Leave { .. })), [ms(4_000)]);
}

#[test]
fn what_recognition_told_of_a_bystander_before_it_was_lost_is_a_row() {
    let mut call = Call::new(agent());
    let interim = |text: &str| {
        let heard = Transcript { text: text.into(), ..Transcript::default() };
        Input::Stt { speaker: OTHER, event: SttInput::Interim(heard) }
    };
    call.input_at(ms(0), joined(OTHER, "other"));
    call.input_at(ms(500), interim("one two three"));
    call.input_at(ms(600), Input::Stt { speaker: OTHER, event: SttInput::Lost });
    call.input_at(ms(30_000), said(OTHER, "seven"));
    call.run_until(ms(31_000));
    assert_eq!(call.user_said(), ["one two three", "seven"]);
}

#[test]
fn more_speakers_than_can_be_remembered_are_no_harm() {
    let mut call = Call::new(agent());
    for n in 10..200 {
        call.input_at(ms(u64::from(n)), said(SpeakerId(n), "hello"));
        call.input_at(ms(u64::from(n)), left(SpeakerId(n)));
    }
    call.user_says("book a table", ms(1_000)..ms(1_700));
    call.run_to_end();
    assert_eq!(call.user_said().len(), 191);
    assert_eq!(call.turns_committed_at().len(), 1);
}
