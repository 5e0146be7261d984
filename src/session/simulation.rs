//! A whole call in virtual time: the machine against scripted providers, as a discrete-event
//! simulation. Deterministic, without tasks, sockets or a clock; for tests, `replay` and `eval`.
//!
//! ```
//! use antiphon::session::{settings::Settings, simulation::{Call, ms}};
//!
//! let mut call = Call::new(Settings::default());
//! call.user_says("book a table", ms(0)..ms(700));
//! call.run_until(ms(1_300));
//! assert_eq!(call.turn_committed_at(), Some(ms(1_200)));
//! ```

mod answering;
mod outcome;
mod parts;
mod script;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    ops::Range,
    time::{Duration, Instant},
};

use self::parts::{Event, Said, Scheduled, Track};
pub use self::script::Script;
use super::{
    command::Command,
    input::{
        GenerationId, Input, ParticipantEvent, PlayoutEvent, SpeakerId, SttInput, TtsInput,
        VadEvent,
    },
    machine::{Session, SessionIds},
    settings::Settings,
    state::AgentState,
};
use crate::{
    stt::{Transcript, Word},
    tts::{SpeechId, TtsError},
};

/// The simulated user.
pub const CALLER: SpeakerId = SpeakerId(1);

const MARKS: [char; 4] = ['.', ',', '?', '!'];
const TICK: Duration = Duration::from_millis(100);

pub const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A word and when it is said.
pub type Spoken = (String, Range<Duration>);

/// One simulated call.
#[derive(Debug)]
pub struct Call {
    pub script: Script,
    session: Session,
    began: Instant,
    now: Duration,
    events: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    voices: Vec<Range<Duration>>,
    voice_on: bool,
    said: Vec<Said>,
    answers: VecDeque<String>,
    usual_answer: String,
    cancelled: BTreeSet<GenerationId>,
    tracks: BTreeMap<SpeechId, Track>,
    audible_at: Vec<Duration>,
    log: Vec<(Duration, Command)>,
}

impl Call {
    /// A call that begins now, the user linked and the track live.
    pub fn new(settings: Settings) -> Self {
        let began = crate::clock::now();
        let ids = SessionIds {
            prefix: "call".into(),
            agent_identity: "agent".into(),
            agent_name: "Agent".into(),
        };
        let mut call = Self {
            script: Script::default(),
            session: Session::new(settings, ids, began),
            began,
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            order: 0,
            voices: Vec::new(),
            voice_on: false,
            said: Vec::new(),
            answers: VecDeque::new(),
            usual_answer: "All right.".into(),
            cancelled: BTreeSet::new(),
            tracks: BTreeMap::new(),
            audible_at: Vec::new(),
            log: Vec::new(),
        };
        let joined = ParticipantEvent::Joined { identity: "caller".into(), name: "Caller".into() };
        call.input_at(ms(0), Input::Participant { speaker: CALLER, event: joined });
        call.input_at(ms(0), Input::Stt { speaker: CALLER, event: SttInput::Started });
        call.input_at(ms(0), Input::Ready);
        call
    }

    /// What the model answers from now on to whatever has no answer of its own.
    pub fn answers_with(&mut self, text: &str) {
        text.clone_into(&mut self.usual_answer);
    }

    /// What the model answers, one text a generation; then "All right."
    pub fn answers<const N: usize>(&mut self, texts: [&str; N]) {
        self.answers.extend(texts.map(str::to_owned));
    }

    /// The user says `text`, its words evenly spread over `range`.
    pub fn user_says(&mut self, text: &str, range: Range<Duration>) {
        self.noise(range.clone());
        let words: Vec<&str> = text.split_whitespace().collect();
        let each = range.end.saturating_sub(range.start) / words.len().max(1) as u32;
        let utterance = self.said.len();
        let mut placed = Vec::with_capacity(words.len());
        for (n, word) in words.iter().enumerate() {
            let start = range.start + each * n as u32;
            placed.push(((*word).to_owned(), start..start + each));
            if let Some(delay) = self.script.stt_interim_delay {
                self.schedule(start + each + delay, Event::Interim { utterance, words: n + 1 });
            }
        }
        let words = placed.len();
        self.said.push(Said { words: placed, finalized: 0 });
        let at = range.end + self.script.stt_final_delay;
        self.schedule(at, Event::Final { utterance, words });
    }

