//! One session's speeches over ElevenLabs sockets, as a pure machine: commands, frames and time go
//! in, socket actions and [`TtsEvent`]s come out.
//!
//! At most one socket is current and one is spare. With `multi-stream-input` a speech is a context
//! on the current socket, and the spare is opened only to replace a socket that has been idle for
//! long. With `stream-input` a speech uses a socket up, and the spare is opened while it speaks.
//! Text is kept until its speech has ended, so that a socket lost before anything was heard costs a
//! resend and nobody notices.

mod sockets;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    proto::{self, Frame, ServerError, VoiceSettings},
    speech::{Context, Speech},
};
use crate::{
    net::backoff::Backoff,
    tts::{SpeechId, TtsCommand, TtsError, TtsEvent, pcm::to_samples},
};

/// Longest text of one speech, in bytes: half an hour of speaking.
const MAX_SPEECH_BYTES: usize = 32_000;
/// Speeches that wait or speak at the same time.
const MAX_SPEECHES: usize = 32;
/// Without a word of the end from the server, a speech whose text is all spoken ends after this.
const SETTLED: Duration = Duration::from_secs(1);
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

    fn find_or_add(&mut self, id: SpeechId) -> Option<usize> {
        if let Some(at) = self.speeches.iter().position(|speech| speech.id == id) {
            return Some(at);
        }
        // Ids grow, so this one has ended.
        if self.newest.is_some_and(|newest| id <= newest) {
            return None;
        }
        self.newest = Some(id);
        self.speeches.push(Speech::new(id));
        let at = self.speeches.len() - 1;
        if at >= MAX_SPEECHES {
            self.end(at, Err(TtsError::Rejected("too many speeches at once".into())));
            return None;
        }
        Some(at)
    }

    fn speak(&mut self, id: SpeechId, text: &str, now: Instant) {
        let Some(at) = self.find_or_add(id) else { return };
        let speech = &mut self.speeches[at];
        if speech.finished {
            return;
        }
        speech.length += text.len();
        if speech.length > MAX_SPEECH_BYTES {
            let context = speech.context.take();
            self.end(at, Err(TtsError::Rejected("the text is too long".into())));
            self.abandon(context, now);
            return;
        }
        speech.waiting.push(text);
        if speech.has_text() {
            speech.held_since.get_or_insert(now);
        }
    }

    fn cancel(&mut self, id: SpeechId, now: Instant) {
        self.newest = self.newest.max(Some(id));
        self.events.retain(|event| match event {
            TtsEvent::Audio { id: of, .. }
            | TtsEvent::Alignment { id: of, .. }
            | TtsEvent::End { id: of }
            | TtsEvent::Error { id: of, .. } => *of != id,
            TtsEvent::Usage { .. } => true,
        });
        if let Some(at) = self.speeches.iter().position(|speech| speech.id == id) {
            self.count_usage(at);
            let speech = self.speeches.remove(at);
            self.abandon(speech.context, now);
        }
    }

    fn find_context(&self, name: Option<&str>) -> Option<usize> {
        let mut open = self.speeches.iter().enumerate().filter_map(|(at, speech)| {
            speech.context.as_ref().map(|context| (at, context.name.as_str()))
        });
        match name.filter(|_| self.settings.multi) {
            Some(name) => open.find(|(_, of)| *of == name).map(|(at, _)| at),
            // Without a name it is clear only where there is one.
            None if self.contexts() == 1 => open.next().map(|(at, _)| at),
            None => None,
        }
    }

    fn hear(&mut self, at: usize, pcm: &[u8], chars: &[proto::AlignedChar], now: Instant) {
        let rate = u64::from(self.settings.sample_rate);
        let speech = &mut self.speeches[at];
        let base_ms = speech.samples * 1_000 / rate;
        let samples = to_samples(&mut speech.half_sample, pcm);
        if !samples.is_empty() {
            speech.samples += samples.len() as u64;
            speech.last_audio = Some(now);
            let lasts = Duration::from_micros(samples.len() as u64 * 1_000_000 / rate);
            speech.plays_until =
                Some(speech.plays_until.map_or(now, |until| until.max(now)) + lasts);
            if let Some(context) = &mut speech.context {
                context.heard = true;
            }
            self.events.push_back(TtsEvent::Audio { id: speech.id, samples });
        }
        let words = speech.aligner.push(&speech.sent, base_ms, chars);
        if !words.is_empty() {
            self.events.push_back(TtsEvent::Alignment { id: speech.id, words });
        }
    }

    /// The server told that nothing more comes in this context.
    fn context_ended(&mut self, at: usize, now: Instant) {
        let speech = &mut self.speeches[at];
        let heard = speech.context.take().is_some_and(|context| context.heard);
        if !self.settings.multi {
            self.use_up(now);
        }
        self.rest(now);
        let speech = &mut self.speeches[at];
        if speech.is_all_sent() && heard {
            self.end(at, Ok(()));
        } else if !heard && speech.samples == 0 && !speech.sent.is_empty() {
            self.send_again(at, "the speech ended without audio", now);
        } else if speech.is_all_sent() {
            self.end(at, Err(TtsError::Interrupted("the speech ended early".into())));
        }
        // Otherwise the server closed a context that was idle; more text opens the next one.
    }

    /// Sends a speech of which nothing has been heard again, as long as that makes sense.
    fn send_again(&mut self, at: usize, reason: &str, now: Instant) {
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
    fn interrupt_where(&mut self, reason: &str, now: Instant, which: impl Fn(&Speech) -> bool) {
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

    fn fail_where(&mut self, error: &TtsError, now: Instant, which: impl Fn(&Speech) -> bool) {
        for at in (0..self.speeches.len()).rev() {
            if which(&self.speeches[at]) {
                let context = self.speeches[at].context.take();
                self.end(at, Err(error.clone()));
                self.abandon(context, now);
            }
        }
    }

    fn server_error(&mut self, error: &ServerError, now: Instant) {
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
    fn mind_silence(&mut self, now: Instant) {
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

    /// Ends a speech; its context, if any, must be dealt with by the caller.
    fn end(&mut self, at: usize, result: Result<(), TtsError>) {
        self.count_usage(at);
        let mut speech = self.speeches.remove(at);
        let id = speech.id;
        if let Some(word) = speech.aligner.finish(&speech.sent) {
            self.events.push_back(TtsEvent::Alignment { id, words: vec![word] });
        }
        self.events.push_back(match result {
            Ok(()) => TtsEvent::End { id },
            Err(error) => TtsEvent::Error { id, error },
        });
    }

    fn count_usage(&mut self, at: usize) {
        let characters = std::mem::take(&mut self.speeches[at].characters);
        if characters > 0 {
            self.events.push_back(TtsEvent::Usage { link: 0, characters });
        }
    }

    /// Does all that can be done now.
    fn advance(&mut self, now: Instant) {
        let mut at = 0;
        while at < self.speeches.len() {
            let speech = &self.speeches[at];
            if speech.is_all_sent() && speech.context.is_none() && speech.sent.is_empty() {
                self.end(at, Ok(()));
                continue;
            }
            if speech.is_all_sent() && speech.context.is_none() && speech.samples > 0 {
                self.end(at, Ok(()));
                continue;
            }
            self.send_text(at, now);
            self.close_when_heard(at);
            at += 1;
        }
        self.mind_connection(now);
    }

    fn send_text(&mut self, at: usize, now: Instant) {
        loop {
            let room = self.has_room();
            let speech = &mut self.speeches[at];
            if !speech.has_text() || (speech.context.is_none() && !room) {
                return;
            }
            let urgent = speech.urgent_at().is_some_and(|at| at <= now);
            let piece = if speech.finished {
                speech.waiting.take_rest()
            } else {
                speech.waiting.take(urgent)
            };
            let Some(piece) = piece else { return };
            self.open_context(at, now);
            let multi = self.settings.multi;
            let speech = &mut self.speeches[at];
            let Some(context) = &mut speech.context else { return };
            context.spoken_since.get_or_insert(now);
            context.last_sent = now;
            speech.characters += piece.chars().count() as u64;
            speech.sent.push_str(&piece);
            let name = multi.then_some(context.name.as_str());
            self.actions.push_back(Action::Send(proto::text(name, &piece, true)));
        }
    }

    fn open_context(&mut self, at: usize, now: Instant) {
        if self.speeches[at].context.is_some() {
            return;
        }
        self.contexts_named += 1;
        let speech = &mut self.speeches[at];
        let name = format!("s{}-{}", speech.id.0, self.contexts_named);
        speech.disconnected_since = None;
        let Settings { multi, voice, ref schedule, .. } = self.settings;
        let init = proto::init(multi.then_some(name.as_str()), voice, schedule);
        self.actions.push_back(Action::Send(init));
        speech.context =
            Some(Context { name, last_sent: now, spoken_since: None, heard: false, closed: false });
        if let Some(current) = &mut self.current {
            current.used = true;
        }
    }

    /// Closes the context of a finished speech. Not before its first audio with
    /// `multi-stream-input`, where that would give none; a single stream is ended at once.
    fn close_when_heard(&mut self, at: usize) {
        let multi = self.settings.multi;
        let speech = &mut self.speeches[at];
        let all_sent = speech.is_all_sent();
        let Some(context) = speech.context.as_mut().filter(|context| !context.closed) else {
            return;
        };
        if all_sent && (context.heard || !multi) {
            context.closed = true;
            self.actions.push_back(Action::Send(if multi {
                proto::close_context(&context.name)
            } else {
                proto::end_of_stream()
            }));
        }
    }

    fn audio_deadline(&self, speech: &Speech) -> Option<Instant> {
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

#[cfg(test)]
mod tests;
