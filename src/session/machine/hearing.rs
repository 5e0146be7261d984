//! What the machine hears: participants, the voice activity detector, transcripts, typed text.

use std::time::{Duration, Instant};

use super::Session;
use crate::{
    session::{
        command::{Command, Metric, Usage},
        input::{ParticipantEvent, SpeakerId, SttInput, VadEvent},
        speaker::{Speaker, Voice, bounded},
        state::{AgentState, CloseReason, UserState},
        timers::Timer,
        turn::{completeness, endpointing::Pauses},
    },
    stt::Transcript,
    transcript::segment::Segment,
};

/// Speakers remembered at once; of more, the absent are forgotten first.
const MAX_SPEAKERS: usize = 64;
/// Recognition's report on the end of speech comes within this time; words that come later were
/// said later, though the detector missed them.
pub(super) const STT_LAG: Duration = Duration::from_secs(1);
/// By how much the provider's word times may differ from the detector's.
const TOLERANCE: Duration = Duration::from_millis(400);

/// What a transcript said.
struct Words {
    text: String,
    is_final: bool,
    /// By the provider's word times.
    ended: Option<Instant>,
}

impl Session {
    pub(super) fn on_participant(&mut self, id: SpeakerId, event: ParticipantEvent, now: Instant) {
        match event {
            ParticipantEvent::Joined { identity, name } => {
                if let Some(speaker) = self.speaker_or_new(id, now) {
                    speaker.identity = identity;
                    speaker.name = name;
                    speaker.present = true;
                    if self.linked.is_none() {
                        self.linked = Some(id);
                        if self.state == AgentState::Idle {
                            self.go_idle(now);
                        }
                    }
                }
            }
            ParticipantEvent::Left => self.on_left(id, now),
        }
    }

    fn on_left(&mut self, id: SpeakerId, now: Instant) {
        let is_linked = self.linked == Some(id);
        let ends = is_linked && self.settings.close_on_participant_left;
        let Some(speaker) = self.speaker_mut(id) else { return };
        speaker.present = false;
        speaker.voice = Voice::default();
        if ends {
            self.linked = None;
            self.set_user_state(UserState::Listening);
            // The last words before a hang-up are the easiest to lose.
            self.leave(CloseReason::ParticipantLeft, now);
            return;
        }
        let last = speaker.promote(now);
        self.command_row(last);
        if !is_linked {
            return;
        }
        self.linked = None;
        self.turn.take();
        self.pauses = Pauses::default();
        self.set_user_state(UserState::Listening);
        self.cut(now);
        self.linked = self.speakers.iter().find(|other| other.present).map(|other| other.id);
        self.go_idle(now);
    }

    pub(super) fn on_vad(&mut self, id: SpeakerId, event: VadEvent, now: Instant) {
        let is_linked = self.linked == Some(id);
        let Some(speaker) = self.speaker_mut(id) else { return };
        match event {
            VadEvent::Started { speech_ms } => {
                if speaker.voice.is_heard() {
                    return;
                }
                speaker.voice.starts(speech_ms, now);
                speaker.new_speech();
                if is_linked {
                    self.speech_begins(now);
                }
            }
            VadEvent::Faint => speaker.voice.faint = true,
            VadEvent::Ended { silence_ms } => {
                if !speaker.voice.speaking {
                    return;
                }
                let counted = !speaker.voice.discounted;
                let end = speaker.voice.ends(silence_ms, now);
                if is_linked {
                    self.speech_ends(end, counted, now);
                }
            }
        }
    }

    fn speech_begins(&mut self, now: Instant) {
        self.set_user_state(UserState::Speaking);
        self.learn_pause();
        self.drop_early();
        self.prompted = 0;
        self.turn.speech_begins();
        if self.leaving.is_some() {
            return;
        }
        match (self.state, self.hold) {
            (AgentState::Idle, _) => self.listen(now),
            (AgentState::Listening, None) => self.endpoint(now),
            (AgentState::Thinking, None) => self.hold(now),
            (AgentState::Listening | AgentState::Thinking, Some(_)) => self.wait_for_words(now),
            (AgentState::Speaking, _) => self.watch_interruption(now),
        }
    }

    /// The user goes on in a turn: how long was the pause?
    fn learn_pause(&mut self) {
        let goes_on = self.state == AgentState::Listening && self.hold.is_none();
        let began = self.linked().and_then(|speaker| speaker.voice.began);
        if goes_on
            && !self.has_no_words()
            && let (Some(ended), Some(began)) = (self.turn.ended, began)
        {
            self.pauses.learn(began.saturating_duration_since(ended));
            self.turn.paused = true;
        }
    }

