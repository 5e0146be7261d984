//! One participant as the session hears it: what the voice activity detector claims, and the
//! transcript segments made of what recognition tells.
//!
//! Each final closes a segment; the interims before it carry the same id.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use super::{
    input::SpeakerId,
    timers::{earlier, ms_between},
};
use crate::{
    stt::Transcript,
    transcript::segment::{Segment, SpeakerKind},
};

/// Longest text of one segment, in bytes; what a provider sends beyond is cut.
const MAX_TEXT: usize = 16 * 1024;
/// For how long recognition may still report on a stretch that was closed without its final, where
/// no times tell.
const PROMOTED_FOR: Duration = Duration::from_secs(10);
/// Stretches that were closed so and of which recognition has not told more; the oldest go first.
const MAX_PROMOTED: usize = 8;
/// Speech that goes on after no more than this is the same attempt to speak.
const SAME_SPEECH: Duration = Duration::from_millis(800);
/// An estimate of how long a word takes to say, where nothing else tells when a segment began.
const MS_PER_WORD: u64 = 300;

/// The session's own time line, and the names it gives out.
#[derive(Debug)]
pub(super) struct Ids {
    pub prefix: String,
    pub began: Instant,
    users: u64,
    agents: u64,
    generations: u64,
    speeches: u64,
}

impl Ids {
    pub fn new(prefix: String, began: Instant) -> Self {
        Self { prefix, began, users: 0, agents: 0, generations: 0, speeches: 0 }
    }

    pub fn user_row(&mut self) -> String {
        self.users += 1;
        format!("{}-u{}", self.prefix, self.users)
    }

    pub fn agent_row(&mut self) -> String {
        self.agents += 1;
        format!("{}-a{}", self.prefix, self.agents)
    }

    pub fn generation(&mut self) -> u64 {
        self.generations += 1;
        self.generations
    }

    pub fn speech(&mut self) -> u64 {
        self.speeches += 1;
        self.speeches
    }

    /// `at` in ms since the session began.
    pub fn ms(&self, at: Instant) -> u64 {
        ms_between(self.began, at)
    }
}

/// What the voice activity detector claims of a speaker.
#[derive(Debug, Default)]
pub(super) struct Voice {
    pub speaking: bool,
    /// The true start of the last speech.
    pub began: Option<Instant>,
    /// The true end of the last speech; none while it goes on.
    pub ended: Option<Instant>,
    /// How long the speech lasted that ended right before this one began.
    before: Duration,
    /// Found to be noise: the claim no longer counts, until a new one is made.
    pub discounted: bool,
    /// Much fainter than this speaker usually is.
    pub faint: bool,
}

impl Voice {
    pub fn starts(&mut self, speech_ms: u32, now: Instant) {
        let began = earlier(now, speech_ms);
        let goes_on = self.ended.is_some_and(|end| began <= end + SAME_SPEECH);
        self.before = if goes_on { self.lasted_in_all(now) } else { Duration::ZERO };
        self.speaking = true;
        self.discounted = false;
        self.faint = false;
        self.began = Some(began);
        self.ended = None;
    }

    /// The true end of the speech.
    pub fn ends(&mut self, silence_ms: u32, now: Instant) -> Instant {
        let end = earlier(now, silence_ms).max(self.began.unwrap_or(now)).min(now);
        self.speaking = false;
        self.ended = Some(end);
        end
    }

    /// Whether there is speech that counts.
    pub fn is_heard(&self) -> bool {
        self.speaking && !self.discounted
    }

    /// How long the last speech lasted, silence at its end left out.
    pub fn lasted(&self, now: Instant) -> Duration {
        let end = self.ended.unwrap_or(now);
        self.began.map_or(Duration::ZERO, |began| end.saturating_duration_since(began))
    }

    /// The same, with what was said right before: "Stop, … not that one".
    pub fn lasted_in_all(&self, now: Instant) -> Duration {
        self.before.saturating_add(self.lasted(now))
    }

    /// How long the speech right before this one lasted; zero if there was none.
    pub fn before(&self) -> Duration {
        self.before
    }
}

/// A segment that recognition is still at.
#[derive(Debug)]
struct Open {
    id: String,
    text: String,
    start_ms: u64,
    duration_ms: u64,
    confidence: f32,
}

/// A stretch that was closed with its interim text, because the final did not come in time. A
/// recogniser that was lost and hears all since its last final again tells it much later.
#[derive(Debug)]
struct Promoted {
    text: String,
    /// Where it was in the stream, in ms; `0..0` if the provider gives no times.
    stream_ms: Range<u64>,
    at: Instant,
    /// The user has spoken anew since.
    is_past: bool,
}

