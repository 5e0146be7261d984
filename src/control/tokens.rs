//! LiveKit tokens for a session's participants.

use std::time::Duration;

use axum::{Extension, Json, extract::State, http::header, response::IntoResponse};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::{
    app::App,
    auth::Principal,
    error::{ApiError, BodyFaults, Code, Faults, LiveKitFaults},
    extract::{Body, Id},
    livekit::{LiveKit, TokenRequest},
    sessions::{check_in_progress, find},
};
use crate::store::{Session, tenants::Role};

const TTL: Duration = Duration::from_hours(1);
/// Of a token that only sends, and of one that only listens.
const CLIENT_TTL: Duration = Duration::from_mins(5);
const AGENT_TTL: Duration = Duration::from_mins(10);
const MAX_NAME: usize = 128;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// To take part, for an hour.
    #[default]
    Participant,
    /// To send only, for 5 minutes.
    Client,
    /// To listen only, for 10 minutes, as `cloud-agent:{user}`.
    Agent,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({ "participantName": "Ann", "canPublish": true }))]
pub struct CreateToken {
    /// Shown to the others.
    #[schema(min_length = 1, max_length = 128, pattern = r"\S")]
    participant_name: String,
    /// What it is for; for client and agent, the grants below can only be fewer.
    #[serde(default)]
    #[schema(inline, default = "participant")]
    profile: Profile,
    #[serde(default = "yes")]
    #[schema(default = true)]
    can_publish: bool,
    #[serde(default = "yes")]
    #[schema(default = true)]
    can_subscribe: bool,
    #[serde(default = "yes")]
    #[schema(default = true)]
    can_publish_data: bool,
    #[serde(default = "yes")]
    #[schema(default = true)]
    can_update_own_metadata: bool,
}

const fn yes() -> bool {
    true
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "token": "eyJhbGciOi…", "url": "wss://livekit.example.com", "roomName": "session-7f6b"
}))]
#[allow(missing_debug_implementations, reason = "the token must not get into a log")]
pub struct TokenView {
    token: String,
    /// Where to connect.
    url: String,
    room_name: String,
}

/// Get a token to join a session that is in progress; each call gives a new one.
///
/// A user's token is for their own id; with an API key or the service token, for a new identity.
/// ROOM_FULL 409 says how many are there and how many may be.
#[utoipa::path(
    post, path = "/api/sessions/{id}/livekit-token", tag = "sessions", request_body = CreateToken,
    params(("id" = String, Path, description = "The session")),
    responses((status = 200, description = "The token", body = TokenView), Faults, BodyFaults,
        LiveKitFaults),
)]
pub async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
    Body(body): Body<CreateToken>,
) -> Result<impl IntoResponse, ApiError> {
    let name = check_name(&body.participant_name)?;
    let session = find(&app, &principal, &id).await?;
    let livekit = app.livekit()?;
    // Whoever joined before would make the room, without its limits and without the agent.
    check_in_progress(&session)?;
    room_has_a_place(livekit, &session).await?;
    // A user is themselves in every room, so that what they say can be found and erased.
    let user = match principal.role {
        Role::Participant => principal.subject.clone(),
        Role::Agent | Role::Admin => format!("user-{}", uuid::Uuid::new_v4().simple()),
    };
    let (sends, listens) = match body.profile {
        Profile::Participant => (true, true),
        Profile::Client => (true, false),
        Profile::Agent => (false, true),
    };
    let token = livekit.token(&TokenRequest {
        room: session.room.clone(),
        identity: match body.profile {
            Profile::Participant | Profile::Client => user,
            Profile::Agent => format!("cloud-agent:{user}"),
        },
        name: name.to_owned(),
        can_publish: body.can_publish && sends,
        can_subscribe: body.can_subscribe && listens,
        can_publish_data: body.can_publish_data && sends,
        can_update_own_metadata: body.can_update_own_metadata && sends && listens,
        ttl: match body.profile {
            Profile::Participant => TTL,
            Profile::Client => CLIENT_TTL,
            Profile::Agent => AGENT_TTL,
        },
    })?;
    let view = TokenView::new(token, livekit.client_url(), session.room);
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(view)))
}

impl TokenView {
    pub const fn new(token: String, url: String, room_name: String) -> Self {
        Self { token, url, room_name }
    }
}

pub fn check_name(name: &str) -> Result<&str, ApiError> {
    if name.trim().is_empty() || name.chars().count() > MAX_NAME {
        return Err(ApiError::invalid("participantName must have from 1 to 128 characters"));
    }
    Ok(name.trim())
}

/// Said before somebody connects in vain; the server's own limit is what holds.
pub async fn room_has_a_place(livekit: &LiveKit, session: &Session) -> Result<(), ApiError> {
    let here = livekit.presence(&session.room).await?;
    let current = here.map_or(0, |here| here.participants);
    if current < session.max_participants {
        return Ok(());
    }
    Err(ApiError::new(Code::RoomFull).with_details(json!({
        "current": current,
        "max": session.max_participants,
        "suggestions": [
            "Try again when somebody has left",
            "Create a session with a greater maxParticipants",
        ],
    })))
}
