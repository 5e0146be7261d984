//! `antiphon dev`: worker and control endpoint in one process.

use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use tracing::info;
use url::Url;

use crate::{
    cli::{Exit, control, start},
    config::Setup,
};

pub async fn run(mut setup: Setup) -> Exit {
    // The two halves of this process trust each other; nobody else has the token unless it is set.
    let token = setup
        .control_token
        .clone()
        .unwrap_or_else(|| SecretString::from(uuid::Uuid::new_v4().simple().to_string()));
    let stop = CancellationToken::new();
    let port = setup.config.control_port;
    let livekit = setup.livekit.clone();
    let bound =
        match control::serve(&setup.config, livekit, token.clone(), port, stop.clone()).await {
            Ok(bound) => bound,
            Err(exit) => return exit,
        };
    info!(address = %bound.addr, "the control endpoint is up; its API is at /openapi.json");
    setup.config.control_url = Url::parse(&format!("http://{}", bound.addr)).ok();
    setup.config.control_token = Some(token);
    let reporter = match start::reporter(&setup.config).await {
        Ok(reporter) => reporter,
        Err(exit) => return exit,
    };
    let exit = start::serve(setup, reporter).await;
    stop.cancel();
    bound.finished().await;
    exit
}