impl Promoted {
    /// Whether a transcript may be of this stretch.
    fn may_be(&self, heard: &Transcript, now: Instant) -> bool {
        let times = stream_ms(heard);
        if self.stream_ms.is_empty() || times.is_empty() {
            return !self.is_past && now.saturating_duration_since(self.at) <= PROMOTED_FOR;
        }
        self.stream_ms.start < times.end && times.start < self.stream_ms.end
    }
}

#[derive(Debug)]
pub(super) struct Speaker {
    pub id: SpeakerId,
    pub identity: String,
    pub name: String,
    pub present: bool,
    pub voice: Voice,
    /// The connection is lost, or the provider has given up.
    pub stt_down: bool,
    /// Recognition reports while the user speaks, not only after: silence of it tells something.
    /// Believed until a final comes without any interim.
    pub gives_interims: bool,
    seen_interim: bool,
    /// Recognition sets marks between and after sentences.
    pub punctuates: bool,
    /// When the first sample of the recognition stream was heard.
    pub stream_began: Option<Instant>,
    open: Option<Open>,
    /// Where in the stream that is, in ms.
    open_stream_ms: Range<u64>,
    promoted: Vec<Promoted>,
    /// The row that was shown for words which recognition took back: the next ones of the same
    /// speech replace it.
    withdrawn: Option<String>,
    last_end_ms: u64,
}

impl Speaker {
    pub fn new(id: SpeakerId, identity: String, name: String, present: bool) -> Self {
        Self {
            id,
            identity,
            name,
            present,
            voice: Voice::default(),
            stt_down: false,
            gives_interims: true,
            seen_interim: false,
            punctuates: false,
            stream_began: None,
            open: None,
            open_stream_ms: 0..0,
            promoted: Vec::new(),
            withdrawn: None,
            last_end_ms: 0,
        }
    }

    /// The text of the segment that recognition is still at.
    pub fn open_text(&self) -> Option<&str> {
        self.open.as_ref().map(|open| open.text.as_str())
    }

    /// Recognition is known to tell words while they are said.
    pub fn tells_words_in_time(&self) -> bool {
        self.seen_interim && self.gives_interims && !self.stt_down
    }

    /// A new stream of recognition, whose times begin anew. The one before may still tell its last.
    pub fn stream_begins(&mut self, now: Instant) {
        self.stream_began = Some(now);
        self.open_stream_ms = 0..0;
        self.promoted.iter_mut().for_each(|promoted| promoted.stream_ms = 0..0);
    }

    /// The user speaks anew: what recognition reports from now on is no echo of a closed stretch,
    /// unless its times say so.
    pub fn new_speech(&mut self) {
        self.promoted.iter_mut().for_each(|promoted| promoted.is_past = true);
        self.withdrawn = None;
    }

    fn new_row(&mut self, ids: &mut Ids) -> String {
        self.withdrawn.take().unwrap_or_else(|| ids.user_row())
    }

    /// Recognition takes back what it told last: the row as it is shown from now on, empty.
    pub fn withdraw(&mut self) -> Option<Segment> {
        let open = self.open.take()?;
        self.withdrawn = Some(open.id.clone());
        let nothing = Open { text: String::new(), duration_ms: 0, confidence: 0.0, ..open };
        Some(self.segment(&nothing, false))
    }

    /// An interim: the segment to show, if it says anything new.
    pub fn interim(&mut self, heard: &Transcript, ids: &mut Ids, now: Instant) -> Option<Segment> {
        self.gives_interims = true;
        self.seen_interim = true;
        let text = self.unsaid(heard, now)?;
        let times = stream_ms(heard);
        let (start_ms, duration_ms) = self.place(heard, &text, ids, now);
        match &mut self.open {
            Some(open) if open.text == text => return None,
            Some(open) => {
                open.text = text;
                open.duration_ms = ids.ms(now).saturating_sub(open.start_ms).min(
                    // Replaced interims grow: their first place in time holds.
                    start_ms.saturating_add(duration_ms).saturating_sub(open.start_ms),
                );
                open.confidence = plausible(heard.confidence);
            }
            None => {
                let confidence = plausible(heard.confidence);
                let id = self.new_row(ids);
                self.open = Some(Open { id, text, start_ms, duration_ms, confidence });
            }
        }
        self.open_stream_ms = times;
        self.open.as_ref().map(|open| self.segment(open, false))
    }

