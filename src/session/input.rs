//! What happens to a session, as the driver tells it.

use crate::{
    llm::{LlmError, LlmEvent},
    session::{settings::Settings, state::CloseReason},
    stt::{SttError, Transcript},
    tts::{SpeechId, TimedText, TtsError},
};
use serde::{Deserialize, Serialize};

/// Names a speaker within one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SpeakerId(pub u32);

/// Names one generation within one session; grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GenerationId(pub u64);

/// Everything that can happen to a session. Events for an id that has been cancelled are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// The room is joined and the voice track is live: greet, begin.
    Ready,
    Participant {
        speaker: SpeakerId,
        event: ParticipantEvent,
    },
    Vad {
        speaker: SpeakerId,
        event: VadEvent,
    },
    /// How probable it is, by the sound alone, that the turn has ended with the speech whose end
    /// was told last.
    TurnEnd {
        speaker: SpeakerId,
        /// 0..1
        probability: f32,
    },
    Stt {
        speaker: SpeakerId,
        event: SttInput,
    },
    Llm {
        id: GenerationId,
        event: LlmEvent,
    },
    Tts {
        id: SpeechId,
        event: TtsInput,
    },
    Playout {
        id: SpeechId,
        event: PlayoutEvent,
    },
    /// Text the user typed; interrupts, then is answered as a user turn.
    Chat {
        speaker: SpeakerId,
        text: String,
    },
    /// Speech that the application asked for.
    Say {
        text: String,
        interruptible: bool,
    },
    /// Another agent goes on with the conversation.
    HandOver {
        settings: Box<Settings>,
        agent_name: String,
        /// It is shown what was said so far.
        keeps_history: bool,
    },
    /// End gracefully: finish the sentence, say farewell, leave.
    Drain,
    /// End now; what has been said is still waited for.
    Close {
        reason: CloseReason,
    },
    /// No recognition is left that could tell anything more.
    SttOver,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParticipantEvent {
    /// The first to join is linked: the one whose turns are answered.
    Joined {
        identity: String,
        name: String,
    },
    Left,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VadEvent {
    /// Speech has been going on for `speech_ms` (the detector's minimum) when this is told.
    Started { speech_ms: u32 },
    /// The speech that is going on is much fainter than this speaker's usually is: somebody else,
    /// or an echo. Told at most once in a speech.
    Faint,
    /// Silence has been going on for `silence_ms` (the detector's minimum) when this is told.
    Ended { silence_ms: u32 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SttInput {
    /// The first sample of the recognition stream is heard now: its times count from here. Told
    /// once for each stream; without it, segments are timed by the detector.
    Started,
    SpeechStarted,
    Interim(Transcript),
    Final(Transcript),
    EndOfTurn,
    Usage {
        #[serde(default)]
        link: u8,
        audio_ms: u64,
    },
    Lost,
    Restored,
    Failed(SttError),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum TtsInput {
    /// Audio has been added to the speech's playout queue.
    Audio {
        ms: u32,
    },
    Alignment(Vec<TimedText>),
    End,
    Error(TtsError),
    Usage {
        #[serde(default)]
        link: u8,
        characters: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlayoutEvent {
    /// The first frame has gone to the track.
    Started,
    /// How much of the speech has been heard, told about every 100 ms and after `ClearPlayout`.
    Position { ms: u64 },
    /// All audio of a finished speech has been heard.
    Drained { ms: u64 },
}

impl From<LlmError> for LlmEvent {
    fn from(error: LlmError) -> Self {
        Self::Error(error)
    }
}
