//! Tenants, their API keys, and who did what.

use serde_json::Value;

use super::{
    Page, PageRequest, Store, StoreError,
    db::{Row, Scope, args},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    pub id: String,
    pub name: String,
    /// 30, 90 or 365.
    pub retention_days: u32,
    /// Requests a second; None: the process's own limit.
    pub rate_limit: Option<u32>,
    /// Take personal data out of stored transcripts.
    pub redact: bool,
    pub created_at: i64,
    pub revoked_at: Option<i64>,
}

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A user: their own sessions.
    Participant,
    /// A worker: reports.
    Agent,
    /// Everything in the tenant.
    Admin,
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Participant => "participant",
            Self::Agent => "agent",
            Self::Admin => "admin",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "participant" => Some(Self::Participant),
            "agent" => Some(Self::Agent),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub id: String,
    pub tenant: String,
    /// The key's public part, by which it is found.
    pub prefix: String,
    /// SHA-256 of the whole key, in hex.
    pub hash: String,
    pub role: Role,
    /// The user that it stands for; empty: nobody in particular.
    pub subject: String,
    pub label: String,
    pub created_at: i64,
    pub revoked_at: Option<i64>,
}

/// Who did what to what.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRow {
    pub seq: i64,
    pub at: i64,
    pub actor: String,
    pub action: String,
    pub object: String,
    pub detail: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NewAudit<'a> {
    pub at: i64,
    pub actor: &'a str,
    pub action: &'a str,
    pub object: &'a str,
    pub detail: Value,
}

impl Store {
    /// Whether it is new; one of this id stays as it is.
    pub async fn create_tenant(&self, tenant: &Tenant) -> Result<bool, StoreError> {
        let made = self
            .db
            .run(
                Scope::Tenant(&tenant.id),
                "INSERT INTO tenants (id, name, retention_days, rate_limit, redact, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO NOTHING",
                args![
                    &tenant.id,
                    &tenant.name,
                    tenant.retention_days,
                    tenant.rate_limit.map(i64::from),
                    tenant.redact,
                    tenant.created_at
                ],
            )
            .await?;
        Ok(made > 0)
    }

    pub async fn tenant(&self, id: &str) -> Result<Option<Tenant>, StoreError> {
        self.db
            .first(Scope::Tenant(id), "SELECT * FROM tenants WHERE id = $1", args![id], read_tenant)
            .await
    }

    /// By id.
    pub async fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        self.db
            .all(Scope::All, "SELECT * FROM tenants ORDER BY id LIMIT 10000", &[], read_tenant)
            .await
    }

    /// Its keys and tokens are refused from now on. Whether there was such a one, not yet revoked.
    pub async fn revoke_tenant(&self, id: &str, at: i64) -> Result<bool, StoreError> {
        let done = self
            .db
            .run(
                Scope::Tenant(id),
                "UPDATE tenants SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL",
                args![id, at],
            )
            .await?;
        Ok(done > 0)
    }

    pub async fn create_key(&self, key: &ApiKey) -> Result<(), StoreError> {
        self.db
            .run(
                Scope::Tenant(&key.tenant),
                "INSERT INTO api_keys (id, tenant, prefix, hash, role, subject, label, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                args![
                    &key.id,
                    &key.tenant,
                    &key.prefix,
                    &key.hash,
                    key.role.as_str(),
                    &key.subject,
                    &key.label,
                    key.created_at
                ],
            )
            .await?;
        Ok(())
    }

    /// The key of this prefix, revoked or not, and its tenant.
    pub async fn key_by_prefix(&self, prefix: &str) -> Result<Option<ApiKey>, StoreError> {
        self.db
            .first(Scope::All, "SELECT * FROM api_keys WHERE prefix = $1", args![prefix], read_key)
            .await
    }

    /// A tenant's keys, newest first.
    pub async fn keys(&self, tenant: &str) -> Result<Vec<ApiKey>, StoreError> {
        self.db
            .all(
                Scope::Tenant(tenant),
                "SELECT * FROM api_keys WHERE tenant = $1 ORDER BY created_at DESC, id LIMIT 1000",
                args![tenant],
                read_key,
            )
            .await
    }

    /// By id or prefix. Whether there was such a one, not yet revoked.
    pub async fn revoke_key(&self, id: &str, at: i64) -> Result<bool, StoreError> {
        let done = self
            .db
            .run(
                Scope::All,
                "UPDATE api_keys SET revoked_at = $2
                 WHERE (id = $1 OR prefix = $1) AND revoked_at IS NULL",
                args![id, at],
            )
            .await?;
        Ok(done > 0)
    }

    pub async fn audit(&self, tenant: &str, new: NewAudit<'_>) -> Result<(), StoreError> {
        self.db
            .run(
                Scope::Tenant(tenant),
                "INSERT INTO audit (tenant, at, actor, action, object, detail)
             VALUES ($1, $2, $3, $4, $5, $6)",
                args![tenant, new.at, new.actor, new.action, new.object, &new.detail.to_string()],
            )
            .await?;
        Ok(())
    }

    /// Newest first; of one object, if one is named.
    pub async fn audit_rows(
        &self,
        tenant: &str,
        object: Option<&str>,
        page: PageRequest,
    ) -> Result<Page<AuditRow>, StoreError> {
        let mut tx = self.db.read(Scope::Tenant(tenant)).await?;
        let rows = tx
            .all(
                "SELECT * FROM audit WHERE tenant = $1 AND ($2 IS NULL OR object = $2)
                 ORDER BY seq DESC LIMIT $3 OFFSET $4",
                args![tenant, object, page.limit, page.offset()],
            )
            .await?;
        let total = tx
            .number(
                "SELECT COUNT(*) FROM audit WHERE tenant = $1 AND ($2 IS NULL OR object = $2)",
                args![tenant, object],
            )
            .await?;
        Page::read(&rows, total, |row| {
            Ok(AuditRow {
                seq: row.int("seq")?,
                at: row.int("at")?,
                actor: row.text("actor")?,
                action: row.text("action")?,
                object: row.text("object")?,
                detail: serde_json::from_str(&row.text("detail")?)
                    .map_err(|_| StoreError::Corrupt("audit row"))?,
            })
        })
    }
}

fn read_tenant(row: &Row) -> Result<Tenant, StoreError> {
    Ok(Tenant {
        id: row.text("id")?,
        name: row.text("name")?,
        retention_days: row.int("retention_days")? as u32,
        rate_limit: row.int_or_none("rate_limit")?.map(|limit| limit as u32),
        redact: row.bool("redact")?,
        created_at: row.int("created_at")?,
        revoked_at: row.int_or_none("revoked_at")?,
    })
}

fn read_key(row: &Row) -> Result<ApiKey, StoreError> {
    Ok(ApiKey {
        id: row.text("id")?,
        tenant: row.text("tenant")?,
        prefix: row.text("prefix")?,
        hash: row.text("hash")?,
        role: Role::parse(&row.text("role")?).ok_or(StoreError::Corrupt("key's role"))?,
        subject: row.text("subject")?,
        label: row.text("label")?,
        created_at: row.int("created_at")?,
        revoked_at: row.int_or_none("revoked_at")?,
    })
}
