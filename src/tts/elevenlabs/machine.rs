//! One session's speeches over ElevenLabs sockets, as a pure machine: commands, frames and time go
//! in, socket actions and [`TtsEvent`]s come out.
//!
//! At most one socket is current and one is spare. With `multi-stream-input` a speech is a context
//! on the current socket, and the spare is opened only to replace a socket that has been idle for
//! long. With `stream-input` a speech uses a socket up, and the spare is opened while it speaks.
//! Text is kept until its speech has ended, so that a socket lost before anything was heard costs a
//! resend and nobody notices.

mod failing;
mod sockets;
mod speaking;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    proto::{self, DictionaryLocator, Frame, VoiceSettings},
    speech::Speech,
};
use crate::{
    net::backoff::Backoff,
    tts::{SpeechId, TtsCommand, TtsError, TtsEvent},
};

/// The driver stops reading the socket at so many events that nobody has taken.
const MAX_EVENTS: usize = 64;
/// A socket that lived so long was a success: the next failure is the first again.
const PROVEN: Duration = Duration::from_secs(10);
/// Pause before another attempt to open a spare after one that failed.
const SPARE_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub multi: bool,
    pub voice: VoiceSettings,
    /// Empty with `auto_mode`.
    pub schedule: Vec<u16>,
    pub dictionaries: Vec<DictionaryLocator>,
    /// In Hz.
    pub sample_rate: u32,
    /// The first audio of a text must come within this, and the next audio as long as text is out.
    pub audio_timeout: Duration,
    /// How long a speech waits for a connection.
    pub connect_budget: Duration,
    /// How many times a speech of which nothing was heard is sent again.
    pub resends: u32,
    /// The server's `inactivity_timeout`.
    pub inactivity: Duration,
    /// 0..1: shortens the delays of reconnection.
    pub jitter: f64,
}

/// What the driver is to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a socket and tell by [`Machine::handle_connected`] or [`Machine::handle_refused`].
    Connect,
    /// Send on the current socket.
    Send(String),
    /// Close the current socket.
    Close,
    /// Close the current socket, if any; the spare is the current one from now on.
    Promote,
    /// Close the spare.
    CloseSpare,
}

/// Why a socket did not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Trying again with the same settings is of no use.
    Fatal(TtsError),
    Unreachable(String),
}

/// What is known about the current socket.
#[derive(Debug, Clone, Copy)]
struct Socket {
    /// A speech has been on it.
    used: bool,
    opened: Instant,
    idle_since: Instant,
}

impl Socket {
    const fn new(now: Instant) -> Self {
        Self { used: false, opened: now, idle_since: now }
    }
}

/// After every `handle_*`, drain `poll_action` and `poll_event` to `None`, then wait for
/// `poll_timeout`.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    current: Option<Socket>,
    spare: bool,
    connecting: bool,
    retry_at: Option<Instant>,
    no_spare_before: Option<Instant>,
    backoff: Backoff,
    failures: u32,
    last_failure: String,
    /// The provider refused for good: nothing is tried until somebody speaks again.
    refused: bool,
    speeches: Vec<Speech>,
    /// Cancelled contexts that still count at the server, with the time when they are forgotten.
    lingering: Vec<(String, Instant)>,
    newest: Option<SpeechId>,
    contexts_named: u64,
    actions: VecDeque<Action>,
    events: VecDeque<TtsEvent>,
}

