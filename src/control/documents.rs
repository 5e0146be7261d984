//! Knowledge documents, as they are given to agents of an entity or department.

use axum::{Extension, Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::{
    app::App,
    audit,
    auth::Principal,
    error::{ApiError, BodyFaults, Code, Faults},
    extract::{Body, Id, Params},
    sessions::rfc3339,
    transcripts::{Pagination, page_request},
};
use crate::{clock, store::documents::Document};

const MAX_NAME: usize = 256;
const MAX_CONTENT: usize = 200_000;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "title": "Opening hours", "content": "We are open from 9 to 5.", "entityId": "acme"
}))]
pub struct AddDocument {
    #[schema(min_length = 1, max_length = 256, pattern = r"\S")]
    title: String,
    /// Plain text or Markdown.
    #[schema(min_length = 1, max_length = 200_000)]
    content: String,
    #[serde(default)]
    #[schema(max_length = 256)]
    entity_id: String,
    #[serde(default)]
    #[schema(max_length = 256)]
    department_id: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "5f1c", "title": "Opening hours", "entityId": "acme", "departmentId": "",
    "size": 24, "createdAt": "2026-01-01T00:00:00Z"
}))]
pub struct DocumentView {
    id: String,
    title: String,
    entity_id: String,
    department_id: String,
    /// Of the content, in bytes.
    size: u64,
    created_at: String,
}

impl From<Document> for DocumentView {
    fn from(document: Document) -> Self {
        Self {
            size: document.content.len() as u64,
            id: document.id,
            title: document.title,
            entity_id: document.entity_id,
            department_id: document.department_id,
            created_at: rfc3339(document.created_at),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct DocumentAdded {
    document: DocumentView,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct DocumentList {
    documents: Vec<DocumentView>,
    pagination: Pagination,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct DocumentParams {
    entity_id: Option<String>,
    /// From 1.
    #[param(minimum = 1, maximum = 1_000_000, default = 1)]
    page: Option<u32>,
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<u32>,
}

/// Add a document to what agents know.
#[utoipa::path(
    post, path = "/api/knowledge/documents", tag = "knowledge", request_body = AddDocument,
    responses((status = 201, description = "Added", body = DocumentAdded), Faults, BodyFaults),
)]
pub async fn add(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Body(body): Body<AddDocument>,
) -> Result<(StatusCode, Json<DocumentAdded>), ApiError> {
    let short = |text: &str| text.chars().count() <= MAX_NAME;
    if body.title.trim().is_empty() || !short(&body.title) {
        return Err(ApiError::invalid("title must have from 1 to 256 characters"));
    }
    if !short(&body.entity_id) || !short(&body.department_id) {
        return Err(ApiError::invalid("entityId, departmentId: at most 256 characters"));
    }
    if body.content.is_empty() || body.content.chars().count() > MAX_CONTENT {
        return Err(ApiError::invalid("content must have from 1 to 200000 characters"));
    }
    let document = Document {
        id: uuid::Uuid::new_v4().to_string(),
        entity_id: body.entity_id,
        department_id: body.department_id,
        title: body.title,
        content: body.content,
        created_at: clock::unix_ms(),
    };
    app.store.add_document(&principal.tenant, &document).await?;
    audit::record(&app, &principal, "document.add", &document.id, json!({})).await?;
    Ok((StatusCode::CREATED, Json(DocumentAdded { document: document.into() })))
}

/// List documents, the newest first.
#[utoipa::path(
    get, path = "/api/knowledge/documents", tag = "knowledge", params(DocumentParams),
    responses((status = 200, description = "One page", body = DocumentList), Faults),
)]
pub async fn list(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Params(params): Params<DocumentParams>,
) -> Result<Json<DocumentList>, ApiError> {
    let page = page_request(params.page, params.limit)?;
    let entity = params.entity_id.as_deref();
    let found = app.store.documents(&principal.tenant, entity, page).await?;
    Ok(Json(DocumentList {
        documents: found.rows.into_iter().map(Into::into).collect(),
        pagination: Pagination::new(found.total, page),
    }))
}

/// Take a document away from what agents know.
#[utoipa::path(
    delete, path = "/api/knowledge/documents/{id}", tag = "knowledge",
    params(("id" = String, Path, description = "The document")),
    responses((status = 204, description = "It is gone"), Faults),
)]
pub async fn delete(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    if !app.store.delete_document(&principal.tenant, &id).await? {
        return Err(Code::DocumentNotFound.into());
    }
    audit::record(&app, &principal, "document.delete", &id, json!({})).await?;
    Ok(StatusCode::NO_CONTENT)
}
