//! The control endpoint over SQLite, by its own HTTP: `cargo bench --bench control`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench says what it has measured")]

use std::time::Duration;

use antiphon::{
    config::Config,
    control::{self, ControlConfig},
};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "service-token-of-the-bench";
const LISTENERS: usize = 500;
const REQUESTS_A_SECOND: u64 = 200;

#[derive(Clone)]
struct Api {
    url: String,
    client: reqwest::Client,
}

impl Api {
    async fn post(&self, path: &str, body: &Value) -> Value {
        let request = self.client.post(format!("{}{path}", self.url)).bearer_auth(TOKEN);
        request.json(body).send().await.unwrap().json().await.unwrap()
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        let request = self.client.get(format!("{}{path}", self.url)).bearer_auth(TOKEN);
        request.send().await.unwrap().error_for_status().unwrap()
    }

    async fn report(&self, room: &str, from: usize, rows: usize) {
        let items: Vec<Value> = (from..from + rows).map(|n| segment(room, n)).collect();
        self.post("/api/ingest", &json!({"room": room, "startedAtUnixMs": 1, "items": items}))
            .await;
    }
}

fn segment(room: &str, n: usize) -> Value {
    json!({
        "type": "segment", "id": format!("{room} {n}"), "kind": "user", "speakerId": "ann",
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
            livekit: None,
            database_url: directory.path().join("control.db").display().to_string(),
            agent_name: String::new(),
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
                    api.report(&room, 100 * batch, 100).await;
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

/// At a fixed rate whatever the answers take, for 5 s each.
async fn routes(api: &Api) {
    let sessions: Value = api.get("/api/sessions").await.json().await.unwrap();
    let id = sessions["sessions"][0]["id"].as_str().unwrap();
    let paths = [
        "/healthz".to_owned(),
        "/api/sessions".to_owned(),
        format!("/api/sessions/{id}"),
        format!("/api/sessions/{id}/transcripts"),
        format!("/api/sessions/{id}/transcripts/export?format=vtt"),
        format!("/api/sessions/{id}/recordings"),
        "/api/audit".to_owned(),
    ];
    for path in paths {
        let shown = path.replace(id, "{id}");
        let times = at_rate(
            move |api, _| {
                let path = path.clone();
                async move { drop(api.get(&path).await.bytes().await.unwrap()) }
            },
            api,
        );
        print_times(&format!("GET {shown}"), times.await);
    }
    let times = at_rate(|api, n| async move { api.report("rate", n, 1).await }, api);
    print_times("POST /api/ingest, 1 row", times.await);
    let times =
        at_rate(|api, _| async move { drop(api.post("/api/sessions", &json!({})).await) }, api);
    print_times("POST /api/sessions", times.await);
}

async fn at_rate<F>(call: impl Fn(Api, usize) -> F, api: &Api) -> Vec<Duration>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / REQUESTS_A_SECOND));
    let mut running = Vec::new();
    for n in 0..5 * REQUESTS_A_SECOND as usize {
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

/// From before the report to each listener's ear.
async fn live(api: &Api) {
    api.report("live", 0, 1).await;
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
        api.report("live", n, 1).await;
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