impl Machine {
    /// Connects at once: the first speech must not wait for it.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            current: None,
            spare: false,
            connecting: true,
            retry_at: None,
            no_spare_before: None,
            backoff: Backoff::default(),
            failures: 0,
            last_failure: String::new(),
            refused: false,
            speeches: Vec::new(),
            lingering: Vec::new(),
            newest: None,
            contexts_named: 0,
            actions: VecDeque::from([Action::Connect]),
            events: VecDeque::new(),
        }
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub fn poll_event(&mut self) -> Option<TtsEvent> {
        self.events.pop_front()
    }

    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// Whether so many events wait that the driver is to leave the socket unread.
    pub fn is_congested(&self) -> bool {
        self.events.len() >= MAX_EVENTS
    }

    pub fn handle_command(&mut self, command: TtsCommand, now: Instant) {
        match command {
            TtsCommand::Speak { id, text } => self.speak(id, &text, now),
            TtsCommand::Finish { id } => {
                if let Some(at) = self.find_or_add(id) {
                    self.speeches[at].finished = true;
                }
            }
            TtsCommand::Cancel { id } => self.cancel(id, now),
        }
        self.advance(now);
    }

    /// The socket asked for by [`Action::Connect`] is open.
    pub fn handle_connected(&mut self, now: Instant) {
        self.connecting = false;
        self.refused = false;
        if self.current.is_none() {
            self.current = Some(Socket::new(now));
        } else if self.spare {
            self.actions.push_back(Action::CloseSpare);
        } else {
            self.spare = true;
        }
        self.advance(now);
    }

    /// The socket asked for by [`Action::Connect`] did not open.
    pub fn handle_refused(&mut self, refusal: Refusal, now: Instant) {
        self.connecting = false;
        if self.current.is_some() {
            // A spare: what is there still serves.
            self.no_spare_before = Some(now + SPARE_PAUSE);
        } else {
            match refusal {
                Refusal::Fatal(error) => {
                    self.refused = true;
                    self.retry_at = None;
                    self.fail_where(&error, now, |_| true);
                }
                Refusal::Unreachable(reason) => {
                    self.last_failure = reason;
                    self.retry_later(now);
                }
            }
        }
        self.advance(now);
    }

    /// The current socket is gone.
    pub fn handle_lost(&mut self, reason: &str, now: Instant) {
        reason.clone_into(&mut self.last_failure);
        // Of use until now: worth having back at once. One that never was may be refused again.
        let current = self.current.take();
        let used = current.is_some_and(|current| current.used);
        if current.is_some_and(|current| now >= current.opened + PROVEN) {
            self.backoff.reset();
        }
        self.lingering.clear();
        self.actions.retain(|action| !matches!(action, Action::Send(_)));
        self.interrupt_where(reason, now, |_| true);
        if self.spare {
            self.spare = false;
            self.actions.push_back(Action::Promote);
            self.current = Some(Socket::new(now));
        } else if !self.connecting {
            self.retry_later(now);
            if used && !self.refused {
                self.retry_at = Some(now);
            }
        }
        self.advance(now);
    }

    /// A text message arrived on the current socket. An error is one to log: the message is junk,
    /// and ignored.
    pub fn handle_message(&mut self, text: &str, now: Instant) -> Result<(), proto::ProtoError> {
        match proto::parse(text)? {
            Frame::Ignored => {}
            Frame::Error(error) => self.server_error(&error, now),
            Frame::Speech { context, pcm, alignment, is_final } => {
                self.failures = 0;
                self.backoff.reset();
                if let Some(at) = self.find_context(context.as_deref()) {
                    self.hear(at, &pcm, &alignment, now);
                    if is_final {
                        self.context_ended(at, now);
                    }
                } else if is_final && let Some(context) = context {
                    self.lingering.retain(|(name, _)| *name != context);
                }
            }
        }
        self.advance(now);
        Ok(())
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.lingering.retain(|(_, until)| now < *until);
        for at in (0..self.speeches.len()).rev() {
            if self.connect_deadline(at).is_some_and(|deadline| deadline <= now) {
                let error = TtsError::Unreachable(self.last_failure.clone());
                self.end(at, Err(error));
            }
        }
        self.mind_silence(now);
        self.keep_alive(now);
        self.advance(now);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let speeches = self.speeches.iter().enumerate().flat_map(|(at, speech)| {
            let can_send = speech.context.is_some() || self.has_room();
            [
                self.connect_deadline(at),
                self.audio_deadline(speech),
                speech.urgent_at().filter(|_| can_send),
                self.keep_alive_at(speech),
            ]
        });
        speeches
            .chain([self.retry_at, self.refresh_at()])
            .chain(self.lingering.iter().map(|(_, until)| Some(*until)))
            .flatten()
            .min()
    }
}

#[cfg(test)]
mod tests;
