//! Where sessions and transcripts live.
//!
//! [`Store`] is the trait, [`sqlite`] the embedded default. Every row belongs to a tenant and every
//! method takes one: another tenant's row does not exist. Times are ms since the Unix epoch unless
//! they say otherwise.

use std::fmt::Debug;

use async_trait::async_trait;
use serde_json::Value;

use crate::transcript::segment::SpeakerKind;

#[cfg(test)]
pub mod conformance;
pub mod sqlite;

/// The tenant of everything until tenants are managed.
pub const DEFAULT_TENANT: &str = "default";

/// How many events a session keeps for listeners that come back; up to twice as many for a while.
pub const EVENTS_KEPT: u32 = 10_000;

/// Why the store could not do it. None of these texts carries a secret, but they are for the log,
/// not for a client.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "unsupported database URL: expected a file path, sqlite:PATH or sqlite::memory: \
         (other databases are not built yet)"
    )]
    UnsupportedUrl,
    #[error("cannot create the directory of the database: {0}")]
    Directory(#[source] std::io::Error),
    #[error("the database could not be brought to the current schema: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("a stored {0} cannot be read")]
    Corrupt(&'static str),
}

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

#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    pub id: String,
    pub room: String,
    pub status: SessionStatus,
    /// The agent's registered name; empty: automatic dispatch.
    pub agent: String,
    /// A JSON object.
    pub metadata: Value,
    pub created_at: i64,
    pub started_at: Option<i64>,
    pub ended_at: Option<i64>,
}

/// A session that a client asks for; its status is `created`.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSession {
    pub id: String,
    pub room: String,
    pub agent: String,
    pub metadata: Value,
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

/// One page, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    pub page: u32,
    pub limit: u32,
}

impl PageRequest {
    fn offset(self) -> i64 {
        i64::from(self.page.saturating_sub(1)).saturating_mul(i64::from(self.limit))
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    pub rows: Vec<T>,
    /// Rows on all pages together.
    pub total: u64,
}

/// A stored final.
#[derive(Debug, Clone, PartialEq)]
pub struct Transcript {
    /// The order of arrival; grows.
    pub seq: i64,
    pub id: String,
    pub session_id: String,
    pub kind: SpeakerKind,
    pub speaker_id: String,
    pub speaker_name: String,
    pub content: String,
    /// Start of the speech, in ms since the session's `started_at`.
    pub timestamp_ms: i64,
    pub duration_ms: i64,
    pub confidence: f64,
    pub is_final: bool,
    pub flagged: bool,
    pub flag_reason: Option<String>,
    pub created_at: i64,
}

/// Which transcripts, ordered by start of speech and then by arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TranscriptQuery {
    /// Inclusive, in ms since the session's start.
    pub from_ms: Option<i64>,
    /// Exclusive, in ms since the session's start.
    pub to_ms: Option<i64>,
    pub speaker_id: Option<String>,
    pub page: PageRequest,
}

/// What a worker reports about one room, in the order in which it happened.
#[derive(Debug, Clone, PartialEq)]
pub struct IngestBatch {
    pub room: String,
    /// Tells one life of a room from the next; see [`crate::transcript::reporter::SessionInfo`].
    pub session_key: String,
    pub agent: String,
    /// When the worker's session began: the start of a session that nobody else has started.
    pub started_at: i64,
    pub received_at: i64,
    pub items: Vec<IngestItem>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum IngestItem {
    Final(NewTranscript),
    /// Something for live listeners.
    Event {
        kind: String,
        data: Value,
    },
    /// The worker has left: ends a session that the worker's report made.
    Closed {
        at: i64,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct NewTranscript {
    pub id: String,
    pub kind: SpeakerKind,
    pub speaker_id: String,
    pub speaker_name: String,
    pub content: String,
    /// Start of the speech.
    pub spoken_at: i64,
    pub duration_ms: i64,
    pub confidence: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Ingested {
    pub session: Session,
    /// Finals that are now stored, whether or not they were before.
    pub accepted: u64,
    /// Those of them that were stored before; nothing has changed for these.
    pub duplicates: u64,
}

/// One entry of the log that live listeners resume from.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Grows within a session.
    pub seq: i64,
    pub body: EventBody,
}

#[derive(Debug, Clone, PartialEq)]
pub enum EventBody {
    Final(Transcript),
    Other { kind: String, data: Value },
}

/// How far the event log of a session reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventSpan {
    /// 0 when there is none yet.
    pub newest: i64,
    /// Events up to this one may have been dropped; 0: none has.
    pub dropped_to: i64,
}

#[async_trait]
pub trait Store: Debug + Send + Sync + 'static {
    async fn create_session(&self, tenant: &str, new: NewSession) -> Result<Session, StoreError>;

    async fn session(&self, tenant: &str, id: &str) -> Result<Option<Session>, StoreError>;

    /// Newest first.
    async fn sessions(
        &self,
        tenant: &str,
        filter: SessionFilter,
        page: PageRequest,
    ) -> Result<Page<Session>, StoreError>;

    /// `created` becomes `in_progress`. Any other status, and a start that is known, stay as they
    /// are. `None`: no such session.
    async fn start_session(
        &self,
        tenant: &str,
        id: &str,
        at: i64,
    ) -> Result<Option<Session>, StoreError>;

    /// Becomes `completed`; one that is completed stays as it is. `None`: no such session.
    async fn end_session(
        &self,
        tenant: &str,
        id: &str,
        at: i64,
    ) -> Result<Option<Session>, StoreError>;

    /// Stores a batch in one transaction: durable when this returns, or nothing of it is there.
    /// An unknown room makes its session.
    async fn ingest(&self, tenant: &str, batch: IngestBatch) -> Result<Ingested, StoreError>;

    async fn transcripts(
        &self,
        tenant: &str,
        session_id: &str,
        query: &TranscriptQuery,
    ) -> Result<Page<Transcript>, StoreError>;

    /// The events with a greater `seq`, oldest first.
    async fn events_after(
        &self,
        tenant: &str,
        session_id: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError>;

    async fn event_span(&self, tenant: &str, session_id: &str) -> Result<EventSpan, StoreError>;

    /// Whether it answers.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Waits for what is running and closes the connections.
    async fn close(&self);
}
