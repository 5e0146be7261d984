//! What the double hears on one connection: pure, in the time of the audio itself.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::SttScript;
use crate::doubles::speech_detect::{SpeechDetector, Step};

/// Silence is settled by an empty final this often, as the service does.
const SETTLE_MS: u64 = 3_000;
/// Silence after which somebody counts as having said all.
const PAUSE_MS: u64 = 100;

/// Which utterance comes next, over all connections: what a broken connection had begun comes again.
#[derive(Debug, Clone, Default)]
pub struct Cursor(Arc<Mutex<Next>>);

#[derive(Debug, Default)]
struct Next {
    unused: usize,
    /// Utterance and how many of its segments were told as final.
    returned: BTreeMap<usize, usize>,
}

impl Cursor {
    /// Index of the utterance, and how many of its segments were told as final.
    pub fn take(&self) -> (usize, usize) {
        let mut next = self.0.lock();
        next.returned.pop_first().unwrap_or_else(|| {
            next.unused += 1;
            (next.unused - 1, 0)
        })
    }

    fn give_back(&self, index: usize, segments: usize) {
        self.0.lock().returned.insert(index, segments);
    }
}

#[derive(Debug)]
struct Utterance {
    index: usize,
    /// The words of each segment.
    segments: Vec<Vec<String>>,
    /// Segments told as final.
    done: usize,
    /// Words shown of the segment after those.
    shown: usize,
    /// Where that segment's first word begins, in ms.
    since_ms: u64,
}

/// One connection's ears. Give it audio, send what it says.
#[derive(Debug)]
pub struct Hearing {
    script: Arc<SttScript>,
    cursor: Cursor,
    detector: SpeechDetector,
    steps: Vec<Step>,
    current: Option<Utterance>,
    /// Everything before is final.
    settled_ms: u64,
    /// When `UtteranceEnd` is due, and for which end of the last word.
    utterance_end: Option<(u64, u64)>,
    /// As asked in the query; 0: never.
    utterance_end_ms: u64,
}

impl Hearing {
    pub fn new(script: Arc<SttScript>, cursor: Cursor, utterance_end_ms: u64) -> Self {
        // Shorter than the pause between words, a hang-over would cut utterances into pieces.
        let hang_over = script.final_delay.max(script.hang_over).as_millis() as u64;
        Self {
            script,
            cursor,
            detector: SpeechDetector::new(hang_over),
            steps: Vec::new(),
            current: None,
            settled_ms: 0,
            utterance_end: None,
            utterance_end_ms,
        }
    }

    /// Audio heard so far, in ms.
    pub const fn now_ms(&self) -> u64 {
        self.detector.now_ms()
    }

    /// 16 kHz mono s16.
    pub fn hear(&mut self, samples: &[i16], out: &mut Vec<Value>) {
        let mut steps = std::mem::take(&mut self.steps);
        self.detector.push(samples, &mut steps);
        for step in steps.drain(..) {
            self.step(step, out);
        }
        self.steps = steps;
    }

    /// Answers `Finalize`: what was said so far is final now. Who still speaks says the rest later.
    pub fn finalize(&mut self, out: &mut Vec<Value>) {
        let now_ms = self.now_ms();
        if self.detector.silence_ms() < PAUSE_MS && self.split(now_ms, out) {
            return;
        }
        self.detector.restart();
        if self.current.is_some() {
            self.finish(now_ms, now_ms, true, out);
        } else {
            out.push(self.results(&[], now_ms, Close { finalize: true, ..Close::SEGMENT }));
            self.settled_ms = now_ms;
        }
    }

    /// Tells the words that there was time for; false if those are all.
    fn split(&mut self, now_ms: u64, out: &mut Vec<Value>) -> bool {
        let word_ms = (self.script.word.as_millis() as u64).max(1);
        let Some(current) = &mut self.current else { return false };
        let is_last = current.done + 1 >= current.segments.len();
        let Some(words) = current.segments.get_mut(current.done) else { return false };
        let said = (now_ms.saturating_sub(current.since_ms) / word_ms) as usize + 1;
        if said >= words.len() && is_last {
            return false;
        }
        let rest = words.split_off(said.min(words.len()));
        let timed = timed(words, current.since_ms, now_ms);
        if rest.is_empty() {
            current.done += 1;
        } else {
            *words = rest;
        }
        current.shown = 0;
        current.since_ms = now_ms;
        out.push(self.results(&timed, now_ms, Close { finalize: true, ..Close::SEGMENT }));
        self.settled_ms = now_ms;
        true
    }

    /// Answers `CloseStream`: the last finals.
    pub fn close(&mut self, out: &mut Vec<Value>) {
        let now_ms = self.now_ms();
        if self.current.is_some() {
            self.finish(now_ms, now_ms, false, out);
        }
    }

    /// Lets go of the utterance that is going on: another connection will hear it.
    pub fn give_back(&mut self) {
        if let Some(current) = self.current.take() {
            self.cursor.give_back(current.index, current.done);
        }
    }

