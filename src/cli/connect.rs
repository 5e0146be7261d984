//! `antiphon connect`: join one room directly, without dispatch.

use std::sync::Arc;

use clap::Args;
use livekit_api::access_token::{AccessToken, VideoGrants};
use secrecy::ExposeSecret;
use tracing::info;

use crate::{
    cli::{
        Exit, fail,
        runtime::{AgentRuntime, NewSession},
        start,
    },
    config::Setup,
    room::join::{self, RoomJob, RunError},
    worker::drain::Signals,
};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  antiphon connect --room test --agent assistant")]
pub struct ConnectArgs {
    /// The room to join; it is made if need be
    #[arg(long)]
    room: String,
    /// The identity to join with
    #[arg(long, default_value = "agent-antiphon")]
    identity: String,
}

pub async fn run(setup: Setup, args: ConnectArgs) -> Exit {
    let reporter = match start::reporter(&setup.config).await {
        Ok(reporter) => reporter,
        Err(exit) => return exit,
    };
    let Setup {
        config,
        livekit: Some(livekit),
        agent: Some(agent),
        providers: Some(providers),
        colleagues,
        prices,
        ..
    } = setup
    else {
        return Exit::Usage;
    };
    let grants = VideoGrants {
        room_join: true,
        room: args.room.clone(),
        agent: true,
        can_update_own_metadata: Some(true),
        ..VideoGrants::default()
    };
    let token = AccessToken::with_api_key(&livekit.api_key, livekit.api_secret.expose_secret())
        .with_identity(&args.identity)
        .with_name(&agent.label)
        .with_kind("agent")
        .with_grants(grants)
        .to_jwt();
    let token = match token {
        Ok(token) => token,
        Err(error) => {
            fail(&format!("no token can be made: {error}"));
            return Exit::Usage;
        }
    };
    let (runtime, _scribe) = match AgentRuntime::new(agent, providers, reporter.clone())
        .and_then(|runtime| runtime.with_colleagues(colleagues))
    {
        Ok(runtime) => {
            let runtime = runtime.priced(prices).with_phrases(&config).recorded(&config);
            let runtime = runtime.with_turn_model(&config.state_dir);
            runtime.keeping_late(&config.state_dir).await
        }
        Err(problem) => {
            fail(&problem);
            return Exit::Usage;
        }
    };
    let NewSession { config, providers, reporter: session, recorder } =
        runtime.session(&args.room, "", "", &args.identity);
    let Some(Signals { drain, kill }) = start::signals() else { return Exit::Usage };
    let job = RoomJob {
        url: livekit.ws_url(),
        token,
        config,
        providers,
        reporter: session,
        recorder,
        participant: None,
        livekit: Some(Arc::new(livekit)),
    };
    let outcome = join::run(job, drain, kill.clone()).await.leave().await;
    if let Some(late) = &runtime.late {
        late.flush(std::time::Duration::from_secs(3)).await;
    }
    reporter.flush(std::time::Duration::from_secs(3)).await;
    match outcome {
        Ok(_) if kill.is_cancelled() => Exit::Interrupted,
        Ok(reason) => {
            info!(reason = reason.as_str(), "session ended");
            Exit::Done
        }
        Err(error) => {
            fail(&error);
            if matches!(error, RunError::Failed) { Exit::Faults } else { Exit::Server }
        }
    }
}
