//! Provider doubles that speak the real wire protocols on loopback.
//!
//! They stand in for the services in tests, in `antiphon demo` and in `antiphon replay`: antiphon's
//! own drivers connect to them as to the real thing, by base URL. All are served on one port of
//! 127.0.0.1; a [`Script`] says what they hear, think and say, and which faults they show; a
//! [`Log`] keeps what they were asked.

pub mod anthropic;
pub mod deepgram;
pub mod elevenlabs;
pub mod faults;
pub mod gemini;
pub mod google_speech;
pub mod llm;
pub mod log;
pub mod openai;
pub mod realtime;
pub mod speech;
pub mod speech_detect;
pub mod transcriptions;

#[cfg(test)]
mod tests;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{Router, serve::Listener};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::{deepgram::hearing::Cursor, llm::LlmScript, log::Log};

/// What every double does.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// Deepgram's.
    pub stt: deepgram::SttScript,
    pub flux: deepgram::SttScript,
    pub assemblyai: deepgram::SttScript,
    /// OpenAI's transcriptions.
    pub transcriptions: deepgram::SttScript,
    /// Google's, over gRPC.
    pub google_speech: deepgram::SttScript,
    /// OpenAI's realtime transcription.
    pub realtime: deepgram::SttScript,
    /// OpenAI's.
    pub llm: LlmScript,
    pub anthropic: LlmScript,
    pub gemini: LlmScript,
    /// ElevenLabs'.
    pub tts: elevenlabs::ElevenLabsScript,
    /// OpenAI's voice.
    pub speech: speech::SpeechScript,
}

impl Script {
    /// Hears these utterances, one a stretch of speech, and gives these answers in turn.
    pub fn new<'a>(
        utterances: impl IntoIterator<Item = &'a str>,
        answers: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let stt = deepgram::SttScript::new();
        let stt = utterances.into_iter().fold(stt, deepgram::SttScript::utterance);
        let llm = answers.into_iter().fold(LlmScript::new(), LlmScript::answer);
        Self {
            flux: stt.clone(),
            assemblyai: stt.clone(),
            transcriptions: stt.clone(),
            google_speech: stt.clone(),
            realtime: stt.clone(),
            stt,
            anthropic: llm.clone(),
            gemini: llm.clone(),
            llm,
            tts: elevenlabs::ElevenLabsScript::new(),
            speech: speech::SpeechScript::new(),
        }
    }
}

/// What a double's router is given, beside its own script.
#[derive(Debug, Clone, Default)]
pub struct Context {
    pub log: Log,
    /// Cancelled when the doubles go: connections that live longer than a request end on it.
    pub stop: CancellationToken,
    /// Which utterance is heard next, by whichever provider.
    pub cursor: Cursor,
    /// Answers that were begun, by whichever provider, for another to go on with.
    pub given: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicU64>,
}

impl Context {
    /// Names the next connection or request in the log: 1, 2, …
    pub fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Running doubles; they end when this is dropped.
#[derive(Debug)]
pub struct Doubles {
    address: SocketAddr,
    context: Context,
    accepted: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

/// Serves all doubles on a free port of 127.0.0.1.
pub async fn serve(script: Script) -> io::Result<Doubles> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let context = Context::default();
    let router = Router::new()
        .merge(deepgram::router(script.stt, &context))
        .merge(openai::router(script.llm, &context))
        .merge(anthropic::router(script.anthropic, &context))
        .merge(elevenlabs::router(script.tts, &context))
        .merge(speech::router(script.speech, &context))
        .merge(transcriptions::router(script.transcriptions, &context))
        .merge(realtime::router(script.realtime, &context));
    let router = Router::new()
        .nest("/v1", router)
        .nest("/v2", deepgram::flux_router(script.flux, &context))
        .nest("/v3", deepgram::assemblyai_router(script.assemblyai, &context))
        .nest("/v1beta", gemini::router(script.gemini, &context));
    let served = google_speech::Served::new(script.google_speech, &context);
    let accepted = Arc::new(AtomicU64::new(0));
    let listener = Listening::new(listener, served, accepted.clone());
    let stop = context.stop.clone();
    let task = tokio::spawn(async move {
        let serving = axum::serve(listener, router);
        tokio::select! {
            () = stop.cancelled() => {}
            // It ends only by an error of the listener, after which nobody can connect: the drivers
            // under test report that.
            _ = serving => {}
        }
    });
    Ok(Doubles { address, context, accepted, task })
}

/// Whoever begins with HTTP/2 speaks gRPC; the others are axum's.
#[derive(Debug)]
struct Listening {
    address: io::Result<SocketAddr>,
    sockets: mpsc::Receiver<(TcpStream, SocketAddr)>,
    _task: AbortOnDropHandle<()>,
}

impl Listening {
    fn new(listener: TcpListener, grpc: google_speech::Served, accepted: Arc<AtomicU64>) -> Self {
        let address = listener.local_addr();
        let (sender, sockets) = mpsc::channel(64);
        let task = tokio::spawn(async move {
            while let Ok((socket, from)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::Relaxed);
                // Nagle's algorithm would add up to 40 ms to a measured latency.
                let _ = socket.set_nodelay(true);
                let (grpc, sender) = (grpc.clone(), sender.clone());
                tokio::spawn(async move {
                    let mut first = [0; 3];
                    let _ = socket.peek(&mut first).await;
                    if &first == b"PRI" {
                        grpc.serve(socket).await;
                    } else {
                        let _ = sender.send((socket, from)).await;
                    }
                });
            }
        });
        Self { address, sockets, _task: AbortOnDropHandle::new(task) }
    }
}

impl Listener for Listening {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        match self.sockets.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.address {
            Ok(address) => Ok(*address),
            Err(error) => Err(error.kind().into()),
        }
    }
}

impl Doubles {
    /// For `*_BASE_URL`: `http://127.0.0.1:PORT/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many TCP connections were opened so far, to all doubles together.
    pub fn connections(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// What was received so far.
    pub const fn log(&self) -> &Log {
        &self.context.log
    }

    /// Ends the doubles and their connections.
    pub async fn shutdown(mut self) {
        self.context.stop.cancel();
        // A panic inside is already on stderr.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Doubles {
    fn drop(&mut self) {
        self.context.stop.cancel();
    }
}
