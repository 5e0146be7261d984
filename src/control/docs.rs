//! A page to read the API by, made of /openapi.json. Nothing of it is loaded from elsewhere.

use axum::{
    http::header,
    response::{Html, IntoResponse},
};

/// Only what is on the page itself, and the document.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The API, to read and try.
#[utoipa::path(
    get, path = "/docs", tag = "health",
    responses((status = 200, description = "A page", body = String, content_type = "text/html")),
)]
pub async fn page() -> impl IntoResponse {
    let headers =
        [(header::CONTENT_SECURITY_POLICY, POLICY), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, Html(include_str!("docs.html")))
}
