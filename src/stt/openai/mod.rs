//! OpenAI speech to text: utterances are cut by their loudness and sent one by one, since the
//! endpoint takes no stream. There are no interims; the final comes some time after the end.

pub mod proto;
pub mod realtime;

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tracing::{Instrument, warn};

use self::proto::Options;
use super::{
    Stt, SttControl, SttError, SttEvent, SttStream, Transcript,
    cutting::{Cut, Cutter, Utterance},
};
use crate::{
    audio::queue::AudioReceiver,
    clock,
    net::{
        self,
        backoff::Backoff,
        http::{self, Endpoint, EndpointError, Failure, KeyHeader},
        warm::Warm,
    },
};

const CONTROL_QUEUE: usize = 16;
/// 20 ms.
const CHUNK: usize = 320;
/// Utterances that wait; of more the oldest goes.
const MAX_WAITING: usize = 64;
/// The longest answer that is read.
const MAX_BYTES: usize = 1 << 20;

/// How to reach OpenAI and what to ask of it.
#[derive(Debug, Clone)]
pub struct OpenAiSttConfig {
    pub api_key: SecretString,
    /// With the version: `https://api.openai.com/v1`.
    pub base_url: String,
    pub options: Options,
    pub backoff: Backoff,
    /// Longest wait for one answer.
    pub timeout: Duration,
    /// How long `Close` waits for the last finals.
    pub close_timeout: Duration,
    /// When all retries are spent: how often to look whether the provider is back.
    pub probe: Duration,
}

impl OpenAiSttConfig {
    pub fn new(api_key: SecretString, model: impl Into<String>) -> Self {
        let options = Options { model: model.into(), language: None, keyterms: Vec::new() };
        Self {
            api_key,
            base_url: "https://api.openai.com/v1".into(),
            options,
            backoff: Backoff::new(Duration::from_millis(300), Duration::from_secs(10), 5),
            timeout: Duration::from_secs(8),
            close_timeout: Duration::from_secs(4),
            probe: Duration::from_secs(30),
        }
    }
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenAiSttConfigError {
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("no HTTP client: {0}")]
    Client(String),
}

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    connections: Warm,
    config: OpenAiSttConfig,
}

/// The provider, shared by all rooms of an agent.
#[derive(Debug, Clone)]
pub struct OpenAiStt(Arc<Shared>);

impl OpenAiStt {
    pub fn new(config: OpenAiSttConfig) -> Result<Self, OpenAiSttConfigError> {
        let key = config.api_key.clone();
        let endpoint = Endpoint::new(&config.base_url, key, KeyHeader::Bearer)?;
        let connections = Warm::new(&endpoint, &["models"], Duration::from_secs(2))
            .map_err(OpenAiSttConfigError::Client)?;
        Ok(Self(Arc::new(Shared { endpoint, connections, config })))
    }
}

impl Stt for OpenAiStt {
    fn provider(&self) -> &'static str {
        "openai"
    }

    fn model(&self) -> &str {
        &self.0.config.options.model
    }

    fn gives_interims(&self) -> bool {
        false
    }

    fn prewarm(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.connections.ready())
    }

    fn open(&self, audio: AudioReceiver, events: mpsc::Sender<SttEvent>) -> SttStream {
        let (control, commands) = mpsc::channel(CONTROL_QUEUE);
        let driver = Driver {
            backoff: self.0.config.backoff,
            shared: self.0.clone(),
            audio,
            events,
            cutter: Cutter::default(),
            waiting: VecDeque::new(),
            asking: None,
            retry_at: None,
            is_lost: false,
        };
        SttStream { control, task: tokio::spawn(driver.run(commands).in_current_span()) }
    }
}

struct Driver {
    shared: Arc<Shared>,
    audio: AudioReceiver,
    events: mpsc::Sender<SttEvent>,
    cutter: Cutter,
    /// The first is being asked about.
    waiting: VecDeque<Arc<Utterance>>,
    asking: Option<JoinHandle<Result<Transcript, Problem>>>,
    retry_at: Option<Instant>,
    backoff: Backoff,
    is_lost: bool,
}

/// Why there is no transcript.
struct Problem {
    error: SttError,
    after: Duration,
}

/// Nobody wants more of this stream.
struct Over;

impl Driver {
    async fn run(mut self, mut control: mpsc::Receiver<SttControl>) {
        // Each request opens or takes up a connection: there is none to wait for.
        if self.tell(SttEvent::Connected).await.is_ok() {
            let Err(Over) = self.listen(&mut control).await;
        }
        if let Some(asking) = self.asking.take() {
            asking.abort();
        }
    }

    async fn listen(
        &mut self,
        control: &mut mpsc::Receiver<SttControl>,
    ) -> Result<std::convert::Infallible, Over> {
        let mut scratch = Vec::with_capacity(CHUNK);
        let mut closing: Option<Instant> = None;
        loop {
            if closing.is_some() && self.waiting.is_empty() {
                return Err(Over);
            }
            self.ask();
            let retry_at = self.retry_at;
            tokio::select! {
                biased;
                () = self.events.closed() => return Err(Over),
                answer = answered(self.asking.as_mut()), if self.asking.is_some() => {
                    self.asking = None;
                    self.on_answer(answer).await?;
                }
                () = clock::at(retry_at), if retry_at.is_some() => self.retry_at = None,
                () = clock::at(closing), if closing.is_some() => {
                    let reason = "the last words did not come in time".into();
                    self.tell(SttEvent::Lost { reason, retry_in: Duration::ZERO }).await?;
                    return Err(Over);
                }
                command = control.recv(), if closing.is_none() => match command {
                    Some(SttControl::Finalize) => {
                        let cut = self.cutter.finalize();
                        self.take(cut).await?;
                    }
                    Some(SttControl::Close) | None => {
                        let waiting = self.audio.len();
                        if waiting > 0 {
                            self.audio.read(&mut scratch, waiting).await;
                            let cuts = self.cutter.push(&scratch);
                            scratch.clear();
                            self.take_all(cuts).await?;
                        }
                        let cut = self.cutter.finalize();
                        self.take(cut).await?;
                        closing = Some(Instant::now() + self.shared.config.close_timeout);
                    }
                },
                count = self.audio.read(&mut scratch, CHUNK), if closing.is_none() => {
                    let cuts = self.cutter.push(&scratch);
                    scratch.clear();
                    self.take_all(cuts).await?;
                    if count == 0 {
                        let cut = self.cutter.finalize();
                        self.take(cut).await?;
                        closing = Some(Instant::now() + self.shared.config.close_timeout);
                    }
                }
            }
        }
    }