    fn step(&mut self, step: Step, out: &mut Vec<Value>) {
        match step {
            Step::Silence { now_ms } => {
                if let Some((_, last_word_ms)) =
                    self.utterance_end.take_if(|(due_ms, _)| *due_ms <= now_ms)
                {
                    let last_word_end = seconds(last_word_ms);
                    out.push(json!({
                        "type": "UtteranceEnd", "channel": [0, 1], "last_word_end": last_word_end,
                    }));
                }
                if now_ms - self.settled_ms >= SETTLE_MS {
                    out.push(self.results(&[], now_ms, Close::SEGMENT));
                    self.settled_ms = now_ms;
                }
            }
            Step::Started { at_ms, now_ms } => {
                self.utterance_end = None;
                let (index, done) = self.cursor.take();
                let segments = self.script.segments(index);
                self.current = Some(Utterance { index, segments, done, shown: 0, since_ms: at_ms });
                out.push(json!({
                    "type": "SpeechStarted", "channel": [0, 1], "timestamp": seconds(at_ms),
                }));
                self.grow(now_ms, out);
            }
            Step::Speaking { now_ms } => self.grow(now_ms, out),
            Step::Ended { at_ms, now_ms } => {
                self.finish(at_ms, now_ms, false, out);
                if self.utterance_end_ms > 0 {
                    self.utterance_end = Some((at_ms + self.utterance_end_ms, at_ms));
                }
            }
        }
    }

    /// Shows one word more when its time has come; closes a segment that others follow.
    fn grow(&mut self, now_ms: u64, out: &mut Vec<Value>) {
        let word_ms = (self.script.word.as_millis() as u64).max(1);
        let Some(current) = &mut self.current else { return };
        let Some(words) = current.segments.get(current.done) else { return };
        let spoken = (now_ms.saturating_sub(current.since_ms) / word_ms) as usize;
        let shown = (spoken + 1).min(words.len());
        let is_last = current.done + 1 == current.segments.len();
        if !is_last && spoken >= words.len() {
            let timed = timed(words, current.since_ms, now_ms);
            current.done += 1;
            current.shown = 0;
            current.since_ms = now_ms;
            out.push(self.results(&timed, now_ms, Close::SEGMENT));
            self.settled_ms = now_ms;
        } else if shown > current.shown {
            current.shown = shown;
            let timed = timed(&words[..shown], current.since_ms, now_ms);
            out.push(self.results(&timed, now_ms, Close::INTERIM));
        }
    }

    /// Tells the rest of the utterance as final.
    fn finish(&mut self, end_ms: u64, now_ms: u64, finalize: bool, out: &mut Vec<Value>) {
        let Some(current) = self.current.take() else { return };
        let rest = &current.segments[current.done.min(current.segments.len())..];
        let Some((last, others)) = rest.split_last() else { return };
        let mut since_ms = current.since_ms;
        for (n, words) in others.iter().enumerate() {
            let until_ms = since_ms + (end_ms - since_ms.min(end_ms)) / (rest.len() - n) as u64;
            let timed = timed(words, since_ms, until_ms);
            out.push(self.results(&timed, until_ms, Close::SEGMENT));
            self.settled_ms = until_ms;
            since_ms = until_ms;
        }
        let timed = timed(last, since_ms, end_ms);
        let speech = !finalize && self.script.speech_final;
        out.push(self.results(&timed, now_ms, Close { is_final: true, speech, finalize }));
        self.settled_ms = now_ms;
    }

