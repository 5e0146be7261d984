//! The voice's side: speeches opened, played, held, resumed, cut and failed.

use std::time::{Duration, Instant};

use super::Session;
use crate::{
    session::{
        command::{Command, Metric, Usage},
        input::{PlayoutEvent, TtsInput},
        speaker::bounded,
        speech::{Flow, Speech, SpeechKind, Utterance},
        state::AgentState,
        timers::{Timer, later, ms_between},
        turn::interruption::{self, Hold},
    },
    transcript::segment::{Segment, SpeakerKind},
    tts::SpeechId,
};

/// Playout that does not progress for this long has failed: the user must not wait for longer.
const STALL: Duration = Duration::from_secs(3);
/// Playout is reported about this often, in ms: the last bit may be played and not told.
const REPORT_MS: u64 = 100;
/// What the application asked to be said and is not said yet; more is refused.
const MAX_QUEUED: usize = 16;

const SPEECH_TIMERS: [Timer; 4] =
    [Timer::TtsFirstAudio, Timer::Playout, Timer::MaxSpeak, Timer::MinInterruption];

impl Session {
    pub(super) fn on_say(&mut self, text: &str, interruptible: bool, now: Instant) {
        let text = text.trim();
        let refused = text.is_empty()
            || self.leaving.is_some()
            || self.settings.transcribe_only
            || self.queue.len() >= MAX_QUEUED;
        if refused {
            return;
        }
        let text = bounded(text).to_owned();
        self.queue.push_back(Utterance { kind: SpeechKind::Say, text, interruptible });
        if self.state == AgentState::Idle {
            self.apologised = false;
            self.go_idle(now);
        }
    }

    /// Sends a speech to be synthesised, and to the track unless the agent is held.
    pub(super) fn open(&mut self, utterance: Utterance, now: Instant) {
        let Utterance { kind, text, interruptible } = utterance;
        let id = SpeechId(self.ids.speech());
        let mut speech = Speech::new(id, kind, interruptible, now);
        let is_bundled = kind == SpeechKind::BundledApology;
        let goes_on = kind == SpeechKind::Answer && self.generation.is_some();
        speech.tts_ended = is_bundled;
        speech.finished = !goes_on;
        speech.push_text(&text);
        self.answered |= kind == SpeechKind::Answer;
        self.speech = Some(speech);
        if !is_bundled {
            self.command(Command::Speak { id, text });
            self.timers.set(Timer::TtsFirstAudio, later(now, self.settings.tts_first_audio));
        }
        if self.hold.is_none() {
            self.play(now);
        }
        if !is_bundled && !goes_on {
            self.command(Command::FinishSpeech { id });
        }
        if self.state == AgentState::Idle {
            self.timers.clear(&[Timer::UserAway]);
            self.set_state(AgentState::Speaking);
        }
        self.watch_interruption(now);
    }

    /// Lets the speech be heard: from its beginning, or from where it was held.
    fn play(&mut self, now: Instant) {
        let Some(speech) = &mut self.speech else { return };
        let id = speech.id;
        let from_ms = speech.position(now);
        let was = speech.flow;
        let is_bundled = speech.kind == SpeechKind::BundledApology;
        let has_audio = is_bundled || speech.audio_ms > 0;
        let started = speech.started_at.is_some();
        speech.resumed(now);
        if has_audio {
            self.timers.set(Timer::Playout, later(now, STALL));
        }
        if started {
            let left = self.settings.max_speak.saturating_sub(Duration::from_millis(from_ms));
            self.timers.set(Timer::MaxSpeak, later(now, left));
        }
        self.command(match was {
            Flow::Closed if is_bundled => Command::PlayApology { id },
            Flow::Closed => Command::Play { id },
            Flow::Open | Flow::Cleared => Command::Resume { id, from_ms },
        });
    }

