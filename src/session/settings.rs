//! What an agent file decides about the conversation itself.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What decides that the user's turn has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub enum Detection {
    /// Silence alone.
    Silence,
    /// Recognition's own end of turn; without one, the longest wait.
    Stt,
    /// Silence, shortened or prolonged by how the words read and the voice sounds.
    #[default]
    Heuristic,
    /// The same, and a model that listens to the audio.
    Semantic,
}

impl Detection {
    /// As written in agent files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Silence => "silence",
            Self::Stt => "stt",
            Self::Heuristic => "heuristic",
            Self::Semantic => "semantic",
        }
    }
}

/// What of the user's speech stops the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub enum Interruption {
    /// Speech of enough length, or enough words.
    Speech,
    /// The same, unless its words only say that the user listens, or it is far fainter than the
    /// user is.
    #[default]
    Adaptive,
}

/// The machine's settings; every field is set by the agent file, with these defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The rendered system prompt.
    pub system_prompt: String,
    /// Spoken once somebody hears the agent.
    pub greeting: Option<String>,
    /// Spoken on a graceful end (drain).
    pub farewell: Option<String>,
    /// May the user cut the greeting short.
    pub greeting_interruptible: bool,
    /// May the user cut the agent short.
    pub interruptible: bool,
    /// How the end of a turn is found.
    pub detection: Detection,
    /// Silence before the agent may take the turn.
    pub silence_threshold: Duration,
    /// Silence after which a turn is taken that is surely finished; at most the threshold counts.
    pub confident_endpointing: Duration,
    /// Learn the pauses that the user makes inside a turn, and wait for longer than those.
    pub dynamic_endpointing: bool,
    /// Such as `en-US`, for what words tell about a turn's end; none: English.
    pub language: Option<String>,
    /// Longest wait for the end of a turn.
    pub max_endpointing: Duration,
    /// Longest agent turn.
    pub max_speak: Duration,
    /// Speech that interrupts the agent.
    pub min_interruption: Duration,
    pub interruption: Interruption,
    /// Ask the model before the turn is taken, as soon as the words look whole.
    pub preemptive_generation: bool,
    /// Said to a user who counts as away, at most twice in a row; none: nothing.
    pub away_prompt: Option<String>,
    /// For so long after the agent was first heard, only words interrupt: the caller's device still
    /// learns to keep the agent's voice out of its microphone.
    pub echo_warm_up: Duration,
    /// Words that interrupt the agent; 0: duration alone decides.
    pub min_interruption_words: usize,
    /// An interruption without a transcript in this time is false: the agent resumes.
    pub false_interruption: Duration,
    /// Speech without a transcript in this time: LISTENING goes back to IDLE.
    pub transcript_timeout: Duration,
    /// The first token must come within this time.
    pub llm_first_token: Duration,
    /// The first audio must come within this time after text was sent.
    pub tts_first_audio: Duration,
    /// Silence after which the user counts as away; zero: never.
    pub user_away: Duration,
    /// Leave when the linked participant has left; else wait for the next one.
    pub close_on_participant_left: bool,
    /// Said when an answer cannot be had; empty: nothing is said.
    pub apology: String,
    /// `transcribe`: never generates, never speaks.
    pub transcribe_only: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            system_prompt: String::new(),
            greeting: None,
            farewell: None,
            greeting_interruptible: true,
            interruptible: true,
            detection: Detection::default(),
            silence_threshold: Duration::from_millis(500),
            confident_endpointing: Duration::from_millis(200),
            dynamic_endpointing: false,
            language: None,
            max_endpointing: Duration::from_secs(3),
            max_speak: Duration::from_secs(30),
            min_interruption: Duration::from_millis(500),
            interruption: Interruption::default(),
            preemptive_generation: false,
            away_prompt: None,
            echo_warm_up: Duration::from_secs(3),
            min_interruption_words: 0,
            false_interruption: Duration::from_secs(2),
            transcript_timeout: Duration::from_secs(3),
            llm_first_token: Duration::from_secs(5),
            tts_first_audio: Duration::from_secs(3),
            user_away: Duration::from_secs(15),
            close_on_participant_left: true,
            apology: "I'm sorry, I'm having trouble right now. Could you say that again?".into(),
            transcribe_only: false,
        }
    }
}
