//! The world's side of a session: what it tells the machine, and what it holds it to.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::Step;
use crate::{
    llm::{LlmError, LlmEvent, Role},
    session::{
        command::Command,
        input::{
            GenerationId, Input, ParticipantEvent, PlayoutEvent, SpeakerId, SttInput, TtsInput,
            VadEvent,
        },
        machine::{Session, SessionIds},
        settings::Settings,
        state::{AgentState, CloseReason},
    },
    stt::{SttError, Transcript, Word},
    transcript::segment::SpeakerKind,
    tts::{SpeechId, TimedText, TtsError},
};

/// Playout is taken to run on for at most this after its last report.
const EXTRAPOLATED_MS: u64 = 150;

/// What the world knows of one speech.
#[derive(Debug, Default)]
struct Heard {
    text: String,
    aligned: Vec<TimedText>,
    aligned_ms: u64,
    audio_ms: u64,
    position_ms: u64,
    open: bool,
    /// What was heard was shown before the voice told its times: by an estimate.
    estimated: bool,
    /// It was let flow to the track at least once.
    played: bool,
    over: bool,
    bundled: bool,
    drained: bool,
    ended: bool,
}

/// The world's side of a session, which checks everything that it is told.
pub(super) struct World {
    session: Session,
    began: Instant,
    pub(super) now: Instant,
    pub(super) state: AgentState,
    pub(super) closed: bool,
    running: Option<GenerationId>,
    last_generation: u64,
    speeches: BTreeMap<SpeechId, Heard>,
    finals: BTreeSet<String>,
    shown: BTreeSet<String>,
    pub(super) expected: Vec<String>,
    pub(super) user_rows: Vec<String>,
    agent_rows: Vec<String>,
    count: u64,
}

impl World {
    pub(super) fn new(settings: Settings) -> Self {
        let began = crate::clock::now();
        let ids = SessionIds {
            prefix: "s".into(),
            agent_identity: "agent".into(),
            agent_name: "Agent".into(),
        };
        Self {
            session: Session::new(settings, ids, began),
            began,
            now: began,
            state: AgentState::Idle,
            closed: false,
            running: None,
            last_generation: 0,
            speeches: BTreeMap::new(),
            finals: BTreeSet::new(),
            shown: BTreeSet::new(),
            expected: Vec::new(),
            user_rows: Vec::new(),
            agent_rows: Vec::new(),
            count: 0,
        }
    }

    /// A word that is said once only.
    fn word(&mut self, letter: char) -> String {
        self.count += 1;
        format!("{letter}{}", self.count)
    }

    fn transcript(&mut self, step: Step, letter: char) -> Transcript {
        let mut words: Vec<_> = (0..step.a % 5).map(|_| self.word(letter)).collect();
        // How a turn's words end decides how long is waited, and what stops the agent.
        match (step.a / 5 % 6, words.last_mut()) {
            (0, Some(last)) => last.push('.'),
            (1, Some(_)) => words.push("and".into()),
            (2, Some(last)) if letter == 'i' => *last = "okay".into(),
            _ => {}
        }
        let now_ms = self.now.duration_since(self.began).as_millis() as u64;
        let (start_ms, duration_ms) = match step.b % 4 {
            0 => (0, 0),
            1 => (now_ms.saturating_sub(700), 600),
            2 => (u64::MAX, u64::MAX),
            _ => (u64::from(step.b), u64::from(step.a)),
        };
        let timed = words.iter().filter(|_| step.b.is_multiple_of(3)).map(|text| Word {
            text: text.clone(),
            start_ms,
            end_ms: start_ms.saturating_add(duration_ms),
            confidence: 0.5,
        });
        Transcript {
            text: words.join(" "),
            start_ms,
            duration_ms,
            confidence: if step.b.is_multiple_of(5) { f32::NAN } else { 0.8 },
            words: timed.collect(),
            language: None,
        }
    }

    fn speech(&self, step: Step) -> SpeechId {
        let last = self.speeches.keys().next_back().map_or(0, |id| id.0);
        // Mostly the current one, else an old one, else one that never was.
        SpeechId(match step.b % 16 {
            0 => last.saturating_sub(1),
            1 => last + 1,
            _ => last,
        })
    }

