//! The control endpoint over SQLite, by its own HTTP: `cargo bench --bench control`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench says what it has measured")]

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use antiphon::{
    config::Config,
    control::{self, ControlConfig},
};
use axum::http::header::CONTENT_TYPE;
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "service-token-of-the-bench";
const LISTENERS: usize = 500;
const REQUESTS_A_SECOND: u64 = 200;
/// For what is slow by design.
const SLOW: u64 = 10;

#[derive(Clone)]
struct Api {
    url: String,
    client: reqwest::Client,
}

impl Api {
    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let request = self.client.request(method, format!("{}{path}", self.url)).bearer_auth(TOKEN);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.send(Method::POST, path, Some(body)).await
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        let request = self.client.get(format!("{}{path}", self.url)).bearer_auth(TOKEN);
        request.send().await.unwrap().error_for_status().unwrap()
    }

    async fn report(&self, room: &str, speaker: &str, rows: Range<usize>) {
        let items: Vec<Value> = rows.map(|n| segment(room, speaker, n)).collect();
        self.post("/api/ingest", json!({"room": room, "startedAtUnixMs": 1, "items": items})).await;
    }
}

fn segment(room: &str, speaker: &str, n: usize) -> Value {
    json!({
        "type": "segment", "id": format!("{room} {n}"), "kind": "user", "speakerId": speaker,
        "speakerName": "Ann", "content": "I would like to book a table for four tomorrow evening.",
        "spokenAtUnixMs": 1 + n, "durationMs": 2_400, "confidence": 0.97,
    })
}

fn main() {
    // Cargo passes `--bench`, and `cargo test` builds and runs benches too.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(run());
}

async fn run() {
    antiphon::net::install_crypto();
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().to_str().unwrap();
    let settings =
        Config::from_vars([("ANTIPHON_STATE_DIR", state), ("ANTIPHON_RATE_LIMIT", "0")]).unwrap();
    let shutdown = CancellationToken::new();
    let bound = control::serve(
        ControlConfig {
            bind: std::net::Ipv4Addr::LOCALHOST.into(),
            port: 0,
            token: SecretString::from(TOKEN),
            livekit: Some(livekit().await),
            database_url: directory.path().join("control.db").display().to_string(),
            agent_name: "bench".into(),
            metrics: None,
            settings: settings.control,
        },
        shutdown.clone(),
    )
    .await
    .unwrap();
    let api = Api { url: format!("http://{}", bound.addr), client: reqwest::Client::new() };

    ingest(&api).await;
    routes(&api).await;
    live(&api).await;
    println!("| memory at the end, the bench's own included, MB | {:.0} |", resident_mb());
    shutdown.cancel();
    bound.finished().await;
}

