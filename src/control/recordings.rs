//! Recordings of sessions: made by LiveKit Egress or by the worker, played back in parts.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use ring::hmac;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::{
    app::App,
    audit,
    auth::{Principal, hex},
    error::{ApiError, BodyFaults, Code, Faults, LiveKitFaults},
    extract::{Id, Ids, MaybeBody, Params},
    range::{self, Ranges},
    sessions::{check_in_progress, find, rfc3339},
    webhooks,
};
use crate::{
    clock,
    recording::storage::StorageError,
    store::{
        Recording,
        recordings::{NewRecording, RecordingEnd, RecordingSource, RecordingStatus},
        tenants::NewAudit,
        webhooks::RoomChange,
    },
};

const SIGNED_S: u32 = 3600;
const MAX_SIGNED_S: u32 = 24 * 3600;

#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "5f1c", "filename": "recording-1767225602123.mp4", "duration": 61_000,
    "fileSize": 1_048_576, "trackType": "mixed", "status": "complete",
    "createdAt": "2026-01-01T00:00:05Z"
}))]
pub struct RecordingView {
    id: String,
    filename: String,
    /// In ms; 0 while it is being made.
    duration: i64,
    /// In bytes; 0 while it is being made.
    file_size: i64,
    /// mixed: everybody together; stereo: users on the left, the agent on the right.
    track_type: String,
    /// active, complete or failed.
    status: &'static str,
    created_at: String,
}

impl From<Recording> for RecordingView {
    fn from(row: Recording) -> Self {
        Self {
            id: row.id,
            filename: row.filename,
            duration: row.duration_ms,
            file_size: row.file_size,
            track_type: row.track_type,
            status: row.status.as_str(),
            created_at: rfc3339(row.created_at),
        }
    }
}

/// List a session's recordings, the oldest first.
#[utoipa::path(
    get, path = "/api/sessions/{id}/recordings", tag = "recordings",
    params(("id" = String, Path, description = "The session")),
    responses((status = 200, description = "All of them", body = [RecordingView]), Faults),
)]
pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
) -> Result<Json<Vec<RecordingView>>, ApiError> {
    let session = find(&app, &principal, &id).await?;
    let rows = app.store.recordings(&session.tenant, &id).await?;
    audit::record(&app, &principal, "recording.list", &id, json!({})).await?;
    Ok(Json(rows.into_iter().map(Into::into).collect()))
}

#[derive(Debug, Serialize, ToSchema)]
pub struct RecordingAnswer {
    recording: RecordingView,
}

/// Record the session by LiveKit Egress, if its people have agreed to that.
#[utoipa::path(
    post, path = "/api/sessions/{id}/recordings", tag = "recordings",
    params(("id" = String, Path, description = "The session")),
    responses(
        (status = 201, description = "It is being recorded", body = RecordingAnswer), Faults,
        LiveKitFaults,
    ),
)]
pub async fn start(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
) -> Result<(StatusCode, Json<RecordingAnswer>), ApiError> {
    let _turn = app.turns.take(&id).await;
    let session = find(&app, &principal, &id).await?;
    check_in_progress(&session)?;
    if !session.consent.as_ref().is_some_and(|consent| consent.recording) {
        return Err(Code::ConsentRequired.into());
    }
    let livekit = app.livekit()?;
    let known = app.store.recordings(&session.tenant, &id).await?;
    let by_egress = |row: &Recording| row.source == RecordingSource::Egress;
    if known.iter().any(|row| by_egress(row) && row.status == RecordingStatus::Active) {
        return Err(Code::AlreadyRecording.into());
    }
    let now = clock::unix_ms();
    let filename = format!("recording-{now}.mp4");
    let object_key = format!("recordings/sessions/{id}/{filename}");
    let egress_id =
        livekit.start_egress(&session.room, &object_key, app.settings.s3.as_ref()).await?;
    let new = NewRecording {
        id: uuid::Uuid::new_v4().to_string(),
        filename,
        object_key,
        track_type: "mixed".into(),
        source: RecordingSource::Egress,
        status: RecordingStatus::Active,
        egress_id: Some(egress_id),
        encrypted: false,
        duration_ms: 0,
        file_size: 0,
        created_at: now,
        ended_at: None,
    };
    app.store.add_recording(&session.tenant, &id, &new).await?;
    audit::record(&app, &principal, "recording.start", &new.id, json!({ "session": id })).await?;
    let recording = found(&app, &session.tenant, &id, &new.id).await?;
    Ok((StatusCode::CREATED, Json(RecordingAnswer { recording: recording.into() })))
}