    fn speech_ends(&mut self, end: Instant, counted: bool, now: Instant) {
        self.set_user_state(UserState::Listening);
        self.timers.clear(&[Timer::MinInterruption]);
        if counted {
            self.turn.ended = Some(end);
            self.turn.detector_ended = true;
        }
        if self.leaving.is_some() {
            return;
        }
        self.ask_for_final();
        let gives_interims = self.linked().is_some_and(|speaker| speaker.gives_interims);
        match (self.state, self.hold) {
            (AgentState::Idle, _) => self.watch_away(now),
            (AgentState::Listening, None) => {
                let mute = self.linked().is_some_and(|speaker| speaker.stt_down);
                if mute && self.has_no_words() && self.spoke_long_enough(now) {
                    self.no_transcript(now);
                } else {
                    self.endpoint(now);
                }
            }
            (AgentState::Listening, Some(hold)) => {
                let began = self.linked().and_then(|speaker| speaker.voice.began);
                let caused_it = began.is_some_and(|began| began <= hold.since);
                let noise = !self.turn.has_words && !self.spoke_long_enough(now);
                if (caused_it && noise) || self.only_listens() {
                    // The detector's hangover made a short noise look long; or the user agreed.
                    self.release(now);
                } else if !gives_interims {
                    self.wait_for_words(now);
                }
            }
            (AgentState::Thinking, Some(hold)) => {
                let until = hold.wait_for_tail(&self.settings, gives_interims, now);
                self.timers.set(Timer::FalseInterruption, until);
            }
            (AgentState::Thinking, None) | (AgentState::Speaking, _) => {}
        }
    }

    /// The turn model has heard the end of speech.
    pub(super) fn on_turn_end(&mut self, id: SpeakerId, probability: f32, now: Instant) {
        if self.linked == Some(id) && self.turn.awaits_sound {
            self.turn.awaits_sound = false;
            self.turn.sound = Some(completeness::sound(probability));
            if self.leaving.is_none() {
                self.endpoint(now);
            }
        }
    }

    fn spoke_long_enough(&self, now: Instant) -> bool {
        self.linked()
            .is_some_and(|speaker| speaker.voice.lasted(now) >= self.settings.min_interruption)
    }

    pub(super) fn has_no_words(&self) -> bool {
        self.turn.text.is_empty()
            && self.linked().is_none_or(|speaker| speaker.open_text().is_none())
    }

    /// At the end of speech recognition need not find out by itself that the user is silent.
    pub(super) fn ask_for_final(&mut self) {
        let Some(speaker) = self.linked() else { return };
        let awaited = speaker.open_text().is_some()
            || (!self.turn.has_words
                && (self.hold.is_some() || self.state == AgentState::Listening));
        if awaited && !self.turn.finalize_sent {
            let speaker = speaker.id;
            self.turn.finalize_sent = true;
            self.command(Command::FinalizeStt { speaker });
        }
    }

    pub(super) fn on_stt(&mut self, id: SpeakerId, event: SttInput, now: Instant) {
        match event {
            SttInput::Interim(heard) => self.on_transcript(id, &heard, false, now),
            SttInput::Final(heard) => self.on_transcript(id, &heard, true, now),
            SttInput::Usage { link, audio_ms } => {
                self.command(Command::Usage(Usage::Stt { link, audio_ms }));
            }
            // A hint: the detector tells when speech begins.
            SttInput::SpeechStarted => {}
            SttInput::EndOfTurn if self.linked != Some(id) || self.leaving.is_some() => {}
            // The detector is slower to believe in the end: it may be right.
            SttInput::EndOfTurn if self.user_speaks() => self.begin_early_by_words(now),
            SttInput::EndOfTurn => {
                self.turn.told_end = true;
                self.endpoint(now);
            }
            SttInput::Started => {
                if let Some(speaker) = self.speaker_or_new(id, now) {
                    speaker.stream_begins(now);
                }
            }
            SttInput::Lost => {
                self.set_stt_down(id, true);
                self.close_open_row(id, now);
            }
            SttInput::Restored => self.set_stt_down(id, false),
            SttInput::Failed(_) => {
                self.set_stt_down(id, true);
                self.close_open_row(id, now);
                let listens = self.state == AgentState::Listening && self.hold.is_none();
                if listens && self.linked == Some(id) && self.leaving.is_none() {
                    self.end_listening(now);
                }
            }
        }
    }

    /// Recognition may never come back to what it told of somebody whose turns nobody takes.
    fn close_open_row(&mut self, id: SpeakerId, now: Instant) {
        if self.linked == Some(id) {
            return;
        }
        let row = self.speaker_mut(id).and_then(|speaker| speaker.promote(now));
        self.command_row(row);
    }

    fn set_stt_down(&mut self, id: SpeakerId, down: bool) {
        if let Some(speaker) = self.speaker_mut(id) {
            speaker.stt_down = down;
        }
    }

    fn on_transcript(&mut self, id: SpeakerId, heard: &Transcript, is_final: bool, now: Instant) {
        if self.speaker_or_new(id, now).is_none() {
            return;
        }
        let Some(speaker) = self.speakers.iter_mut().find(|speaker| speaker.id == id) else {
            return;
        };
        speaker.stt_down = false;
        if heard.text.trim().is_empty() {
            let row = speaker.withdraw();
            self.on_withdrawn(id, row, now);
            return;
        }
        let ended = speaker.words_end(heard, now);
        let segment = if is_final {
            speaker.finalize(heard, &mut self.ids, now)
        } else {
            speaker.interim(heard, &mut self.ids, now)
        };
        let Some(segment) = segment else {
            if is_final {
                // All of it had come out: what an interim added to that was nothing.
                let row = speaker.withdraw();
                self.on_withdrawn(id, row, now);
            }
            return;
        };
        if self.linked != Some(id) {
            self.command(Command::Transcript(segment));
            return;
        }
        let words = Words {
            text: if is_final { segment.text.clone() } else { String::new() },
            is_final,
            ended,
        };
        self.command(Command::Transcript(segment));
        self.on_words(&words, now);
    }

