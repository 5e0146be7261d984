//! The wire of ElevenLabs text to speech over WebSocket, both `multi-stream-input` (many contexts on
//! one socket) and `stream-input` (one speech a socket). Pure: strings in, types out and back.
//!
//! Source: elevenlabs.io/docs/api-reference/text-to-speech, pages "stream-input" and
//! "multi-stream-input".

mod incoming;
mod outgoing;
mod query;

#[cfg(test)]
mod tests;

pub use incoming::{AlignedChar, Frame, MAX_FRAME_BYTES, ProtoError, ServerError, parse};
pub use outgoing::{
    DictionaryLocator, VoiceSettings, close_context, end_of_stream, flush, init, keep_alive, text,
};
pub use query::{OutputFormat, Query, socket_url};
