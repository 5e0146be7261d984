//! Sessions: a conversation in a room, from its making to its end.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Page, PageRequest, Store, StoreError,
    db::{Row, Scope, Tx, args},
    transcripts::NewEvent,
};

/// Where a session is in its life; it only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionStatus {
    Created,
    InProgress,
    Completed,
}

impl SessionStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        match text {
            "created" => Ok(Self::Created),
            "in_progress" => Ok(Self::InProgress),
            "completed" => Ok(Self::Completed),
            _ => Err(StoreError::Corrupt("session status")),
        }
    }
}

/// Which routes made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionKind {
    #[default]
    Session,
    /// `/api/voice-sessions`
    Voice,
}

impl SessionKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Voice => "voice",
        }
    }
}

/// What the people in a session have agreed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consent {
    pub recording: bool,
    pub transcription: bool,
    /// Who said so.
    pub by: String,
    pub at: i64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    pub id: String,
    pub tenant: String,
    pub room: String,
    pub status: SessionStatus,
    /// The user who owns it; empty: the tenant's own.
    pub owner: String,
    pub kind: SessionKind,
    /// Of a voice session.
    pub agent_type: String,
    /// The agent's registered name; empty: automatic dispatch.
    pub agent: String,
    /// A JSON object.
    pub metadata: Value,
    pub max_participants: u32,
    /// None: nobody has said anything.
    pub consent: Option<Consent>,
    /// What is to be done about the agent, and when.
    pub agent_pending: Option<(String, i64)>,
    pub created_at: i64,
    pub started_at: Option<i64>,
    pub ended_at: Option<i64>,
}

impl Session {
    /// Since when speech is counted.
    pub fn begun(&self) -> i64 {
        self.started_at.unwrap_or(self.created_at)
    }

    /// Whether what is said may be stored. A refusal holds; silence is not one, as the caller of
    /// this API may have asked elsewhere.
    pub fn may_transcribe(&self) -> bool {
        self.consent.as_ref().is_none_or(|consent| consent.transcription)
    }
}

/// A session that a client asks for; its status is `created`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NewSession {
    pub id: String,
    pub room: String,
    pub owner: String,
    pub kind: SessionKind,
    pub agent_type: String,
    pub agent: String,
    pub metadata: Value,
    pub max_participants: u32,
    pub created_at: i64,
}

/// Which sessions to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionFilter {
    /// Not completed.
    #[default]
    Active,
    Completed,
    All,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionsQuery {
    pub filter: SessionFilter,
    /// None: everybody's.
    pub owner: Option<String>,
    pub kind: Option<SessionKind>,
    pub page: PageRequest,
}

impl SessionsQuery {
    pub fn new(filter: SessionFilter, page: PageRequest) -> Self {
        Self { filter, owner: None, kind: None, page }
    }
}