    /// A final: the segment it closes, unless it had come out already.
    pub fn finalize(&mut self, heard: &Transcript, ids: &mut Ids, now: Instant) -> Option<Segment> {
        self.gives_interims = self.seen_interim;
        self.punctuates |= heard.text.contains(['.', ',', '?', '!']);
        let text = self.unsaid(heard, now);
        self.settle_promoted(heard, now);
        let text = text?;
        let (start_ms, duration_ms) = self.place(heard, &text, ids, now);
        let id = match self.open.take() {
            Some(open) => open.id,
            None => self.new_row(ids),
        };
        let confidence = plausible(heard.confidence);
        self.last_end_ms = start_ms.saturating_add(duration_ms).max(self.last_end_ms);
        let closed = Open { id, text, start_ms, duration_ms, confidence };
        Some(self.segment(&closed, true))
    }

    /// What was closed early and a final now covers is not told again; of what it covers in part,
    /// the rest may be.
    fn settle_promoted(&mut self, heard: &Transcript, now: Instant) {
        let until = stream_ms(heard).end;
        for promoted in self.promoted.iter_mut().filter(|promoted| promoted.may_be(heard, now)) {
            promoted.text = rest_of(&heard.text, &promoted.text).to_owned();
        }
        self.promoted.retain(|it| until < it.stream_ms.end && !it.text.is_empty());
    }

    /// Closes the open segment with its interim text: no final is waited for any longer.
    pub fn promote(&mut self, now: Instant) -> Option<Segment> {
        let open = self.open.take()?;
        self.last_end_ms = open.start_ms.saturating_add(open.duration_ms).max(self.last_end_ms);
        let segment = self.segment(&open, true);
        let stream_ms = self.open_stream_ms.clone();
        if self.promoted.len() >= MAX_PROMOTED {
            self.promoted.remove(0);
        }
        self.promoted.push(Promoted { text: open.text, stream_ms, at: now, is_past: false });
        Some(segment)
    }

    /// When the words ended by the provider's own word times, if it gives them.
    pub fn words_end(&self, heard: &Transcript, now: Instant) -> Option<Instant> {
        let end_ms = heard.words.last()?.end_ms;
        let at = self.stream_began?.checked_add(Duration::from_millis(end_ms))?;
        (end_ms > 0).then_some(at.min(now))
    }

    /// A row about something typed.
    pub fn typed(&self, text: &str, ids: &mut Ids, now: Instant) -> Segment {
        let start_ms = ids.ms(now);
        let open = Open {
            id: ids.user_row(),
            text: bounded(text).to_owned(),
            start_ms,
            duration_ms: 0,
            confidence: 1.0,
        };
        self.segment(&open, true)
    }

    /// What of a transcript has not come out with a stretch that was closed early; none if nothing.
    fn unsaid(&self, heard: &Transcript, now: Instant) -> Option<String> {
        let text = bounded(heard.text.trim());
        if text.is_empty() {
            return None;
        }
        let mut rest = text;
        for promoted in self.promoted.iter().filter(|promoted| promoted.may_be(heard, now)) {
            rest = rest_of(&promoted.text, rest);
        }
        (!rest.is_empty()).then(|| rest.to_owned())
    }

    /// Start and duration in ms since the session began: the provider's if they can be true, else
    /// from the detector, else estimated.
    fn place(&self, heard: &Transcript, text: &str, ids: &Ids, now: Instant) -> (u64, u64) {
        let now_ms = ids.ms(now);
        if let Some(stream_began) = self.stream_began
            && let Some((from, duration_ms)) = spoken_at(heard)
        {
            let start = ids.ms(stream_began).saturating_add(from);
            let end = start.saturating_add(duration_ms);
            if start <= now_ms && end >= self.last_end_ms {
                return (start, duration_ms.min(now_ms - start));
            }
        }
        if let Some(open) = &self.open {
            let end = self.voice.ended.map_or(now_ms, |at| ids.ms(at)).max(open.start_ms);
            return (open.start_ms, end - open.start_ms);
        }
        let end = self.voice.ended.map_or(now_ms, |at| ids.ms(at)).max(self.last_end_ms);
        let said = text.split_whitespace().count() as u64 * MS_PER_WORD;
        let start = match self.voice.began.map(|at| ids.ms(at)) {
            Some(began) if began <= end => began,
            _ => end.saturating_sub(said),
        };
        let start = start.max(self.last_end_ms);
        (start, end.saturating_sub(start))
    }

    fn segment(&self, open: &Open, is_final: bool) -> Segment {
        Segment {
            id: open.id.clone(),
            kind: SpeakerKind::User,
            speaker_id: self.identity.clone(),
            speaker_name: self.name.clone(),
            text: open.text.clone(),
            start_ms: open.start_ms,
            duration_ms: open.duration_ms,
            confidence: open.confidence,
            is_final,
        }
    }
}

/// Where in its stream a transcript is, in ms; `0..0` if the provider gives no times.
fn stream_ms(heard: &Transcript) -> Range<u64> {
    heard.start_ms..heard.start_ms.saturating_add(heard.duration_ms)
}

