//! What an agent says again and again, spoken once: greeting, apology, filler. It is heard at once,
//! whatever becomes of the provider.
//!
//! [`Phrases`] holds the audio in memory and fetches what is missing, off the audio path: the phrases
//! of an agent file are kept on disk for the next process ([`disk`]); what merely repeats may name
//! people, and stays in memory. [`Cached`] stands before a voice: where a speech begins with a
//! phrase that is there, its audio is told, and the voice is given the rest. What a model streams
//! word by word is no phrase.

pub mod disk;

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use metrics::counter;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use self::disk::Disk;
use super::{SpeechId, TimedText, Tts, TtsCommand, TtsConnection, TtsError, TtsEvent};
use crate::{clock, telemetry::metrics as names};

/// Longest phrase, in bytes.
const MAX_TEXT: usize = 500;
/// Longest audio of a phrase, in s.
const MAX_SECONDS: usize = 60;
/// Phrases of an agent file.
const MAX_FIXED: usize = 64;
/// Phrases that repeat; beyond this the one that was spoken the longest ago goes.
const MAX_REPEATED: usize = 16;
/// Texts that were spoken once, remembered by their hash.
const MAX_ONCE: usize = 256;
/// How long the voice may take for one phrase.
const FETCH: Duration = Duration::from_secs(30);
/// After a failure nothing is fetched for this long.
const PAUSE: Duration = Duration::from_mins(1);
/// Audio is told in pieces of so many ms.
const PIECE_MS: u64 = 200;
const COMMANDS: usize = 1_024;
const EVENTS: usize = 256;
/// Speeches that are being followed at once.
const MAX_SPEECHES: usize = 64;

/// A phrase as it was spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phrase {
    /// Mono s16 at the voice's rate.
    pub samples: Vec<i16>,
    pub words: Vec<TimedText>,
}

#[derive(Debug, Default)]
struct Known {
    fixed: HashMap<String, Option<Arc<Phrase>>>,
    /// The last spoken at the back.
    repeated: VecDeque<(String, Option<Arc<Phrase>>)>,
    /// Hashes of texts that were spoken once.
    once: VecDeque<u64>,
    is_fetching: bool,
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct Shared {
    /// Speaks what is missing: the preferred voice, and no other in its place.
    voice: Arc<dyn Tts>,
    /// Names the voice and all its settings.
    key: String,
    disk: Option<Disk>,
    hasher: RandomState,
    known: Mutex<Known>,
}

/// The phrases of one agent. Clones share them.
#[derive(Debug, Clone)]
pub struct Phrases(Arc<Shared>);

impl Phrases {
    /// `fixed`: what the agent file has it say. `key` must tell apart all that sounds different.
    pub fn new(
        voice: Arc<dyn Tts>,
        key: String,
        fixed: impl IntoIterator<Item = String>,
        disk: Option<Disk>,
    ) -> Self {
        let fixed = fixed.into_iter().filter(|text| is_phrase(text)).take(MAX_FIXED);
        let fixed = fixed.map(|text| (text.trim().to_owned(), None)).collect();
        let known = Mutex::new(Known { fixed, ..Known::default() });
        Self(Arc::new(Shared { voice, key, disk, hasher: RandomState::new(), known }))
    }

    /// The longest phrase that a text begins with, and how many bytes of the text it is.
    fn find(&self, text: &str) -> Option<(usize, Arc<Phrase>)> {
        let trimmed = text.trim_start();
        let begins = |phrase: &str| {
            let rest = trimmed.strip_prefix(phrase)?;
            rest.chars().next().is_none_or(char::is_whitespace).then_some(phrase.len())
        };
        let mut known = self.0.known.lock();
        let fixed =
            known.fixed.iter().filter_map(|(text, phrase)| Some((begins(text)?, phrase.clone()?)));
        let found = fixed.max_by_key(|(length, _)| *length);
        let found = found.or_else(|| {
            let whole = trimmed.trim_end();
            let at = known.repeated.iter().position(|(text, _)| text == whole)?;
            let used = known.repeated.remove(at)?;
            let phrase = used.1.clone();
            known.repeated.push_back(used);
            Some((whole.len(), phrase?))
        });
        found.map(|(length, phrase)| (text.len() - trimmed.len() + length, phrase))
    }

    /// A whole speech that came in one piece. The second time, it is fetched for the third.
    fn note(&self, text: &str) {
        let text = text.trim();
        if !is_phrase(text) {
            return;
        }
        let hash = self.0.hasher.hash_one(text);
        let mut known = self.0.known.lock();
        if known.fixed.contains_key(text) || known.repeated.iter().any(|(it, _)| it == text) {
            return;
        }
        if let Some(at) = known.once.iter().position(|it| *it == hash) {
            known.once.remove(at);
            if known.repeated.len() == MAX_REPEATED {
                known.repeated.pop_front();
            }
            known.repeated.push_back((text.to_owned(), None));
            drop(known);
            self.fetch();
        } else {
            if known.once.len() == MAX_ONCE {
                known.once.pop_front();
            }
            known.once.push_back(hash);
        }
    }