    pub(super) fn on_tts(&mut self, id: SpeechId, event: TtsInput, now: Instant) {
        if let TtsInput::Usage { link, characters } = event {
            self.command(Command::Usage(Usage::Tts { link, characters }));
            return;
        }
        let held = self.hold.is_some();
        let Some(speech) = self.speech.as_mut().filter(|speech| speech.id == id) else { return };
        if speech.kind == SpeechKind::BundledApology {
            return;
        }
        match event {
            TtsInput::Audio { ms } => {
                let is_first = speech.audio_ms == 0 && ms > 0;
                speech.audio_ms = speech.audio_ms.saturating_add(u64::from(ms));
                if ms > 0 && !held {
                    self.timers.set(Timer::Playout, later(now, STALL));
                }
                if is_first {
                    let ms = ms_between(speech.opened_at, now);
                    self.timers.clear(&[Timer::TtsFirstAudio]);
                    self.metric(Metric::Ttfb { ms });
                }
            }
            TtsInput::Alignment(words) => speech.align(words),
            TtsInput::End => {
                speech.tts_ended = true;
                if speech.audio_ms == 0 {
                    self.fail_speech(now);
                }
            }
            TtsInput::Error(_) => self.fail_speech(now),
            TtsInput::Usage { .. } => {}
        }
    }

    pub(super) fn on_playout(&mut self, id: SpeechId, event: PlayoutEvent, now: Instant) {
        let held = self.hold.is_some();
        let Some(speech) = self.speech.as_mut().filter(|speech| speech.id == id) else { return };
        if speech.flow == Flow::Closed {
            return;
        }
        match event {
            PlayoutEvent::Started => {
                if speech.started_at.is_some() {
                    return;
                }
                speech.started(now);
                self.first_heard_at.get_or_insert(now);
                let is_answer = speech.kind == SpeechKind::Answer;
                if is_answer && let Some(ended) = self.latency_from.take() {
                    self.metric(Metric::ResponseLatency { ms: ms_between(ended, now) });
                }
                if !held {
                    self.timers.set(Timer::MaxSpeak, later(now, self.settings.max_speak));
                    self.timers.set(Timer::Playout, later(now, STALL));
                    self.start_speaking(now);
                }
            }
            PlayoutEvent::Position { ms } => {
                if speech.told_position(ms, now) && !held {
                    self.timers.set(Timer::Playout, later(now, STALL));
                }
                self.show_heard(now);
            }
            PlayoutEvent::Drained { ms } => self.finish_speech(ms, now),
        }
    }

    /// The answer is being heard.
    fn start_speaking(&mut self, now: Instant) {
        self.timers.clear(&[Timer::Thinking]);
        self.set_state(AgentState::Speaking);
        self.watch_interruption(now);
    }

    /// The speech is over: all of it was heard, unless playout ended before synthesis.
    fn finish_speech(&mut self, position_ms: u64, now: Instant) {
        let Some(mut speech) = self.speech.take() else { return };
        self.timers.clear(&SPEECH_TIMERS);
        speech.cleared(now);
        speech.told_position(position_ms, now);
        let interruptible = speech.interruptible;
        if speech.finished && speech.tts_ended {
            let whole = speech.whole().to_owned();
            self.record(speech, whole, now);
        } else {
            self.command(Command::CancelSpeech { id: speech.id });
            let heard = speech.heard(now);
            self.record(speech, heard, now);
        }
        self.after_speech(interruptible, now);
    }

    /// What comes after a speech, or instead of one.
    pub(super) fn after_speech(&mut self, interruptible: bool, now: Instant) {
        if self.leaving.is_none()
            && self.queue.front().is_some_and(|next| next.kind != SpeechKind::Say)
            && let Some(next) = self.queue.pop_front()
        {
            self.open(next, now);
        } else if self.generation.is_some() {
            // The voice was faster than the model: more is to come.
            if self.state == AgentState::Speaking {
                self.set_state(AgentState::Thinking);
                self.watch_thinking(now);
            }
            self.timers.set(Timer::LlmText, later(now, self.settings.llm_first_token));
        } else if self.hold.is_some() && self.state == AgentState::Listening {
            // Nothing is left to resume.
            self.hold = None;
            self.timers.clear_states();
            self.endpoint(now);
        } else {
            let text = &self.turn.text;
            let open = self.linked().is_some_and(|speaker| speaker.open_text().is_some());
            let asks = interruption::asks_for_answer(text, self.turn.ended, interruptible, now);
            if !asks && !open && !self.turn.typed {
                self.turn.carry();
            }
            self.go_idle(now);
        }
    }

