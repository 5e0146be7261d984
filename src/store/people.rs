//! One person: who was in which session, all that is stored about them, and its erasure.

use super::{
    Recording, Store, StoreError, Transcript,
    db::{Row, Scope, Tx, args},
    recordings::read_recording,
    transcripts::read_transcript,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Participant {
    pub session_id: String,
    pub identity: String,
    pub name: String,
    pub agent: bool,
    pub joined_at: i64,
    pub left_at: Option<i64>,
}

/// All that is stored about one person.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PersonData {
    /// Whether there was more than [`PERSON_LIMIT`] of something.
    pub truncated: bool,
    pub sessions: Vec<Participant>,
    /// Ids of sessions that they own.
    pub owned: Vec<String>,
    pub transcripts: Vec<Transcript>,
    /// Of sessions in which they were or spoke.
    pub recordings: Vec<Recording>,
}

/// What an erasure has removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Erased {
    pub transcripts: u64,
    pub participations: u64,
    pub recordings: u64,
}

/// Rows of a kind in one export.
pub const PERSON_LIMIT: u32 = 50_000;

/// The sessions in which a person was, or spoke, or which they own.
const RECORDINGS_OF: &str = "SELECT * FROM recordings WHERE tenant = $1 AND session_id IN (
        SELECT session_id FROM participants WHERE tenant = $1 AND identity = $2
        UNION SELECT session_id FROM transcripts WHERE tenant = $1 AND speaker_id = $2
        UNION SELECT id FROM sessions WHERE tenant = $1 AND owner = $2)
     ORDER BY created_at, id LIMIT $3";

impl Store {
    pub async fn participants(
        &self,
        tenant: &str,
        session_id: &str,
    ) -> Result<Vec<Participant>, StoreError> {
        self.db
            .all(
                Scope::Tenant(tenant),
                "SELECT * FROM participants WHERE tenant = $1 AND session_id = $2
                 ORDER BY joined_at, identity LIMIT 1000",
                args![tenant, session_id],
                read_participant,
            )
            .await
    }

    pub async fn person(&self, tenant: &str, identity: &str) -> Result<PersonData, StoreError> {
        let mut tx = self.db.read(Scope::Tenant(tenant)).await?;
        let limit = PERSON_LIMIT + 1;
        let sessions = tx
            .all(
                "SELECT * FROM participants WHERE tenant = $1 AND identity = $2
                 ORDER BY joined_at LIMIT $3",
                args![tenant, identity, limit],
            )
            .await?;
        let owned = tx
            .all(
                "SELECT id FROM sessions WHERE tenant = $1 AND owner = $2
                 ORDER BY created_at LIMIT $3",
                args![tenant, identity, limit],
            )
            .await?;
        let transcripts = tx
            .all(
                "SELECT * FROM transcripts WHERE tenant = $1 AND speaker_id = $2
                 ORDER BY seq LIMIT $3",
                args![tenant, identity, limit],
            )
            .await?;
        let recordings = tx.all(RECORDINGS_OF, args![tenant, identity, limit]).await?;
        let found = [&sessions, &owned, &transcripts, &recordings];
        Ok(PersonData {
            truncated: found.iter().any(|rows| rows.len() > PERSON_LIMIT as usize),
            sessions: up_to_limit(&sessions, read_participant)?,
            owned: up_to_limit(&owned, |row| row.text("id"))?,
            transcripts: up_to_limit(&transcripts, read_transcript)?,
            recordings: up_to_limit(&recordings, read_recording)?,
        })
    }

    /// Erases a person's data in one transaction; reports of what they said before `at` are dropped
    /// when they come. The recordings' rows must be removed after their sound.
    pub async fn erase_person(
        &self,
        tenant: &str,
        identity: &str,
        recordings: &[Recording],
        at: i64,
    ) -> Result<Erased, StoreError> {
        let mut tx = self.db.write(Scope::Tenant(tenant)).await?;
        tx.run(
            "INSERT INTO erasures (tenant, identity, at) VALUES ($1, $2, $3)
             ON CONFLICT (tenant, identity) DO UPDATE SET at = $3",
            args![tenant, identity, at],
        )
        .await?;
        // Their events go with them, by reference.
        let transcripts = tx
            .run(
                "DELETE FROM transcripts WHERE tenant = $1 AND speaker_id = $2",
                args![tenant, identity],
            )
            .await?;
        let participations = tx
            .run(
                "DELETE FROM participants WHERE tenant = $1 AND identity = $2",
                args![tenant, identity],
            )
            .await?;
        let mut erased = Erased { transcripts, participations, recordings: 0 };
        for recording in recordings {
            erased.recordings += remove_recording(&mut tx, tenant, &recording.id).await?;
        }
        // What they told about themselves when they made it.
        tx.run(
            "UPDATE sessions SET owner = '', metadata = '{}', consent = NULL
             WHERE tenant = $1 AND owner = $2",
            args![tenant, identity],
        )
        .await?;
        tx.commit().await?;
        Ok(erased)
    }
}

pub(super) async fn remove_recording(
    tx: &mut Tx,
    tenant: &str,
    id: &str,
) -> Result<u64, StoreError> {
    tx.run("DELETE FROM recordings WHERE tenant = $1 AND id = $2", args![tenant, id]).await
}

fn up_to_limit<T>(
    rows: &[Row],
    read: impl Fn(&Row) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    rows.iter().take(PERSON_LIMIT as usize).map(read).collect()
}

fn read_participant(row: &Row) -> Result<Participant, StoreError> {
    Ok(Participant {
        session_id: row.text("session_id")?,
        identity: row.text("identity")?,
        name: row.text("name")?,
        agent: row.bool("agent")?,
        joined_at: row.int("joined_at")?,
        left_at: row.int_or_none("left_at")?,
    })
}
