//! What a worker posts to the control endpoint's `/api/ingest`, in JSON.
//!
//! One request is about one room. Its finals are acknowledged together, after commit; the rest is
//! for live listeners and may be lost. An item of a type that the receiver does not know is passed
//! over, so that a newer worker can report to an older control endpoint.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::segment::{Segment, SpeakerKind};
use crate::{session::command::Usage, telemetry::usage::Used};

/// Items in one request.
pub const MAX_ITEMS: usize = 1000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "room": "session-7f6b", "sessionKey": "RM_x1", "agent": "assistant",
    "startedAtUnixMs": 1_767_225_600_000_i64,
    "items": [
        { "type": "segment", "id": "SG_1", "kind": "user", "speakerId": "ann",
          "speakerName": "Ann", "content": "Book a table.",
          "spokenAtUnixMs": 1_767_225_602_100_i64, "durationMs": 900, "confidence": 0.97 },
        { "type": "state", "state": "thinking" }
    ]
}))]
pub struct IngestRequest {
    #[schema(min_length = 1, max_length = 256)]
    pub room: String,
    /// Tells one life of a room from the next when its name is used again: the room's SID.
    #[serde(default)]
    #[schema(max_length = 256)]
    pub session_key: String,
    /// The agent's name.
    #[serde(default)]
    #[schema(max_length = 256)]
    pub agent: String,
    /// When the worker's session began, in ms since the Unix epoch.
    #[schema(minimum = 0, maximum = 253_402_300_799_999_i64)]
    pub started_at_unix_ms: i64,
    /// In the order in which it happened; at most 1000.
    #[schema(max_items = 1000)]
    pub items: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Item {
    /// A final: stored once for each id, however often it is sent.
    Segment(Spoken),
    /// An interim: shown to live listeners, not stored. Without content it takes back what was shown
    /// under its id.
    Interim(Spoken),
    /// The agent's state: idle, listening, thinking, speaking.
    State {
        #[schema(min_length = 1, max_length = 256)]
        state: String,
    },
    /// What was used just now, and what it costs.
    Usage(UsageItem),
    /// All that the session has used since the worker joined it: replaces what was told before.
    Totals {
        #[schema(max_items = 64)]
        usage: Vec<UsageItem>,
    },
    /// Something else that live listeners may want to know.
    Event {
        #[schema(min_length = 1, max_length = 256)]
        name: String,
        data: Value,
    },
    /// The worker has recorded the session itself; stored once for each id.
    Recording(RecordingItem),
    /// The agent has left the room.
    #[serde(rename_all = "camelCase")]
    Closed {
        #[schema(minimum = 0, maximum = 253_402_300_799_999_i64)]
        at_unix_ms: i64,
    },
    #[serde(other)]
    Unknown,
}

/// A stretch of speech.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Spoken {
    /// Unique for ever.
    #[schema(min_length = 1, max_length = 256)]
    pub id: String,
    #[schema(inline)]
    pub kind: SpeakerKind,
    /// The participant's identity.
    #[schema(min_length = 1, max_length = 256)]
    pub speaker_id: String,
    #[serde(default)]
    #[schema(max_length = 256)]
    pub speaker_name: String,
    #[schema(max_length = 100_000)]
    pub content: String,
    /// The start of the speech, in ms since the Unix epoch.
    #[schema(minimum = 0, maximum = 253_402_300_799_999_i64)]
    pub spoken_at_unix_ms: i64,
    #[serde(default)]
    pub duration_ms: u64,
    /// 0..1.
    #[serde(default = "certain")]
    pub confidence: f32,
    /// Understood after the fact, when recognition was back: stored with the flag `late`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
}

const fn certain() -> f32 {
    1.0
}

impl Spoken {
    /// `session_start` in ms since the Unix epoch.
    pub fn new(segment: &Segment, session_start: i64) -> Self {
        let since = i64::try_from(segment.start_ms).unwrap_or(i64::MAX);
        Self {
            id: segment.id.clone(),
            kind: segment.kind,
            speaker_id: segment.speaker_id.clone(),
            speaker_name: segment.speaker_name.clone(),
            content: segment.text.clone(),
            spoken_at_unix_ms: session_start.saturating_add(since),
            duration_ms: segment.duration_ms,
            confidence: segment.confidence,
            late: false,
        }
    }
}

