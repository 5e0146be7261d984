//! The conversation as a pure machine: inputs go in with an `Instant`, commands come out.
//!
//! What is heard is in `hearing`, the turn's end in `listening`, speech over the agent in
//! `interrupting`, the model's side in `answering`, the voice's in `speaking`, the ends in `leaving`;
//! this file holds the four verbs and the states.
//!
//! Rules that hold after every step:
//! - every state but IDLE has a timer running;
//! - SPEAKING: something is playing or about to; THINKING: an answer is being made, nothing of it
//!   is heard yet; LISTENING: the user speaks, or the agent is held because the user seems to;
//! - at most one generation runs and at most one speech is played;
//! - events for an id that was cancelled or replaced change nothing (usage is still counted);
//! - each final transcript is commanded out as exactly one final segment;
//! - after `Leave` nothing comes.

mod answering;
mod handover;
mod hearing;
mod interrupting;
mod leaving;
mod listening;
mod speaking;

use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, sync::Arc, time::Instant};

#[cfg(test)]
pub(super) use self::leaving::LAST_WORDS;
use super::{
    command::{Command, Metric},
    history::History,
    input::{GenerationId, Input, SpeakerId},
    settings::Settings,
    speaker::{Ids, Speaker},
    speech::{Speech, SpeechKind, Utterance},
    state::{AgentState, CloseReason, UserState},
    timers::{Timer, Timers, later},
    turn::{Turn, endpointing::Pauses, interruption::Hold, preemption::Early},
};
use crate::llm::Message;

/// What the session's own names are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionIds {
    /// Unique for ever: transcript rows are `{prefix}-u{n}` and `{prefix}-a{n}`.
    pub prefix: String,
    pub agent_identity: String,
    pub agent_name: String,
}

/// The model is at work on an answer.
#[derive(Debug)]
struct Generation {
    id: GenerationId,
    asked_at: Instant,
    first_text: bool,
}

/// A user who is away is asked to come back this often.
const MAX_AWAY_PROMPTS: u32 = 2;

/// The end is under way.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    /// Gracefully: what is being said is said to its end.
    Finishing,
    /// The farewell is being said, or there is none.
    Farewell,
    /// The agent is silent, and recognition has been asked for its last words.
    LastWords(CloseReason),
}

/// One conversation.
///
/// After every `handle_*`, drain [`poll_command`](Self::poll_command) to `None`, then wait for the
/// next input or for [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    agent_identity: String,
    agent_name: String,
    ids: Ids,
    now: Instant,
    state: AgentState,
    user_state: UserState,
    ready: bool,
    leaving: Option<Leaving>,
    closed: bool,
    timers: Timers,
    commands: VecDeque<Command>,
    speakers: Vec<Speaker>,
    linked: Option<SpeakerId>,
    turn: Turn,
    /// How the linked user pauses inside turns.
    pauses: Pauses,
    history: History,
    generation: Option<Generation>,
    /// Begun before the turn was taken; while it is there, no other generation is.
    early: Option<Early>,
    /// How often the user who is away has been asked to come back.
    prompted: u32,
    /// Being played, or to be played next.
    speech: Option<Speech>,
    /// Spoken after that: first the rest of an answer and apologies, then what the application
    /// asked for.
    queue: VecDeque<Utterance>,
    hold: Option<Hold>,
    /// Something of the answer to this turn was sent to be spoken.
    answered: bool,
    /// The user has been apologised to in this turn.
    apologised: bool,
    /// The end of the user's speech that the answer's first audio is measured from.
    latency_from: Option<Instant>,
    /// When the agent was first heard.
    first_heard_at: Option<Instant>,
}

impl Session {
    /// A session that begins `now`: the zero of all segment times.
    pub fn new(settings: Settings, ids: SessionIds, now: Instant) -> Self {
        let history = History::new(&settings.system_prompt);
        Self {
            settings,
            agent_identity: ids.agent_identity,
            agent_name: ids.agent_name,
            ids: Ids::new(ids.prefix, now),
            now,
            state: AgentState::Idle,
            user_state: UserState::Listening,
            ready: false,
            leaving: None,
            closed: false,
            timers: Timers::default(),
            commands: VecDeque::new(),
            speakers: Vec::new(),
            linked: None,
            turn: Turn::default(),
            pauses: Pauses::default(),
            history,
            generation: None,
            early: None,
            prompted: 0,
            speech: None,
            queue: VecDeque::new(),
            hold: None,
            answered: false,
            apologised: false,
            latency_from: None,
            first_heard_at: None,
        }
    }

