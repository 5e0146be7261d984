//! A double of OpenAI's text to speech: `POST /audio/speech`, its body streamed as raw PCM.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
    routing::post,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{
    Context,
    elevenlabs::voice,
    faults::{self, Fault, Faults, Faulty},
    log::What,
};
use crate::clock;

const PROVIDER: &str = "openai-speech";
const TARGET: &str = "/v1/audio/speech";
const RATE: u32 = 24_000;
/// Characters in one piece of the body.
const PIECE: usize = 2;

/// How it speaks, and what goes wrong.
#[derive(Debug, Clone)]
pub struct SpeechScript {
    first_byte: Duration,
    character: Duration,
    speed: f64,
    faults: Faults<Duration>,
}

impl Default for SpeechScript {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_millis(50),
            character: Duration::from_millis(60),
            speed: 8.0,
            faults: Faults::default(),
        }
    }
}

impl Faulty for SpeechScript {
    /// Audio of a request that has been sent.
    type At = Duration;

    fn faults(&mut self) -> &mut Faults<Duration> {
        &mut self.faults
    }
}

impl SpeechScript {
    pub fn new() -> Self {
        Self::default()
    }

    /// From a request to its first audio (50 ms).
    pub const fn first_byte(mut self, delay: Duration) -> Self {
        self.first_byte = delay;
        self
    }

    /// How much faster than real time the audio is sent (8).
    pub const fn speed(mut self, times: f64) -> Self {
        self.speed = times;
        self
    }
}

#[derive(Debug, Clone)]
struct Served {
    script: Arc<SpeechScript>,
    faults: Arc<Mutex<Faults<Duration>>>,
    context: Context,
}

/// `/audio/speech`, to be nested under the version.
pub fn router(script: SpeechScript, context: &Context) -> Router {
    let faults = Arc::new(Mutex::new(script.faults.clone()));
    let served = Served { script: Arc::new(script), faults, context: context.clone() };
    Router::new().route("/audio/speech", post(speak)).with_state(served)
}

fn complaint(kind: &str, message: &str) -> Value {
    json!({"error": {"message": message, "type": kind, "param": null, "code": null}})
}

async fn speak(State(served): State<Served>, headers: HeaderMap, body: String) -> Response {
    let connection = served.context.next_connection();
    let log = served.context.log.clone();
    let what = What::Request { target: TARGET.into(), body: body.clone() };
    log.push(PROVIDER, connection, what);
    let fault = served.faults.lock().take();
    let refuse = |status: u16, retry_after: Option<u64>, kind: &str, message: &str| {
        log.push(PROVIDER, connection, What::Refused { status });
        faults::refusal(status, retry_after, complaint(kind, message))
    };
    match fault {
        Fault::Refuse { status, retry_after } => {
            return refuse(status, retry_after, "server_error", "Refused as scripted.");
        }
        Fault::Slow(delay) => tokio::time::sleep(delay).await,
        _ => {}
    }
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if authorization.and_then(|value| value.strip_prefix("Bearer ")).is_none_or(str::is_empty) {
        return refuse(401, None, "invalid_request_error", "You didn't provide an API key.");
    }
    let request: Value = serde_json::from_str(&body).unwrap_or_default();
    let input = request["input"].as_str().unwrap_or_default();
    if input.is_empty() || request["response_format"] != "pcm" || !request["voice"].is_string() {
        let message = "This double speaks an input with a voice as pcm.";
        return refuse(400, None, "invalid_request_error", message);
    }
    let chars: Vec<char> = input.chars().collect();
    let pieces: VecDeque<Vec<char>> = chars.chunks(PIECE).map(<[char]>::to_vec).collect();
    let sending = Sending {
        pieces,
        told: 0,
        next_at: clock::now() + served.script.first_byte,
        script: served.script.clone(),
        fault,
    };
    let guard = Guard { served: served.clone(), connection };
    let stream = futures_util::stream::unfold(Some((sending, guard)), |state| async move {
        let (mut sending, guard) = state?;
        match sending.next().await {
            Some(Ok(bytes)) => Some((Ok(bytes), Some((sending, guard)))),
            Some(Err(error)) => Some((Err(error), None)),
            None => None,
        }
    });
    let stop = served.context.stop.clone().cancelled_owned();
    let stream = futures_util::StreamExt::take_until(stream, stop);
    ([(header::CONTENT_TYPE, "audio/pcm")], Body::from_stream(stream)).into_response()
}

/// Tells the log when a body has ended, whoever ended it.
struct Guard {
    served: Served,
    connection: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.served.context.log.push(PROVIDER, self.connection, What::Closed);
    }
}

struct Sending {
    pieces: VecDeque<Vec<char>>,
    /// Characters spoken.
    told: usize,
    next_at: std::time::Instant,
    script: Arc<SpeechScript>,
    fault: Fault<Duration>,
}

impl Sending {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        tokio::time::sleep_until(self.next_at.into()).await;
        let spoken = self.script.character * self.told as u32;
        match self.fault {
            Fault::Disconnect(at) | Fault::Fail(at) if spoken >= at => {
                return Some(Err(io::Error::other("broken off as scripted")));
            }
            Fault::Stall(at) | Fault::Dead(at) if spoken >= at => std::future::pending().await,
            Fault::Malformed(at) if spoken >= at => {
                // A whole sample too many: noise, not silence.
                self.fault = Fault::None;
                return Some(Ok(Bytes::from_static(&[0, 1])));
            }
            Fault::Drip(delay) => self.next_at += delay,
            Fault::Disorder(at) if spoken >= at && self.pieces.len() > 1 => {
                self.fault = Fault::None;
                self.pieces.swap(0, 1);
            }
            _ => {}
        }
        let chars = self.pieces.pop_front()?;
        let pcm = voice(&chars, self.told, self.script.character, RATE);
        self.told += chars.len();
        let lasts = self.script.character * chars.len() as u32;
        self.next_at += lasts.div_f64(self.script.speed.max(0.01));
        Some(Ok(pcm.into()))
    }
}
