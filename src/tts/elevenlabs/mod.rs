//! ElevenLabs text to speech over WebSocket.
//!
//! The driver holds the sockets of one session; what goes over them, and when, is decided by the
//! pure `machine`.

mod align;
mod machine;
pub mod proto;
mod speech;
pub mod voices;

use std::{pin::Pin, time::Duration};

use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;
use url::Url;

use self::{
    machine::{Action, Machine, Refusal, Settings},
    proto::{DictionaryLocator, OutputFormat, Query, VoiceSettings},
};
use crate::{
    clock,
    net::{
        dial, random_fraction,
        url::BaseUrlError,
        ws::{self, ConnectError, Connection, Frame, Limits},
    },
    tts::{Tts, TtsCommand, TtsConnection, TtsError, TtsEvent},
};

/// Commands that may wait for a connection.
const COMMANDS: usize = 256;
/// The longest `inactivity_timeout` that the server takes, in s.
const MAX_INACTIVITY: u32 = 180;

/// Pronunciation dictionaries that the server takes in one request.
pub const MAX_DICTIONARIES: usize = 3;

/// How to reach ElevenLabs and how it is to speak.
#[derive(Debug, Clone)]
pub struct ElevenLabsConfig {
    pub api_key: SecretString,
    /// With the version: `https://api.elevenlabs.io/v1`.
    pub base_url: String,
    pub voice_id: String,
    pub model: String,
    /// In Hz: 8000, 16000, 24000 or 48000.
    pub output_rate: u32,
    pub voice: VoiceSettings,
    /// How words are pronounced; at most [`MAX_DICTIONARIES`], looked through in this order.
    pub dictionaries: Vec<DictionaryLocator>,
    /// ISO 639-1; `None` leaves it to the model.
    pub language: Option<String>,
    /// `multi-stream-input`, many speeches on one socket; otherwise `stream-input`.
    pub multi: bool,
    /// The server begins on every piece it is given; pieces are cut here, by clauses.
    pub auto_mode: bool,
    /// Without `auto_mode`: characters the server collects before each generation, 50..500 each.
    pub chunk_length_schedule: Vec<u16>,
    /// The first audio of a text, and each next as long as text is out, must come within this.
    pub audio_timeout: Duration,
    /// How long a speech waits for a connection.
    pub connect_budget: Duration,
    /// How many times a speech of which nothing was heard is sent again.
    pub resends: u32,
    /// In s, at most 180: an idle socket is replaced before that.
    pub inactivity_timeout: u32,
}

