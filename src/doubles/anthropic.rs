//! A double of Anthropic's Messages API: `POST /messages`, streamed.

use axum::{Router, extract::State, http::HeaderMap, response::Response, routing::post};
use serde_json::{Value, json};

use super::{
    Context,
    llm::{Asked, LlmScript, Served, Wire},
};

const PROVIDER: &str = "anthropic";
const TARGET: &str = "/v1/messages";

/// `/messages`, to be nested under the version.
pub fn router(script: LlmScript, context: &Context) -> Router {
    Router::new()
        .route("/messages", post(messages))
        .with_state(Served::new(script, context, PROVIDER))
}

async fn messages(State(served): State<Served>, headers: HeaderMap, body: String) -> Response {
    let (connection, fault) = match served.open::<Events>(TARGET, &body).await {
        Ok(opened) => opened,
        Err(refusal) => return refusal,
    };
    let refuse = |status: u16, kind: &str, message: &str| {
        served.refuse::<Events>(connection, status, None, kind, message)
    };
    let has = |name: &str| headers.get(name).is_some_and(|value| !value.is_empty());
    if !has("x-api-key") {
        return refuse(401, "authentication_error", "x-api-key header is required");
    }
    let invalid = |message: &str| refuse(400, "invalid_request_error", message);
    if !has("anthropic-version") {
        return invalid("anthropic-version: header is required");
    }
    let request: Value = serde_json::from_str(&body).unwrap_or_default();
    let messages = request["messages"].as_array().filter(|all| !all.is_empty());
    let Some(messages) = messages.filter(|_| request["stream"] == true) else {
        return invalid("messages: at least one message is required, and stream");
    };
    if messages[0]["role"] != "user" {
        return invalid("messages: first message must use the \"user\" role");
    }
    if request["max_tokens"].as_u64().is_none() {
        return invalid("max_tokens: Field required");
    }
    let mut turns = Vec::new();
    for message in messages {
        let is_user = message["role"] == "user";
        for block in message["content"].as_array().into_iter().flatten() {
            if let Some(text) = block["text"].as_str() {
                if text.trim().is_empty() {
                    return invalid("messages: text content blocks must be non-empty");
                }
                turns.push((is_user, text.to_owned()));
            }
        }
    }
    let asked = Asked::new(turns);
    let cached = body.contains("cache_control");
    let wire = Events {
        model: request["model"].clone(),
        prompt: asked.tokens(),
        cached,
        open: false,
        blocks: 0,
    };
    served.answer(connection, fault, &asked, wire)
}

struct Events {
    model: Value,
    prompt: usize,
    cached: bool,
    /// A text block is open.
    open: bool,
    blocks: usize,
}

impl Events {
    fn stop(&mut self) -> String {
        if !std::mem::take(&mut self.open) {
            return String::new();
        }
        self.blocks += 1;
        event(&json!({"type": "content_block_stop", "index": self.blocks - 1}))
    }
}

fn event(value: &Value) -> String {
    format!("event: {}\ndata: {value}\n\n", value["type"].as_str().unwrap_or_default())
}

impl Wire for Events {
    fn error(kind: &str, message: &str) -> Value {
        json!({"type": "error", "error": {"type": kind, "message": message}})
    }

    fn head(&mut self) -> String {
        let cached = if self.cached { self.prompt / 2 } else { 0 };
        let start = event(&json!({"type": "message_start", "message": {
            "id": "msg_double", "type": "message", "role": "assistant", "model": self.model,
            "content": [], "stop_reason": null, "stop_sequence": null, "usage": {
                "input_tokens": self.prompt - cached, "cache_read_input_tokens": cached,
                "cache_creation_input_tokens": 0, "output_tokens": 1,
            },
        }}));
        start + &event(&json!({"type": "ping"}))
    }

    fn token(&mut self, text: &str) -> String {
        let mut out = String::new();
        if !std::mem::replace(&mut self.open, true) {
            out += &event(&json!({
                "type": "content_block_start", "index": self.blocks,
                "content_block": {"type": "text", "text": ""},
            }));
        }
        out + &event(&json!({
            "type": "content_block_delta", "index": self.blocks,
            "delta": {"type": "text_delta", "text": text},
        }))
    }

    fn call(&mut self, nth: usize, name: &str, arguments: &Value) -> String {
        let mut out = self.stop();
        let index = self.blocks;
        self.blocks += 1;
        out += &event(&json!({
            "type": "content_block_start", "index": index,
            "content_block": {
                "type": "tool_use", "id": format!("toolu_{nth}"), "name": name, "input": {},
            },
        }));
        let text = arguments.to_string();
        let (first, second) = text.split_at(text.floor_char_boundary(text.len() / 2));
        for part in [first, second] {
            out += &event(&json!({
                "type": "content_block_delta", "index": index,
                "delta": {"type": "input_json_delta", "partial_json": part},
            }));
        }
        out + &event(&json!({"type": "content_block_stop", "index": index}))
    }

    fn ending(&mut self, tokens: usize, has_calls: bool) -> Vec<String> {
        let reason = if has_calls { "tool_use" } else { "end_turn" };
        let stop = self.stop();
        vec![
            stop + &event(&json!({
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": null},
                "usage": {"output_tokens": tokens},
            })),
            event(&json!({"type": "message_stop"})),
        ]
    }

    fn failure(&mut self) -> String {
        event(&Self::error("overloaded_error", "Overloaded"))
    }
}
