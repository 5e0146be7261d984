//! LiveKit tokens for a session's participants.

use std::time::Duration;

use axum::{Extension, Json, extract::State, http::header, response::IntoResponse};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    app::App,
    auth::Principal,
    error::{ApiError, Code, Faults, LiveKitFaults},
    extract::{Body, SessionId},
    livekit::TokenRequest,
    sessions::find,
};
use crate::store::SessionStatus;

const TTL: Duration = Duration::from_hours(1);
const MAX_NAME: usize = 128;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({ "participantName": "Ann", "canPublish": true }))]
pub struct CreateToken {
    /// Shown to the others.
    participant_name: String,
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

/// Get a token to join a session that is in progress. It lasts an hour; each call gives a new one,
/// for a new identity.
#[utoipa::path(
    post, path = "/api/sessions/{id}/livekit-token", tag = "sessions", request_body = CreateToken,
    params(("id" = String, Path, description = "The session")),
    responses((status = 200, description = "The token", body = TokenView), Faults, LiveKitFaults),
    security(("bearer" = [])),
)]
pub async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    SessionId(id): SessionId,
    Body(body): Body<CreateToken>,
) -> Result<impl IntoResponse, ApiError> {
    let name = body.participant_name.trim();
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(ApiError::invalid("participantName must have from 1 to 128 bytes"));
    }
    let session = find(&app, &principal, &id).await?;
    let livekit = app.livekit()?;
    match session.status {
        SessionStatus::InProgress => {}
        // Whoever joined now would make the room, without its limits and without the agent.
        SessionStatus::Created => return Err(Code::RoomNotFound.into()),
        SessionStatus::Completed => return Err(Code::SessionEnded.into()),
    }
    let token = livekit.token(&TokenRequest {
        room: session.room.clone(),
        identity: format!("user-{}", uuid::Uuid::new_v4().simple()),
        name: name.to_owned(),
        can_publish: body.can_publish,
        can_subscribe: body.can_subscribe,
        can_publish_data: body.can_publish_data,
        can_update_own_metadata: body.can_update_own_metadata,
        ttl: TTL,
    })?;
    let view = TokenView { token, url: livekit.client_url(), room_name: session.room };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(view)))
}
