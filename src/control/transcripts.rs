//! What was said in a session.

use axum::{Extension, Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    app::App,
    auth::Principal,
    error::{ApiError, Code, Faults},
    extract::{Params, SessionId},
};
use crate::store::{PageRequest, Transcript, TranscriptQuery};

const DEFAULT_LIMIT: u32 = 50;
pub const MAX_LIMIT: u32 = 500;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "SG_1", "speakerId": "ann", "speakerName": "Ann", "content": "Book a table.",
    "timestampMs": 2100, "durationMs": 900, "confidence": 0.97, "isFinal": true
}))]
pub struct TranscriptView {
    pub id: String,
    pub speaker_id: String,
    pub speaker_name: String,
    pub content: String,
    /// The start of the speech, in ms since the session's start.
    pub timestamp_ms: i64,
    pub duration_ms: i64,
    pub confidence: f64,
    pub is_final: bool,
}

impl From<Transcript> for TranscriptView {
    fn from(row: Transcript) -> Self {
        Self {
            id: row.id,
            speaker_id: row.speaker_id,
            speaker_name: row.speaker_name,
            content: row.content,
            timestamp_ms: row.timestamp_ms,
            duration_ms: row.duration_ms,
            // Stored as it came, in single precision: 0.97, not 0.9700000286102295.
            confidence: (row.confidence * 1e6).round() / 1e6,
            is_final: row.is_final,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({ "total": 120, "page": 1, "limit": 50 }))]
pub struct Pagination {
    /// On all pages together.
    pub total: u64,
    /// From 1.
    pub page: u32,
    pub limit: u32,
}

/// Checks a page asked for.
pub fn page_request(page: Option<u32>, limit: Option<u32>) -> Result<PageRequest, ApiError> {
    let request = PageRequest { page: page.unwrap_or(1), limit: limit.unwrap_or(DEFAULT_LIMIT) };
    if request.page == 0 {
        return Err(ApiError::invalid("page counts from 1"));
    }
    if !(1..=MAX_LIMIT).contains(&request.limit) {
        return Err(ApiError::invalid("limit must be from 1 to 500"));
    }
    Ok(request)
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TranscriptList {
    pub transcripts: Vec<TranscriptView>,
    pub pagination: Pagination,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TranscriptParams {
    /// Said at or after this, in ms since the session's start.
    #[param(example = 0)]
    from: Option<i64>,
    /// Said before this, in ms since the session's start.
    #[param(example = 60000)]
    to: Option<i64>,
    /// The speaker's id.
    #[param(example = "ann")]
    speaker: Option<String>,
    /// From 1.
    #[param(minimum = 1, default = 1)]
    page: Option<u32>,
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<u32>,
}

/// Read a session's transcripts, in the order in which they were said.
#[utoipa::path(
    get, path = "/api/sessions/{id}/transcripts", tag = "transcripts",
    params(("id" = String, Path, description = "The session"), TranscriptParams),
    responses((status = 200, description = "One page", body = TranscriptList), Faults),
    security(("bearer" = [])),
)]
pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    SessionId(id): SessionId,
    Params(params): Params<TranscriptParams>,
) -> Result<Json<TranscriptList>, ApiError> {
    let page = page_request(params.page, params.limit)?;
    if app.store.session(&principal.tenant, &id).await?.is_none() {
        return Err(Code::SessionNotFound.into());
    }
    let query = TranscriptQuery {
        from_ms: params.from,
        to_ms: params.to,
        speaker_id: params.speaker,
        page,
    };
    let found = app.store.transcripts(&principal.tenant, &id, &query).await?;
    Ok(Json(TranscriptList {
        transcripts: found.rows.into_iter().map(Into::into).collect(),
        pagination: Pagination { total: found.total, page: page.page, limit: page.limit },
    }))
}
