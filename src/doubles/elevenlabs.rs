//! A double of ElevenLabs' text to speech over WebSocket: `multi-stream-input` and `stream-input`.
//!
//! It speaks a voiced buzz with the rhythm of syllables, a character of text every 60 ms, aligned by
//! character, and sends it faster than it plays.

use std::{
    collections::VecDeque,
    f32::consts::TAU,
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{
        Path, Query, RawQuery, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade},
    },
    http::HeaderMap,
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Context,
    faults::{self, Fault, Faults, Faulty},
    log::What,
};
use crate::{clock, tts::elevenlabs::proto::OutputFormat};

const PROVIDER: &str = "elevenlabs";
/// As the real one: a sixth closes the socket.
const MAX_CONTEXTS: usize = 5;
const MAX_MESSAGE: usize = 256 << 10;
/// Characters in one frame of audio.
const FRAME_CHARS: usize = 2;
/// What the real one collects before it speaks, when nothing else is said.
const DEFAULT_SCHEDULE: [u64; 4] = [120, 160, 250, 290];

/// How it speaks, and what goes wrong:
///
/// ```
/// # use antiphon::doubles::{elevenlabs::ElevenLabsScript, faults::Faulty};
/// # use std::time::Duration;
/// # let ms = Duration::from_millis;
/// // The first speech is spoken well, the second breaks off after 400 ms of its audio.
/// let script =
///     ElevenLabsScript::new().first_byte(ms(120)).sound().disconnect_after(ms(400));
/// ```
#[derive(Debug, Clone)]
pub struct ElevenLabsScript {
    first_byte: Duration,
    character: Duration,
    speed: f64,
    faults: Faults<Duration>,
}

impl Faulty for ElevenLabsScript {
    /// Audio of a speech that has been sent.
    type At = Duration;

    fn faults(&mut self) -> &mut Faults<Duration> {
        &mut self.faults
    }
}

impl Default for ElevenLabsScript {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_millis(50),
            character: Duration::from_millis(60),
            speed: 8.0,
            faults: Faults::default(),
        }
    }
}

impl ElevenLabsScript {
    pub fn new() -> Self {
        Self::default()
    }

    /// From a text to its first audio (50 ms).
    pub const fn first_byte(mut self, delay: Duration) -> Self {
        self.first_byte = delay;
        self
    }