impl Store {
    pub async fn create_session(
        &self,
        tenant: &str,
        new: NewSession,
    ) -> Result<Session, StoreError> {
        let mut tx = self.db.write(Scope::Tenant(tenant)).await?;
        let row = tx
            .one(
                "INSERT INTO sessions (id, tenant, room, status, owner, kind, agent_type, agent,
                                       metadata, max_participants, created_at)
                 VALUES ($1, $2, $3, 'created', $4, $5, $6, $7, $8, $9, $10) RETURNING *",
                args![
                    &new.id,
                    tenant,
                    &new.room,
                    &new.owner,
                    new.kind.as_str(),
                    &new.agent_type,
                    &new.agent,
                    &new.metadata.to_string(),
                    new.max_participants,
                    new.created_at
                ],
            )
            .await?;
        tx.commit().await?;
        read_session(&row)
    }

    pub async fn session(&self, tenant: &str, id: &str) -> Result<Option<Session>, StoreError> {
        let mut tx = self.db.read(Scope::Tenant(tenant)).await?;
        session_in(&mut tx, tenant, id).await
    }

    /// The newest session of a room that a client asked for, whosesoever it is: room names are one
    /// namespace at the LiveKit server.
    pub async fn session_of_room(&self, room: &str) -> Result<Option<Session>, StoreError> {
        self.db
            .first(
                Scope::All,
                "SELECT * FROM sessions WHERE room = $1
                 ORDER BY CASE origin WHEN 'api' THEN 0 ELSE 1 END, created_at DESC LIMIT 1",
                args![room],
                read_session,
            )
            .await
    }

    /// Newest first.
    pub async fn sessions(
        &self,
        tenant: &str,
        query: &SessionsQuery,
    ) -> Result<Page<Session>, StoreError> {
        let statuses = match query.filter {
            SessionFilter::Active => ["created", "in_progress", ""],
            SessionFilter::Completed => ["completed", "", ""],
            SessionFilter::All => ["created", "in_progress", "completed"],
        };
        let kind = query.kind.map(SessionKind::as_str);
        let mut tx = self.db.read(Scope::Tenant(tenant)).await?;
        let rows = tx
            .all(
                "SELECT * FROM sessions
                 WHERE tenant = $1 AND status IN ($2, $3, $4) AND ($5 IS NULL OR owner = $5)
                   AND ($6 IS NULL OR kind = $6)
                 ORDER BY created_at DESC, id LIMIT $7 OFFSET $8",
                args![
                    tenant,
                    statuses[0],
                    statuses[1],
                    statuses[2],
                    &query.owner,
                    kind,
                    query.page.limit,
                    query.page.offset()
                ],
            )
            .await?;
        let total = tx
            .number(
                "SELECT COUNT(*) FROM sessions
                 WHERE tenant = $1 AND status IN ($2, $3, $4) AND ($5 IS NULL OR owner = $5)
                   AND ($6 IS NULL OR kind = $6)",
                args![tenant, statuses[0], statuses[1], statuses[2], &query.owner, kind],
            )
            .await?;
        Page::read(&rows, total, read_session)
    }

    /// `created` becomes `in_progress`. Any other status, and a start that is known, stay as they
    /// are. `None`: no such session.
    pub async fn start_session(
        &self,
        tenant: &str,
        id: &str,
        at: i64,
    ) -> Result<Option<Session>, StoreError> {
        let mut tx = self.db.write(Scope::Tenant(tenant)).await?;
        let session = match self.start_in(&mut tx, tenant, id, at).await? {
            Some(session) => Some(session),
            None => session_in(&mut tx, tenant, id).await?,
        };
        tx.commit().await?;
        Ok(session)
    }

    pub(super) async fn start_in(
        &self,
        tx: &mut Tx,
        tenant: &str,
        id: &str,
        at: i64,
    ) -> Result<Option<Session>, StoreError> {
        let row = tx
            .first(
                "UPDATE sessions SET status = 'in_progress', started_at = COALESCE(started_at, $3)
                 WHERE tenant = $1 AND id = $2 AND status = 'created' RETURNING *",
                args![tenant, id, at],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        self.add_status_event(tx, tenant, id, SessionStatus::InProgress, at).await?;
        Ok(Some(read_session(&row)?))
    }

    /// Becomes `completed`; one that is completed stays as it is. `None`: no such session.
    pub async fn end_session(
        &self,
        tenant: &str,
        id: &str,
        at: i64,
    ) -> Result<Option<Session>, StoreError> {
        let mut tx = self.db.write(Scope::Tenant(tenant)).await?;
        self.end_in(&mut tx, tenant, id, at).await?;
        let session = session_in(&mut tx, tenant, id).await?;
        tx.commit().await?;
        Ok(session)
    }

    /// Whether it has changed.
    pub(super) async fn end_in(
        &self,
        tx: &mut Tx,
        tenant: &str,
        id: &str,
        at: i64,
    ) -> Result<bool, StoreError> {
        let done = tx
            .run(
                "UPDATE sessions SET status = 'completed', ended_at = $3, agent_pending = NULL,
                                     agent_due = NULL
                 WHERE tenant = $1 AND id = $2 AND status <> 'completed'",
                args![tenant, id, at],
            )
            .await?;
        if done == 0 {
            return Ok(false);
        }
        tx.run(
            "UPDATE participants SET left_at = $3
             WHERE tenant = $1 AND session_id = $2 AND left_at IS NULL",
            args![tenant, id, at],
        )
        .await?;
        self.add_status_event(tx, tenant, id, SessionStatus::Completed, at).await?;
        Ok(true)
    }

    async fn add_status_event(
        &self,
        tx: &mut Tx,
        tenant: &str,
        session: &str,
        status: SessionStatus,
        at: i64,
    ) -> Result<(), StoreError> {
        let data = json!({ "status": status.as_str() });
        let event =
            NewEvent { tenant, session, kind: "session", transcript: None, data: Some(&data), at };
        self.add_event(tx, event).await
    }

    /// Records what the people in a session have agreed to; the newest word counts.
    pub async fn set_consent(
        &self,
        tenant: &str,
        id: &str,
        consent: &Consent,
    ) -> Result<(), StoreError> {
        let text = serde_json::to_string(consent).map_err(|_| StoreError::Corrupt("consent"))?;
        self.db
            .run(
                Scope::Tenant(tenant),
                "UPDATE sessions SET consent = $3 WHERE tenant = $1 AND id = $2",
                args![tenant, id, &text],
            )
            .await?;
        Ok(())
    }

    /// What is to be done about the agent later; `None` takes it back.
    pub async fn set_agent_pending(
        &self,
        tenant: &str,
        id: &str,
        pending: Option<(&str, i64)>,
    ) -> Result<(), StoreError> {
        self.db
            .run(
                Scope::Tenant(tenant),
                "UPDATE sessions SET agent_pending = $3, agent_due = $4
             WHERE tenant = $1 AND id = $2 AND status <> 'completed'",
                args![tenant, id, pending.map(|(what, _)| what), pending.map(|(_, at)| at)],
            )
            .await?;
        Ok(())
    }

    /// The sessions whose agent's time has come, of all tenants.
    pub async fn agents_due(&self, now: i64) -> Result<Vec<Session>, StoreError> {
        self.db
            .all(
                Scope::All,
                "SELECT * FROM sessions WHERE agent_due IS NOT NULL AND agent_due <= $1
                 ORDER BY agent_due LIMIT 100",
                args![now],
                read_session,
            )
            .await
    }

    /// The sessions of all tenants that are not over, oldest first, after `(created_at, id)`.
    pub async fn open_sessions(
        &self,
        after: (i64, &str),
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        self.db
            .all(
                Scope::All,
                "SELECT * FROM sessions WHERE status IN ('created', 'in_progress')
                   AND (created_at > $1 OR (created_at = $1 AND id > $2))
                 ORDER BY created_at, id LIMIT $3",
                args![after.0, after.1, limit],
                read_session,
            )
            .await
    }
}

