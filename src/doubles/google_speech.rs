//! A double of Google Cloud Speech to Text, v2: `StreamingRecognize` over gRPC, on the port of the
//! other doubles.
//!
//! It has the ears of the other recognisers. A fault is a connection's, over all its streams: how far
//! it is counts in the audio of all of them.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use parking_lot::Mutex;
use prost::Message;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{
    Context,
    deepgram::{SttScript, hearing::Hearing},
    faults::{Fault, Faults, Faulty},
    log::What,
};
use crate::{
    clock,
    net::grpc,
    stt::google::proto::{
        Duration as Offset, LINEAR16, MAX_AUDIO, PATH, SPEECH_ACTIVITY_BEGIN,
        SpeechRecognitionAlternative, StreamingRecognitionResult, StreamingRecognizeRequest,
        StreamingRecognizeResponse, WordInfo,
    },
};

const PROVIDER: &str = "google-speech";
/// Of the audio of one stream.
const LONGEST: Duration = Duration::from_mins(5);

/// The service; connections are handed to it.
#[derive(Debug, Clone)]
pub struct Served {
    script: Arc<SttScript>,
    faults: Arc<Mutex<Faults<Duration>>>,
    context: Context,
}

/// What all streams of a connection share.
#[derive(Debug)]
struct Connection {
    number: u64,
    fault: Mutex<Fault<Duration>>,
    /// Samples heard.
    heard: Mutex<u64>,
    /// Breaks it without a goodbye.
    breaks: CancellationToken,
}

impl Served {
    pub fn new(mut script: SttScript, context: &Context) -> Self {
        let faults = Arc::new(Mutex::new(script.faults().clone()));
        Self { script: Arc::new(script), faults, context: context.clone() }
    }

    /// Serves one connection, of which nothing has been read, to its end.
    pub async fn serve(self, socket: TcpStream) {
        let stop = self.context.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.talk(socket) => {}
        }
    }

    async fn talk(self, socket: TcpStream) {
        let number = self.context.next_connection();
        let fault = self.faults.lock().take();
        let shared = Arc::new(Connection {
            number,
            fault: Mutex::new(fault),
            heard: Mutex::new(0),
            breaks: CancellationToken::new(),
        });
        if let Fault::Slow(delay) = fault {
            tokio::time::sleep(delay).await;
        }
        let Ok(mut connection) = h2::server::handshake(socket).await else { return };
        loop {
            tokio::select! {
                () = shared.breaks.cancelled() => break,
                accepted = connection.accept() => {
                    let Some(Ok((request, respond))) = accepted else { break };
                    let stream = stream(self.clone(), shared.clone(), request, respond);
                    tokio::spawn(async move { _ = stream.await });
                }
            }
        }
        self.context.log.push(PROVIDER, number, What::Closed);
    }
}

/// gRPC's status for what is refused with HTTP's.
const fn code_of(status: u16) -> u32 {
    match status {
        400 => grpc::INVALID_ARGUMENT,
        401 => grpc::UNAUTHENTICATED,
        403 => grpc::PERMISSION_DENIED,
        404 => grpc::NOT_FOUND,
        429 => grpc::RESOURCE_EXHAUSTED,
        _ => grpc::UNAVAILABLE,
    }
}

fn status(code: u32, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    if let Ok(message) = HeaderValue::from_str(&message.replace(' ', "%20")) {
        trailers.insert("grpc-message", message);
    }
    trailers
}

async fn stream(
    served: Served,
    connection: Arc<Connection>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let log = &served.context.log;
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let has_key = header("authorization").is_some_and(|it| it.starts_with("Bearer "))
        || header("x-goog-api-key").is_some_and(|it| !it.is_empty());
    let refused = match *connection.fault.lock() {
        Fault::Refuse { status, .. } => Some((code_of(status), "Refused as scripted.", status)),
        _ if !has_key => Some((grpc::UNAUTHENTICATED, "There is no key.", 401)),
        _ if request.uri().path() != PATH => Some((grpc::UNIMPLEMENTED, "No such method.", 404)),
        _ => None,
    };
    let response = Response::builder().header("content-type", "application/grpc");
    if let Some((code, message, status_code)) = refused {
        log.push(PROVIDER, connection.number, What::Refused { status: status_code });
        let mut response = response.body(()).unwrap_or_default();
        response.headers_mut().extend(status(code, message));
        respond.send_response(response, true)?;
        return Ok(());
    }
    log.push(PROVIDER, connection.number, What::Opened { target: PATH.into() });
    let out = respond.send_response(response.body(()).unwrap_or_default(), false)?;
    let hearing = Hearing::new(served.script.clone(), served.context.cursor.clone(), 0);
    let talk = Talk {
        served,
        connection,
        body: request.into_body(),
        buffer: BytesMut::new(),
        out,
        hearing,
        is_agreed: false,
        outgoing: VecDeque::new(),
    };
    talk.run().await
}

