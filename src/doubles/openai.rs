//! A double of OpenAI's chat completions: `POST /v1/chat/completions`, streamed, and
//! `GET /v1/models`.
//!
//! It answers as scripted, then by itself: with the number of the user's turns and the last one
//! quoted, so that it can be heard that the conversation was sent.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Context, log::What};
use crate::clock;

const PROVIDER: &str = "openai";
const TARGET: &str = "/v1/chat/completions";

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Refuse {
        status: u16,
        retry_after: Option<u64>,
    },
    /// The connection breaks after so many tokens.
    Disconnect(usize),
    /// Nothing more comes after so many tokens, and nothing is closed.
    Stall(usize),
    /// One chunk after so many tokens is not JSON.
    Malformed(usize),
    /// An error object takes the place of the rest after so many tokens.
    Fail(usize),
}

/// What is answered, how fast, and what goes wrong:
///
/// ```
/// # use antiphon::doubles::openai::OpenAiScript;
/// # use std::time::Duration;
/// // The first request is refused, the next two are answered; after that the double makes up its
/// // own answers.
/// let script = OpenAiScript::new()
///     .refuse(500)
///     .answer("Sure. For how many?")
///     .answer("A table for two at eight.")
///     .first_token(Duration::from_millis(80));
/// ```
#[derive(Debug, Clone)]
pub struct OpenAiScript {
    answers: VecDeque<String>,
    rules: Vec<(String, String)>,
    first_token: Duration,
    token: Duration,
    null_choices: bool,
    faults: VecDeque<Fault>,
    last_fault: Fault,
}

impl Default for OpenAiScript {
    fn default() -> Self {
        Self {
            answers: VecDeque::new(),
            rules: Vec::new(),
            first_token: Duration::from_millis(50),
            token: Duration::from_millis(10),
            null_choices: false,
            faults: VecDeque::new(),
            last_fault: Fault::None,
        }
    }
}

impl OpenAiScript {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next answer.
    pub fn answer(mut self, text: &str) -> Self {
        self.answers.push_back(text.to_owned());
        self
    }

    /// The answer whenever the last message has `part` in it (case does not matter) and no
    /// scripted answer is left.
    pub fn answer_to(mut self, part: &str, text: &str) -> Self {
        self.rules.push((part.to_lowercase(), text.to_owned()));
        self
    }

    /// From the request to the first token (50 ms).
    pub const fn first_token(mut self, delay: Duration) -> Self {
        self.first_token = delay;
        self
    }

    /// From token to token (10 ms).
    pub const fn token(mut self, length: Duration) -> Self {
        self.token = length;
        self
    }

    /// The chunk with the usage has null for its choices, as some servers write it.
    pub const fn null_choices(mut self) -> Self {
        self.null_choices = true;
        self
    }

    /// The next request has no fault. Faults are used up in the order written, one a request.
    pub fn accept(self) -> Self {
        self.fault(Fault::None)
    }

    /// The next request is refused with this HTTP status.
    pub fn refuse(self, status: u16) -> Self {
        self.fault(Fault::Refuse { status, retry_after: None })
    }

    /// Refused with `Retry-After`, in s.
    pub fn refuse_for(self, status: u16, retry_after: u64) -> Self {
        self.fault(Fault::Refuse { status, retry_after: Some(retry_after) })
    }

    /// Every request after the faults so far is refused.
    pub const fn refuse_always(mut self, status: u16) -> Self {
        self.last_fault = Fault::Refuse { status, retry_after: None };
        self
    }

    /// The next answer breaks off after so many tokens.
    pub fn disconnect_after(self, tokens: usize) -> Self {
        self.fault(Fault::Disconnect(tokens))
    }

    /// The next answer stops coming after so many tokens; the connection stays.
    pub fn stall_after(self, tokens: usize) -> Self {
        self.fault(Fault::Stall(tokens))
    }

    /// The next answer has a chunk after so many tokens that is not JSON, and then goes on.
    pub fn malformed_after(self, tokens: usize) -> Self {
        self.fault(Fault::Malformed(tokens))
    }

    /// The next answer ends in an error object after so many tokens.
    pub fn fail_after(self, tokens: usize) -> Self {
        self.fault(Fault::Fail(tokens))
    }

    fn fault(mut self, fault: Fault) -> Self {
        self.faults.push_back(fault);
        self
    }