    /// How long a character is spoken (60 ms).
    pub const fn character(mut self, length: Duration) -> Self {
        self.character = length;
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
    script: Arc<ElevenLabsScript>,
    faults: Arc<Mutex<Faults<Duration>>>,
    context: Context,
}

/// `/text-to-speech/{voice}/…`, to be nested under the version.
pub fn router(script: ElevenLabsScript, context: &Context) -> Router {
    let served = Served {
        faults: Arc::new(Mutex::new(script.faults.clone())),
        script: Arc::new(script),
        context: context.clone(),
    };
    Router::new()
        .route("/text-to-speech/{voice}/{endpoint}", get(speak))
        .route("/voices", get(voices))
        .with_state(served)
}

async fn voices(headers: HeaderMap) -> Response {
    if headers.get("xi-api-key").is_none_or(http::HeaderValue::is_empty) {
        let body = json!({"detail": {"status": "needs_authorization", "message": "No key."}});
        return faults::refusal(401, None, body);
    }
    let voice = json!({
        "voice_id": "EXAVITQu4vr4xnSDxMaL", "name": "Buzz", "category": "premade",
        "labels": {"accent": "electric"}, "preview_url": "",
    });
    axum::Json(json!({"voices": [voice]})).into_response()
}

#[derive(Debug, Deserialize)]
struct Asked {
    output_format: Option<String>,
    auto_mode: Option<bool>,
}

async fn speak(
    State(served): State<Served>,
    Path((voice, endpoint)): Path<(String, String)>,
    Query(asked): Query<Asked>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let connection = served.context.next_connection();
    let log = served.context.log.clone();
    let fault = served.faults.lock().take_opening();
    let multi = endpoint == "multi-stream-input";
    let key = headers.get("xi-api-key").is_some_and(|key| !key.is_empty());
    let refusal = match fault {
        Fault::Refuse { status, retry_after } => {
            Some((status, retry_after, "scripted", "Refused as scripted."))
        }
        _ if !multi && endpoint != "stream-input" => Some((404, None, "not_found", "Not found.")),
        _ if !key => Some((401, None, "needs_authorization", "Neither header nor key given.")),
        _ => None,
    };
    if let Some((status, retry_after, code, message)) = refusal {
        log.push(PROVIDER, connection, What::Refused { status });
        let body = json!({"detail": {"status": code, "message": message}});
        return faults::refusal(status, retry_after, body);
    }
    if let Fault::Slow(delay) = fault {
        tokio::time::sleep(delay).await;
    }
    let mut target = format!("/v1/text-to-speech/{voice}/{endpoint}");
    if let Some(query) = query {
        // Writing to a string cannot fail.
        let _ = write!(target, "?{query}");
    }
    log.push(PROVIDER, connection, What::Opened { target });
    let format = asked.output_format.as_deref().and_then(OutputFormat::from_name);
    let auto = asked.auto_mode.unwrap_or(false);
    upgrade.max_message_size(MAX_MESSAGE).on_upgrade(async move |socket| {
        let stop = served.context.stop.clone();
        let talk = Talk { socket, served, connection, multi, auto, speeches: Vec::new() };
        tokio::select! {
            () = talk.run(format) => {}
            () = stop.cancelled() => {}
        }
        log.push(PROVIDER, connection, What::Closed);
    })
}

/// A text being spoken.
#[derive(Debug)]
struct Utterance {
    chars: Vec<char>,
    told: usize,
    next_at: Instant,
}

/// One context, or the one speech of a single stream.
#[derive(Debug)]
struct Speech {
    name: String,
    schedule: VecDeque<u64>,
    auto: bool,
    collected: String,
    queue: VecDeque<String>,
    current: Option<Utterance>,
    /// Characters spoken in all.
    spoken: usize,
    fault: Option<Fault<Duration>>,
    /// A frame that is sent after the next.
    overtaken: Option<Value>,
    stalled: bool,
    closing: bool,
}

impl Speech {
    fn add(&mut self, text: &str, flush: bool) {
        self.collected.push_str(text);
        let enough = self.schedule.front().copied().unwrap_or(0);
        let enough = self.auto || self.collected.chars().count() as u64 >= enough;
        if (flush || enough) && !self.collected.trim().is_empty() {
            self.queue.push_back(std::mem::take(&mut self.collected));
            if self.schedule.len() > 1 {
                self.schedule.pop_front();
            }
        }
    }

    fn is_done(&self) -> bool {
        self.closing && self.queue.is_empty() && self.current.is_none() && !self.stalled
    }
}

enum After {
    GoOn,
    /// Closed properly, or broken: either way this connection is over.
    Over,
}

/// One accepted connection.
struct Talk {
    socket: WebSocket,
    served: Served,
    connection: u64,
    multi: bool,
    auto: bool,
    speeches: Vec<Speech>,
}

impl Talk {
    async fn run(mut self, format: Option<OutputFormat>) {
        let Some(rate) = format.map(OutputFormat::sample_rate) else {
            self.complain("invalid_output_format", "This double speaks pcm alone.").await;
            return;
        };
        loop {
            self.begin_utterances();
            let due = self.speeches.iter().enumerate().filter(|(_, speech)| !speech.stalled);
            let due =
                due.filter_map(|(at, speech)| Some((speech.current.as_ref()?.next_at, at))).min();
            let after = tokio::select! {
                biased;
                message = self.socket.recv() => match message {
                    Some(Ok(Message::Text(text))) => self.receive(text.as_str()).await,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => After::Over,
                    Some(Ok(_)) => After::GoOn,
                },
                () = sleep_until(due.map(|(at, _)| at)), if due.is_some() => {
                    match due {
                        Some((_, at)) => self.send_frame(at, rate).await,
                        None => After::GoOn,
                    }
                }
            };
            if matches!(after, After::Over) || matches!(self.end_speeches().await, After::Over) {
                return;
            }
        }
    }

    async fn send(&mut self, value: &Value) -> After {
        match self.socket.send(Message::Text(value.to_string().into())).await {
            Ok(()) => After::GoOn,
            Err(_) => After::Over,
        }
    }

    async fn complain(&mut self, error: &str, message: &str) -> After {
        self.send(&json!({"message": message, "error": error, "code": 1008})).await;
        let close = CloseFrame { code: 1008, reason: error.to_owned().into() };
        // The client may have gone already.
        let _ = self.socket.send(Message::Close(Some(close))).await;
        After::Over
    }

