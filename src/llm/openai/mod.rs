//! OpenAI chat completions, and every server that imitates them, by base URL.
//!
//! async-openai makes the requests and cuts the event stream; `proto` says what is in it, `http`
//! carries it, and the retries are here.

mod http;
pub mod proto;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_openai::{Client, config::Config as _};
use futures_util::StreamExt;
use secrecy::SecretString;
use serde_json::Value;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use self::{
    http::{Ending, Endpoint, Failure, Transport},
    proto::{Parameters, ServerError},
};
use crate::{
    llm::{GenerateRequest, Llm, LlmError, LlmEvent},
    net::{random_fraction, url::BaseUrlError},
};

/// Delays before another attempt: this, doubling, up to [`LONGEST_RETRY`]; less up to a quarter.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_millis(800);
/// Chunks that cannot be read are passed over, up to so many in one answer.
const MAX_UNREADABLE: u32 = 8;
/// How long the opening of a connection ahead of its use may take.
const PREWARM: Duration = Duration::from_secs(5);
/// The list of models is read to its end, up to this, so that its connection can be used again.
const MAX_MODELS_BYTES: usize = 1 << 20;

/// Which model to ask, and how.
#[derive(Debug, Clone)]
pub struct OpenAiConfig {
    /// Empty: none is sent.
    pub api_key: SecretString,
    /// With the version: `https://api.openai.com/v1`.
    pub base_url: String,
    pub model: String,
    /// 0..2; `None` leaves it to the model (some take no other than their own).
    pub temperature: Option<f32>,
    pub max_tokens: Option<u32>,
    pub connect_timeout: Duration,
    /// From the beginning of a generation: no attempt is begun after this.
    pub retry_budget: Duration,
    /// Longest wait for the first text, should nobody cancel before.
    pub first_token_timeout: Duration,
    /// Longest silence within a stream.
    pub stall_timeout: Duration,
}

impl OpenAiConfig {
    pub fn new(api_key: SecretString, model: impl Into<String>) -> Self {
        Self {
            api_key,
            base_url: "https://api.openai.com/v1".into(),
            model: model.into(),
            temperature: Some(0.7),
            max_tokens: Some(1024),
            connect_timeout: Duration::from_secs(2),
            retry_budget: Duration::from_millis(2_500),
            first_token_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(5),
        }
    }
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenAiConfigError {
    #[error("the base URL is not usable: {0}")]
    BaseUrl(#[from] BaseUrlError),
    #[error("the base URL must begin with http or https")]
    Scheme,
    #[error("the API key has characters that cannot be sent")]
    ApiKey,
    #[error("the model is empty")]
    Model,
    #[error("the temperature must lie in 0..2")]
    Temperature,
    #[error("no HTTP client: {0}")]
    Client(String),
}

/// The provider; one serves all rooms of an agent and shares its connections among them.
#[derive(Debug, Clone)]
pub struct OpenAi {
    endpoint: Endpoint,
    parameters: Arc<Parameters>,
    client: reqwest::Client,
    retry_budget: Duration,
    first_token_timeout: Duration,
    stall_timeout: Duration,
    prewarming: Arc<AtomicBool>,
}

impl OpenAi {
    pub fn new(config: OpenAiConfig) -> Result<Self, OpenAiConfigError> {
        use OpenAiConfigError as Fault;
        let base = crate::net::url::parse_base(&config.base_url)?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(Fault::Scheme);
        }
        if config.model.trim().is_empty() {
            return Err(Fault::Model);
        }
        if config.temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
            return Err(Fault::Temperature);
        }
        Ok(Self {
            endpoint: Endpoint::new(base.as_str(), config.api_key).ok_or(Fault::ApiKey)?,
            parameters: Arc::new(Parameters {
                model: config.model,
                temperature: config.temperature,
                max_tokens: config.max_tokens,
                new_token_limit: base.host_str() == Some("api.openai.com"),
            }),
            client: http::client(config.connect_timeout).map_err(Fault::Client)?,
            retry_budget: config.retry_budget,
            first_token_timeout: config.first_token_timeout,
            stall_timeout: config.stall_timeout,
            prewarming: Arc::default(),
        })
    }

