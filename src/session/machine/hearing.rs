//! What the machine hears: participants, the voice activity detector, transcripts, typed text.

use std::time::{Duration, Instant};

use super::Session;
use crate::{
    session::{
        command::{Command, Metric, Usage},
        input::{ParticipantEvent, SpeakerId, SttInput, VadEvent},
        settings::{Detection, Interruption},
        speaker::{Speaker, Voice, bounded},
        speech::{SpeechKind, Utterance},
        state::{AgentState, CloseReason, UserState},
        timers::{Timer, later},
        turn::{
            completeness,
            endpointing::{self, ASK_AGAIN, Ear, Pauses, SURE},
            interruption,
        },
    },
    stt::Transcript,
    transcript::segment::Segment,
};

/// Speakers remembered at once; of more, the absent are forgotten first.
const MAX_SPEAKERS: usize = 64;
/// Recognition's report on the end of speech comes within this time; words that come later were
/// said later, though the detector missed them.
const STT_LAG: Duration = Duration::from_secs(1);
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

    fn has_no_words(&self) -> bool {
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

    fn enough_words_to_interrupt(&self) -> bool {
        let min = self.settings.min_interruption_words;
        if min == 0 {
            return false;
        }
        let open = self.linked().and_then(|speaker| speaker.open_text()).unwrap_or_default();
        let mut words = self.turn.text.split_whitespace().chain(open.split_whitespace());
        words.nth(min - 1).is_some() && !self.only_listens()
    }

    /// Whether the words heard while the agent speaks only say that the user listens.
    pub(super) fn only_listens(&self) -> bool {
        let open = self.linked().and_then(|speaker| speaker.open_text()).unwrap_or_default();
        self.settings.interruption == Interruption::Adaptive
            && self.turn.has_words
            && !self.turn.typed
            && interruption::is_backchannel(&self.turn.text, open)
    }

    /// Whether the speech right before this one said more than that the user listens.
    fn has_just_told_more(&self) -> bool {
        let Some(speaker) = self.linked() else { return false };
        let open = speaker.open_text().unwrap_or_default();
        let has_words = !self.turn.text.is_empty() || !open.is_empty();
        self.settings.interruption == Interruption::Adaptive
            && !speaker.voice.before().is_zero()
            && has_words
            && !interruption::is_backchannel(&self.turn.text, open)
    }

    fn spoke_long_enough_in_all(&self, now: Instant) -> bool {
        let all = self.linked().map(|speaker| speaker.voice.lasted_in_all(now));
        all.is_some_and(|all| all >= self.settings.min_interruption)
    }

    /// Speech that was long enough to interrupt, but was not trusted without words.
    fn words_were_waited_for(&self, now: Instant) -> bool {
        let ended = self.linked().and_then(|speaker| speaker.voice.ended);
        self.settings.interruption == Interruption::Adaptive
            && self.spoke_long_enough_in_all(now)
            && ended.is_none_or(|at| now.saturating_duration_since(at) <= STT_LAG)
            && !self.only_listens()
    }

    /// The user has spoken over the agent for long enough: is it meant to stop?
    pub(super) fn on_spoken_over(&mut self, now: Instant) {
        if self.only_listens() {
            return;
        }
        let warms_up = self
            .first_heard_at
            .is_none_or(|at| now.saturating_duration_since(at) < self.settings.echo_warm_up);
        let Some(speaker) = self.linked() else { return };
        let adaptive = self.settings.interruption == Interruption::Adaptive;
        let doubtful = adaptive && (speaker.voice.faint || speaker.tells_words_in_time());
        let until = speaker.voice.began.map(|began| {
            later(began, self.settings.min_interruption.saturating_add(interruption::PATIENCE))
        });
        if self.turn.has_words || self.has_just_told_more() || !(warms_up || doubtful) {
            self.interrupt(now);
        } else if let Some(until) = until.filter(|until| *until > now) {
            // Its words will tell, unless recognition has stalled.
            self.timers.set(Timer::MinInterruption, until);
        } else if !speaker.voice.faint && !warms_up {
            self.interrupt(now);
        } else if !speaker.voice.faint
            && !speaker.tells_words_in_time()
            && let Some(heard) = self.first_heard_at
        {
            // Whoever still speaks by then is no echo.
            self.timers.set(Timer::MinInterruption, later(heard, self.settings.echo_warm_up));
        }
    }

    /// The user has the floor.
    pub(super) fn listen(&mut self, now: Instant) {
        self.timers.clear(&[Timer::UserAway]);
        self.set_state(AgentState::Listening);
        self.turn.listening_since = Some(now);
        self.endpoint(now);
    }

    /// Begins an answer to the words that are there, if they look whole enough.
    fn begin_early_by_words(&mut self, now: Instant) {
        let Some(speaker) = self.linked() else { return };
        let open = speaker.open_text().unwrap_or_default();
        let punctuates = speaker.punctuates && speaker.open_text().is_none();
        let words = self.turn.whole(open);
        let language = self.settings.language.as_deref();
        self.begin_early(completeness::score(&words, language, punctuates), now);
    }

    /// Waits for the end of the turn, or commits it if that has come.
    pub(super) fn endpoint(&mut self, now: Instant) {
        self.timers.clear(&[
            Timer::Endpointing,
            Timer::MaxEndpointing,
            Timer::Transcript,
            Timer::SpeechGuard,
        ]);
        if self.state != AgentState::Listening || self.hold.is_some() {
            return;
        }
        let speaking = self.user_speaks();
        if !speaking {
            self.turn.ended.get_or_insert(now);
        }
        let linked = self.linked();
        let language = self.settings.language.as_deref();
        let punctuates = linked.is_some_and(|speaker| speaker.punctuates);
        let ear = Ear {
            speaking,
            began: linked.and_then(|speaker| speaker.voice.began).unwrap_or(now),
            ended: self.turn.ended.unwrap_or(now),
            text: !self.turn.text.is_empty(),
            open: linked.is_some_and(|speaker| speaker.open_text().is_some()),
            asked: self.turn.finalize_sent,
            last_words: self.turn.last_words.max(self.turn.listening_since),
            gives_interims: linked.is_some_and(|speaker| speaker.gives_interims),
            // Words that were asked for and have not come may say anything.
            score: (!speaking && !self.turn.finalize_sent)
                .then(|| completeness::score(&self.turn.text, language, punctuates))
                .map(|score| score + self.turn.sound.unwrap_or(0.0)),
            told_end: self.turn.told_end,
            usual_pause: self.pauses.usual(),
        };
        self.ask_turn_model(&ear, now);
        let (timer, at) = endpointing::next(ear, &self.settings);
        let asked =
            !ear.open && ear.text && ear.score.is_some() || ear.open && self.turn.detector_ended;
        if !speaking && asked && at > now {
            self.begin_early_by_words(now);
        }
        if timer != Timer::Endpointing || at > now {
            self.timers.set(timer, at);
        } else if ear.open {
            self.ask_for_final();
            self.turn.finalize_sent = true;
            self.endpoint(now);
        } else {
            self.commit(now);
        }
    }

    /// Asks the turn model where the words leave the end open. It costs a good part of a core while
    /// it thinks: a noise that begins and ends asks nothing.
    fn ask_turn_model(&mut self, ear: &Ear, now: Instant) {
        let asks = self.settings.detection == Detection::Semantic
            && self.turn.detector_ended
            && !ear.speaking
            && (ear.open || ear.text && ear.score.is_none_or(|score| score < SURE))
            && self.turn.sound.is_none()
            && self.turn.sound_asked.is_none_or(|asked| later(asked, ASK_AGAIN) <= now);
        if asks && let Some(speaker) = self.linked {
            self.turn.sound_asked = Some(now);
            self.turn.awaits_sound = true;
            self.command(Command::AskTurnModel { speaker });
        }
    }

    /// Nothing better will come: commits what is there, interim text included.
    pub(super) fn end_listening(&mut self, now: Instant) {
        if self.state != AgentState::Listening || self.hold.is_some() {
            return;
        }
        if self.user_speaks() {
            self.turn.ended = self.turn.last_words;
        }
        if let Some(speaker) = self.linked_mut() {
            speaker.voice.discounted = true;
            let last = speaker.promote(now);
            if let Some(last) = &last {
                self.turn.add(&last.text);
            }
            self.command_row(last);
        }
        if self.turn.text.is_empty() {
            self.no_transcript(now);
        } else {
            self.commit(now);
        }
    }

    /// Speech without a transcript: noise, or recognition is down, which the user must hear.
    pub(super) fn no_transcript(&mut self, now: Instant) {
        let down = self.linked().is_some_and(|speaker| speaker.stt_down);
        let can_say = self.ready && !self.settings.transcribe_only;
        let apology = self.settings.apology.trim();
        if down && can_say && !apology.is_empty() {
            let text = apology.to_owned();
            self.apologised = true;
            self.metric(Metric::Apology);
            let interruptible = self.settings.interruptible;
            self.queue.push_front(Utterance { kind: SpeechKind::Apology, text, interruptible });
        }
        self.go_idle(now);
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

    pub(super) fn watch_interruption(&mut self, now: Instant) {
        let interruptible = self.speech.as_ref().is_some_and(|speech| speech.interruptible);
        let speaks = self.user_speaks() && self.leaving.is_none();
        if self.state != AgentState::Speaking || !interruptible || !speaks {
            return;
        }
        let began = self.linked().and_then(|speaker| speaker.voice.began).unwrap_or(now);
        let before = self.linked().map_or(Duration::ZERO, |speaker| speaker.voice.before());
        let said = if self.has_just_told_more() { before } else { Duration::ZERO };
        let minimum = self.settings.min_interruption.saturating_sub(said);
        self.timers.set(Timer::MinInterruption, later(began, minimum));
    }
}