impl ElevenLabsConfig {
    pub fn new(api_key: SecretString, voice_id: impl Into<String>) -> Self {
        Self {
            api_key,
            base_url: "https://api.elevenlabs.io/v1".into(),
            voice_id: voice_id.into(),
            model: "eleven_turbo_v2_5".into(),
            output_rate: 24_000,
            voice: VoiceSettings::default(),
            dictionaries: Vec::new(),
            language: None,
            multi: true,
            auto_mode: true,
            chunk_length_schedule: vec![50, 120, 200, 260],
            audio_timeout: Duration::from_millis(1_400),
            connect_budget: Duration::from_millis(2_500),
            resends: 2,
            inactivity_timeout: MAX_INACTIVITY,
        }
    }
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElevenLabsConfigError {
    #[error("the base URL is not usable: {0}")]
    BaseUrl(#[from] BaseUrlError),
    #[error("the voice id is empty")]
    VoiceId,
    #[error("the model is empty")]
    Model,
    #[error("an output rate of {0} Hz cannot be sent to a room: use 8000, 16000, 24000 or 48000")]
    OutputRate(u32),
    #[error("more than {MAX_DICTIONARIES} pronunciation dictionaries")]
    Dictionaries,
    #[error("{0} must lie in {1}")]
    OutOfRange(&'static str, &'static str),
}

/// The provider; one serves all sessions of an agent.
#[derive(Debug)]
pub struct ElevenLabs {
    api_key: SecretString,
    socket: Url,
    model: String,
    settings: Settings,
}

impl ElevenLabs {
    pub fn new(config: ElevenLabsConfig) -> Result<Self, ElevenLabsConfigError> {
        use ElevenLabsConfigError as Fault;
        let base = crate::net::url::parse_base(&config.base_url)?;
        if config.voice_id.trim().is_empty() {
            return Err(Fault::VoiceId);
        }
        if config.model.trim().is_empty() {
            return Err(Fault::Model);
        }
        let output_format = OutputFormat::from_rate(config.output_rate)
            .filter(|format| !matches!(format, OutputFormat::Pcm22050 | OutputFormat::Pcm44100))
            .ok_or(Fault::OutputRate(config.output_rate))?;
        let VoiceSettings { stability, similarity_boost, style, speed, .. } = config.voice;
        let fraction = |value: f32| (0.0..=1.0).contains(&value);
        for (name, range, is_in) in [
            ("stability", "0..1", fraction(stability)),
            ("similarity_boost", "0..1", fraction(similarity_boost)),
            ("style", "0..1", style.is_none_or(fraction)),
            ("speed", "0.7..1.2", speed.is_none_or(|speed| (0.7..=1.2).contains(&speed))),
            (
                "chunk_length_schedule",
                "50..500",
                config.chunk_length_schedule.iter().all(|length| (50..=500).contains(length)),
            ),
            (
                "inactivity_timeout",
                "5..180 s",
                (5..=MAX_INACTIVITY).contains(&config.inactivity_timeout),
            ),
        ] {
            if !is_in {
                return Err(Fault::OutOfRange(name, range));
            }
        }
        if config.dictionaries.len() > MAX_DICTIONARIES {
            return Err(Fault::Dictionaries);
        }
        let query = Query {
            model_id: &config.model,
            output_format,
            inactivity_timeout: config.inactivity_timeout,
            auto_mode: config.auto_mode,
            language_code: config.language.as_deref(),
        };
        let socket = proto::socket_url(&base, &config.voice_id, config.multi, &query);
        Ok(Self {
            api_key: config.api_key,
            socket,
            model: config.model,
            settings: Settings {
                multi: config.multi,
                voice: config.voice,
                schedule: if config.auto_mode { vec![] } else { config.chunk_length_schedule },
                dictionaries: config.dictionaries,
                sample_rate: config.output_rate,
                audio_timeout: config.audio_timeout,
                connect_budget: config.connect_budget,
                resends: config.resends,
                inactivity: Duration::from_secs(config.inactivity_timeout.into()),
                jitter: 0.0,
            },
        })
    }
}

impl Tts for ElevenLabs {
    fn provider(&self) -> &'static str {
        "elevenlabs"
    }

    fn model(&self) -> &str {
        &self.model
    }

    fn sample_rate(&self) -> u32 {
        self.settings.sample_rate
    }

    fn prewarm(&self) -> BoxFuture<'_, ()> {
        Box::pin(dial::prepare(&self.socket))
    }

    fn connect(&self, events: mpsc::Sender<TtsEvent>) -> TtsConnection {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let machine = Machine::new(Settings { jitter: random_fraction(), ..self.settings.clone() });
        let driver = Driver {
            machine,
            api_key: self.api_key.clone(),
            request: ws::Request::new(self.socket.clone()).secret_header(
                "xi-api-key",
                "",
                &self.api_key,
            ),
            limits: Limits {
                connect: self.settings.connect_budget.max(Duration::from_millis(500)),
                send: Duration::from_secs(2),
                max_message: proto::MAX_FRAME_BYTES,
                ..Limits::default()
            },
            current: None,
            spare: None,
            connecting: None,
        };
        TtsConnection { commands: sender, task: tokio::spawn(driver.run(commands, events)) }
    }
}

type Connecting = Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + Send>>;

/// The sockets of one session.
struct Driver {
    machine: Machine,
    api_key: SecretString,
    request: ws::Request,
    limits: Limits,
    current: Option<Connection>,
    spare: Option<Connection>,
    connecting: Option<Connecting>,
}

