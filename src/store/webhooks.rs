//! What the LiveKit server tells: acted on once, in one transaction with the event's id.

use super::{
    Session, Store, StoreError,
    db::{Scope, args},
    recordings::RecordingStatus,
    sessions::read_session,
};

/// What has happened in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomChange {
    Started,
    Finished,
    Joined {
        identity: String,
        name: String,
        agent: bool,
    },
    Left {
        identity: String,
    },
    EgressStarted,
    EgressEnded {
        egress_id: String,
        failed: bool,
        duration_ms: i64,
        file_size: i64,
    },
    /// Something that the store does not care about.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomEvent {
    pub id: String,
    pub room: String,
    /// The room's `sid`; may be empty.
    pub sid: String,
    pub at: i64,
    pub received_at: i64,
    pub change: RoomChange,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Applied {
    /// The id has been seen before; nothing has changed.
    Repeated,
    /// No session has this room.
    Unknown,
    Session(Box<Session>),
}

impl Store {
    pub async fn apply_webhook(&self, event: &RoomEvent) -> Result<Applied, StoreError> {
        let mut tx = self.db.write(Scope::All).await?;
        let row = tx
            .first(
                "SELECT * FROM sessions
                 WHERE room = $1 AND (origin = 'api' OR origin_key = $2)
                 ORDER BY origin LIMIT 1",
                args![&event.room, &event.sid],
            )
            .await?;
        let session = row.as_ref().map(read_session).transpose()?;
        let tenant = session.as_ref().map_or("", |session| &session.tenant).to_owned();
        let new = tx
            .run(
                "INSERT INTO webhook_events (id, tenant, received_at) VALUES ($1, $2, $3)
                 ON CONFLICT (id) DO NOTHING",
                args![&event.id, &tenant, event.received_at],
            )
            .await?;
        if new == 0 {
            return Ok(Applied::Repeated);
        }
        let Some(session) = session else {
            tx.commit().await?;
            return Ok(Applied::Unknown);
        };
        let id = &session.id;
        match &event.change {
            RoomChange::Started => {
                self.start_in(&mut tx, &tenant, id, event.at).await?;
            }
            RoomChange::Finished => {
                self.end_in(&mut tx, &tenant, id, event.at).await?;
            }
            RoomChange::Joined { identity, name, agent } => {
                tx.run(
                    "INSERT INTO participants (tenant, session_id, identity, name, agent, joined_at)
                     VALUES ($1, $2, $3, $4, $5, $6)
                     ON CONFLICT (tenant, session_id, identity)
                         DO UPDATE SET name = $4, left_at = NULL",
                    args![&tenant, id, identity, name, *agent, event.at],
                )
                .await?;
            }
            RoomChange::Left { identity } => {
                // Whichever comes first: one who left before the news of the joining has left.
                tx.run(
                    "INSERT INTO participants (tenant, session_id, identity, name, agent, joined_at,
                                               left_at)
                     VALUES ($1, $2, $3, $3, FALSE, $4, $4)
                     ON CONFLICT (tenant, session_id, identity) DO UPDATE SET left_at = $4",
                    args![&tenant, id, identity, event.at],
                )
                .await?;
            }
            RoomChange::EgressEnded { egress_id, failed, duration_ms, file_size } => {
                let status =
                    if *failed { RecordingStatus::Failed } else { RecordingStatus::Complete };
                tx.run(
                    "UPDATE recordings
                     SET status = $3, duration_ms = $4, file_size = $5, ended_at = $6
                     WHERE tenant = $1 AND egress_id = $2",
                    args![&tenant, egress_id, status.as_str(), *duration_ms, *file_size, event.at],
                )
                .await?;
            }
            RoomChange::EgressStarted | RoomChange::Other => {}
        }
        tx.commit().await?;
        Ok(Applied::Session(Box::new(session)))
    }
}
