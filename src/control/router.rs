//! Which handler answers what. A route that is added here is in the OpenAPI document too: both are
//! made from the handler's own annotation.

use std::time::Duration;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    app::App,
    auth,
    error::{ApiError, Code},
    health, ingest, live, openapi, sessions, tokens, transcripts,
};

const BODY_LIMIT: usize = 1024 * 1024;
/// Until the answer begins; a live stream may go on for hours after that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

pub fn build(app: App) -> Router {
    let guarded = OpenApiRouter::new()
        .routes(routes!(sessions::create, sessions::list))
        .routes(routes!(sessions::status))
        .routes(routes!(sessions::start))
        .routes(routes!(sessions::end))
        .routes(routes!(tokens::create))
        .routes(routes!(transcripts::list))
        .routes(routes!(live::live))
        .routes(routes!(ingest::ingest))
        .route_layer(middleware::from_fn_with_state(app.clone(), auth::require));
    let (router, document) = OpenApiRouter::with_openapi(openapi::Document::openapi())
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
        .routes(routes!(openapi::openapi))
        .merge(guarded)
        .split_for_parts();
    let text = document.to_json().unwrap_or_else(|error| {
        tracing::error!(%error, "the OpenAPI document cannot be written");
        String::new()
    });
    // Set once, here.
    let _ = app.openapi.set(text);
    router
        .fallback(async || ApiError::new(Code::NotFound))
        .method_not_allowed_fallback(async || ApiError::new(Code::MethodNotAllowed))
        .layer(middleware::from_fn(in_time))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(app)
}

async fn in_time(request: Request, next: Next) -> Response {
    tokio::time::timeout(ANSWER_TIMEOUT, next.run(request))
        .await
        .unwrap_or_else(|_| ApiError::new(Code::Timeout).into_response())
}
