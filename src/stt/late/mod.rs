//! What was said while no recogniser could hear it: kept on disk, understood when one is back, and
//! reported as rows with the flag `late`. Nobody answers it any more.
//!
//! [`queue`] is the disk, [`scribe`] the task that works it off. The [`super::relay`] decides what
//! goes there: never what a recogniser is still sent.

pub mod queue;
pub mod scribe;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::queue::{Head, LateQueue};
use crate::transcript::reporter::SessionInfo;

/// Where one speaker's unheard audio goes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keeper {
    queue: LateQueue,
    session: Arc<SessionInfo>,
    speaker_id: Arc<str>,
    speaker_name: Arc<str>,
}

impl Keeper {
    /// Of a session whose speaker is not known yet: see [`Keeper::of`].
    pub fn new(queue: LateQueue, session: SessionInfo) -> Self {
        let nobody: Arc<str> = Arc::from("speaker");
        Self { queue, session: Arc::new(session), speaker_id: nobody.clone(), speaker_name: nobody }
    }

    /// Of this participant.
    #[must_use]
    pub fn of(mut self, identity: &str, name: &str) -> Self {
        self.speaker_id = Arc::from(identity);
        self.speaker_name = Arc::from(name);
        self
    }

    /// Keeps one utterance (16 kHz mono s16) that began at `spoken_at`, in ms since the Unix epoch.
    /// Never waits.
    pub fn keep(&self, spoken_at: i64, samples: Vec<i16>) {
        let head = Head {
            session: (*self.session).clone(),
            speaker_id: self.speaker_id.to_string(),
            speaker_name: self.speaker_name.to_string(),
            spoken_at_unix_ms: spoken_at,
            crc: 0,
        };
        self.queue.keep(head, samples);
    }
}