fn plausible(confidence: f32) -> f32 {
    if confidence.is_finite() { confidence.clamp(0.0, 1.0) } else { 0.0 }
}

/// `text`, cut at a character to the longest that a segment holds.
pub(super) fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// What `text` adds to `said`, if it is recognition's later word on the same stretch; all of
/// `text` if it is another.
fn rest_of<'a>(said: &str, text: &'a str) -> &'a str {
    let words = said.split_whitespace().count();
    let same = said.split_whitespace().zip(text.split_whitespace());
    let common = same.take_while(|(one, other)| is_same_word(one, other)).count();
    let is_part = common == text.split_whitespace().count();
    if common == 0 || common * 2 < words && !is_part {
        return text;
    }
    let mut rest = text;
    for _ in 0..words {
        rest = rest.trim_start();
        rest = rest.find(char::is_whitespace).map_or("", |end| &rest[end..]);
    }
    rest.trim_start()
}

pub(super) fn is_same_word(one: &str, other: &str) -> bool {
    let letters = |word: &str| -> Vec<char> {
        word.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    letters(one) == letters(other)
}

/// Start and duration in ms on the stream's clock, if the provider tells. A result spans all audio
/// since the one before it, silence and all, so the words' own times come first.
fn spoken_at(heard: &Transcript) -> Option<(u64, u64)> {
    if let (Some(first), Some(last)) = (heard.words.first(), heard.words.last())
        && last.end_ms > first.start_ms
    {
        return Some((first.start_ms, last.end_ms - first.start_ms));
    }
    let timed = heard.start_ms > 0 || heard.duration_ms > 0;
    timed.then_some((heard.start_ms, heard.duration_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stt::Word;

    #[test]
    fn words_are_placed_by_their_own_times_not_by_the_silence_before_them() {
        let word = |start_ms, end_ms| Word { text: "a".into(), start_ms, end_ms, confidence: 1.0 };
        let mut heard = Transcript { start_ms: 5_000, duration_ms: 4_000, ..Default::default() };
        assert_eq!(spoken_at(&heard), Some((5_000, 4_000)));
        heard.words = vec![word(7_200, 7_500), word(7_600, 8_000)];
        assert_eq!(spoken_at(&heard), Some((7_200, 800)));
        heard.words = vec![word(0, 0)];
        assert_eq!(spoken_at(&heard), Some((5_000, 4_000)));
        assert_eq!(spoken_at(&Transcript::default()), None);
    }

    #[test]
    fn the_final_after_an_early_close_adds_only_its_new_words() {
        assert_eq!(rest_of("book a", "Book a table."), "table.");
        assert_eq!(rest_of("book a table", "Book a table."), "");
        assert_eq!(rest_of("book a cable", "Book a table for two"), "for two");
        assert_eq!(rest_of("book a table", "for two"), "for two");
        assert_eq!(rest_of("book a table for two", "Book a"), "");
        assert_eq!(rest_of("I want to know", "I do"), "I do");
    }

    fn at(text: &str, from: u64, until: u64) -> Transcript {
        let duration_ms = until - from;
        Transcript { text: text.into(), start_ms: from, duration_ms, ..Transcript::default() }
    }

    #[test]
    fn a_recogniser_that_is_back_and_hears_all_again_tells_only_what_is_new() {
        let began = crate::clock::now();
        let mut ids = Ids::new("s".into(), began);
        let mut speaker = Speaker::new(SpeakerId(1), "a".into(), "A".into(), true);
        speaker.stream_begins(began);
        let mut now = began + Duration::from_secs(20);
        for (text, from, until) in [("book a table", 0, 900), ("for two", 9_000, 9_600)] {
            speaker.interim(&at(text, from, until), &mut ids, now);
            assert_eq!(speaker.promote(now).unwrap().text, text);
            // It is down; the user speaks on, and long after it is back.
            now += Duration::from_secs(15);
            speaker.new_speech();
        }
        let mut finals = |text, from, until| {
            speaker.finalize(&at(text, from, until), &mut ids, now).map(|row| row.text)
        };
        assert_eq!(finals("Book a", 0, 500), None);
        assert_eq!(finals("table.", 500, 1_000), None);
        assert_eq!(finals("For two please.", 1_000, 10_000).as_deref(), Some("please."));
        assert_eq!(finals("For two.", 40_000, 41_000).as_deref(), Some("For two."));
    }

    #[test]
    fn a_voice_never_ends_before_it_began_nor_in_the_future() {
        let now = crate::clock::now() + Duration::from_secs(1);
        let mut voice = Voice::default();
        voice.starts(100, now);
        assert_eq!(voice.ends(5_000, now), earlier(now, 100));
        assert_eq!(voice.lasted(now), Duration::ZERO);
    }
}