    async fn take_all(&mut self, cuts: Vec<Cut>) -> Result<(), Over> {
        for cut in cuts {
            self.take(Some(cut)).await?;
        }
        Ok(())
    }

    async fn take(&mut self, cut: Option<Cut>) -> Result<(), Over> {
        match cut {
            Some(Cut::Started) => {
                // At its end the utterance is not to wait for a connection.
                let connections = self.shared.connections.clone();
                tokio::spawn(async move { connections.ready().await });
                self.tell(SttEvent::SpeechStarted).await
            }
            Some(Cut::Utterance(utterance)) => {
                if self.waiting.len() == MAX_WAITING {
                    warn!(provider = "openai", "an utterance goes untranscribed");
                    // The first may be under way: the one after it goes.
                    self.waiting.remove(1);
                }
                self.waiting.push_back(Arc::new(utterance));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Asks about the oldest utterance, unless that is going on or has to wait.
    fn ask(&mut self) {
        if self.asking.is_none()
            && self.retry_at.is_none()
            && let Some(utterance) = self.waiting.front()
        {
            self.asking = Some(tokio::spawn(request(self.shared.clone(), utterance.clone())));
        }
    }

    async fn on_answer(&mut self, answer: Result<Transcript, Problem>) -> Result<(), Over> {
        match answer {
            Ok(transcript) => {
                self.backoff.reset();
                self.waiting.pop_front();
                if std::mem::take(&mut self.is_lost) {
                    self.tell(SttEvent::Connected).await?;
                }
                let audio_ms = transcript.duration_ms;
                self.tell(SttEvent::Usage { link: 0, audio_ms }).await?;
                if transcript.text.is_empty() {
                    return Ok(());
                }
                self.tell(SttEvent::Final(transcript)).await?;
                self.tell(SttEvent::EndOfTurn).await
            }
            Err(Problem { error, after }) => {
                self.is_lost = true;
                let is_fatal = !error.is_retryable();
                let delay = self.backoff.next_delay(net::random_fraction());
                let wait = match delay {
                    Some(delay) if !is_fatal => delay.max(after),
                    _ => self.shared.config.probe,
                };
                self.retry_at = Some(Instant::now() + wait);
                self.tell(if is_fatal || delay.is_none() {
                    SttEvent::Failed(error)
                } else {
                    SttEvent::Lost { reason: error.to_string(), retry_in: wait }
                })
                .await
            }
        }
    }

    async fn tell(&self, event: SttEvent) -> Result<(), Over> {
        self.events.send(event).await.map_err(|_| Over)
    }
}

async fn request(shared: Arc<Shared>, utterance: Arc<Utterance>) -> Result<Transcript, Problem> {
    let boundary = format!("antiphon-{}", uuid::Uuid::new_v4().simple());
    let form = shared.config.options.form(&boundary, &utterance.samples);
    let request = shared
        .connections
        .post(shared.endpoint.url(&["audio", "transcriptions"]))
        .header("content-type", format!("multipart/form-data; boundary={boundary}"))
        .timeout(shared.config.timeout)
        .body(form);
    let sent = shared.connections.send(request).await;
    let (response, lease) = sent.map_err(|failure| problem(&shared, failure))?;
    let body = http::read_bounded(response, MAX_BYTES).await;
    lease.ended();
    proto::read(&body, utterance.start_ms, utterance.duration_ms()).ok_or_else(|| Problem {
        error: SttError::Protocol("the answer is no transcript".into()),
        after: Duration::ZERO,
    })
}

fn problem(shared: &Shared, failure: Failure) -> Problem {
    match failure {
        Failure::Status { status: status @ (401 | 403), .. } => {
            Problem { error: SttError::Unauthorized { status }, after: Duration::ZERO }
        }
        Failure::Status { status, retry_after, error } => {
            let message = shared.endpoint.redact(&error.message);
            let may_help = matches!(status, 408 | 409 | 425 | 429 | 500..);
            let error = if may_help && !error.is_out_of_quota() {
                SttError::Unreachable(format!("HTTP {status} {message}"))
            } else {
                SttError::Rejected { status, message }
            };
            Problem { error, after: retry_after.unwrap_or_default() }
        }
        Failure::Network(reason) => {
            let error = SttError::Unreachable(shared.endpoint.redact(&reason));
            Problem { error, after: Duration::ZERO }
        }
    }
}

async fn answered(
    asking: Option<&mut JoinHandle<Result<Transcript, Problem>>>,
) -> Result<Transcript, Problem> {
    let Some(asking) = asking else { return std::future::pending().await };
    asking.await.unwrap_or_else(|_| {
        let error = SttError::Unreachable("the request was given up".into());
        Err(Problem { error, after: Duration::ZERO })
    })
}
