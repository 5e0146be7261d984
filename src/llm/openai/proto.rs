//! The wire of OpenAI chat completions, as OpenAI and the many servers that imitate it speak it.
//!
//! Source: platform.openai.com/docs/api-reference/chat and /chat-streaming. Chunks are read field by
//! field from JSON rather than into a fixed type: `choices` is null in the usage chunk of some
//! servers, ids and dates are missing from others, and none of that concerns us.

use serde::Serialize;
use serde_json::Value;

use crate::llm::{Message, Role};

/// How much of a server's message is kept in an error.
const MAX_MESSAGE_CHARS: usize = 200;

/// The body of `POST {base}/chat/completions`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request<'a> {
    model: &'a str,
    messages: Vec<RequestMessage<'a>>,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct RequestMessage<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// What of the settings goes into each request.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    pub model: String,
    pub temperature: Option<f32>,
    pub max_tokens: Option<u32>,
    /// OpenAI itself has renamed `max_tokens` to `max_completion_tokens`, and newer models refuse
    /// the old name; most other servers know only the old one.
    pub new_token_limit: bool,
}

impl Parameters {
    /// A request for one streamed answer with its usage. Empty messages are left out: some servers
    /// refuse them, and they say nothing.
    pub fn request<'a>(&'a self, messages: &'a [Message]) -> Request<'a> {
        Request {
            model: &self.model,
            messages: messages
                .iter()
                .filter(|message| !message.text.is_empty())
                .map(|message| RequestMessage {
                    role: match message.role {
                        Role::System => "system",
                        Role::User => "user",
                        Role::Assistant => "assistant",
                    },
                    content: &message.text,
                })
                .collect(),
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            temperature: self.temperature,
            max_tokens: self.max_tokens.filter(|_| !self.new_token_limit),
            max_completion_tokens: self.max_tokens.filter(|_| self.new_token_limit),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub input_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
}

/// An error that a server told, in the body of a response or within a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    pub message: String,
    /// `type` or `code`, whichever says more: `insufficient_quota`, `server_error`, …
    pub kinds: [String; 2],
}

impl ServerError {
    fn is(&self, kind: &str) -> bool {
        self.kinds.iter().any(|of| of == kind)
    }

    /// The account is exhausted: waiting does not help, although the status is 429.
    pub fn is_out_of_quota(&self) -> bool {
        self.is("insufficient_quota") || self.is("billing_hard_limit_reached")
    }

    /// The request itself is at fault.
    pub fn is_final(&self) -> bool {
        self.is_out_of_quota()
            || self.is("invalid_request_error")
            || self.is("context_length_exceeded")
            || self.is("model_not_found")
    }
}

/// What one chunk of the stream holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chunk {
    pub text: String,
    /// The model has stopped, for whatever reason.
    pub finished: bool,
    pub usage: Option<Usage>,
    pub error: Option<ServerError>,
}

/// Reads one chunk; what is missing or of another type counts as not there.
pub fn read_chunk(chunk: &Value) -> Chunk {
    let choice = chunk
        .get("choices")
        .and_then(Value::as_array)
        .and_then(|choices| choices.iter().find(|choice| is_first(choice)));
    let delta = choice.and_then(|choice| choice.get("delta"));
    let text = |key: &str| {
        delta.and_then(|delta| delta.get(key)).and_then(Value::as_str).unwrap_or_default()
    };
    Chunk {
        // A refusal is the answer as well: unspoken it would be silence.
        text: [text("content"), text("refusal")].concat(),
        finished: choice
            .and_then(|choice| choice.get("finish_reason"))
            .is_some_and(|reason| reason.as_str().is_some_and(|reason| !reason.is_empty())),
        usage: chunk.get("usage").and_then(read_usage),
        error: chunk.get("error").filter(|error| !error.is_null()).map(read_error),
    }
}

fn is_first(choice: &Value) -> bool {
    choice.get("index").and_then(Value::as_u64).unwrap_or(0) == 0
}

fn read_usage(usage: &Value) -> Option<Usage> {
    let count = |value: Option<&Value>| value.and_then(Value::as_u64);
    let input = count(usage.get("prompt_tokens"));
    let output = count(usage.get("completion_tokens"));
    if input.is_none() && output.is_none() {
        return None;
    }
    Some(Usage {
        input_tokens: input.unwrap_or(0),
        cached_tokens: count(usage.pointer("/prompt_tokens_details/cached_tokens")).unwrap_or(0),
        output_tokens: output.unwrap_or(0),
    })
}

/// The body of a response with an error status, JSON or not.
pub fn read_error_body(body: &[u8]) -> ServerError {
    match serde_json::from_slice::<Value>(body) {
        // Some servers send a list with one error in it, some the error without a wrapper.
        Ok(Value::Array(list)) => list.first().map(read_wrapped).unwrap_or_default(),
        Ok(body) => read_wrapped(&body),
        Err(_) => ServerError {
            message: shorten(&String::from_utf8_lossy(body)),
            ..ServerError::default()
        },
    }
}

