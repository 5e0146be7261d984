//! Who speaks what: commands and the voices' events go in, commands to voices and events for the
//! session come out. No I/O, no clock.

use std::collections::VecDeque;

use crate::tts::{
    SpeechId, TimedText, TtsCommand, TtsError, TtsEvent,
    words::{estimated, spread},
};

/// Speeches at the same time.
const MAX_SPEECHES: usize = 32;
/// Longest text of one speech, in bytes.
const MAX_TEXT: usize = 64 << 10;

/// Something to be sent to a voice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    pub voice: usize,
    pub command: TtsCommand,
}

/// One speech, whoever speaks it.
#[derive(Debug)]
struct Speech {
    id: SpeechId,
    /// As its voice knows it.
    inner: SpeechId,
    voice: usize,
    /// Who may be asked next.
    others: VecDeque<usize>,
    text: String,
    finished: bool,
    /// Where the present voice's share begins: in the text, in bytes, and in the audio, in samples.
    from: usize,
    from_sample: u64,
    samples: u64,
    /// Bytes of the text up to which words have been told as spoken.
    spoken: usize,
    /// Words whose audio is not all there yet.
    coming: VecDeque<TimedText>,
    /// The words told do not follow the text.
    astray: bool,
}

/// After every `handle_*`, drain `poll_action` and `poll_event` to `None`.
#[derive(Debug)]
pub struct Baton {
    voices: usize,
    /// A voice alone takes its speech up again that broke.
    takes_up: bool,
    rate: u64,
    speeches: Vec<Speech>,
    newest: Option<SpeechId>,
    inner: u64,
    actions: VecDeque<Action>,
    events: VecDeque<TtsEvent>,
}

