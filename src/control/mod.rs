//! The companion HTTP control endpoint: sessions, tokens, transcripts, ingest.
//!
//! [`serve`] runs it; `antiphon control`, `dev` and `demo` share it. One file a concern.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::serve::ListenerExt;
use secrecy::{ExposeSecret, SecretString};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError, sqlite::SqliteStore};
pub use app::MetricsText;
use app::{App, Shared};
use livekit::LiveKit;
pub use livekit::LiveKitConfig;

mod app;
mod auth;
pub mod error;
mod extract;
mod health;
mod ingest;
#[allow(unused_qualifications, reason = "utoipa's macro for query parameters writes them")]
mod live;
mod livekit;
mod openapi;
mod router;
#[allow(unused_qualifications, reason = "utoipa's macro for query parameters writes them")]
mod sessions;
mod tokens;
#[allow(unused_qualifications, reason = "utoipa's macro for query parameters writes them")]
mod transcripts;

#[cfg(test)]
mod livekit_double;
#[cfg(test)]
mod tests;

/// After the shutdown begins, requests have this long to end.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct ControlConfig {
    pub bind: IpAddr,
    /// 0: any that is free.
    pub port: u16,
    /// ANTIPHON_CONTROL_TOKEN; must not be empty.
    pub token: SecretString,
    /// Without it, what needs a LiveKit server says so.
    pub livekit: Option<LiveKitConfig>,
    /// A file path, `sqlite:PATH` or `sqlite::memory:`.
    pub database_url: String,
    /// The agent that is dispatched unless a session names another; empty: automatic dispatch.
    pub agent_name: String,
    /// What `/metrics` answers.
    pub metrics: Option<MetricsText>,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("ANTIPHON_CONTROL_TOKEN is empty: set it to a long random text")]
    EmptyToken,
    #[error("the database cannot be opened: {0}")]
    Store(#[from] StoreError),
    #[error("cannot listen on {address}: {error}")]
    Bind { address: SocketAddr, error: io::Error },
}

/// A control endpoint that runs.
#[derive(Debug)]
pub struct Bound {
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Bound {
    /// Waits until it has shut down, at most 10 s after `shutdown` was cancelled.
    pub async fn finished(self) {
        // An error means that it panicked or that the runtime ends: it has shut down.
        let _ = self.task.await;
    }
}

/// Opens the store, binds and serves in the background until `shutdown` is cancelled. Then live
/// streams end, requests are answered, and the store is closed.
pub async fn serve(
    config: ControlConfig,
    shutdown: CancellationToken,
) -> Result<Bound, ControlError> {
    if config.token.expose_secret().is_empty() {
        return Err(ControlError::EmptyToken);
    }
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&config.database_url).await?);
    let address = SocketAddr::new(config.bind, config.port);
    let bind = |error| ControlError::Bind { address, error };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let addr = listener.local_addr().map_err(bind)?;
    // A live event is small and must not wait for the next one.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let app = App(Arc::new(Shared {
        store: store.clone(),
        hub: live::Hub::default(),
        livekit: config.livekit.map(LiveKit::new),
        token: config.token,
        agent_name: config.agent_name,
        metrics: config.metrics,
        shutdown: shutdown.clone(),
        openapi: OnceLock::new(),
        turns: app::Turns::default(),
    }));
    let server = axum::serve(listener, router::build(app))
        .with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let task = tokio::spawn(async move {
        let overdue = async {
            shutdown.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            _ = server => {}
            () = overdue => tracing::warn!("requests were cut off by the shutdown"),
        }
        store.close().await;
    });
    tracing::info!(%addr, "the control endpoint listens");
    Ok(Bound { addr, task })
}
