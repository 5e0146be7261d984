//! When the agent may begin to speak: once somebody hears it. Pure.
//!
//! An agent is often in its room before its caller is, and a caller who has just come hears nothing
//! until the agent's track has been negotiated with them. What is said before that is lost.

use std::time::{Duration, Instant};

/// Whoever is there and has not taken the track up by then reads what the agent says, or was
/// preceded by a listener that only records: the server tells of the first listener alone.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the [module](self).
#[derive(Debug)]
pub struct Opening {
    has_voice: bool,
    /// Since when there is a track, or would be.
    published: Option<Instant>,
    /// Since when somebody who speaks is there.
    present: Option<Instant>,
    is_heard: bool,
    has_begun: bool,
}

impl Opening {
    pub const fn new(has_voice: bool) -> Self {
        Self { has_voice, published: None, present: None, is_heard: false, has_begun: false }
    }

    /// The agent's track is in the room, where it has one.
    pub fn published(&mut self, now: Instant) {
        self.published.get_or_insert(now);
    }

    /// Whether people are there.
    pub fn attended(&mut self, is_anyone_here: bool, now: Instant) {
        self.present = is_anyone_here.then(|| self.present.unwrap_or(now));
    }

    /// The track has its first listener.
    pub fn heard(&mut self) {
        // A recorder that came first is no audience.
        self.is_heard |= self.present.is_some();
    }

    /// When to ask again whether it begins; `None`: when something has happened.
    pub fn due(&self) -> Option<Instant> {
        let since = self.published?.max(self.present?);
        (!self.has_begun).then(|| since + PATIENCE)
    }

    /// Whether the agent may begin now: told once.
    pub fn begins(&mut self, now: Instant) -> bool {
        let may = self.published.is_some()
            && (!self.has_voice || self.is_heard || self.due().is_some_and(|due| due <= now));
        may && !std::mem::replace(&mut self.has_begun, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn nothing_is_said_to_an_empty_room_or_before_it_can_be_heard() {
        let start = clock::now();
        let mut opening = Opening::new(true);
        opening.published(start);
        assert!(!opening.begins(start + Duration::from_mins(10)));
        assert_eq!(opening.due(), None);
        let came = start + Duration::from_mins(11);
        opening.attended(true, came);
        assert!(!opening.begins(came));
        opening.heard();
        assert!(opening.begins(came));
        assert!(!opening.begins(came), "once");
        assert_eq!(opening.due(), None);
    }

    #[test]
    fn whoever_does_not_listen_is_answered_in_the_end() {
        let start = clock::now();
        let mut opening = Opening::new(true);
        opening.heard();
        opening.attended(true, start);
        // Publishing took a while.
        let published = start + Duration::from_secs(1);
        opening.published(published);
        assert!(!opening.begins(published + PATIENCE / 2));
        assert_eq!(opening.due(), Some(published + PATIENCE));
        assert!(opening.begins(published + PATIENCE));
    }

    #[test]
    fn whoever_has_gone_again_is_not_waited_for() {
        let start = clock::now();
        let mut opening = Opening::new(true);
        opening.published(start);
        opening.attended(true, start);
        opening.attended(false, start + Duration::from_secs(1));
        assert!(!opening.begins(start + PATIENCE));
    }

    #[test]
    fn an_agent_without_a_voice_begins_at_once() {
        let mut opening = Opening::new(false);
        assert!(!opening.begins(clock::now()));
        opening.published(clock::now());
        assert!(opening.begins(clock::now()));
    }
}
