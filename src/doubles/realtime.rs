//! A double of OpenAI's realtime transcription: `/v1/realtime?intent=transcription`.
//!
//! It has the ears of the other recognisers and hears what is appended; an item ends where it is
//! committed, never by itself. Models that do so tell words while they come.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{
        RawQuery, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade},
    },
    http::{HeaderMap, header},
    response::Response,
    routing::get,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{
    Context,
    deepgram::{SttScript, hearing::Hearing},
    faults::{self, Fault, Faults, Faulty},
    log::What,
};
use crate::{audio::resample::Resampler, clock};

const PROVIDER: &str = "openai-realtime";
const TARGET: &str = "/v1/realtime";
const MAX_MESSAGE: usize = 1 << 20;
/// Of the PCM that is taken, in Hz.
const RATE: u32 = 24_000;
/// Samples of the shortest item: 100 ms.
const SHORTEST: usize = RATE as usize / 10;

#[derive(Debug, Clone)]
struct Served {
    script: Arc<SttScript>,
    faults: Arc<Mutex<Faults<Duration>>>,
    context: Context,
}

/// `/realtime`, to be nested under the version.
pub fn router(script: SttScript, context: &Context) -> Router {
    // Only a commit ends an utterance.
    let mut script = script.hang_over(Duration::from_mins(1));
    let faults = Arc::new(Mutex::new(script.faults().clone()));
    let served = Served { script: Arc::new(script), faults, context: context.clone() };
    Router::new().route("/realtime", get(listen)).with_state(served)
}

async fn listen(
    State(served): State<Served>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let connection = served.context.next_connection();
    let fault = served.faults.lock().take();
    let refuse = |status: u16, retry_after: Option<u64>, message: &str| {
        served.context.log.push(PROVIDER, connection, What::Refused { status });
        let body = json!({"error": {"message": message, "type": "server_error"}});
        faults::refusal(status, retry_after, body)
    };
    match fault {
        Fault::Refuse { status, retry_after } => {
            return refuse(status, retry_after, "Refused as scripted.");
        }
        Fault::Slow(delay) => tokio::time::sleep(delay).await,
        _ => {}
    }
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if authorization.and_then(|value| value.strip_prefix("Bearer ")).is_none_or(str::is_empty) {
        return refuse(401, None, "You didn't provide an API key.");
    }
    let query = query.unwrap_or_default();
    if query != "intent=transcription" {
        return refuse(400, None, "This double transcribes, and takes no model in its address.");
    }
    let what = What::Opened { target: format!("{TARGET}?{query}") };
    served.context.log.push(PROVIDER, connection, what);
    upgrade.max_message_size(MAX_MESSAGE).on_upgrade(async move |socket| {
        let (stop, log) = (served.context.stop.clone(), served.context.log.clone());
        let hearing = Hearing::new(served.script.clone(), served.context.cursor.clone(), 0);
        let talk = Talk {
            socket,
            hearing,
            fault,
            item: Item::default(),
            items: 0,
            heard: 0,
            tells_early: false,
            is_agreed: false,
            outgoing: VecDeque::new(),
            served,
        };
        tokio::select! {
            () = talk.run() => {}
            () = stop.cancelled() => {}
        }
        log.push(PROVIDER, connection, What::Closed);
    })
}

/// What is in the buffer.
#[derive(Default)]
struct Item {
    samples: usize,
    /// Words that are final.
    text: String,
    told: String,
    resampler: Option<Resampler>,
}

struct Talk {
    socket: WebSocket,
    hearing: Hearing,
    fault: Fault<Duration>,
    item: Item,
    items: u64,
    /// Samples that were appended so far.
    heard: u64,
    tells_early: bool,
    is_agreed: bool,
    outgoing: VecDeque<(Instant, String)>,
    served: Served,
}

enum After {
    GoOn,
    Break,
    Fail,
    Stall,
}