impl Driver {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<TtsCommand>,
        events: mpsc::Sender<TtsEvent>,
    ) {
        loop {
            self.act().await;
            let deadline = self.machine.poll_timeout();
            // Commands first, so that a cancelled speech falls silent whatever else is going on;
            // then what was heard goes on its way before more is read.
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.machine.handle_command(command, clock::now()),
                    None => break,
                },
                permit = events.reserve(), if self.machine.has_event() => match permit {
                    Ok(permit) => {
                        if let Some(event) = self.machine.poll_event() {
                            permit.send(self.redact_event(event));
                        }
                    }
                    // Nobody listens any more.
                    Err(_) => break,
                },
                connected = pending(self.connecting.as_mut()), if self.connecting.is_some() => {
                    self.connecting = None;
                    self.connected(connected);
                }
                frame = next(self.current.as_mut()),
                    if self.current.is_some() && !self.machine.is_congested() =>
                {
                    self.received(frame);
                }
                () = sleep_until(deadline), if deadline.is_some() => {
                    self.machine.handle_timeout(clock::now());
                }
            }
        }
        if let Some(current) = self.current.take() {
            current.close().await;
        }
        if let Some(spare) = self.spare.take() {
            spare.close().await;
        }
    }

    async fn act(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Connect => {
                    let request = self.request.clone();
                    self.connecting = Some(Box::pin(ws::connect(request, self.limits)));
                }
                Action::Send(text) => {
                    let Some(current) = &mut self.current else { continue };
                    if let Err(error) = current.send_text(text).await {
                        self.lost(&error.to_string());
                    }
                }
                Action::Close => discard(self.current.take()),
                Action::Promote => discard(std::mem::replace(&mut self.current, self.spare.take())),
                Action::CloseSpare => discard(self.spare.take()),
            }
        }
    }

    fn connected(&mut self, result: Result<Connection, ConnectError>) {
        let refusal = match result {
            Ok(connection) => {
                if self.current.is_none() {
                    self.current = Some(connection);
                } else {
                    self.spare = Some(connection);
                }
                return self.machine.handle_connected(clock::now());
            }
            Err(ConnectError::Refused { status: status @ (401 | 403), .. }) => {
                Refusal::Fatal(TtsError::Unauthorized { status })
            }
            Err(error) if error.is_retryable() => Refusal::Unreachable(error.to_string()),
            Err(ConnectError::Refused { status, message, .. }) => {
                let message = format!("HTTP {status} {}", self.redact(&message));
                Refusal::Fatal(TtsError::Rejected(message))
            }
            Err(error) => Refusal::Fatal(TtsError::Rejected(error.to_string())),
        };
        tracing::warn!(?refusal, "no connection to elevenlabs");
        self.machine.handle_refused(refusal, clock::now());
    }

    fn received(&mut self, frame: Result<Frame, ws::WsError>) {
        match frame {
            Ok(Frame::Text(text)) => {
                if let Err(error) = self.machine.handle_message(&text, clock::now()) {
                    tracing::warn!(%error, "elevenlabs sent a message that cannot be read");
                }
            }
            Ok(Frame::Binary(_)) => {}
            Ok(Frame::Closed { code, reason }) => {
                self.lost(&format!("closed with {code} {reason}"));
            }
            Err(error) => self.lost(&error.to_string()),
        }
    }

    /// Takes the key out of a text that the server wrote.
    fn redact(&self, text: &str) -> String {
        let key = self.api_key.expose_secret();
        if key.is_empty() { text.to_owned() } else { text.replace(key, "***") }
    }

    fn redact_event(&self, event: TtsEvent) -> TtsEvent {
        let TtsEvent::Error { id, error } = event else { return event };
        let error = match error {
            TtsError::Rejected(text) => TtsError::Rejected(self.redact(&text)),
            TtsError::Unreachable(text) => TtsError::Unreachable(self.redact(&text)),
            TtsError::Interrupted(text) => TtsError::Interrupted(self.redact(&text)),
            other => other,
        };
        TtsEvent::Error { id, error }
    }

    fn lost(&mut self, reason: &str) {
        let reason = self.redact(reason);
        tracing::debug!(reason, "the connection to elevenlabs is gone");
        self.current = None;
        self.machine.handle_lost(&reason, clock::now());
    }
}

async fn pending(connecting: Option<&mut Connecting>) -> Result<Connection, ConnectError> {
    match connecting {
        Some(connecting) => connecting.await,
        None => std::future::pending().await,
    }
}

async fn next(connection: Option<&mut Connection>) -> Result<Frame, ws::WsError> {
    match connection {
        Some(connection) => connection.next().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Closes a socket without keeping anybody waiting; [`Limits::send`] bounds it.
fn discard(connection: Option<Connection>) {
    if let Some(connection) = connection {
        tokio::spawn(connection.close());
    }
}

#[cfg(test)]
mod tests;