    /// Sees to it that what is missing is there soon. Must be called inside a tokio runtime.
    pub fn fetch(&self) {
        let mut known = self.0.known.lock();
        let now = clock::now();
        let is_due = known.not_before.is_none_or(|at| now >= at);
        if !is_due || known.missing().is_none() || std::mem::replace(&mut known.is_fetching, true) {
            return;
        }
        drop(known);
        let this = self.clone();
        tokio::spawn(async move {
            let outcome = this.fetch_all().await;
            let mut known = this.0.known.lock();
            known.is_fetching = false;
            if let Err(error) = outcome {
                tracing::warn!(%error, "what the agent often says could not be spoken ahead");
                known.not_before = Some(clock::now() + PAUSE);
            }
        });
    }

    async fn fetch_all(&self) -> Result<(), TtsError> {
        loop {
            let Some((text, is_fixed)) = self.0.known.lock().missing() else { return Ok(()) };
            let disk = self.0.disk.as_ref().filter(|_| is_fixed);
            let kept = match disk {
                Some(disk) => disk.load(&self.0.key, &text).await,
                None => None,
            };
            let phrase = if let Some(phrase) = kept {
                phrase
            } else {
                let phrase = self.speak(&text).await?;
                if let Some(disk) = disk {
                    disk.keep(&self.0.key, &text, phrase.clone()).await;
                }
                phrase
            };
            self.0.known.lock().put(&text, Arc::new(phrase));
        }
    }

    /// Has a phrase spoken, with all its words.
    async fn speak(&self, text: &str) -> Result<Phrase, TtsError> {
        let rate = self.0.voice.sample_rate() as usize;
        let (sender, mut events) = mpsc::channel(EVENTS);
        let TtsConnection { commands, task: _ } = self.0.voice.connect(sender);
        let id = SpeechId(1);
        let gone = |_| TtsError::Interrupted("the voice is gone".into());
        commands.send(TtsCommand::Speak { id, text: text.to_owned() }).await.map_err(gone)?;
        commands.send(TtsCommand::Finish { id }).await.map_err(gone)?;
        let mut phrase = Phrase { samples: Vec::new(), words: Vec::new() };
        let spoken = async {
            while let Some(event) = events.recv().await {
                match event {
                    TtsEvent::Audio { samples, .. } => phrase.samples.extend(samples),
                    TtsEvent::Alignment { words, .. } => phrase.words.extend(words),
                    TtsEvent::End { .. } => return Ok(()),
                    TtsEvent::Error { error, .. } => return Err(error),
                    // It is charged for once, and to no session.
                    TtsEvent::Usage { .. } => {}
                }
                if phrase.samples.len() > MAX_SECONDS * rate {
                    return Err(TtsError::Rejected("the phrase is too long".into()));
                }
            }
            Err(TtsError::Interrupted("the voice is gone".into()))
        };
        let late = |_| TtsError::Timeout(FETCH.as_millis() as u64);
        tokio::time::timeout(FETCH, spoken).await.map_err(late)??;
        if phrase.samples.is_empty() {
            return Err(TtsError::Interrupted("the phrase has no audio".into()));
        }
        Ok(phrase)
    }
}

impl Known {
    fn missing(&self) -> Option<(String, bool)> {
        let fixed = self.fixed.iter().find(|(_, phrase)| phrase.is_none());
        let repeated = || self.repeated.iter().find(|(_, phrase)| phrase.is_none());
        fixed
            .map(|(text, _)| (text.clone(), true))
            .or_else(|| repeated().map(|(text, _)| (text.clone(), false)))
    }

    fn put(&mut self, text: &str, phrase: Arc<Phrase>) {
        if let Some(place) = self.fixed.get_mut(text) {
            *place = Some(phrase);
        } else if let Some((_, place)) = self.repeated.iter_mut().find(|(it, _)| it == text) {
            *place = Some(phrase);
        }
    }
}

fn is_phrase(text: &str) -> bool {
    let text = text.trim();
    text.len() <= MAX_TEXT && text.chars().any(char::is_alphanumeric)
}

/// A voice with phrases before it.
#[derive(Debug)]
pub struct Cached {
    inner: Arc<dyn Tts>,
    phrases: Phrases,
}

impl Cached {
    pub fn new(inner: Arc<dyn Tts>, phrases: Phrases) -> Self {
        Self { inner, phrases }
    }
}

impl Tts for Cached {
    fn provider(&self) -> &'static str {
        self.inner.provider()
    }

    fn model(&self) -> &str {
        self.inner.model()
    }

    fn name_of(&self, link: u8) -> (&str, &str) {
        self.inner.name_of(link)
    }

    fn sample_rate(&self) -> u32 {
        self.inner.sample_rate()
    }

