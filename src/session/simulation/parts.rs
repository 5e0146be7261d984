//! The parts that a simulated call is made of: events in time, the user's words, the track.

use std::{ops::Range, time::Duration};

use crate::{
    llm::LlmEvent,
    session::input::{GenerationId, Input},
    tts::{SpeechId, TimedText},
};

#[derive(Debug)]
pub(super) enum Event {
    Input(Input),
    /// The detector's minimum of speech has passed since the voice in this place began.
    VoiceHeard(usize),
    /// The detector's minimum of silence has passed since it ended.
    VoiceOver(usize),
    Interim {
        utterance: usize,
        words: usize,
    },
    Final {
        utterance: usize,
        words: usize,
    },
    Llm(GenerationId, LlmEvent),
    Audio {
        id: SpeechId,
        word: TimedText,
    },
    SpeechEnd(SpeechId),
    SpeechError(SpeechId),
    Tick {
        id: SpeechId,
        epoch: u32,
    },
}

#[derive(Debug)]
pub(super) struct Scheduled {
    pub at: Duration,
    pub order: u64,
    pub event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Something said by the user, word by word.
#[derive(Debug)]
pub(super) struct Said {
    pub words: Vec<(String, Range<Duration>)>,
    pub finalized: usize,
}

/// A speech at the simulated voice and track.
#[derive(Debug, Default)]
pub(super) struct Track {
    pub words: Vec<TimedText>,
    pub synthesised: u64,
    pub audio_ms: u64,
    pub ready_at: Duration,
    pub fails_at: Option<Duration>,
    pub mute: bool,
    pub ended: bool,
    pub gone: bool,
    pub playing: bool,
    pub started: bool,
    pub drained: bool,
    pub position: u64,
    pub since: Duration,
    pub epoch: u32,
}

impl Track {
    pub fn advance(&mut self, now: Duration) {
        if self.playing {
            let passed = now.saturating_sub(self.since).as_millis() as u64;
            self.position = (self.position + passed).min(self.audio_ms);
        }
        self.since = now;
    }
}
