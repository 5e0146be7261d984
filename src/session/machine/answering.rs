//! The model's side: a committed turn, its generation, and what is said when no answer can be had.

use std::time::{Duration, Instant};

use super::{Generation, Session};
use crate::{
    llm::{GenerateRequest, LlmEvent},
    session::{
        command::{Command, Metric, Usage},
        input::GenerationId,
        speech::{MAX_TEXT, SpeechKind, Utterance},
        state::AgentState,
        timers::{Timer, later, ms_between},
        turn::{
            completeness::Score,
            preemption::{Early, MAX_TRIES, WORTH_TRYING},
        },
    },
};

/// What THINKING may take beyond the waits for the model's and the voice's first sign of life.
const SPARE: Duration = Duration::from_secs(5);

impl Session {
    /// The user's turn has ended.
    pub(super) fn commit(&mut self, now: Instant) {
        if let Some(ended) = self.turn.ended {
            self.metric(Metric::EndpointingDelay { ms: ms_between(ended, now) });
        }
        if !self.turn.paused {
            self.pauses.none_made();
        }
        if self.settings.transcribe_only {
            self.turn.take();
            self.go_idle(now);
            return;
        }
        self.think(now);
    }

    /// Asks the model to answer the turn.
    pub(super) fn think(&mut self, now: Instant) {
        self.timers.clear_states();
        self.hold = None;
        self.latency_from = self.turn.ended;
        let text = self.turn.take();
        self.history.push_user(&text);
        self.answered = false;
        self.apologised = false;
        self.set_state(AgentState::Thinking);
        self.timers.set(Timer::LlmText, later(now, self.settings.llm_first_token));
        self.watch_thinking(now);
        match self.early.take() {
            Some(early) if early.answers(&text) => self.adopt(early, now),
            early => {
                self.early = early;
                self.drop_early();
                let id = GenerationId(self.ids.generation());
                self.generation = Some(Generation { id, asked_at: now, first_text: false });
                let messages = self.history.snapshot();
                self.command(Command::Generate { id, request: GenerateRequest { messages } });
            }
        }
        if self.user_speaks() {
            // A typed turn while the user also speaks.
            self.hold(now);
        }
    }

    /// Begins an answer while the end of the turn is still being made sure of.
    pub(super) fn begin_early(&mut self, score: Score, now: Instant) {
        let may = self.settings.preemptive_generation
            && !self.settings.transcribe_only
            && self.ready
            && self.leaving.is_none()
            && self.state == AgentState::Listening
            && self.hold.is_none()
            && score >= WORTH_TRYING;
        if !may {
            return;
        }
        let open = self.linked().and_then(|speaker| speaker.open_text()).unwrap_or_default();
        let words = self.turn.whole(open);
        if words.is_empty() || self.early.as_ref().is_some_and(|early| early.answers(&words)) {
            return;
        }
        self.drop_early();
        if self.turn.tries >= MAX_TRIES {
            return;
        }
        self.turn.tries += 1;
        let id = GenerationId(self.ids.generation());
        let messages = self.history.with_user(&words);
        self.early = Some(Early::new(id, words, now));
        self.command(Command::Generate { id, request: GenerateRequest { messages } });
    }

    /// The user goes on, or says something else: the early answer is not wanted.
    pub(super) fn drop_early(&mut self) {
        if let Some(early) = self.early.take()
            && !early.ended
        {
            self.command(Command::CancelGeneration { id: early.id });
        }
    }

    /// The turn was taken with the words that the early answer is to.
    fn adopt(&mut self, early: Early, now: Instant) {
        let first_text = !early.text.is_empty();
        self.generation = Some(Generation { id: early.id, asked_at: early.asked_at, first_text });
        if first_text {
            self.on_answer_text(early.text, now);
        }
        if early.ended && self.generation.take().is_some() {
            self.timers.clear(&[Timer::LlmText]);
            self.on_answer_end(now);
        }
    }

    fn on_early(&mut self, event: LlmEvent, now: Instant) {
        let Some(early) = &mut self.early else { return };
        match event {
            LlmEvent::Text(text) => {
                let ttft = early.text.is_empty().then(|| ms_between(early.asked_at, now));
                if !early.keep(&text) {
                    self.drop_early();
                } else if let Some(ms) = ttft {
                    self.metric(Metric::Ttft { ms });
                }
            }
            LlmEvent::End if early.text.trim().is_empty() => self.early = None,
            LlmEvent::End => early.ended = true,
            // Asked again once the turn is taken.
            LlmEvent::Error(_) => self.early = None,
            LlmEvent::Usage { .. } | LlmEvent::Working => {}
        }
    }

    pub(super) fn watch_thinking(&mut self, now: Instant) {
        let model = later(now, self.settings.llm_first_token);
        let voice = later(model, self.settings.tts_first_audio);
        self.timers.set(Timer::Thinking, later(voice, SPARE));
    }