    pub(super) fn input(&mut self, step: Step) -> Option<Input> {
        // Mostly the linked one.
        let speaker = SpeakerId(if step.b.is_multiple_of(8) { 2 } else { 1 });
        let generation = GenerationId(
            self.last_generation - u64::from(step.b.is_multiple_of(16)).min(self.last_generation),
        );
        let id = self.speech(step);
        let stt = |event| Some(Input::Stt { speaker, event });
        let llm = |event| Some(Input::Llm { id: generation, event });
        let tts = |event| Some(Input::Tts { id, event });
        let play = |event| Some(Input::Playout { id, event });
        if step.what >= 192 {
            return self.likely(step);
        }
        match step.what % 64 {
            0 => Some(Input::Ready),
            1 => {
                let name = format!("user{}", speaker.0);
                let event = ParticipantEvent::Joined { identity: name.clone(), name };
                Some(Input::Participant { speaker, event })
            }
            2 if step.a.is_multiple_of(4) => {
                Some(Input::Participant { speaker, event: ParticipantEvent::Left })
            }
            2 if step.a % 4 == 1 => Some(Input::Vad { speaker, event: VadEvent::Faint }),
            3..=7 => {
                let event = VadEvent::Started { speech_ms: u32::from(step.a % 600) };
                Some(Input::Vad { speaker, event })
            }
            8..=12 => {
                let event = VadEvent::Ended { silence_ms: u32::from(step.a % 600) };
                Some(Input::Vad { speaker, event })
            }
            13..=17 => {
                let heard = self.transcript(step, 'i');
                stt(SttInput::Interim(heard))
            }
            18..=23 => {
                let heard = self.transcript(step, 'f');
                if !heard.text.is_empty() {
                    self.expected.push(heard.text.clone());
                }
                stt(SttInput::Final(heard))
            }
            24 => stt(SttInput::EndOfTurn),
            25 => stt(SttInput::SpeechStarted),
            26 => stt(SttInput::Started),
            27 => stt(if step.a.is_multiple_of(2) { SttInput::Lost } else { SttInput::Restored }),
            28 => stt(SttInput::Failed(SttError::Unreachable("random".into()))),
            29 => stt(SttInput::Usage { link: 0, audio_ms: 1 }),
            30..=36 => {
                let text = match step.a % 8 {
                    0 => "\n".to_owned(),
                    _ => format!("{} ", self.word('t')),
                };
                llm(LlmEvent::Text(text))
            }
            37..=39 => llm(LlmEvent::End),
            40 => llm(LlmEvent::Error(LlmError::Interrupted("random".into()))),
            41 if step.a.is_multiple_of(2) => llm(LlmEvent::Working),
            41 => llm(LlmEvent::Usage {
                link: 0,
                input_tokens: 1,
                cached_tokens: 0,
                output_tokens: 1,
                estimated: false,
            }),
            42..=45 => tts(TtsInput::Audio { ms: u32::from(step.a % 900) }),
            46..=48 => {
                let (text, start) = match self.speeches.get(&id) {
                    Some(heard) => {
                        let done: usize = heard.aligned.iter().map(|word| word.text.len()).sum();
                        let rest = heard.text.get(done..).unwrap_or_default();
                        let word = rest.split_inclusive(' ').next().unwrap_or_default();
                        (word.to_owned(), heard.aligned_ms)
                    }
                    None => ("bogus".into(), 0),
                };
                let end_ms = start + u64::from(step.a % 700);
                tts(TtsInput::Alignment(vec![TimedText { text, start_ms: start, end_ms }]))
            }
            49 => tts(TtsInput::End),
            50 => tts(TtsInput::Error(TtsError::Rejected("random".into()))),
            51 => tts(TtsInput::Usage { link: 0, characters: 1 }),
            52..=54 => play(PlayoutEvent::Started),
            55..=57 => play(PlayoutEvent::Position { ms: u64::from(step.a % 4_000) }),
            58..=59 => play(PlayoutEvent::Drained { ms: u64::from(step.a % 4_000) }),
            60 => {
                let text = self.word('c');
                self.expected.push(text.clone());
                Some(Input::Chat { speaker, text })
            }
            61 => {
                let text = format!("{} {}", self.word('s'), self.word('s'));
                Some(Input::Say { text, interruptible: step.a.is_multiple_of(2) })
            }
            62 if step.a.is_multiple_of(4) => Some(Input::Drain),
            62 if step.a % 4 == 1 => {
                let greeting =
                    step.b.is_multiple_of(2).then(|| format!("{} hello", self.word('g')));
                let settings = Settings { greeting, ..Settings::default() };
                Some(Input::HandOver {
                    settings: Box::new(settings),
                    agent_name: "next".into(),
                    keeps_history: step.b % 4 < 2,
                })
            }
            63 if step.a.is_multiple_of(8) => {
                Some(Input::Close { reason: CloseReason::Terminated })
            }
            63 if step.a % 8 < 3 => Some(Input::SttOver),
            _ => None,
        }
    }

