//! The agent's presence, as a front end steers it: by whoever hears first that somebody speaks.

use std::time::Duration;

use axum::{Extension, Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::{
    app::App,
    audit,
    auth::Principal,
    error::{ApiError, BodyFaults, Faults, LiveKitFaults},
    extract::{Body, Id},
    sessions::{check_in_progress, find, rfc3339, room_metadata},
};
use crate::{clock, store::Session};

const GRACE: Duration = Duration::from_secs(30);
const MAX_GRACE_S: u32 = 3600;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Into the room, if it is not there.
    Join,
    /// Out of the room, after the grace period.
    Leave,
    /// Hear the others.
    Subscribe,
    /// Hear nobody, after the grace period.
    Unsubscribe,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({ "action": "leave", "graceSeconds": 30 }))]
pub struct AgentCommand {
    action: Action,
    /// For leave and unsubscribe: a join or subscribe within it calls them off. 0: at once.
    #[schema(default = 30, maximum = 3600)]
    grace_seconds: Option<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({ "action": "leave", "done": false, "dueAt": "2026-01-01T00:00:30Z" }))]
pub struct AgentView {
    action: Action,
    /// Whether it has been done; otherwise it will be, at dueAt.
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct AgentAnswer {
    agent: AgentView,
}

/// Bring the agent into the room or let it go, let it hear or not.
#[utoipa::path(
    post, path = "/api/sessions/{id}/agent", tag = "sessions", request_body = AgentCommand,
    params(("id" = String, Path, description = "The session")),
    responses(
        (status = 200, description = "Done, or due", body = AgentAnswer), Faults, BodyFaults,
        LiveKitFaults,
    ),
)]
pub async fn command(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
    Body(body): Body<AgentCommand>,
) -> Result<Json<AgentAnswer>, ApiError> {
    let grace = body.grace_seconds.unwrap_or(GRACE.as_secs() as u32);
    if grace > MAX_GRACE_S {
        return Err(ApiError::invalid("graceSeconds: at most 3600"));
    }
    let _turn = app.turns.take(&id).await;
    let session = find(&app, &principal, &id).await?;
    check_in_progress(&session)?;
    let livekit = app.livekit()?;
    let name = match body.action {
        Action::Join | Action::Subscribe => None,
        Action::Leave => Some("leave"),
        Action::Unsubscribe => Some("unsubscribe"),
    };
    let due_at = (grace > 0).then(|| clock::unix_ms() + i64::from(grace) * 1000);
    let pending = name.zip(due_at);
    app.store.set_agent_pending(&session.tenant, &id, pending).await?;
    audit::record(&app, &principal, "agent", &id, json!({ "action": body.action })).await?;
    if pending.is_none() {
        match body.action {
            Action::Join => {
                let agent = if session.agent.is_empty() { &app.agent_name } else { &session.agent };
                let metadata = room_metadata(&session);
                livekit.bring_agent(&session.room, agent, &metadata).await?;
            }
            Action::Leave => livekit.remove_agents(&session.room).await?,
            Action::Subscribe => livekit.subscribe_agents(&session.room, true).await?,
            Action::Unsubscribe => livekit.subscribe_agents(&session.room, false).await?,
        }
    }
    Ok(Json(AgentAnswer {
        agent: AgentView {
            action: body.action,
            done: pending.is_none(),
            due_at: pending.map(|(_, at)| rfc3339(at)),
        },
    }))
}

/// Does what is due. On a failure it is due still.
pub async fn do_due(app: &App, session: &Session) -> Result<(), ApiError> {
    let _turn = app.turns.take(&session.id).await;
    // Called off meanwhile?
    let now = app.store.session(&session.tenant, &session.id).await?;
    let Some(session) = now.filter(|now| now.agent_pending == session.agent_pending) else {
        return Ok(());
    };
    let livekit = app.livekit()?;
    match session.agent_pending.as_ref().map(|(what, _)| what.as_str()) {
        Some("leave") => livekit.remove_agents(&session.room).await?,
        Some("unsubscribe") => livekit.subscribe_agents(&session.room, false).await?,
        _ => {}
    }
    Ok(app.store.set_agent_pending(&session.tenant, &session.id, None).await?)
}
