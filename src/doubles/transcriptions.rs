//! A double of OpenAI's transcriptions: `POST /audio/transcriptions`, a WAV in a form.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
    routing::post,
};
use parking_lot::Mutex;
use serde_json::json;

use super::{
    Context,
    deepgram::SttScript,
    faults::{self, Fault, Faulty},
    log::What,
};

const PROVIDER: &str = "openai-transcriptions";
const TARGET: &str = "/v1/audio/transcriptions";

#[derive(Debug, Clone)]
struct Served {
    script: Arc<Mutex<SttScript>>,
    context: Context,
}

/// `/audio/transcriptions`, to be nested under the version.
pub fn router(script: SttScript, context: &Context) -> Router {
    let served = Served { script: Arc::new(Mutex::new(script)), context: context.clone() };
    Router::new()
        .route("/audio/transcriptions", post(transcribe))
        .layer(DefaultBodyLimit::max(4 << 20))
        .with_state(served)
}

async fn transcribe(State(served): State<Served>, headers: HeaderMap, body: Bytes) -> Response {
    let connection = served.context.next_connection();
    let log = served.context.log.clone();
    let what = What::Request { target: TARGET.into(), body: format!("{} bytes", body.len()) };
    log.push(PROVIDER, connection, what);
    let refuse = |status: u16, retry_after: Option<u64>, message: &str| {
        log.push(PROVIDER, connection, What::Refused { status });
        let body = json!({"error": {"message": message, "type": "server_error"}});
        faults::refusal(status, retry_after, body)
    };
    let fault = served.script.lock().faults().take();
    match fault {
        Fault::Refuse { status, retry_after } => {
            return refuse(status, retry_after, "Refused as scripted.");
        }
        Fault::Slow(delay) => tokio::time::sleep(delay).await,
        Fault::Stall(_) | Fault::Dead(_) => std::future::pending().await,
        Fault::Disconnect(_) | Fault::Fail(_) => return refuse(500, None, "Broken as scripted."),
        Fault::Malformed(_) => return "{\"text\": \"br".into_response(),
        _ => {}
    }
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if authorization.and_then(|value| value.strip_prefix("Bearer ")).is_none_or(str::is_empty) {
        return refuse(401, None, "You didn't provide an API key.");
    }
    let Some(at) = body.windows(4).position(|window| window == b"RIFF") else {
        return refuse(400, None, "This double hears a WAV in a form.");
    };
    let pairs = body.get(at + 44..).unwrap_or_default().as_chunks::<2>().0;
    let loud = pairs.iter().filter(|it| i16::from_le_bytes(**it).unsigned_abs() > 500).count();
    // Noise of less than 50 ms is nothing said.
    if loud < 800 {
        return Json(json!({"text": ""})).into_response();
    }
    let text = served.script.lock().next_utterance(&served.context.cursor);
    Json(json!({"text": text})).into_response()
}