    fn take_fault(&mut self) -> Fault {
        self.faults.pop_front().unwrap_or(self.last_fault)
    }

    fn take_answer(&mut self, messages: &[Value]) -> String {
        if let Some(answer) = self.answers.pop_front() {
            return answer;
        }
        let text = |message: &Value| message["content"].as_str().unwrap_or_default().to_owned();
        let said: Vec<_> =
            messages.iter().filter(|message| message["role"] == "user").map(text).collect();
        let last = said.last().map(String::as_str).unwrap_or_default();
        let lower = last.to_lowercase();
        if let Some((_, answer)) = self.rules.iter().find(|(part, _)| lower.contains(part)) {
            return answer.clone();
        }
        if last.is_empty() {
            return "Hello. What can I do for you?".into();
        }
        let quoted = last.trim_end_matches(['.', '?', '!']);
        format!("All right. That was turn {}, and you said: {quoted}. What next?", said.len())
    }
}

#[derive(Debug, Clone)]
struct Served {
    script: Arc<Mutex<OpenAiScript>>,
    context: Context,
}

/// `/chat/completions` and `/models`, to be nested under the version.
pub fn router(script: OpenAiScript, context: &Context) -> Router {
    let served = Served { script: Arc::new(Mutex::new(script)), context: context.clone() };
    Router::new()
        .route("/chat/completions", post(complete))
        .route("/models", get(models))
        .with_state(served)
}

async fn models(State(served): State<Served>) -> Json<Value> {
    let connection = served.context.next_connection();
    let what = What::Request { target: "/v1/models".into(), body: String::new() };
    served.context.log.push(PROVIDER, connection, what);
    let model = json!({"id": "double", "object": "model", "created": 0, "owned_by": "antiphon"});
    Json(json!({"object": "list", "data": [model]}))
}

async fn complete(State(served): State<Served>, headers: HeaderMap, body: String) -> Response {
    let connection = served.context.next_connection();
    let log = &served.context.log;
    log.push(PROVIDER, connection, What::Request { target: TARGET.into(), body: body.clone() });
    let fault = served.script.lock().take_fault();
    let refuse = |status: u16, kind: &str, message: &str| {
        log.push(PROVIDER, connection, What::Refused { status });
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let error = json!({"message": message, "type": kind, "param": null, "code": null});
        (status, Json(json!({"error": error}))).into_response()
    };
    if let Fault::Refuse { status, retry_after } = fault {
        let mut refusal = refuse(status, "server_error", "Refused as scripted.");
        if let Some(seconds) = retry_after {
            refusal.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        return refusal;
    }
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = authorization.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if key.trim().is_empty() {
        return refuse(401, "invalid_request_error", "You didn't provide an API key.");
    }
    let request: Value = serde_json::from_str(&body).unwrap_or_default();
    let Some(messages) = request["messages"].as_array().filter(|_| request["stream"] == true)
    else {
        return refuse(400, "invalid_request_error", "This double streams answers to messages.");
    };
    let mut script = served.script.lock();
    let answer = Answer::new(&script.take_answer(messages), &request, &script, fault);
    drop(script);
    let guard = Guard { context: served.context.clone(), connection };
    let stop = served.context.stop.clone().cancelled_owned();
    let stream = futures_util::stream::unfold(Some((answer, guard)), |state| async move {
        let (mut answer, guard) = state?;
        match answer.next().await {
            Step::Send(bytes) => Some((Ok(bytes), Some((answer, guard)))),
            Step::Break => Some((Err(io::Error::other("broken off as scripted")), None)),
            Step::End => None,
        }
    });
    let stream = futures_util::StreamExt::take_until(stream, stop);
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
}

/// Tells the log when a stream has ended, whoever ended it.
struct Guard {
    context: Context,
    connection: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.context.log.push(PROVIDER, self.connection, What::Closed);
    }
}

enum Step {
    Send(Bytes),
    Break,
    End,
}

/// One answer on its way.
struct Answer {
    tokens: Vec<String>,
    told: usize,
    next_at: Instant,
    token: Duration,
    fault: Fault,
    head: Value,
    /// What follows the tokens.
    ending: VecDeque<String>,
}

