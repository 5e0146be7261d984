//! `antiphon control`: the companion HTTP endpoint.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    cli::{Exit, fail, start::signals},
    config::{Config, Setup, env},
    control::{self, Bound, ControlConfig, LiveKitConfig, MetricsText},
    telemetry::metrics,
};

pub async fn run(setup: Setup) -> Exit {
    let Setup { config, livekit, control_token, .. } = setup;
    let Some(token) = control_token else { return Exit::Usage };
    let Some(signals) = signals() else { return Exit::Usage };
    match serve(&config, livekit, token, config.control_port, signals.drain).await {
        Ok(bound) => {
            info!(address = %bound.addr, "the control endpoint is up; its API is at /openapi.json");
            bound.finished().await;
            Exit::Done
        }
        Err(exit) => exit,
    }
}

/// Opens the store and binds; the endpoint serves until `stop`.
pub async fn serve(
    config: &Config,
    livekit: Option<env::LiveKitAccess>,
    token: SecretString,
    port: u16,
    stop: CancellationToken,
) -> Result<Bound, Exit> {
    let livekit = livekit.map(|access| LiveKitConfig {
        url: access.ws_url(),
        api_key: access.api_key,
        api_secret: access.api_secret,
    });
    let control = ControlConfig {
        bind: config.bind,
        port,
        token,
        livekit,
        database_url: config.database_url.expose_secret().to_owned(),
        agent_name: config.agent_name.clone(),
        settings: config.control.clone(),
        metrics: Some(MetricsText(Arc::new(metrics::render))),
    };
    control::serve(control, stop).await.map_err(|error| {
        fail(&format!("the control endpoint cannot start: {error}"));
        Exit::Usage
    })
}
