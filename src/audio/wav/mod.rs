//! WAV files in and out.
//!
//! Reading takes what people have: 8, 16, 24 and 32-bit integers or 32-bit floats, 1 to 8 channels,
//! any rate from 4 to 192 kHz; it gives mono s16 at the file's rate. Writing gives s16 files that
//! are valid after every second of audio, so that a killed process leaves a playable file.

mod read;
mod write;

use std::io;

pub use read::{Wav, decode, read};
pub use write::{MonoWriter, StereoWriter};

/// Longest audio that is read, in ms.
pub const MAX_MS: u64 = 30 * 60 * 1000;
/// Largest file that is read, in bytes.
pub const MAX_BYTES: u64 = 500 * 1000 * 1000;
/// Sample rates that are read and written, in Hz.
pub const RATES: std::ops::RangeInclusive<u32> = 4_000..=192_000;

/// Why a WAV file cannot be read or written; every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum WavError {
    #[error("{file}: cannot be opened: {source}")]
    Open { file: String, source: io::Error },
    #[error("{file}: cannot be read: {source}")]
    Read { file: String, source: io::Error },
    #[error("{file}: not a file")]
    NotAFile { file: String },
    #[error("{file}: the file is empty")]
    Empty { file: String },
    #[error("{file}: not a WAV file")]
    NotWav { file: String },
    #[error("{file}: a WAV file without a single sample")]
    NoSamples { file: String },
    #[error("{file}: the file is cut short: its header promises more audio than there is")]
    Truncated { file: String },
    #[error("{file}: not a valid WAV file: {reason}")]
    Malformed { file: String, reason: &'static str },
    #[error(
        "{file}: {what} is not supported; what is: 8, 16, 24 or 32-bit PCM and 32-bit float, 1 to \
         8 channels, 4 to 192 kHz"
    )]
    Unsupported { file: String, what: String },
    #[error("{file}: {bytes} bytes, more than the {MAX_BYTES} that are read")]
    TooLarge { file: String, bytes: u64 },
    #[error("{file}: {ms} ms of audio, more than the {MAX_MS} ms that are read")]
    TooLong { file: String, ms: u64 },
    #[error("{file}: cannot be written: {source}")]
    Write { file: String, source: io::Error },
    #[error("{file}: full: a WAV file holds no more than 4 GB")]
    Full { file: String },
}