/// Stop a recording. Stopping it again does no harm.
#[utoipa::path(
    post, path = "/api/sessions/{id}/recordings/{rid}/stop", tag = "recordings",
    params(
        ("id" = String, Path, description = "The session"),
        ("rid" = String, Path, description = "The recording"),
    ),
    responses(
        (status = 200, description = "It has ended", body = RecordingAnswer), Faults,
        LiveKitFaults,
    ),
)]
pub async fn stop(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Ids(id, rid): Ids,
) -> Result<Json<RecordingAnswer>, ApiError> {
    let session = find(&app, &principal, &id).await?;
    let recording = found(&app, &session.tenant, &id, &rid).await?;
    if recording.status == RecordingStatus::Active
        && let Some(egress_id) = &recording.egress_id
    {
        let now = clock::unix_ms();
        let info = app.livekit()?.stop_egress(egress_id).await?;
        let told = info.as_ref().map(webhooks::ended);
        let mut end = RecordingEnd {
            status: RecordingStatus::Complete,
            duration_ms: now.saturating_sub(recording.created_at),
            file_size: 0,
            at: now,
        };
        if let Some(RoomChange::EgressEnded { failed, duration_ms, file_size, .. }) = told {
            if failed {
                end.status = RecordingStatus::Failed;
            }
            // Not known before the file is written: then the webhook says it.
            if duration_ms > 0 {
                end.duration_ms = duration_ms;
            }
            end.file_size = file_size;
        }
        app.store.end_recording(&session.tenant, &rid, end).await?;
    }
    let recording = found(&app, &session.tenant, &id, &rid).await?;
    let described = json!({
        "session": id, "recording": rid, "room": session.room, "createdAt": rfc3339(recording.created_at),
        "durationMs": recording.duration_ms, "consent": session.consent,
    });
    let name = format!("recordings/sessions/{id}/{}.metadata.json", recording.filename);
    app.storage.put(&name, described.to_string().into()).await?;
    audit::record(&app, &principal, "recording.stop", &rid, json!({ "session": id })).await?;
    Ok(Json(RecordingAnswer { recording: recording.into() }))
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
#[schema(example = json!({ "expiresInSeconds": 3600 }))]
pub struct SignUrl {
    #[schema(default = 3600, minimum = 1, maximum = 86400)]
    expires_in_seconds: Option<u32>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "url": "https://control.example.com/api/recordings/5f1c/stream?tenant=default&expires=1767229200&signature=9b1d…",
    "expiresAt": "2026-01-01T01:00:00Z"
}))]
#[allow(missing_debug_implementations, reason = "the signature must not get into a log")]
pub struct SignedUrl {
    /// Absolute when ANTIPHON_PUBLIC_URL is set.
    url: String,
    expires_at: String,
}

/// Get an address that plays the recording without a bearer, for a while.
#[utoipa::path(
    post, path = "/api/sessions/{id}/recordings/{rid}/url", tag = "recordings",
    request_body = Option<SignUrl>,
    params(
        ("id" = String, Path, description = "The session"),
        ("rid" = String, Path, description = "The recording"),
    ),
    responses((status = 200, description = "The address", body = SignedUrl), Faults, BodyFaults),
)]
pub async fn sign(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Ids(id, rid): Ids,
    MaybeBody(body): MaybeBody<SignUrl>,
) -> Result<impl IntoResponse, ApiError> {
    let seconds = body.expires_in_seconds.unwrap_or(SIGNED_S);
    if !(1..=MAX_SIGNED_S).contains(&seconds) {
        return Err(ApiError::invalid("expiresInSeconds must be from 1 to 86400"));
    }
    let session = find(&app, &principal, &id).await?;
    found(&app, &session.tenant, &id, &rid).await?;
    let expires = clock::unix_ms() / 1000 + i64::from(seconds);
    let signature =
        hex(hmac::sign(&app.url_key, signed_text(&session.tenant, &rid, expires).as_bytes())
            .as_ref());
    let path = format!(
        "/api/recordings/{rid}/stream?tenant={}&expires={expires}&signature={signature}",
        session.tenant
    );
    audit::record(&app, &principal, "recording.url", &rid, json!({ "seconds": seconds })).await?;
    let view = SignedUrl { url: app.public(&path), expires_at: rfc3339(expires * 1000) };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(view)))
}

fn signed_text(tenant: &str, recording: &str, expires: i64) -> String {
    format!("{tenant}\n{recording}\n{expires}")
}

/// Whether a request shows a signature in place of a bearer.
pub fn is_signed(request: &Request) -> bool {
    request
        .uri()
        .query()
        .is_some_and(|query| query.split('&').any(|it| it.starts_with("signature=")))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(missing_debug_implementations, reason = "the signature must not get into a log")]
pub struct StreamParams {
    /// Of a signed address.
    tenant: Option<String>,
    /// Of a signed address, in s since the Unix epoch.
    expires: Option<i64>,
    /// Of a signed address.
    signature: Option<String>,
}

