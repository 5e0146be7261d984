//! Recordings: the worker's own recorder, and the storage that holds what it and LiveKit Egress
//! have made.

pub mod mix;
pub mod ogg;
pub mod recorder;
#[cfg(test)]
mod s3_double;
pub mod sealed;
pub mod storage;

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// What recordings of our own are encrypted with at rest.
#[derive(Clone)]
pub struct RecordingKey(pub(crate) [u8; 32]);

impl fmt::Debug for RecordingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordingKey")
    }
}

/// 32 bytes in hex.
pub fn parse_key(text: &SecretString) -> Option<RecordingKey> {
    let text = text.expose_secret().as_bytes();
    let mut key = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(RecordingKey(key))
}
