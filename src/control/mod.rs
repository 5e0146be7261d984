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

use crate::{
    config::control::{ControlSettings, JwtKeys},
    recording::{
        parse_key,
        storage::{Storage, StorageError},
    },
    store::{Store, StoreError},
};
pub use app::MetricsText;
use app::{App, Shared};
use auth::{Auth, UserKeys};
use jwt::Expected;
use limits::Limits;
use livekit::LiveKit;
pub use livekit::LiveKitConfig;

mod agent;
mod app;
#[allow(unused_qualifications, reason = "utoipa's macro for query parameters writes them")]
mod audit;
pub mod auth;
mod cors;
mod docs;
#[allow(unused_qualifications, reason = "utoipa's macro for query parameters writes them")]
mod documents;
pub mod error;
#[allow(unused_qualifications, reason = "utoipa's macro for query parameters writes them")]
mod export;
mod extract;
mod health;
mod housekeeping;
mod ingest;
mod jwt;
mod limits;
mod links;
#[allow(unused_qualifications, reason = "utoipa's macro for query parameters writes them")]
mod live;
mod livekit;
mod openapi;
mod people;
mod range;
#[allow(unused_qualifications, reason = "utoipa's macro for query parameters writes them")]
mod recordings;
mod router;
#[allow(unused_qualifications, reason = "utoipa's macro for query parameters writes them")]
mod sessions;
mod tokens;
#[allow(unused_qualifications, reason = "utoipa's macro for query parameters writes them")]
mod transcripts;
mod usage;
mod voice;
mod webhooks;

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
    /// See [`Store::open`].
    pub database_url: String,
    /// The agent that is dispatched unless a session names another; empty: automatic dispatch.
    pub agent_name: String,
    /// What `/metrics` answers.
    pub metrics: Option<MetricsText>,
    pub settings: ControlSettings,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("ANTIPHON_CONTROL_TOKEN is empty: set it to a long random text")]
    EmptyToken,
    #[error("the database cannot be opened: {0}")]
    Store(#[from] StoreError),
    #[error("the storage of recordings cannot be used: {0}")]
    Storage(#[from] StorageError),
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
    let address = SocketAddr::new(config.bind, config.port);
    let app = open(config, shutdown.clone()).await?;
    let store = app.store.clone();
    let bind = |error| ControlError::Bind { address, error };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let addr = listener.local_addr().map_err(bind)?;
    // A live event is small and must not wait for the next one.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let housekeeping =
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(housekeeping::run(app.clone())));
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
        // It ends by the shutdown too; an error means that it panicked.
        let _ = housekeeping.await;
        store.close().await;
    });
    tracing::info!(%addr, "the control endpoint listens");
    Ok(Bound { addr, task })
}

/// Everything but the socket.
async fn open(config: ControlConfig, shutdown: CancellationToken) -> Result<App, ControlError> {
    let store = Arc::new(Store::open(&config.database_url).await?);
    let settings = config.settings;
    let storage = open_storage(&settings)?;
    let users = settings.jwt.clone().map(|keys| match keys {
        JwtKeys::Hs256(secret) => UserKeys::Hs256(secret),
        JwtKeys::Rs256(url) => UserKeys::Rs256(url),
    });
    let expected =
        Expected { issuer: settings.jwt_issuer.clone(), audience: settings.jwt_audience.clone() };
    let auth = Auth::new(config.token, users, expected);
    Ok(App(Arc::new(Shared {
        store,
        hub: live::Hub::default(),
        livekit: config.livekit.map(LiveKit::new),
        url_key: auth.signing_key("recording addresses"),
        auth,
        limits: Limits::new(settings.rate_limit),
        storage,
        settings,
        agent_name: config.agent_name,
        metrics: config.metrics,
        shutdown,
        openapi: OnceLock::new(),
        turns: app::Turns::default(),
    })))
}

/// Where recordings are, by the settings that the worker's recorder has too.
pub fn open_storage(settings: &ControlSettings) -> Result<Storage, StorageError> {
    let key = settings.recording_key.as_ref().and_then(parse_key);
    match &settings.s3 {
        Some(s3) => Storage::s3(s3, key),
        None => Storage::local(&settings.recordings_dir, key),
    }
}