    /// One attempt. `streamed` is set once anything has been told.
    async fn attempt(
        &self,
        request: &GenerateRequest,
        events: &mpsc::Sender<LlmEvent>,
        streamed: &mut bool,
    ) -> Result<(), Fault> {
        let ending = Arc::new(Ending::default());
        let client = Client::build(self.client.clone(), self.endpoint.clone())
            .with_http_service(Transport::new(self.client.clone(), ending.clone()));
        let body = self.parameters.request(&request.messages);
        let begun = Instant::now();
        let chat = client.chat();
        let opening = chat.create_stream_byot::<_, Value>(body);
        let mut stream = tokio::time::timeout(self.first_token_timeout, opening)
            .await
            .map_err(|_| Fault::timeout(self.first_token_timeout))?
            .map_err(|error| self.fault(Failure::from_openai(error)))?;
        let (mut finished, mut usage, mut unreadable) = (false, None, 0);
        loop {
            let limit = if *streamed {
                self.stall_timeout
            } else {
                self.first_token_timeout.saturating_sub(begun.elapsed())
            };
            let next = tokio::time::timeout(limit, stream.next()).await;
            let value = match next {
                Ok(Some(Ok(value))) => value,
                Ok(Some(Err(async_openai::error::OpenAIError::JSONDeserialize(..)))) => {
                    unreadable += 1;
                    tracing::warn!("openai sent a chunk that cannot be read");
                    if unreadable > MAX_UNREADABLE {
                        return Err(Fault::interrupted("too many chunks that cannot be read"));
                    }
                    continue;
                }
                Ok(Some(Err(error))) => {
                    // All text is there; only the usage or the end mark is lost.
                    if finished {
                        break;
                    }
                    let reason = ending.broken().unwrap_or_else(|| error.to_string());
                    return Err(Fault::interrupted(&self.endpoint.redact(&reason)));
                }
                Ok(None) => break,
                Err(_) if finished => break,
                Err(_) if *streamed => {
                    let ms = limit.as_millis();
                    return Err(Fault::interrupted(&format!("nothing came for {ms} ms")));
                }
                Err(_) => return Err(Fault::timeout(self.first_token_timeout)),
            };
            let chunk = proto::read_chunk(&value);
            if let Some(error) = chunk.error {
                return Err(self.stream_error(&error));
            }
            finished |= chunk.finished;
            usage = chunk.usage.or(usage);
            if !chunk.text.is_empty() {
                *streamed = true;
                tell(events, LlmEvent::Text(chunk.text)).await?;
            }
        }
        if !finished && !ending.is_done() {
            return Err(Fault::interrupted("the stream ended before the answer did"));
        }
        if let Some(proto::Usage { input_tokens, cached_tokens, output_tokens }) = usage {
            tell(events, LlmEvent::Usage { input_tokens, cached_tokens, output_tokens }).await?;
        }
        tell(events, LlmEvent::End).await
    }

    fn fault(&self, failure: Failure) -> Fault {
        match failure {
            Failure::Status { status: status @ (401 | 403), .. } => {
                Fault::fatal(LlmError::Unauthorized { status })
            }
            Failure::Status { status, retry_after, error } => {
                let message = self.endpoint.redact(&error.message);
                if matches!(status, 408 | 409 | 425 | 429 | 500..) && !error.is_out_of_quota() {
                    let error = LlmError::Unreachable(format!("HTTP {status} {message}"));
                    Fault::Retryable { error, after: retry_after }
                } else {
                    Fault::fatal(LlmError::Rejected { status, message })
                }
            }
            Failure::Network(reason) => {
                let error = LlmError::Unreachable(self.endpoint.redact(&reason));
                Fault::Retryable { error, after: None }
            }
            Failure::Invalid(message) => {
                let message = self.endpoint.redact(&message);
                Fault::fatal(LlmError::Rejected { status: 400, message })
            }
        }
    }