struct Talk {
    served: Served,
    connection: Arc<Connection>,
    body: RecvStream,
    buffer: BytesMut,
    out: SendStream<Bytes>,
    hearing: Hearing,
    /// The configuration has come.
    is_agreed: bool,
    outgoing: VecDeque<(Instant, Bytes)>,
}

enum After {
    GoOn,
    Break,
    Stall,
    /// The stream ends with this status.
    End(u32, &'static str),
}

impl Talk {
    async fn run(mut self) -> Result<(), h2::Error> {
        loop {
            self.send_due(clock::now())?;
            let send_at = self.outgoing.front().map_or_else(clock::now, |(at, _)| *at);
            let chunk = tokio::select! {
                biased;
                () = tokio::time::sleep_until(send_at.into()), if !self.outgoing.is_empty() => {
                    continue;
                }
                chunk = self.body.data() => chunk,
            };
            let Some(chunk) = chunk else { break };
            let chunk = chunk?;
            let _ = self.body.flow_control().release_capacity(chunk.len());
            self.buffer.extend_from_slice(&chunk);
            while let Some(message) = self.message() {
                match self.request(&message) {
                    After::GoOn => {}
                    After::Break => {
                        self.send_all().await?;
                        // What was sent is on its way before the connection goes.
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        self.connection.breaks.cancel();
                        return Ok(());
                    }
                    After::Stall => {
                        self.send_all().await?;
                        self.hearing.give_back();
                        self.served.context.stop.cancelled().await;
                        return Ok(());
                    }
                    After::End(code, message) => {
                        self.send_all().await?;
                        return self.out.send_trailers(status(code, message));
                    }
                }
            }
        }
        let mut out = Vec::new();
        self.hearing.close(&mut out);
        self.say(&out);
        self.send_all().await?;
        self.out.send_trailers(status(grpc::OK, ""))
    }

    fn message(&mut self) -> Option<Bytes> {
        let [_, length @ ..] = *self.buffer.first_chunk::<5>()?;
        let length = u32::from_be_bytes(length) as usize;
        if self.buffer.len() < 5 + length {
            return None;
        }
        self.buffer.advance(5);
        Some(self.buffer.split_to(length).freeze())
    }

    fn request(&mut self, message: &[u8]) -> After {
        let Ok(request) = StreamingRecognizeRequest::decode(message) else {
            return After::End(grpc::INVALID_ARGUMENT, "That is no request.");
        };
        if !self.is_agreed {
            let config = request.streaming_config.and_then(|it| it.config);
            let audio = config.as_ref().and_then(|it| it.explicit_decoding_config.clone());
            let right = audio.is_some_and(|it| {
                (it.encoding, it.sample_rate_hertz, it.audio_channel_count) == (LINEAR16, 16_000, 1)
            });
            let names = request.recognizer.starts_with("projects/")
                && request.recognizer.ends_with("/recognizers/_")
                && config.is_some_and(|it| !it.model.is_empty() && !it.language_codes.is_empty());
            if !right || !names || !request.audio.is_empty() {
                return After::End(grpc::INVALID_ARGUMENT, "This double hears s16 at 16000 Hz.");
            }
            self.is_agreed = true;
            return After::GoOn;
        }
        if request.streaming_config.is_some() || request.audio.len() > MAX_AUDIO {
            return After::End(
                grpc::INVALID_ARGUMENT,
                "After the first, a request is short audio.",
            );
        }
        self.hear(&request.audio)
    }

