//! Another agent goes on with the conversation.

use std::time::Instant;

use super::Session;
use crate::session::{
    settings::Settings,
    speech::{SpeechKind, Utterance},
};

/// Told to a model that takes over and has no greeting, in the user's place: models answer users.
const TAKEN_OVER: &str = "(You have just taken over this conversation from another agent. Go on \
                          with it: the caller is waiting.)";

impl Session {
    /// What the one before was saying ends; the next greets, or else answers.
    pub(super) fn on_hand_over(
        &mut self,
        settings: Settings,
        agent_name: String,
        keeps_history: bool,
        now: Instant,
    ) {
        if self.leaving.is_some() || self.settings.transcribe_only || settings.transcribe_only {
            return;
        }
        self.cut(now);
        self.history.hand_over(&settings.system_prompt, keeps_history);
        self.settings = settings;
        self.agent_name = agent_name;
        self.apologised = false;
        let greeting = self.settings.greeting.clone().unwrap_or_default();
        if !greeting.trim().is_empty() {
            self.queue.push_front(Utterance {
                kind: SpeechKind::Say,
                text: greeting,
                interruptible: self.settings.greeting_interruptible,
            });
            self.go_idle(now);
        } else if self.user_speaks() || !self.turn.text.is_empty() {
            // Answered when the turn is over.
            self.go_idle(now);
        } else {
            self.turn.add(TAKEN_OVER);
            self.think(now);
            self.latency_from = None;
        }
    }
}
