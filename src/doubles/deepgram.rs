//! Doubles of speech recognition over WebSockets: Deepgram's v1 (`/v1/listen`) and Flux
//! (`/v2/listen`), AssemblyAI's v3 (`/v3/ws`), each an [`accent`] of the same ears.
//!
//! It hears speech by its energy and understands it as scripted, utterance by utterance, over all
//! its connections. Time is the audio's own: silence counts when it is received.

pub mod accent;
pub mod hearing;

use std::{
    collections::VecDeque,
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{
        Query, RawQuery, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade},
    },
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use self::{
    accent::{Accent, Speech},
    hearing::Hearing,
};
use super::{
    Context,
    faults::{self, Fault, Faults, Faulty},
    log::What,
};
use crate::clock;

/// Audio of one message: a second and more is no live stream.
const MAX_MESSAGE: usize = 256 << 10;

/// What is understood, and what goes wrong:
///
/// ```
/// # use antiphon::doubles::{deepgram::SttScript, faults::Faulty};
/// # use std::time::Duration;
/// # let ms = Duration::from_millis;
/// // Two utterances, the first of two segments; the first connection breaks after 900 ms of audio.
/// let script = SttScript::new()
///     .utterance("book a table").then("for two")
///     .utterance("at eight")
///     .final_delay(ms(300))
///     .disconnect_after(ms(900));
/// ```
#[derive(Debug, Clone)]
pub struct SttScript {
    utterances: Vec<Vec<String>>,
    final_delay: Duration,
    hang_over: Duration,
    word: Duration,
    latency: Duration,
    idle: Duration,
    confidence: f64,
    speech_final: bool,
    record: bool,
    faults: Faults<Duration>,
}

impl Faulty for SttScript {
    /// Audio that the connection has been sent.
    type At = Duration;

    fn faults(&mut self) -> &mut Faults<Duration> {
        &mut self.faults
    }
}

impl Default for SttScript {
    fn default() -> Self {
        Self {
            utterances: Vec::new(),
            final_delay: Duration::from_millis(150),
            hang_over: Duration::from_millis(200),
            word: Duration::from_millis(200),
            latency: Duration::ZERO,
            idle: Duration::from_secs(10),
            confidence: 0.98,
            speech_final: true,
            record: false,
            faults: Faults::default(),
        }
    }
}

impl SttScript {
    pub fn new() -> Self {
        Self::default()
    }

    /// What the next stretch of speech is understood as. Beyond the script: `utterance N`.
    pub fn utterance(mut self, text: &str) -> Self {
        self.utterances.push(vec![text.to_owned()]);
        self
    }

    /// A further segment of the last utterance: its own `is_final`, one `speech_final` for all.
    pub fn then(mut self, text: &str) -> Self {
        match self.utterances.last_mut() {
            Some(segments) => segments.push(text.to_owned()),
            None => self.utterances.push(vec![text.to_owned()]),
        }
        self
    }

    /// From the last sound to the final (150 ms). Below the hang-over the hang-over counts.
    pub const fn final_delay(mut self, delay: Duration) -> Self {
        self.final_delay = delay;
        self
    }

    /// Pauses shorter than this (200 ms) do not end an utterance.
    pub const fn hang_over(mut self, pause: Duration) -> Self {
        self.hang_over = pause;
        self
    }

    /// How long a word is: interims grow by one in this time (200 ms).
    pub const fn word(mut self, length: Duration) -> Self {
        self.word = length;
        self
    }

    /// Each message is sent this much later (0).
    pub const fn latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// A connection without audio or `KeepAlive` for this long is closed with NET-0001 (10 s).
    pub const fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle = timeout;
        self
    }

    /// Of all words (0.98).
    pub const fn confidence(mut self, confidence: f64) -> Self {
        self.confidence = confidence;
        self
    }

    /// Ends are told by `UtteranceEnd` alone.
    pub const fn without_speech_final(mut self) -> Self {
        self.speech_final = false;
        self
    }

    /// Keeps the received audio in the log (60 s of each connection).
    pub const fn record_audio(mut self) -> Self {
        self.record = true;
        self
    }

    /// How much later each message is sent.
    pub(super) const fn delay(&self) -> Duration {
        self.latency
    }

    /// The whole of the next utterance.
    pub(super) fn next_utterance(&self, cursor: &hearing::Cursor) -> String {
        let (index, done) = cursor.take();
        let segments = self.segments(index);
        let words: Vec<String> = segments.into_iter().skip(done).flatten().collect();
        words.join(" ")
    }

    /// The words of each segment of one utterance.
    fn segments(&self, index: usize) -> Vec<Vec<String>> {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        match self.utterances.get(index) {
            Some(segments) => segments.iter().map(|text| words(text)).collect(),
            None => vec![words(&format!("utterance {}", index + 1))],
        }
    }
}

