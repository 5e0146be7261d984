//! Another agent goes on with the conversation.

use std::time::Instant;

use super::Session;
use crate::session::settings::Settings;

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
        let is_user_turn = self.user_speaks() || !self.turn.text.is_empty();
        // A user who is speaking is answered when the turn is over.
        if self.queue_greeting() || is_user_turn {
            self.go_idle(now);
        } else {
            self.turn.add(TAKEN_OVER);
            self.think(now);
            self.latency_from = None;
        }
    }
}
