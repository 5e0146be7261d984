//! Sessions: create, list, look, start, end.

use axum::{Extension, Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use utoipa::{
    IntoParams, ToSchema,
    openapi::schema::{Object, ObjectBuilder, Type},
};

use super::{
    app::App,
    audit,
    auth::Principal,
    error::{ApiError, BodyFaults, Code, Faults, LiveKitFaults},
    extract::{Body, Id, MaybeBody, Params},
    live::Signal,
    transcripts::{Pagination, page_request},
};
use crate::{
    clock,
    store::{
        Consent, NewSession, Session, SessionFilter, SessionKind, SessionStatus, SessionsQuery,
    },
};

const MAX_AGENT_NAME: usize = 128;
/// In bytes of JSON; LiveKit keeps it in every participant's copy of the room.
const MAX_METADATA: usize = 16 * 1024;

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
#[schema(example = json!({
    "agent": "assistant", "metadata": { "entity_id": "acme", "custom_prompt": "Be brief." }
}))]
pub struct CreateSession {
    /// The agent to dispatch, by its registered name; the configured one if absent.
    #[schema(max_length = 128)]
    agent: Option<String>,
    /// The room's metadata, all of it usable in the agent's prompt.
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
    /// How many may be in the room, without agents.
    #[schema(minimum = 1, maximum = 1000, default = 10)]
    max_participants: Option<u32>,
}

/// What the people in a session have agreed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({ "recording": true, "transcription": true }))]
pub struct ConsentBody {
    /// Whether they may be recorded.
    recording: bool,
    /// Whether what they say may be stored.
    #[serde(default = "yes")]
    #[schema(default = true)]
    transcription: bool,
}

const fn yes() -> bool {
    true
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({ "consent": { "recording": true, "transcription": true } }))]
pub struct StartSession {
    /// Recorded with the session. Without it nothing is recorded; what is said is stored unless
    /// transcription is refused here.
    consent: Option<ConsentBody>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "7f6b", "room": "session-7f6b", "status": "created", "agent": "assistant",
    "metadata": {}, "owner": "ann", "maxParticipants": 10, "createdAt": "2026-01-01T00:00:00Z"
}))]
pub struct SessionView {
    id: String,
    room: String,
    /// created, in_progress or completed.
    status: &'static str,
    agent: String,
    #[schema(value_type = Object)]
    metadata: Value,
    /// The user who made it; empty: the tenant's own.
    owner: String,
    max_participants: u32,
    /// Absent: nobody has said anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    consent: Option<ConsentBody>,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
}