    /// What well-behaved providers would do next, so that schedules get past the first answer.
    fn likely(&mut self, step: Step) -> Option<Input> {
        let current = self.speeches.iter().next_back().filter(|(_, heard)| !heard.over);
        let Some((id, heard)) = current.map(|(id, heard)| (*id, heard)) else {
            let id = self.running?;
            let text = format!("{} ", self.word('t'));
            return Some(Input::Llm { id, event: LlmEvent::Text(text) });
        };
        let position = heard.position_ms + 100;
        Some(match step.a % 5 {
            0 | 1 if heard.audio_ms > 0 => Input::Playout { id, event: PlayoutEvent::Started },
            2 | 3 if heard.audio_ms > position => {
                Input::Playout { id, event: PlayoutEvent::Position { ms: position } }
            }
            _ => Input::Tts { id, event: TtsInput::Audio { ms: 400 } },
        })
    }

    /// What the world itself knows from an input that it gives.
    fn note(&mut self, input: &Input) {
        match input {
            Input::Llm { id, event: LlmEvent::End | LlmEvent::Error(_) }
                if self.running == Some(*id) =>
            {
                self.running = None;
            }
            Input::Tts { id, event } => {
                let Some(heard) = self.speeches.get_mut(id).filter(|heard| !heard.over) else {
                    return;
                };
                match event {
                    TtsInput::Audio { ms } => heard.audio_ms += u64::from(*ms),
                    TtsInput::Alignment(words) if !heard.bundled => {
                        heard.aligned.extend(words.iter().cloned());
                        heard.aligned_ms = words.last().map_or(0, |word| word.end_ms);
                    }
                    TtsInput::End => heard.ended = true,
                    _ => {}
                }
            }
            Input::Playout { id, event } => {
                let current = self.speeches.get_mut(id);
                let Some(heard) = current.filter(|heard| heard.played && !heard.over) else {
                    return;
                };
                heard.estimated |= heard.aligned.is_empty();
                match event {
                    PlayoutEvent::Position { ms } => heard.position_ms = heard.position_ms.max(*ms),
                    PlayoutEvent::Drained { ms } => {
                        heard.position_ms = heard.position_ms.max(*ms);
                        heard.drained = true;
                    }
                    PlayoutEvent::Started => {}
                }
            }
            _ => {}
        }
    }

    pub(super) fn give(&mut self, input: Input) {
        self.note(&input);
        let asks = matches!(input, Input::Chat { .. } | Input::HandOver { .. });
        let now = self.now;
        self.session.handle_input(input, now);
        self.check(asks);
    }

