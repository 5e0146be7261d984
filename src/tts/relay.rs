//! Several voices in order: when one fails, the next speaks; when one fails in the middle of a
//! speech, the next goes on at the first word that was not spoken.
//!
//! The driver holds one connection to each voice that was needed; who speaks what is decided by the
//! pure [`baton::Baton`].

pub mod baton;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use metrics::counter;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use self::baton::{Action, Baton};
use super::{
    SpeechId, Tts, TtsCommand, TtsConnection, TtsError, TtsEvent,
    spoken::{Pronunciations, Spoken},
};
use crate::{
    audio::resample::Resampler,
    clock,
    net::breaker::{self, Health, Severity},
    telemetry::metrics as names,
};

/// Commands that may wait for the task.
const COMMANDS: usize = 1_024;
/// Events of all voices that may wait to be passed on.
const EVENTS: usize = 256;
/// Speeches that are being written at once.
const MAX_FILTERS: usize = 32;
/// How long a voice whose task has gone is left alone before it is connected anew.
const RECONNECT: Duration = Duration::from_secs(1);

/// One voice of the relay and how it has been doing.
#[derive(Debug, Clone)]
struct Runner {
    voice: Arc<dyn Tts>,
    health: Arc<Health>,
}

/// Voices to be tried in order, shared by all rooms of an agent.
#[derive(Debug, Clone)]
pub struct Relay {
    runners: Arc<[Runner]>,
    rate: u32,
    pronunciations: Arc<Pronunciations>,
    is_for_keeps: bool,
}

impl Relay {
    /// `voices`: the preferred one first; at least one. Its sample rate is the relay's.
    pub fn new(voices: Vec<Arc<dyn Tts>>) -> Option<Self> {
        let rate = voices.first()?.sample_rate();
        let runners = voices.into_iter().map(|voice| Runner { voice, health: Arc::default() });
        Some(Self {
            runners: runners.collect(),
            rate,
            pronunciations: Arc::default(),
            is_for_keeps: false,
        })
    }

    /// Whoever speaks says these words so.
    #[must_use]
    pub fn with_pronunciations(self, pronunciations: Pronunciations) -> Self {
        Self { pronunciations: Arc::new(pronunciations), ..self }
    }

    /// What is spoken will be heard again and again: what breaks is an error, not mended.
    #[must_use]
    pub fn for_keeps(self) -> Self {
        Self { is_for_keeps: true, ..self }
    }
}

impl Tts for Relay {
    fn provider(&self) -> &'static str {
        self.runners.first().map_or("", |runner| runner.voice.provider())
    }

    fn model(&self) -> &str {
        self.runners.first().map_or("", |runner| runner.voice.model())
    }

    fn name_of(&self, link: u8) -> (&str, &str) {
        let named = self.runners.get(usize::from(link)).or_else(|| self.runners.first());
        named.map_or(("", ""), |runner| (runner.voice.provider(), runner.voice.model()))
    }

    fn sample_rate(&self) -> u32 {
        self.rate
    }

    fn prewarm(&self) -> BoxFuture<'_, ()> {
        // The others are connected when they are needed.
        self.runners[0].voice.prewarm()
    }

    fn stay_warm(&self) -> BoxFuture<'_, ()> {
        self.runners[0].voice.stay_warm()
    }

    fn connect(&self, events: mpsc::Sender<TtsEvent>) -> TtsConnection {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (from_voices, voice_events) = mpsc::channel(EVENTS);
        let driver = Driver {
            baton: Baton::new(self.runners.len(), self.rate).without_taking_up(self.is_for_keeps),
            filters: HashMap::new(),
            lines: self.runners.iter().map(|_| None).collect(),
            relay: self.clone(),
            from_voices,
            connections: 0,
            tasks: JoinSet::new(),
        };
        TtsConnection {
            commands: sender,
            task: tokio::spawn(driver.run(commands, voice_events, events)),
        }
    }
}

/// A connection to one voice.
#[derive(Debug)]
struct Line {
    commands: mpsc::Sender<TtsCommand>,
    /// `None` where the rates are the same.
    resampler: Option<Resampler>,
    /// Whose end it still holds.
    resampling: Option<SpeechId>,
    voice: AbortHandle,
    serial: u64,
}

/// Which voice, over which connection; `None`: its task is gone.
type FromVoice = (usize, u64, Option<TtsEvent>);

struct Driver {
    baton: Baton,
    /// What makes the text of each speech pronounceable, until all of it is there.
    filters: HashMap<SpeechId, Spoken>,
    relay: Relay,
    lines: Vec<Option<Line>>,
    from_voices: mpsc::Sender<FromVoice>,
    connections: u64,
    /// What passes events on; they end with the driver.
    tasks: JoinSet<()>,
}

