//! The control endpoint as its clients see it: over HTTP, on loopback.

use std::{net::Ipv4Addr, time::Duration};

use reqwest::{Method, Response, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Bound, ControlConfig, ControlError, LiveKitConfig, MetricsText,
    livekit_double::{KEY, LiveKitDouble, SECRET},
    serve,
};
use crate::config::{Config, control::ControlSettings};

mod access;
mod flows;
mod reports;
mod sessions;
mod surface;
mod transcripts;

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
