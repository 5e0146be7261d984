//! Deepgram.

pub mod proto;