/// A recording that the worker has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordingItem {
    /// Unique for ever.
    #[schema(min_length = 1, max_length = 256)]
    pub id: String,
    #[schema(min_length = 1, max_length = 256)]
    pub filename: String,
    /// Where it is in the storage.
    #[schema(max_length = 512, pattern = r"^recordings/rooms/[A-Za-z0-9_-]+/[A-Za-z0-9_-]+\.ogg$")]
    pub object_key: String,
    #[schema(min_length = 1, max_length = 256)]
    pub track_type: String,
    pub duration_ms: u64,
    /// In bytes, as a reader gets it.
    pub file_size: u64,
    #[serde(default)]
    pub encrypted: bool,
    #[schema(minimum = 0, maximum = 253_402_300_799_999_i64)]
    pub created_at_unix_ms: i64,
}

/// What one use of one provider amounts to; counts that do not apply are absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UsageItem {
    /// stt, llm or tts.
    #[schema(max_length = 256)]
    pub service: String,
    #[schema(max_length = 256)]
    pub provider: String,
    #[schema(max_length = 256)]
    pub model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audio_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub characters: Option<u64>,
    /// In billionths of a US dollar; absent where no price is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_nano_usd: Option<u64>,
    /// True where tokens were counted by the length of the texts, because an answer was cut short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated: Option<bool>,
}

impl UsageItem {
    pub fn new(used: Used<'_>) -> Self {
        let named = |service: &str| Self {
            service: service.into(),
            provider: used.provider.into(),
            model: used.model.into(),
            cost_nano_usd: used.cost,
            ..Self::default()
        };
        match used.usage {
            Usage::Stt { audio_ms, .. } => Self { audio_ms: Some(audio_ms), ..named("stt") },
            Usage::Llm { input_tokens, cached_tokens, output_tokens, estimated, .. } => Self {
                estimated: estimated.then_some(true),
                input_tokens: Some(input_tokens),
                cached_tokens: Some(cached_tokens),
                output_tokens: Some(output_tokens),
                ..named("llm")
            },
            Usage::Tts { characters, .. } => Self { characters: Some(characters), ..named("tts") },
        }
    }

    /// Adds another use of the same.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.audio_ms, other.audio_ms),
            (&mut self.input_tokens, other.input_tokens),
            (&mut self.cached_tokens, other.cached_tokens),
            (&mut self.output_tokens, other.output_tokens),
            (&mut self.characters, other.characters),
            (&mut self.cost_nano_usd, other.cost_nano_usd),
        ] {
            if let Some(more) = more {
                *sum = Some(sum.unwrap_or_default().saturating_add(more));
            }
        }
        self.estimated = self.estimated.or(other.estimated);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({ "accepted": 3, "duplicates": 1 }))]
pub struct IngestResponse {
    /// Finals that are now stored, whether or not they were before.
    pub accepted: u64,
    /// Those of them that were stored before.
    pub duplicates: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_item_of_an_unknown_type_is_read_as_unknown() {
        let item: Item = serde_json::from_value(json!({"type": "hologram", "x": 1})).unwrap();
        assert_eq!(item, Item::Unknown);
    }

    #[test]
    fn a_segment_is_dated_by_the_start_of_its_session() {
        let segment = Segment {
            id: "s".into(),
            kind: SpeakerKind::Agent,
            speaker_id: "agent".into(),
            speaker_name: String::new(),
            text: "hello".into(),
            start_ms: 1_500,
            duration_ms: 300,
            confidence: 1.0,
            is_final: true,
        };
        let item = Item::Segment(Spoken::new(&segment, 1_000_000));
        let expected = json!({
            "type": "segment", "id": "s", "kind": "agent", "speakerId": "agent",
            "speakerName": "", "content": "hello", "spokenAtUnixMs": 1_001_500,
            "durationMs": 300, "confidence": 1.0,
        });
        assert_eq!(serde_json::to_value(item).unwrap(), expected);
    }
}
