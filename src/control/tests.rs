//! The control endpoint as its clients see it: over HTTP, on loopback.

use std::{net::Ipv4Addr, time::Duration};

use livekit_api::access_token::TokenVerifier;
use livekit_protocol::participant_info::Kind;
use reqwest::{Method, Response, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Bound, ControlConfig, ControlError, LiveKitConfig, MetricsText,
    livekit_double::{KEY, LiveKitDouble, SECRET},
    serve,
};
use crate::{
    config::{Config, control::ControlSettings},
    session::command::Usage,
    telemetry::usage::Used,
    transcript::{
        reporter::{DEFAULT_OUTBOX_CAP, Reporter, ReporterConfig, SessionInfo},
        segment::{Segment, SpeakerKind},
    },
};

mod access;
mod flows;

const TOKEN: &str = "service-token-of-the-tests";
const LIMIT: Duration = Duration::from_secs(20);

struct Control {
    url: String,
    client: reqwest::Client,
    bound: Bound,
    shutdown: CancellationToken,
    _stop: DropGuard,
}

fn config(livekit: Option<LiveKitConfig>, database_url: &str) -> ControlConfig {
    ControlConfig {
        bind: Ipv4Addr::LOCALHOST.into(),
        port: 0,
        token: SecretString::from(TOKEN),
        livekit,
        database_url: database_url.into(),
        agent_name: "assistant".into(),
        metrics: None,
        settings: settings(),
    }
}

/// Whatever is on disk lies in a directory of its own.
fn settings() -> ControlSettings {
    let mut settings = Config::from_vars([("ANTIPHON_RATE_LIMIT", "0")]).unwrap().control;
    settings.recordings_dir =
        std::env::temp_dir().join(format!("antiphon-{}", uuid::Uuid::new_v4().simple()));
    settings
}

