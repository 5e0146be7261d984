//! The API's description, generated from the handlers.

use axum::{extract::State, http::header, response::IntoResponse};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use super::app::App;

#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "antiphon control",
        description = "Sessions, tokens and transcripts of voice agents. Errors are \
                       `{\"code\", \"message\"}`: the code is for programs, the message for people."
    ),
    modifiers(&Bearer),
    tags(
        (name = "sessions", description = "A conversation in a room, and who may join it"),
        (name = "transcripts", description = "What was said"),
        (name = "links", description = "Joining without an account"),
        (name = "voice-sessions", description = "One user and one agent, in one call; snake_case"),
        (name = "recordings", description = "What was heard and seen"),
        (name = "people", description = "One person's data"),
        (name = "knowledge", description = "What agents can look up"),
        (name = "operations", description = "For operators and the LiveKit server"),
        (name = "ingest", description = "The workers' reports"),
        (name = "health", description = "For orchestrators and Prometheus"),
    )
)]
pub struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "health",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)),
)]
pub async fn openapi(State(app): State<App>) -> impl IntoResponse {
    let text = app.openapi.get().cloned().unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], text)
}
