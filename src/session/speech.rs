//! One agent utterance: the text sent to be spoken, when each word is spoken, how far playout is,
//! and from these what was heard.

use std::time::Instant;

use super::timers::ms_between;
use crate::tts::{SpeechId, TimedText};

/// Playout is told about every 100 ms; between two reports it is taken to run on for at most this.
const MAX_EXTRAPOLATION_MS: u64 = 150;
/// Slow speech: where the provider gives no alignment and the length is not known yet, this errs
/// towards counting less as heard.
const MS_PER_CHAR: u64 = 75;
/// Longest text of one speech, in bytes: hours of talk, whatever the model streams.
pub(super) const MAX_TEXT: usize = 64 * 1024;
const MAX_ALIGNED: usize = 16 * 1024;

/// Why the agent speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpeechKind {
    Greeting,
    Answer,
    Say,
    Apology,
    /// The apology that comes with the binary: no synthesis, no text.
    BundledApology,
    Farewell,
}

/// Something to be spoken when its turn comes.
#[derive(Debug)]
pub(super) struct Utterance {
    pub kind: SpeechKind,
    pub text: String,
    pub interruptible: bool,
}

/// Whether the speech's audio flows to the track.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// `Play` has not been commanded yet.
    Closed,
    Open,
    /// `ClearPlayout` was commanded; `Resume` or `CancelSpeech` follows.
    Cleared,
}

#[derive(Debug)]
pub(super) struct Speech {
    pub id: SpeechId,
    pub kind: SpeechKind,
    pub interruptible: bool,
    pub flow: Flow,
    pub opened_at: Instant,
    /// The first frame went to the track.
    pub started_at: Option<Instant>,
    /// Synthesis gave this much audio so far.
    pub audio_ms: u64,
    /// No more text will be sent.
    pub finished: bool,
    /// No more audio will come.
    pub tts_ended: bool,
    /// The row in the transcript, once there is one.
    pub row: Option<String>,
    text: String,
    chars: usize,
    aligned: Vec<TimedText>,
    position_ms: u64,
    position_at: Option<Instant>,
    /// What was shown as heard; never taken back.
    shown: String,
}

impl Speech {
    pub fn new(id: SpeechId, kind: SpeechKind, interruptible: bool, now: Instant) -> Self {
        Self {
            id,
            kind,
            interruptible,
            flow: Flow::Closed,
            opened_at: now,
            started_at: None,
            audio_ms: 0,
            finished: false,
            tts_ended: false,
            row: None,
            text: String::new(),
            chars: 0,
            aligned: Vec::new(),
            position_ms: 0,
            position_at: None,
            shown: String::new(),
        }
    }

    /// Adds text as it is sent to be spoken.
    pub fn push_text(&mut self, text: &str) {
        self.text.push_str(text);
        self.chars += text.chars().count();
    }

    pub fn text_len(&self) -> usize {
        self.text.len()
    }

    pub fn align(&mut self, words: Vec<TimedText>) {
        let room = MAX_ALIGNED.saturating_sub(self.aligned.len());
        self.aligned.extend(words.into_iter().take(room));
    }

    pub fn started(&mut self, now: Instant) {
        self.started_at.get_or_insert(now);
        self.position_at = Some(now);
    }

    /// Playout told its position; whether it is further than before. After `ClearPlayout` the
    /// report is the exact end of what was heard, and may be less than the estimate.
    pub fn told_position(&mut self, ms: u64, now: Instant) -> bool {
        self.position_at = Some(now);
        let further = ms > self.position_ms;
        if further || self.flow == Flow::Cleared {
            self.position_ms = ms;
        }
        further
    }

    /// How much has been heard by now, in ms of the speech's audio.
    pub fn position(&self, now: Instant) -> u64 {
        let running = self.flow == Flow::Open && self.started_at.is_some();
        let since = match self.position_at {
            Some(at) if running => ms_between(at, now).min(MAX_EXTRAPOLATION_MS),
            _ => 0,
        };
        self.position_ms.saturating_add(since).min(self.position_ms.max(self.audio_ms))
    }

    /// Playout is known not to run on: what was told last is what was heard.
    pub fn stands_still(&mut self) {
        self.position_at = None;
    }

    /// Playout is to fall silent at once.
    pub fn cleared(&mut self, now: Instant) {
        self.position_ms = self.position(now);
        self.flow = Flow::Cleared;
    }