/// The endpoint without its socket.
pub async fn app(livekit: Option<LiveKitConfig>) -> super::app::App {
    super::open(config(livekit, "sqlite::memory:"), CancellationToken::new()).await.unwrap()
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

impl Control {
    async fn start(livekit: Option<LiveKitConfig>) -> Self {
        Self::start_with(config(livekit, "sqlite::memory:")).await
    }

    async fn start_with(config: ControlConfig) -> Self {
        // What fails inside is shown with a test that fails.
        let _ = tracing_subscriber::fmt()
            .with_test_writer()
            .with_max_level(tracing::Level::WARN)
            .try_init();
        let shutdown = CancellationToken::new();
        let bound = serve(config, shutdown.clone()).await.unwrap();
        Self {
            url: format!("http://{}", bound.addr),
            client: client(),
            bound,
            _stop: shutdown.clone().drop_guard(),
            shutdown,
        }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(TOKEN)
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        read(self.request(Method::GET, path).send().await.unwrap()).await
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        read(self.request(Method::POST, path).json(body).send().await.unwrap()).await
    }

    async fn create(&self) -> String {
        let (status, body) = self.post("/api/sessions", &json!({"metadata": {"n": 1}})).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["session"]["id"].as_str().unwrap().to_owned()
    }

    async fn ingest(&self, room: &str, items: Value) -> Value {
        let body = json!({"room": room, "startedAtUnixMs": 1_000_000, "items": items});
        let (status, body) = self.post("/api/ingest", &body).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    /// The id of the one session of a room.
    async fn session_of(&self, room: &str) -> String {
        let (_, body) = self.get("/api/sessions?status=all").await;
        let sessions = body["sessions"].as_array().unwrap();
        let mut found = sessions.iter().filter(|session| session["room"] == room);
        let id = found.next().unwrap()["id"].as_str().unwrap().to_owned();
        assert!(found.next().is_none());
        id
    }

    async fn listen(&self, session: &str, last: Option<&str>) -> Listener {
        let path = format!("/api/sessions/{session}/transcripts/live");
        let mut request = self.request(Method::GET, &path);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut listener = Listener { response, buffer: String::new(), last: None };
        assert_eq!(listener.next().await.unwrap().name, "comment", "it says hello");
        listener
    }
}

async fn read(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text:?}")))
}

fn segment(id: &str, content: &str, at: i64) -> Value {
    json!({
        "type": "segment", "id": id, "kind": "user", "speakerId": "ann", "speakerName": "Ann",
        "content": content, "spokenAtUnixMs": 1_000_000 + at, "durationMs": 900,
        "confidence": 0.97,
    })
}

/// Reads server-sent events as a browser does
/// (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
struct Listener {
    response: Response,
    buffer: String,
    last: Option<String>,
}

#[derive(Debug)]
struct Heard {
    /// `comment` for one without data.
    name: String,
    data: Value,
}

impl Listener {
    /// `None`: the stream has ended.
    async fn next(&mut self) -> Option<Heard> {
        let end = loop {
            if let Some(end) = self.buffer.find("\n\n") {
                break end;
            }
            let chunk = tokio::time::timeout(LIMIT, self.response.chunk()).await.unwrap();
            self.buffer.push_str(str::from_utf8(&chunk.unwrap()?).unwrap());
        };
        let block: String = self.buffer.drain(..end + 2).collect();
        let (mut name, mut data) = ("comment".to_owned(), Value::Null);
        for line in block.lines() {
            match line.split_once(": ").or_else(|| line.split_once(':')) {
                Some(("event", value)) => name = value.into(),
                Some(("id", value)) => self.last = Some(value.into()),
                Some(("data", value)) => data = serde_json::from_str(value).unwrap(),
                _ => {}
            }
        }
        Some(Heard { name, data })
    }

    /// What was heard in short: `name:content`.
    async fn hear(&mut self, count: usize) -> Vec<String> {
        let mut heard = Vec::new();
        while heard.len() < count {
            let Heard { name, data } = self.next().await.expect("the stream goes on");
            match name.as_str() {
                "comment" => {}
                "final" | "interim" => {
                    heard.push(format!("{name}:{}", data["content"].as_str().unwrap()));
                }
                "state" => heard.push(format!("state:{}", data["state"].as_str().unwrap())),
                _ => heard.push(format!("{name}:{data}")),
            }
        }
        heard
    }
}

fn assert_error(answer: &(StatusCode, Value), status: u16, code: &str) {
    let (found, body) = answer;
    assert_eq!((found.as_u16(), body["code"].as_str()), (status, Some(code)), "{body}");
    let keys: Vec<_> = body.as_object().unwrap().keys().filter(|key| *key != "details").collect();
    assert_eq!(keys, ["code", "message"]);
    assert!(!body["message"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn a_session_is_started_watched_and_ended() {
    let livekit = LiveKitDouble::start().await;
    let control = Control::start(Some(livekit.config())).await;
    let id = control.create().await;
    let room = format!("session-{id}");

    let (_, status) = control.get(&format!("/api/sessions/{id}")).await;
    assert_eq!(status["status"], "created");
    assert_eq!((&status["active"], &status["participants"]), (&json!(false), &json!(0)));

    let (code, started) = control.post(&format!("/api/sessions/{id}/start"), &json!({})).await;
    assert_eq!(code, StatusCode::OK, "{started}");
    let session = &started["session"];
    assert_eq!(session["status"], "in_progress");
    assert_eq!(session["livekitRoom"], room.as_str());
    assert!(session["startedAt"].as_str().unwrap().ends_with('Z'));
    {
        let mut rooms = livekit.rooms.lock();
        let made = &rooms.created[0];
        assert_eq!((made.max_participants, made.empty_timeout), (10, 300));
        assert_eq!(made.metadata, r#"{"n":1}"#);
        assert_eq!(rooms.dispatches[0].agent_name, "assistant");
        rooms.join(&room, "ann", Kind::Standard);
        rooms.join(&room, "agent-1", Kind::Agent);
    }
    let (_, status) = control.get(&format!("/api/sessions/{id}")).await;
    assert_eq!(status["room"], room.as_str());
    assert_eq!(status["active"], true);
    assert_eq!(status["participants"], 1, "the agent is not counted");
    assert_eq!(status["agentConnected"], true);
    assert!(status["createdAt"].is_string());
    let (_, list) = control.get("/api/sessions").await;
    assert_eq!(list["sessions"][0]["id"], id.as_str());

    let (code, ended) = control.post(&format!("/api/sessions/{id}/end"), &json!({})).await;
    assert_eq!(code, StatusCode::OK, "{ended}");
    assert_eq!(ended["session"]["status"], "completed");
    assert!(ended["session"]["endedAt"].is_string());
    assert!(ended["session"]["duration"].is_u64());
    assert!(livekit.rooms.lock().participants.is_empty(), "the room is deleted");
    let (_, list) = control.get("/api/sessions").await;
    assert_eq!(list["sessions"], json!([]));

    let again = control.post(&format!("/api/sessions/{id}/end"), &json!({})).await;
    assert_eq!(again.1, ended, "ending it again changes nothing");
    let again = control.post(&format!("/api/sessions/{id}/start"), &json!({})).await;
    assert_error(&again, 409, "SESSION_ENDED");
}

#[tokio::test]
async fn two_starts_at_once_dispatch_one_agent() {
    let livekit = LiveKitDouble::start().await;
    let control = Control::start(Some(livekit.config())).await;
    let id = control.create().await;
    let path = format!("/api/sessions/{id}/start");
    let body = json!({});
    let (a, b) = tokio::join!(control.post(&path, &body), control.post(&path, &body));
    assert_eq!(a.0, StatusCode::OK);
    assert_eq!(a, b, "both are told the same");
    assert_eq!(livekit.rooms.lock().dispatches.len(), 1);
}

#[tokio::test]
async fn a_room_that_has_gone_already_can_be_ended() {
    let livekit = LiveKitDouble::start().await;
    let control = Control::start(Some(livekit.config())).await;
    let id = control.create().await;
    control.post(&format!("/api/sessions/{id}/start"), &json!({})).await;
    livekit.rooms.lock().participants.clear();
    let (_, status) = control.get(&format!("/api/sessions/{id}")).await;
    assert_eq!(status["active"], false);
    let (code, _) = control.post(&format!("/api/sessions/{id}/end"), &json!({})).await;
    assert_eq!(code, StatusCode::OK);
}

#[tokio::test]
async fn every_token_is_new_lasts_an_hour_and_grants_what_was_asked() {
    let livekit = LiveKitDouble::start().await;
    let control = Control::start(Some(livekit.config())).await;
    let id = control.create().await;
    let path = format!("/api/sessions/{id}/livekit-token");
    let ann = json!({"participantName": "Ann", "canPublishData": false});
    assert_error(&control.post(&path, &ann).await, 404, "ROOM_NOT_FOUND");
    control.post(&format!("/api/sessions/{id}/start"), &json!({})).await;

    let mut seen = Vec::new();
    for _ in 0..2 {
        let (code, body) = control.post(&path, &ann).await;
        assert_eq!(code, StatusCode::OK, "{body}");
        assert_eq!(body["roomName"], format!("session-{id}"));
        assert_eq!(body["url"], livekit.url.as_str());
        let token = body["token"].as_str().unwrap();
        let claims = TokenVerifier::with_api_key(KEY, SECRET).verify(token).unwrap();
        assert_eq!((claims.name.as_str(), claims.exp - claims.nbf), ("Ann", 3600));
        let video = claims.video;
        assert_eq!((video.room_join, video.room), (true, format!("session-{id}")));
        assert_eq!((video.can_publish, video.can_subscribe), (Some(true), Some(true)));
        assert_eq!(video.can_publish_data, Some(false));
        assert_eq!(video.can_update_own_metadata, Some(true));
        assert!(!video.room_admin && !video.room_create && !video.agent);
        seen.push((claims.sub, jti(token)));
    }
    assert_ne!(seen[0].0, seen[1].0, "a fresh identity");
    assert_ne!(seen[0].1, seen[1].1, "a fresh jti");

    let nameless = control.post(&path, &json!({"participantName": "  "})).await;
    assert_error(&nameless, 400, "INVALID_REQUEST");
    control.post(&format!("/api/sessions/{id}/end"), &json!({})).await;
    assert_error(&control.post(&path, &ann).await, 409, "SESSION_ENDED");
}

fn jti(token: &str) -> String {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    claims["jti"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn without_a_livekit_server_what_needs_one_says_so() {
    let control = Control::start(None).await;
    let id = control.create().await;
    let start = control.post(&format!("/api/sessions/{id}/start"), &json!({})).await;
    assert_error(&start, 503, "LIVEKIT_NOT_CONFIGURED");
    let token = json!({"participantName": "Ann"});
    let token = control.post(&format!("/api/sessions/{id}/livekit-token"), &token).await;
    assert_error(&token, 503, "LIVEKIT_NOT_CONFIGURED");
    let (code, status) = control.get(&format!("/api/sessions/{id}")).await;
    assert_eq!((code, &status["participants"]), (StatusCode::OK, &Value::Null));
    let (code, _) = control.post(&format!("/api/sessions/{id}/end"), &json!({})).await;
    assert_eq!(code, StatusCode::OK);
}

#[tokio::test]
async fn a_livekit_server_that_is_away_or_refuses_is_told_apart() {
    // A port that was free a moment ago.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = format!("ws://{}", listener.local_addr().unwrap());
    drop(listener);
    let livekit = LiveKitDouble::start().await;
    let mut wrong_secret = livekit.config();
    wrong_secret.api_secret = SecretString::from("another-secret-another-secret-another");
    let away = LiveKitConfig { url: away, ..livekit.config() };

    for (config, code) in [(away, "LIVEKIT_UNREACHABLE"), (wrong_secret, "LIVEKIT_REFUSED")] {
        let control = Control::start(Some(config)).await;
        let id = control.create().await;
        let start = control.post(&format!("/api/sessions/{id}/start"), &json!({})).await;
        assert_error(&start, 502, code);
        let (_, status) = control.get(&format!("/api/sessions/{id}")).await;
        assert_eq!(status["status"], "created", "it can be tried again");
    }
}

#[tokio::test]
async fn ingesting_twice_changes_nothing() {
    let control = Control::start(None).await;
    let items = json!([segment("a", "hello", 100), segment("b", "you", 900)]);
    assert_eq!(control.ingest("r", items.clone()).await, json!({"accepted": 2, "duplicates": 0}));
    assert_eq!(control.ingest("r", items).await, json!({"accepted": 2, "duplicates": 2}));

    let id = control.session_of("r").await;
    let (code, page) = control.get(&format!("/api/sessions/{id}/transcripts")).await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(page["pagination"], json!({"total": 2, "page": 1, "limit": 50, "asOf": 2}));
    let first = json!({
        "id": "a", "speakerId": "ann", "speakerName": "Ann", "content": "hello",
        "timestampMs": 100, "durationMs": 900, "confidence": 0.97, "isFinal": true,
    });
    assert_eq!(page["transcripts"][0], first);
}

#[tokio::test]
async fn transcripts_are_filtered_and_paged() {
    let control = Control::start(None).await;
    let items: Vec<_> = (0..5).map(|n| segment(&format!("s{n}"), "x", 100 * n)).collect();
    control.ingest("r", json!(items)).await;
    let id = control.session_of("r").await;
    let ids = async |query: &str| {
        let (_, page) = control.get(&format!("/api/sessions/{id}/transcripts?{query}")).await;
        let rows = page["transcripts"].as_array().unwrap();
        rows.iter().map(|row| row["id"].as_str().unwrap()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ids("limit=2").await, "s0 s1");
    assert_eq!(ids("limit=2&page=3").await, "s4");
    assert_eq!(ids("from=100&to=300").await, "s1 s2");
    assert_eq!(ids("speaker=nobody").await, "");
    for query in ["page=0", "limit=0", "limit=501", "from=soon"] {
        let answer = control.get(&format!("/api/sessions/{id}/transcripts?{query}")).await;
        assert_error(&answer, 400, "INVALID_REQUEST");
    }
}

#[tokio::test]
async fn a_listener_hears_interims_finals_states_and_usage() {
    let control = Control::start(None).await;
    control.ingest("r", json!([segment("before", "earlier", 0)])).await;
    let id = control.session_of("r").await;
    let mut listener = control.listen(&id, None).await;
    let mut interim = segment("a", "hel", 100);
    interim["type"] = "interim".into();
    control
        .ingest(
            "r",
            json!([
                interim,
                segment("a", "hello", 100),
                {"type": "state", "state": "thinking"},
                {"type": "hologram"},
                {"type": "usage", "service": "tts", "provider": "p", "model": "m", "characters": 3},
                {"type": "event", "name": "fault", "data": {"code": "TRANSCRIPTION_FAILED"}},
            ]),
        )
        .await;
    let heard = listener.next().await.unwrap();
    assert_eq!((heard.name.as_str(), &heard.data["isFinal"]), ("interim", &json!(false)));
    assert_eq!((&heard.data["timestampMs"], &heard.data["kind"]), (&json!(100), &json!("user")));
    assert_eq!(
        listener.hear(4).await,
        [
            "final:hello",
            "state:thinking",
            r#"usage:{"characters":3,"model":"m","provider":"p","service":"tts"}"#,
            r#"event:{"data":{"code":"TRANSCRIPTION_FAILED"},"name":"fault"}"#,
        ]
    );
}

#[tokio::test]
async fn a_listener_that_comes_back_resumes_where_it_was() {
    let control = Control::start(None).await;
    control.ingest("r", json!([segment("0", "zero", 0)])).await;
    let id = control.session_of("r").await;
    let mut listener = control.listen(&id, None).await;
    control.ingest("r", json!([segment("1", "one", 1)])).await;
    assert_eq!(listener.hear(1).await, ["final:one"]);
    let last = listener.last.clone().unwrap();
    drop(listener);

    control.ingest("r", json!([segment("2", "two", 2), {"type": "state", "state": "idle"}])).await;
    let mut listener = control.listen(&id, Some(&last)).await;
    control.ingest("r", json!([segment("3", "three", 3)])).await;
    assert_eq!(listener.hear(3).await, ["final:two", "state:idle", "final:three"]);

    let mut from_the_start = control.listen(&id, Some("0")).await;
    assert_eq!(from_the_start.hear(2).await, ["final:zero", "final:one"]);
    let bad = control
        .request(Method::GET, &format!("/api/sessions/{id}/transcripts/live"))
        .header("Last-Event-ID", "soon");
    assert_error(&read(bad.send().await.unwrap()).await, 400, "INVALID_REQUEST");
}

#[tokio::test]
async fn a_listener_that_was_cut_off_before_the_first_event_misses_nothing() {
    let control = Control::start(None).await;
    control.ingest("r", json!([segment("0", "zero", 0)])).await;
    let id = control.session_of("r").await;
    let last = control.listen(&id, None).await.last.unwrap();
    control.ingest("r", json!([segment("1", "one", 1)])).await;
    let mut listener = control.listen(&id, Some(&last)).await;
    assert_eq!(listener.hear(1).await, ["final:one"]);
}

#[tokio::test]
async fn a_slow_listener_gets_every_final() {
    let control = Control::start(None).await;
    control.ingest("r", json!([])).await;
    let id = control.session_of("r").await;
    let mut listener = control.listen(&id, None).await;
    let text = "x".repeat(20_000);
    for batch in 0..40 {
        let items: Vec<_> =
            (0..20).map(|n| segment(&format!("{batch} {n}"), &text, 20 * batch + n)).collect();
        control.ingest("r", json!(items)).await;
    }
    // It reads only now: 16 MB have not fitted into any buffer on the way.
    let mut times = Vec::new();
    while times.len() < 800 {
        let heard = listener.next().await.unwrap();
        if heard.name == "final" {
            times.push(heard.data["timestampMs"].as_i64().unwrap());
        }
    }
    assert_eq!(times, (0..800).collect::<Vec<_>>());
}

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
    let source = include_str!("router.rs");
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
async fn a_report_with_one_invalid_item_is_refused_as_a_whole() {
    let control = Control::start(None).await;
    let report = |room: &str, item: Value| json!({"room": room, "startedAtUnixMs": 1, "items": [segment("good", "x", 0), item]});
    let wrong = [
        report("", json!({"type": "state", "state": "idle"})),
        report("r", segment("", "x", 0)),
        report("r", segment("long", &"x".repeat(100_001), 0)),
        report("r", segment("early", "x", -1_000_001)),
        report("r", json!({"type": "segment"})),
        report("r", json!({"type": "event", "name": "n", "data": "x".repeat(20_000)})),
    ];
    for body in wrong {
        assert_error(&control.post("/api/ingest", &body).await, 400, "INVALID_REQUEST");
    }
    let (_, list) = control.get("/api/sessions?status=all").await;
    assert_eq!(list["sessions"], json!([]));
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

#[tokio::test]
async fn a_worker_reports_a_call_through_its_outbox() {
    let directory = tempfile::tempdir().unwrap();
    let control = Control::start(None).await;
    let reporter = Reporter::start(ReporterConfig {
        state_dir: directory.path().to_owned(),
        control_url: Some(control.url.parse().unwrap()),
        token: Some(SecretString::from(TOKEN)),
        outbox_cap: DEFAULT_OUTBOX_CAP,
    })
    .await
    .unwrap();
    let session = reporter.session(SessionInfo {
        room: "lobby".into(),
        session_key: "RM_1".into(),
        agent: "assistant".into(),
        started_at_unix_ms: 1_000_000,
    });
    let mut segment = Segment {
        id: "SG_1".into(),
        kind: SpeakerKind::User,
        speaker_id: "ann".into(),
        speaker_name: "Ann".into(),
        text: "Book a".into(),
        start_ms: 1_500,
        duration_ms: 400,
        confidence: 0.5,
        is_final: false,
    };
    session.interim(&segment);
    segment.text = "Book a table.".into();
    segment.is_final = true;
    session.final_segment(&segment).await.unwrap();
    session.state("thinking");
    session.usage(Used {
        usage: Usage::Stt { link: 0, audio_ms: 900 },
        provider: "deepgram",
        model: "nova-3",
        cost: Some(115_500),
    });
    session.close().await;
    assert!(reporter.flush(LIMIT).await);

    let id = control.session_of("lobby").await;
    let (_, status) = control.get(&format!("/api/sessions/{id}")).await;
    assert_eq!((&status["status"], &status["agent"]), (&json!("completed"), &json!("assistant")));
    let (_, page) = control.get(&format!("/api/sessions/{id}/transcripts")).await;
    let row = &page["transcripts"][0];
    assert_eq!((&row["content"], &row["timestampMs"]), (&json!("Book a table."), &json!(1_500)));
    let used = json!({
        "usage": [{
            "service": "stt", "provider": "deepgram", "model": "nova-3", "audioMs": 900,
            "costNanoUsd": 115_500
        }],
        "costUsd": 0.000_116
    });
    assert_eq!(control.get(&format!("/api/sessions/{id}/usage")).await.1, used);
    assert_eq!(control.get("/api/usage?from=1").await.1, used);
    assert_eq!(control.get("/api/usage?to=1").await.1, json!({"usage": [], "costUsd": 0.0}));
    let mut listener = control.listen(&id, Some("0")).await;
    let heard = listener.hear(4).await.join(" ");
    assert!(heard.starts_with("final:Book a table. state:thinking usage:"), "{heard}");
    assert!(heard.ends_with(r#"session:{"status":"completed"}"#), "{heard}");
}

/// Everything that is logged on this thread, at every level.
#[derive(Clone, Default)]
struct Logs(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_reaches_the_log_or_a_client() {
    let logs = Logs::default();
    let writer = logs.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let livekit = LiveKitDouble::start().await;
    let mut wrong = livekit.config();
    wrong.api_secret = SecretString::from("another-secret-another-secret-another");
    let mut answers = String::new();
    for config in [livekit.config(), wrong] {
        tracing::info!(?config, "configured");
        let control = Control::start(Some(config)).await;
        let id = control.create().await;
        for path in ["start", "end"] {
            let answer = control.post(&format!("/api/sessions/{id}/{path}"), &json!({})).await;
            answers.push_str(&answer.1.to_string());
        }
        let mislaid = control.client.get(format!("{}/api/sessions", control.url));
        let answer = read(mislaid.bearer_auth("mislaid-token").send().await.unwrap()).await;
        answers.push_str(&answer.1.to_string());

        let directory = tempfile::tempdir().unwrap();
        let reporter = Reporter::start(ReporterConfig {
            state_dir: directory.path().to_owned(),
            control_url: Some(control.url.parse().unwrap()),
            token: Some(SecretString::from("mislaid-token")),
            outbox_cap: DEFAULT_OUTBOX_CAP,
        })
        .await
        .unwrap();
        let session = reporter.session(SessionInfo {
            room: "r".into(),
            session_key: String::new(),
            agent: String::new(),
            started_at_unix_ms: 1,
        });
        session.state("idle");
        assert!(reporter.flush(LIMIT).await);
        tracing::info!(?reporter, ?session, "reported");
    }
    let logs = String::from_utf8(logs.0.lock().clone()).unwrap();
    assert!(logs.contains("refuses this worker's reports"), "the log was captured: {logs}");
    assert!(logs.contains("LIVEKIT_REFUSED"), "the log was captured: {logs}");
    // "eyJ": how every JWT begins.
    for secret in [TOKEN, SECRET, "another-secret", "mislaid-token", "eyJ"] {
        assert!(!logs.contains(secret), "{secret} in {logs}");
        assert!(!answers.contains(secret), "{secret} in {answers}");
    }
}
