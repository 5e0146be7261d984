//! Where sessions, transcripts and what belongs to them live.
//!
//! One [`Store`], over SQLite (embedded, the default) or Postgres (a fleet): the SQL is written
//! once, [`db`] knows the differences. Every row belongs to a tenant and every method takes one:
//! another tenant's row does not exist. Times are ms since the Unix epoch unless they say
//! otherwise.

pub mod db;
pub mod documents;
pub mod links;
pub mod people;
pub mod recordings;
pub mod retention;
mod schema;
pub mod sessions;
pub mod tenants;
pub mod transcripts;
pub mod usage;
pub mod webhooks;

#[cfg(test)]
mod conformance;
#[cfg(test)]
pub mod postgres_double;
#[cfg(test)]
mod tests;

pub use recordings::Recording;
pub use sessions::{
    Consent, NewSession, Session, SessionFilter, SessionKind, SessionStatus, SessionsQuery,
};
pub use transcripts::{
    Event, EventBody, EventSpan, IngestBatch, IngestItem, Ingested, NewTranscript, Transcript,
    TranscriptQuery,
};

use db::{Db, Row};

/// The tenant of whoever shows the service token, and of sessions that a worker's report makes.
pub const DEFAULT_TENANT: &str = "default";

/// How many events a session keeps for listeners that come back; up to twice as many for a while.
pub const EVENTS_KEPT: u32 = 10_000;

/// Why the store could not do it. None of these texts carries a secret, but they are for the log,
/// not for a client.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "unsupported database URL: expected a file path, sqlite:PATH, sqlite::memory: or \
         postgres://USER@HOST/DATABASE"
    )]
    UnsupportedUrl,
    #[error("cannot create the directory of the database: {0}")]
    Directory(#[source] std::io::Error),
    #[error(
        "the database could not be brought to the current schema (run `antiphon migrate` as a \
         role that may change its tables): {0}"
    )]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("the database was written by a newer antiphon: use that one")]
    NewerSchema,
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("a stored {0} cannot be read")]
    Corrupt(&'static str),
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

impl<T> Page<T> {
    /// Of what a query found and another counted.
    fn read(
        rows: &[Row],
        total: i64,
        read: impl Fn(&Row) -> Result<T, StoreError>,
    ) -> Result<Self, StoreError> {
        let rows = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { rows, total: total.unsigned_abs() })
    }
}

#[derive(Debug)]
pub struct Store {
    db: Db,
    events_kept: u32,
}

impl Store {
    /// Opens, or makes, the database at a file path, a `sqlite:PATH` URL, `sqlite::memory:` or a
    /// `postgres:` URL, and brings its schema up to date.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Ok(Self { db: Db::open(url).await?, events_kept: EVENTS_KEPT })
    }

    /// The newest migration's number.
    pub const fn schema_version() -> i64 {
        schema::VERSION
    }

    /// Whether other processes may write to it too: then nobody here tells when they do.
    pub const fn is_shared(&self) -> bool {
        matches!(self.db, Db::Postgres(_))
    }

    /// Whether it answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.db.ping().await
    }

    /// Waits for what is running and closes the connections.
    pub async fn close(&self) {
        self.db.close().await;
    }
}
