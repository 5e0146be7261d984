//! One stretch of what was said, as it is shown, stored and reported.

use serde::{Deserialize, Serialize};

/// Who said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SpeakerKind {
    User,
    Agent,
}

/// A transcript segment. Interims replace each other under one id; the final closes it. An interim
/// without text takes back what was shown under its id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Segment {
    /// Unique for ever: it makes ingest idempotent.
    pub id: String,
    pub kind: SpeakerKind,
    /// The participant's identity.
    pub speaker_id: String,
    pub speaker_name: String,
    pub text: String,
    /// When the speech began, in ms since the session began (the machine's own start).
    pub start_ms: u64,
    pub duration_ms: u64,
    /// 0..1; 1 for the agent's own text.
    pub confidence: f32,
    pub is_final: bool,
}
