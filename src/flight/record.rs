//! A session whose inputs are written down as they are given.

use std::{sync::Arc, time::Instant};

use tokio::{sync::mpsc, task::JoinHandle};
use tracing::{info, warn};

use super::{
    Checksum, End, FORMAT, FlightConfig, Header, Step,
    file::{self, Line},
    redact,
};
use crate::{
    clock,
    llm::Message,
    session::{
        command::Command,
        input::{Input, SttInput},
        machine::{Session, SessionIds},
        settings::Settings,
    },
};

/// Steps on their way to the disk; a session that is faster for long stops being recorded.
const QUEUE: usize = 4_096;

/// A [`Session`] with its recorder, if it has one: the same four verbs.
#[derive(Debug)]
pub struct Recorded {
    session: Session,
    recorder: Option<Recorder>,
}

#[derive(Debug)]
struct Recorder {
    began: Instant,
    language: Option<String>,
    redacted: bool,
    commands: Checksum,
    steps: mpsc::Sender<Line>,
    writer: JoinHandle<()>,
}

impl Recorded {
    /// A session that begins `now`. With a configuration, inside a tokio runtime, it is recorded.
    pub fn new(
        settings: Settings,
        ids: SessionIds,
        flight: Option<&Arc<FlightConfig>>,
        now: Instant,
    ) -> Self {
        let recorder = flight.map(|config| Recorder::start(config, &settings, &ids, now));
        Self { session: Session::new(settings, ids, now), recorder }
    }

    pub fn handle_input(&mut self, input: Input, now: Instant) {
        if let Some(recorder) = &mut self.recorder {
            recorder.step(Some(&input), now);
        }
        self.session.handle_input(input, now);
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(recorder) = &mut self.recorder {
            recorder.step(None, now);
        }
        self.session.handle_timeout(now);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.session.poll_timeout()
    }

    pub fn poll_command(&mut self) -> Option<Command> {
        let command = self.session.poll_command()?;
        if let Some(recorder) = &mut self.recorder {
            recorder.commands.add(&command);
        }
        Some(command)
    }

    /// The conversation so far, the system prompt first.
    pub fn history(&mut self) -> Arc<[Message]> {
        self.session.history()
    }

    /// No further step comes. The task that still writes, if there is one.
    pub fn end(&mut self, now: Instant) -> Option<JoinHandle<()>> {
        let recorder = self.recorder.take()?;
        recorder.finish(End::Over, now);
        Some(recorder.writer)
    }
}

impl Recorder {
    fn start(
        config: &Arc<FlightConfig>,
        settings: &Settings,
        ids: &SessionIds,
        began: Instant,
    ) -> Self {
        let (steps, lines) = mpsc::channel(QUEUE);
        let (config, name) = (config.clone(), ids.prefix.clone());
        let redacted = config.redacted;
        let writer =
            tokio::task::spawn_blocking(move || match file::write(&config, &name, lines) {
                Ok(path) => info!(flight = %path.display(), "the session's flight is recorded"),
                Err(error) => warn!(%error, "the session's flight cannot be recorded"),
            });
        let header = Header {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at_unix_ms: clock::unix_ms(),
            redacted,
            settings: if redacted { redact::settings(settings) } else { settings.clone() },
            ids: if redacted { redact::ids(ids) } else { ids.clone() },
        };
        let recorder = Self {
            began,
            language: settings.language.clone(),
            redacted,
            commands: Checksum::new(redacted),
            steps,
            writer,
        };
        recorder.send(Line::Header(Box::new(header)));
        recorder
    }

    fn step(&mut self, input: Option<&Input>, now: Instant) {
        let input = input.map(|input| {
            let mut input = if self.redacted {
                redact::input(input, self.language.as_deref())
            } else {
                input.clone()
            };
            plain_numbers(&mut input);
            input
        });
        let step = self.at(now, input, None);
        // The last place is for the word that this recording ends.
        if self.steps.capacity() > 1 {
            self.send(Line::Step(step));
        } else if self.steps.capacity() == 1 {
            self.finish(End::Overrun, now);
        }
    }

    fn finish(&self, end: End, now: Instant) {
        let step = self.at(now, None, Some(end));
        self.send(Line::Step(step));
    }

    fn at(&self, now: Instant, input: Option<Input>, end: Option<End>) -> Step {
        let since = now.saturating_duration_since(self.began).as_nanos();
        Step {
            at_ns: u64::try_from(since).unwrap_or(u64::MAX),
            input,
            commands: self.commands.count,
            checksum: self.commands.sum(),
            end,
        }
    }

    fn send(&self, line: Line) {
        // A writer that has stopped has said why.
        let _ = self.steps.try_send(line);
    }
}

/// JSON knows no infinities; the machine takes what is no number for 0 as well.
fn plain_numbers(input: &mut Input) {
    if let Input::Stt { event: SttInput::Interim(heard) | SttInput::Final(heard), .. } = input {
        let words = heard.words.iter_mut().map(|word| &mut word.confidence);
        for confidence in words.chain([&mut heard.confidence]) {
            if !confidence.is_finite() {
                *confidence = 0.0;
            }
        }
    }
}
