//! What one provider speaks on its connection, apart from the connection.

use std::time::Duration;

use super::{SttError, SttEvent};
use crate::net::grpc::{Status, Target};

/// What a message of the server means to the driver, beside the events it made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Received {
    /// Audio before this is transcribed for good, in ms since the stream's first sample.
    pub settled_ms: Option<u64>,
    /// The answer to a finalize.
    pub finalized: bool,
    /// After the close was asked for nothing more comes.
    pub is_last: bool,
    /// The server's complaint; it closes the connection after it.
    pub error: Option<String>,
    /// The connection is of no more use, and why: what is not settled is sent over another.
    pub lost: Option<String>,
    /// The server will not do what it is asked, now or later.
    pub refused: Option<SttError>,
}

/// One message to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    Text(String),
    Binary(Vec<u8>),
    /// No more on this stream of the connection; the next message begins another.
    End,
}

/// Why a message was skipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no message of this protocol")]
pub struct Junk;

/// What one provider speaks on its socket: pure. One lives as long as a stream, across connections.
pub trait Dialect: Send + 'static {
    fn provider(&self) -> &'static str;
    /// What to call, where that is gRPC; none: a WebSocket.
    fn streams(&self) -> Option<Target> {
        None
    }
    /// What to connect to; the key goes into the header that [`Self::key_header`] names.
    fn url(&self) -> url::Url;
    /// Header and what stands before the key in it.
    fn key_header(&self) -> (&'static str, &'static str);
    /// How much audio a message holds, in ms; more where more waits, unless these are whole chunks.
    fn chunk_ms(&self) -> u64 {
        50
    }
    /// What is sent first on a connection.
    fn greeting(&self) -> Option<String> {
        None
    }
    /// The next audio (s16 little-endian at 16 kHz, mono) as messages.
    fn audio(&mut self, pcm: Vec<u8>) -> Vec<Outgoing> {
        vec![Outgoing::Binary(pcm)]
    }
    /// A shorter message of audio is refused: one waits until it is full, and is filled at the end.
    fn whole_chunks(&self) -> bool {
        false
    }
    /// Holds a connection open on which no audio flows.
    fn keep_alive(&mut self) -> Option<Outgoing>;
    /// Asks for the finals of all audio sent so far.
    fn finalize(&mut self) -> Vec<Outgoing>;
    /// Asks for the last finals and the end of the connection.
    fn close(&mut self) -> Vec<Outgoing>;
    /// Nothing more will come of what was sent, as far as the codec can tell.
    fn is_settled(&self) -> bool {
        false
    }
    /// After this time a connection is replaced, as soon as everything is settled.
    fn lifetime(&self) -> Option<Duration> {
        None
    }
    /// A new connection whose first sample is at `offset_ms` of the stream.
    fn connected(&mut self, offset_ms: u64);
    /// `ms` of the stream's audio are not sent on this connection: its time falls behind.
    fn skipped(&mut self, ms: u64);
    /// Reads one text message and appends the events it makes.
    fn receive(&mut self, text: &str, events: &mut Vec<SttEvent>) -> Result<Received, Junk>;
    /// Reads one message of a stream of gRPC.
    fn receive_message(
        &mut self,
        stream: u64,
        bytes: &[u8],
        events: &mut Vec<SttEvent>,
    ) -> Result<Received, Junk> {
        let _ = (stream, bytes, events);
        Err(Junk)
    }
    /// A stream of gRPC is over; `was_asked`: by [`Outgoing::End`].
    fn ended(
        &mut self,
        stream: u64,
        status: &Status,
        was_asked: bool,
        events: &mut Vec<SttEvent>,
    ) -> Received {
        let _ = (stream, status, was_asked, events);
        Received::default()
    }
    /// What a close frame with this code means, when trying again is of no use.
    fn refusal(&self, code: u16, reason: &str) -> Option<SttError> {
        let _ = (code, reason);
        None
    }
}
