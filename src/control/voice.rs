//! Voice sessions: one user, one agent, made and joined in one call. These routes alone are
//! snake_case.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::{
    app::App,
    auth::Principal,
    error::{ApiError, BodyFaults, Code, Faults, LiveKitFaults},
    extract::{Body, Id},
    live::Signal,
    livekit::TokenRequest,
    sessions::rfc3339,
};
use crate::{
    clock,
    store::{
        NewSession, PageRequest, Session, SessionFilter, SessionKind, SessionStatus, SessionsQuery,
    },
};

const TTL: Duration = Duration::from_hours(6);
/// LiveKit does not count the agent; the token is the owner's alone.
const MAX_PARTICIPANTS: u32 = 2;
const MAX_LISTED: u32 = 500;
/// Of a user's id in a room's name.
const MAX_USER: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AgentType {
    Workout,
    Diet,
    Supplement,
    Tracker,
    Scheduler,
    General,
}

impl AgentType {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Workout => "workout",
            Self::Diet => "diet",
            Self::Supplement => "supplement",
            Self::Tracker => "tracker",
            Self::Scheduler => "scheduler",
            Self::General => "general",
        }
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({ "agent_type": "workout", "mode": "converse" }))]
pub struct CreateVoiceSession {
    agent_type: AgentType,
    /// converse or transcribe, or what the agent understands by it.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 64)]
    mode: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "room_name": "fitness-voice-ann-1a2b3c4d", "token": "eyJhbGciOi…",
    "livekit_url": "wss://livekit.example.com", "agent_type": "workout",
    "expires_at": "2026-01-01T06:00:00Z"
}))]
#[allow(missing_debug_implementations, reason = "the token must not get into a log")]
pub struct VoiceSessionCreated {
    room_name: String,
    /// To join it as the user, for 6 hours.
    token: String,
    livekit_url: String,
    agent_type: AgentType,
    expires_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "room_name": "fitness-voice-ann-1a2b3c4d", "active": true, "participants": 1,
    "agent_connected": true, "created_at": "2026-01-01T00:00:00Z"
}))]
pub struct VoiceSessionState {
    room_name: String,
    active: bool,
    /// Without agents.
    participants: u32,
    agent_connected: bool,
    created_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "room_name": "fitness-voice-ann-1a2b3c4d", "agent_type": "workout", "participants": 1,
    "created_at": "2026-01-01T00:00:00Z"
}))]
pub struct VoiceSessionListed {
    room_name: String,
    agent_type: String,
    /// Without agents.
    participants: u32,
    created_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({ "status": "ended", "room_name": "fitness-voice-ann-1a2b3c4d" }))]
pub struct VoiceSessionEnded {
    status: &'static str,
    room_name: String,
}

/// Make a room for the user and an agent of this type, send the agent there, and get the token.
#[utoipa::path(
    post, path = "/api/voice-sessions", tag = "voice-sessions",
    request_body = CreateVoiceSession,
    responses(
        (status = 201, description = "Made", body = VoiceSessionCreated), Faults, BodyFaults,
        LiveKitFaults,
    ),
)]
pub async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Body(body): Body<CreateVoiceSession>,
) -> Result<impl IntoResponse, ApiError> {
    let mode = body.mode.unwrap_or_else(|| "converse".into());
    if mode.is_empty() || mode.chars().count() > 64 {
        return Err(ApiError::invalid("mode must have from 1 to 64 characters"));
    }
    let livekit = app.livekit()?;
    let agent_type = body.agent_type.as_str();
    let agent = app.settings.voice_agents.get(agent_type).unwrap_or(&app.agent_name);
    let identity = match principal.subject.as_str() {
        "" => format!("user-{}", uuid::Uuid::new_v4().simple()),
        subject => subject.to_owned(),
    };
    let id = uuid::Uuid::new_v4();
    let now = clock::unix_ms();
    let room = room_name(&app.settings.voice_prefix, &identity, &id);
    let metadata = json!({
        "user_id": identity, "agent_type": agent_type, "mode": mode, "created_at": rfc3339(now),
    });
    let new = NewSession {
        id: id.to_string(),
        room: room.clone(),
        owner: principal.subject.clone(),
        kind: SessionKind::Voice,
        agent_type: agent_type.to_owned(),
        agent: agent.clone(),
        metadata: metadata.clone(),
        max_participants: MAX_PARTICIPANTS,
        created_at: now,
    };
    let session = app.store.create_session(&principal.tenant, new).await?;
    let made = async {
        let metadata = metadata.to_string();
        livekit.create_room(&room, &metadata, MAX_PARTICIPANTS).await?;
        if !agent.is_empty() {
            livekit.dispatch(&room, agent, &metadata).await?;
        }
        Ok::<_, ApiError>(())
    };
    if let Err(error) = made.await {
        app.store.end_session(&session.tenant, &session.id, now).await?;
        return Err(error);
    }
    app.store.start_session(&session.tenant, &session.id, now).await?;
    let name = if principal.email.is_empty() { &identity } else { &principal.email };
    let token = livekit.token(&TokenRequest {
        room: room.clone(),
        identity: identity.clone(),
        name: name.clone(),
        can_publish: true,
        can_subscribe: true,
        can_publish_data: true,
        can_update_own_metadata: false,
        ttl: TTL,
    })?;
    let view = VoiceSessionCreated {
        room_name: room,
        token,
        livekit_url: livekit.client_url(),
        agent_type: body.agent_type,
        expires_at: rfc3339(now + TTL.as_millis() as i64),
    };
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(view)))
}

