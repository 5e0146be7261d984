//! The ends of a session: the graceful one, which finishes the sentence and says farewell, and
//! the immediate one. Neither loses a transcript: the last words before either are waited for.

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
/// How long recognition may take over the last words of who has gone, or of a call that is over: a
/// little more than any recogniser takes to close its stream.
pub const LAST_WORDS: Duration = Duration::from_millis(4_500);

impl Session {
    pub(super) fn on_drain(&mut self, now: Instant) {
        if self.leaving.is_some() {
            return;
        }
        self.leaving = Some(Leaving::Finishing);
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
        match self.leaving {
            None | Some(Leaving::LastWords(_)) => return,
            Some(Leaving::Farewell) => return self.leave(CloseReason::Drained, now),
            Some(Leaving::Finishing) => self.leaving = Some(Leaving::Farewell),
        }
        let farewell = self.settings.farewell.clone().unwrap_or_default();
        let can_say = self.ready && !self.settings.transcribe_only;
        if !can_say || farewell.trim().is_empty() {
            self.leave(CloseReason::Drained, now);
            return;
        }
        self.timers.set(Timer::Drain, later(now, GRACE));
        let kind = SpeechKind::Farewell;
        self.open(Utterance { kind, text: farewell, interruptible: false }, now);
    }

    pub(super) fn on_drain_over(&mut self, now: Instant) {
        if let Some(Leaving::LastWords(reason)) = self.leaving {
            self.end(reason, now);
            return;
        }
        self.cut(now);
        self.go_idle(now);
    }

    /// Falls silent and ends once recognition has told its last words.
    pub(super) fn leave(&mut self, reason: CloseReason, now: Instant) {
        if matches!(self.leaving, Some(Leaving::LastWords(_))) {
            return;
        }
        self.leaving = Some(Leaving::LastWords(reason));
        self.queue.clear();
        self.turn.take();
        self.cut(now);
        self.go_idle(now);
        self.timers.set(Timer::Drain, later(now, LAST_WORDS));
        self.command(Command::CloseStt);
    }

    pub(super) fn on_stt_over(&mut self, now: Instant) {
        if let Some(Leaving::LastWords(reason)) = self.leaving {
            self.end(reason, now);
        }
    }

    /// What is still being recognised becomes final as it is.
    fn end(&mut self, reason: CloseReason, now: Instant) {
        for at in 0..self.speakers.len() {
            let last = self.speakers[at].promote(now);
            self.command_row(last);
        }
        self.command(Command::Leave { reason });
        self.timers.clear_all();
        self.closed = true;
    }
}