impl Talk {
    async fn run(mut self) {
        self.say(&json!({"type": "session.created", "session": {"type": "transcription"}}));
        loop {
            if !self.send_due(clock::now()).await {
                return;
            }
            let send_at = self.outgoing.front().map_or_else(clock::now, |(at, _)| *at);
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(send_at.into()), if !self.outgoing.is_empty() => {}
                message = self.socket.recv() => {
                    let Some(Ok(message)) = message else { return };
                    let after = match &message {
                        Message::Text(text) => self.message(text),
                        Message::Close(_) => After::Break,
                        _ => After::GoOn,
                    };
                    match after {
                        After::GoOn => {}
                        After::Break => return self.send_all().await,
                        After::Fail => {
                            self.send_all().await;
                            let close = CloseFrame { code: 1011, reason: "failed".into() };
                            let _ = self.socket.send(Message::Close(Some(close))).await;
                            return;
                        }
                        After::Stall => {
                            self.send_all().await;
                            self.hearing.give_back();
                            return std::future::pending().await;
                        }
                    }
                }
            }
        }
    }

    fn message(&mut self, text: &str) -> After {
        let message: Value = serde_json::from_str(text).unwrap_or_default();
        match message["type"].as_str() {
            Some("session.update") => self.agree(&message["session"]),
            Some("input_audio_buffer.append") if self.is_agreed => {
                let audio = message["audio"].as_str().unwrap_or_default();
                match BASE64_STANDARD.decode(audio) {
                    Ok(bytes) => return self.hear(&bytes),
                    Err(_) => self.complain("invalid_value", "The audio is no base64."),
                }
            }
            Some("input_audio_buffer.commit") if self.item.samples < SHORTEST => {
                self.complain("input_audio_buffer_commit_empty", "The buffer is too small.");
            }
            Some("input_audio_buffer.commit") => self.commit(),
            _ => self.complain("invalid_value", "This double does not know what that means."),
        }
        After::GoOn
    }

    fn agree(&mut self, session: &Value) {
        let input = &session["audio"]["input"];
        let model = input["transcription"]["model"].as_str().unwrap_or_default();
        let right = session["type"] == "transcription"
            && input["format"] == json!({"type": "audio/pcm", "rate": RATE})
            && input["turn_detection"].is_null();
        if !right || model.is_empty() {
            return self.complain("invalid_value", "This double hears 24 kHz and ends no turns.");
        }
        self.is_agreed = true;
        self.tells_early = crate::stt::openai::realtime::proto::streams(model);
        self.say(&json!({"type": "session.updated", "session": session}));
    }

    fn hear(&mut self, bytes: &[u8]) -> After {
        let pairs = bytes.as_chunks::<2>().0;
        let samples: Vec<i16> = pairs.iter().map(|pair| i16::from_le_bytes(*pair)).collect();
        self.item.samples += samples.len();
        self.heard += samples.len() as u64;
        let mut sound = Vec::new();
        if self.item.resampler.is_none() {
            self.item.resampler = Resampler::new(RATE, 16_000).ok();
        }
        if let Some(resampler) = &mut self.item.resampler {
            resampler.push(&samples, &mut sound);
        }
        let mut out = Vec::new();
        self.hearing.hear(&sound, &mut out);
        self.results(&out);
        let heard = Duration::from_millis(self.heard * 1_000 / u64::from(RATE));
        match self.fault {
            Fault::Disconnect(limit) if heard >= limit => After::Break,
            Fault::Stall(limit) | Fault::Dead(limit) if heard >= limit => After::Stall,
            Fault::Malformed(limit) if heard >= limit => {
                self.fault = Fault::None;
                self.outgoing.push_back((clock::now(), "{\"type\":\"conver".into()));
                After::GoOn
            }
            Fault::Fail(limit) if heard >= limit => {
                let error = json!({"type": "server_error", "message": "Failed as scripted."});
                self.say(&json!({"type": "error", "error": error}));
                After::Fail
            }
            _ => After::GoOn,
        }
    }

    /// What the ears tell, as this item's words.
    fn results(&mut self, out: &[Value]) {
        for message in out.iter().filter(|message| message["type"] == "Results") {
            let said = message.pointer("/channel/alternatives/0/transcript");
            let said = said.and_then(Value::as_str).unwrap_or_default();
            let joined = [self.item.text.as_str(), said].join(" ").trim().to_owned();
            if message["is_final"] == true {
                self.item.text.clone_from(&joined);
            }
            if self.tells_early {
                self.delta(&joined);
            }
        }
    }

    fn delta(&mut self, text: &str) {
        if let Some(more) = text.strip_prefix(&self.item.told).filter(|more| !more.is_empty()) {
            let delta = json!({
                "type": "conversation.item.input_audio_transcription.delta",
                "item_id": self.id(), "content_index": 0, "delta": more,
            });
            text.clone_into(&mut self.item.told);
            self.say(&delta);
        }
    }

    fn id(&self) -> String {
        format!("item_{}", self.items + 1)
    }

    fn commit(&mut self) {
        let id = self.id();
        self.say(&json!({
            "type": "input_audio_buffer.committed", "item_id": id, "previous_item_id": null,
        }));
        let mut out = Vec::new();
        self.hearing.finalize(&mut out);
        self.results(&out);
        let text = self.item.text.clone();
        self.delta(&text);
        self.say(&json!({
            "type": "conversation.item.input_audio_transcription.completed",
            "item_id": id, "content_index": 0, "transcript": text,
        }));
        self.items += 1;
        self.item = Item::default();
    }

    fn complain(&mut self, code: &str, message: &str) {
        let error = json!({"type": "invalid_request_error", "code": code, "message": message});
        self.say(&json!({"type": "error", "error": error}));
    }

    fn say(&mut self, message: &Value) {
        let drip = match self.fault {
            Fault::Drip(delay) => delay,
            _ => Duration::ZERO,
        };
        let at = clock::now() + self.served.script.delay() + drip;
        self.outgoing.push_back((at, message.to_string()));
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

    async fn send_all(&mut self) {
        if let Some((last, _)) = self.outgoing.back() {
            let last = *last;
            tokio::time::sleep_until(last.into()).await;
            self.send_due(last).await;
        }
    }
}
