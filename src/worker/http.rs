//! `/healthz`, `/readyz` and `/metrics` of a worker.

use std::net::SocketAddr;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use tokio::{net::TcpListener, sync::watch};

use super::protocol::Snapshot;
use crate::telemetry::metrics;

/// Why the endpoint is not there.
#[derive(Debug, thiserror::Error)]
#[error("the health endpoint cannot listen on {address}: {source}")]
pub struct BindError {
    pub address: SocketAddr,
    pub source: std::io::Error,
}

/// The state as an orchestrator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Has never been registered yet.
    Starting,
    Ok,
    /// Was registered, and is trying again.
    Reconnecting,
    Draining,
    /// No further connection will be tried; the last jobs are ending.
    Failed,
}

/// The body of `/healthz` and `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    pub status: Status,
    pub registered: bool,
    pub jobs: usize,
    pub version: &'static str,
}

impl Health {
    pub fn of(snapshot: &Snapshot) -> Self {
        let status = if snapshot.gave_up {
            Status::Failed
        } else if snapshot.draining {
            Status::Draining
        } else if snapshot.registered {
            Status::Ok
        } else if snapshot.was_registered {
            Status::Reconnecting
        } else {
            Status::Starting
        };
        Self {
            status,
            registered: snapshot.registered,
            jobs: snapshot.jobs,
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Restarting this process would not help.
    fn is_alive(&self) -> bool {
        matches!(self.status, Status::Ok | Status::Reconnecting | Status::Draining)
    }

    /// Jobs may come.
    fn is_ready(&self) -> bool {
        self.status == Status::Ok
    }
}

/// Takes the address before anything else starts.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, health: watch::Receiver<Health>) {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(prometheus))
        .with_state(health);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the health endpoint has ended");
    }
}

async fn healthz(State(health): State<watch::Receiver<Health>>) -> Response {
    let health = health.borrow().clone();
    answer(health.is_alive(), health)
}

async fn readyz(State(health): State<watch::Receiver<Health>>) -> Response {
    let health = health.borrow().clone();
    answer(health.is_ready(), health)
}

fn answer(good: bool, health: Health) -> Response {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

async fn prometheus() -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render())
        .into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            registered: false,
            was_registered: false,
            gave_up: false,
            draining: false,
            jobs: 0,
            reserved: 0,
            load: 0.0,
        }
    }

    async fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    #[tokio::test]
    async fn health_follows_the_registration() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, health) = watch::channel(Health::of(&snapshot()));
        tokio::spawn(serve(listener, health));

        let (status, body) = get(address, "/healthz").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["status"]), (503, &"starting".into()));

        let registered = Snapshot { registered: true, was_registered: true, jobs: 2, ..snapshot() };
        tell.send_replace(Health::of(&registered));
        let (status, body) = get(address, "/healthz").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["status"]), (200, &"ok".into()));
        assert_eq!((&body["registered"], &body["jobs"]), (&true.into(), &2.into()));
        assert_eq!(body["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(get(address, "/readyz").await.0, 200);

        tell.send_replace(Health::of(&Snapshot { registered: false, ..registered.clone() }));
        assert_eq!(get(address, "/healthz").await.0, 200);
        assert_eq!(get(address, "/readyz").await.0, 503);

        tell.send_replace(Health::of(&Snapshot { gave_up: true, ..registered }));
        assert_eq!(get(address, "/healthz").await.0, 503);
    }

    #[tokio::test]
    async fn metrics_are_prometheus_text() {
        metrics::install().unwrap();
        ::metrics::counter!(metrics::JOBS_TOTAL, "status" => "success").increment(1);
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_tell, health) = watch::channel(Health::of(&snapshot()));
        tokio::spawn(serve(listener, health));
        let (status, body) = get(address, "/metrics").await;
        assert_eq!(status, 200);
        assert!(body.contains("# TYPE antiphon_jobs_total counter"), "{body}");
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(address).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
