//! The flight recorder: everything that a session's machine was told, with its time, in one small
//! file, so that what it did can be done again exactly.
//!
//! A flight is gzipped JSON lines: a [`Header`], then a [`Step`] for each input and each time-out.
//! A step carries how many commands the machine had given before it and a checksum of them all, so
//! that a replay notices at which step it goes another way. A file that breaks off is read as far as
//! it goes.

mod file;
mod record;
pub mod redact;
pub mod replay;

use std::{fmt::Write as _, path::PathBuf, time::Duration};

pub use record::Recorded;
use serde::{Deserialize, Serialize};

use crate::session::{command::Command, input::Input, machine::SessionIds, settings::Settings};

/// Of the format below.
const FORMAT: u32 = 1;

/// What is recorded, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlightConfig {
    pub dir: PathBuf,
    /// Keep the words out of the file: a replay then shows the shape of the call alone.
    pub redacted: bool,
    /// Longest file, in bytes; a session that is longer is recorded to there.
    pub max_bytes: u64,
}

/// The first line of a flight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    pub format: u32,
    /// Of antiphon.
    pub version: String,
    pub started_at_unix_ms: i64,
    pub redacted: bool,
    pub settings: Settings,
    pub ids: SessionIds,
}

/// One input, or a time-out, and what the machine had commanded before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Since the session began, in ns.
    #[serde(rename = "t")]
    pub at_ns: u64,
    /// None: a time-out, or the end of the recording.
    #[serde(rename = "i", skip_serializing_if = "Option::is_none", default)]
    pub input: Option<Input>,
    /// Commands so far, and the checksum of all of them.
    #[serde(rename = "n")]
    pub commands: u64,
    #[serde(rename = "c")]
    pub checksum: u32,
    #[serde(rename = "e", skip_serializing_if = "Option::is_none", default)]
    pub end: Option<End>,
}

/// Why a recording has no further step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum End {
    /// The session is over.
    Over,
    /// The file has reached its longest size.
    Full,
    /// The disk was slower than the session.
    Overrun,
}

impl Step {
    pub fn at(&self) -> Duration {
        Duration::from_nanos(self.at_ns)
    }
}

/// Checks commands, one after the other.
#[derive(Debug, Clone, Default)]
struct Checksum {
    count: u64,
    hasher: crc32fast::Hasher,
    /// Kept between commands for its memory.
    line: String,
    redacted: bool,
}

impl Checksum {
    fn new(redacted: bool) -> Self {
        Self { redacted, ..Self::default() }
    }

    fn add(&mut self, command: &Command) {
        self.line.clear();
        // Writing to a String cannot fail.
        let _ = write!(self.line, "{command:?}");
        if self.redacted {
            self.line = redact::outline(&self.line);
        }
        self.count += 1;
        self.hasher.update(self.line.as_bytes());
        self.hasher.update(b"\n");
    }

    fn sum(&self) -> u32 {
        self.hasher.clone().finalize()
    }
}
