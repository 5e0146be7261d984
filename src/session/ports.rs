//! What a session's driver needs of the place it runs in: a room, a loopback pair, a WAV file.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::{
    session::{
        command::{Metric, Usage},
        state::{AgentState, CloseReason, UserState},
    },
    transcript::segment::Segment,
};

/// A speaker's microphone.
#[async_trait]
pub trait Microphone: Send + Debug {
    /// Appends the next samples (mono s16 at 16 kHz, usually 10 ms) to `into`; `false` at the end.
    async fn read(&mut self, into: &mut Vec<i16>) -> bool;
    /// In the middle of speech, when nothing is decided, samples may come a little later and more of
    /// them at a time.
    fn set_batching(&mut self, _batching: bool) {}
    /// Whether whoever listens may do so on the thread that the samples come from.
    fn may_be_heard_in_place(&self) -> bool {
        false
    }
}

/// The agent's track.
#[async_trait]
pub trait Voice: Send + Debug {
    /// Hands over one frame of 10 ms (mono s16 at the rate the voice was made with). The playout
    /// paces itself and never has more than [`LEAD_MS`] queued here, so this does not wait.
    async fn write(&mut self, frame: &[i16]);
    /// Drops what was handed over and has not been sent yet, but for 10 ms at most in which a sound
    /// that it breaks off fades out.
    fn clear(&mut self);
}

/// How far ahead of real time frames are handed to a [`Voice`], in ms: enough to ride out a busy
/// scheduler. An interruption does not wait for it: what was handed over is cleared.
pub const LEAD_MS: u32 = 200;

/// The longest that a speech may be allowed to take (`max_speak_ms`), in ms; all of it is kept.
pub const LONGEST_SPEECH_MS: u64 = 600_000;

/// What happens where the session runs.
#[derive(Debug)]
pub enum RoomEvent {
    /// Joined, and somebody hears the voice, or will not.
    Ready,
    ParticipantJoined {
        identity: String,
        name: String,
    },
    ParticipantLeft {
        identity: String,
    },
    /// The participant's microphone can be heard from now on, instead of any before it.
    Audible {
        identity: String,
        /// Names the microphone's track.
        track: String,
        microphone: Box<dyn Microphone>,
    },
    /// The microphone is gone (unpublished); its last words are still awaited. One that another took
    /// the place of is of no concern.
    Inaudible {
        identity: String,
        track: String,
    },
    /// The connection to the room is made anew. Until it is there again, who seems to leave may be back.
    Reconnecting,
    Reconnected,
    Chat {
        identity: String,
        text: String,
    },
    Say {
        text: String,
        interruptible: bool,
    },
    /// Another of the session's agents goes on.
    HandOver {
        to: String,
        keeps_history: bool,
    },
    Drain,
    Closed {
        reason: CloseReason,
    },
}

/// What a session shows where it runs, in order. A final [`Segment`] is on disk before it is shown.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    State(AgentState),
    UserState(UserState),
    Transcript(Segment),
    Metric(Metric),
    Usage(Usage),
}