    fn results(&self, words: &[(String, u64, u64)], now_ms: u64, close: Close) -> Value {
        let text: Vec<&str> = words.iter().map(|(word, ..)| word.as_str()).collect();
        let confidence = if words.is_empty() { 0.0 } else { self.script.confidence };
        let words: Vec<Value> = words
            .iter()
            .map(|(word, start_ms, end_ms)| {
                let bare = word.trim_matches(|c: char| c.is_ascii_punctuation()).to_lowercase();
                json!({
                    "word": bare, "punctuated_word": word, "confidence": confidence,
                    "start": seconds(*start_ms), "end": seconds(*end_ms),
                })
            })
            .collect();
        json!({
            "type": "Results",
            "channel_index": [0, 1],
            "start": seconds(self.settled_ms),
            "duration": seconds(now_ms.saturating_sub(self.settled_ms)),
            "is_final": close.is_final,
            "speech_final": close.speech,
            "from_finalize": close.finalize,
            "channel": {"alternatives": [
                {"transcript": text.join(" "), "confidence": confidence, "words": words},
            ]},
        })
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// What a `Results` message closes.
#[derive(Debug, Clone, Copy)]
struct Close {
    is_final: bool,
    speech: bool,
    finalize: bool,
}

impl Close {
    const INTERIM: Self = Self { is_final: false, speech: false, finalize: false };
    const SEGMENT: Self = Self { is_final: true, ..Self::INTERIM };
}

/// The words spread evenly from `start_ms` to `end_ms`.
fn timed(words: &[String], start_ms: u64, end_ms: u64) -> Vec<(String, u64, u64)> {
    let (count, length) = (words.len() as u64, end_ms.saturating_sub(start_ms));
    let at = |n: u64| start_ms + length * n / count.max(1);
    (0..).zip(words).map(|(n, word)| (word.clone(), at(n), at(n + 1))).collect()
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn audio(parts: &[(u64, i16)]) -> Vec<i16> {
        let samples = parts.iter().flat_map(|&(ms, level)| {
            (0..ms * 16).map(move |n| if n % 20 < 10 { level } else { -level })
        });
        samples.collect()
    }

    fn brief(message: &Value) -> String {
        let flags: String = [("is_final", 'F'), ("speech_final", 'S'), ("from_finalize", 'R')]
            .iter()
            .filter(|(key, _)| message[key] == true)
            .map(|(_, letter)| letter)
            .collect();
        match message["type"].as_str() {
            Some("Results") => {
                format!(
                    "{flags}:{}",
                    message["channel"]["alternatives"][0]["transcript"].as_str().unwrap()
                )
            }
            other => other.unwrap_or_default().to_owned(),
        }
    }

    fn heard(script: SttScript, parts: &[(u64, i16)]) -> Vec<String> {
        let mut hearing = Hearing::new(Arc::new(script), Cursor::default(), 1_000);
        let mut out = Vec::new();
        hearing.hear(&audio(parts), &mut out);
        out.iter().map(brief).collect()
    }

    #[test]
    fn interims_grow_and_the_final_comes_when_the_silence_is_long_enough() {
        let script =
            SttScript::new().utterance("book a table").final_delay(Duration::from_millis(300));
        assert_eq!(
            heard(script.clone(), &[(700, 3_000), (290, 0)]),
            ["SpeechStarted", ":book", ":book a", ":book a table"]
        );
        assert_eq!(
            heard(script, &[(700, 3_000), (1_000, 0)])[4..],
            ["FS:book a table", "UtteranceEnd"]
        );
    }

    #[test]
    fn segments_of_one_utterance_close_while_speech_goes_on() {
        let script = SttScript::new().utterance("book a table").then("for two");
        assert_eq!(
            heard(script, &[(1_100, 3_000), (500, 0)]),
            [
                "SpeechStarted",
                ":book",
                ":book a",
                ":book a table",
                "F:book a table",
                ":for",
                ":for two",
                "FS:for two"
            ]
        );
    }

    #[test]
    fn more_utterances_than_scripted_are_numbered() {
        let script = SttScript::new().utterance("one");
        let told = heard(script, &[(300, 3_000), (300, 0), (300, 3_000), (300, 0)]);
        assert_eq!(told.last().unwrap(), "FS:utterance 2");
    }

    #[test]
    fn what_a_broken_connection_had_begun_comes_again_on_the_next() {
        let script = Arc::new(SttScript::new().utterance("first").utterance("second"));
        let cursor = Cursor::default();
        let mut out = Vec::new();
        let mut broken = Hearing::new(script.clone(), cursor.clone(), 0);
        broken.hear(&audio(&[(300, 3_000)]), &mut out);
        drop(broken);
        out.clear();
        Hearing::new(script, cursor, 0).hear(&audio(&[(300, 3_000), (300, 0)]), &mut out);
        assert_eq!(brief(out.last().unwrap()), "FS:first");
    }

    #[test]
    fn finalize_in_mid_speech_closes_what_was_said_and_the_rest_comes_later() {
        let script = Arc::new(SttScript::new().utterance("one two three four five"));
        let mut hearing = Hearing::new(script, Cursor::default(), 0);
        let mut out = Vec::new();
        hearing.hear(&audio(&[(300, 3_000)]), &mut out);
        out.clear();
        hearing.finalize(&mut out);
        assert_eq!(out.iter().map(brief).collect::<Vec<_>>(), ["FR:one two"]);
        out.clear();
        hearing.hear(&audio(&[(300, 3_000), (300, 0)]), &mut out);
        assert_eq!(brief(out.last().unwrap()), "FS:three four five");
    }

    #[test]
    fn finalize_closes_at_once_and_times_are_the_audios() {
        let script = Arc::new(SttScript::new().utterance("stop it"));
        let mut hearing = Hearing::new(script, Cursor::default(), 0);
        let mut out = Vec::new();
        hearing.hear(&audio(&[(100, 0), (400, 3_000)]), &mut out);
        out.clear();
        hearing.finalize(&mut out);
        assert_eq!(out.iter().map(brief).collect::<Vec<_>>(), ["FR:stop it"]);
        assert_eq!(out[0]["start"], 0.0);
        assert_eq!(out[0]["duration"], 0.5);
        let words = &out[0]["channel"]["alternatives"][0]["words"];
        assert_eq!((&words[0]["start"], &words[1]["end"]), (&json!(0.1), &json!(0.5)));
    }
}