    fn stream_error(&self, error: &ServerError) -> Fault {
        let message = self.endpoint.redact(&error.message);
        if error.is_final() {
            Fault::fatal(LlmError::Rejected { status: 200, message })
        } else {
            Fault::interrupted(&message)
        }
    }

    /// Attempts until one streams, the budget is spent, or nobody wants it.
    async fn stream(&self, request: &GenerateRequest, events: &mpsc::Sender<LlmEvent>) {
        let begun = Instant::now();
        let mut delay = FIRST_RETRY;
        let mut streamed = false;
        loop {
            let error = match self.attempt(request, events, &mut streamed).await {
                Ok(()) | Err(Fault::Unwanted) => return,
                Err(Fault::Fatal(error)) => error,
                Err(Fault::Retryable { error, after }) => {
                    let wait = after.unwrap_or(delay.mul_f64(1.0 - random_fraction() / 4.0));
                    if !streamed && begun.elapsed() + wait <= self.retry_budget {
                        tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "asking again");
                        tokio::time::sleep(wait).await;
                        delay = (delay * 2).min(LONGEST_RETRY);
                        continue;
                    }
                    error
                }
            };
            // Nobody listening is an answer as well.
            let _ = events.send(LlmEvent::Error(error)).await;
            return;
        }
    }

    /// Opens a connection in the background, unless that is going on already.
    fn prewarm_later(&self) {
        let this = self.clone();
        tokio::spawn(async move { this.prewarm().await });
    }
}

/// Why an attempt came to nothing.
enum Fault {
    Retryable {
        error: LlmError,
        after: Option<Duration>,
    },
    Fatal(LlmError),
    /// Nobody listens any more.
    Unwanted,
}

impl Fault {
    fn fatal(error: LlmError) -> Self {
        Self::Fatal(error)
    }

    fn interrupted(reason: &str) -> Self {
        Self::Retryable { error: LlmError::Interrupted(reason.to_owned()), after: None }
    }

    fn timeout(limit: Duration) -> Self {
        Self::Fatal(LlmError::Timeout(limit.as_millis() as u64))
    }
}

/// Held while a connection is being opened ahead, also when that is given up in the middle.
struct Prewarming<'a>(&'a AtomicBool);

impl Drop for Prewarming<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

async fn tell(events: &mpsc::Sender<LlmEvent>, event: LlmEvent) -> Result<(), Fault> {
    events.send(event).await.map_err(|_| Fault::Unwanted)
}

#[async_trait::async_trait]
impl Llm for OpenAi {
    fn provider(&self) -> &'static str {
        "openai"
    }

    fn model(&self) -> &str {
        &self.parameters.model
    }

    async fn prewarm(&self) {
        if self.prewarming.swap(true, Ordering::AcqRel) {
            return;
        }
        let _guard = Prewarming(&self.prewarming);
        let warm = async {
            let request =
                self.client.get(self.endpoint.url("/models")).headers(self.endpoint.headers());
            if let Ok(response) = request.send().await {
                http::read_bounded(response, MAX_MODELS_BYTES).await;
            }
        };
        // Not to be had in time is no fault: the first turn opens its own.
        let _ = tokio::time::timeout(PREWARM, warm).await;
    }

    async fn generate(
        &self,
        request: GenerateRequest,
        events: mpsc::Sender<LlmEvent>,
        cancel: CancellationToken,
    ) {
        tokio::select! {
            biased;
            () = cancel.cancelled() => {
                // Cutting the stream has cost its connection; the next turn is not to pay for it.
                self.prewarm_later();
            }
            () = self.stream(&request, &events) => {}
        }
    }
}

#[cfg(test)]
mod tests;