#[derive(Debug, Clone)]
struct Served {
    accent: Accent,
    script: Arc<SttScript>,
    faults: Arc<Mutex<Faults<Duration>>>,
    context: Context,
}

/// Deepgram's `/listen`, to be nested under v1.
pub fn router(script: SttScript, context: &Context) -> Router {
    Router::new().route("/listen", get(listen)).with_state(served(Accent::V1, script, context))
}

/// Flux's `/listen`, to be nested under v2.
pub fn flux_router(script: SttScript, context: &Context) -> Router {
    Router::new().route("/listen", get(listen)).with_state(served(Accent::Flux, script, context))
}

/// AssemblyAI's `/ws`, to be nested under v3.
pub fn assemblyai_router(script: SttScript, context: &Context) -> Router {
    let served = served(Accent::AssemblyAi, script, context);
    Router::new().route("/ws", get(listen)).with_state(served)
}

fn served(accent: Accent, script: SttScript, context: &Context) -> Served {
    let faults = Arc::new(Mutex::new(script.faults.clone()));
    Served { accent, script: Arc::new(script), faults, context: context.clone() }
}

#[derive(Debug, Deserialize)]
struct Asked {
    encoding: Option<String>,
    sample_rate: Option<u32>,
    channels: Option<u32>,
    utterance_end_ms: Option<u64>,
    format_turns: Option<bool>,
}

async fn listen(
    State(served): State<Served>,
    Query(asked): Query<Asked>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let connection = served.context.next_connection();
    let fault = served.faults.lock().take();
    if let Some(refusal) = refusal(served.accent, fault, &headers, &asked) {
        let status = refusal.status().as_u16();
        served.context.log.push(served.accent.provider(), connection, What::Refused { status });
        return refusal;
    }
    if let Fault::Slow(delay) = fault {
        tokio::time::sleep(delay).await;
    }
    let mut target = served.accent.path().to_owned();
    if let Some(query) = query {
        // Writing to a string cannot fail.
        let _ = write!(target, "?{query}");
    }
    served.context.log.push(served.accent.provider(), connection, What::Opened { target });
    let utterance_end_ms = asked.utterance_end_ms.unwrap_or(0);
    upgrade.max_message_size(MAX_MESSAGE).on_upgrade(async move |socket| {
        let stop = served.context.stop.clone();
        let log = served.context.log.clone();
        let hearing =
            Hearing::new(served.script.clone(), served.context.cursor.clone(), utterance_end_ms);
        let provider = served.accent.provider();
        let speech = Speech::new(served.accent, asked.format_turns.unwrap_or(false));
        let outgoing = VecDeque::new();
        let talk = Talk { socket, hearing, speech, served, fault, connection, outgoing };
        tokio::select! {
            () = talk.run() => {}
            () = stop.cancelled() => {}
        }
        log.push(provider, connection, What::Closed);
    })
}

fn refusal(
    accent: Accent,
    fault: Fault<Duration>,
    headers: &HeaderMap,
    asked: &Asked,
) -> Option<Response> {
    if let Fault::Refuse { status, retry_after } = fault {
        let body = json!({"err_code": "SCRIPTED", "err_msg": "refused as scripted"});
        return Some(faults::refusal(status, retry_after, body));
    }
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key =
        authorization.and_then(|value| value.strip_prefix(accent.key_prefix())).unwrap_or_default();
    if key.trim().is_empty() {
        let message = "Invalid credentials.";
        return Some(complaint(StatusCode::UNAUTHORIZED, "INVALID_AUTH", message));
    }
    let right = asked.encoding.as_deref() == Some(accent.encoding())
        && asked.sample_rate == Some(16_000)
        && asked.channels.unwrap_or(1) == 1;
    let message = "This double hears s16 mono at 16000 Hz.";
    (!right).then(|| complaint(StatusCode::BAD_REQUEST, "Bad Request", message))
}

fn complaint(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({"err_code": code, "err_msg": message}))).into_response()
}

/// One accepted connection.
struct Talk {
    socket: WebSocket,
    hearing: Hearing,
    speech: Speech,
    served: Served,
    fault: Fault<Duration>,
    connection: u64,
    outgoing: VecDeque<(Instant, String)>,
}

/// What the client wants after a message.
enum After {
    GoOn,
    Close,
    Break,
    Fail,
    Stall,
}

