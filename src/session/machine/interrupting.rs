//! SPEAKING: whether what the user says over the agent is meant to stop it.

use std::time::{Duration, Instant};

use super::{Session, hearing::STT_LAG};
use crate::session::{
    settings::Interruption,
    state::AgentState,
    timers::{Timer, later},
    turn::interruption,
};

impl Session {
    pub(super) fn enough_words_to_interrupt(&self) -> bool {
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
    pub(super) fn has_just_told_more(&self) -> bool {
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
    pub(super) fn words_were_waited_for(&self, now: Instant) -> bool {
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
