//! Which handler answers what, and for whom. A route that is added here is in the OpenAPI document
//! too: both are made from the handler's own annotation, and who may use it from its group.

use std::time::Duration;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use serde_json::json;
use utoipa::{
    OpenApi,
    openapi::{
        PathItem, extensions::ExtensionsBuilder, path::Operation, security::SecurityRequirement,
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    agent,
    app::App,
    audit,
    auth::{self, Access},
    cors, docs, documents,
    error::{ApiError, Code},
    export, health, ingest, links, live, openapi, people, recordings, sessions, tokens,
    transcripts, usage, voice, webhooks,
};

const BODY_LIMIT: usize = 1024 * 1024;
/// Until the answer begins; a live stream may go on for hours after that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

pub fn build(app: App) -> Router {
    let open = OpenApiRouter::new()
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
        .routes(routes!(openapi::openapi))
        .routes(routes!(docs::page))
        .routes(routes!(links::join))
        .routes(routes!(webhooks::livekit));
    let user = OpenApiRouter::new()
        .routes(routes!(sessions::create, sessions::list))
        .routes(routes!(sessions::status))
        .routes(routes!(sessions::start))
        .routes(routes!(sessions::end))
        .routes(routes!(tokens::create))
        .routes(routes!(links::create))
        .routes(routes!(agent::command))
        .routes(routes!(transcripts::list))
        .routes(routes!(live::live))
        .routes(routes!(live::socket))
        .routes(routes!(export::export))
        .routes(routes!(transcripts::flag))
        .routes(routes!(usage::of_session))
        .routes(routes!(recordings::list, recordings::start))
        .routes(routes!(recordings::stop))
        .routes(routes!(recordings::sign))
        .routes(routes!(people::export, people::erase))
        .routes(routes!(voice::create, voice::list))
        .routes(routes!(voice::status, voice::end));
    let signed = OpenApiRouter::new().routes(routes!(recordings::stream));
    let worker = OpenApiRouter::new().routes(routes!(ingest::ingest));
    let admin = OpenApiRouter::new()
        .routes(routes!(audit::list))
        .routes(routes!(usage::of_tenant))
        .routes(routes!(documents::add, documents::list))
        .routes(routes!(documents::delete));
    let (router, document) = OpenApiRouter::with_openapi(openapi::Document::openapi())
        .merge(group(&app, Access::Open, open))
        .merge(group(&app, Access::User, user))
        .merge(group(&app, Access::Signed, signed))
        .merge(group(&app, Access::Worker, worker))
        .merge(group(&app, Access::Admin, admin))
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
        .layer(middleware::from_fn_with_state(app.clone(), cors::answer))
        .with_state(app)
}

/// Routes for the same callers: guarded, and said so in the document.
fn group(app: &App, access: Access, mut routes: OpenApiRouter<App>) -> OpenApiRouter<App> {
    for item in routes.get_openapi_mut().paths.paths.values_mut() {
        for operation in operations(item) {
            let named = ExtensionsBuilder::new().add("x-access", json!(access.name())).build();
            operation.extensions.get_or_insert_default().merge(named);
            let bearer = || SecurityRequirement::new("bearer", Vec::<String>::new());
            operation.security = match access {
                Access::Open => None,
                Access::Signed => Some(vec![bearer(), SecurityRequirement::default()]),
                _ => Some(vec![bearer()]),
            };
        }
    }
    if access == Access::Open {
        return routes;
    }
    routes.route_layer(middleware::from_fn_with_state((app.clone(), access), auth::require))
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete]
        .into_iter()
        .flatten()
}

async fn in_time(request: Request, next: Next) -> Response {
    tokio::time::timeout(ANSWER_TIMEOUT, next.run(request))
        .await
        .unwrap_or_else(|_| ApiError::new(Code::Timeout).into_response())
}