    async fn receive(&mut self, text: &str) -> After {
        self.served.context.log.push(PROVIDER, self.connection, What::Text(text.to_owned()));
        let Ok(message) = serde_json::from_str::<Value>(text) else {
            return self.complain("invalid_message", "The message is not JSON.").await;
        };
        if message["close_socket"] == true {
            return After::Over;
        }
        let name = if self.multi {
            message["context_id"].as_str().unwrap_or("default").to_owned()
        } else {
            String::new()
        };
        let text = message["text"].as_str();
        let close = message["close_context"] == true || (!self.multi && text == Some(""));
        let Some(at) = self.speeches.iter().position(|speech| speech.name == name) else {
            if close || text.is_none_or(str::is_empty) {
                return After::GoOn;
            }
            if !self.multi && text != Some(" ") {
                return self.complain("invalid_first_message", "A space must come first.").await;
            }
            if self.speeches.len() == MAX_CONTEXTS {
                let message = "Maximum simultaneous contexts exceeded";
                return self.complain("max_active_contexts", message).await;
            }
            self.open(name, &message);
            return After::GoOn;
        };
        let speech = &mut self.speeches[at];
        speech.add(text.unwrap_or_default(), message["flush"] == true);
        if close {
            speech.closing = true;
            if self.multi && speech.spoken == 0 {
                // Closed before its first audio a context gives none.
                speech.queue.clear();
                speech.current = None;
            } else if !self.multi {
                speech.add(" ", true);
            }
        }
        After::GoOn
    }

    fn open(&mut self, name: String, message: &Value) {
        let schedule = message.pointer("/generation_config/chunk_length_schedule");
        let schedule = schedule.and_then(Value::as_array).map_or_else(
            || DEFAULT_SCHEDULE.to_vec(),
            |schedule| schedule.iter().filter_map(Value::as_u64).collect(),
        );
        let mut speech = Speech {
            name,
            schedule: schedule.into(),
            auto: self.auto,
            collected: String::new(),
            queue: VecDeque::new(),
            current: None,
            spoken: 0,
            fault: None,
            overtaken: None,
            stalled: false,
            closing: false,
        };
        speech.add(message["text"].as_str().unwrap_or_default().trim_start(), false);
        self.speeches.push(speech);
    }

    fn begin_utterances(&mut self) {
        for speech in &mut self.speeches {
            if speech.current.is_some() {
                continue;
            }
            let Some(text) = speech.queue.pop_front() else { continue };
            if speech.fault.is_none() {
                speech.fault = Some(self.served.faults.lock().take_stream());
            }
            let next_at = clock::now() + self.served.script.first_byte;
            speech.current = Some(Utterance { chars: text.chars().collect(), told: 0, next_at });
        }
    }

    async fn send_frame(&mut self, at: usize, rate: u32) -> After {
        let script = self.served.script.clone();
        let speech = &mut self.speeches[at];
        let spoken = script.character * speech.spoken as u32;
        match speech.fault {
            Some(Fault::Disconnect(after)) if spoken >= after => return After::Over,
            Some(Fault::Dead(after)) if spoken >= after => std::future::pending().await,
            Some(Fault::Stall(after)) if spoken >= after => {
                speech.stalled = true;
                return After::GoOn;
            }
            Some(Fault::Malformed(after)) if spoken >= after => {
                speech.fault = Some(Fault::None);
                let broken = Message::Text("{\"audio\": \"AAAA".into());
                return self.socket.send(broken).await.map_or(After::Over, |()| After::GoOn);
            }
            Some(Fault::Fail(after)) if spoken >= after => {
                return self.complain("internal_error", "The model has failed.").await;
            }
            _ => {}
        }
        let Some(utterance) = &mut speech.current else { return After::GoOn };
        let end = (utterance.told + FRAME_CHARS).min(utterance.chars.len());
        let chars = &utterance.chars[utterance.told..end];
        let pcm = voice(chars, speech.spoken, script.character, rate);
        let each = script.character.as_millis() as usize;
        let alignment = json!({
            "chars": chars.iter().map(char::to_string).collect::<Vec<_>>(),
            "charStartTimesMs": (0..chars.len()).map(|at| at * each).collect::<Vec<_>>(),
            "charDurationsMs": vec![each; chars.len()],
        });
        let mut frame = json!({
            "audio": STANDARD.encode(pcm), "isFinal": null,
            "alignment": alignment, "normalizedAlignment": alignment,
        });
        if self.multi {
            frame["contextId"] = speech.name.clone().into();
        }
        speech.spoken += chars.len();
        utterance.next_at += script.character.mul_f64(chars.len() as f64 / script.speed.max(0.01));
        if let Some(Fault::Drip(delay)) = speech.fault {
            utterance.next_at += delay;
        }
        utterance.told = end;
        if utterance.told == utterance.chars.len() {
            speech.current = None;
        }
        let is_last = speech.current.is_none();
        if let Some(Fault::Disorder(after)) = speech.fault
            && spoken >= after
            && !is_last
        {
            speech.fault = Some(Fault::None);
            speech.overtaken = Some(frame);
            return After::GoOn;
        }
        let overtaken = speech.overtaken.take();
        if matches!(self.send(&frame).await, After::Over) {
            return After::Over;
        }
        match overtaken {
            Some(frame) => self.send(&frame).await,
            None => After::GoOn,
        }
    }