    pub(super) fn on_llm(&mut self, id: GenerationId, event: LlmEvent, now: Instant) {
        if let Some(usage) = Usage::of(&event) {
            self.command(Command::Usage(usage));
            return;
        }
        if self.early.as_ref().is_some_and(|early| early.id == id) {
            self.on_early(event, now);
            return;
        }
        let Some(generation) = self.generation.as_mut().filter(|current| current.id == id) else {
            return;
        };
        match event {
            LlmEvent::Text(text) => {
                if !std::mem::replace(&mut generation.first_text, true) {
                    let ms = ms_between(generation.asked_at, now);
                    self.metric(Metric::Ttft { ms });
                }
                self.on_answer_text(text, now);
            }
            LlmEvent::End => {
                self.generation = None;
                self.timers.clear(&[Timer::LlmText]);
                self.on_answer_end(now);
            }
            LlmEvent::Error(_) => {
                self.generation = None;
                self.on_no_answer(now);
            }
            LlmEvent::Working => self.on_tools_working(now),
            LlmEvent::Usage { .. } => {}
        }
    }

    /// The model is not slow, it waits as well: whatever waits for its text waits anew.
    fn on_tools_working(&mut self, now: Instant) {
        if self.timers.get(Timer::LlmText).is_some() {
            self.timers.set(Timer::LlmText, later(now, self.settings.llm_first_token));
        }
        if self.timers.get(Timer::Thinking).is_some() {
            self.watch_thinking(now);
        }
        self.excuse_starving(now);
    }

    /// Sends the model's words on to be spoken as they come.
    fn on_answer_text(&mut self, text: String, now: Instant) {
        let queued = self.queue.iter_mut().find(|next| next.kind == SpeechKind::Answer);
        let (said, awaited) = match (&mut self.speech, queued) {
            (Some(speech), None) if speech.kind == SpeechKind::Answer && !speech.tts_ended => {
                let id = speech.id;
                speech.push_text(&text);
                let said = speech.text_len();
                self.command(Command::Speak { id, text });
                (said, true)
            }
            (_, Some(next)) => {
                // The voice has ended the speech too early: the rest is another.
                next.text.push_str(&text);
                (next.text.len(), true)
            }
            // Nothing that can be said yet.
            _ if text.trim().is_empty() => return,
            (speech, None) => {
                let said = text.len();
                let answer = Utterance {
                    kind: SpeechKind::Answer,
                    text,
                    interruptible: self.settings.interruptible,
                };
                if speech.is_some() {
                    self.queue.push_front(answer);
                } else {
                    self.open(answer, now);
                }
                (said, true)
            }
        };
        if awaited {
            self.timers.clear(&[Timer::LlmText]);
        }
        if said > MAX_TEXT {
            self.cancel_generation();
            self.on_answer_end(now);
        }
    }

    fn on_answer_end(&mut self, now: Instant) {
        self.finish_answer();
        if self.speech.is_some() {
            return;
        }
        if self.answered {
            self.after_speech(true, now);
        } else {
            self.apologise(now);
        }
    }

    /// The model fails: what was sent is said to its end, then an apology.
    pub(super) fn on_no_answer(&mut self, now: Instant) {
        self.timers.clear(&[Timer::LlmText]);
        self.finish_answer();
        self.apologise(now);
    }

    pub(super) fn on_llm_silent(&mut self, now: Instant) {
        if self.cancel_generation() {
            self.on_no_answer(now);
        }
    }

    /// No more text for the answer that is being spoken.
    fn finish_answer(&mut self) {
        if let Some(speech) = &mut self.speech
            && !speech.finished
        {
            speech.finished = true;
            let id = speech.id;
            self.command(Command::FinishSpeech { id });
        }
    }

    pub(super) fn cancel_generation(&mut self) -> bool {
        self.timers.clear(&[Timer::LlmText]);
        let Some(generation) = self.generation.take() else { return false };
        self.command(Command::CancelGeneration { id: generation.id });
        true
    }

    /// Says that an answer cannot be had, once in a turn.
    pub(super) fn apologise(&mut self, now: Instant) {
        let text = self.settings.apology.trim();
        if self.apologised || text.is_empty() || self.leaving.is_some() {
            if self.speech.is_none() {
                self.after_speech(true, now);
            }
            return;
        }
        let apology = Utterance {
            kind: SpeechKind::Apology,
            text: text.to_owned(),
            interruptible: self.settings.interruptible,
        };
        self.apologised = true;
        self.metric(Metric::Apology);
        if self.speech.is_some() {
            let answers = self.queue.iter().take_while(|next| next.kind == SpeechKind::Answer);
            let at = answers.count();
            self.queue.insert(at, apology);
        } else {
            self.open(apology, now);
        }
    }

    /// A net under THINKING: whatever was awaited did not come.
    pub(super) fn on_thinking_too_long(&mut self, now: Instant) {
        if self.state != AgentState::Thinking {
            return;
        }
        if self.hold.is_some() {
            self.watch_thinking(now);
        } else if self.speech.is_some() {
            self.fail_speech(now);
        } else if self.cancel_generation() {
            self.on_no_answer(now);
        } else {
            self.go_idle(now);
        }
    }
}
