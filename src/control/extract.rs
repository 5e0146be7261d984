//! Extractors that turn each way a request can be wrong into an [`ApiError`].

use axum::{
    Json,
    extract::{
        FromRequest, FromRequestParts, Path, Query, Request,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::{StatusCode, header, request::Parts},
};
use serde::de::DeserializeOwned;

use super::error::{ApiError, Code};

/// In bytes.
const MAX_ID: usize = 256;

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

/// The one parameter of the path.
#[derive(Debug)]
pub struct Id(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found: Result<Path<String>, PathRejection> =
            Path::from_request_parts(parts, state).await;
        let Path(id) = found.map_err(|_| invalid_path())?;
        Ok(Self(checked(id)?))
    }
}

/// The two parameters of the path.
#[derive(Debug)]
pub struct Ids(pub String, pub String);

impl<S: Send + Sync> FromRequestParts<S> for Ids {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found: Result<Path<(String, String)>, PathRejection> =
            Path::from_request_parts(parts, state).await;
        let Path((first, second)) = found.map_err(|_| invalid_path())?;
        Ok(Self(checked(first)?, checked(second)?))
    }
}

fn invalid_path() -> ApiError {
    ApiError::invalid("The path is not valid")
}

/// What no database holds is not asked for.
fn checked(id: String) -> Result<String, ApiError> {
    if id.len() > MAX_ID || id.contains('\0') { Err(invalid_path()) } else { Ok(id) }
}

/// A JSON body that may be left out.
#[derive(Debug)]
pub struct MaybeBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for MaybeBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let typed = request.headers().contains_key(header::CONTENT_TYPE);
        let empty = request.headers().get(header::CONTENT_LENGTH).is_none_or(|it| it == "0")
            && !request.headers().contains_key(header::TRANSFER_ENCODING);
        if empty && !typed {
            return Ok(Self(T::default()));
        }
        Body::from_request(request, state).await.map(|Body(body)| Self(body))
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
