//! Transcripts on their way from the session to the room and to the control endpoint.
//!
//! A final goes to the [`outbox`] (fsync) before it is shown in the room; the [`reporter`] sends
//! what the outbox holds, in order, until the control endpoint has acknowledged it.

mod delivery;
mod lane;
mod line;
pub mod outbox;
pub mod redact;
pub mod reporter;
pub mod segment;
pub mod wire;