    async fn end_speeches(&mut self) -> After {
        while let Some(at) = self.speeches.iter().position(Speech::is_done) {
            let speech = self.speeches.remove(at);
            let mut end = json!({"audio": null, "isFinal": true});
            if self.multi {
                end["contextId"] = speech.name.into();
            }
            if matches!(self.send(&end).await, After::Over) {
                return After::Over;
            }
            if !self.multi {
                let close = CloseFrame { code: 1000, reason: "".into() };
                // The client may have gone already.
                let _ = self.socket.send(Message::Close(Some(close))).await;
                return After::Over;
            }
        }
        After::GoOn
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// s16 little-endian of some characters, the first of which is the `first`th of the speech: a buzz
/// of eight harmonics over 160..210 Hz, about -20 dBFS, four syllables a second, soft in spaces.
pub(super) fn voice(chars: &[char], first: usize, character: Duration, rate: u32) -> Vec<u8> {
    let per_char = (character.as_secs_f64() * f64::from(rate)).round() as usize;
    let mut pcm = Vec::with_capacity(chars.len() * per_char * 2);
    for (at, c) in chars.iter().enumerate() {
        let loud = if c.is_alphanumeric() { 1.0 } else { 0.15 };
        for sample in 0..per_char {
            let t = ((first + at) * per_char + sample) as f32 / rate as f32;
            let phase = TAU * 185.0 * t + 36.0 * (TAU * 0.7 * t).sin();
            let buzz: f32 = (1..=8_u8).map(|k| (phase * f32::from(k)).sin() / f32::from(k)).sum();
            let syllable = 0.65 - 0.35 * (TAU * 4.0 * t).cos();
            let value = buzz * syllable * loud * 5_600.0;
            pcm.extend_from_slice(&(value.clamp(-32_000.0, 32_000.0) as i16).to_le_bytes());
        }
    }
    pcm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_voice_is_about_20_db_below_full_scale() {
        let chars: Vec<char> = "Thequickbrownfox".repeat(4).chars().collect();
        for rate in [8_000, 16_000, 24_000] {
            let pcm = voice(&chars, 0, Duration::from_millis(60), rate);
            let samples: Vec<f64> = pcm
                .chunks_exact(2)
                .map(|pair| f64::from(i16::from_le_bytes([pair[0], pair[1]])) / 32_768.0)
                .collect();
            assert_eq!(samples.len(), chars.len() * rate as usize * 60 / 1_000);
            let power = samples.iter().map(|s| s * s).sum::<f64>() / samples.len() as f64;
            let dbfs = 10.0 * power.log10();
            assert!((-22.0..-18.0).contains(&dbfs), "{dbfs} dBFS at {rate} Hz");
        }
    }

    #[test]
    fn text_is_collected_as_the_schedule_says() {
        let mut speech = Speech {
            name: String::new(),
            schedule: VecDeque::from([5, 10]),
            auto: false,
            collected: String::new(),
            queue: VecDeque::new(),
            current: None,
            spoken: 0,
            fault: None,
            overtaken: None,
            stalled: false,
            closing: false,
        };
        speech.add("abc ", false);
        assert!(speech.queue.is_empty());
        speech.add("de ", false);
        speech.add("abc de ", false);
        assert_eq!(speech.queue, ["abc de "]);
        speech.add(" ", true);
        assert_eq!(speech.queue, ["abc de ", "abc de  "]);
    }
}