impl Talk {
    async fn run(mut self) {
        let idle = self.served.script.idle;
        let mut idle_at = clock::now() + idle;
        if let Some(greeting) = self.speech.greeting() {
            self.outgoing.push_back((clock::now(), greeting.to_string()));
        }
        loop {
            if !self.send_due(clock::now()).await {
                return;
            }
            let send_at = self.outgoing.front().map_or(idle_at, |(at, _)| *at);
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(send_at.into()), if !self.outgoing.is_empty() => {}
                message = self.socket.recv() => {
                    let Some(Ok(message)) = message else { return };
                    if matches!(message, Message::Binary(_) | Message::Text(_)) {
                        idle_at = clock::now() + idle;
                    }
                    match self.message(&message) {
                        After::GoOn => {}
                        After::Close => return self.close().await,
                        After::Break => {
                            self.send_all().await;
                            return;
                        }
                        After::Fail => {
                            self.send_all().await;
                            let close = CloseFrame { code: 1011, reason: "failed".into() };
                            let _ = self.socket.send(Message::Close(Some(close))).await;
                            return;
                        }
                        After::Stall => {
                            self.send_all().await;
                            // What it had begun to hear, the next connection hears.
                            self.hearing.give_back();
                            return std::future::pending().await;
                        }
                    }
                }
                () = tokio::time::sleep_until(idle_at.into()) => {
                    let reason = "NET-0001: no audio and no KeepAlive";
                    let close = CloseFrame { code: 1011, reason: reason.into() };
                    let _ = self.socket.send(Message::Close(Some(close))).await;
                    return;
                }
            }
        }
    }

    fn message(&mut self, message: &Message) -> After {
        let mut out = Vec::new();
        let mut after = After::GoOn;
        match message {
            Message::Binary(data) => {
                let (pairs, _) = data.as_chunks::<2>();
                let samples: Vec<i16> =
                    pairs.iter().map(|pair| i16::from_le_bytes(*pair)).collect();
                if self.speech.refuses(samples.len()) {
                    return After::Close;
                }
                if self.served.script.record {
                    self.served.context.log.record(self.connection, &samples);
                }
                self.hearing.hear(&samples, &mut out);
                let heard = Duration::from_millis(self.hearing.now_ms());
                match self.fault {
                    Fault::Disconnect(limit) if heard >= limit => after = After::Break,
                    Fault::Stall(limit) | Fault::Dead(limit) if heard >= limit => {
                        after = After::Stall;
                    }
                    Fault::Malformed(limit) if heard >= limit => {
                        self.fault = Fault::None;
                        self.outgoing.push_back((clock::now(), "{\"type\":\"Resul".into()));
                    }
                    Fault::Fail(limit) if heard >= limit => {
                        let error = json!({
                            "type": "Error", "variant": "SERVER_ERROR",
                            "description": "The model has failed.",
                        });
                        out.push(error);
                        after = After::Fail;
                    }
                    Fault::Disorder(limit) if heard >= limit && out.len() > 1 => {
                        self.fault = Fault::None;
                        out.reverse();
                    }
                    _ => {}
                }
            }
            Message::Text(text) => {
                let log = &self.served.context.log;
                log.push(
                    self.served.accent.provider(),
                    self.connection,
                    What::Text(text.to_string()),
                );
                let kind = serde_json::from_str::<Value>(text).unwrap_or_default();
                match kind["type"].as_str() {
                    Some("Finalize" | "ForceEndpoint") => self.hearing.finalize(&mut out),
                    Some("CloseStream" | "Terminate") => {
                        self.hearing.close(&mut out);
                        after = After::Close;
                    }
                    _ => {}
                }
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => after = After::Break,
        }
        let drip = match self.fault {
            Fault::Drip(delay) => delay,
            _ => Duration::ZERO,
        };
        let at = clock::now() + self.served.script.latency + drip;
        let out = out.into_iter().flat_map(|message| self.speech.say(message));
        self.outgoing.extend(out.map(|message| (at, message.to_string())));
        after
    }

    /// Sends what is due at `now`; false when the client has gone.
    async fn send_due(&mut self, now: Instant) -> bool {
        while let Some((_, text)) = self.outgoing.pop_front_if(|(at, _)| *at <= now) {
            if self.socket.send(Message::Text(text.into())).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Sends everything that has been understood so far.
    async fn send_all(&mut self) {
        if let Some((last, _)) = self.outgoing.back() {
            let last = *last;
            tokio::time::sleep_until(last.into()).await;
            self.send_due(last).await;
        }
    }

    /// The last results, the metadata, goodbye.
    async fn close(mut self) {
        let at = clock::now() + self.served.script.latency;
        let last = self.speech.goodbye(self.connection, self.hearing.now_ms());
        self.outgoing.extend(last.map(|message| (at, message.to_string())));
        self.send_all().await;
        let close = CloseFrame { code: 1000, reason: "".into() };
        let _ = self.socket.send(Message::Close(Some(close))).await;
    }
}
