//! What a client reads when something is wrong: `{"code", "message"}`, always.
//!
//! The code is for programs and never changes its meaning; the message is for people and says what
//! to do. Neither says anything about our insides: causes go to the log, where they are handled.

use std::borrow::Cow;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoResponses, ToSchema};

use crate::store::StoreError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    InvalidRequest,
    Unauthorized,
    TokenExpired,
    WrongPassword,
    MediaPermissionDenied,
    Forbidden,
    ConsentRequired,
    LinkUsed,
    NotFound,
    SessionNotFound,
    RoomNotFound,
    RecordingNotFound,
    TranscriptNotFound,
    DocumentNotFound,
    PersonNotFound,
    LinkExpired,
    MethodNotAllowed,
    SessionEnded,
    AlreadyRecording,
    RangeNotSatisfiable,
    UpgradeRequired,
    RoomFull,
    PayloadTooLarge,
    UnsupportedMediaType,
    TooManyAttempts,
    Internal,
    LivekitUnreachable,
    LivekitRefused,
    LivekitNotConfigured,
    VoiceSynthesisFailed,
    TranscriptionFailed,
    Unavailable,
    Timeout,
}

impl Code {
    /// The name, the HTTP status and the message of this code.
    const fn parts(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::InvalidRequest => {
                ("INVALID_REQUEST", StatusCode::BAD_REQUEST, "The request is not valid")
            }
            Self::Unauthorized => (
                "UNAUTHORIZED",
                StatusCode::UNAUTHORIZED,
                "Send a valid token: Authorization: Bearer …",
            ),
            Self::TokenExpired => {
                ("TOKEN_EXPIRED", StatusCode::UNAUTHORIZED, "Session expired, please rejoin")
            }
            Self::MediaPermissionDenied => (
                "MEDIA_PERMISSION_DENIED",
                StatusCode::FORBIDDEN,
                "Please allow camera/microphone access",
            ),
            Self::WrongPassword => {
                ("WRONG_PASSWORD", StatusCode::UNAUTHORIZED, "The password is not the right one")
            }
            Self::Forbidden => ("FORBIDDEN", StatusCode::FORBIDDEN, "This is not yours to use"),
            Self::ConsentRequired => (
                "CONSENT_REQUIRED",
                StatusCode::FORBIDDEN,
                "Nobody has agreed to a recording: start the session with \
                 consent.recording = true",
            ),
            Self::LinkUsed => {
                ("LINK_USED", StatusCode::FORBIDDEN, "This link has been used already")
            }
            Self::NotFound => ("NOT_FOUND", StatusCode::NOT_FOUND, "There is nothing here"),
            Self::SessionNotFound => {
                ("SESSION_NOT_FOUND", StatusCode::NOT_FOUND, "There is no such session")
            }
            Self::RoomNotFound => {
                ("ROOM_NOT_FOUND", StatusCode::NOT_FOUND, "Session not available")
            }
            Self::RecordingNotFound => {
                ("RECORDING_NOT_FOUND", StatusCode::NOT_FOUND, "There is no such recording")
            }
            Self::TranscriptNotFound => {
                ("TRANSCRIPT_NOT_FOUND", StatusCode::NOT_FOUND, "There is no such transcript")
            }
            Self::DocumentNotFound => {
                ("DOCUMENT_NOT_FOUND", StatusCode::NOT_FOUND, "There is no such document")
            }
            Self::PersonNotFound => {
                ("PERSON_NOT_FOUND", StatusCode::NOT_FOUND, "Nothing is stored about this person")
            }
            Self::AlreadyRecording => {
                ("ALREADY_RECORDING", StatusCode::CONFLICT, "This session is being recorded")
            }
            Self::RangeNotSatisfiable => (
                "RANGE_NOT_SATISFIABLE",
                StatusCode::RANGE_NOT_SATISFIABLE,
                "The recording has no such part",
            ),
            Self::UpgradeRequired => (
                "UPGRADE_REQUIRED",
                StatusCode::UPGRADE_REQUIRED,
                "This is for WebSockets: send Upgrade: websocket",
            ),
            Self::LinkExpired => ("LINK_EXPIRED", StatusCode::NOT_FOUND, "This link has expired"),
            Self::MethodNotAllowed => (
                "METHOD_NOT_ALLOWED",
                StatusCode::METHOD_NOT_ALLOWED,
                "This path does not take this method",
            ),
            Self::SessionEnded => {
                ("SESSION_ENDED", StatusCode::CONFLICT, "This session has ended: create a new one")
            }
            Self::RoomFull => ("ROOM_FULL", StatusCode::CONFLICT, "The session is full"),
            Self::PayloadTooLarge => (
                "PAYLOAD_TOO_LARGE",
                StatusCode::PAYLOAD_TOO_LARGE,
                "The body is larger than 1 MiB",
            ),
            Self::UnsupportedMediaType => (
                "UNSUPPORTED_MEDIA_TYPE",
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Send the body with Content-Type: application/json",
            ),
            Self::TooManyAttempts => (
                "TOO_MANY_ATTEMPTS",
                StatusCode::TOO_MANY_REQUESTS,
                "Too many attempts, please try again later",
            ),
            Self::Internal => (
                "INTERNAL",
                StatusCode::INTERNAL_SERVER_ERROR,
                "Something went wrong, please try again",
            ),
            Self::LivekitUnreachable => (
                "LIVEKIT_UNREACHABLE",
                StatusCode::BAD_GATEWAY,
                "The LiveKit server does not answer: try again, or check LIVEKIT_URL and that the \
                 server runs",
            ),
            Self::LivekitRefused => (
                "LIVEKIT_REFUSED",
                StatusCode::BAD_GATEWAY,
                "The LiveKit server refused the request: check LIVEKIT_URL, LIVEKIT_API_KEY and \
                 LIVEKIT_API_SECRET",
            ),
            Self::LivekitNotConfigured => (
                "LIVEKIT_NOT_CONFIGURED",
                StatusCode::SERVICE_UNAVAILABLE,
                "No LiveKit server is configured: set LIVEKIT_URL, LIVEKIT_API_KEY and \
                 LIVEKIT_API_SECRET",
            ),
            Self::VoiceSynthesisFailed => (
                "VOICE_SYNTHESIS_FAILED",
                StatusCode::SERVICE_UNAVAILABLE,
                "Voice temporarily unavailable",
            ),
            Self::TranscriptionFailed => {
                ("TRANSCRIPTION_FAILED", StatusCode::SERVICE_UNAVAILABLE, "Transcription paused")
            }
            Self::Unavailable => (
                "UNAVAILABLE",
                StatusCode::SERVICE_UNAVAILABLE,
                "The database does not answer, please try again",
            ),
            Self::Timeout => {
                ("TIMEOUT", StatusCode::SERVICE_UNAVAILABLE, "This took too long, please try again")
            }
        }
    }

    pub const fn as_str(self) -> &'static str {
        self.parts().0
    }

    pub const fn status(self) -> StatusCode {
        self.parts().1
    }

    pub const fn message(self) -> &'static str {
        self.parts().2
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    code: Code,
    message: Cow<'static, str>,
    details: Option<Box<Value>>,
    /// In s.
    retry_after: Option<u32>,
}

