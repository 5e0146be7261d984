//! What is done without being asked: agents' deadlines, sessions whose end nobody told, what is too
//! old.

use std::time::Duration;

use serde_json::json;
use tokio::time::MissedTickBehavior;

use super::{agent, app::App, error::ApiError, live::Signal};
use crate::{
    clock,
    store::{SessionStatus, tenants::NewAudit},
};

const DEADLINES_EVERY: Duration = Duration::from_secs(1);
const RECONCILE_EVERY: Duration = Duration::from_mins(1);
const PURGE_EVERY: Duration = Duration::from_hours(1);
/// A room may take this long to appear in the server's list.
const YOUNG_MS: i64 = 60_000;
const PAGE: u32 = 500;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// LiveKit gives up on a webhook long before.
const WEBHOOKS_KEPT_MS: i64 = 7 * DAY_MS;

/// Until it is dropped.
pub async fn run(app: App) {
    let every = |period| {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    };
    let (mut deadlines, mut reconcile_at, mut purge_at) =
        (every(DEADLINES_EVERY), every(RECONCILE_EVERY), every(PURGE_EVERY));
    loop {
        let done = tokio::select! {
            biased;
            _ = deadlines.tick() => do_due(&app).await,
            _ = reconcile_at.tick() => reconcile(&app, clock::unix_ms()).await,
            _ = purge_at.tick() => purge(&app, clock::unix_ms()).await,
        };
        if let Err(error) = done {
            // The cause is logged where it arose; the next round tries again.
            tracing::warn!(code = error.code().as_str(), "housekeeping failed");
        }
    }
}

async fn do_due(app: &App) -> Result<(), ApiError> {
    if app.livekit.is_none() {
        return Ok(());
    }
    for session in app.store.agents_due(clock::unix_ms()).await? {
        agent::do_due(app, &session).await?;
    }
    Ok(())
}

/// Brings sessions to what the server's room list says: a webhook may have been lost.
pub async fn reconcile(app: &App, now: i64) -> Result<(), ApiError> {
    let Some(livekit) = &app.livekit else { return Ok(()) };
    let mut after = (i64::MIN, String::new());
    let mut rooms = None;
    loop {
        let sessions = app.store.open_sessions((after.0, &after.1), PAGE).await?;
        let Some(last) = sessions.last() else { return Ok(()) };
        after = (last.created_at, last.id.clone());
        let more = sessions.len() == PAGE as usize;
        // Asked for after the sessions: a room that begins in between is in the list.
        if rooms.is_none() {
            rooms = Some(livekit.rooms().await?);
        }
        let there = |room: &str| rooms.as_ref().is_some_and(|rooms| rooms.contains(room));
        for session in &sessions {
            let changed = match session.status {
                SessionStatus::Created if there(&session.room) => {
                    app.store.start_session(&session.tenant, &session.id, now).await?
                }
                SessionStatus::InProgress
                    if !there(&session.room) && session.begun() < now - YOUNG_MS =>
                {
                    app.store.end_session(&session.tenant, &session.id, now).await?
                }
                _ => None,
            };
            if changed.is_some() {
                tracing::info!(session = session.id, "a session's state has been put right");
                app.hub.tell(&session.id, Signal::Stored);
            }
        }
        if !more {
            return Ok(());
        }
    }
}

/// Removes what is older than its tenant keeps it.
pub async fn purge(app: &App, now: i64) -> Result<(), ApiError> {
    app.store.forget_webhooks(now - WEBHOOKS_KEPT_MS).await?;
    for tenant in app.store.tenants_with_sessions().await? {
        let own = app.store.tenant(&tenant).await?;
        let days = own.map_or(app.settings.retention_days, |own| own.retention_days);
        let cutoff = now - i64::from(days) * DAY_MS;
        let mut recordings = 0_u64;
        loop {
            let old = app.store.recordings_before(&tenant, cutoff).await?;
            if old.is_empty() {
                break;
            }
            for recording in old {
                // The sound first: a row without sound can be tried again, sound without a row is
                // lost sight of.
                app.storage.delete(&recording.object_key).await?;
                app.store.remove_recording(&tenant, &recording.id).await?;
                recordings += 1;
            }
        }
        let purged = app.store.purge(&tenant, cutoff).await?;
        if purged.sessions + recordings > 0 {
            let detail = json!({
                "days": days, "sessions": purged.sessions, "transcripts": purged.transcripts,
                "recordings": recordings,
            });
            let row = NewAudit {
                at: now,
                actor: "system",
                action: "retention.purge",
                object: &tenant,
                detail,
            };
            app.store.audit(&tenant, row).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use livekit_protocol::participant_info::Kind;

    use super::*;
    use crate::{
        control::{livekit_double::LiveKitDouble, tests::app},
        store::{DEFAULT_TENANT as TENANT, NewSession},
    };

    fn session(id: &str, at: i64) -> NewSession {
        NewSession {
            id: id.into(),
            room: format!("session-{id}"),
            metadata: json!({}),
            max_participants: 10,
            created_at: at,
            ..NewSession::default()
        }
    }

    #[tokio::test]
    async fn a_lost_webhook_is_made_up_for_by_the_room_list() {
        let livekit = LiveKitDouble::start().await;
        let app = app(Some(livekit.config())).await;
        for (id, started) in [("begun", None), ("gone", Some(0)), ("young", Some(99_000))] {
            app.store.create_session(TENANT, session(id, 0)).await.unwrap();
            if let Some(at) = started {
                app.store.start_session(TENANT, id, at).await.unwrap();
            }
        }
        livekit.rooms.lock().join("session-begun", "ann", Kind::Standard);
        reconcile(&app, 100_000).await.unwrap();
        let status = async |id: &str| app.store.session(TENANT, id).await.unwrap().unwrap().status;
        assert_eq!(status("begun").await, SessionStatus::InProgress);
        assert_eq!(status("gone").await, SessionStatus::Completed);
        assert_eq!(status("young").await, SessionStatus::InProgress, "its room may yet appear");
    }

    #[tokio::test]
    async fn sessions_go_after_their_tenants_time_with_their_recordings() {
        let app = app(None).await;
        let day = |days: i64| days * DAY_MS;
        for (id, ended) in [("old", 5), ("newer", 50)] {
            app.store.create_session(TENANT, session(id, day(ended))).await.unwrap();
            app.store.end_session(TENANT, id, day(ended)).await.unwrap();
        }
        app.storage.put("recordings/x.mp4", "sound".into()).await.unwrap();
        let recording = crate::store::recordings::NewRecording {
            id: "r".into(),
            filename: "x.mp4".into(),
            object_key: "recordings/x.mp4".into(),
            track_type: "mixed".into(),
            source: crate::store::recordings::RecordingSource::Egress,
            status: crate::store::recordings::RecordingStatus::Complete,
            egress_id: None,
            encrypted: false,
            duration_ms: 1,
            file_size: 5,
            created_at: 1,
            ended_at: None,
        };
        app.store.add_recording(TENANT, "old", &recording).await.unwrap();
        purge(&app, day(100)).await.unwrap();
        assert!(app.store.session(TENANT, "old").await.unwrap().is_none());
        assert!(app.store.session(TENANT, "newer").await.unwrap().is_some());
        assert!(app.storage.find("recordings/x.mp4", false).await.is_err());
        let page = crate::store::PageRequest { page: 1, limit: 10 };
        let rows = app.store.audit_rows(TENANT, None, page).await.unwrap().rows;
        assert_eq!((rows.len(), &*rows[0].action), (1, "retention.purge"));
        assert_eq!(rows[0].detail["recordings"], 1);
    }
}
