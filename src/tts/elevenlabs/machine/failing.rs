//! What becomes of speeches whose socket breaks, whose server refuses, or falls silent.

use std::time::{Duration, Instant};

use super::{
    super::{proto::ServerError, speech::Speech},
    Action, MAX_EVENTS, Machine,
};
use crate::tts::TtsError;

/// Without a word of the end from the server, a speech whose text is all spoken ends after this.
const SETTLED: Duration = Duration::from_secs(1);

impl Machine {
    /// Sends a speech of which nothing has been heard again, as long as that makes sense.
    pub(super) fn send_again(&mut self, at: usize, reason: &str, now: Instant) {
        let most = self.settings.resends;
        let speech = &mut self.speeches[at];
        if speech.resends >= most {
            self.end(at, Err(TtsError::Interrupted(reason.to_owned())));
        } else {
            speech.rewind();
            speech.held_since = Some(now);
        }
    }

    /// The socket broke under these speeches.
    pub(super) fn interrupt_where(
        &mut self,
        reason: &str,
        now: Instant,
        which: impl Fn(&Speech) -> bool,
    ) {
        for at in (0..self.speeches.len()).rev() {
            let speech = &self.speeches[at];
            if speech.context.is_none() || !which(speech) {
                continue;
            }
            if speech.samples == 0 {
                self.send_again(at, reason, now);
            } else if speech.is_spoken() {
                // Nothing is lost: it has ended, or goes on in a context of the next socket.
                self.speeches[at].context = None;
            } else {
                self.end(at, Err(TtsError::Interrupted(reason.to_owned())));
            }
        }
    }

    pub(super) fn fail_where(
        &mut self,
        error: &TtsError,
        now: Instant,
        which: impl Fn(&Speech) -> bool,
    ) {
        for at in (0..self.speeches.len()).rev() {
            if which(&self.speeches[at]) {
                let context = self.speeches[at].context.take();
                self.end(at, Err(error.clone()));
                self.abandon(context, now);
            }
        }
    }

    pub(super) fn server_error(&mut self, error: &ServerError, now: Instant) {
        if error.is_unauthorized() {
            self.refused = true;
            self.fail_where(&TtsError::Unauthorized { status: 401 }, now, |_| true);
            return;
        }
        let of = error.context.as_deref();
        let concerns = |speech: &Speech| {
            speech.context.as_ref().is_some_and(|context| of.is_none_or(|of| of == context.name))
        };
        if !error.is_retryable() {
            self.fail_where(&TtsError::Rejected(error.to_string()), now, concerns);
        } else if of.is_some() {
            let reason = error.to_string();
            self.interrupt_where(&reason, now, concerns);
        } else {
            // The server closes the socket next; there is nothing to wait for.
            self.actions.push_back(Action::Close);
            self.handle_lost(&error.to_string(), now);
        }
    }

    /// Deals with speeches whose audio has not come in time.
    pub(super) fn mind_silence(&mut self, now: Instant) {
        if self.events.len() >= MAX_EVENTS {
            // Frames may lie unread because nobody takes the events: that is not the server's fault.
            for context in self.speeches.iter_mut().filter_map(|speech| speech.context.as_mut()) {
                context.last_sent = now;
                context.spoken_since = context.spoken_since.map(|_| now);
            }
            return;
        }
        let limit = self.settings.audio_timeout.as_millis() as u64;
        let mut stalled = false;
        for at in (0..self.speeches.len()).rev() {
            let speech = &self.speeches[at];
            if self.audio_deadline(speech).is_none_or(|deadline| now < deadline) {
                continue;
            }
            if speech.is_all_sent() && speech.is_spoken() {
                let context = self.speeches[at].context.take();
                self.end(at, Ok(()));
                self.abandon(context, now);
                continue;
            }
            stalled = true;
            // Text that brought nothing on two sockets: a third is too late anyway.
            if speech.samples == 0 && speech.resends >= self.settings.resends.min(1) {
                self.end(at, Err(TtsError::Timeout(limit)));
            }
        }
        // One stalled speech condemns the socket: whatever else is on it is stalled as well.
        if stalled {
            self.actions.push_back(Action::Close);
            self.handle_lost(&format!("no audio within {limit} ms"), now);
        }
    }

    pub(super) fn audio_deadline(&self, speech: &Speech) -> Option<Instant> {
        let context = speech.context.as_ref().filter(|_| speech.is_owed())?;
        let since = if context.heard {
            context.last_sent.max(speech.last_audio?)
        } else {
            context.spoken_since?
        };
        let settled = speech.is_all_sent() && speech.is_spoken();
        Some(since + if settled { SETTLED } else { self.settings.audio_timeout })
    }
}