pub(super) async fn session_in(
    tx: &mut Tx,
    tenant: &str,
    id: &str,
) -> Result<Option<Session>, StoreError> {
    let row =
        tx.first("SELECT * FROM sessions WHERE tenant = $1 AND id = $2", args![tenant, id]).await?;
    row.as_ref().map(read_session).transpose()
}

pub(super) fn read_session(row: &Row) -> Result<Session, StoreError> {
    let consent = row.text_or_none("consent")?.map(|text| serde_json::from_str(&text));
    let pending = row.text_or_none("agent_pending")?.zip(row.int_or_none("agent_due")?);
    Ok(Session {
        id: row.text("id")?,
        tenant: row.text("tenant")?,
        room: row.text("room")?,
        status: SessionStatus::parse(&row.text("status")?)?,
        owner: row.text("owner")?,
        kind: match row.text("kind")?.as_str() {
            "session" => SessionKind::Session,
            "voice" => SessionKind::Voice,
            _ => return Err(StoreError::Corrupt("session kind")),
        },
        agent_type: row.text("agent_type")?,
        agent: row.text("agent")?,
        metadata: serde_json::from_str(&row.text("metadata")?)
            .map_err(|_| StoreError::Corrupt("session's metadata"))?,
        max_participants: u32::try_from(row.int("max_participants")?)
            .map_err(|_| StoreError::Corrupt("session's capacity"))?,
        consent: consent.transpose().map_err(|_| StoreError::Corrupt("session's consent"))?,
        agent_pending: pending,
        created_at: row.int("created_at")?,
        started_at: row.int_or_none("started_at")?,
        ended_at: row.int_or_none("ended_at")?,
    })
}
