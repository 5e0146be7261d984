//! The conversation as the model is shown it: the system prompt, then the turns. What it holds as
//! said by the agent was heard.

use std::{collections::VecDeque, sync::Arc};

use crate::llm::{Message, Role};

/// Turns kept; the oldest go first. The token budget is the context's business: this only bounds
/// the memory of a session that never ends.
const MAX_MESSAGES: usize = 400;

#[derive(Debug)]
pub(super) struct History {
    system: Option<Message>,
    turns: VecDeque<Message>,
    snapshot: Option<Arc<[Message]>>,
}

impl History {
    pub fn new(system_prompt: &str) -> Self {
        let system = (!system_prompt.trim().is_empty())
            .then(|| Message { role: Role::System, text: system_prompt.to_owned() });
        Self { system, turns: VecDeque::new(), snapshot: None }
    }

    /// Another agent goes on, with its own prompt.
    pub fn hand_over(&mut self, system_prompt: &str, keep: bool) {
        let turns = if keep { std::mem::take(&mut self.turns) } else { VecDeque::new() };
        *self = Self { turns, ..Self::new(system_prompt) };
    }

    /// A user's turn. One that the agent never got to answer and the next are one message: the
    /// user went on.
    pub fn push_user(&mut self, text: &str) {
        match self.turns.back_mut() {
            Some(last) if last.role == Role::User => join(&mut last.text, text),
            _ => self.push(Role::User, text.to_owned()),
        }
        self.snapshot = None;
    }

    /// What the agent was heard to say.
    pub fn push_heard(&mut self, text: String) {
        self.push(Role::Assistant, text);
        self.snapshot = None;
    }

    /// Takes back the last user turn if nothing was said to it: the user goes on.
    pub fn reopen_user(&mut self) -> Option<String> {
        if self.turns.back()?.role != Role::User {
            return None;
        }
        self.snapshot = None;
        self.turns.pop_back().map(|message| message.text)
    }

    /// The whole conversation as it will be once the user's turn is `text`.
    pub fn with_user(&mut self, text: &str) -> Arc<[Message]> {
        let mut messages = self.snapshot().to_vec();
        match messages.last_mut() {
            Some(last) if last.role == Role::User => join(&mut last.text, text),
            _ => messages.push(Message { role: Role::User, text: text.to_owned() }),
        }
        messages.into()
    }

    /// The whole conversation; free as long as nothing is added.
    pub fn snapshot(&mut self) -> Arc<[Message]> {
        let (system, turns) = (&self.system, &self.turns);
        self.snapshot
            .get_or_insert_with(|| system.iter().chain(turns.iter()).cloned().collect())
            .clone()
    }

    fn push(&mut self, role: Role, text: String) {
        if self.turns.len() >= MAX_MESSAGES {
            self.turns.pop_front();
        }
        self.turns.push_back(Message { role, text });
    }
}

/// Appends `more` to `text` as further words of the same utterance.
pub(super) fn join(text: &mut String, more: &str) {
    let more = more.trim();
    if !text.is_empty() && !more.is_empty() {
        text.push(' ');
    }
    text.push_str(more);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unanswered_turn_and_the_next_are_one_user_message() {
        let mut history = History::new("Be brief.");
        history.push_user("book a table");
        history.push_user("for two");
        let texts: Vec<_> = history.snapshot().iter().map(|m| m.text.clone()).collect();
        assert_eq!(texts, ["Be brief.", "book a table for two"]);
    }

    #[test]
    fn only_an_unanswered_turn_is_reopened() {
        let mut history = History::new("");
        history.push_user("hello");
        assert_eq!(history.reopen_user().as_deref(), Some("hello"));
        history.push_user("hello");
        history.push_heard("hi".into());
        assert_eq!(history.reopen_user(), None);
        assert_eq!(history.snapshot().len(), 2);
    }

    #[test]
    fn what_the_user_is_about_to_have_said_is_shown_but_not_kept() {
        let mut history = History::new("Be brief.");
        history.push_user("book a table");
        let shown = history.with_user("for two");
        assert_eq!(shown[1].text, "book a table for two");
        assert_eq!(history.snapshot()[1].text, "book a table");
        history.push_user("for two");
        assert_eq!(history.snapshot(), shown);
    }

    #[test]
    fn the_history_is_bounded_and_keeps_the_prompt() {
        let mut history = History::new("Be brief.");
        for n in 0..MAX_MESSAGES {
            history.push_user(&n.to_string());
            history.push_heard(n.to_string());
        }
        let messages = history.snapshot();
        assert_eq!(messages.len(), MAX_MESSAGES + 1);
        assert_eq!(messages[0].role, Role::System);
    }
}
