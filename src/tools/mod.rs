//! What an agent can do beside talking: HTTP calls declared in its file, and built-ins.
//!
//! The model asks for calls in the middle of an answer; [`answering::Handy`] runs them, gives it the
//! results, and lets it go on. Nothing of a model's arguments is trusted: they are data in a request
//! whose address, method and secrets the agent file alone decides.

pub mod answering;
pub mod builtin;
pub mod http;

use std::{sync::Arc, time::Duration};

use serde_json::Value;

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
}

/// All tools of one session.
#[derive(Debug, Clone, Default)]
pub struct Toolbox(Vec<Tool>);

impl Toolbox {
    pub fn new(tools: Vec<Tool>) -> Self {
        Self(tools)
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn specs(&self) -> Arc<[ToolSpec]> {
        self.0.iter().map(|tool| tool.spec.clone()).collect()
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
        tracing::info!(tool = call.name, is_error, "a tool was called");
        ToolResult { id: call.id.clone(), name: call.name.clone(), text, is_error }
    }

    async fn try_run(&self, call: &ToolCall) -> Result<String, ToolError> {
        let tool = self.0.iter().find(|tool| tool.spec.name == call.name);
        let tool = tool.ok_or_else(|| ToolError::Failed("there is no such tool".into()))?;
        let arguments = match call.arguments.trim() {
            "" => Ok(Value::Object(serde_json::Map::new())),
            text => serde_json::from_str(text),
        };
        let arguments = arguments.map_err(|error| ToolError::Arguments(error.to_string()))?;
        check(&arguments, &tool.spec.parameters)?;
        let (run, limit) = (tool.run.clone(), tool.timeout);
        let late = || ToolError::Failed(format!("no result within {} ms", limit.as_millis()));
        if tool.outlives_interruption {
            let task =
                tokio::spawn(
                    async move { tokio::time::timeout(limit, run.call(&arguments)).await },
                );
            let outcome = task.await.map_err(|_| ToolError::Failed("the tool broke".into()))?;
            return outcome.map_err(|_| late())?;
        }
        tokio::time::timeout(limit, run.call(&arguments)).await.map_err(|_| late())?
    }
}

/// What of JSON Schema most often goes wrong: an object, its required fields, their types.
fn check(arguments: &Value, schema: &Value) -> Result<(), ToolError> {
    let wrong = |what: String| Err(ToolError::Arguments(what));
    let Some(fields) = arguments.as_object() else { return wrong("not an object".into()) };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            return wrong(format!("`{name}` is missing"));
        }
    }
    for (name, value) in fields {
        let kind = schema["properties"][name.as_str()]["type"].as_str();
        let is_right = match kind {
            Some("string") => value.is_string(),
            Some("integer") => value.is_i64() || value.is_u64(),
            Some("number") => value.is_number(),
            Some("boolean") => value.is_boolean(),
            Some("array") => value.is_array(),
            Some("object") => value.is_object(),
            _ => true,
        };
        if !is_right {
            return wrong(format!("`{name}` must be of type {}", kind.unwrap_or_default()));
        }
    }
    Ok(())
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
        }])
    }

    async fn run(toolbox: &Toolbox, name: &str, arguments: &str) -> ToolResult {
        let call = ToolCall {
            id: "1".into(),
            name: name.into(),
            arguments: arguments.into(),
            signature: None,
        };
        toolbox.run(&call).await
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
