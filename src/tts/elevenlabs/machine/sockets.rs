//! The sockets under the speeches: opened, replaced, kept alive, given up.

use std::time::{Duration, Instant};

use super::{
    super::{
        proto,
        speech::{Context, Speech},
    },
    Action, Machine, Socket,
};

/// ElevenLabs closes the socket on a sixth context.
pub(super) const MAX_CONTEXTS: usize = 5;
/// A cancelled context whose end the server does not tell is forgotten after this.
const LINGER: Duration = Duration::from_secs(3);
/// Delays between attempts to connect while somebody waits to hear something: none, then doubling.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_millis(800);

impl Machine {
    /// Nothing of the context is wanted any more.
    pub(super) fn abandon(&mut self, context: Option<Context>, now: Instant) {
        let Some(context) = context else { return };
        if self.settings.multi {
            if !context.closed {
                self.actions.push_back(Action::Send(proto::close_context(&context.name)));
            }
            self.lingering.push((context.name, now + LINGER));
            self.rest(now);
        } else {
            self.use_up(now);
        }
    }

    /// Marks the current socket as idle, if it is.
    pub(super) fn rest(&mut self, now: Instant) {
        if let Some(current) = &mut self.current {
            current.idle_since = now;
        }
    }

    /// A single stream carries one speech: the next needs the next socket.
    pub(super) fn use_up(&mut self, now: Instant) {
        if self.spare {
            self.spare = false;
            self.actions.push_back(Action::Promote);
            self.current = Some(Socket::new(now));
        } else {
            self.actions.push_back(Action::Close);
            self.current = None;
            self.connect();
        }
    }

    pub(super) fn connect(&mut self) {
        if !self.connecting {
            self.connecting = true;
            self.actions.push_back(Action::Connect);
        }
    }

    /// Plans the next attempt: soon while somebody waits, else by the usual back-off.
    pub(super) fn retry_later(&mut self, now: Instant) {
        if self.current.is_some() || self.refused {
            return;
        }
        let delay = if self.speeches.iter().any(Speech::has_text) {
            let delay = match self.failures {
                0 => Duration::ZERO,
                n => FIRST_RETRY.saturating_mul(1 << (n - 1).min(8)).min(LONGEST_RETRY),
            };
            self.failures = self.failures.saturating_add(1);
            Some(delay)
        } else {
            self.backoff.next_delay(self.settings.jitter)
        };
        self.retry_at = delay.map(|delay| now + delay);
    }

    pub(super) fn has_room(&self) -> bool {
        let most = if self.settings.multi { MAX_CONTEXTS } else { 1 };
        self.current.is_some_and(|current| self.settings.multi || !current.used)
            && self.contexts() < most
    }

    /// Contexts that count at the server.
    pub(super) fn contexts(&self) -> usize {
        self.speeches.iter().filter(|speech| speech.context.is_some()).count()
            + self.lingering.len()
    }

    /// Opens, replaces and plans sockets.
    pub(super) fn mind_connection(&mut self, now: Instant) {
        let idle = self.contexts() == 0;
        if self.current.is_some() {
            for speech in &mut self.speeches {
                speech.disconnected_since = None;
            }
            self.retry_at = None;
            let refresh = self.refresh_at().is_some_and(|at| at <= now);
            let may_open = self.no_spare_before.is_none_or(|before| before <= now);
            if self.settings.multi && self.spare {
                self.spare = false;
                if idle {
                    self.actions.push_back(Action::Promote);
                    self.current = Some(Socket::new(now));
                } else {
                    self.actions.push_back(Action::CloseSpare);
                }
            } else if self.spare && refresh {
                self.use_up(now);
            } else if may_open && (refresh || (!self.settings.multi && !idle && !self.spare)) {
                self.connect();
            }
            return;
        }
        let mut newly = false;
        for speech in self.speeches.iter_mut().filter(|speech| speech.has_text()) {
            newly |= speech.disconnected_since.is_none();
            speech.disconnected_since.get_or_insert(now);
        }
        if newly && !self.connecting {
            // Somebody has something to say: whatever was waited for, try now.
            self.refused = false;
            self.retry_at = Some(self.retry_at.map_or(now, |at| at.min(now)));
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.connect();
        }
    }

    pub(super) fn keep_alive(&mut self, now: Instant) {
        for at in 0..self.speeches.len() {
            if self.keep_alive_at(&self.speeches[at]).is_some_and(|due| due <= now)
                && let Some(context) = &mut self.speeches[at].context
            {
                context.last_sent = now;
                let name = self.settings.multi.then_some(context.name.as_str());
                self.actions.push_back(Action::Send(proto::keep_alive(name)));
            }
        }
    }

    /// When an open context that waits for more text must be told that it is still wanted.
    pub(super) fn keep_alive_at(&self, speech: &Speech) -> Option<Instant> {
        let context = speech.context.as_ref().filter(|context| !context.closed)?;
        Some(context.last_sent + self.settings.inactivity / 3)
    }

    /// When an idle socket is replaced, before the server would close it for inactivity.
    pub(super) fn refresh_at(&self) -> Option<Instant> {
        let current = self.current.filter(|_| !self.connecting && self.contexts() == 0)?;
        let due = current.idle_since + self.settings.inactivity * 3 / 4;
        Some(self.no_spare_before.map_or(due, |before| due.max(before)))
    }

    pub(super) fn connect_deadline(&self, at: usize) -> Option<Instant> {
        self.speeches[at].disconnected_since.map(|since| since + self.settings.connect_budget)
    }
}
