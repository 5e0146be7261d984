//! What is known about one speech on its way.

use std::time::{Duration, Instant};

use super::align::Aligner;
use crate::tts::{SpeechId, chunker::Chunker};

/// The first piece waits so long for a few more words.
const FIRST_HOLD: Duration = Duration::from_millis(80);
/// Text is sent at any word when the audio at hand ends within this: about a generation's time.
const RUNNING_OUT: Duration = Duration::from_millis(400);

/// A speech on the current socket.
#[derive(Debug)]
pub struct Context {
    pub name: String,
    pub last_sent: Instant,
    /// When the first audible text was sent.
    pub spoken_since: Option<Instant>,
    pub heard: bool,
    pub closed: bool,
}

#[derive(Debug)]
pub struct Speech {
    pub id: SpeechId,
    /// All that was sent, over all contexts since the last resend.
    pub sent: String,
    pub waiting: Chunker,
    /// Bytes taken in, for the bound.
    pub length: usize,
    pub finished: bool,
    pub context: Option<Context>,
    pub aligner: Aligner,
    pub samples: u64,
    pub half_sample: Option<u8>,
    pub last_audio: Option<Instant>,
    /// When all audio so far will have been heard, if it plays as it comes.
    pub plays_until: Option<Instant>,
    /// Since when text has been waiting for its first piece to be sent.
    pub held_since: Option<Instant>,
    /// Since when it waits for a connection.
    pub disconnected_since: Option<Instant>,
    pub resends: u32,
    pub characters: u64,
}

impl Speech {
    pub fn new(id: SpeechId) -> Self {
        Self {
            id,
            sent: String::new(),
            waiting: Chunker::default(),
            length: 0,
            finished: false,
            context: None,
            aligner: Aligner::default(),
            samples: 0,
            half_sample: None,
            last_audio: None,
            plays_until: None,
            held_since: None,
            disconnected_since: None,
            resends: 0,
            characters: 0,
        }
    }

    pub fn has_text(&self) -> bool {
        !self.waiting.is_blank()
    }

    /// All text is with the server and none will follow.
    pub fn is_all_sent(&self) -> bool {
        self.finished && !self.has_text()
    }

    /// All that was sent has been spoken, as far as the server tells what it speaks.
    pub fn is_spoken(&self) -> bool {
        self.aligner.is_behind(&self.sent) == Some(false)
    }

    /// The server owes audio. Where its alignment does not tell, only the end is owed.
    pub fn is_owed(&self) -> bool {
        let Some(context) = self.context.as_ref().filter(|context| context.spoken_since.is_some())
        else {
            return false;
        };
        !context.heard || self.is_all_sent() || self.aligner.is_behind(&self.sent).unwrap_or(false)
    }

    /// When what is waiting must be sent at any word.
    pub fn urgent_at(&self) -> Option<Instant> {
        if !self.waiting.has_words() {
            return None;
        }
        if self.sent.is_empty() {
            return self.held_since.map(|since| since + FIRST_HOLD);
        }
        // While the server still owes audio more text does not help: it speaks in order.
        if self.is_owed() {
            return None;
        }
        self.plays_until.map(|end| end.checked_sub(RUNNING_OUT).unwrap_or(end))
    }

    /// Everything is to be sent once more: nothing of it has been heard.
    pub fn rewind(&mut self) {
        self.context = None;
        self.aligner = Aligner::default();
        self.half_sample = None;
        let mut text = std::mem::take(&mut self.sent);
        text.push_str(self.waiting.as_str());
        self.waiting.restart(text);
        self.resends += 1;
    }
}
