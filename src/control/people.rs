//! One person's data: all of it, or none of it any more.

use axum::{Extension, Json, extract::State};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{
    app::App,
    audit,
    auth::Principal,
    error::{ApiError, Code, Faults},
    extract::Id,
    recordings::RecordingView,
    sessions::rfc3339,
    transcripts::TranscriptView,
};
use crate::{
    clock,
    store::{people::PersonData, tenants::Role},
};

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PersonView {
    identity: String,
    /// Whether there is more than fits into one answer (50,000 of a kind).
    truncated: bool,
    sessions: Vec<Attendance>,
    /// Ids of sessions that they made.
    owned_sessions: Vec<String>,
    transcripts: Vec<PersonTranscript>,
    /// Of sessions in which they were or spoke.
    recordings: Vec<RecordingView>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({ "sessionId": "7f6b", "name": "Ann", "joinedAt": "2026-01-01T00:00:05Z" }))]
pub struct Attendance {
    session_id: String,
    name: String,
    joined_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    left_at: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PersonTranscript {
    session_id: String,
    #[serde(flatten)]
    transcript: TranscriptView,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({ "transcripts": 12, "participations": 2, "recordings": 1 }))]
pub struct ErasedView {
    transcripts: u64,
    participations: u64,
    recordings: u64,
}

/// Themselves, or an admin.
fn may(principal: &Principal, identity: &str) -> Result<(), ApiError> {
    let themselves = !principal.subject.is_empty() && principal.subject == identity;
    if themselves || principal.role == Role::Admin {
        return Ok(());
    }
    Err(Code::Forbidden.into())
}

/// Everything that is stored about one person.
#[utoipa::path(
    get, path = "/api/people/{identity}/data", tag = "people",
    params(("identity" = String, Path, description = "Their identity in rooms: a user's id")),
    responses((status = 200, description = "Their data", body = PersonView), Faults),
)]
pub async fn export(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(identity): Id,
) -> Result<Json<PersonView>, ApiError> {
    may(&principal, &identity)?;
    audit::record(&app, &principal, "person.export", &identity, json!({})).await?;
    let data = app.store.person(&principal.tenant, &identity).await?;
    if data == PersonData::default() {
        return Err(Code::PersonNotFound.into());
    }
    let sessions = data.sessions.into_iter().map(|one| Attendance {
        session_id: one.session_id,
        name: one.name,
        joined_at: rfc3339(one.joined_at),
        left_at: one.left_at.map(rfc3339),
    });
    let transcripts = data
        .transcripts
        .into_iter()
        .map(|row| PersonTranscript { session_id: row.session_id.clone(), transcript: row.into() });
    Ok(Json(PersonView {
        truncated: data.truncated,
        sessions: sessions.collect(),
        owned_sessions: data.owned,
        transcripts: transcripts.collect(),
        recordings: data.recordings.into_iter().map(Into::into).collect(),
        identity,
    }))
}

/// Erase everything that is stored about one person, for good.
///
/// What they said before this and is reported later is dropped. Recordings of sessions in which
/// they were, spoke, or which they made go as a whole: voices cannot be taken out of them.
#[utoipa::path(
    delete, path = "/api/people/{identity}/data", tag = "people",
    params(("identity" = String, Path, description = "Their identity in rooms: a user's id")),
    responses((status = 200, description = "What has been erased", body = ErasedView), Faults),
)]
pub async fn erase(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(identity): Id,
) -> Result<Json<ErasedView>, ApiError> {
    may(&principal, &identity)?;
    let tenant = &principal.tenant;
    let mut recordings = 0;
    let erased = loop {
        let data = app.store.person(tenant, &identity).await?;
        for recording in &data.recordings {
            app.storage.delete(&recording.object_key).await?;
        }
        let erased =
            app.store.erase_person(tenant, &identity, &data.recordings, clock::unix_ms()).await?;
        recordings += erased.recordings;
        if data.recordings.len() < crate::store::people::PERSON_LIMIT as usize {
            break erased;
        }
    };
    let view = ErasedView {
        transcripts: erased.transcripts,
        participations: erased.participations,
        recordings,
    };
    let detail = json!({ "transcripts": view.transcripts, "recordings": recordings });
    audit::record(&app, &principal, "person.erase", &identity, detail).await?;
    Ok(Json(view))
}
