//! Text to speech: what every provider is to the rest of antiphon.

pub mod cache;
pub mod chunker;
pub mod elevenlabs;
pub mod openai;
pub mod pcm;
pub mod relay;
pub mod spoken;
pub mod words;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::JoinHandle};

/// Names one speech (one agent utterance) within a session; grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SpeechId(pub u64);

/// A word (or piece of text) with the time at which it is spoken, in ms since the first sample of
/// the speech. The concatenation of all texts is the text spoken so far, spaces included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedText {
    pub text: String,
    pub start_ms: u64,
    pub end_ms: u64,
}

/// What the session asks of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TtsCommand {
    /// Text to be spoken; the first piece opens the speech. Pieces are as the model streams them.
    Speak { id: SpeechId, text: String },
    /// No more text for this speech.
    Finish { id: SpeechId },
    /// Drop the speech: nothing of it is wanted any more.
    Cancel { id: SpeechId },
}

/// What a connection tells. For each speech: `Audio` and `Alignment` in order, then exactly one of
/// `End` or `Error`, unless it was cancelled.
#[derive(Debug, Clone, PartialEq)]
pub enum TtsEvent {
    /// Mono s16 at [`Tts::sample_rate`].
    Audio {
        id: SpeechId,
        samples: Vec<i16>,
    },
    Alignment {
        id: SpeechId,
        words: Vec<TimedText>,
    },
    End {
        id: SpeechId,
    },
    Error {
        id: SpeechId,
        error: TtsError,
    },
    Usage {
        /// Which of several, where there are several.
        link: u8,
        characters: u64,
    },
}

/// Why synthesis failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum TtsError {
    #[error("the provider refused the credentials (HTTP {status})")]
    Unauthorized { status: u16 },
    #[error("the provider refused the request: {0}")]
    Rejected(String),
    #[error("the provider cannot be reached: {0}")]
    Unreachable(String),
    #[error("the stream broke off: {0}")]
    Interrupted(String),
    #[error("no audio within {0} ms")]
    Timeout(u64),
}

/// One session's connection, kept warm between speeches.
#[derive(Debug)]
pub struct TtsConnection {
    pub commands: mpsc::Sender<TtsCommand>,
    /// Ends when `commands` is dropped.
    pub task: JoinHandle<()>,
}

/// A text-to-speech provider, shared by all rooms of an agent.
pub trait Tts: Send + Sync + std::fmt::Debug + 'static {
    /// As written in agent files: `elevenlabs`.
    fn provider(&self) -> &'static str;
    fn model(&self) -> &str;
    /// Provider and model that a [`TtsEvent::Usage`] is about.
    fn name_of(&self, _link: u8) -> (&str, &str) {
        (self.provider(), self.model())
    }
    /// Of the mono s16 audio it gives, in Hz; one that Opus takes (8, 12, 16, 24 or 48 kHz).
    fn sample_rate(&self) -> u32;
    /// Opens connections ahead of a session that is about to begin; failure is not an error.
    fn prewarm(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
    /// Makes sure, as the user begins to speak, that the answer will find a connection, where
    /// sessions hold none of their own. Costs nothing when there is one.
    fn stay_warm(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
    /// Opens a connection. Must be called inside a tokio runtime.
    fn connect(&self, events: mpsc::Sender<TtsEvent>) -> TtsConnection;
}
