//! A double of Google's Gemini: `POST /models/{model}:streamGenerateContent?alt=sse`.

use axum::{
    Router,
    extract::{Path, Query, State},
    http::HeaderMap,
    response::Response,
    routing::post,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Context,
    llm::{Asked, LlmScript, Served, Wire, data},
};

const PROVIDER: &str = "google";

/// `/models/{model}:streamGenerateContent`, to be nested under the version.
pub fn router(script: LlmScript, context: &Context) -> Router {
    Router::new()
        .route("/models/{call}", post(generate))
        .with_state(Served::new(script, context, PROVIDER))
}

#[derive(Debug, Deserialize)]
struct Asks {
    alt: Option<String>,
}

async fn generate(
    State(served): State<Served>,
    Path(call): Path<String>,
    Query(asks): Query<Asks>,
    headers: HeaderMap,
    body: String,
) -> Response {
    let target = format!("/v1beta/models/{call}");
    let (connection, fault) = match served.open::<Chunks>(&target, &body).await {
        Ok(opened) => opened,
        Err(refusal) => return refusal,
    };
    let refuse = |status: u16, kind: &str, message: &str| {
        served.refuse::<Chunks>(connection, status, None, kind, message)
    };
    if headers.get("x-goog-api-key").is_none_or(http::HeaderValue::is_empty) {
        return refuse(403, "PERMISSION_DENIED", "Method doesn't allow unregistered callers.");
    }
    let request: Value = serde_json::from_str(&body).unwrap_or_default();
    let contents = request["contents"].as_array().filter(|all| !all.is_empty());
    let streams = call.ends_with(":streamGenerateContent") && asks.alt.as_deref() == Some("sse");
    let Some(contents) = contents.filter(|_| streams) else {
        return refuse(400, "INVALID_ARGUMENT", "This double streams answers to contents.");
    };
    let asked = Asked::new(contents.iter().flat_map(|content| {
        let is_user = content["role"] == "user";
        let parts = content["parts"].as_array().into_iter().flatten();
        parts.filter_map(move |part| Some((is_user, part["text"].as_str()?.to_owned())))
    }));
    let wire = Chunks { prompt: asked.tokens(), told: 0 };
    served.answer(connection, fault, &asked, wire)
}

struct Chunks {
    prompt: usize,
    told: usize,
}

impl Chunks {
    fn chunk(&self, parts: &Value, finish: Option<&str>) -> String {
        let mut candidate = json!({"content": {"parts": parts, "role": "model"}, "index": 0});
        if let Some(reason) = finish {
            candidate["finishReason"] = reason.into();
        }
        data(&json!({
            "candidates": [candidate],
            "usageMetadata": {
                "promptTokenCount": self.prompt, "candidatesTokenCount": self.told,
                "totalTokenCount": self.prompt + self.told,
            },
            "modelVersion": "double", "responseId": "r-double",
        }))
    }
}

impl Wire for Chunks {
    fn error(kind: &str, message: &str) -> Value {
        json!({"error": {"code": 500, "message": message, "status": kind}})
    }

    fn token(&mut self, text: &str) -> String {
        self.told += 1;
        self.chunk(&json!([{"text": text}]), None)
    }

    fn call(&mut self, _: usize, name: &str, arguments: &Value) -> String {
        let part = json!({
            "functionCall": {"name": name, "args": arguments}, "thoughtSignature": "ZG91Ymxl",
        });
        self.chunk(&json!([part]), None)
    }

    fn ending(&mut self, _: usize, _: bool) -> Vec<String> {
        vec![self.chunk(&json!([{"text": ""}]), Some("STOP"))]
    }

    fn failure(&mut self) -> String {
        data(&Self::error("UNAVAILABLE", "The model is overloaded."))
    }
}