    /// Words in recognition's ears alone: what the detector makes of their sound is told apart, by
    /// [`input_at`](Self::input_at). Each stretch lies between two pauses; recognition closes it
    /// `endpointing` after its last word, unless the next one has begun by then, and then tells the
    /// end of a turn.
    pub fn user_utters(&mut self, stretches: &[Vec<Spoken>], endpointing: Duration) {
        let mut utterance: Vec<Spoken> = Vec::new();
        for (n, stretch) in stretches.iter().enumerate() {
            utterance.extend(stretch.iter().cloned());
            let Some(end) = utterance.last().map(|(_, at)| at.end) else { continue };
            let next = stretches.get(n + 1).and_then(|next| next.first());
            if next.is_none_or(|(_, at)| at.start > end + endpointing) {
                self.recognise(std::mem::take(&mut utterance), end + endpointing);
            }
        }
    }

    fn recognise(&mut self, words: Vec<Spoken>, closed_at: Duration) {
        let utterance = self.said.len();
        if let Some(delay) = self.script.stt_interim_delay {
            for (n, (_, at)) in words.iter().enumerate() {
                self.schedule(at.end + delay, Event::Interim { utterance, words: n + 1 });
            }
        }
        let at = closed_at + self.script.stt_finalize_delay;
        self.schedule(at, Event::Final { utterance, words: words.len() });
        let ended = Input::Stt { speaker: CALLER, event: SttInput::EndOfTurn };
        self.schedule(at, Event::Input(ended));
        self.said.push(Said { words, finalized: 0 });
    }

    /// Something that the detector takes for speech, without words.
    pub fn noise(&mut self, range: Range<Duration>) {
        let voice = self.voices.len();
        self.schedule(range.start + self.script.vad_min_speech, Event::VoiceHeard(voice));
        self.schedule(range.end + self.script.vad_min_silence, Event::VoiceOver(voice));
        self.voices.push(range);
    }

    /// Words that the detector misses altogether.
    pub fn user_whispers(&mut self, text: &str, range: Range<Duration>) {
        let voices = self.voices.len();
        self.user_says(text, range);
        // An empty voice is never heard.
        if let Some(voice) = self.voices.get_mut(voices) {
            voice.end = voice.start;
        }
    }

    /// Anything else that happens.
    pub fn input_at(&mut self, at: Duration, input: Input) {
        self.schedule(at, Event::Input(input));
    }

    /// Runs to `until`, everything at that instant included.
    pub fn run_until(&mut self, until: Duration) {
        // Bounded: a machine that spins must not hang its test.
        for _ in 0..1_000_000 {
            let event = self.events.peek().map(|Reverse(next)| next.at);
            let timer = self.session.poll_timeout().map(|at| at.duration_since(self.began));
            let next = match (event, timer) {
                (Some(event), Some(timer)) => event.min(timer),
                (Some(at), None) | (None, Some(at)) => at,
                (None, None) => break,
            };
            if next > until {
                break;
            }
            self.now = self.now.max(next);
            if event == Some(next) {
                if let Some(Reverse(next)) = self.events.pop() {
                    self.happen(next.event);
                }
            } else {
                self.session.handle_timeout(self.began + self.now);
            }
            self.carry_out();
        }
        self.now = self.now.max(until);
    }

    /// Runs until nothing more happens by itself and the agent is idle; at most an hour.
    pub fn run_to_end(&mut self) {
        let limit = self.now + Duration::from_hours(1);
        while self.now < limit && !self.session.is_closed() {
            let idle = self.session.state() == AgentState::Idle;
            if idle && self.events.is_empty() {
                break;
            }
            self.run_until(self.now + TICK);
        }
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.order += 1;
        let at = at.max(self.now);
        self.events.push(Reverse(Scheduled { at, order: self.order, event }));
    }

    fn tell(&mut self, input: Input) {
        self.session.handle_input(input, self.began + self.now);
    }