impl Baton {
    /// `rate`: of the audio that the voices' events carry, in Hz.
    pub fn new(voices: usize, rate: u32) -> Self {
        Self {
            voices,
            takes_up: true,
            rate: u64::from(rate.max(1)),
            speeches: Vec::new(),
            newest: None,
            inner: 0,
            actions: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// What breaks is an error, though the voice might go on: a recording has no seam.
    #[must_use]
    pub fn without_taking_up(self, without: bool) -> Self {
        Self { takes_up: !without, ..self }
    }

    /// Whether what a voice tells of this speech is still wanted.
    pub fn awaits(&self, voice: usize, inner: SpeechId) -> bool {
        self.speeches.iter().any(|speech| speech.voice == voice && speech.inner == inner)
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub fn poll_event(&mut self) -> Option<TtsEvent> {
        self.events.pop_front()
    }

    /// Whether a speech of this name was begun.
    pub fn knows(&self, id: SpeechId) -> bool {
        self.newest.is_some_and(|newest| id <= newest)
    }

    /// `order`: whom a new speech is given to, the best first.
    pub fn handle_command(&mut self, command: TtsCommand, order: &[usize]) {
        match command {
            TtsCommand::Speak { id, text } => {
                let Some(at) = self.find_or_begin(id, order) else { return };
                let speech = &mut self.speeches[at];
                if speech.finished {
                    return;
                }
                if speech.text.len() + text.len() > MAX_TEXT {
                    let error = TtsError::Rejected("the text is too long".into());
                    self.cancel(at);
                    self.events.push_back(TtsEvent::Error { id, error });
                    return;
                }
                speech.text.push_str(&text);
                let (voice, id) = (speech.voice, speech.inner);
                self.act(voice, TtsCommand::Speak { id, text });
            }
            TtsCommand::Finish { id } => {
                let Some(at) = self.find_or_begin(id, order) else { return };
                let speech = &mut self.speeches[at];
                if !std::mem::replace(&mut speech.finished, true) {
                    let (voice, id) = (speech.voice, speech.inner);
                    self.act(voice, TtsCommand::Finish { id });
                }
            }
            TtsCommand::Cancel { id } => {
                self.newest = self.newest.max(Some(id));
                self.events.retain(|event| match event {
                    TtsEvent::Audio { id: of, .. }
                    | TtsEvent::Alignment { id: of, .. }
                    | TtsEvent::End { id: of }
                    | TtsEvent::Error { id: of, .. } => *of != id,
                    TtsEvent::Usage { .. } => true,
                });
                if let Some(at) = self.speeches.iter().position(|speech| speech.id == id) {
                    self.cancel(at);
                }
            }
        }
    }

    /// Something that a voice told, its audio at the rate of the baton.
    pub fn handle_event(&mut self, voice: usize, event: TtsEvent) {
        let inner = match &event {
            TtsEvent::Audio { id, .. }
            | TtsEvent::Alignment { id, .. }
            | TtsEvent::End { id }
            | TtsEvent::Error { id, .. } => *id,
            TtsEvent::Usage { characters, .. } => {
                let (link, characters) = (u8::try_from(voice).unwrap_or(u8::MAX), *characters);
                self.events.push_back(TtsEvent::Usage { link, characters });
                return;
            }
        };
        let is_it = |speech: &Speech| speech.voice == voice && speech.inner == inner;
        let Some(at) = self.speeches.iter().position(is_it) else { return };
        match event {
            TtsEvent::Audio { samples, .. } => {
                let speech = &mut self.speeches[at];
                if !samples.is_empty() {
                    speech.samples += samples.len() as u64;
                    self.events.push_back(TtsEvent::Audio { id: speech.id, samples });
                }
                self.tell_words(at, false);
            }
            TtsEvent::Alignment { words, .. } => {
                let speech = &mut self.speeches[at];
                let base_ms = speech.from_sample * 1_000 / self.rate;
                speech.coming.extend(words.into_iter().map(|word| TimedText {
                    start_ms: word.start_ms + base_ms,
                    end_ms: word.end_ms + base_ms,
                    ..word
                }));
                self.tell_words(at, false);
            }
            TtsEvent::End { .. } => {
                let speech = &self.speeches[at];
                if speech.samples == speech.from_sample && is_audible(&speech.text[speech.from..]) {
                    let error = TtsError::Interrupted("the speech ended without audio".into());
                    self.pass_on(at, error);
                    return;
                }
                self.tell_words(at, true);
                let speech = self.speeches.remove(at);
                self.events.push_back(TtsEvent::End { id: speech.id });
            }
            TtsEvent::Error { error, .. } => self.pass_on(at, error),
            TtsEvent::Usage { .. } => {}
        }
    }

    /// A voice is gone, with all that it was speaking.
    pub fn handle_gone(&mut self, voice: usize) {
        for at in (0..self.speeches.len()).rev() {
            if self.speeches[at].voice == voice {
                self.pass_on(at, TtsError::Interrupted("the voice is gone".into()));
            }
        }
    }

    fn find_or_begin(&mut self, id: SpeechId, order: &[usize]) -> Option<usize> {
        if let Some(at) = self.speeches.iter().position(|speech| speech.id == id) {
            return Some(at);
        }
        // Ids grow, so this one has ended.
        if self.knows(id) {
            return None;
        }
        self.newest = Some(id);
        let mut others: VecDeque<usize> =
            order.iter().copied().filter(|voice| *voice < self.voices).collect();
        let voice = others.pop_front().unwrap_or(0);
        if self.speeches.len() >= MAX_SPEECHES {
            let error = TtsError::Rejected("too many speeches at once".into());
            self.events.push_back(TtsEvent::Error { id, error });
            return None;
        }
        let inner = self.next_inner();
        self.speeches.push(Speech {
            id,
            inner,
            voice,
            others,
            text: String::new(),
            finished: false,
            from: 0,
            from_sample: 0,
            samples: 0,
            spoken: 0,
            coming: VecDeque::new(),
            astray: false,
        });
        Some(self.speeches.len() - 1)
    }

    fn next_inner(&mut self) -> SpeechId {
        self.inner += 1;
        SpeechId(self.inner)
    }

    fn act(&mut self, voice: usize, command: TtsCommand) {
        self.actions.push_back(Action { voice, command });
    }

    fn cancel(&mut self, at: usize) {
        let speech = self.speeches.remove(at);
        self.act(speech.voice, TtsCommand::Cancel { id: speech.inner });
    }

    /// Tells the words whose audio is there.
    fn tell_words(&mut self, at: usize, all: bool) {
        let speech = &mut self.speeches[at];
        let audio_ms = speech.samples * 1_000 / self.rate;
        let mut words = Vec::new();
        while let Some(word) = speech.coming.pop_front_if(|word| all || word.end_ms <= audio_ms) {
            let ahead = speech.text.get(speech.spoken..).unwrap_or_default();
            if ahead.starts_with(&word.text) {
                speech.spoken += word.text.len();
            } else if ahead.trim_start().starts_with(word.text.trim()) {
                let spaces = ahead.len() - ahead.trim_start().len();
                speech.spoken += spaces + word.text.trim().len();
            } else {
                speech.astray = true;
            }
            words.push(word);
        }
        if !words.is_empty() {
            self.events.push_back(TtsEvent::Alignment { id: speech.id, words });
        }
    }

    /// The voice has failed: the next goes on with what was not spoken.
    fn pass_on(&mut self, at: usize, error: TtsError) {
        let rate = self.rate;
        let speech = &mut self.speeches[at];
        // A voice alone takes up its own speech, once; it has tried by itself what nobody heard.
        let heard = speech.samples > speech.from_sample;
        let is_alone = speech.others.is_empty()
            && speech.from_sample == 0
            && self.voices == 1
            && self.takes_up;
        let may_help = matches!(error, TtsError::Interrupted(_) | TtsError::Timeout(_));
        let next = match speech.others.pop_front() {
            Some(voice) => Some(voice),
            None if is_alone && heard && may_help => Some(speech.voice),
            None => None,
        };
        let Some(voice) = next else {
            let speech = self.speeches.remove(at);
            self.events.push_back(TtsEvent::Error { id: speech.id, error });
            return;
        };
        let audio_ms = speech.samples * 1_000 / rate;
        let from_ms = speech.from_sample * 1_000 / rate;
        speech.coming.clear();
        if heard && (speech.astray || speech.spoken <= speech.from) {
            // No alignment to go by: an estimate, which the session is told as the alignment.
            let share = &speech.text[speech.from..];
            let to = speech.from + estimated(share, audio_ms - from_ms);
            let words = spread(&speech.text[speech.from..to], from_ms, audio_ms);
            if !speech.astray && !words.is_empty() {
                self.events.push_back(TtsEvent::Alignment { id: speech.id, words });
            }
            speech.spoken = to;
        }
        speech.from = speech.spoken.max(speech.from);
        speech.spoken = speech.from;
        speech.astray = false;
        speech.from_sample = speech.samples;
        speech.voice = voice;
        let rest = speech.text[speech.from..].to_owned();
        let finished = speech.finished;
        if finished && !is_audible(&rest) && heard {
            let speech = self.speeches.remove(at);
            self.events.push_back(TtsEvent::End { id: speech.id });
            return;
        }
        let id = self.next_inner();
        self.speeches[at].inner = id;
        if !rest.is_empty() {
            self.act(voice, TtsCommand::Speak { id, text: rest });
        }
        if finished {
            self.act(voice, TtsCommand::Finish { id });
        }
    }
}

fn is_audible(text: &str) -> bool {
    text.chars().any(char::is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tts::words::MS_PER_CHAR;

    const ID: SpeechId = SpeechId(7);
    /// One sample a ms.
    const RATE: u32 = 1_000;

    struct Bench(Baton);

    impl Bench {
        fn new(voices: usize) -> Self {
            Self(Baton::new(voices, RATE))
        }

        fn say(&mut self, text: &str) {
            let order: Vec<usize> = (0..self.0.voices).collect();
            let command = TtsCommand::Speak { id: ID, text: text.into() };
            self.0.handle_command(command, &order);
        }

        fn finish(&mut self) {
            self.0.handle_command(TtsCommand::Finish { id: ID }, &[0, 1]);
        }

        fn actions(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.0.poll_action())
                .map(|Action { voice, command }| match command {
                    TtsCommand::Speak { id, text } => format!("{voice} says {} {text:?}", id.0),
                    TtsCommand::Finish { id } => format!("{voice} ends {}", id.0),
                    TtsCommand::Cancel { id } => format!("{voice} drops {}", id.0),
                })
                .collect()
        }

        fn events(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.0.poll_event())
                .map(|event| match event {
                    TtsEvent::Audio { samples, .. } => format!("{} ms", samples.len()),
                    TtsEvent::Alignment { words, .. } => words
                        .iter()
                        .map(|it| format!("{}@{}-{}", it.text, it.start_ms, it.end_ms))
                        .collect::<Vec<_>>()
                        .join("|"),
                    TtsEvent::End { .. } => "end".into(),
                    TtsEvent::Error { error, .. } => format!("{error}"),
                    TtsEvent::Usage { .. } => "usage".into(),
                })
                .collect()
        }

        fn audio(&mut self, voice: usize, inner: u64, ms: usize) {
            let event = TtsEvent::Audio { id: SpeechId(inner), samples: vec![0; ms] };
            self.0.handle_event(voice, event);
        }

        fn words(&mut self, voice: usize, inner: u64, words: &[(&str, u64, u64)]) {
            let words = words
                .iter()
                .map(|(text, start_ms, end_ms)| TimedText {
                    text: (*text).into(),
                    start_ms: *start_ms,
                    end_ms: *end_ms,
                })
                .collect();
            let event = TtsEvent::Alignment { id: SpeechId(inner), words };
            self.0.handle_event(voice, event);
        }

        fn fails(&mut self, voice: usize, inner: u64) {
            let error = TtsError::Interrupted("broken".into());
            self.0.handle_event(voice, TtsEvent::Error { id: SpeechId(inner), error });
        }

        fn ends(&mut self, voice: usize, inner: u64) {
            self.0.handle_event(voice, TtsEvent::End { id: SpeechId(inner) });
        }
    }

    #[test]
    fn the_next_goes_on_at_the_first_word_that_was_not_spoken() {
        let mut bench = Bench::new(2);
        bench.say("One two three ");
        bench.words(0, 1, &[("One ", 0, 300), ("two ", 300, 600), ("three ", 600, 900)]);
        bench.audio(0, 1, 700);
        bench.fails(0, 1);
        bench.say("four.");
        bench.finish();
        assert_eq!(
            bench.actions(),
            [
                "0 says 1 \"One two three \"",
                "1 says 2 \"three \"",
                "1 says 2 \"four.\"",
                "1 ends 2"
            ]
        );
        bench.audio(1, 2, 800);
        bench.words(1, 2, &[("three ", 0, 300), ("four.", 300, 800)]);
        bench.ends(1, 2);
        assert_eq!(
            bench.events(),
            [
                "700 ms",
                "One @0-300|two @300-600",
                "800 ms",
                "three @700-1000|four.@1000-1500",
                "end"
            ]
        );
    }

    #[test]
    fn without_alignment_the_place_is_estimated_and_told() {
        let mut bench = Bench::new(2);
        bench.say("One two three four five six");
        bench.finish();
        bench.audio(0, 1, 12 * MS_PER_CHAR as usize);
        bench.fails(0, 1);
        assert_eq!(bench.actions()[2..], ["1 says 2 \"three four five six\"", "1 ends 2"]);
        assert_eq!(bench.events()[1], "One @0-306|two @408-714");
    }

    #[test]
    fn what_was_never_heard_is_said_from_the_beginning() {
        let mut bench = Bench::new(3);
        bench.say("Hello there.");
        bench.finish();
        bench.fails(0, 1);
        bench.0.handle_gone(1);
        bench.audio(2, 3, 500);
        bench.ends(2, 3);
        assert_eq!(bench.events(), ["500 ms", "end"]);
        assert_eq!(bench.actions().last().unwrap(), "2 ends 3");
    }

    #[test]
    fn when_nobody_is_left_it_is_an_error() {
        let mut bench = Bench::new(2);
        bench.say("Hello.");
        bench.fails(0, 1);
        bench.fails(1, 2);
        assert_eq!(bench.events(), ["the stream broke off: broken"]);
        bench.say("more");
        assert!(bench.events().is_empty(), "the speech is over");
    }

    #[test]
    fn a_voice_alone_takes_up_its_own_speech_once() {
        let mut bench = Bench::new(1);
        bench.say("One two");
        bench.finish();
        bench.words(0, 1, &[("One ", 0, 300)]);
        bench.audio(0, 1, 400);
        bench.fails(0, 1);
        assert_eq!(bench.actions()[2..], ["0 says 2 \"two\"", "0 ends 2"]);
        bench.fails(0, 2);
        assert_eq!(bench.events().last().unwrap(), "the stream broke off: broken");
    }

    #[test]
    fn what_is_spoken_for_keeps_is_not_taken_up() {
        let mut bench = Bench(Baton::new(1, RATE).without_taking_up(true));
        bench.say("One two");
        bench.finish();
        bench.words(0, 1, &[("One ", 0, 300)]);
        bench.audio(0, 1, 400);
        bench.fails(0, 1);
        assert_eq!(bench.events().last().unwrap(), "the stream broke off: broken");
    }

    #[test]
    fn a_failure_after_the_last_word_is_an_end() {
        let mut bench = Bench::new(2);
        bench.say("One. ");
        bench.finish();
        bench.words(0, 1, &[("One. ", 0, 300)]);
        bench.audio(0, 1, 400);
        bench.fails(0, 1);
        assert_eq!(bench.events().last().unwrap(), "end");
    }

    #[test]
    fn a_cancelled_speech_says_no_more() {
        let mut bench = Bench::new(2);
        bench.say("One");
        bench.audio(0, 1, 10);
        bench.0.handle_command(TtsCommand::Cancel { id: ID }, &[]);
        bench.audio(0, 1, 10);
        bench.fails(0, 1);
        assert!(bench.events().is_empty());
        assert_eq!(bench.actions()[1..], ["0 drops 1"]);
    }

    proptest! {
        /// Whatever breaks, every word is told once and in order.
        #[test]
        fn every_word_is_spoken_by_somebody(
            words in proptest::collection::vec("[a-zé]{1,7} ", 1..12),
            breaks in proptest::collection::vec(0_usize..12, 0..2),
        ) {
            let text = words.concat();
            let mut bench = Bench::new(3);
            bench.say(&text);
            bench.finish();
            let mut breaks = breaks.into_iter();
            let mut told = String::new();
            for _ in 0..3 {
                let actions: Vec<_> = std::iter::from_fn(|| bench.0.poll_action()).collect();
                let Some(Action { voice, command: TtsCommand::Speak { id, text } }) =
                    actions.into_iter().find(|it| matches!(it.command, TtsCommand::Speak { .. }))
                else { break };
                let share: Vec<&str> = text.split_inclusive(' ').collect();
                let until = breaks.next().unwrap_or(usize::MAX).min(share.len());
                let timed: Vec<_> = share.iter().enumerate()
                    .map(|(n, word)| (*word, n as u64 * 100, n as u64 * 100 + 100)).collect();
                bench.words(voice, id.0, &timed);
                bench.audio(voice, id.0, until * 100 + usize::from(until < share.len()) * 50);
                if until < share.len() {
                    bench.fails(voice, id.0);
                } else {
                    bench.ends(voice, id.0);
                }
                for event in std::iter::from_fn(|| bench.0.poll_event()) {
                    if let TtsEvent::Alignment { words, .. } = event {
                        told.extend(words.into_iter().map(|word| word.text));
                    }
                }
            }
            prop_assert_eq!(told, text);
        }
    }
}
