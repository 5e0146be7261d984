//! Smart Turn v3: whether a voice sounds as if its turn has ended.
//!
//! The network (a small Whisper encoder with a classifier on top, BSD 2-Clause, by Daily) ships as
//! an eight-bit ONNX file inside the wheel of `pipecat-ai`. It is not in this repository: `antiphon
//! models import` takes it out of the wheel. An eight-bit file that is run wrongly gives numbers all
//! the same, so the file is known by its checksum and asked about a known sound before it is used.

pub mod wheel;

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::Semaphore;

pub use smart_turn::WINDOW;
use smart_turn::{GraphError, Network};

/// The file's name in the state folder and in the wheel.
pub const FILE: &str = "smart-turn-v3.2-cpu.onnx";
/// SHA-256 of the files that are known.
const KNOWN: [&str; 1] = ["2bb026316b14a660486a75b1733cd3fbab8c2fd0314dc9af7be49f8cca967e4f"];
/// What the network says of [`test_sound`], by its authors' runtime, and how near we must come.
const TEST_ANSWER: f32 = 0.9768;
const TEST_TOLERANCE: f32 = 0.02;
/// Questions at once; of more, the later ones wait.
const AT_ONCE: usize = 2;
/// Longest file that is read, in bytes.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("{0}: not a wheel with {FILE} in it: {1}")]
    Wheel(PathBuf, String),
    #[error("{0} is not a known {FILE}: its SHA-256 is {1}")]
    Unknown(PathBuf, String),
    #[error("the model cannot be run: {0}")]
    Graph(#[from] GraphError),
    #[error("the model fails its self-test: {is:.4} instead of {should:.4}")]
    SelfTest { is: f32, should: f32 },
}

/// One instance serves all rooms.
#[derive(Debug)]
pub struct SmartTurn {
    network: Network,
    turns: Semaphore,
}

impl SmartTurn {
    /// Where the model lies in a state folder.
    pub fn path_in(state_dir: &Path) -> PathBuf {
        state_dir.join("models").join(FILE)
    }

    /// Reads the model, makes sure of it, and asks it about a known sound. Takes a while.
    ///
    /// # Errors
    /// A file that is not there, not known, or does not answer as it should.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        let io = |error| ModelError::Io(path.to_owned(), error);
        let length = fs::metadata(path).map_err(io)?.len();
        if length > MAX_BYTES {
            return Err(io(io::Error::other("the file is too long")));
        }
        let bytes = fs::read(path).map_err(io)?;
        Self::checked(path, &bytes)
    }

    /// The same, from a file's bytes.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn checked(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let sum = sha256(bytes);
        if !KNOWN.contains(&sum.as_str()) {
            return Err(ModelError::Unknown(path.to_owned(), sum));
        }
        let model = Self { network: Network::parse(bytes)?, turns: Semaphore::new(AT_ONCE) };
        let is = model.ended(&test_sound())?;
        if (is - TEST_ANSWER).abs() <= TEST_TOLERANCE {
            Ok(model)
        } else {
            Err(ModelError::SelfTest { is, should: TEST_ANSWER })
        }
    }

    /// The probability (0..1) that the turn has ended with these samples: the last 8 s (mono s16 at
    /// 16 kHz), some 200 ms of silence at their end included. Blocks for 0.1 s and more.
    ///
    /// # Errors
    /// A graph that is not what it should be.
    pub fn ended(&self, samples: &[i16]) -> Result<f32, GraphError> {
        self.network.ended(samples)
    }

    /// The same, off the caller's thread; none where it cannot be told.
    pub async fn ask(self: Arc<Self>, samples: Vec<i16>) -> Option<f32> {
        let permit = self.turns.acquire().await.ok()?;
        let model = self.clone();
        let answer = tokio::task::spawn_blocking(move || model.ended(&samples)).await.ok()?;
        drop(permit);
        answer.inspect_err(|error| tracing::warn!(%error, "the turn model gives no answer")).ok()
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Two seconds that sweep and swell like a voice, then 200 ms of silence; in whole numbers, so that
/// every machine makes the same.
fn test_sound() -> Vec<i16> {
    let mut phase = 0_u32;
    let sweep = (0..32_000_u32).map(|n| {
        let hz = 110 + n / 400;
        phase = phase.wrapping_add(hz * (u32::MAX / 16_000));
        let saw = (phase >> 16) as i32 - 32_768;
        let swell = (n % 8_000).min(8_000 - n % 8_000) as i32;
        (saw * swell / 16_000) as i16
    });
    sweep.chain(std::iter::repeat_n(0, 3_200)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_known_is_refused_with_its_checksum() {
        let refused = SmartTurn::checked(Path::new("x.onnx"), b"abc");
        let Err(ModelError::Unknown(_, sum)) = refused else { panic!("{refused:?}") };
        assert_eq!(sum, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
