//! Extractors that turn each way a request can be wrong into an [`ApiError`].

use axum::{
    Json,
    extract::{
        FromRequest, FromRequestParts, Path, Query, Request,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::{StatusCode, request::Parts},
};
use serde::de::DeserializeOwned;

use super::error::{ApiError, Code};

/// A JSON body.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match Json::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(match &rejection {
                // Serde says where, which is worth more to a client than a fixed sentence.
                JsonRejection::JsonDataError(_) | JsonRejection::JsonSyntaxError(_) => {
                    ApiError::invalid(cut(rejection.body_text()))
                }
                JsonRejection::MissingJsonContentType(_) => Code::UnsupportedMediaType.into(),
                _ if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                    Code::PayloadTooLarge.into()
                }
                _ => ApiError::invalid("The body could not be read"),
            }),
        }
    }
}

/// The query string.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found: Result<_, QueryRejection> = Query::from_request_parts(parts, state).await;
        found
            .map(|Query(query)| Self(query))
            .map_err(|rejection| ApiError::invalid(cut(rejection.body_text())))
    }
}

/// The session's id in the path.
#[derive(Debug)]
pub struct SessionId(pub String);

impl<S: Send + Sync> FromRequestParts<S> for SessionId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found: Result<Path<String>, PathRejection> =
            Path::from_request_parts(parts, state).await;
        found.map(|Path(id)| Self(id)).map_err(|_| ApiError::invalid("The path is not valid"))
    }
}

/// Serde quotes what it did not like: not more of it than fits a line or two.
fn cut(mut text: String) -> String {
    const MAX: usize = 300;
    if let Some((at, _)) = text.char_indices().nth(MAX) {
        text.truncate(at);
        text.push('…');
    }
    text
}
