//! What every handler shares.

use std::{
    collections::HashMap,
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock, Weak},
};

use parking_lot::Mutex;
use ring::hmac;
use tokio_util::sync::CancellationToken;

use super::{
    auth::Auth,
    error::{ApiError, Code},
    limits::Limits,
    live::Hub,
    livekit::LiveKit,
};
use crate::{config::control::ControlSettings, recording::storage::Storage, store::Store};

/// Renders the process's metrics in Prometheus's text format.
#[derive(Clone)]
pub struct MetricsText(pub Arc<dyn Fn() -> String + Send + Sync>);

impl fmt::Debug for MetricsText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MetricsText")
    }
}

#[derive(Debug, Clone)]
pub struct App(pub Arc<Shared>);

#[derive(Debug)]
pub struct Shared {
    pub store: Arc<Store>,
    pub hub: Hub,
    pub livekit: Option<LiveKit>,
    pub auth: Auth,
    pub limits: Limits,
    /// Signs addresses of recordings.
    pub url_key: hmac::Key,
    pub storage: Storage,
    pub settings: ControlSettings,
    /// The agent that is dispatched unless a session names another; empty: automatic dispatch.
    pub agent_name: String,
    pub metrics: Option<MetricsText>,
    pub shutdown: CancellationToken,
    /// The OpenAPI document; known once the router is built.
    pub openapi: OnceLock<String>,
    pub turns: Turns,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Shared {
    /// A path of ours as others reach it.
    pub fn public(&self, path: &str) -> String {
        match &self.settings.public_url {
            Some(url) => format!("{}{path}", url.as_str().trim_end_matches('/')),
            None => path.to_owned(),
        }
    }

    pub fn livekit(&self) -> Result<&LiveKit, ApiError> {
        self.livekit.as_ref().ok_or(ApiError::new(Code::LivekitNotConfigured))
    }
}

/// Start and end of one session take turns, so that two starts at once dispatch one agent.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    pub async fn take(&self, session: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock();
            turns.retain(|_, turn| turn.strong_count() > 0);
            let known = turns.get(session).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::new(tokio::sync::Mutex::new(()));
                turns.insert(session.to_owned(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}
