//! Another agent goes on with the conversation.

use super::turns::{LONG, agent, conversation};
use crate::{
    llm::Role,
    session::{
        command::Command,
        input::Input,
        settings::Settings,
        simulation::{Call, ms},
        state::AgentState::{Idle, Speaking},
    },
};

fn hand_over(greeting: Option<&str>, keeps_history: bool) -> Input {
    let settings = Settings {
        system_prompt: "You know about bills.".into(),
        greeting: greeting.map(Into::into),
        ..agent()
    };
    Input::HandOver { settings: Box::new(settings), agent_name: "billing".into(), keeps_history }
}

/// A call that is handed over after its first answer.
fn handed_over(greeting: Option<&str>, keeps_history: bool) -> Call {
    let mut call = Call::new(agent());
    call.answers(["One moment.", "Your bill is paid."]);
    call.user_says("Is my bill paid?", ms(0)..ms(700));
    call.run_to_end();
    assert_eq!(call.state(), Idle);
    call.input_at(ms(20_000), hand_over(greeting, keeps_history));
    call
}

#[test]
fn the_next_agent_greets_and_is_shown_what_was_said() {
    let mut call = handed_over(Some("Billing, hello."), true);
    call.run_to_end();
    assert_eq!(call.agent_said(), ["One moment.", "Billing, hello."]);
    let shown = conversation(&mut call);
    assert_eq!(shown[0], (Role::System, "You know about bills.".into()));
    assert_eq!(shown[1], (Role::User, "Is my bill paid?".into()));
    assert_eq!(shown.len(), 4);
}

#[test]
fn without_history_it_begins_anew() {
    let mut call = handed_over(Some("Billing, hello."), false);
    call.run_to_end();
    let shown = conversation(&mut call);
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert_eq!(shown[1], (Role::Assistant, "Billing, hello.".into()));
}

#[test]
fn without_a_greeting_it_answers_at_once() {
    let mut call = handed_over(None, true);
    call.run_to_end();
    assert_eq!(call.agent_said(), ["One moment.", "Your bill is paid."]);
    let asked = call.times(|c| matches!(c, Command::Generate { .. }));
    assert_eq!(asked.last(), Some(&ms(20_000)));
}

#[test]
fn what_the_one_before_was_saying_ends() {
    let mut call = Call::new(agent());
    call.answers([LONG]);
    call.user_says("book a table", ms(0)..ms(600));
    call.run_until(ms(3_000));
    assert_eq!(call.state(), Speaking);
    call.input_at(ms(3_000), hand_over(Some("Billing, hello."), true));
    call.run_to_end();
    let said = call.agent_said();
    assert!(said[0].len() < LONG.len() && LONG.starts_with(said[0].trim_end()), "{said:?}");
    assert_eq!(said[1], "Billing, hello.");
}

#[test]
fn a_user_who_speaks_is_answered_by_the_next_agent() {
    let mut call = handed_over(None, true);
    call.user_says("And when is it due?", ms(19_500)..ms(20_700));
    call.run_to_end();
    let shown = conversation(&mut call);
    let users: Vec<_> = shown.iter().filter(|(role, _)| *role == Role::User).collect();
    assert_eq!(users[1].1, "And when is it due?");
    assert_eq!(call.agent_said().last().map(String::as_str), Some("Your bill is paid."));
}
