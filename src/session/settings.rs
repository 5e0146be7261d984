//! What an agent file decides about the conversation itself.

use std::time::Duration;

/// The machine's settings; every field is set by the agent file, with these defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The rendered system prompt.
    pub system_prompt: String,
    /// Spoken on join.
    pub greeting: Option<String>,
    /// Spoken on a graceful end (drain).
    pub farewell: Option<String>,
    /// May the user cut the greeting short.
    pub greeting_interruptible: bool,
    /// May the user cut the agent short.
    pub interruptible: bool,
    /// Silence before the agent may take the turn.
    pub silence_threshold: Duration,
    /// Longest wait for the end of a turn.
    pub max_endpointing: Duration,
    /// Longest agent turn.
    pub max_speak: Duration,
    /// Speech that interrupts the agent.
    pub min_interruption: Duration,
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
            silence_threshold: Duration::from_millis(500),
            max_endpointing: Duration::from_secs(3),
            max_speak: Duration::from_secs(30),
            min_interruption: Duration::from_millis(500),
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