fn read_wrapped(body: &Value) -> ServerError {
    read_error(body.get("error").filter(|error| !error.is_null()).unwrap_or(body))
}

fn read_error(error: &Value) -> ServerError {
    let text = |key: &str| match error.get(key) {
        Some(Value::String(text)) => shorten(text),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    let message = match error {
        Value::String(message) => shorten(message),
        _ => [text("message"), text("detail")]
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_default(),
    };
    ServerError { message, kinds: [text("type"), text("code")] }
}

fn shorten(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(MAX_MESSAGE_CHARS).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parameters() -> Parameters {
        Parameters {
            model: "gpt-4o-mini".into(),
            temperature: Some(0.5),
            max_tokens: Some(1024),
            new_token_limit: false,
        }
    }

    fn message(role: Role, text: &str) -> Message {
        Message { role, text: text.into() }
    }

    #[test]
    fn a_request_carries_the_whole_conversation_and_asks_for_usage() {
        let messages = [
            message(Role::System, "Be brief."),
            message(Role::User, "Hi"),
            message(Role::Assistant, ""),
            message(Role::User, "Hello?"),
        ];
        assert_eq!(
            serde_json::to_value(parameters().request(&messages)).unwrap(),
            json!({
                "model": "gpt-4o-mini", "stream": true, "stream_options": {"include_usage": true},
                "temperature": 0.5, "max_tokens": 1024,
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Hi"},
                    {"role": "user", "content": "Hello?"},
                ],
            })
        );
        let new = Parameters { new_token_limit: true, temperature: None, ..parameters() };
        let body = serde_json::to_value(new.request(&[])).unwrap();
        assert_eq!(body["max_completion_tokens"], 1024);
        assert_eq!(body.get("max_tokens").or(body.get("temperature")), None);
    }

    #[test]
    fn recorded_streams_are_read() {
        for (name, stream) in [
            ("openai", include_str!("../../../fixtures/providers/openai-stream.jsonl")),
            ("compatible", include_str!("../../../fixtures/providers/openai-compatible.jsonl")),
        ] {
            let chunks: Vec<_> = stream
                .lines()
                .map(|line| read_chunk(&serde_json::from_str(line).unwrap()))
                .collect();
            let text: String = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
            assert_eq!(text, "Sure. I can help.", "{name}");
            assert_eq!(chunks.iter().filter(|chunk| chunk.finished).count(), 1, "{name}");
            let usage: Vec<_> = chunks.iter().filter_map(|chunk| chunk.usage).collect();
            let expected = Usage { input_tokens: 21, cached_tokens: 16, output_tokens: 6 };
            assert_eq!(usage, [expected], "{name}");
            assert!(chunks.iter().all(|chunk| chunk.error.is_none()), "{name}");
        }
    }

    #[test]
    fn an_error_within_the_stream_is_seen() {
        let chunk =
            read_chunk(&json!({"error": {"message": "overloaded", "type": "server_error"}}));
        let error = chunk.error.unwrap();
        assert_eq!(error.message, "overloaded");
        assert!(!error.is_final());
        let chunk = read_chunk(&json!({"error": "no such model"}));
        assert_eq!(chunk.error.unwrap().message, "no such model");
        assert_eq!(read_chunk(&json!({"error": null})), Chunk::default());
    }

    #[test]
    fn error_bodies_are_read_in_every_shape() {
        let quota = read_error_body(
            br#"{"error":{"message":"You exceeded your quota","type":"insufficient_quota","code":"insufficient_quota"}}"#,
        );
        assert!(quota.is_out_of_quota());
        let list = read_error_body(br#"[{"error":{"code":404,"message":"not found"}}]"#);
        assert_eq!(list.message, "not found");
        assert_eq!(read_error_body(br#"{"detail":"gone"}"#).message, "gone");
        assert_eq!(read_error_body(b"<h1>Bad\ngateway</h1>").message, "<h1>Bad gateway</h1>");
        assert_eq!(read_error_body(&[b'x'; 10_000]).message.len(), MAX_MESSAGE_CHARS);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            let key = prop_oneof![
                Just("choices"),
                Just("delta"),
                Just("content"),
                Just("index"),
                Just("usage"),
                Just("prompt_tokens"),
                Just("error"),
                Just("message"),
                Just("finish_reason"),
            ];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((key, inner), 0..5).prop_map(|fields| {
                    Value::Object(fields.into_iter().map(|(key, v)| (key.to_owned(), v)).collect())
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_json_can_hurt(value in any_json(), junk in "\\PC{0,60}") {
            let _ = read_chunk(&value);
            let _ = read_error_body(value.to_string().as_bytes());
            let _ = read_error_body(junk.as_bytes());
        }
    }
}
