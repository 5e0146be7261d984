//! For orchestrators and Prometheus.

use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    app::App,
    error::{ApiError, Code, ErrorBody},
};

#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({ "status": "ok" }))]
pub struct Health {
    status: &'static str,
}

/// Whether the process runs.
#[utoipa::path(
    get, path = "/healthz", tag = "health",
    responses((status = 200, description = "It does", body = Health)),
)]
pub async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether requests can be served.
#[utoipa::path(
    get, path = "/readyz", tag = "health",
    responses(
        (status = 200, description = "They can", body = Health),
        (status = 503, description = "UNAVAILABLE: the database does not answer, or the process \
                                      is shutting down", body = ErrorBody),
    ),
)]
pub async fn readyz(State(app): State<App>) -> Result<Json<Health>, ApiError> {
    if app.shutdown.is_cancelled() {
        return Err(Code::Unavailable.into());
    }
    app.store.ping().await.map_err(|error| {
        tracing::warn!(%error, "not ready: the store failed");
        ApiError::new(Code::Unavailable)
    })?;
    Ok(Json(Health { status: "ok" }))
}

/// Metrics in Prometheus's text format.
#[utoipa::path(
    get, path = "/metrics", tag = "health",
    responses((status = 200, description = "The metrics", body = String,
               content_type = "text/plain")),
)]
pub async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let text = app.metrics.as_ref().map_or_else(String::new, |render| render.0());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
