//! What an agent can do beside talking: HTTP calls declared in its file, tools of MCP servers, and
//! built-ins.
//!
//! The model asks for calls in the middle of an answer; [`answering::Handy`] runs them, gives it the
//! results, and lets it go on. Nothing of a model's arguments is trusted: they are data in a request
//! whose address, method and secrets the agent file alone decides.

pub mod answering;
pub mod builtin;
pub mod http;
pub mod knowledge;
pub mod mcp;
pub mod rounds;
pub mod schema;
pub mod telephone;

use std::{sync::Arc, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use self::mcp::McpServer;
use crate::llm::model::{ToolCall, ToolResult, ToolSpec};

/// Longest result that the model is given, in bytes.
const MAX_RESULT: usize = 16 << 10;

/// Why a call came to nothing; the model reads it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    #[error("the arguments are wrong: {0}")]
    Arguments(String),
    #[error("{0}")]
    Failed(String),
}

/// Something that can be called.
#[async_trait::async_trait]
pub trait Call: Send + Sync + std::fmt::Debug + 'static {
    /// `arguments` is an object, as the model wrote it.
    async fn call(&self, arguments: &Value) -> Result<String, ToolError>;
}

/// One tool of an agent.
#[derive(Debug, Clone)]
pub struct Tool {
    pub spec: ToolSpec,
    pub run: Arc<dyn Call>,
    pub timeout: Duration,
    /// Goes on when the user interrupts: for what must not be left half done.
    pub outlives_interruption: bool,
    /// Begins when what the agent has said before is about to have been heard.
    pub waits_for_speech: bool,
}

/// All tools of one session.
#[derive(Debug, Clone, Default)]
pub struct Toolbox {
    own: Arc<[Tool]>,
    servers: Arc<[McpServer]>,
}

impl Toolbox {
    pub fn new(tools: Vec<Tool>) -> Self {
        Self { own: tools.into(), servers: Arc::default() }
    }

    /// Those of MCP servers as well, whatever they are at the time of an answer.
    #[must_use]
    pub fn with_servers(self, servers: Arc<[McpServer]>) -> Self {
        Self { servers, ..self }
    }

    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.servers.is_empty()
    }

    /// What can be called now. A tool of a server whose name another tool has too is called
    /// `SERVER_TOOL`, also when the other is another server's: a name never changes its meaning.
    pub fn offered(&self) -> Offered {
        let mut tools = self.own.to_vec();
        let own = tools.len();
        let listed: Vec<_> = self.servers.iter().map(McpServer::tools).collect();
        for (server, list) in self.servers.iter().zip(&listed) {
            for tool in list.iter() {
                let others = listed.iter().flat_map(|list| list.iter());
                let shared = others.filter(|other| other.spec.name == tool.spec.name).count() > 1
                    || tools[..own].iter().any(|other| other.spec.name == tool.spec.name);
                let mut tool = tool.clone();
                if shared {
                    tool.spec.name =
                        mcp::fit_name(&format!("{}_{}", server.name(), tool.spec.name));
                }
                if tools.iter().all(|other| other.spec.name != tool.spec.name) {
                    tools.push(tool);
                }
            }
        }
        Offered(tools.into())
    }
}

/// The tools that one answer may call.
#[derive(Debug, Clone)]
pub struct Offered(Arc<[Tool]>);

impl Offered {
    pub fn specs(&self) -> Arc<[ToolSpec]> {
        self.0.iter().map(|tool| tool.spec.clone()).collect()
    }

    fn find(&self, name: &str) -> Option<&Tool> {
        self.0.iter().find(|tool| tool.spec.name == name)
    }

    /// Whether the call goes on when the user interrupts.
    pub fn outlives_interruption(&self, call: &ToolCall) -> bool {
        self.find(&call.name).is_some_and(|tool| tool.outlives_interruption)
    }

    /// Whether the call would cut off what is being said.
    pub fn waits_for_speech(&self, call: &ToolCall) -> bool {
        self.find(&call.name).is_some_and(|tool| tool.waits_for_speech)
    }

