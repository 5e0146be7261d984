//! What was said in a session.

use axum::{Extension, Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::{
    app::App,
    audit,
    auth::Principal,
    error::{ApiError, BodyFaults, Code, Faults},
    extract::{Body, Id, Ids, Params},
    sessions::find,
};
use crate::store::{PageRequest, Transcript, TranscriptQuery};

const DEFAULT_LIMIT: u32 = 50;
pub const MAX_LIMIT: u32 = 500;
const MAX_PAGE: u32 = 1_000_000;

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
    /// Whether somebody has marked it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub flagged: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flag_reason: Option<String>,
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
            flagged: row.flagged,
            flag_reason: row.flag_reason,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({ "total": 120, "page": 1, "limit": 50, "asOf": 4711 }))]
pub struct Pagination {
    /// On all pages together.
    pub total: u64,
    /// From 1.
    pub page: u32,
    pub limit: u32,
    /// Of transcripts: give it with the next page's request, and pages do not shift while more
    /// arrives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<i64>,
}

impl Pagination {
    pub const fn new(total: u64, page: PageRequest) -> Self {
        Self { total, page: page.page, limit: page.limit, as_of: None }
    }
}

/// Checks a page asked for.
pub fn page_request(page: Option<u32>, limit: Option<u32>) -> Result<PageRequest, ApiError> {
    let request = PageRequest { page: page.unwrap_or(1), limit: limit.unwrap_or(DEFAULT_LIMIT) };
    if !(1..=MAX_PAGE).contains(&request.page) {
        return Err(ApiError::invalid("page must be from 1 to 1000000"));
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
#[serde(rename_all = "camelCase")]
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
    #[param(minimum = 1, maximum = 1_000_000, default = 1)]
    page: Option<u32>,
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<u32>,
    /// Only those that are marked, or are not.
    flagged: Option<bool>,
    /// From the first page's pagination.
    as_of: Option<i64>,
}

/// Read a session's transcripts, in the order in which they were said.
#[utoipa::path(
    get, path = "/api/sessions/{id}/transcripts", tag = "transcripts",
    params(("id" = String, Path, description = "The session"), TranscriptParams),
    responses((status = 200, description = "One page", body = TranscriptList), Faults),
)]
pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
    Params(params): Params<TranscriptParams>,
) -> Result<Json<TranscriptList>, ApiError> {
    let page = page_request(params.page, params.limit)?;
    let session = find(&app, &principal, &id).await?;
    let query = TranscriptQuery {
        from_ms: params.from,
        to_ms: params.to,
        speaker_id: params.speaker,
        flagged: params.flagged,
        as_of: params.as_of,
        page,
    };
    let found = app.store.transcripts(&session.tenant, &id, &query).await?;
    audit::record(&app, &principal, "transcript.read", &id, json!({ "page": page.page })).await?;
    Ok(Json(TranscriptList {
        transcripts: found.page.rows.into_iter().map(Into::into).collect(),
        pagination: Pagination {
            as_of: Some(found.as_of),
            ..Pagination::new(found.page.total, page)
        },
    }))
}

const MAX_REASON: usize = 500;

#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({ "flagged": true, "reason": "wrong name" }))]
pub struct Flag {
    flagged: bool,
    #[serde(default)]
    #[schema(max_length = 500)]
    reason: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Flagged {
    transcript: TranscriptView,
}

/// Mark a transcript, for somebody to look at it, or take the mark away.
#[utoipa::path(
    patch, path = "/api/sessions/{id}/transcripts/{tid}", tag = "transcripts", request_body = Flag,
    params(
        ("id" = String, Path, description = "The session"),
        ("tid" = String, Path, description = "The transcript"),
    ),
    responses((status = 200, description = "As it is now", body = Flagged), Faults, BodyFaults),
)]
pub async fn flag(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Ids(id, tid): Ids,
    Body(body): Body<Flag>,
) -> Result<Json<Flagged>, ApiError> {
    if body.reason.chars().count() > MAX_REASON {
        return Err(ApiError::invalid("reason: at most 500 characters"));
    }
    let session = find(&app, &principal, &id).await?;
    let reason = body.flagged.then_some(body.reason.as_str());
    let row = app.store.flag_transcript(&session.tenant, &id, &tid, reason).await?;
    let row = row.ok_or(ApiError::new(Code::TranscriptNotFound))?;
    let detail = json!({ "flagged": body.flagged });
    audit::record(&app, &principal, "transcript.flag", &tid, detail).await?;
    Ok(Json(Flagged { transcript: row.into() }))
}
