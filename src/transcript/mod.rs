//! Transcripts on their way from the session to the room and to the control endpoint.

pub mod segment;
