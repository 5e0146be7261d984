//! Labelled dialogues: what `fixtures/dialogues.py` writes.

use std::{
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    audio::{resample, vad, wav},
    eval::EvalError,
};

/// Longest label file that is read, in bytes.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Longest clip, and longest wait before one, in ms: a label beyond it is a mistake.
const MAX_MS: u64 = 10 * 60 * 1_000;

/// A folder of dialogues.
#[derive(Debug, Clone)]
pub struct Set {
    pub dir: PathBuf,
    pub names: Vec<String>,
    /// How many turns there must be.
    pub turns: usize,
    /// What the agent's voice sounds like, for its echo: mono s16 at 16 kHz.
    pub agent_voice: Arc<[i16]>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    turns: usize,
    dialogues: Vec<String>,
}

/// One dialogue with its sound.
#[derive(Debug)]
pub struct Dialogue {
    pub label: Label,
    /// Mono s16 at 16 kHz.
    pub samples: Vec<i16>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Label {
    pub name: String,
    pub stt: Stt,
    /// Heard all the time, again and again.
    pub bed: Option<Stretch>,
    pub echo: Option<Echo>,
    pub clips: Vec<Clip>,
}

/// How recognition behaves.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stt {
    /// From the end of a word to the interim that holds it.
    pub interim_ms: u64,
    /// From being asked for a final to the final.
    pub finalize_ms: u64,
    /// Silence after which recognition closes an utterance by itself.
    pub endpointing_ms: u64,
}

/// A place in the WAV.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stretch {
    pub from_ms: u64,
    pub to_ms: u64,
}

/// The agent as the microphone hears it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Echo {
    pub gain_db: f32,
    pub delay_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Asks for an answer.
    Turn,
    /// A turn that begins while the agent speaks.
    Interruption,
    /// Words that ask for nothing: the agent goes on.
    Backchannel,
    /// No words at all: the agent goes on.
    Noise,
}

/// What a clip waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum After {
    /// The agent has nothing more to say.
    Quiet,
    /// The agent's voice has been heard since the last clip.
    Voice,
    /// The end of the clip before.
    Clip,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Clip {
    pub kind: Kind,
    /// What is special about it: `hesitation`, `cough`.
    pub label: String,
    pub after: After,
    pub after_ms: u64,
    pub from_ms: u64,
    pub to_ms: u64,
    /// The words between pauses, times in ms from the start of the clip.
    #[serde(default)]
    pub segments: Vec<Vec<Word>>,
    /// The true end of the turn, in ms from the start of the clip.
    #[serde(default)]
    pub end_ms: u64,
    /// What the agent says to it.
    #[serde(default)]
    pub answer: Option<String>,
}

impl Clip {
    /// Whether it asks for an answer.
    pub fn is_turn(&self) -> bool {
        matches!(self.kind, Kind::Turn | Kind::Interruption)
    }

    pub fn length_ms(&self) -> u64 {
        self.to_ms.saturating_sub(self.from_ms)
    }

    pub fn text(&self) -> String {
        let words = self.segments.iter().flatten().map(|word| word.text.as_str());
        words.collect::<Vec<_>>().join(" ")
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Word {
    /// As recognition writes it.
    pub text: String,
    pub start_ms: u64,
    pub end_ms: u64,
}

impl Set {
    /// The set in `dir`, as its `dialogues.json` lists it.
    ///
    /// # Errors
    /// Files that cannot be read or say what cannot be.
    pub fn open(dir: &Path) -> Result<Self, EvalError> {
        let path = dir.join("dialogues.json");
        let manifest: Manifest = read_json(&path)?;
        let is_name = |name: &String| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if !manifest.dialogues.iter().all(is_name) {
            return Err(fault(&path, &"a dialogue's name is letters, digits and dashes"));
        }
        Ok(Self {
            dir: dir.to_owned(),
            names: manifest.dialogues,
            turns: manifest.turns,
            agent_voice: read_wav(&dir.join("agent.wav"))?.into(),
        })
    }
}

impl Dialogue {
    /// # Errors
    /// A WAV or a label that cannot be read, or places outside of the WAV.
    pub fn read(dir: &Path, name: &str) -> Result<Self, EvalError> {
        let path = dir.join(format!("{name}.json"));
        let label: Label = read_json(&path)?;
        let samples = read_wav(&dir.join(format!("{name}.wav")))?;
        let length_ms = samples.len() as u64 / 16 + 1;
        let within = |from: u64, to: u64| from < to && to <= length_ms;
        let clips_fit = label.clips.iter().all(|clip| {
            within(clip.from_ms, clip.to_ms)
                && clip.after_ms <= MAX_MS
                && clip.end_ms <= clip.length_ms() + 1
        });
        let bed_fits = label.bed.is_none_or(|bed| within(bed.from_ms, bed.to_ms));
        if !clips_fit || !bed_fits {
            return Err(fault(&path, &"a label lies outside of the WAV"));
        }
        Ok(Self { label, samples })
    }
}

fn fault(path: &Path, problem: &dyn Display) -> EvalError {
    EvalError::File(path.display().to_string(), problem.to_string())
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, EvalError> {
    let length = fs::metadata(path).map_err(|error| fault(path, &error))?.len();
    if length > MAX_BYTES {
        return Err(fault(path, &"the file is too long"));
    }
    let bytes = fs::read(path).map_err(|error| fault(path, &error))?;
    serde_json::from_slice(&bytes).map_err(|error| fault(path, &error))
}

fn read_wav(path: &Path) -> Result<Vec<i16>, EvalError> {
    let wav = wav::read(path).map_err(|error| fault(path, &error))?;
    resample::resample(&wav.samples, wav.sample_rate, vad::SAMPLE_RATE)
        .map_err(|error| fault(path, &error))
}