    /// Lets time pass; timers fire when they are due.
    pub(super) fn pass(&mut self, by: Duration) {
        let until = self.now + by;
        while let Some(at) = self.session.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.session.handle_timeout(self.now);
            let again = self.session.poll_timeout();
            assert!(again.is_none_or(|next| next > self.now), "a timer is due again at once");
            self.check(false);
        }
        self.now = until;
    }

    fn check(&mut self, asks: bool) {
        let mut resumed = false;
        while let Some(command) = self.session.poll_command() {
            assert!(!self.closed, "{command:?} after Leave");
            resumed |= matches!(
                command,
                Command::Resume { .. } | Command::Play { .. } | Command::PlayApology { .. }
            );
            self.take(command, asks, resumed);
        }
        self.check_state();
    }

    fn take(&mut self, command: Command, asks: bool, resumed: bool) {
        match command {
            Command::SetState(to) => self.change_state(to, asks, resumed),
            Command::Generate { id, request } => {
                assert_eq!(self.running, None, "one generation at a time");
                assert!(id.0 > self.last_generation, "ids grow");
                assert_eq!(request.messages.last().map(|last| last.role), Some(Role::User));
                let pending = self.speeches.values().find(|heard| !heard.over && !heard.drained);
                assert!(pending.is_none(), "a speech for a turn that is replaced: {pending:?}");
                self.running = Some(id);
                self.last_generation = id.0;
            }
            Command::CancelGeneration { id } => {
                assert_eq!(self.running.take(), Some(id), "cancelled what did not run");
            }
            Command::Speak { id, text } => {
                let newest = self.speeches.keys().next_back().is_none_or(|last| *last <= id);
                assert!(newest, "speaks for an old speech");
                let heard = self.speeches.entry(id).or_default();
                assert!(!heard.over, "speaks for a cancelled speech");
                heard.text.push_str(&text);
            }
            Command::PlayApology { id } => {
                let heard = Heard { open: true, played: true, bundled: true, ..Heard::default() };
                assert!(self.speeches.insert(id, heard).is_none());
            }
            Command::Play { id } | Command::Resume { id, .. } => {
                let heard = self.speeches.get_mut(&id).expect("never spoken");
                if let Command::Resume { from_ms, .. } = command {
                    heard.position_ms = heard.position_ms.max(from_ms);
                }
                assert!(!heard.over && !heard.open, "plays twice, or what was cancelled");
                heard.open = true;
                heard.played = true;
            }
            Command::ClearPlayout { id } => {
                let heard = self.speeches.get_mut(&id).expect("never spoken");
                assert!(!heard.over && heard.open, "clears what does not play");
                heard.open = false;
            }
            Command::FinishSpeech { id } => {
                assert!(!self.speeches[&id].over, "finishes a cancelled speech");
            }
            Command::CancelSpeech { id } => {
                let heard = self.speeches.get_mut(&id).expect("never spoken");
                assert!(!std::mem::replace(&mut heard.over, true), "cancelled twice");
                heard.open = false;
            }
            Command::Transcript(row) => {
                assert!(!self.finals.contains(&row.id), "{row:?} after its final");
                // Interims alone are ever taken back, and only what was shown.
                let withdrawn = row.text.is_empty();
                assert!(!withdrawn || (!row.is_final && self.shown.contains(&row.id)), "{row:?}");
                assert!((0.0..=1.0).contains(&row.confidence));
                let now_ms = self.now.duration_since(self.began).as_millis() as u64;
                assert!(row.start_ms + row.duration_ms <= now_ms, "{row:?} at {now_ms}");
                if withdrawn {
                    self.shown.remove(&row.id);
                } else {
                    self.shown.insert(row.id.clone());
                }
                if row.is_final {
                    self.finals.insert(row.id.clone());
                    match row.kind {
                        SpeakerKind::User => self.user_rows.push(row.text),
                        SpeakerKind::Agent => self.agent_rows.push(row.text),
                    }
                }
            }
            Command::Leave { .. } => {
                self.closed = true;
                assert_eq!(self.shown, self.finals, "a row was left open");
            }
            Command::SetUserState(_)
            | Command::FinalizeStt { .. }
            | Command::CloseStt
            | Command::AskTurnModel { .. }
            | Command::Metric(_)
            | Command::Usage(_) => {}
        }
    }

    /// SPEC §1: from which state to which, and why.
    fn change_state(&mut self, to: AgentState, asks: bool, resumed: bool) {
        use AgentState::{Idle, Listening, Speaking, Thinking};
        let allowed = match (self.state, to) {
            (Idle, Thinking) => asks,
            (Speaking, Thinking) => asks || self.running.is_some(),
            (Listening, Speaking) => resumed,
            (from, to) => from != to,
        };
        assert!(allowed, "{:?} to {to:?}", self.state);
        self.state = to;
    }

    fn check_state(&mut self) {
        for heard in self.speeches.values_mut() {
            heard.over |= heard.drained;
            heard.open &= !heard.over;
        }
        assert_eq!(self.session.state(), self.state);
        if self.closed {
            assert_eq!(self.session.poll_timeout(), None, "a timer after Leave");
            assert_eq!(self.running, None);
            return;
        }
        let playing = self.speeches.values().filter(|heard| heard.open).count();
        assert!(playing <= 1, "two speeches at once");
        match self.state {
            AgentState::Idle => {
                assert_eq!(self.running, None, "idle with a generation");
                assert_eq!(playing, 0, "idle while playing");
            }
            AgentState::Listening => assert_eq!(playing, 0, "plays while the user has the floor"),
            AgentState::Thinking => {}
            AgentState::Speaking => assert_eq!(playing, 1, "speaking without a speech"),
        }
        if self.state != AgentState::Idle {
            let at = self.session.poll_timeout().expect("a state without a timer");
            assert!(at <= self.now + Duration::from_secs(61), "a timer that is absurdly far");
        }
    }

    /// Everything that the history holds as said was heard.
    pub(super) fn check_history(&mut self) {
        for message in self.session.history().iter() {
            if message.role != Role::Assistant {
                continue;
            }
            let first = message.text.split(' ').next().unwrap_or_default();
            let is_it = |heard: &&Heard| heard.text.split_whitespace().next() == Some(first);
            let mut candidates = self.speeches.values().filter(is_it);
            let heard = candidates.any(|heard| {
                let prefix = heard.text.trim_start().starts_with(&message.text);
                let by = heard.position_ms + EXTRAPOLATED_MS;
                let timed = heard.aligned.iter().take_while(|word| word.end_ms <= by);
                let most: usize = timed.map(|word| word.text.len()).sum();
                let whole = heard.ended && (heard.drained || heard.position_ms >= heard.audio_ms);
                let in_time = whole || heard.estimated || message.text.len() <= most;
                prefix && in_time && (heard.position_ms > 0 || heard.audio_ms > 0 || whole)
            });
            assert!(heard, "{:?} was not heard; {:#?}", message.text, self.speeches);
            assert!(self.agent_rows.contains(&message.text), "said without a row");
        }
    }
}