impl From<Session> for SessionView {
    fn from(session: Session) -> Self {
        Self {
            id: session.id,
            room: session.room,
            status: session.status.as_str(),
            agent: session.agent,
            metadata: session.metadata,
            owner: session.owner,
            max_participants: session.max_participants,
            consent: session.consent.map(|consent| ConsentBody {
                recording: consent.recording,
                transcription: consent.transcription,
            }),
            created_at: rfc3339(session.created_at),
            started_at: session.started_at.map(rfc3339),
            ended_at: session.ended_at.map(rfc3339),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SessionCreated {
    session: SessionView,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SessionList {
    sessions: Vec<SessionView>,
    pagination: Pagination,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "7f6b", "room": "session-7f6b", "status": "in_progress", "agent": "assistant",
    "metadata": {}, "owner": "ann", "maxParticipants": 10, "createdAt": "2026-01-01T00:00:00Z", "startedAt": "2026-01-01T00:00:05Z",
    "active": true, "participants": 1, "agentConnected": true
}))]
pub struct SessionState {
    #[serde(flatten)]
    session: SessionView,
    /// Whether the room is there; without a LiveKit server, whether the session is in progress.
    active: bool,
    /// In the room now, without agents; null when the LiveKit server cannot be asked.
    participants: Option<u32>,
    /// Null when the LiveKit server cannot be asked.
    agent_connected: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({ "session": {
    "id": "7f6b", "status": "in_progress", "livekitRoom": "session-7f6b",
    "startedAt": "2026-01-01T00:00:05Z"
}}))]
pub struct SessionStarted {
    session: InProgress,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct InProgress {
    id: String,
    status: &'static str,
    livekit_room: String,
    started_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({ "session": {
    "id": "7f6b", "status": "completed", "endedAt": "2026-01-01T00:03:05Z", "duration": 180
}}))]
pub struct SessionEnded {
    session: Completed,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Completed {
    id: String,
    status: &'static str,
    ended_at: String,
    /// In s; 0 when it had not been started.
    duration: i64,
}

/// Create a session. Its room is made when it is started.
#[utoipa::path(
    post, path = "/api/sessions", tag = "sessions", request_body = CreateSession,
    responses((status = 201, description = "Created", body = SessionCreated), Faults, BodyFaults),
)]
pub async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Body(body): Body<CreateSession>,
) -> Result<(StatusCode, Json<SessionCreated>), ApiError> {
    let agent = body.agent.unwrap_or_else(|| app.agent_name.clone());
    if agent.chars().count() > MAX_AGENT_NAME {
        return Err(ApiError::invalid("agent: at most 128 characters"));
    }
    let metadata = Value::Object(body.metadata);
    if metadata.to_string().len() > MAX_METADATA {
        return Err(ApiError::invalid("metadata: at most 16 KiB of JSON"));
    }
    let max_participants = body.max_participants.unwrap_or(super::livekit::MAX_PARTICIPANTS);
    if !(1..=1000).contains(&max_participants) {
        return Err(ApiError::invalid("maxParticipants must be from 1 to 1000"));
    }
    let id = uuid::Uuid::new_v4().to_string();
    let new = NewSession {
        room: format!("session-{id}"),
        id,
        agent,
        metadata,
        max_participants,
        owner: principal.subject.clone(),
        created_at: clock::unix_ms(),
        ..NewSession::default()
    };
    let session = app.store.create_session(&principal.tenant, new).await?;
    audit::record(&app, &principal, "session.create", &session.id, json!({})).await?;
    Ok((StatusCode::CREATED, Json(SessionCreated { session: session.into() })))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatusFilter {
    Active,
    Completed,
    All,
}

fn status_schema() -> Object {
    one_of("active", &["active", "completed", "all"])
}

/// A parameter that is one of these words.
pub fn one_of(default: &str, words: &[&str]) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(words.iter().copied()))
        .default(Some(default.into()))
        .build()
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// active: created or in progress.
    #[param(schema_with = status_schema, required = false)]
    status: Option<StatusFilter>,
    /// From 1.
    #[param(minimum = 1, maximum = 1_000_000, default = 1)]
    page: Option<u32>,
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<u32>,
}

/// List sessions, the newest first.
#[utoipa::path(
    get, path = "/api/sessions", tag = "sessions", params(ListParams),
    responses((status = 200, description = "One page", body = SessionList), Faults),
)]
pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Params(params): Params<ListParams>,
) -> Result<Json<SessionList>, ApiError> {
    let filter = match params.status {
        None | Some(StatusFilter::Active) => SessionFilter::Active,
        Some(StatusFilter::Completed) => SessionFilter::Completed,
        Some(StatusFilter::All) => SessionFilter::All,
    };
    let page = page_request(params.page, params.limit)?;
    let query = SessionsQuery {
        owner: principal.sees(),
        kind: Some(SessionKind::Session),
        ..SessionsQuery::new(filter, page)
    };
    let found = app.store.sessions(&principal.tenant, &query).await?;
    Ok(Json(SessionList {
        sessions: found.rows.into_iter().map(Into::into).collect(),
        pagination: Pagination::new(found.total, page),
    }))
}

/// Look at a session, and who is in its room now.
#[utoipa::path(
    get, path = "/api/sessions/{id}", tag = "sessions",
    params(("id" = String, Path, description = "The session")),
    responses((status = 200, description = "The session", body = SessionState), Faults),
)]
pub async fn status(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
) -> Result<Json<SessionState>, ApiError> {
    let session = find(&app, &principal, &id).await?;
    let in_progress = session.status == SessionStatus::InProgress;
    let (active, participants, agent_connected) = match &app.livekit {
        // A room that is over, or not yet there, need not be asked about.
        Some(_) if !in_progress => (false, Some(0), Some(false)),
        Some(livekit) => match livekit.presence(&session.room).await {
            Ok(Some(here)) => (true, Some(here.participants), Some(here.agent_connected)),
            Ok(None) => (false, Some(0), Some(false)),
            // Logged there. What we know ourselves is still worth telling.
            Err(_) => (in_progress, None, None),
        },
        None => (in_progress, None, None),
    };
    Ok(Json(SessionState { session: session.into(), active, participants, agent_connected }))
}

