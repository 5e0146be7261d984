//! Who did what: written by the handlers, read by admins.

use axum::{Extension, Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{
    app::App,
    auth::Principal,
    error::{ApiError, Faults},
    extract::Params,
    sessions::rfc3339,
    transcripts::{Pagination, page_request},
};
use crate::{clock, store::tenants::NewAudit};

/// Writes a row before the answer is given: what is not recorded is not done.
pub async fn record(
    app: &App,
    principal: &Principal,
    action: &str,
    object: &str,
    detail: Value,
) -> Result<(), ApiError> {
    let new = NewAudit { at: clock::unix_ms(), actor: &principal.actor, action, object, detail };
    Ok(app.store.audit(&principal.tenant, new).await?)
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": 7, "at": "2026-01-01T00:00:05Z", "actor": "user:ann", "action": "recording.stream",
    "object": "5f1c", "detail": {}
}))]
pub struct AuditView {
    id: i64,
    at: String,
    /// user:ID, key:PREFIX, service or system.
    actor: String,
    action: String,
    object: String,
    #[schema(value_type = Object)]
    detail: Value,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct AuditList {
    entries: Vec<AuditView>,
    pagination: Pagination,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AuditParams {
    /// The id of a session, recording or person.
    object: Option<String>,
    /// From 1.
    #[param(minimum = 1, maximum = 1_000_000, default = 1)]
    page: Option<u32>,
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<u32>,
}

/// Who did what, the newest first.
#[utoipa::path(
    get, path = "/api/audit", tag = "operations", params(AuditParams),
    responses((status = 200, description = "One page", body = AuditList), Faults),
)]
pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Params(params): Params<AuditParams>,
) -> Result<Json<AuditList>, ApiError> {
    let page = page_request(params.page, params.limit)?;
    let found = app.store.audit_rows(&principal.tenant, params.object.as_deref(), page).await?;
    let entries = found.rows.into_iter().map(|row| AuditView {
        id: row.seq,
        at: rfc3339(row.at),
        actor: row.actor,
        action: row.action,
        object: row.object,
        detail: row.detail,
    });
    Ok(Json(AuditList {
        entries: entries.collect(),
        pagination: Pagination::new(found.total, page),
    }))
}