    /// Playout goes on.
    pub fn resumed(&mut self, now: Instant) {
        self.flow = Flow::Open;
        self.position_at = Some(now);
    }

    /// All of the text: what was heard once everything has been played.
    pub fn whole(&self) -> &str {
        self.text.trim()
    }

    /// What has been heard by now, cut at a word.
    pub fn heard(&self, now: Instant) -> String {
        let heard = self.heard_at(now);
        if heard.len() < self.shown.len() { self.shown.clone() } else { heard }
    }

    fn heard_at(&self, now: Instant) -> String {
        let position = self.position(now);
        if position == 0 {
            return String::new();
        }
        if self.aligned.is_empty() {
            return self.text[..self.estimated_len(position)].trim().to_owned();
        }
        let words = self.aligned.iter().take_while(|word| word.end_ms <= position);
        let mut heard = String::new();
        for word in words {
            heard.push_str(&word.text);
        }
        heard.trim().to_owned()
    }

    /// What has been heard, if that is more than was shown last.
    pub fn newly_heard(&mut self, now: Instant) -> Option<String> {
        let heard = self.heard_at(now);
        if heard.len() <= self.shown.len() {
            return None;
        }
        self.shown.clone_from(&heard);
        Some(heard)
    }

    /// The bytes of text that `position` stands for when no alignment tells: in proportion to the
    /// length of the audio, which is an estimate until synthesis has ended.
    fn estimated_len(&self, position: u64) -> usize {
        let total = if self.tts_ended {
            self.audio_ms
        } else {
            self.audio_ms.max(self.chars as u64 * MS_PER_CHAR)
        };
        if position >= total {
            return self.text.len();
        }
        let chars = (self.chars as u128 * u128::from(position) / u128::from(total.max(1))) as usize;
        let end = self.text.char_indices().nth(chars).map_or(self.text.len(), |(at, _)| at);
        let at_boundary = self.text[end..].chars().next().is_none_or(char::is_whitespace);
        if at_boundary { end } else { self.text[..end].rfind(char::is_whitespace).unwrap_or(0) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn speech(text: &str) -> (Speech, Instant) {
        let now = crate::clock::now();
        let mut speech = Speech::new(SpeechId(1), SpeechKind::Answer, true, now);
        speech.push_text(text);
        speech.flow = Flow::Open;
        (speech, now)
    }

    fn word(text: &str, start_ms: u64, end_ms: u64) -> TimedText {
        TimedText { text: text.into(), start_ms, end_ms }
    }

    #[test]
    fn heard_are_the_aligned_words_that_ended() {
        let (mut speech, now) = speech("One two three");
        speech.align(vec![word("One ", 0, 300), word("two ", 300, 600), word("three", 600, 900)]);
        speech.audio_ms = 900;
        speech.started(now);
        speech.told_position(650, now);
        assert_eq!(speech.heard(now), "One two");
    }

    #[test]
    fn without_alignment_heard_is_in_proportion_cut_at_a_word() {
        let (mut speech, now) = speech("One two three four");
        speech.audio_ms = 1_800;
        speech.tts_ended = true;
        speech.told_position(1_000, now);
        assert_eq!(speech.heard(now), "One two");
        speech.told_position(1_800, now);
        assert_eq!(speech.heard(now), "One two three four");
    }

    #[test]
    fn playout_runs_on_between_reports_but_not_while_cleared() {
        let (mut speech, now) = speech("One two");
        speech.audio_ms = 2_000;
        speech.started(now);
        speech.told_position(500, now);
        let then = now + Duration::from_millis(80);
        assert_eq!(speech.position(then), 580);
        assert_eq!(speech.position(then + Duration::from_secs(9)), 650);
        speech.cleared(then);
        assert_eq!(speech.position(then + Duration::from_secs(9)), 580);
        speech.told_position(560, then);
        assert_eq!(speech.position(then), 560, "the exact report replaces the estimate");
    }

    #[test]
    fn the_estimate_never_splits_a_character() {
        let (mut speech, now) = speech("Grüße ähnlich öde");
        speech.audio_ms = 1_000;
        speech.tts_ended = true;
        speech.started(now);
        for ms in 0..1_000 {
            speech.told_position(ms, now);
            assert!("Grüße ähnlich öde".starts_with(&speech.heard(now)));
        }
    }
}
