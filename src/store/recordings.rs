//! Recordings: what the store knows of them. The sound itself is in [`crate::recording`]'s storage.

use super::{
    Store, StoreError,
    db::{Row, Scope, Tx, args},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordingSource {
    /// LiveKit Egress.
    Egress,
    /// The worker's own recorder.
    Worker,
}

impl RecordingSource {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Worker => "worker",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordingStatus {
    Active,
    Complete,
    Failed,
}

impl RecordingStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Complete => "complete",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    pub id: String,
    pub tenant: String,
    pub session_id: String,
    pub filename: String,
    /// Where it is in the storage.
    pub object_key: String,
    /// `mixed`, or `stereo`: users on the left, the agent on the right.
    pub track_type: String,
    pub source: RecordingSource,
    pub status: RecordingStatus,
    pub egress_id: Option<String>,
    pub encrypted: bool,
    pub duration_ms: i64,
    /// In bytes, as a reader gets it.
    pub file_size: i64,
    pub created_at: i64,
    pub ended_at: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecording {
    pub id: String,
    pub filename: String,
    pub object_key: String,
    pub track_type: String,
    pub source: RecordingSource,
    pub status: RecordingStatus,
    pub egress_id: Option<String>,
    pub encrypted: bool,
    pub duration_ms: i64,
    pub file_size: i64,
    pub created_at: i64,
    pub ended_at: Option<i64>,
}

/// How a recording ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordingEnd {
    pub status: RecordingStatus,
    pub duration_ms: i64,
    pub file_size: i64,
    pub at: i64,
}

impl Store {
    pub async fn add_recording(
        &self,
        tenant: &str,
        session_id: &str,
        new: &NewRecording,
    ) -> Result<(), StoreError> {
        let mut tx = self.db.write(Scope::Tenant(tenant)).await?;
        add_in(&mut tx, tenant, session_id, new).await?;
        tx.commit().await
    }

    pub async fn recording(&self, tenant: &str, id: &str) -> Result<Option<Recording>, StoreError> {
        self.db
            .first(
                Scope::Tenant(tenant),
                "SELECT * FROM recordings WHERE tenant = $1 AND id = $2",
                args![tenant, id],
                read_recording,
            )
            .await
    }

    /// A session's, oldest first.
    pub async fn recordings(
        &self,
        tenant: &str,
        session_id: &str,
    ) -> Result<Vec<Recording>, StoreError> {
        self.db
            .all(
                Scope::Tenant(tenant),
                "SELECT * FROM recordings WHERE tenant = $1 AND session_id = $2
                 ORDER BY created_at, id LIMIT 1000",
                args![tenant, session_id],
                read_recording,
            )
            .await
    }

    /// Ends one that is active; any other stays as it is.
    pub async fn end_recording(
        &self,
        tenant: &str,
        id: &str,
        end: RecordingEnd,
    ) -> Result<(), StoreError> {
        self.db
            .run(
                Scope::Tenant(tenant),
                "UPDATE recordings SET status = $3, duration_ms = $4, file_size = $5, ended_at = $6
             WHERE tenant = $1 AND id = $2 AND status = 'active'",
                args![tenant, id, end.status.as_str(), end.duration_ms, end.file_size, end.at],
            )
            .await?;
        Ok(())
    }
}

/// One of this id stays as it is.
pub(super) async fn add_in(
    tx: &mut Tx,
    tenant: &str,
    session_id: &str,
    new: &NewRecording,
) -> Result<(), StoreError> {
    tx.run(
        "INSERT INTO recordings (id, tenant, session_id, filename, object_key, track_type, source,
                                 status, egress_id, encrypted, duration_ms, file_size, created_at,
                                 ended_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (id) DO NOTHING",
        args![
            &new.id,
            tenant,
            session_id,
            &new.filename,
            &new.object_key,
            &new.track_type,
            new.source.as_str(),
            new.status.as_str(),
            &new.egress_id,
            new.encrypted,
            new.duration_ms,
            new.file_size,
            new.created_at,
            new.ended_at
        ],
    )
    .await?;
    Ok(())
}

pub(super) fn read_recording(row: &Row) -> Result<Recording, StoreError> {
    Ok(Recording {
        id: row.text("id")?,
        tenant: row.text("tenant")?,
        session_id: row.text("session_id")?,
        filename: row.text("filename")?,
        object_key: row.text("object_key")?,
        track_type: row.text("track_type")?,
        source: match row.text("source")?.as_str() {
            "egress" => RecordingSource::Egress,
            "worker" => RecordingSource::Worker,
            _ => return Err(StoreError::Corrupt("recording's source")),
        },
        status: match row.text("status")?.as_str() {
            "active" => RecordingStatus::Active,
            "complete" => RecordingStatus::Complete,
            "failed" => RecordingStatus::Failed,
            _ => return Err(StoreError::Corrupt("recording's status")),
        },
        egress_id: row.text_or_none("egress_id")?,
        encrypted: row.bool("encrypted")?,
        duration_ms: row.int("duration_ms")?,
        file_size: row.int("file_size")?,
        created_at: row.int("created_at")?,
        ended_at: row.int_or_none("ended_at")?,
    })
}
