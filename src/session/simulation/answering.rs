//! What the machine asks for, carried out: the model's answers, their speech, and the track.

use std::{ops::Range, time::Duration};

use super::{
    Call, TICK,
    parts::{Event, Track},
};
use crate::{
    llm::{LlmError, LlmEvent},
    session::{
        command::Command,
        input::{GenerationId, Input, PlayoutEvent, TtsInput},
    },
    tts::{SpeechId, TimedText},
};

const BUNDLED_APOLOGY: Duration = Duration::from_secs(2);

impl Call {
    pub(super) fn execute(&mut self, command: Command) {
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
                self.tell_finals();
            }
            Command::CloseStt => {
                let at =
                    if self.tell_finals() { now + self.script.stt_finalize_delay } else { now };
                self.schedule(at, Event::Input(Input::SttOver));
            }
            Command::SetState(_)
            | Command::SetUserState(_)
            | Command::Transcript(_)
            | Command::Metric(_)
            | Command::Usage(_)
            | Command::AskTurnModel { .. }
            | Command::Leave { .. } => {}
        }
    }

    /// Finals of what was said before now; whether there is anything that is not final yet.
    fn tell_finals(&mut self) -> bool {
        let at = self.now + self.script.stt_finalize_delay;
        let before = |words: &[(String, Range<Duration>)]| {
            words.partition_point(|(_, at)| at.end <= self.now)
        };
        let said = self.said.iter().enumerate();
        let closed: Vec<_> = said.map(|(n, said)| (n, before(&said.words))).collect();
        let pending = closed.iter().any(|(n, words)| *words > self.said[*n].finalized);
        for (utterance, words) in closed {
            self.schedule(at, Event::Final { utterance, words });
        }
        pending
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
        let calls = self.script.llm_calls.take();
        for (nth, token) in answer.split_inclusive(' ').take(last).enumerate() {
            if let Some((_, takes)) = calls.filter(|(before, _)| *before == nth) {
                for tick in 0..takes.as_secs() {
                    let tick = Duration::from_secs(tick);
                    self.schedule(at + tick, Event::Llm(id, LlmEvent::Working));
                }
                at += takes;
            }
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

    pub(super) fn audio_arrives(&mut self, id: SpeechId, word: TimedText) {
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
    pub(super) fn play_on(&mut self, id: SpeechId) {
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
}
