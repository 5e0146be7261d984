//! What is too old goes.

use super::{
    Recording, Store, StoreError,
    db::{Scope, args},
    people::remove_recording,
    recordings::read_recording,
};

/// Sessions removed in one transaction.
const BATCH: u32 = 200;

/// What a purge has removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Purged {
    pub sessions: u64,
    pub transcripts: u64,
}

impl Store {
    /// Every tenant that has a session, whether or not somebody made a row for it.
    pub async fn tenants_with_sessions(&self) -> Result<Vec<String>, StoreError> {
        self.db
            .all(
                Scope::All,
                "SELECT DISTINCT tenant FROM sessions ORDER BY tenant LIMIT 10000",
                &[],
                |row| row.text("tenant"),
            )
            .await
    }

    /// Recordings of sessions that ended, or were made and never ended, before `cutoff`.
    pub async fn recordings_before(
        &self,
        tenant: &str,
        cutoff: i64,
    ) -> Result<Vec<Recording>, StoreError> {
        self.db
            .all(
                Scope::Tenant(tenant),
                "SELECT r.* FROM recordings r JOIN sessions s ON s.id = r.session_id
                 WHERE r.tenant = $1 AND COALESCE(s.ended_at, s.created_at) < $2
                 ORDER BY r.created_at, r.id LIMIT $3",
                args![tenant, cutoff, BATCH],
                read_recording,
            )
            .await
    }

    /// Once its sound has been removed.
    pub async fn remove_recording(&self, tenant: &str, id: &str) -> Result<(), StoreError> {
        let mut tx = self.db.write(Scope::Tenant(tenant)).await?;
        remove_recording(&mut tx, tenant, id).await?;
        tx.commit().await
    }

    /// Removes sessions that ended, or were made and never ended, before `cutoff`, with all that is
    /// theirs. One with a recording stays until that is gone.
    pub async fn purge(&self, tenant: &str, cutoff: i64) -> Result<Purged, StoreError> {
        let mut purged = Purged::default();
        loop {
            let mut tx = self.db.write(Scope::Tenant(tenant)).await?;
            let rows = tx
                .all(
                    "SELECT id FROM sessions s
                     WHERE tenant = $1 AND COALESCE(ended_at, created_at) < $2
                       AND NOT EXISTS (SELECT 1 FROM recordings r WHERE r.session_id = s.id)
                     LIMIT $3",
                    args![tenant, cutoff, BATCH],
                )
                .await?;
            for row in &rows {
                let id = row.text("id")?;
                purged.transcripts += tx
                    .run(
                        "DELETE FROM transcripts WHERE tenant = $1 AND session_id = $2",
                        args![tenant, &id],
                    )
                    .await?;
                purged.sessions += tx
                    .run("DELETE FROM sessions WHERE tenant = $1 AND id = $2", args![tenant, &id])
                    .await?;
            }
            tx.commit().await?;
            if rows.len() < BATCH as usize {
                return Ok(purged);
            }
        }
    }

    /// Webhooks are not sent again after this long.
    pub async fn forget_webhooks(&self, before: i64) -> Result<(), StoreError> {
        self.db
            .run(Scope::All, "DELETE FROM webhook_events WHERE received_at < $1", args![before])
            .await?;
        Ok(())
    }
}