    /// Runs one call to its end, its time-out, or until it is dropped.
    pub async fn run(&self, call: &ToolCall) -> ToolResult {
        let outcome = self.try_run(call).await;
        let is_error = outcome.is_err();
        let mut text = outcome.unwrap_or_else(|error| error.to_string());
        if text.len() > MAX_RESULT {
            text.truncate(text.floor_char_boundary(MAX_RESULT));
            text.push_str(" …");
        }
        // The model may have made up the name.
        let name = crate::net::http::shorten(&call.name);
        tracing::info!(tool = name, is_error, "a tool was called");
        ToolResult { id: call.id.clone(), name: call.name.clone(), text, is_error }
    }

    async fn try_run(&self, call: &ToolCall) -> Result<String, ToolError> {
        let tool = self.find(&call.name);
        let tool = tool.ok_or_else(|| ToolError::Failed("there is no such tool".into()))?;
        let arguments = match call.arguments.trim() {
            "" => Ok(Value::Object(serde_json::Map::new())),
            text => serde_json::from_str(text),
        };
        let arguments = arguments.map_err(|error| ToolError::Arguments(error.to_string()))?;
        schema::check(&arguments, &tool.spec.parameters).map_err(ToolError::Arguments)?;
        let limit = tool.timeout;
        let late = |_| ToolError::Failed(format!("no result within {} ms", limit.as_millis()));
        tokio::time::timeout(limit, tool.run.call(&arguments)).await.map_err(late)?
    }
}

/// Takes secrets out of a text that a server wrote: some repeat what they are sent.
fn redact<'a>(mut text: String, secrets: impl IntoIterator<Item = &'a SecretString>) -> String {
    for secret in secrets {
        let whole = secret.expose_secret();
        // Of `Bearer KEY` the key alone may come back.
        for part in [whole, whole.rsplit(' ').next().unwrap_or_default()] {
            if part.len() >= 6 {
                text = text.replace(part, "***");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug)]
    struct Echo(Duration);

    #[async_trait::async_trait]
    impl Call for Echo {
        async fn call(&self, arguments: &Value) -> Result<String, ToolError> {
            tokio::time::sleep(self.0).await;
            Ok(arguments["text"].as_str().unwrap_or_default().repeat(10_000))
        }
    }

    fn toolbox(takes: Duration) -> Toolbox {
        Toolbox::new(vec![Tool {
            spec: ToolSpec {
                name: "echo".into(),
                description: String::new(),
                parameters: json!({
                    "type": "object", "properties": {"text": {"type": "string"}},
                    "required": ["text"],
                }),
            },
            run: Arc::new(Echo(takes)),
            timeout: Duration::from_secs(1),
            outlives_interruption: false,
            waits_for_speech: false,
        }])
    }

    async fn run(toolbox: &Toolbox, name: &str, arguments: &str) -> ToolResult {
        let call = ToolCall {
            id: "1".into(),
            name: name.into(),
            arguments: arguments.into(),
            signature: None,
        };
        toolbox.offered().run(&call).await
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_wrong_is_a_result_that_the_model_reads() {
        let tools = toolbox(Duration::ZERO);
        for (name, arguments, problem) in [
            ("ecco", "{}", "there is no such tool"),
            ("echo", "{\"te", "the arguments are wrong: EOF"),
            ("echo", "[]", "the arguments are wrong: not an object"),
            ("echo", "", "the arguments are wrong: `text` is missing"),
            ("echo", "{\"text\": 1}", "the arguments are wrong: `text` must be of type string"),
        ] {
            let result = run(&tools, name, arguments).await;
            assert!(result.is_error && result.text.starts_with(problem), "{result:?}");
        }
        let slow = run(&toolbox(Duration::from_secs(5)), "echo", "{\"text\": \"a\"}").await;
        assert_eq!(slow.text, "no result within 1000 ms");
    }

    #[tokio::test]
    async fn a_long_result_is_cut() {
        let result = run(&toolbox(Duration::ZERO), "echo", "{\"text\": \"äöü\"}").await;
        assert!(!result.is_error && result.text.len() <= MAX_RESULT + 4);
    }
}
