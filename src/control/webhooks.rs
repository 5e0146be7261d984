//! What the LiveKit server tells: rooms and egress as they come and go.

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, header},
};
use livekit_api::{
    access_token::TokenVerifier,
    webhooks::{WebhookError, WebhookReceiver},
};
use livekit_protocol::{EgressInfo, EgressStatus, WebhookEvent, participant_info::Kind};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    app::App,
    error::{ApiError, Code, ErrorBody},
    live::Signal,
};
use crate::{
    clock,
    store::webhooks::{Applied, RoomChange, RoomEvent},
};

#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({ "applied": true }))]
pub struct WebhookAnswer {
    /// false: told before, or about a room that is no session.
    applied: bool,
}

/// The LiveKit server's way in: set this address in its configuration, under `webhook.urls`.
///
/// Its own signature takes the place of a bearer. A repeated event changes nothing.
#[utoipa::path(
    post, path = "/api/webhooks/livekit", tag = "operations",
    request_body(
        content = Object, content_type = "application/webhook+json",
        description = "A WebhookEvent of LiveKit",
        example = json!({ "event": "room_started", "id": "EV_1", "room": { "name": "session-7f6b" } })
    ),
    params(("Authorization" = String, Header, description = "The server's token over the body")),
    responses(
        (status = 200, description = "Acted on, or known", body = WebhookAnswer),
        (status = 400, description = "INVALID_REQUEST: no WebhookEvent", body = ErrorBody),
        (status = 401, description = "UNAUTHORIZED: not signed, too late, or for another body",
         body = ErrorBody),
        (status = 413, description = "PAYLOAD_TOO_LARGE", body = ErrorBody),
        (status = 500, description = "INTERNAL: it comes again", body = ErrorBody),
        (status = 503, description = "LIVEKIT_NOT_CONFIGURED", body = ErrorBody),
    ),
)]
pub async fn livekit(
    State(app): State<App>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Json<WebhookAnswer>, ApiError> {
    let livekit = app.livekit()?;
    let body = body.map_err(|_| ApiError::new(Code::PayloadTooLarge))?;
    let unsigned = || ApiError::new(Code::Unauthorized);
    let signature = headers.get(header::AUTHORIZATION).ok_or_else(unsigned)?;
    let signature = signature.to_str().map_err(|_| unsigned())?;
    let text = std::str::from_utf8(&body).map_err(|_| unsigned())?;
    let (key, secret) = livekit.keys();
    let receiver = WebhookReceiver::new(TokenVerifier::with_api_key(key, secret));
    let event = receiver.receive(text, signature.trim()).map_err(|error| match error {
        WebhookError::InvalidData(_) => ApiError::invalid("The body is no webhook event"),
        WebhookError::InvalidSignature
        | WebhookError::InvalidBase64(_)
        | WebhookError::InvalidAuth(_) => unsigned(),
    })?;
    if event.id.is_empty() {
        return Err(ApiError::invalid("The event has no id"));
    }
    let Some(event) = read(event, clock::unix_ms()) else {
        return Ok(Json(WebhookAnswer { applied: false }));
    };
    let applied = app.store.apply_webhook(&event).await?;
    metrics::counter!("antiphon_webhooks_total").increment(1);
    if let Applied::Session(session) = &applied {
        app.hub.tell(&session.id, Signal::Stored);
    }
    Ok(Json(WebhookAnswer { applied: matches!(applied, Applied::Session(_)) }))
}

/// `None`: it is about no room.
fn read(event: WebhookEvent, received_at: i64) -> Option<RoomEvent> {
    let egress = event.egress_info;
    let (room, sid) = match (&event.room, &egress) {
        (Some(room), _) => (room.name.clone(), room.sid.clone()),
        (None, Some(egress)) => (egress.room_name.clone(), egress.room_id.clone()),
        (None, None) => return None,
    };
    let participant = event.participant.unwrap_or_default();
    let agent = participant.kind() == Kind::Agent;
    let change = match event.event.as_str() {
        "room_started" => RoomChange::Started,
        "room_finished" => RoomChange::Finished,
        "participant_joined" => {
            RoomChange::Joined { identity: participant.identity, name: participant.name, agent }
        }
        "participant_left" => RoomChange::Left { identity: participant.identity },
        "egress_started" => RoomChange::EgressStarted,
        "egress_ended" => ended(&egress.unwrap_or_default()),
        _ => RoomChange::Other,
    };
    // In s, and 0 where an old server does not say.
    let at = match event.created_at {
        0 => received_at,
        at => at.saturating_mul(1000),
    };
    Some(RoomEvent { id: event.id, room, sid, at, received_at, change })
}

/// Durations are in ns.
pub fn ended(egress: &EgressInfo) -> RoomChange {
    let file = egress.file_results.first();
    RoomChange::EgressEnded {
        egress_id: egress.egress_id.clone(),
        failed: matches!(egress.status(), EgressStatus::EgressFailed | EgressStatus::EgressAborted),
        duration_ms: file.map_or(0, |file| file.duration / 1_000_000),
        file_size: file.map_or(0, |file| file.size),
    }
}