    /// The user's speech has lasted: the agent falls silent.
    pub(super) fn interrupt(&mut self, now: Instant) {
        let interruptible = self.speech.as_ref().is_some_and(|speech| speech.interruptible);
        if self.state != AgentState::Speaking || !interruptible || self.leaving.is_some() {
            return;
        }
        self.hold(now);
        if self.turn.has_words {
            self.confirm(now);
        }
    }

    /// Holds the agent until it is known whether the user means to speak.
    pub(super) fn hold(&mut self, now: Instant) {
        self.timers.clear(&[Timer::MinInterruption, Timer::Playout, Timer::MaxSpeak]);
        if let Some(speech) = &mut self.speech
            && speech.flow == Flow::Open
        {
            speech.cleared(now);
            let id = speech.id;
            self.command(Command::ClearPlayout { id });
        }
        self.hold = Some(Hold { since: now });
        if self.state == AgentState::Speaking {
            self.set_state(AgentState::Listening);
        }
        self.wait_for_words(now);
    }

    pub(super) fn wait_for_words(&mut self, now: Instant) {
        let gives_interims = self.linked().is_some_and(|speaker| speaker.gives_interims);
        if let Some(hold) = self.hold {
            let until = hold.wait(&self.settings, gives_interims, now);
            self.timers.set(Timer::FalseInterruption, until);
        }
    }

    /// No words came in time.
    pub(super) fn on_hold_over(&mut self, now: Instant) {
        let Some(hold) = self.hold else { return };
        let gives_interims = self.linked().is_some_and(|speaker| speaker.gives_interims);
        if hold.may_extend(self.user_speaks(), gives_interims, now) {
            self.wait_for_words(now);
        } else {
            self.release(now);
        }
    }

    /// It was noise: the agent goes on.
    pub(super) fn release(&mut self, now: Instant) {
        self.hold = None;
        self.timers.clear(&[Timer::FalseInterruption]);
        if let Some(speaker) = self.linked_mut() {
            speaker.voice.discounted = speaker.voice.speaking;
        }
        if self.state == AgentState::Listening {
            self.metric(Metric::FalseInterruption);
        }
        let started = self.speech.as_ref().is_some_and(|speech| speech.started_at.is_some());
        if self.speech.is_none() {
            if self.generation.is_none() {
                self.after_speech(true, now);
                return;
            }
        } else {
            self.play(now);
        }
        let speaking = started || (self.speech.is_some() && self.state == AgentState::Listening);
        if speaking {
            self.start_speaking(now);
        } else {
            self.set_state(AgentState::Thinking);
            self.watch_thinking(now);
        }
    }

    /// The user means to speak: nothing more of the answer is wanted.
    pub(super) fn confirm(&mut self, now: Instant) {
        if self.state == AgentState::Listening {
            self.metric(Metric::Interruption);
        }
        self.hold = None;
        self.cut(now);
        if let Some(said) = self.history.reopen_user() {
            self.turn.reopen(said);
            let began = self.linked().and_then(|speaker| speaker.voice.began);
            if let (Some(ended), Some(began)) = (self.latency_from, began) {
                self.pauses.learn(began.saturating_duration_since(ended));
            }
            self.turn.paused = true;
        }
        self.timers.clear_states();
        self.listen(now);
    }

    /// Stops everything that the agent says or is about to; what was heard is kept.
    pub(super) fn cut(&mut self, now: Instant) {
        self.drop_early();
        self.timers.clear(&SPEECH_TIMERS);
        self.queue.retain(|next| next.kind == SpeechKind::Say);
        let speech = self.speech.take();
        if let Some(speech) = &speech
            && speech.flow == Flow::Open
        {
            self.command(Command::ClearPlayout { id: speech.id });
        }
        self.cancel_generation();
        if let Some(speech) = speech {
            if speech.kind != SpeechKind::BundledApology || speech.flow != Flow::Closed {
                self.command(Command::CancelSpeech { id: speech.id });
            }
            let heard = speech.heard(now);
            self.record(speech, heard, now);
        }
    }

