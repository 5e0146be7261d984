//! OpenAI text to speech: one request a piece of text, its body streamed.
//!
//! A speech is cut into pieces as it is written. While one is being spoken the next is asked for
//! already, so that nothing is heard of the seams.

pub mod proto;

mod speaking;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use self::{
    proto::{Parameters, SAMPLE_RATE},
    speaking::{Text, speak},
};
use super::{SpeechId, Tts, TtsCommand, TtsConnection, TtsError, TtsEvent};
use crate::net::{
    http::{Endpoint, EndpointError, KeyHeader},
    warm::Warm,
};

/// Commands that may wait for the task.
const COMMANDS: usize = 256;
/// Speeches at the same time.
const MAX_SPEECHES: usize = 32;
/// Pieces of text that wait to be cut into requests.
const TEXTS: usize = 1_024;

/// How to reach OpenAI and how it is to speak.
#[derive(Debug, Clone)]
pub struct OpenAiTtsConfig {
    pub api_key: SecretString,
    /// With the version: `https://api.openai.com/v1`.
    pub base_url: String,
    pub model: String,
    pub voice: String,
    pub instructions: Option<String>,
    pub speed: Option<f32>,
    pub connect_timeout: Duration,
    /// The first audio of a piece must come within this, and each next.
    pub audio_timeout: Duration,
    /// How often a piece of which nothing was heard is asked for again.
    pub retries: u32,
}

impl OpenAiTtsConfig {
    pub fn new(api_key: SecretString, voice: impl Into<String>) -> Self {
        Self {
            api_key,
            base_url: "https://api.openai.com/v1".into(),
            model: "gpt-4o-mini-tts".into(),
            voice: voice.into(),
            instructions: None,
            speed: None,
            connect_timeout: Duration::from_secs(2),
            audio_timeout: Duration::from_millis(1_400),
            retries: 1,
        }
    }
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenAiTtsConfigError {
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("the voice is empty")]
    Voice,
    #[error("the model is empty")]
    Model,
    #[error("the speed must lie in 0.25..4")]
    Speed,
    #[error("no HTTP client: {0}")]
    Client(String),
}

/// What all speeches of the provider share.
#[derive(Debug)]
struct Shared {
    parameters: Parameters,
    endpoint: Endpoint,
    connections: Warm,
    audio_timeout: Duration,
    retries: u32,
}

/// The provider; one serves all sessions of an agent and shares its connections among them.
#[derive(Debug, Clone)]
pub struct OpenAiTts(Arc<Shared>);

impl OpenAiTts {
    pub fn new(config: OpenAiTtsConfig) -> Result<Self, OpenAiTtsConfigError> {
        use OpenAiTtsConfigError as Fault;
        let endpoint = Endpoint::new(&config.base_url, config.api_key, KeyHeader::Bearer)?;
        if config.voice.trim().is_empty() {
            return Err(Fault::Voice);
        }
        if config.model.trim().is_empty() {
            return Err(Fault::Model);
        }
        if config.speed.is_some_and(|speed| !(0.25..=4.0).contains(&speed)) {
            return Err(Fault::Speed);
        }
        Ok(Self(Arc::new(Shared {
            parameters: Parameters {
                model: config.model,
                voice: config.voice,
                instructions: config.instructions,
                speed: config.speed,
            },
            connections: Warm::new(&endpoint, &["models"], config.connect_timeout)
                .map_err(Fault::Client)?,
            endpoint,
            audio_timeout: config.audio_timeout,
            retries: config.retries,
        })))
    }
}

impl Tts for OpenAiTts {
    fn provider(&self) -> &'static str {
        "openai"
    }

    fn model(&self) -> &str {
        &self.0.parameters.model
    }

    fn sample_rate(&self) -> u32 {
        SAMPLE_RATE
    }

    fn prewarm(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.connections.ready())
    }

    fn stay_warm(&self) -> BoxFuture<'_, ()> {
        self.prewarm()
    }

    fn connect(&self, events: mpsc::Sender<TtsEvent>) -> TtsConnection {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let task = tokio::spawn(run(self.0.clone(), commands, events));
        TtsConnection { commands: sender, task }
    }
}

/// One speech under way.
#[derive(Debug)]
struct Speech {
    text: Option<mpsc::Sender<Text>>,
    task: AbortHandle,
}

async fn run(
    shared: Arc<Shared>,
    mut commands: mpsc::Receiver<TtsCommand>,
    events: mpsc::Sender<TtsEvent>,
) {
    let mut speeches: HashMap<SpeechId, Speech> = HashMap::new();
    let mut newest = None;
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let connections = shared.connections.clone();
        async move { connections.ready().await }
    });
    loop {
        let command = tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(command) => command,
                // The speeches end with the set.
                None => return,
            },
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {
                speeches.retain(|_, speech| !speech.task.is_finished());
                continue;
            }
        };
        let (id, text) = match command {
            TtsCommand::Cancel { id } => {
                newest = newest.max(Some(id));
                if let Some(speech) = speeches.remove(&id) {
                    speech.task.abort();
                }
                continue;
            }
            TtsCommand::Speak { id, text } => (id, Some(text)),
            TtsCommand::Finish { id } => (id, None),
        };
        // Ids grow: one that is not there any more has ended.
        if !speeches.contains_key(&id) && newest.is_none_or(|newest| newest < id) {
            newest = Some(id);
            if speeches.len() >= MAX_SPEECHES {
                let error = TtsError::Rejected("too many speeches at once".into());
                let _ = events.send(TtsEvent::Error { id, error }).await;
                continue;
            }
            let (sender, texts) = mpsc::channel(TEXTS);
            let task = tasks.spawn(speak(shared.clone(), id, texts, events.clone()));
            speeches.insert(id, Speech { text: Some(sender), task });
        }
        let Some(speech) = speeches.get_mut(&id) else { continue };
        let Some(sender) = &speech.text else { continue };
        let said = text.map_or(Text::End, Text::More);
        let is_last = said == Text::End;
        if sender.try_send(said).is_err() && !sender.is_closed() {
            speech.task.abort();
            let error = TtsError::Rejected("more text than can be spoken".into());
            let _ = events.send(TtsEvent::Error { id, error }).await;
        }
        if is_last {
            speech.text = None;
        }
    }
}