    fn tell_stt(&mut self, event: SttInput) {
        self.tell(Input::Stt { speaker: CALLER, event });
    }

    fn tell_playout(&mut self, id: SpeechId, event: PlayoutEvent) {
        self.tell(Input::Playout { id, event });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Input(input) => self.tell(input),
            Event::VoiceHeard(voice) => self.voice_heard(voice),
            Event::VoiceOver(voice) => self.voice_over(voice),
            Event::Interim { utterance, words } => {
                if let Some(mut heard) = self.recognised(utterance, words) {
                    // The mark after a word is known once what follows it is.
                    heard.text.truncate(heard.text.trim_end_matches(MARKS).len());
                    self.tell_stt(SttInput::Interim(heard));
                }
            }
            Event::Final { utterance, words } => {
                if let Some(heard) = self.recognised(utterance, words) {
                    self.said[utterance].finalized = words;
                    self.tell_stt(SttInput::Final(heard));
                }
            }
            Event::Llm(id, event) => {
                if !self.cancelled.contains(&id) {
                    self.tell(Input::Llm { id, event });
                }
            }
            Event::Audio { id, word } => self.audio_arrives(id, word),
            Event::SpeechEnd(id) => {
                let Some(track) = self.tracks.get_mut(&id).filter(|track| !track.gone) else {
                    return;
                };
                track.ended = true;
                self.tell(Input::Tts { id, event: TtsInput::End });
                self.play_on(id);
            }
            Event::SpeechError(id) => {
                if self.tracks.get(&id).is_some_and(|track| !track.gone) {
                    let error = TtsError::Interrupted("scripted".into());
                    self.tell(Input::Tts { id, event: TtsInput::Error(error) });
                }
            }
            Event::Tick { id, epoch } => {
                let now = self.now;
                let Some(track) = self.tracks.get_mut(&id) else { return };
                if track.epoch == epoch && track.playing {
                    track.advance(now);
                    let ms = track.position;
                    self.tell_playout(id, PlayoutEvent::Position { ms });
                    self.play_on(id);
                }
            }
        }
    }

    fn voice_heard(&mut self, voice: usize) {
        let Some(range) = self.voices.get(voice).cloned() else { return };
        let lasts = range.end.saturating_sub(range.start) >= self.script.vad_min_speech;
        if lasts && !self.voice_on {
            self.voice_on = true;
            let speech_ms = self.script.vad_min_speech.as_millis() as u32;
            let event = VadEvent::Started { speech_ms };
            self.tell(Input::Vad { speaker: CALLER, event });
        }
    }

    fn voice_over(&mut self, voice: usize) {
        let Some(end) = self.voices.get(voice).map(|range| range.end) else { return };
        let goes_on = self.voices.iter().any(|other| other.start <= self.now && other.end > end);
        if self.voice_on && !goes_on {
            self.voice_on = false;
            let silence_ms = self.script.vad_min_silence.as_millis() as u32;
            self.tell(Input::Vad { speaker: CALLER, event: VadEvent::Ended { silence_ms } });
        }
    }

    /// The first `upto` words of an utterance, without those that are final already.
    fn recognised(&self, utterance: usize, upto: usize) -> Option<Transcript> {
        let said = self.said.get(utterance).filter(|_| !self.script.stt_silent)?;
        let words = said.words.get(said.finalized..upto)?;
        let (first, last) = (words.first()?, words.last()?);
        let text = words.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join(" ");
        let timed = words.iter().filter(|_| self.script.stt_word_times).map(|(text, at)| Word {
            text: text.clone(),
            start_ms: at.start.as_millis() as u64,
            end_ms: at.end.as_millis() as u64,
            confidence: 0.9,
        });
        Some(Transcript {
            text,
            start_ms: first.1.start.as_millis() as u64,
            duration_ms: last.1.end.saturating_sub(first.1.start).as_millis() as u64,
            confidence: 0.9,
            words: timed.collect(),
            language: None,
        })
    }

    fn carry_out(&mut self) {
        while let Some(command) = self.session.poll_command() {
            self.log.push((self.now, command.clone()));
            self.execute(command);
        }
    }
}
