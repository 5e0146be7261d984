//! What a language model provider is to the chain of providers that answers a turn.
//!
//! The session asks [`super::Llm`]; behind it stand one or more models, tried in order.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::mpsc;

use super::{LlmError, Message, Role};

/// A call of a tool that the model asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Names the call within the conversation.
    pub id: String,
    pub name: String,
    /// JSON as the model wrote it: to be checked, never trusted.
    pub arguments: String,
    /// What the provider wants to see again beside the call (Gemini's thought signature).
    pub signature: Option<String>,
}

impl ToolCall {
    /// The arguments as an object; an empty one when they are none.
    pub fn object(&self) -> Value {
        match serde_json::from_str(&self.arguments) {
            Ok(value @ Value::Object(_)) => value,
            _ => Value::Object(serde_json::Map::new()),
        }
    }
}

/// What a tool gave for a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolResult {
    pub id: String,
    pub name: String,
    pub text: String,
    pub is_error: bool,
}

/// A tool as the model is told of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSpec {
    pub name: String,
    pub description: String,
    /// JSON Schema of an object.
    pub parameters: Value,
}

/// One step of the conversation as a provider is sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    System(String),
    User(String),
    Assistant {
        text: String,
        calls: Vec<ToolCall>,
    },
    /// The results of the calls just before.
    Results(Vec<ToolResult>),
}

impl From<&Message> for Turn {
    fn from(message: &Message) -> Self {
        let text = message.text.clone();
        match message.role {
            Role::System => Self::System(text),
            Role::User => Self::User(text),
            Role::Assistant => Self::Assistant { text, calls: Vec::new() },
        }
    }
}

/// Asks a model to go on with an answer that another began. Said as the user's turn, because not
/// every model takes an unfinished answer to complete.
pub const GO_ON: &str = "(Your answer broke off there. Go on with it from exactly that word. Repeat \
                         nothing of it and do not mention this.)";

/// One request to a model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ask {
    pub turns: Vec<Turn>,
    pub tools: Arc<[ToolSpec]>,
    /// No further calls: the tools are those that the turns speak of.
    pub must_answer: bool,
}

impl Ask {
    pub fn new(messages: &[Message]) -> Self {
        Self { turns: messages.iter().map(Turn::from).collect(), ..Self::default() }
    }

    /// The system prompts, for providers that want them apart.
    pub fn system(&self) -> impl Iterator<Item = &str> {
        self.turns.iter().filter_map(|turn| match turn {
            Turn::System(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// All but the system prompts.
    pub fn spoken(&self) -> impl Iterator<Item = &Turn> {
        self.turns.iter().filter(|turn| !matches!(turn, Turn::System(_)))
    }

    /// How much text is sent, tools included.
    pub fn bytes(&self) -> usize {
        let turns = self.turns.iter().map(|turn| match turn {
            Turn::System(text) | Turn::User(text) => text.len(),
            Turn::Assistant { text, calls } => {
                let calls = calls.iter().map(|call| call.arguments.len());
                text.len() + calls.sum::<usize>()
            }
            Turn::Results(results) => results.iter().map(|result| result.text.len()).sum(),
        });
        let tools = self.tools.iter().map(|tool| {
            tool.name.len() + tool.description.len() + tool.parameters.to_string().len()
        });
        turns.sum::<usize>() + tools.sum::<usize>()
    }

    /// The same, of which `begun` has been answered already.
    pub fn continued(&self, begun: &str) -> Self {
        let mut ask = self.clone();
        let begun = begun.trim_end().to_owned();
        if !begun.is_empty() {
            ask.turns.push(Turn::Assistant { text: begun, calls: Vec::new() });
            ask.turns.push(Turn::User(GO_ON.to_owned()));
        }
        ask
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenUsage {
    /// All of the prompt, cached or not.
    pub input: u64,
    /// Of the input: read from the provider's cache.
    pub cached: u64,
    pub output: u64,
}

/// What a model streams.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Never empty.
    Text(String),
    /// Complete, with all its arguments.
    Call(ToolCall),
    /// At most once, at the end; missing on an interrupted stream.
    Usage(TokenUsage),
}

/// How long a model is waited for, where others could take its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until the first text or call.
    pub first_token: Duration,
    /// From the beginning: no further attempt is begun after this.
    pub retry: Duration,
    /// Within a stream.
    pub stall: Duration,
}

impl Patience {
    /// As the model's own configuration has it.
    pub const OWN: Self =
        Self { first_token: Duration::MAX, retry: Duration::MAX, stall: Duration::MAX };
}

/// One model of one provider, shared by all rooms of an agent.
#[async_trait::async_trait]
pub trait Model: Send + Sync + std::fmt::Debug + 'static {
    /// As written in agent files: `openai`, `anthropic`, `google`.
    fn provider(&self) -> &'static str;
    fn model(&self) -> &str;
    /// Makes sure that a connection is at hand; costs nothing when one is, and failure is not an
    /// error.
    async fn prewarm(&self);
    /// Streams one answer; tries again by itself as long as nothing has been streamed. Dropping the
    /// future frees the connection at once.
    async fn stream(
        &self,
        ask: &Ask,
        patience: Patience,
        pieces: mpsc::Sender<Piece>,
    ) -> Result<(), LlmError>;
}