/// Four rooms' workers, 100 rows a batch, each batch acknowledged before the next.
async fn ingest(api: &Api) {
    const BATCHES: usize = 100;
    let begun = Instant::now();
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let api = api.clone();
            tokio::spawn(async move {
                let room = format!("ingest-{worker}");
                for batch in 0..BATCHES {
                    api.report(&room, "ann", 100 * batch..100 * (batch + 1)).await;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    let rows = (4 * BATCHES * 100) as f64;
    println!("| ingest, rows/s | {:.0} |", rows / begun.elapsed().as_secs_f64());
}

/// Each route by itself, for 5 s.
async fn routes(api: &Api) {
    // Half an hour's talk, beside the long ones of `ingest`.
    api.report("talk", "ben", 0..300).await;
    let sessions: Value = api.get("/api/sessions").await.json().await.unwrap();
    let talk = |session: &&Value| session["room"] == "talk";
    let id = sessions["sessions"].as_array().unwrap().iter().find(talk).unwrap()["id"].as_str();
    let id = id.unwrap();
    let page: Value =
        api.get(&format!("/api/sessions/{id}/transcripts")).await.json().await.unwrap();
    let row = page["transcripts"][0]["id"].as_str().unwrap();
    for path in [
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/docs",
        "/api/sessions",
        "/api/sessions/{id}",
        "/api/sessions/{id}/transcripts",
        "/api/sessions/{id}/transcripts/export?format=vtt",
        "/api/sessions/{id}/recordings",
        "/api/voice-sessions",
        "/api/people/ben/data",
        "/api/knowledge/documents",
        "/api/audit",
    ] {
        let filled = path.replace("{id}", id);
        let get = move |api: Api, _| {
            let path = filled.clone();
            async move { drop(api.get(&path).await.bytes().await.unwrap()) }
        };
        print_times(&format!("GET {path}"), at_rate(REQUESTS_A_SECOND, get, api).await);
    }
    let flag = format!("/api/sessions/{id}/transcripts/{row}");
    let patch = move |api: Api, n: usize| {
        let (path, body) = (flag.clone(), json!({"flagged": n.is_multiple_of(2)}));
        async move { drop(api.send(Method::PATCH, &path, Some(body)).await) }
    };
    let times = at_rate(REQUESTS_A_SECOND, patch, api).await;
    print_times("PATCH /api/sessions/{id}/transcripts/{tid}", times);
    let report = |api: Api, n| async move { api.report("rate", "ann", n..n + 1).await };
    print_times("POST /api/ingest, 1 row", at_rate(REQUESTS_A_SECOND, report, api).await);
    life(api).await;
}

/// A session from its making to its end, each step for all of them before the next.
async fn life(api: &Api) {
    let made = Arc::new(Mutex::new(Vec::new()));
    let create = |api: Api, _| {
        let made = made.clone();
        async move {
            let session = api.post("/api/sessions", json!({})).await;
            made.lock().unwrap().push(session["session"]["id"].as_str().unwrap().to_owned());
        }
    };
    print_times("POST /api/sessions", at_rate(REQUESTS_A_SECOND, create, api).await);
    let made: Arc<[String]> = std::mem::take(&mut *made.lock().unwrap()).into();
    // A link's password is hashed to be slow.
    for (step, body, rate) in [
        (
            "start",
            json!({"consent": {"recording": true, "transcription": true}}),
            REQUESTS_A_SECOND,
        ),
        ("livekit-token", json!({"participantName": "Ann"}), REQUESTS_A_SECOND),
        ("links", json!({"participantName": "Ann"}), SLOW),
        ("end", json!({}), REQUESTS_A_SECOND),
    ] {
        let post = |api: Api, n: usize| {
            let path = format!("/api/sessions/{}/{step}", made[n]);
            let body = body.clone();
            async move { drop(api.post(&path, body).await) }
        };
        let times = at_rate(rate, post, api).await;
        print_times(&format!("POST /api/sessions/{{id}}/{step}, {rate} a second"), times);
    }
    let rooms = Arc::new(Mutex::new(Vec::new()));
    let create = |api: Api, _| {
        let rooms = rooms.clone();
        async move {
            let voice = json!({"agent_type": "workout", "mode": "converse"});
            let session = api.post("/api/voice-sessions", voice).await;
            rooms.lock().unwrap().push(session["room_name"].as_str().unwrap().to_owned());
        }
    };
    print_times("POST /api/voice-sessions", at_rate(REQUESTS_A_SECOND, create, api).await);
    let rooms: Arc<[String]> = std::mem::take(&mut *rooms.lock().unwrap()).into();
    for method in [Method::GET, Method::DELETE] {
        let call = |api: Api, n: usize| {
            let (method, path) = (method.clone(), format!("/api/voice-sessions/{}", rooms[n]));
            async move { drop(api.send(method, &path, None).await) }
        };
        let times = at_rate(REQUESTS_A_SECOND, call, api).await;
        print_times(&format!("{method} /api/voice-sessions/{{room}}"), times);
    }
}

/// For 5 s at a fixed rate, whatever the answers take.
async fn at_rate<F>(rate: u64, call: impl Fn(Api, usize) -> F, api: &Api) -> Vec<Duration>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / rate));
    let mut running = Vec::new();
    for n in 0..5 * rate as usize {
        ticks.tick().await;
        let call = call(api.clone(), n);
        running.push(tokio::spawn(async move {
            let begun = Instant::now();
            call.await;
            begun.elapsed()
        }));
    }
    let mut times = Vec::new();
    for one in running {
        times.push(one.await.unwrap());
    }
    times
}

/// A LiveKit server's services (Twirp), which takes everything and tells nothing: an empty body is
/// the default of any message. What a real one takes is not the endpoint's.
async fn livekit() -> control::LiveKitConfig {
    let answer = || async { ([(CONTENT_TYPE, "application/protobuf")], Vec::new()) };
    let app = axum::Router::new().route("/twirp/{service}/{method}", axum::routing::post(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    control::LiveKitConfig {
        url,
        api_key: "bench".into(),
        api_secret: SecretString::from("secret-of-the-bench-secret-of-the-bench"),
    }
}

/// From before the report to each listener's ear.
async fn live(api: &Api) {
    api.report("live", "ann", 0..1).await;
    let sessions: Value = api.get("/api/sessions?limit=500").await.json().await.unwrap();
    let rows = sessions["sessions"].as_array().unwrap();
    let id = rows.iter().find(|one| one["room"] == "live").unwrap()["id"].as_str().unwrap();
    let mut listeners = Vec::new();
    for _ in 0..LISTENERS {
        let mut answer = api.get(&format!("/api/sessions/{id}/transcripts/live")).await;
        // The greeting.
        answer.chunk().await.unwrap().unwrap();
        listeners.push(answer);
    }
    let mut delays = Vec::new();
    for n in 1..=20 {
        let begun = Instant::now();
        let heard: Vec<_> = listeners
            .drain(..)
            .map(|mut answer| {
                tokio::spawn(async move {
                    answer.chunk().await.unwrap().unwrap();
                    (begun.elapsed(), answer)
                })
            })
            .collect();
        api.report("live", "ann", n..n + 1).await;
        for one in heard {
            let (delay, answer) = one.await.unwrap();
            delays.push(delay);
            listeners.push(answer);
        }
    }
    print_times(&format!("live push to {LISTENERS} listeners"), delays);
}

fn print_times(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    println!(
        "| {what}, p50 / p99 ms | {:.2} / {:.2} |",
        at(50).as_secs_f64() * 1e3,
        at(99).as_secs_f64() * 1e3
    );
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kb = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kb.unwrap_or_default() / 1e3
}