impl Driver {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<TtsCommand>,
        mut voice_events: mpsc::Receiver<FromVoice>,
        events: mpsc::Sender<TtsEvent>,
    ) {
        // The first speech must not wait for its connection.
        self.connect(0);
        loop {
            while let Some(event) = self.baton.poll_event() {
                if events.send(event).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return,
                },
                () = events.closed() => return,
                Some((at, serial, event)) = voice_events.recv() => self.on_voice(at, serial, event),
            }
            self.act();
        }
    }

    fn on_command(&mut self, command: TtsCommand) {
        match command {
            TtsCommand::Speak { id, text } => {
                let words = &self.relay.pronunciations;
                let filter = self.filters.entry(id).or_insert_with(|| Spoken::new(words.clone()));
                let text = filter.push(&text);
                self.speak(id, text);
            }
            TtsCommand::Finish { id } => {
                let rest = self.filters.remove(&id).map(|mut filter| filter.finish());
                self.speak(id, rest.unwrap_or_default());
                self.baton.handle_command(command, &[]);
            }
            TtsCommand::Cancel { id } => {
                self.filters.remove(&id);
                self.baton.handle_command(command, &[]);
            }
        }
        // Speeches whose end was never told: ids grow, the oldest are over.
        while self.filters.len() > MAX_FILTERS {
            let Some(oldest) = self.filters.keys().min().copied() else { break };
            self.filters.remove(&oldest);
        }
    }

    fn speak(&mut self, id: SpeechId, text: String) {
        if !text.is_empty() {
            let command = TtsCommand::Speak { id, text };
            let order = self.order(&command);
            self.baton.handle_command(command, &order);
        }
    }

    /// Whom a new speech is given to, the best first.
    fn order(&self, command: &TtsCommand) -> Vec<usize> {
        match command {
            TtsCommand::Speak { id, .. } if !self.baton.knows(*id) => {
                breaker::order(self.relay.runners.iter().map(|it| &*it.health), clock::now())
            }
            _ => Vec::new(),
        }
    }

    fn on_voice(&mut self, at: usize, serial: u64, event: Option<TtsEvent>) {
        // What is left of a connection that was given up.
        if self.lines[at].as_ref().is_none_or(|line| line.serial != serial) {
            return;
        }
        let health = &self.relay.runners[at].health;
        let Some(mut event) = event else {
            // The task is gone, and all its speeches with it.
            self.lines[at] = None;
            health.failed(Severity::Passing, clock::now());
            self.baton.handle_gone(at);
            return;
        };
        if let TtsEvent::Audio { id, .. } = &event
            && !self.baton.awaits(at, *id)
        {
            return;
        }
        let line = self.lines[at].as_mut();
        let resampler =
            line.and_then(|line| Some((line.resampler.as_mut()?, &mut line.resampling)));
        match &mut event {
            TtsEvent::Audio { id, samples } => {
                if let Some((resampler, of)) = resampler {
                    if of.replace(*id).is_some_and(|before| before != *id) {
                        // The end of one that was cut.
                        resampler.flush(&mut Vec::new());
                    }
                    let mut resampled = Vec::with_capacity(samples.len() * 2);
                    resampler.push(samples, &mut resampled);
                    *samples = resampled;
                }
            }
            TtsEvent::End { id } => {
                health.succeeded();
                if let Some((resampler, of)) = resampler
                    && *of == Some(*id)
                {
                    *of = None;
                    let mut samples = Vec::new();
                    resampler.flush(&mut samples);
                    self.baton.handle_event(at, TtsEvent::Audio { id: *id, samples });
                }
            }
            TtsEvent::Error { error, .. } => {
                let (provider, model) =
                    (self.relay.runners[at].voice.provider(), self.relay.runners[at].voice.model());
                tracing::warn!(provider, model, %error, "a voice has failed");
                counter!(names::PROVIDER_ERRORS_TOTAL, "part" => "tts", "provider" => provider)
                    .increment(1);
                match error {
                    TtsError::Unauthorized { .. } => {
                        health.failed(Severity::Refused, clock::now());
                    }
                    // A text that is not taken says nothing about the voice.
                    TtsError::Rejected(_) => {}
                    _ => health.failed(Severity::Passing, clock::now()),
                }
            }
            _ => {}
        }
        self.baton.handle_event(at, event);
    }

    fn act(&mut self) {
        while let Some(Action { voice: at, command }) = self.baton.poll_action() {
            if self.lines[at].is_none() {
                self.connect(at);
            }
            let line = self.lines[at].as_ref();
            let is_lost = line.is_none_or(|line| line.commands.try_send(command).is_err());
            if is_lost {
                if let Some(line) = self.lines[at].take() {
                    line.voice.abort();
                }
                self.baton.handle_gone(at);
            }
        }
    }

    fn connect(&mut self, at: usize) {
        let voice = &self.relay.runners[at].voice;
        let (sender, mut events) = mpsc::channel(EVENTS);
        let TtsConnection { commands, task } = voice.connect(sender);
        let rate = voice.sample_rate();
        let resampler =
            (rate != self.relay.rate).then(|| Resampler::new(rate, self.relay.rate).ok()).flatten();
        self.connections += 1;
        let (serial, since) = (self.connections, clock::now());
        let voice = task.abort_handle();
        self.lines[at] = Some(Line { commands, resampler, resampling: None, voice, serial });
        let forward = self.from_voices.clone();
        self.tasks.spawn(async move {
            while let Some(event) = events.recv().await {
                if forward.send((at, serial, Some(event))).await.is_err() {
                    return;
                }
            }
            // One that ends at once must not be connected in a tight circle.
            tokio::time::sleep_until((since + RECONNECT).into()).await;
            let _ = forward.send((at, serial, None)).await;
        });
    }
}
