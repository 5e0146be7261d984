//! The ends of a session: the graceful one, which finishes the sentence and says farewell, and
//! the immediate one. Neither loses a transcript.

use std::time::{Duration, Instant};

use super::{Leaving, Session};
use crate::session::{
    command::Command,
    speech::{SpeechKind, Utterance},
    state::{AgentState, CloseReason},
    timers::{Timer, later},
};

/// The longest that a graceful end waits for a speech to be over; the farewell gets as much.
const GRACE: Duration = Duration::from_secs(10);

impl Session {
    pub(super) fn on_drain(&mut self, now: Instant) {
        if self.leaving.is_some() {
            return;
        }
        self.leaving = Some(Leaving { farewell_said: false });
        self.queue.clear();
        self.timers.set(Timer::Drain, later(now, GRACE));
        self.timers.clear(&[Timer::MinInterruption]);
        match self.state {
            AgentState::Thinking | AgentState::Speaking => {
                if self.hold.is_some() {
                    self.release(now);
                }
            }
            AgentState::Idle | AgentState::Listening => {
                self.cut(now);
                self.go_idle(now);
            }
        }
    }

    /// The session has nothing to finish any more.
    pub(super) fn proceed_leaving(&mut self, now: Instant) {
        let Some(leaving) = &mut self.leaving else { return };
        let said = std::mem::replace(&mut leaving.farewell_said, true);
        let farewell = self.settings.farewell.clone().unwrap_or_default();
        let can_say = self.ready && !self.settings.transcribe_only;
        if said || !can_say || farewell.trim().is_empty() {
            self.leave(CloseReason::Drained, now);
            return;
        }
        self.timers.set(Timer::Drain, later(now, GRACE));
        let kind = SpeechKind::Farewell;
        self.open(Utterance { kind, text: farewell, interruptible: false }, now);
    }

    pub(super) fn on_drain_over(&mut self, now: Instant) {
        self.cut(now);
        self.go_idle(now);
    }

    /// Ends now. What was being recognised becomes final, what was heard of the agent is kept.
    pub(super) fn leave(&mut self, reason: CloseReason, now: Instant) {
        for at in 0..self.speakers.len() {
            let last = self.speakers[at].promote(now);
            self.command_row(last);
        }
        self.cut(now);
        self.command(Command::Leave { reason });
        self.hold = None;
        self.timers.clear_all();
        self.closed = true;
    }
}