    /// Synthesis or playout failed: what was heard is kept, then the apology that needs neither
    /// network nor provider is played.
    pub(super) fn fail_speech(&mut self, now: Instant) {
        let Some(speech) = &self.speech else { return };
        let interruptible = speech.interruptible;
        let was_unheard_apology = speech.kind == SpeechKind::Apology && speech.position(now) == 0;
        let is_last_resort = matches!(speech.kind, SpeechKind::BundledApology);
        self.cut(now);
        let enough = is_last_resort || (self.apologised && !was_unheard_apology);
        if enough || self.settings.apology.trim().is_empty() || self.leaving.is_some() {
            self.after_speech(interruptible, now);
            return;
        }
        if !std::mem::replace(&mut self.apologised, true) {
            self.metric(Metric::Apology);
        }
        let apology = Utterance {
            kind: SpeechKind::BundledApology,
            text: String::new(),
            interruptible: self.settings.interruptible,
        };
        self.open(apology, now);
    }

    /// The agent has had its turn.
    pub(super) fn on_spoken_enough(&mut self, now: Instant) {
        let interruptible = self.speech.as_ref().is_none_or(|speech| speech.interruptible);
        self.cut(now);
        self.after_speech(interruptible, now);
    }

    /// Playout has not progressed for too long.
    pub(super) fn on_playout_stalled(&mut self, now: Instant) {
        let Some(speech) = self.speech.as_mut().filter(|_| self.hold.is_none()) else { return };
        speech.stands_still();
        let id = speech.id;
        let position = speech.position(now);
        let all_played = speech.audio_ms > 0 && position >= speech.audio_ms;
        let starves = starves(speech, now);
        if all_played && speech.finished && speech.tts_ended {
            // Heard to its end, though nobody said so.
            self.command(Command::CancelSpeech { id });
            self.finish_speech(position, now);
        } else if starves && speech.kind == SpeechKind::Answer && self.cancel_generation() {
            // The model has stalled in the middle of its answer.
            self.timers.set(Timer::Playout, later(now, STALL));
            self.on_no_answer(now);
        } else {
            self.fail_speech(now);
        }
    }

    /// All that there is of the answer has been heard, and more is to come late.
    pub(super) fn excuse_starving(&mut self, now: Instant) {
        let answers = self.speech.as_ref().filter(|speech| speech.kind == SpeechKind::Answer);
        if answers.is_some_and(|speech| !speech.finished && starves(speech, now))
            && self.timers.get(Timer::Playout).is_some()
        {
            self.timers.set(Timer::Playout, later(now, STALL));
        }
    }

    /// Shows the agent's words as they are heard.
    fn show_heard(&mut self, now: Instant) {
        let Some(speech) = &mut self.speech else { return };
        let Some(text) = speech.newly_heard(now) else { return };
        let id = speech.row.get_or_insert_with(|| self.ids.agent_row()).clone();
        let started_at = speech.started_at;
        let duration_ms = speech.position(now);
        let segment = self.agent_segment(id, text, started_at, duration_ms, now, false);
        self.command_row(Some(segment));
    }

    /// Keeps what was heard of a speech: in the history and as a row.
    fn record(&mut self, mut speech: Speech, text: String, now: Instant) {
        if text.is_empty() {
            return;
        }
        let id = speech.row.take().unwrap_or_else(|| self.ids.agent_row());
        let duration_ms = speech.position(now);
        let segment =
            self.agent_segment(id, text.clone(), speech.started_at, duration_ms, now, true);
        self.command_row(Some(segment));
        self.history.push_heard(text);
    }

    fn agent_segment(
        &self,
        id: String,
        text: String,
        started_at: Option<Instant>,
        duration_ms: u64,
        now: Instant,
        is_final: bool,
    ) -> Segment {
        let now_ms = self.ids.ms(now);
        let start_ms = started_at.map_or(now_ms, |at| self.ids.ms(at));
        Segment {
            id,
            kind: SpeakerKind::Agent,
            speaker_id: self.agent_identity.clone(),
            speaker_name: self.agent_name.clone(),
            text,
            start_ms,
            // Held speech takes longer than its audio; the row spans what was heard.
            duration_ms: duration_ms.min(now_ms.saturating_sub(start_ms)),
            confidence: 1.0,
            is_final,
        }
    }

    pub(super) fn command_row(&mut self, segment: Option<Segment>) {
        if let Some(segment) = segment {
            self.command(Command::Transcript(segment));
        }
    }
}

/// Whether there is no more audio to be heard, as far as playout has told.
fn starves(speech: &Speech, now: Instant) -> bool {
    speech.audio_ms > 0 && speech.position(now) + REPORT_MS >= speech.audio_ms
}