    fn hear(&mut self, audio: &[u8]) -> After {
        let pairs = audio.as_chunks::<2>().0;
        let samples: Vec<i16> = pairs.iter().map(|pair| i16::from_le_bytes(*pair)).collect();
        let mut out = Vec::new();
        self.hearing.hear(&samples, &mut out);
        let heard = {
            let mut heard = self.connection.heard.lock();
            *heard += samples.len() as u64;
            Duration::from_millis(*heard / 16)
        };
        let mut fault = self.connection.fault.lock();
        let mut after = After::GoOn;
        match *fault {
            Fault::Disconnect(limit) if heard >= limit => after = After::Break,
            Fault::Stall(limit) | Fault::Dead(limit) if heard >= limit => after = After::Stall,
            Fault::Malformed(limit) if heard >= limit => {
                *fault = Fault::None;
                self.outgoing.push_back((clock::now(), Bytes::from_static(&[0x32, 0x7f])));
            }
            Fault::Fail(limit) if heard >= limit => {
                after = After::End(grpc::INTERNAL, "Failed as scripted.");
            }
            _ => {}
        }
        drop(fault);
        if Duration::from_millis(self.hearing.now_ms()) >= LONGEST {
            after = After::End(grpc::OUT_OF_RANGE, "Exceeded maximum allowed stream duration.");
        }
        self.say(&out);
        after
    }

    fn say(&mut self, out: &[Value]) {
        let drip = match *self.connection.fault.lock() {
            Fault::Drip(delay) => delay,
            _ => Duration::ZERO,
        };
        let at = clock::now() + self.served.script.delay() + drip;
        let responses = out.iter().filter_map(response);
        self.outgoing.extend(responses.map(|it| (at, Bytes::from(it.encode_to_vec()))));
    }

    fn send_due(&mut self, now: Instant) -> Result<(), h2::Error> {
        while let Some((_, message)) = self.outgoing.pop_front_if(|(at, _)| *at <= now) {
            let mut frame = BytesMut::with_capacity(5 + message.len());
            frame.put_u8(0);
            frame.put_u32(message.len() as u32);
            frame.put_slice(&message);
            self.out.send_data(frame.freeze(), false)?;
        }
        Ok(())
    }

    async fn send_all(&mut self) -> Result<(), h2::Error> {
        if let Some((last, _)) = self.outgoing.back() {
            let last = *last;
            tokio::time::sleep_until(last.into()).await;
            self.send_due(last)?;
        }
        Ok(())
    }
}

/// What the ears tell, in Google's words.
fn response(message: &Value) -> Option<StreamingRecognizeResponse> {
    let offset = |value: &Value| {
        Some(Offset::from_ms((value.as_f64().unwrap_or(0.0) * 1_000.0).round() as u64))
    };
    match message["type"].as_str()? {
        "SpeechStarted" => Some(StreamingRecognizeResponse {
            speech_event_type: SPEECH_ACTIVITY_BEGIN,
            speech_event_offset: offset(&message["timestamp"]),
            ..Default::default()
        }),
        "Results" => {
            let best = message.pointer("/channel/alternatives/0")?;
            let transcript = best["transcript"].as_str().filter(|text| !text.is_empty())?;
            let words = best["words"].as_array().into_iter().flatten().map(|word| WordInfo {
                start_offset: offset(&word["start"]),
                end_offset: offset(&word["end"]),
                word: word["punctuated_word"].as_str().unwrap_or_default().to_owned(),
                confidence: word["confidence"].as_f64().unwrap_or(0.0) as f32,
            });
            let end = message["start"].as_f64()? + message["duration"].as_f64()?;
            let is_final = message["is_final"] == true;
            let alternative = SpeechRecognitionAlternative {
                transcript: transcript.to_owned(),
                confidence: if is_final { best["confidence"].as_f64()? as f32 } else { 0.0 },
                words: words.collect(),
            };
            Some(StreamingRecognizeResponse {
                results: vec![StreamingRecognitionResult {
                    alternatives: vec![alternative],
                    is_final,
                    result_end_offset: offset(&Value::from(end)),
                    language_code: "en-us".into(),
                }],
                ..Default::default()
            })
        }
        _ => None,
    }
}
