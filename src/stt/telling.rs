//! What providers that work in turns tell, brought into the order that sessions expect: a start
//! before words, an end after them, each once.

use crate::stt::{SttEvent, Transcript};

#[derive(Debug, Clone, Copy, Default)]
pub struct Telling {
    /// `SpeechStarted` was told and the turn has not ended.
    speaking: bool,
    /// An interim with text is the last thing that was shown.
    interim_shown: bool,
}

impl Telling {
    pub fn starts(&mut self, events: &mut Vec<SttEvent>) {
        if !std::mem::replace(&mut self.speaking, true) {
            events.push(SttEvent::SpeechStarted);
        }
    }

    pub fn interim(&mut self, transcript: Transcript, events: &mut Vec<SttEvent>) {
        if transcript.text.is_empty() {
            if std::mem::take(&mut self.interim_shown) {
                events.push(SttEvent::Interim(Transcript::default()));
            }
            return;
        }
        self.starts(events);
        self.interim_shown = true;
        events.push(SttEvent::Interim(transcript));
    }

    /// Another connection hears what has not been final again: that its beginning is silent takes
    /// nothing of it back.
    pub fn connected(&mut self) {
        self.interim_shown = false;
    }

    /// The turn's words, for good.
    pub fn ends(&mut self, transcript: Transcript, events: &mut Vec<SttEvent>) {
        if transcript.text.is_empty() {
            self.interim(Transcript::default(), events);
        } else {
            self.starts(events);
            events.push(SttEvent::Final(transcript));
            events.push(SttEvent::EndOfTurn);
        }
        *self = Self::default();
    }
}
