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

mod parts;
mod script;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use self::parts::{Event, Said, Scheduled, Track};
pub use self::script::Script;
use super::{
    command::{Command, Metric},
    history::join,
    input::{
        GenerationId, Input, ParticipantEvent, PlayoutEvent, SpeakerId, SttInput, TtsInput,
        VadEvent,
    },
    machine::{Session, SessionIds},
    settings::Settings,
    state::AgentState,
};
use crate::{
    llm::{LlmError, LlmEvent, Message},
    stt::{Transcript, Word},
    transcript::segment::{Segment, SpeakerKind},
    tts::{SpeechId, TimedText, TtsError},
};

/// The simulated user.
pub const CALLER: SpeakerId = SpeakerId(1);

const MARKS: [char; 4] = ['.', ',', '?', '!'];
const TICK: Duration = Duration::from_millis(100);
const BUNDLED_APOLOGY: Duration = Duration::from_secs(2);

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

    /// Every command so far, with its time since the call began.
    pub fn log(&self) -> &[(Duration, Command)] {
        &self.log
    }

    pub fn now(&self) -> Duration {
        self.now
    }

    pub fn state(&self) -> AgentState {
        self.session.state()
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// How far the speech that is sounding now has come, in ms; none while the agent is silent.
    pub fn sounding(&self) -> Option<u64> {
        let (_, track) = self.tracks.iter().next_back()?;
        let passed = self.now.saturating_sub(track.since).as_millis() as u64;
        let position = track.position + passed;
        let sounds = track.playing && track.started && !track.gone && position < track.audio_ms;
        sounds.then_some(position)
    }

    /// When turns were committed: when their generations were asked for.
    pub fn turns_committed_at(&self) -> Vec<Duration> {
        self.times(|command| matches!(command, Command::Generate { .. }))
    }

    /// When the last turn was committed.
    pub fn turn_committed_at(&self) -> Option<Duration> {
        self.turns_committed_at().last().copied()
    }

    /// When the commands that `is` picks were given.
    pub fn times(&self, is: impl Fn(&Command) -> bool) -> Vec<Duration> {
        self.log.iter().filter(|(_, command)| is(command)).map(|(at, _)| *at).collect()
    }

    /// The states gone through, with their times.
    pub fn states(&self) -> Vec<(Duration, AgentState)> {
        let states = self.log.iter().filter_map(|(at, command)| match command {
            Command::SetState(state) => Some((*at, *state)),
            _ => None,
        });
        states.collect()
    }

    pub fn metrics(&self) -> Vec<Metric> {
        let metrics = self.log.iter().filter_map(|(_, command)| match command {
            Command::Metric(metric) => Some(*metric),
            _ => None,
        });
        metrics.collect()
    }

    /// The transcript's rows: final segments in order.
    pub fn rows(&self) -> Vec<&Segment> {
        let rows = self.log.iter().filter_map(|(_, command)| match command {
            Command::Transcript(segment) if segment.is_final => Some(segment),
            _ => None,
        });
        rows.collect()
    }

    pub fn user_said(&self) -> Vec<String> {
        self.texts(SpeakerKind::User)
    }

    /// What the agent said by its own transcript.
    pub fn agent_said(&self) -> Vec<String> {
        self.texts(SpeakerKind::Agent)
    }

    /// What the user really heard: the words that were played to their end.
    pub fn heard(&self) -> String {
        let mut heard = String::new();
        for track in self.tracks.values() {
            let words = track.words.iter().filter(|word| word.end_ms <= track.position);
            let words: String = words.map(|word| word.text.as_str()).collect();
            join(&mut heard, &words);
        }
        heard
    }

    /// When each speech became audible for the first time.
    pub fn audible_at(&self) -> &[Duration] {
        &self.audible_at
    }

    /// The conversation as the model is shown it.
    pub fn history(&mut self) -> Arc<[Message]> {
        self.session.history()
    }

    fn texts(&self, kind: SpeakerKind) -> Vec<String> {
        self.rows().iter().filter(|row| row.kind == kind).map(|row| row.text.clone()).collect()
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

    fn audio_arrives(&mut self, id: SpeechId, word: TimedText) {
        let now = self.now;
        let Some(track) = self.tracks.get_mut(&id).filter(|track| !track.gone) else { return };
        track.advance(now);
        let ms = (word.end_ms - word.start_ms) as u32;
        track.audio_ms += u64::from(ms);
        track.words.push(word.clone());
        self.tell(Input::Tts { id, event: TtsInput::Audio { ms } });
        if self.script.tts_alignment {
            self.tell(Input::Tts { id, event: TtsInput::Alignment(vec![word]) });
        }
        self.play_on(id);
    }

    /// Keeps a track going as far as there is audio.
    fn play_on(&mut self, id: SpeechId) {
        let now = self.now;
        let Some(track) = self.tracks.get_mut(&id) else { return };
        if track.gone || !track.playing || track.drained {
            return;
        }
        let first = track.audio_ms > 0 && !std::mem::replace(&mut track.started, true);
        if track.audio_ms == 0 {
            track.started = false;
            return;
        }
        track.advance(now);
        let left = Duration::from_millis(track.audio_ms - track.position);
        let ms = track.position;
        track.epoch += 1;
        let epoch = track.epoch;
        track.drained = left.is_zero() && track.ended;
        let drained = track.drained;
        if first {
            self.audible_at.push(now);
            self.tell_playout(id, PlayoutEvent::Started);
        }
        if drained {
            self.tell_playout(id, PlayoutEvent::Drained { ms });
        } else if !left.is_zero() {
            self.schedule(now + left.min(TICK), Event::Tick { id, epoch });
        }
    }

    fn carry_out(&mut self) {
        while let Some(command) = self.session.poll_command() {
            self.log.push((self.now, command.clone()));
            self.execute(command);
        }
    }

    fn execute(&mut self, command: Command) {
        let now = self.now;
        match command {
            Command::Generate { id, .. } => self.generate(id),
            Command::CancelGeneration { id } => {
                self.cancelled.insert(id);
            }
            Command::Speak { id, text } => self.synthesise(id, &text),
            Command::FinishSpeech { id } => {
                let Some(track) = self.tracks.get(&id) else { return };
                if track.fails_at.is_none() && !track.mute {
                    self.schedule(track.ready_at, Event::SpeechEnd(id));
                }
            }
            Command::CancelSpeech { id } => {
                if let Some(track) = self.tracks.get_mut(&id) {
                    track.advance(now);
                    track.playing = false;
                    track.gone = true;
                }
            }
            Command::Play { id } => {
                let track = self.tracks.entry(id).or_default();
                track.playing = true;
                track.since = now;
                self.play_on(id);
            }
            Command::PlayApology { id } => {
                let audio_ms = BUNDLED_APOLOGY.as_millis() as u64;
                let track =
                    Track { audio_ms, ended: true, playing: true, since: now, ..Track::default() };
                self.tracks.insert(id, track);
                self.play_on(id);
            }
            Command::ClearPlayout { id } => {
                let Some(track) = self.tracks.get_mut(&id) else { return };
                track.advance(now);
                track.playing = false;
                let ms = track.position;
                self.tell_playout(id, PlayoutEvent::Position { ms });
            }
            Command::Resume { id, from_ms } => {
                let Some(track) = self.tracks.get_mut(&id) else { return };
                track.position = from_ms.min(track.audio_ms);
                track.playing = true;
                track.since = now;
                self.play_on(id);
            }
            Command::FinalizeStt { .. } => {
                let at = now + self.script.stt_finalize_delay;
                let closed: Vec<_> = self
                    .said
                    .iter()
                    .enumerate()
                    .map(|(n, said)| (n, said.words.partition_point(|(_, at)| at.end <= now)))
                    .collect();
                for (utterance, words) in closed {
                    self.schedule(at, Event::Final { utterance, words });
                }
            }
            Command::SetState(_)
            | Command::SetUserState(_)
            | Command::Transcript(_)
            | Command::Metric(_)
            | Command::Usage(_)
            | Command::Leave { .. } => {}
        }
    }

    fn generate(&mut self, id: GenerationId) {
        let first = self.now + self.script.llm_first_token;
        if self.script.llm_failures > 0 {
            self.script.llm_failures -= 1;
            let error = LlmError::Unreachable("scripted".into());
            self.schedule(first, Event::Llm(id, LlmEvent::Error(error)));
            return;
        }
        let answer = self.answers.pop_front().unwrap_or_else(|| self.usual_answer.clone());
        let dies_after = self.script.llm_dies_after.take();
        let stalls_after = self.script.llm_stalls_after.take();
        let last = dies_after.or(stalls_after).unwrap_or(usize::MAX);
        let mut at = first;
        for token in answer.split_inclusive(' ').take(last) {
            self.schedule(at, Event::Llm(id, LlmEvent::Text(token.to_owned())));
            at += self.script.llm_per_token;
        }
        if dies_after.is_some() {
            let error = LlmError::Interrupted("scripted".into());
            self.schedule(at, Event::Llm(id, LlmEvent::Error(error)));
        } else if stalls_after.is_none() {
            let usage = LlmEvent::Usage {
                link: 0,
                input_tokens: 10,
                cached_tokens: 0,
                output_tokens: 10,
                estimated: false,
            };
            self.schedule(at, Event::Llm(id, usage));
            self.schedule(at, Event::Llm(id, LlmEvent::End));
        }
    }

    fn synthesise(&mut self, id: SpeechId, text: &str) {
        let first = self.now + self.script.tts_first_audio;
        if !self.tracks.contains_key(&id) {
            let mut track = Track { ready_at: first, ..Track::default() };
            track.mute = self.script.tts_silent;
            if self.script.tts_failures > 0 {
                self.script.tts_failures -= 1;
                track.fails_at = Some(first);
            } else if let Some(after) = self.script.tts_dies_after.take() {
                track.fails_at = Some(first + after);
            }
            let fails_at = track.fails_at;
            self.tracks.insert(id, track);
            if let Some(at) = fails_at {
                self.schedule(at, Event::SpeechError(id));
            }
        }
        let Some(track) = self.tracks.get_mut(&id) else { return };
        let at = track.ready_at.max(self.now);
        track.ready_at = at;
        let mut words = Vec::new();
        for word in text.split_inclusive(' ') {
            let start_ms = track.synthesised;
            let end_ms = start_ms + word.chars().count() as u64 * self.script.tts_ms_per_char;
            track.synthesised = end_ms;
            words.push(TimedText { text: word.to_owned(), start_ms, end_ms });
        }
        if track.mute || track.fails_at.is_some_and(|fails_at| fails_at <= at) {
            return;
        }
        for word in words {
            self.schedule(at, Event::Audio { id, word });
        }
    }
}
