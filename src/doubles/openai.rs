//! A double of OpenAI's chat completions: `POST /chat/completions`, streamed, and `GET /models`.

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, header},
    response::Response,
    routing::{get, post},
};
use serde_json::{Value, json};

use super::{
    Context,
    llm::{Asked, LlmScript, Served, Wire, data},
    log::What,
};
use crate::clock;

const PROVIDER: &str = "openai";
const TARGET: &str = "/v1/chat/completions";

/// `/chat/completions` and `/models`, to be nested under the version.
pub fn router(script: LlmScript, context: &Context) -> Router {
    Router::new()
        .route("/chat/completions", post(complete))
        .route("/models", get(models))
        .with_state(Served::new(script, context, PROVIDER))
}

/// For whoever asks: all doubles of language models list the same.
async fn models(State(served): State<Served>) -> Json<Value> {
    let connection = served.context.next_connection();
    let what = What::Request { target: "/v1/models".into(), body: String::new() };
    served.context.log.push(PROVIDER, connection, what);
    let model = json!({"id": "double", "object": "model", "created": 0, "owned_by": "antiphon"});
    Json(json!({"object": "list", "data": [model]}))
}

async fn complete(State(served): State<Served>, headers: HeaderMap, body: String) -> Response {
    let (connection, fault) = match served.open::<Chunks>(TARGET, &body).await {
        Ok(opened) => opened,
        Err(refusal) => return refusal,
    };
    let refuse = |status: u16, message: &str| {
        served.refuse::<Chunks>(connection, status, None, "invalid_request_error", message)
    };
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = authorization.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if key.trim().is_empty() {
        return refuse(401, "You didn't provide an API key.");
    }
    let request: Value = serde_json::from_str(&body).unwrap_or_default();
    let Some(messages) = request["messages"].as_array().filter(|_| request["stream"] == true)
    else {
        return refuse(400, "This double streams answers to messages.");
    };
    let spoken = messages.iter().filter(|message| message["role"] != "system");
    let spoken = spoken.filter(|message| message["role"] != "tool");
    let asked = Asked::new(spoken.map(|message| {
        let text = message["content"].as_str().unwrap_or_default().to_owned();
        (message["role"] == "user", text)
    }));
    let null_choices = served.script.lock().has_null_choices();
    let usage = request.pointer("/stream_options/include_usage") == Some(&Value::Bool(true));
    let wire = Chunks {
        head: json!({
            "id": "chatcmpl-double", "object": "chat.completion.chunk",
            "created": clock::unix_ms() / 1_000, "model": request["model"],
        }),
        prompt: asked.tokens(),
        null_choices,
        usage,
        begun: false,
    };
    served.answer(connection, fault, &asked, wire)
}

struct Chunks {
    head: Value,
    prompt: usize,
    null_choices: bool,
    usage: bool,
    begun: bool,
}

impl Chunks {
    fn chunk(&self, fields: &Value) -> String {
        let mut all = self.head.clone();
        if let (Some(all), Some(fields)) = (all.as_object_mut(), fields.as_object()) {
            all.extend(fields.clone());
        }
        data(&all)
    }

    fn choice(&self, delta: &Value, finish_reason: Option<&str>) -> String {
        self.chunk(&json!({"choices": [
            {"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}
        ]}))
    }
}

impl Wire for Chunks {
    fn error(kind: &str, message: &str) -> Value {
        json!({"error": {"message": message, "type": kind, "param": null, "code": null}})
    }

    fn token(&mut self, text: &str) -> String {
        let delta = if std::mem::replace(&mut self.begun, true) {
            json!({"content": text})
        } else {
            json!({"role": "assistant", "content": text, "refusal": null})
        };
        self.choice(&delta, None)
    }

    fn call(&mut self, nth: usize, name: &str, arguments: &Value) -> String {
        let piece = |piece: Value| self.choice(&json!({"tool_calls": [piece]}), None);
        let head = piece(json!({
            "index": nth, "id": format!("call_{nth}"), "type": "function",
            "function": {"name": name, "arguments": ""},
        }));
        let text = arguments.to_string();
        let (first, second) = text.split_at(text.floor_char_boundary(text.len() / 2));
        let rest = [first, second]
            .map(|part| piece(json!({"index": nth, "function": {"arguments": part}})));
        head + &rest.concat()
    }

    fn ending(&mut self, tokens: usize, has_calls: bool) -> Vec<String> {
        let reason = if has_calls { "tool_calls" } else { "stop" };
        let mut ending = vec![self.choice(&json!({}), Some(reason))];
        if self.usage {
            let choices = if self.null_choices { Value::Null } else { json!([]) };
            ending.push(self.chunk(&json!({"choices": choices, "usage": {
                "prompt_tokens": self.prompt, "completion_tokens": tokens,
                "total_tokens": self.prompt + tokens,
                "prompt_tokens_details": {"cached_tokens": 0},
            }})));
        }
        ending.push("data: [DONE]\n\n".into());
        ending
    }

    fn failure(&mut self) -> String {
        data(&Self::error("server_error", "The server is overloaded."))
    }
}