impl Answer {
    fn new(text: &str, request: &Value, script: &OpenAiScript, fault: Fault) -> Self {
        let mut tokens: Vec<String> = Vec::new();
        for piece in text.split_inclusive(char::is_whitespace) {
            let word = piece.trim_end();
            match tokens.last_mut() {
                // As models do: the space goes with the word after it.
                Some(space) if space.trim().is_empty() => space.push_str(word),
                _ => tokens.push(word.to_owned()),
            }
            if piece.len() > word.len() {
                tokens.push(piece[word.len()..].to_owned());
            }
        }
        let head = json!({
            "id": "chatcmpl-double", "object": "chat.completion.chunk",
            "created": clock::unix_ms() / 1_000, "model": request["model"],
        });
        let mut ending = VecDeque::from([data(&with(&head, &choice(&json!({}), Some("stop"))))]);
        if request.pointer("/stream_options/include_usage") == Some(&Value::Bool(true)) {
            let length = |message: &Value| message["content"].as_str().map_or(0, str::len);
            let messages = request["messages"].as_array().map_or(&[][..], Vec::as_slice);
            let prompt: usize = messages.iter().map(|message| length(message) / 4 + 4).sum();
            let choices = if script.null_choices { Value::Null } else { json!([]) };
            ending.push_back(data(&with(
                &head,
                &json!({"choices": choices, "usage": {
                    "prompt_tokens": prompt, "completion_tokens": tokens.len(),
                    "total_tokens": prompt + tokens.len(),
                    "prompt_tokens_details": {"cached_tokens": 0},
                }}),
            )));
        }
        ending.push_back("data: [DONE]\n\n".into());
        Self {
            tokens,
            told: 0,
            next_at: clock::now() + script.first_token,
            token: script.token,
            fault,
            head,
            ending,
        }
    }

    async fn next(&mut self) -> Step {
        tokio::time::sleep_until(self.next_at.into()).await;
        let here = |at: usize| at.min(self.tokens.len()) == self.told;
        match self.fault {
            Fault::Disconnect(at) if here(at) => return Step::Break,
            Fault::Stall(at) if here(at) => std::future::pending().await,
            Fault::Malformed(at) if here(at) => {
                self.fault = Fault::None;
                return Step::Send("data: {\"id\": \"broken\", \"choices\": [{\"del\n\n".into());
            }
            Fault::Fail(at) if here(at) => {
                self.fault = Fault::None;
                self.told = self.tokens.len();
                self.ending.clear();
                let error = json!({"message": "The server is overloaded.", "type": "server_error"});
                return Step::Send(data(&json!({"error": error})).into());
            }
            _ => {}
        }
        if let Some(token) = self.tokens.get(self.told) {
            let delta = if self.told == 0 {
                json!({"role": "assistant", "content": token, "refusal": null})
            } else {
                json!({"content": token})
            };
            self.told += 1;
            self.next_at += self.token;
            return Step::Send(data(&with(&self.head, &choice(&delta, None))).into());
        }
        match self.ending.pop_front() {
            Some(event) => Step::Send(event.into()),
            None => Step::End,
        }
    }
}

fn choice(delta: &Value, finish_reason: Option<&str>) -> Value {
    json!({"choices": [
        {"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}
    ]})
}

fn with(head: &Value, fields: &Value) -> Value {
    let mut all = head.clone();
    if let (Some(all), Some(fields)) = (all.as_object_mut(), fields.as_object()) {
        all.extend(fields.clone());
    }
    all
}

fn data(chunk: &Value) -> String {
    format!("data: {chunk}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> Value {
        json!({"role": "user", "content": text})
    }

    #[test]
    fn answers_come_in_order_then_by_rule_then_from_the_conversation() {
        let mut script = OpenAiScript::new().answer("One.").answer_to("WEATHER", "Sunny.");
        assert_eq!(script.take_answer(&[user("weather?")]), "One.");
        assert_eq!(script.take_answer(&[user("The weather?")]), "Sunny.");
        let answer = script.take_answer(&[user("Hi"), user("Book a table.")]);
        assert_eq!(answer, "All right. That was turn 2, and you said: Book a table. What next?");
        assert_eq!(script.take_answer(&[]), "Hello. What can I do for you?");
    }

    #[test]
    fn tokens_concatenate_to_the_answer() {
        for text in ["Sure. I can  help.", " x\ny ", ""] {
            let answer = Answer::new(text, &json!({}), &OpenAiScript::new(), Fault::None);
            assert_eq!(answer.tokens.concat(), text);
        }
    }
}
