//! The states that everybody sees: log, metric, event stream, room attribute.

use serde::{Deserialize, Serialize};

/// What the agent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AgentState {
    #[default]
    Idle,
    Listening,
    Thinking,
    Speaking,
}

impl AgentState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Listening => "listening",
            Self::Thinking => "thinking",
            Self::Speaking => "speaking",
        }
    }
}

/// What the linked participant is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum UserState {
    #[default]
    Listening,
    Speaking,
    Away,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CloseReason {
    /// The linked participant left.
    ParticipantLeft,
    /// The room was closed or this participant removed from it.
    RoomClosed,
    /// The worker is shutting down.
    Drained,
    /// The job was terminated by the server.
    Terminated,
    /// The input is at its end (replay).
    InputEnded,
    /// Something broke that the session cannot go on without.
    Failed,
}

impl CloseReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ParticipantLeft => "participant_left",
            Self::RoomClosed => "room_closed",
            Self::Drained => "drained",
            Self::Terminated => "terminated",
            Self::InputEnded => "input_ended",
            Self::Failed => "failed",
        }
    }
}
