//! What a session asks of the world. Comparable data: tests assert on lists of these.

use crate::{
    llm::{GenerateRequest, LlmEvent},
    session::{
        input::{GenerationId, SpeakerId},
        state::{AgentState, CloseReason, UserState},
    },
    transcript::segment::Segment,
    tts::SpeechId,
};

#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    SetState(AgentState),
    SetUserState(UserState),
    /// Show it in the room; a final is on disk before that, and is reported.
    Transcript(Segment),
    /// Start a generation; at most one is current.
    Generate {
        id: GenerationId,
        request: GenerateRequest,
    },
    CancelGeneration {
        id: GenerationId,
    },
    /// Send text to be synthesised; the first piece opens the speech.
    Speak {
        id: SpeechId,
        text: String,
    },
    /// No more text for this speech.
    FinishSpeech {
        id: SpeechId,
    },
    /// Drop the speech at the provider and what of it is not yet played.
    CancelSpeech {
        id: SpeechId,
    },
    /// Let the speech's audio flow to the track as it arrives.
    Play {
        id: SpeechId,
    },
    /// Play the bundled apology as this speech: TTS itself is down.
    PlayApology {
        id: SpeechId,
    },
    /// Fall silent now: nothing queued at the track is heard. The speech's audio is kept until
    /// `CancelSpeech`; the driver answers with `Playout::Position`. May come before anything of the
    /// speech was played, or even before its first audio: then nothing flows until `Resume`.
    ClearPlayout {
        id: SpeechId,
    },
    /// Go on with a cleared speech from this position.
    Resume {
        id: SpeechId,
        from_ms: u64,
    },
    /// Ask STT to close the segment now.
    FinalizeStt {
        speaker: SpeakerId,
    },
    /// Ask the turn model about the end of speech that was told last; the driver answers with
    /// `TurnEnd`, if it can.
    AskTurnModel {
        speaker: SpeakerId,
    },
    Metric(Metric),
    Usage(Usage),
    /// Hear nobody any more, and ask STT for the last of what was said; the driver answers with
    /// `SttOver` when that has come.
    CloseStt,
    /// Leave the room; nothing follows.
    Leave {
        reason: CloseReason,
    },
}

/// Measured facts about a turn, for metrics and events.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Metric {
    /// From the end of the user's speech to the turn's commit, in ms.
    EndpointingDelay { ms: u64 },
    /// From the generation's start to its first text, in ms.
    Ttft { ms: u64 },
    /// From the first text sent to TTS to its first audio, in ms.
    Ttfb { ms: u64 },
    /// From the end of the user's speech to the agent's first audio at the track, in ms.
    ResponseLatency { ms: u64 },
    /// The user cut the agent short.
    Interruption,
    /// The agent went on after an interruption without words.
    FalseInterruption,
    /// An apology was spoken.
    Apology,
}

/// What was used, to be priced; `link` says of which provider, where there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    Stt {
        link: u8,
        audio_ms: u64,
    },
    Llm {
        link: u8,
        /// All of the prompt, cached or not.
        input_tokens: u64,
        /// Of the input: read from the provider's cache.
        cached_tokens: u64,
        output_tokens: u64,
        /// By the length of the texts: the answer was cut short before the provider told.
        estimated: bool,
    },
    Tts {
        link: u8,
        characters: u64,
    },
}

impl Usage {
    /// The same, of a chain whose links are counted from `first`; there is one recogniser for all.
    pub const fn counted_from(mut self, first: u8) -> Self {
        if let Self::Llm { link, .. } | Self::Tts { link, .. } = &mut self {
            *link = link.saturating_add(first);
        }
        self
    }

    /// What a model told, if it is that.
    pub const fn of(event: &LlmEvent) -> Option<Self> {
        match *event {
            LlmEvent::Usage { link, input_tokens, cached_tokens, output_tokens, estimated } => {
                Some(Self::Llm { link, input_tokens, cached_tokens, output_tokens, estimated })
            }
            _ => None,
        }
    }
}