/// Start a session: makes its room and sends the agent there. Starting it again does no harm.
#[utoipa::path(
    post, path = "/api/sessions/{id}/start", tag = "sessions",
    request_body = Option<StartSession>,
    params(("id" = String, Path, description = "The session")),
    responses(
        (status = 200, description = "In progress", body = SessionStarted), Faults, BodyFaults,
        LiveKitFaults,
    ),
)]
pub async fn start(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
    MaybeBody(body): MaybeBody<StartSession>,
) -> Result<Json<SessionStarted>, ApiError> {
    let _turn = app.turns.take(&id).await;
    let mut session = find(&app, &principal, &id).await?;
    if session.status == SessionStatus::Completed {
        return Err(Code::SessionEnded.into());
    }
    let livekit = app.livekit()?;
    // Nothing is said before this.
    let started_at = clock::unix_ms();
    if let Some(given) = body.consent {
        let consent = Consent {
            recording: given.recording,
            transcription: given.transcription,
            by: principal.actor.clone(),
            at: started_at,
        };
        app.store.set_consent(&session.tenant, &id, &consent).await?;
        audit::record(&app, &principal, "session.consent", &id, json!(given)).await?;
        session.consent = Some(consent);
    }
    let metadata = room_metadata(&session);
    livekit.create_room(&session.room, &metadata, session.max_participants).await?;
    if !session.agent.is_empty() {
        livekit.dispatch(&session.room, &session.agent, &metadata).await?;
    }
    let session = app
        .store
        .start_session(&session.tenant, &id, started_at)
        .await?
        .ok_or(ApiError::new(Code::SessionNotFound))?;
    app.hub.tell(&id, Signal::Stored);
    Ok(Json(SessionStarted {
        session: InProgress {
            id: session.id,
            status: session.status.as_str(),
            livekit_room: session.room,
            started_at: rfc3339(session.started_at.unwrap_or(started_at)),
        },
    }))
}

/// End a session: removes everybody from its room, and the room. Ending it again does no harm.
#[utoipa::path(
    post, path = "/api/sessions/{id}/end", tag = "sessions",
    params(("id" = String, Path, description = "The session")),
    responses(
        (status = 200, description = "Completed", body = SessionEnded), Faults, LiveKitFaults,
    ),
)]
pub async fn end(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
) -> Result<Json<SessionEnded>, ApiError> {
    let _turn = app.turns.take(&id).await;
    let session = find(&app, &principal, &id).await?;
    if session.status == SessionStatus::InProgress
        && let Some(livekit) = &app.livekit
    {
        livekit.delete_room(&session.room).await?;
    }
    let now = clock::unix_ms();
    let session = app
        .store
        .end_session(&session.tenant, &id, now)
        .await?
        .ok_or(ApiError::new(Code::SessionNotFound))?;
    app.hub.tell(&id, Signal::Stored);
    let ended_at = session.ended_at.unwrap_or(now);
    let lasted = session.started_at.map_or(0, |started| ended_at.saturating_sub(started));
    Ok(Json(SessionEnded {
        session: Completed {
            id: session.id,
            status: session.status.as_str(),
            ended_at: rfc3339(ended_at),
            duration: lasted.max(0) / 1000,
        },
    }))
}

/// What is done in its room needs one: ROOM_NOT_FOUND before the start, SESSION_ENDED after the end.
pub const fn check_in_progress(session: &Session) -> Result<(), ApiError> {
    match session.status {
        SessionStatus::InProgress => Ok(()),
        SessionStatus::Created => Err(ApiError::new(Code::RoomNotFound)),
        SessionStatus::Completed => Err(ApiError::new(Code::SessionEnded)),
    }
}

/// Another tenant's does not exist; another user's is not theirs.
pub async fn find(app: &App, principal: &Principal, id: &str) -> Result<Session, ApiError> {
    let session = app.store.session(&principal.tenant, id).await?;
    let session = session.ok_or(ApiError::new(Code::SessionNotFound))?;
    if !principal.may_use(&session) {
        return Err(Code::Forbidden.into());
    }
    Ok(session)
}

/// What the room, and so the worker, is told: the session's metadata, and what has been agreed to.
pub fn room_metadata(session: &Session) -> String {
    let mut metadata = session.metadata.clone();
    if let (Some(fields), Some(consent)) = (metadata.as_object_mut(), &session.consent) {
        let told = json!({
            "recording": consent.recording, "transcription": consent.transcription,
        });
        fields.insert("consent".into(), told);
    }
    metadata.to_string()
}

/// In UTC; the epoch itself for a time that no calendar has.
pub fn rfc3339(unix_ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .format(&Rfc3339)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc_with_their_milliseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_767_225_602_123), "2026-01-01T00:00:02.123Z");
        assert_eq!(rfc3339(i64::MAX), "1970-01-01T00:00:00Z");
    }
}