impl ApiError {
    pub const fn new(code: Code) -> Self {
        let message = Cow::Borrowed(code.message());
        Self { code, message, details: None, retry_after: None }
    }

    /// `message` may be read by anybody.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), ..Self::new(Code::InvalidRequest) }
    }

    pub fn too_many(retry_after_s: u32) -> Self {
        Self { retry_after: Some(retry_after_s.max(1)), ..Self::new(Code::TooManyAttempts) }
    }

    /// `details` may be read by anybody.
    pub fn with_details(self, details: Value) -> Self {
        Self { details: Some(Box::new(details)), ..self }
    }

    pub const fn code(&self) -> Code {
        self.code
    }
}

impl From<Code> for ApiError {
    fn from(code: Code) -> Self {
        Self::new(code)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed");
        match error {
            // Too much is asked at once, or the database is away: it is worth another try.
            StoreError::Database(sqlx::Error::PoolTimedOut | sqlx::Error::Io(_)) => {
                Self { retry_after: Some(1), ..Self::new(Code::Unavailable) }
            }
            _ => Self::new(Code::Internal),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({ "code": "SESSION_NOT_FOUND", "message": "There is no such session" }))]
pub struct ErrorBody {
    /// For programs; never changes its meaning.
    pub code: String,
    /// For people.
    pub message: String,
    /// What a program may want to know beside, by code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub details: Option<Value>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            code: self.code.as_str().into(),
            message: self.message.into_owned(),
            details: self.details.map(|details| *details),
        };
        let mut response = (self.code.status(), Json(body)).into_response();
        if self.code.status() == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// The answers that every route under `/api` may give, for the OpenAPI document.
#[derive(Debug, IntoResponses)]
#[allow(dead_code, reason = "read by the derive alone")]
pub enum Faults {
    /// The request is not valid: INVALID_REQUEST.
    #[response(status = 400)]
    Invalid(ErrorBody),
    /// No valid token: UNAUTHORIZED, TOKEN_EXPIRED.
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// Another's, or not for this role: FORBIDDEN. CONSENT_REQUIRED.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// There is no such thing in this tenant: SESSION_NOT_FOUND, ROOM_NOT_FOUND and the like.
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// Too fast: TOO_MANY_ATTEMPTS, with Retry-After.
    #[response(status = 429)]
    TooMany(ErrorBody),
    /// INTERNAL.
    #[response(status = 500)]
    Internal(ErrorBody),
    /// TIMEOUT, LIVEKIT_NOT_CONFIGURED, UNAVAILABLE.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

/// The answers of the routes that take a body.
#[derive(Debug, IntoResponses)]
#[allow(dead_code, reason = "read by the derive alone")]
pub enum BodyFaults {
    /// PAYLOAD_TOO_LARGE.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// UNSUPPORTED_MEDIA_TYPE.
    #[response(status = 415)]
    MediaType(ErrorBody),
}

/// The answers of the routes that ask the LiveKit server.
#[derive(Debug, IntoResponses)]
#[allow(dead_code, reason = "read by the derive alone")]
pub enum LiveKitFaults {
    /// SESSION_ENDED, ALREADY_RECORDING; ROOM_FULL with `current`, `max` and `suggestions`.
    #[response(status = 409)]
    Conflict(ErrorBody),
    /// LIVEKIT_UNREACHABLE, LIVEKIT_REFUSED.
    #[response(status = 502)]
    Gateway(ErrorBody),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_is_too_busy_asks_for_another_try() {
        let busy: ApiError = StoreError::Database(sqlx::Error::PoolTimedOut).into();
        let response = busy.into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        let broken: ApiError = StoreError::Corrupt("event").into();
        assert_eq!(broken.into_response().status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