    fn prewarm(&self) -> BoxFuture<'_, ()> {
        self.phrases.fetch();
        self.inner.prewarm()
    }

    fn stay_warm(&self) -> BoxFuture<'_, ()> {
        self.inner.stay_warm()
    }

    fn connect(&self, events: mpsc::Sender<TtsEvent>) -> TtsConnection {
        self.phrases.fetch();
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (from_voice, voice_events) = mpsc::channel(EVENTS);
        let voice = self.inner.connect(from_voice).commands;
        let driver = Driver {
            phrases: self.phrases.clone(),
            rate: u64::from(self.inner.sample_rate().max(1)),
            voice,
            events,
            speeches: HashMap::new(),
        };
        TtsConnection { commands: sender, task: tokio::spawn(driver.run(commands, voice_events)) }
    }
}

/// A speech on its way.
#[derive(Debug, Default)]
struct Speech {
    /// Length of what was told ahead of the voice, in ms.
    ahead_ms: u64,
    /// The voice has been given some of it.
    is_spoken: bool,
    /// All of it, as long as it came in one piece.
    whole: Option<String>,
}

struct Driver {
    phrases: Phrases,
    rate: u64,
    voice: mpsc::Sender<TtsCommand>,
    events: mpsc::Sender<TtsEvent>,
    speeches: HashMap<SpeechId, Speech>,
}

/// Nobody listens, or the voice is gone.
struct Over;

impl Driver {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<TtsCommand>,
        mut voice_events: mpsc::Receiver<TtsEvent>,
    ) {
        loop {
            let done = tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command).await,
                    None => return,
                },
                event = voice_events.recv() => match event {
                    Some(event) => self.on_event(event).await,
                    None => return,
                },
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn on_command(&mut self, command: TtsCommand) -> Result<(), Over> {
        match command {
            TtsCommand::Speak { id, text } => self.speak(id, text).await,
            TtsCommand::Finish { id } => {
                let Some(speech) = self.speeches.get_mut(&id) else {
                    return self.pass(TtsCommand::Finish { id }).await;
                };
                if let Some(whole) = speech.whole.take() {
                    self.phrases.note(&whole);
                }
                if speech.is_spoken {
                    return self.pass(TtsCommand::Finish { id }).await;
                }
                self.speeches.remove(&id);
                self.tell(TtsEvent::End { id }).await
            }
            TtsCommand::Cancel { id } => {
                self.speeches.remove(&id);
                self.pass(TtsCommand::Cancel { id }).await
            }
        }
    }

    async fn speak(&mut self, id: SpeechId, text: String) -> Result<(), Over> {
        if let Some(speech) = self.speeches.get_mut(&id) {
            speech.whole = None;
            if speech.is_spoken || !text.trim().is_empty() {
                speech.is_spoken = true;
                return self.pass(TtsCommand::Speak { id, text }).await;
            }
            return Ok(());
        }
        // Speeches whose end was never told: ids grow, the oldest are over.
        while self.speeches.len() >= MAX_SPEECHES {
            let Some(oldest) = self.speeches.keys().min().copied() else { break };
            self.speeches.remove(&oldest);
        }
        let Some((length, phrase)) = self.phrases.find(&text) else {
            let speech = Speech { is_spoken: true, whole: Some(text.clone()), ahead_ms: 0 };
            self.speeches.insert(id, speech);
            return self.pass(TtsCommand::Speak { id, text }).await;
        };
        counter!(names::TTS_CACHED_TOTAL).increment(1);
        let rest = text.get(length..).unwrap_or_default().to_owned();
        let is_spoken = !rest.trim().is_empty();
        let ahead_ms = phrase.samples.len() as u64 * 1_000 / self.rate;
        self.speeches.insert(id, Speech { ahead_ms, is_spoken, whole: None });
        // The voice begins on the rest while the phrase is heard.
        if is_spoken {
            self.pass(TtsCommand::Speak { id, text: rest }).await?;
        }
        let words = phrase.words.clone();
        if !words.is_empty() {
            self.tell(TtsEvent::Alignment { id, words }).await?;
        }
        let piece = (self.rate * PIECE_MS / 1_000).max(1) as usize;
        for samples in phrase.samples.chunks(piece) {
            self.tell(TtsEvent::Audio { id, samples: samples.to_vec() }).await?;
        }
        Ok(())
    }

    async fn on_event(&mut self, mut event: TtsEvent) -> Result<(), Over> {
        match &mut event {
            TtsEvent::Alignment { id, words } => {
                let ahead_ms = self.speeches.get(id).map_or(0, |speech| speech.ahead_ms);
                for word in words {
                    word.start_ms += ahead_ms;
                    word.end_ms += ahead_ms;
                }
            }
            TtsEvent::End { id } | TtsEvent::Error { id, .. } => _ = self.speeches.remove(id),
            TtsEvent::Audio { .. } | TtsEvent::Usage { .. } => {}
        }
        self.tell(event).await
    }

    async fn pass(&self, command: TtsCommand) -> Result<(), Over> {
        self.voice.send(command).await.map_err(|_| Over)
    }

    async fn tell(&self, event: TtsEvent) -> Result<(), Over> {
        self.events.send(event).await.map_err(|_| Over)
    }
}