/// `{prefix}-{user}-{hex}`; of the user's id, what can stand in a path.
fn room_name(prefix: &str, user: &str, id: &uuid::Uuid) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let user: String = user.chars().take(MAX_USER).map(fits).collect();
    let hex = id.simple().to_string();
    format!("{prefix}-{user}-{}", &hex[..16])
}

/// List the user's own voice sessions that are not over, the newest first.
#[utoipa::path(
    get, path = "/api/voice-sessions", tag = "voice-sessions",
    responses(
        (status = 200, description = "At most 500", body = [VoiceSessionListed]), Faults,
        LiveKitFaults,
    ),
)]
pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
) -> Result<Json<Vec<VoiceSessionListed>>, ApiError> {
    let query = SessionsQuery {
        filter: SessionFilter::Active,
        owner: principal.sees(),
        kind: Some(SessionKind::Voice),
        page: PageRequest { page: 1, limit: MAX_LISTED },
    };
    let found = app.store.sessions(&principal.tenant, &query).await?;
    let names = found.rows.iter().map(|session| session.room.clone()).collect();
    let counts = match &app.livekit {
        Some(livekit) if !found.rows.is_empty() => livekit.counts(names).await?,
        _ => Default::default(),
    };
    let rows = found.rows.into_iter().map(|session| VoiceSessionListed {
        participants: counts.get(&session.room).copied().unwrap_or(0),
        room_name: session.room,
        agent_type: session.agent_type,
        created_at: rfc3339(session.created_at),
    });
    Ok(Json(rows.collect()))
}

/// Look at a voice session, and who is in its room now.
#[utoipa::path(
    get, path = "/api/voice-sessions/{room}", tag = "voice-sessions",
    params(("room" = String, Path, description = "room_name")),
    responses(
        (status = 200, description = "Its state", body = VoiceSessionState), Faults, LiveKitFaults,
    ),
)]
pub async fn status(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(room): Id,
) -> Result<Json<VoiceSessionState>, ApiError> {
    let session = find(&app, &principal, &room).await?;
    let here = match session.status {
        SessionStatus::InProgress => app.livekit()?.presence(&room).await?,
        SessionStatus::Created | SessionStatus::Completed => None,
    };
    Ok(Json(VoiceSessionState {
        room_name: room,
        active: here.is_some(),
        participants: here.map_or(0, |here| here.participants),
        agent_connected: here.is_some_and(|here| here.agent_connected),
        created_at: rfc3339(session.created_at),
    }))
}

/// End a voice session: removes everybody from its room, and the room.
#[utoipa::path(
    delete, path = "/api/voice-sessions/{room}", tag = "voice-sessions",
    params(("room" = String, Path, description = "room_name")),
    responses(
        (status = 200, description = "Ended", body = VoiceSessionEnded), Faults, LiveKitFaults,
    ),
)]
pub async fn end(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(room): Id,
) -> Result<Json<VoiceSessionEnded>, ApiError> {
    let session = find(&app, &principal, &room).await?;
    let _turn = app.turns.take(&session.id).await;
    if session.status == SessionStatus::InProgress {
        app.livekit()?.delete_room(&room).await?;
    }
    app.store.end_session(&session.tenant, &session.id, clock::unix_ms()).await?;
    app.hub.tell(&session.id, Signal::Stored);
    Ok(Json(VoiceSessionEnded { status: "ended", room_name: room }))
}

async fn find(app: &App, principal: &Principal, room: &str) -> Result<Session, ApiError> {
    let session = app.store.session_of_room(room).await?;
    let session = session
        .filter(|session| session.tenant == principal.tenant)
        .filter(|session| session.kind == SessionKind::Voice)
        // What has been ended is gone.
        .filter(|session| session.status != SessionStatus::Completed)
        .ok_or(ApiError::new(Code::RoomNotFound))?;
    if !principal.may_use(&session) {
        return Err(Code::Forbidden.into());
    }
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_named_after_its_user_whatever_their_id_is() {
        let id = uuid::Uuid::nil();
        assert_eq!(room_name("fitness-voice", "u1", &id), "fitness-voice-u1-0000000000000000");
        let odd = room_name("v", "auth0|a/b c?é", &id);
        assert_eq!(odd, "v-auth0-a-b-c---0000000000000000");
        assert!(room_name("v", &"x".repeat(500), &id).len() < 100);
    }
}
