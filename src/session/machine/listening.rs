//! LISTENING: when the user's turn has ended, and what becomes of it.

use std::time::Instant;

use super::Session;
use crate::session::{
    command::{Command, Metric},
    settings::Detection,
    speech::{SpeechKind, Utterance},
    state::AgentState,
    timers::{Timer, later},
    turn::{
        completeness,
        endpointing::{self, ASK_AGAIN, Ear, SURE},
    },
};

impl Session {
    /// The user has the floor.
    pub(super) fn listen(&mut self, now: Instant) {
        self.timers.clear(&[Timer::UserAway]);
        self.set_state(AgentState::Listening);
        self.turn.listening_since = Some(now);
        self.endpoint(now);
    }

    /// Begins an answer to the words that are there, if they look whole enough.
    pub(super) fn begin_early_by_words(&mut self, now: Instant) {
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
}