/// Play a recording, or parts of it (RFC 9110 §14).
#[utoipa::path(
    get, path = "/api/recordings/{id}/stream", tag = "recordings",
    params(
        ("id" = String, Path, description = "The recording"), StreamParams,
        ("Range" = Option<String>, Header, description = "bytes=0-1023; several parts, suffixes",
         example = "bytes=0-"),
    ),
    responses(
        (status = 200, description = "All of it", body = Vec<u8>,
         content_type = "application/octet-stream"),
        (status = 206, description = "The parts", body = Vec<u8>,
         content_type = "application/octet-stream"),
        (status = 416, description = "RANGE_NOT_SATISFIABLE", body = super::error::ErrorBody),
        Faults,
    ),
)]
pub async fn stream(
    State(app): State<App>,
    principal: Option<Extension<Principal>>,
    Id(id): Id,
    Params(params): Params<StreamParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let missing = || ApiError::new(Code::RecordingNotFound);
    let recording = if let Some(Extension(principal)) = principal {
        let row = app.store.recording(&principal.tenant, &id).await?.ok_or_else(missing)?;
        let session = app.store.session(&row.tenant, &row.session_id).await?;
        if !session.is_some_and(|session| principal.may_use(&session)) {
            return Err(Code::Forbidden.into());
        }
        audit::record(&app, &principal, "recording.stream", &id, json!({})).await?;
        row
    } else {
        let tenant = check_signature(&app, &id, &params)?;
        let row = app.store.recording(&tenant, &id).await?.ok_or_else(missing)?;
        let by = NewAudit {
            at: clock::unix_ms(),
            actor: "signed address",
            action: "recording.stream",
            object: &id,
            detail: json!({}),
        };
        app.store.audit(&tenant, by).await?;
        row
    };
    serve(&app, &recording, &headers).await
}

/// The tenant.
fn check_signature(app: &App, id: &str, params: &StreamParams) -> Result<String, ApiError> {
    let refused = || ApiError::new(Code::Unauthorized);
    let (Some(tenant), Some(expires), Some(signature)) =
        (&params.tenant, params.expires, &params.signature)
    else {
        return Err(refused());
    };
    let text = signed_text(tenant, id, expires);
    let signature = unhex(signature).ok_or_else(refused)?;
    hmac::verify(&app.url_key, text.as_bytes(), &signature).map_err(|_| refused())?;
    if expires <= clock::unix_ms() / 1000 {
        return Err(Code::TokenExpired.into());
    }
    Ok(tenant.clone())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks_exact(2);
    if text.len() != 64 || !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

async fn serve(app: &App, row: &Recording, headers: &HeaderMap) -> Result<Response, ApiError> {
    let object = app.storage.find(&row.object_key, row.encrypted).await?;
    let (size, kind) = (object.size, content_type(&row.filename));
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let mut response = match range::read(asked, size) {
        Ranges::Unsatisfiable => {
            let mut response = ApiError::new(Code::RangeNotSatisfiable).into_response();
            set(&mut response, header::CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(response);
        }
        Ranges::Whole => {
            let mut response = Body::from_stream(object.read(0..size)).into_response();
            set(&mut response, header::CONTENT_LENGTH, &size.to_string());
            set(&mut response, header::CONTENT_TYPE, kind);
            response
        }
        Ranges::Parts(parts) if parts.len() == 1 => {
            let part = parts[0].clone();
            let said = format!("bytes {}-{}/{size}", part.start, part.end - 1);
            let length = (part.end - part.start).to_string();
            let mut response = Body::from_stream(object.read(part)).into_response();
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(&mut response, header::CONTENT_RANGE, &said);
            set(&mut response, header::CONTENT_LENGTH, &length);
            set(&mut response, header::CONTENT_TYPE, kind);
            response
        }
        Ranges::Parts(parts) => {
            let boundary = uuid::Uuid::new_v4().simple().to_string();
            let between = boundary.clone();
            let pieces = stream::iter(parts).flat_map(move |part| {
                let head = format!(
                    "\r\n--{between}\r\nContent-Type: {kind}\r\nContent-Range: bytes \
                     {}-{}/{size}\r\n\r\n",
                    part.start,
                    part.end - 1
                );
                let head = stream::iter([Ok::<_, StorageError>(head.into())]);
                head.chain(object.clone().read(part)).boxed()
            });
            let end = stream::iter([Ok(format!("\r\n--{boundary}--\r\n").into())]);
            let mut response = Body::from_stream(pieces.chain(end)).into_response();
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let kind = format!("multipart/byteranges; boundary={boundary}");
            set(&mut response, header::CONTENT_TYPE, &kind);
            response
        }
    };
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    set(&mut response, header::CACHE_CONTROL, "private, no-store");
    Ok(response)
}

fn set(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn content_type(filename: &str) -> &'static str {
    match filename.rsplit_once('.').map(|(_, extension)| extension) {
        Some("mp4") => "video/mp4",
        Some("ogg" | "opus") => "audio/ogg",
        Some("wav") => "audio/wav",
        _ => "application/octet-stream",
    }
}

/// Of this session.
async fn found(app: &App, tenant: &str, session: &str, id: &str) -> Result<Recording, ApiError> {
    let row = app.store.recording(tenant, id).await?;
    row.filter(|row| row.session_id == session).ok_or(ApiError::new(Code::RecordingNotFound))
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Missing => Self::new(Code::RecordingNotFound),
            error => {
                tracing::error!(%error, "the storage of recordings failed");
                Self::new(Code::Internal)
            }
        }
    }
}
