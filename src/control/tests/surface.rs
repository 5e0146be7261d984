//! The endpoint as a whole: its routes and their document, its errors, its start and its end.

use super::*;

#[tokio::test]
async fn shutting_down_ends_live_streams_and_the_server() {
    let control = Control::start(None).await;
    let id = control.create().await;
    let mut listener = control.listen(&id, None).await;
    control.shutdown.cancel();
    assert!(listener.next().await.is_none());
    tokio::time::timeout(LIMIT, control.bound.finished()).await.unwrap();
    assert!(control.client.get(&control.url).send().await.is_err(), "nobody listens any more");
}

fn routes(document: &Value) -> Vec<(Method, String)> {
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, item)| {
        item.as_object()
            .unwrap()
            .keys()
            .map(|method| (method.to_uppercase().parse().unwrap(), path.clone()))
    });
    operations.collect()
}

#[tokio::test]
async fn the_openapi_document_has_every_route_and_every_route_is_served() {
    let control = Control::start(None).await;
    let (_, document) = control.get("/openapi.json").await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    let mut found: Vec<_> =
        routes(&document).iter().map(|(method, path)| format!("{method} {path}")).collect();
    found.sort();
    let expected = [
        "DELETE /api/knowledge/documents/{id}",
        "DELETE /api/people/{identity}/data",
        "DELETE /api/voice-sessions/{room}",
        "GET /api/audit",
        "GET /api/knowledge/documents",
        "GET /api/people/{identity}/data",
        "GET /api/recordings/{id}/stream",
        "GET /api/sessions",
        "GET /api/sessions/{id}",
        "GET /api/sessions/{id}/recordings",
        "GET /api/sessions/{id}/transcripts",
        "GET /api/sessions/{id}/transcripts/export",
        "GET /api/sessions/{id}/transcripts/live",
        "GET /api/sessions/{id}/transcripts/socket",
        "GET /api/sessions/{id}/usage",
        "GET /api/usage",
        "GET /api/voice-sessions",
        "GET /api/voice-sessions/{room}",
        "GET /docs",
        "GET /healthz",
        "GET /metrics",
        "GET /openapi.json",
        "GET /readyz",
        "PATCH /api/sessions/{id}/transcripts/{tid}",
        "POST /api/ingest",
        "POST /api/knowledge/documents",
        "POST /api/sessions",
        "POST /api/sessions/{id}/agent",
        "POST /api/sessions/{id}/end",
        "POST /api/sessions/{id}/links",
        "POST /api/sessions/{id}/livekit-token",
        "POST /api/sessions/{id}/recordings",
        "POST /api/sessions/{id}/recordings/{rid}/stop",
        "POST /api/sessions/{id}/recordings/{rid}/url",
        "POST /api/sessions/{id}/start",
        "POST /api/voice-sessions",
        "POST /api/webhooks/livekit",
        "POST /join/{token}",
    ];
    assert_eq!(found, expected);
    let source = include_str!("../router.rs");
    assert!(
        !source.contains(".route(") && !source.contains(".nest("),
        "a route added so would be missing in the document: use `routes!`"
    );
}

#[tokio::test]
async fn every_error_has_the_same_shape() {
    let control = Control::start(None).await;
    let send = async |request: reqwest::RequestBuilder| read(request.send().await.unwrap()).await;
    let post = |path: &str| control.request(Method::POST, path);

    assert_error(&control.get("/nowhere").await, 404, "NOT_FOUND");
    assert_error(&control.get("/api/nowhere").await, 404, "NOT_FOUND");
    let deleted = send(control.request(Method::DELETE, "/api/sessions")).await;
    assert_error(&deleted, 405, "METHOD_NOT_ALLOWED");
    assert_error(&send(post("/healthz")).await, 405, "METHOD_NOT_ALLOWED");
    let as_json = |body: &'static str| {
        post("/api/sessions").header("content-type", "application/json").body(body)
    };
    assert_error(&send(as_json("{")).await, 400, "INVALID_REQUEST");
    assert_error(&send(as_json(r#"{"metadata": 7}"#)).await, 400, "INVALID_REQUEST");
    assert_error(&send(post("/api/sessions").body("{}")).await, 415, "UNSUPPORTED_MEDIA_TYPE");
    let large = json!({"metadata": {"x": "x".repeat(1 << 20)}});
    assert_error(&control.post("/api/sessions", &large).await, 413, "PAYLOAD_TOO_LARGE");
    let metadata = json!({"metadata": {"x": "x".repeat(20_000)}});
    assert_error(&control.post("/api/sessions", &metadata).await, 400, "INVALID_REQUEST");
    for path in ["", "/transcripts", "/transcripts/live"] {
        let answer = control.get(&format!("/api/sessions/nobody{path}")).await;
        assert_error(&answer, 404, "SESSION_NOT_FOUND");
    }
    for path in ["start", "end"] {
        let answer = control.post(&format!("/api/sessions/nobody/{path}"), &json!({})).await;
        assert_error(&answer, 404, "SESSION_NOT_FOUND");
    }
    assert_error(&control.get("/api/sessions/%FF").await, 400, "INVALID_REQUEST");
    assert_error(&control.get("/api/sessions?status=odd").await, 400, "INVALID_REQUEST");
}

#[tokio::test]
async fn health_readiness_and_metrics_need_no_token() {
    let mut config = config(None, "sqlite::memory:");
    config.metrics = Some(MetricsText(std::sync::Arc::new(|| "up 1\n".into())));
    let control = Control::start_with(config).await;
    for path in ["/healthz", "/readyz"] {
        let response = control.client.get(format!("{}{path}", control.url)).send().await.unwrap();
        assert_eq!(read(response).await, (StatusCode::OK, json!({"status": "ok"})));
    }
    let response = control.client.get(format!("{}/metrics", control.url)).send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    assert_eq!(response.text().await.unwrap(), "up 1\n");
}

#[tokio::test]
async fn an_empty_token_or_a_taken_port_is_an_error_before_anything_runs() {
    let mut empty = config(None, "sqlite::memory:");
    empty.token = SecretString::from("");
    let error = serve(empty, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, ControlError::EmptyToken));
    let control = Control::start(None).await;
    let mut taken = config(None, "sqlite::memory:");
    taken.port = control.bound.addr.port();
    let error = serve(taken, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, ControlError::Bind { .. }));
}