    /// Takes in what happened.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        if self.closed {
            return;
        }
        let now = self.advance(now);
        match input {
            Input::Ready => self.on_ready(now),
            Input::Participant { speaker, event } => self.on_participant(speaker, event, now),
            Input::Vad { speaker, event } => self.on_vad(speaker, event, now),
            Input::TurnEnd { speaker, probability } => {
                self.on_turn_end(speaker, probability, now);
            }
            Input::Stt { speaker, event } => self.on_stt(speaker, event, now),
            Input::Llm { id, event } => self.on_llm(id, event, now),
            Input::Tts { id, event } => self.on_tts(id, event, now),
            Input::Playout { id, event } => self.on_playout(id, event, now),
            Input::Chat { speaker, text } => self.on_chat(speaker, &text, now),
            Input::Say { text, interruptible } => self.on_say(&text, interruptible, now),
            Input::HandOver { settings, agent_name, keeps_history } => {
                self.on_hand_over(*settings, agent_name, keeps_history, now);
            }
            Input::Drain => self.on_drain(now),
            Input::Close { reason } => self.leave(reason, now),
            Input::SttOver => self.on_stt_over(now),
        }
    }

    /// Fires the timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let now = self.advance(now);
        // Bounded, though no timer is ever set again to a time that is due.
        for _ in 0..64 {
            let Some(timer) = self.timers.take_due(now) else { return };
            self.fire(timer, now);
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    pub fn state(&self) -> AgentState {
        self.state
    }

    pub fn user_state(&self) -> UserState {
        self.user_state
    }

    /// The conversation so far, the system prompt first.
    pub fn history(&mut self) -> Arc<[Message]> {
        self.history.snapshot()
    }

    /// Whether `Leave` has been commanded.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Time never runs backwards, whatever the caller's instants do.
    fn advance(&mut self, now: Instant) -> Instant {
        self.now = self.now.max(now);
        self.now
    }

    fn fire(&mut self, timer: Timer, now: Instant) {
        match timer {
            Timer::Endpointing => self.endpoint(now),
            Timer::MaxEndpointing | Timer::SpeechGuard => self.end_listening(now),
            Timer::Transcript => self.no_transcript(now),
            Timer::MinInterruption => self.on_spoken_over(now),
            Timer::FalseInterruption => self.on_hold_over(now),
            Timer::LlmText => self.on_llm_silent(now),
            Timer::TtsFirstAudio => self.fail_speech(now),
            Timer::Thinking => self.on_thinking_too_long(now),
            Timer::Playout => self.on_playout_stalled(now),
            Timer::MaxSpeak => self.on_spoken_enough(now),
            Timer::UserAway => self.on_user_away(now),
            Timer::Drain => self.on_drain_over(now),
        }
    }

    fn command(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    fn metric(&mut self, metric: Metric) {
        self.command(Command::Metric(metric));
    }

    fn set_state(&mut self, state: AgentState) {
        if self.state != state {
            self.state = state;
            self.command(Command::SetState(state));
        }
    }

    fn set_user_state(&mut self, state: UserState) {
        if self.user_state != state {
            self.user_state = state;
            self.command(Command::SetUserState(state));
        }
    }

    fn speaker(&self, id: SpeakerId) -> Option<&Speaker> {
        self.speakers.iter().find(|speaker| speaker.id == id)
    }

    fn speaker_mut(&mut self, id: SpeakerId) -> Option<&mut Speaker> {
        self.speakers.iter_mut().find(|speaker| speaker.id == id)
    }

    /// The participant whose turns are answered.
    fn linked(&self) -> Option<&Speaker> {
        self.speaker(self.linked?)
    }

    fn linked_mut(&mut self) -> Option<&mut Speaker> {
        self.speaker_mut(self.linked?)
    }

    /// Whether the linked participant is heard speaking.
    fn user_speaks(&self) -> bool {
        self.linked().is_some_and(|speaker| speaker.voice.is_heard())
    }

    /// Nothing to do: the way out of every state. What waits to be said is said now, unless the
    /// user waits to be heard.
    fn go_idle(&mut self, now: Instant) {
        self.drop_early();
        self.timers.clear_states();
        self.hold = None;
        self.set_state(AgentState::Idle);
        if self.leaving.is_some() {
            self.proceed_leaving(now);
            return;
        }
        let open = self.linked().is_some_and(|speaker| speaker.open_text().is_some());
        if open || self.user_speaks() || !self.turn.text.is_empty() {
            self.listen(now);
            return;
        }
        self.turn.speech_begins();
        if self.ready
            && let Some(utterance) = self.queue.pop_front()
        {
            self.open(utterance, now);
            return;
        }
        self.watch_away(now);
    }

    /// Nobody has spoken for long: the user is asked to come back, at most twice.
    fn on_user_away(&mut self, now: Instant) {
        self.set_user_state(UserState::Away);
        let prompt = self.settings.away_prompt.clone().unwrap_or_default();
        let may = self.ready && self.state == AgentState::Idle && !self.settings.transcribe_only;
        if may && !prompt.trim().is_empty() && self.prompted < MAX_AWAY_PROMPTS {
            self.prompted += 1;
            self.queue.push_front(Utterance {
                kind: SpeechKind::Say,
                text: prompt,
                interruptible: self.settings.interruptible,
            });
            self.go_idle(now);
        }
    }

    /// The user counts as away after a while in which nobody speaks.
    fn watch_away(&mut self, now: Instant) {
        let asks_again = self.settings.away_prompt.is_some() && self.prompted < MAX_AWAY_PROMPTS;
        let waiting = self.state == AgentState::Idle
            && (self.user_state == UserState::Listening
                || self.user_state == UserState::Away && asks_again)
            && self.linked.is_some()
            && !self.settings.user_away.is_zero();
        if waiting {
            self.timers.set(Timer::UserAway, later(now, self.settings.user_away));
        }
    }

    fn on_ready(&mut self, now: Instant) {
        if std::mem::replace(&mut self.ready, true) {
            return;
        }
        // A user who spoke first is answered, not greeted.
        if self.state != AgentState::Idle {
            return;
        }
        self.queue_greeting();
        self.go_idle(now);
    }

    /// The greeting is said next; whether there is one.
    fn queue_greeting(&mut self) -> bool {
        let text = self.settings.greeting.clone().unwrap_or_default();
        let greets = !text.trim().is_empty() && !self.settings.transcribe_only;
        if greets {
            let interruptible = self.settings.greeting_interruptible;
            let kind = SpeechKind::Greeting;
            self.queue.push_front(Utterance { kind, text, interruptible });
        }
        greets
    }
}
