//! Magic links: one use, a few tries, a day.

use super::{
    Store, StoreError,
    db::{Row, Scope, args},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub token: String,
    pub tenant: String,
    pub session_id: String,
    /// argon2id in PHC's string format.
    pub password_hash: String,
    /// The participant's.
    pub name: String,
    /// Wrong passwords so far.
    pub attempts: u32,
    pub created_at: i64,
    pub expires_at: i64,
    pub used_at: Option<i64>,
}

impl Store {
    pub async fn create_link(&self, link: &Link) -> Result<(), StoreError> {
        self.db
            .run(
                Scope::Tenant(&link.tenant),
                "INSERT INTO links (token, tenant, session_id, password_hash, name, created_at,
                                expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
                args![
                    &link.token,
                    &link.tenant,
                    &link.session_id,
                    &link.password_hash,
                    &link.name,
                    link.created_at,
                    link.expires_at
                ],
            )
            .await?;
        Ok(())
    }

    /// Whosesoever it is: who has it does not know the tenant.
    pub async fn link(&self, token: &str) -> Result<Option<Link>, StoreError> {
        self.db
            .first(Scope::All, "SELECT * FROM links WHERE token = $1", args![token], read_link)
            .await
    }

    /// Takes one of `max` tries before the password is looked at, so that many at once cannot have
    /// more of them. Whether there was one left.
    pub async fn take_attempt(&self, token: &str, max: u32) -> Result<bool, StoreError> {
        let taken = self
            .db
            .run(
                Scope::All,
                "UPDATE links SET attempts = attempts + 1 WHERE token = $1 AND attempts < $2",
                args![token, max],
            )
            .await?;
        Ok(taken > 0)
    }

    /// Whether this was the first use.
    pub async fn use_link(&self, token: &str, at: i64) -> Result<bool, StoreError> {
        let used = self
            .db
            .run(
                Scope::All,
                "UPDATE links SET used_at = $2 WHERE token = $1 AND used_at IS NULL",
                args![token, at],
            )
            .await?;
        Ok(used > 0)
    }
}

fn read_link(row: &Row) -> Result<Link, StoreError> {
    Ok(Link {
        token: row.text("token")?,
        tenant: row.text("tenant")?,
        session_id: row.text("session_id")?,
        password_hash: row.text("password_hash")?,
        name: row.text("name")?,
        attempts: row.int("attempts")? as u32,
        created_at: row.int("created_at")?,
        expires_at: row.int("expires_at")?,
        used_at: row.int_or_none("used_at")?,
    })
}
