//! Speech to text: what every provider is to the rest of antiphon.
//!
//! A provider is a pure codec (`PROVIDER/proto.rs`) for the one driver that keeps a streaming
//! connection per speaker, warm between turns, and reconnects by itself.

pub mod assemblyai;
pub mod backlog;
mod cutting;
pub mod deepgram;
pub mod dialect;
pub mod driver;
pub mod google;
pub mod late;
mod link;
pub mod openai;
pub mod relay;
mod telling;
#[cfg(test)]
mod testing;

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::JoinHandle};

use self::late::Keeper;
use crate::audio::queue::AudioReceiver;

/// One recognised word. Times are in ms since the first sample of the stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Word {
    pub text: String,
    pub start_ms: u64,
    pub end_ms: u64,
    pub confidence: f32,
}

/// What the provider made of one stretch of audio. Times are in ms since the stream's first sample.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Transcript {
    pub text: String,
    pub start_ms: u64,
    pub duration_ms: u64,
    /// 0..1
    pub confidence: f32,
    pub words: Vec<Word>,
    pub language: Option<String>,
}

/// What a recognition stream tells. `Interim` replaces the interim before it; `Final` closes one
/// segment (an utterance is the concatenation of its segments); `EndOfTurn` closes the utterance.
#[derive(Debug, Clone, PartialEq)]
pub enum SttEvent {
    Connected,
    SpeechStarted,
    Interim(Transcript),
    Final(Transcript),
    EndOfTurn,
    /// Audio that the provider was sent since the last report, in ms.
    Usage {
        /// Which of several, where there are several.
        link: u8,
        audio_ms: u64,
    },
    /// The connection is lost; the driver tries again by itself.
    Lost {
        reason: String,
        retry_in: Duration,
    },
    /// The driver has given up: wrong key, or every retry spent.
    Failed(SttError),
}

/// Why recognition failed. `public()` is what a user may read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum SttError {
    #[error("the provider refused the credentials (HTTP {status})")]
    Unauthorized { status: u16 },
    #[error("the provider refused the request (HTTP {status}): {message}")]
    Rejected { status: u16, message: String },
    #[error("the provider cannot be reached: {0}")]
    Unreachable(String),
    #[error("the provider broke the protocol: {0}")]
    Protocol(String),
}

impl SttError {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Unauthorized { .. } | Self::Rejected { .. })
    }
}

/// What the session asks of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SttControl {
    /// Close the current segment now: the user's turn has ended.
    Finalize,
    /// Send what is queued, take the last finals, close.
    Close,
}

/// One speaker's stream. Events arrive on the channel given to [`Stt::open`].
#[derive(Debug)]
pub struct SttStream {
    pub control: mpsc::Sender<SttControl>,
    /// Ends after `Close` (or when `control` is dropped), once the last final is out.
    pub task: JoinHandle<()>,
}

/// A speech-to-text provider, shared by all rooms of an agent.
pub trait Stt: Send + Sync + std::fmt::Debug + 'static {
    /// As written in agent files: `deepgram`.
    fn provider(&self) -> &'static str;
    fn model(&self) -> &str;
    /// Provider and model that an [`SttEvent::Usage`] is about.
    fn name_of(&self, _link: u8) -> (&str, &str) {
        (self.provider(), self.model())
    }
    /// Whether words are told while they are being said.
    fn gives_interims(&self) -> bool {
        true
    }
    /// Opens connections ahead of a session that is about to begin; failure is not an error.
    fn prewarm(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
    /// Opens a stream that reads 16 kHz mono s16 from `audio`. Must be called inside a tokio runtime.
    fn open(&self, audio: AudioReceiver, events: mpsc::Sender<SttEvent>) -> SttStream;
    /// The same; what can never become events of this stream goes to `keeper`, if there is one.
    fn open_kept(
        &self,
        audio: AudioReceiver,
        events: mpsc::Sender<SttEvent>,
        keeper: Option<Keeper>,
    ) -> SttStream {
        let _ = keeper;
        self.open(audio, events)
    }
}