    /// Recognition has thought better of its last words: there were none.
    fn on_withdrawn(&mut self, id: SpeakerId, row: Option<Segment>, now: Instant) {
        let Some(row) = row else { return };
        self.command(Command::Transcript(row));
        if self.linked != Some(id) {
            return;
        }
        self.turn.has_words = self.turn.has_finals;
        self.turn.finalize_sent = false;
        self.drop_early();
        if self.leaving.is_none() {
            self.endpoint(now);
        }
    }

    /// The linked user's words.
    fn on_words(&mut self, words: &Words, now: Instant) {
        if !self.user_speaks() {
            self.turn.ended = Some(self.end_of(words, now));
        }
        self.turn.last_words = Some(now);
        self.turn.has_words = true;
        if self.user_state == UserState::Away {
            self.set_user_state(UserState::Listening);
        }
        if words.is_final {
            self.turn.add(&words.text);
            self.turn.has_finals = true;
            self.turn.finalize_sent = false;
        }
        if self.leaving.is_some() {
            self.turn.take();
            return;
        }
        match (self.state, self.hold) {
            (AgentState::Idle, _) => self.listen(now),
            (AgentState::Listening, None) => {
                if self.turn.detector_ended && !words.is_final {
                    self.ask_for_final();
                }
                self.endpoint(now);
            }
            (AgentState::Listening, Some(_)) if self.only_listens() => {
                if !self.user_speaks() {
                    self.release(now);
                }
            }
            (AgentState::Listening, Some(_)) | (AgentState::Thinking, _) => self.confirm(now),
            (AgentState::Speaking, _) => {
                if self.enough_words_to_interrupt() || self.words_were_waited_for(now) {
                    self.interrupt(now);
                }
            }
        }
    }

    /// The end of speech as it looks after words that the detector does not (or no longer) hear.
    fn end_of(&self, words: &Words, now: Instant) -> Instant {
        // A turn that was just committed has forgotten its end; the detector has not.
        let detected = self.linked().and_then(|speaker| speaker.voice.ended);
        let detected = detected.filter(|at| now.saturating_duration_since(*at) <= STT_LAG);
        let by_detector = self.turn.detector_ended || detected.is_some();
        match (self.turn.ended.or(detected), words.ended) {
            (Some(known), Some(ended)) if by_detector => {
                if ended > known + TOLERANCE {
                    ended
                } else {
                    known
                }
            }
            (Some(known), None) if by_detector => {
                if now.saturating_duration_since(known) > STT_LAG { now } else { known }
            }
            (Some(known), Some(ended)) => ended.max(known),
            (None, Some(ended)) => ended,
            // A final without new words tells nothing about when they were said.
            (Some(known), None) if words.is_final => known,
            (_, None) => now,
        }
    }

    pub(super) fn on_chat(&mut self, id: SpeakerId, text: &str, now: Instant) {
        let text = bounded(text.trim());
        if text.is_empty() || self.speaker_or_new(id, now).is_none() {
            return;
        }
        let Some(speaker) = self.speakers.iter().find(|speaker| speaker.id == id) else { return };
        let row = speaker.typed(text, &mut self.ids, now);
        self.command(Command::Transcript(row));
        if self.user_state == UserState::Away {
            self.set_user_state(UserState::Listening);
        }
        if self.leaving.is_some() || self.settings.transcribe_only {
            return;
        }
        self.turn.add(text);
        self.turn.typed = true;
        let speech = self.speech.as_ref();
        if self.state == AgentState::Speaking && speech.is_some_and(|speech| !speech.interruptible)
        {
            // Answered once that has been said.
            return;
        }
        if self.state == AgentState::Speaking {
            self.metric(Metric::Interruption);
        }
        self.cut(now);
        self.think(now);
        self.latency_from = None;
    }

    /// The speaker of an event, remembered from now on if new.
    fn speaker_or_new(&mut self, id: SpeakerId, now: Instant) -> Option<&mut Speaker> {
        if let Some(at) = self.speakers.iter().position(|speaker| speaker.id == id) {
            return self.speakers.get_mut(at);
        }
        if self.speakers.len() >= MAX_SPEAKERS {
            let absent = self.speakers.iter().position(|speaker| !speaker.present)?;
            let last = self.speakers.remove(absent).promote(now);
            self.command_row(last);
        }
        let identity = format!("speaker-{}", id.0);
        self.speakers.push(Speaker::new(id, identity.clone(), identity, false));
        self.speakers.last_mut()
    }
}
