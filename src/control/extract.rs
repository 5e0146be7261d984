//! Extractors that turn each way a request can be wrong into an [`ApiError`].

use axum::{
    body::Bytes,
    extract::{
        FromRequest, FromRequestParts, Path, Query, Request,
        rejection::{PathRejection, QueryRejection},
    },
    http::{StatusCode, header, request::Parts},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::{ApiError, Code};

/// In bytes.
const MAX_ID: usize = 256;

/// A JSON object as the body.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if !is_json(&request) {
            return Err(Code::UnsupportedMediaType.into());
        }
        let body = read(request, state).await?;
        // Serde would take a list for a struct too.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(ApiError::invalid("The body is not a JSON object"));
        }
        parse(&body).map(Self)
    }
}

async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiError> {
    Bytes::from_request(request, state).await.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Code::PayloadTooLarge.into();
        }
        ApiError::invalid("The body could not be read")
    })
}

/// Serde says where, which is worth more to a client than a fixed sentence.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).or_else(|error| {
        // To JSON 2.0 is the integer 2; to serde it is not.
        let mut value: Value = serde_json::from_slice(body).unwrap_or_default();
        whole(&mut value);
        serde_json::from_value(value).map_err(|_| ApiError::invalid(cut(error.to_string())))
    })
}

/// Makes integers of numbers that are.
fn whole(value: &mut Value) {
    /// Up to here a float is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64()
                && number.is_f64()
                && float.fract() == 0.0
                && float.abs() <= EXACT
            {
                *number = (float as i64).into();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(whole),
        Value::Object(fields) => fields.values_mut().for_each(whole),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// `application/json` or `application/*+json`.
fn is_json(request: &Request) -> bool {
    let Some(value) = request.headers().get(header::CONTENT_TYPE) else { return false };
    let Ok(value) = value.to_str() else { return false };
    let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
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
    if id.len() > MAX_ID || id.contains('\0') { Err(Code::NotFound.into()) } else { Ok(id) }
}

/// A JSON body that may be left out.
#[derive(Debug)]
pub struct MaybeBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for MaybeBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let json = is_json(&request);
        let body = read(request, state).await?;
        match body.trim_ascii() {
            b"" | b"null" => Ok(Self(T::default())),
            _ if !json => Err(Code::UnsupportedMediaType.into()),
            [b'{', ..] => parse(&body).map(Self),
            _ => Err(ApiError::invalid("The body is not a JSON object")),
        }
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
