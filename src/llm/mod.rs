//! Large language models: what every provider is to the rest of antiphon.

pub mod anthropic;
pub mod chain;
mod codec;
pub mod config;
pub mod gemini;
pub mod model;
pub mod openai;
mod seam;
pub mod sse;
pub mod streaming;
#[cfg(test)]
mod testing;

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
}

/// One entry of the conversation as the model is shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    pub text: String,
}

/// One generation: the whole conversation, the system prompt first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateRequest {
    pub messages: Arc<[Message]>,
}

/// What a generation tells, in order; after `End` or `Error` nothing more comes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum LlmEvent {
    /// A piece of text as the model streams it (a token or some), never empty.
    Text(String),
    /// Tools are at work, told about every second: the next text takes longer than a model would.
    Working,
    /// By this model of several (see [`Llm::name_of`]).
    Usage {
        #[serde(default)]
        link: u8,
        input_tokens: u64,
        cached_tokens: u64,
        output_tokens: u64,
        /// By the length of the texts: the answer was cut short before the provider told.
        #[serde(default)]
        estimated: bool,
    },
    End,
    Error(LlmError),
}

/// Why a generation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum LlmError {
    #[error("the provider refused the credentials (HTTP {status})")]
    Unauthorized { status: u16 },
    #[error("the provider refused the request (HTTP {status}): {message}")]
    Rejected { status: u16, message: String },
    #[error("the provider cannot be reached: {0}")]
    Unreachable(String),
    #[error("the stream broke off: {0}")]
    Interrupted(String),
    #[error("no answer within {0} ms")]
    Timeout(u64),
}

impl LlmError {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Unauthorized { .. } | Self::Rejected { .. })
    }
}

/// A language model provider, shared by all rooms of an agent.
#[async_trait::async_trait]
pub trait Llm: Send + Sync + std::fmt::Debug + 'static {
    /// As written in agent files: `openai`.
    fn provider(&self) -> &'static str;
    fn model(&self) -> &str;
    /// Provider and model that an [`LlmEvent::Usage`] is about.
    fn name_of(&self, _link: u8) -> (&str, &str) {
        (self.provider(), self.model())
    }
    /// Makes sure that a connection is at hand for the next turn: when a job is offered, and when
    /// the user begins to speak. Costs nothing when one is; failure is not an error.
    async fn prewarm(&self);
    /// Streams one answer into `events`; ends with exactly one `End` or `Error`, unless cancelled,
    /// which frees the connection at once and sends nothing more but the usage. Retries inside as long as nothing
    /// has been streamed.
    async fn generate(
        &self,
        request: GenerateRequest,
        events: mpsc::Sender<LlmEvent>,
        cancel: CancellationToken,
    );
}
