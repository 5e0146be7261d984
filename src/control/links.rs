//! Magic links: who has one and its password joins a session, once.

use std::time::Duration;

use argon2::{
    Argon2, PasswordVerifier,
    password_hash::{PasswordHasher, phc::PasswordHash},
};
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
    audit,
    auth::Principal,
    error::{ApiError, BodyFaults, Code, Faults, LiveKitFaults},
    extract::{Body, Id},
    livekit::TokenRequest,
    sessions::{check_in_progress, find, rfc3339},
    tokens::{TokenView, check_name, room_has_a_place},
};
use crate::{
    clock,
    store::{SessionStatus, links::Link},
};

const TTL_MS: i64 = 24 * 60 * 60 * 1000;
const MAX_ATTEMPTS: u32 = 3;
const TOKEN_TTL: Duration = Duration::from_hours(1);

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({ "participantName": "Ann" }))]
pub struct CreateLink {
    /// Shown to the others.
    #[schema(min_length = 1, max_length = 128, pattern = r"\S")]
    participant_name: String,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "token": "0f8fad5b-d9cb-469f-a165-70867728950e", "url": "/join/0f8fad5b-d9cb-469f-a165-70867728950e",
    "password": "48203951", "expiresAt": "2026-01-02T00:00:00Z"
}))]
#[allow(missing_debug_implementations, reason = "the password must not get into a log")]
pub struct LinkView {
    token: String,
    /// Where to post the password; absolute when ANTIPHON_PUBLIC_URL is set.
    url: String,
    /// Eight digits, told here alone: send it by another way than the link.
    password: String,
    expires_at: String,
}

/// Make a link with which one person without an account joins the session once, within 24 hours.
#[utoipa::path(
    post, path = "/api/sessions/{id}/links", tag = "links", request_body = CreateLink,
    params(("id" = String, Path, description = "The session")),
    responses(
        (status = 201, description = "The link", body = LinkView), Faults, BodyFaults,
        (status = 409, description = "SESSION_ENDED", body = super::error::ErrorBody),
    ),
)]
pub async fn create(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
    Body(body): Body<CreateLink>,
) -> Result<impl IntoResponse, ApiError> {
    let name = check_name(&body.participant_name)?.to_owned();
    let session = find(&app, &principal, &id).await?;
    if session.status == SessionStatus::Completed {
        return Err(Code::SessionEnded.into());
    }
    let password = password()?;
    let now = clock::unix_ms();
    let link = Link {
        token: uuid::Uuid::new_v4().to_string(),
        tenant: session.tenant,
        session_id: session.id,
        password_hash: hash(password.clone()).await?,
        name,
        attempts: 0,
        created_at: now,
        expires_at: now + TTL_MS,
        used_at: None,
    };
    app.store.create_link(&link).await?;
    audit::record(&app, &principal, "link.create", &id, json!({})).await?;
    let view = LinkView {
        url: app.public(&format!("/join/{}", link.token)),
        token: link.token,
        password,
        expires_at: rfc3339(link.expires_at),
    };
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(view)))
}

#[derive(Deserialize, ToSchema)]
#[schema(example = json!({ "password": "48203951" }))]
#[allow(missing_debug_implementations, reason = "the password must not get into a log")]
pub struct Join {
    password: String,
}

/// Use a link: the password against a token for the session's room.
///
/// WRONG_PASSWORD 401, LINK_USED 403, LINK_EXPIRED 404 (too old, or there is no such link),
/// ROOM_NOT_FOUND 404 (the session has not begun), TOO_MANY_ATTEMPTS 429 (three wrong passwords:
/// the link is dead).
#[utoipa::path(
    post, path = "/join/{token}", tag = "links", request_body = Join,
    params(("token" = String, Path, description = "From the link")),
    responses(
        (status = 200, description = "The token", body = TokenView), Faults, BodyFaults,
        LiveKitFaults,
    ),
)]
pub async fn join(
    State(app): State<App>,
    Id(token): Id,
    Body(body): Body<Join>,
) -> Result<impl IntoResponse, ApiError> {
    let livekit = app.livekit()?;
    let link = app.store.link(&token).await?.ok_or(ApiError::new(Code::LinkExpired))?;
    if link.used_at.is_some() {
        return Err(Code::LinkUsed.into());
    }
    if link.expires_at <= clock::unix_ms() {
        return Err(Code::LinkExpired.into());
    }
    let session = app.store.session(&link.tenant, &link.session_id).await?;
    let session = session.ok_or(ApiError::new(Code::LinkExpired))?;
    check_in_progress(&session)?;
    if !app.store.take_attempt(&token, MAX_ATTEMPTS).await? {
        return Err(Code::TooManyAttempts.into());
    }
    if !matches(body.password, link.password_hash).await? {
        return Err(Code::WrongPassword.into());
    }
    room_has_a_place(livekit, &session).await?;
    if !app.store.use_link(&token, clock::unix_ms()).await? {
        return Err(Code::LinkUsed.into());
    }
    let token = livekit.token(&TokenRequest {
        room: session.room.clone(),
        identity: format!("guest-{}", uuid::Uuid::new_v4().simple()),
        name: link.name,
        can_publish: true,
        can_subscribe: true,
        can_publish_data: true,
        can_update_own_metadata: false,
        ttl: TOKEN_TTL,
    })?;
    let view = TokenView::new(token, livekit.client_url(), session.room);
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(view)))
}

/// A multiple of 10^8 that fits into 32 bits: what is beyond it would make some numbers more likely.
const FAIR: u32 = 4_200_000_000;

/// Eight digits, each as likely as any other.
fn password() -> Result<String, ApiError> {
    let random = ring::rand::SystemRandom::new();
    loop {
        let mut bytes = [0; 4];
        ring::rand::SecureRandom::fill(&random, &mut bytes).map_err(|_| {
            tracing::error!("the system gives no random numbers");
            ApiError::new(Code::Internal)
        })?;
        let number = u32::from_le_bytes(bytes);
        if number < FAIR {
            return Ok(format!("{:08}", number % 100_000_000));
        }
    }
}

/// On a thread of its own: it is meant to be slow.
async fn hash(password: String) -> Result<String, ApiError> {
    let hashed = tokio::task::spawn_blocking(move || {
        Argon2::default().hash_password(password.as_bytes()).map(|hash| hash.to_string())
    })
    .await;
    hashed.ok().and_then(Result::ok).ok_or_else(|| {
        tracing::error!("a link's password cannot be hashed");
        ApiError::new(Code::Internal)
    })
}

async fn matches(password: String, hash: String) -> Result<bool, ApiError> {
    let checked = tokio::task::spawn_blocking(move || {
        PasswordHash::new(&hash)
            .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
    });
    checked.await.map_err(|_| ApiError::new(Code::Internal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_eight_digits_and_only_its_hash_is_kept() {
        let password = password().unwrap();
        assert!(password.len() == 8 && password.bytes().all(|byte| byte.is_ascii_digit()));
        let hash = hash(password.clone()).await.unwrap();
        assert!(hash.starts_with("$argon2id$") && !hash.contains(&password));
        assert!(matches(password, hash.clone()).await.unwrap());
        assert!(!matches("00000000x".into(), hash).await.unwrap());
        assert!(!matches("1".into(), "nothing".into()).await.unwrap());
    }
}
