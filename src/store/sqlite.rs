//! The embedded store: SQLite in WAL mode, one writer.
//!
//! `synchronous=FULL`: what `ingest` has acknowledged survives a power cut
//! (<https://www.sqlite.org/pragma.html#pragma_synchronous>). One connection writes, so that writers
//! of this process queue here and not in SQLite's busy handler; the busy time-out is for other
//! processes.

use std::{path::Path, str::FromStr, time::Duration};

use async_trait::async_trait;
use serde_json::{Value, json};
use sqlx::{
    Row, SqlSafeStr, Sqlite, SqlitePool, Transaction,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};

use super::{
    EVENTS_KEPT, Event, EventBody, EventSpan, IngestBatch, IngestItem, Ingested, NewSession,
    NewTranscript, Page, PageRequest, Session, SessionFilter, SessionStatus, Store, StoreError,
    Transcript, TranscriptQuery,
};
use crate::transcript::segment::SpeakerKind;

/// Another process may hold the write lock this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// A request waits this long for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
const READERS: u32 = 4;

/// Numbered, embedded and never edited once released: the checksum of an applied one is compared.
const MIGRATIONS: [(i64, &str, &str); 1] = [(
    1,
    "sessions, transcripts, events",
    include_str!("migrations/0001_sessions_transcripts_events.sql"),
)];

#[derive(Debug)]
pub struct SqliteStore {
    writer: SqlitePool,
    reader: SqlitePool,
    events_kept: u32,
}

impl SqliteStore {
    /// Opens, or makes, the database at a file path, a `sqlite:PATH` URL or `sqlite::memory:`, and
    /// brings its schema up to date.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let options = if url.starts_with("sqlite:") {
            SqliteConnectOptions::from_str(url)?
        } else if url.contains("://") || url.starts_with("postgres") {
            return Err(StoreError::UnsupportedUrl);
        } else {
            SqliteConnectOptions::new().filename(url)
        };
        let in_memory = url.contains(":memory:") || url.contains("mode=memory");
        let options = options
            .create_if_missing(true)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        if !in_memory
            && let Some(parent) = options.get_filename().parent().filter(|p| *p != Path::new(""))
        {
            tokio::fs::create_dir_all(parent).await.map_err(StoreError::Directory)?;
        }

        // A database in memory lives as long as its one connection.
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.clone())
            .await?;
        migrator().run(&writer).await?;
        let reader = if in_memory {
            writer.clone()
        } else {
            SqlitePoolOptions::new()
                .max_connections(READERS)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .connect_with(options.pragma("query_only", "ON"))
                .await?
        };
        Ok(Self { writer, reader, events_kept: EVENTS_KEPT })
    }

    /// `IMMEDIATE` takes the write lock first: a transaction that begins by reading could otherwise
    /// fail when it comes to write.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    async fn add_event(
        &self,
        tx: &mut Transaction<'static, Sqlite>,
        event: NewEvent<'_>,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO events (tenant, session_id, kind, transcript_seq, data, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .bind(event.tenant)
        .bind(event.session)
        .bind(event.kind)
        .bind(event.transcript)
        .bind(event.data.map(ToString::to_string))
        .bind(event.at)
        .execute(&mut **tx)
        .await?;
        let kept: i64 = sqlx::query(
            "UPDATE sessions SET events_kept = events_kept + 1 WHERE id = ?1
             RETURNING events_kept",
        )
        .bind(event.session)
        .fetch_one(&mut **tx)
        .await?
        .try_get(0)?;
        if kept >= 2 * i64::from(self.events_kept) {
            self.trim_events(tx, event.session).await?;
        }
        Ok(())
    }

    async fn trim_events(
        &self,
        tx: &mut Transaction<'static, Sqlite>,
        session: &str,
    ) -> Result<(), StoreError> {
        let dropped_to: i64 = sqlx::query(
            "SELECT seq FROM events WHERE session_id = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2",
        )
        .bind(session)
        .bind(self.events_kept)
        .fetch_one(&mut **tx)
        .await?
        .try_get(0)?;
        sqlx::query("DELETE FROM events WHERE session_id = ?1 AND seq <= ?2")
            .bind(session)
            .bind(dropped_to)
            .execute(&mut **tx)
            .await?;
        sqlx::query("UPDATE sessions SET events_kept = ?2, events_dropped_to = ?3 WHERE id = ?1")
            .bind(session)
            .bind(self.events_kept)
            .bind(dropped_to)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    /// Finds the session of a batch, or makes it, and starts it if nobody has.
    async fn session_of_batch(
        &self,
        tx: &mut Transaction<'static, Sqlite>,
        tenant: &str,
        batch: &IngestBatch,
    ) -> Result<Session, StoreError> {
        let known = sqlx::query(
            "SELECT * FROM sessions
             WHERE tenant = ?1 AND room = ?2 AND (origin = 'api' OR origin_key = ?3)
             ORDER BY origin LIMIT 1",
        )
        .bind(tenant)
        .bind(&batch.room)
        .bind(&batch.session_key)
        .fetch_optional(&mut **tx)
        .await?;
        if let Some(row) = known {
            let session = read_session(&row)?;
            if session.status != SessionStatus::Created {
                return Ok(session);
            }
            return match self.start_in(tx, tenant, &session.id, batch.started_at).await? {
                Some(started) => Ok(started),
                None => Ok(session),
            };
        }
        let row = sqlx::query(
            "INSERT INTO sessions (id, tenant, room, origin, origin_key, status, agent, created_at,
                                   started_at)
             VALUES (?1, ?2, ?3, 'worker', ?4, 'in_progress', ?5, ?6, ?7)
             RETURNING *",
        )
        .bind(uuid::Uuid::new_v4().to_string())
        .bind(tenant)
        .bind(&batch.room)
        .bind(&batch.session_key)
        .bind(&batch.agent)
        .bind(batch.received_at)
        .bind(batch.started_at)
        .fetch_one(&mut **tx)
        .await?;
        read_session(&row)
    }

    async fn start_in(
        &self,
        tx: &mut Transaction<'static, Sqlite>,
        tenant: &str,
        id: &str,
        at: i64,
    ) -> Result<Option<Session>, StoreError> {
        let row = sqlx::query(
            "UPDATE sessions SET status = 'in_progress', started_at = COALESCE(started_at, ?3)
             WHERE tenant = ?1 AND id = ?2 AND status = 'created' RETURNING *",
        )
        .bind(tenant)
        .bind(id)
        .bind(at)
        .fetch_optional(&mut **tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        self.add_status_event(tx, tenant, id, SessionStatus::InProgress, at).await?;
        Ok(Some(read_session(&row)?))
    }

    async fn add_status_event(
        &self,
        tx: &mut Transaction<'static, Sqlite>,
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

    /// The new row's `seq`; `None` when this id is stored already.
    async fn add_final(
        tx: &mut Transaction<'static, Sqlite>,
        tenant: &str,
        session: &Session,
        new: &NewTranscript,
        received_at: i64,
    ) -> Result<Option<i64>, StoreError> {
        let begun = session.started_at.unwrap_or(session.created_at);
        let row = sqlx::query(
            "INSERT INTO transcripts (id, tenant, session_id, kind, speaker_id, speaker_name,
                                      content, timestamp_ms, duration_ms, confidence, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
             ON CONFLICT (tenant, id) DO NOTHING RETURNING seq",
        )
        .bind(&new.id)
        .bind(tenant)
        .bind(&session.id)
        .bind(kind_name(new.kind))
        .bind(&new.speaker_id)
        .bind(&new.speaker_name)
        .bind(&new.content)
        .bind(new.spoken_at.saturating_sub(begun).max(0))
        .bind(new.duration_ms)
        .bind(new.confidence)
        .bind(received_at)
        .fetch_optional(&mut **tx)
        .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }
}

struct NewEvent<'a> {
    tenant: &'a str,
    session: &'a str,
    kind: &'a str,
    transcript: Option<i64>,
    data: Option<&'a Value>,
    at: i64,
}

fn migrator() -> Migrator {
    Migrator::with_migrations(
        MIGRATIONS
            .iter()
            .map(|&(version, name, sql)| {
                let sql = sql.into_sql_str();
                Migration::new(version, name.into(), MigrationType::Simple, sql, false)
            })
            .collect(),
    )
}

#[async_trait]
impl Store for SqliteStore {
    async fn create_session(&self, tenant: &str, new: NewSession) -> Result<Session, StoreError> {
        let row = sqlx::query(
            "INSERT INTO sessions (id, tenant, room, status, agent, metadata, created_at)
             VALUES (?1, ?2, ?3, 'created', ?4, ?5, ?6) RETURNING *",
        )
        .bind(&new.id)
        .bind(tenant)
        .bind(&new.room)
        .bind(&new.agent)
        .bind(new.metadata.to_string())
        .bind(new.created_at)
        .fetch_one(&self.writer)
        .await?;
        read_session(&row)
    }

    async fn session(&self, tenant: &str, id: &str) -> Result<Option<Session>, StoreError> {
        let row = sqlx::query("SELECT * FROM sessions WHERE tenant = ?1 AND id = ?2")
            .bind(tenant)
            .bind(id)
            .fetch_optional(&self.reader)
            .await?;
        row.as_ref().map(read_session).transpose()
    }

    async fn sessions(
        &self,
        tenant: &str,
        filter: SessionFilter,
        page: PageRequest,
    ) -> Result<Page<Session>, StoreError> {
        let statuses = match filter {
            SessionFilter::Active => ["created", "in_progress", ""],
            SessionFilter::Completed => ["completed", "", ""],
            SessionFilter::All => ["created", "in_progress", "completed"],
        };
        let rows = sqlx::query(
            "SELECT * FROM sessions WHERE tenant = ?1 AND status IN (?2, ?3, ?4)
             ORDER BY created_at DESC, id LIMIT ?5 OFFSET ?6",
        )
        .bind(tenant)
        .bind(statuses[0])
        .bind(statuses[1])
        .bind(statuses[2])
        .bind(page.limit)
        .bind(page.offset())
        .fetch_all(&self.reader)
        .await?;
        let total: i64 = sqlx::query(
            "SELECT COUNT(*) FROM sessions WHERE tenant = ?1 AND status IN (?2, ?3, ?4)",
        )
        .bind(tenant)
        .bind(statuses[0])
        .bind(statuses[1])
        .bind(statuses[2])
        .fetch_one(&self.reader)
        .await?
        .try_get(0)?;
        Ok(Page {
            rows: rows.iter().map(read_session).collect::<Result<_, _>>()?,
            total: total.unsigned_abs(),
        })
    }

    async fn start_session(
        &self,
        tenant: &str,
        id: &str,
        at: i64,
    ) -> Result<Option<Session>, StoreError> {
        let mut tx = self.begin().await?;
        let started = self.start_in(&mut tx, tenant, id, at).await?;
        tx.commit().await?;
        match started {
            Some(session) => Ok(Some(session)),
            None => self.session(tenant, id).await,
        }
    }

    async fn end_session(
        &self,
        tenant: &str,
        id: &str,
        at: i64,
    ) -> Result<Option<Session>, StoreError> {
        let mut tx = self.begin().await?;
        let row = sqlx::query(
            "UPDATE sessions SET status = 'completed', ended_at = ?3
             WHERE tenant = ?1 AND id = ?2 AND status <> 'completed' RETURNING *",
        )
        .bind(tenant)
        .bind(id)
        .bind(at)
        .fetch_optional(&mut *tx)
        .await?;
        if row.is_some() {
            self.add_status_event(&mut tx, tenant, id, SessionStatus::Completed, at).await?;
        }
        tx.commit().await?;
        match row {
            Some(row) => Ok(Some(read_session(&row)?)),
            None => self.session(tenant, id).await,
        }
    }

    async fn ingest(&self, tenant: &str, batch: IngestBatch) -> Result<Ingested, StoreError> {
        let mut tx = self.begin().await?;
        let session = self.session_of_batch(&mut tx, tenant, &batch).await?;
        let (mut accepted, mut duplicates) = (0, 0);
        for item in &batch.items {
            let mut event = NewEvent {
                tenant,
                session: &session.id,
                kind: "final",
                transcript: None,
                data: None,
                at: batch.received_at,
            };
            match item {
                IngestItem::Final(new) => {
                    accepted += 1;
                    let seq =
                        Self::add_final(&mut tx, tenant, &session, new, batch.received_at).await?;
                    if seq.is_none() {
                        duplicates += 1;
                        continue;
                    }
                    event.transcript = seq;
                    self.add_event(&mut tx, event).await?;
                }
                IngestItem::Event { kind, data } => {
                    event.kind = kind;
                    event.data = Some(data);
                    self.add_event(&mut tx, event).await?;
                }
                IngestItem::Closed { at } => {
                    let done = sqlx::query(
                        "UPDATE sessions SET status = 'completed', ended_at = ?2
                         WHERE id = ?1 AND origin = 'worker' AND status <> 'completed'",
                    )
                    .bind(&session.id)
                    .bind(at)
                    .execute(&mut *tx)
                    .await?;
                    if done.rows_affected() > 0 {
                        let status = SessionStatus::Completed;
                        self.add_status_event(&mut tx, tenant, &session.id, status, *at).await?;
                    }
                }
            }
        }
        tx.commit().await?;
        Ok(Ingested { session, accepted, duplicates })
    }

    async fn transcripts(
        &self,
        tenant: &str,
        session_id: &str,
        query: &TranscriptQuery,
    ) -> Result<Page<Transcript>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM transcripts
             WHERE tenant = ?1 AND session_id = ?2 AND (?3 IS NULL OR timestamp_ms >= ?3)
               AND (?4 IS NULL OR timestamp_ms < ?4) AND (?5 IS NULL OR speaker_id = ?5)
             ORDER BY timestamp_ms, seq LIMIT ?6 OFFSET ?7",
        )
        .bind(tenant)
        .bind(session_id)
        .bind(query.from_ms)
        .bind(query.to_ms)
        .bind(&query.speaker_id)
        .bind(query.page.limit)
        .bind(query.page.offset())
        .fetch_all(&self.reader)
        .await?;
        let total: i64 = sqlx::query(
            "SELECT COUNT(*) FROM transcripts
             WHERE tenant = ?1 AND session_id = ?2 AND (?3 IS NULL OR timestamp_ms >= ?3)
               AND (?4 IS NULL OR timestamp_ms < ?4) AND (?5 IS NULL OR speaker_id = ?5)",
        )
        .bind(tenant)
        .bind(session_id)
        .bind(query.from_ms)
        .bind(query.to_ms)
        .bind(&query.speaker_id)
        .fetch_one(&self.reader)
        .await?
        .try_get(0)?;
        Ok(Page {
            rows: rows.iter().map(read_transcript).collect::<Result<_, _>>()?,
            total: total.unsigned_abs(),
        })
    }

    async fn events_after(
        &self,
        tenant: &str,
        session_id: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        let rows = sqlx::query(
            "SELECT e.seq AS event_seq, e.kind AS event_kind, e.data AS event_data, t.*
             FROM events e LEFT JOIN transcripts t ON t.seq = e.transcript_seq
             WHERE e.tenant = ?1 AND e.session_id = ?2 AND e.seq > ?3
             ORDER BY e.seq LIMIT ?4",
        )
        .bind(tenant)
        .bind(session_id)
        .bind(after)
        .bind(limit)
        .fetch_all(&self.reader)
        .await?;
        rows.iter().map(read_event).collect()
    }

    async fn event_span(&self, tenant: &str, session_id: &str) -> Result<EventSpan, StoreError> {
        let row = sqlx::query(
            "SELECT events_dropped_to,
                    COALESCE((SELECT MAX(seq) FROM events WHERE session_id = ?2), 0) AS newest
             FROM sessions WHERE tenant = ?1 AND id = ?2",
        )
        .bind(tenant)
        .bind(session_id)
        .fetch_optional(&self.reader)
        .await?;
        let Some(row) = row else { return Ok(EventSpan::default()) };
        Ok(EventSpan {
            newest: row.try_get("newest")?,
            dropped_to: row.try_get("events_dropped_to")?,
        })
    }

    async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.reader).await?;
        Ok(())
    }

    async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

fn read_session(row: &SqliteRow) -> Result<Session, StoreError> {
    Ok(Session {
        id: row.try_get("id")?,
        room: row.try_get("room")?,
        status: SessionStatus::parse(row.try_get("status")?)?,
        agent: row.try_get("agent")?,
        metadata: serde_json::from_str(row.try_get("metadata")?)
            .map_err(|_| StoreError::Corrupt("session's metadata"))?,
        created_at: row.try_get("created_at")?,
        started_at: row.try_get("started_at")?,
        ended_at: row.try_get("ended_at")?,
    })
}

fn read_transcript(row: &SqliteRow) -> Result<Transcript, StoreError> {
    Ok(Transcript {
        seq: row.try_get("seq")?,
        id: row.try_get("id")?,
        session_id: row.try_get("session_id")?,
        kind: match row.try_get("kind")? {
            "user" => SpeakerKind::User,
            "agent" => SpeakerKind::Agent,
            _ => return Err(StoreError::Corrupt("transcript's kind")),
        },
        speaker_id: row.try_get("speaker_id")?,
        speaker_name: row.try_get("speaker_name")?,
        content: row.try_get("content")?,
        timestamp_ms: row.try_get("timestamp_ms")?,
        duration_ms: row.try_get("duration_ms")?,
        confidence: row.try_get("confidence")?,
        is_final: row.try_get("is_final")?,
        flagged: row.try_get("flagged")?,
        flag_reason: row.try_get("flag_reason")?,
        created_at: row.try_get("created_at")?,
    })
}

fn read_event(row: &SqliteRow) -> Result<Event, StoreError> {
    let seq = row.try_get("event_seq")?;
    let data: Option<&str> = row.try_get("event_data")?;
    let body = match data {
        Some(data) => EventBody::Other {
            kind: row.try_get("event_kind")?,
            data: serde_json::from_str(data).map_err(|_| StoreError::Corrupt("event"))?,
        },
        None => EventBody::Final(read_transcript(row)?),
    };
    Ok(Event { seq, body })
}

const fn kind_name(kind: SpeakerKind) -> &'static str {
    match kind {
        SpeakerKind::User => "user",
        SpeakerKind::Agent => "agent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DEFAULT_TENANT, conformance};

    async fn in_directory() -> (tempfile::TempDir, SqliteStore) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/antiphon.db");
        let store = SqliteStore::open(path.to_str().unwrap()).await.unwrap();
        (directory, store)
    }

    #[tokio::test]
    async fn a_database_in_memory_keeps_the_store_contract() {
        conformance::run(|| async { SqliteStore::open("sqlite::memory:").await.unwrap() }).await;
    }

    #[tokio::test]
    async fn a_database_in_a_file_keeps_the_store_contract() {
        let directory = tempfile::tempdir().unwrap();
        let count = std::sync::atomic::AtomicU32::new(0);
        conformance::run(|| {
            let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let path = directory.path().join(format!("{number}.db"));
            async move { SqliteStore::open(path.to_str().unwrap()).await.unwrap() }
        })
        .await;
    }

    #[tokio::test]
    async fn what_was_ingested_is_there_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", directory.path().join("a.db").display());
        let store = SqliteStore::open(&url).await.unwrap();
        let batch = conformance::batch("room", "key", &["one", "two"]);
        let session = store.ingest(DEFAULT_TENANT, batch).await.unwrap().session;
        store.close().await;

        let store = SqliteStore::open(&url).await.unwrap();
        let page = store
            .transcripts(DEFAULT_TENANT, &session.id, &conformance::everything())
            .await
            .unwrap();
        assert_eq!(page.total, 2);
    }

    #[tokio::test]
    async fn acknowledged_writes_are_synced_and_the_journal_is_a_wal() {
        let (_directory, store) = in_directory().await;
        let mode: String =
            sqlx::query("PRAGMA journal_mode").fetch_one(&store.writer).await.unwrap().get(0);
        let synchronous: i64 =
            sqlx::query("PRAGMA synchronous").fetch_one(&store.writer).await.unwrap().get(0);
        assert_eq!((mode.as_str(), synchronous), ("wal", 2), "2 is FULL");
    }

    #[tokio::test]
    async fn the_event_log_of_a_session_is_bounded_and_says_what_it_dropped() {
        let mut store = SqliteStore::open("sqlite::memory:").await.unwrap();
        store.events_kept = 5;
        let ids: Vec<String> = (0..23).map(|number| format!("segment {number}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let batch = conformance::batch("room", "key", &ids);
        let session = store.ingest(DEFAULT_TENANT, batch).await.unwrap().session;

        let events = store.events_after(DEFAULT_TENANT, &session.id, 0, 100).await.unwrap();
        assert!((5..10).contains(&events.len()), "{}", events.len());
        let span = store.event_span(DEFAULT_TENANT, &session.id).await.unwrap();
        assert_eq!(span.newest, events.last().unwrap().seq);
        assert_eq!(span.dropped_to, events[0].seq - 1);
        let all = conformance::everything();
        let page = store.transcripts(DEFAULT_TENANT, &session.id, &all).await.unwrap();
        assert_eq!(page.total, 23, "transcripts themselves are never dropped");
    }

    #[tokio::test]
    async fn another_database_is_refused_by_name() {
        let error = SqliteStore::open("postgres://user:secret@host/db").await.unwrap_err();
        assert!(matches!(error, StoreError::UnsupportedUrl));
        assert!(!error.to_string().contains("secret"));
    }

    #[tokio::test]
    async fn two_processes_on_one_file_wait_for_each_other() {
        let (directory, first) = in_directory().await;
        let path = directory.path().join("deep/antiphon.db");
        let second = SqliteStore::open(path.to_str().unwrap()).await.unwrap();
        let (a, b) = tokio::join!(
            async {
                for number in 0..20 {
                    let id = format!("a{number}");
                    let batch = conformance::batch("a", "key", &[&id]);
                    first.ingest(DEFAULT_TENANT, batch).await.unwrap();
                }
            },
            async {
                for number in 0..20 {
                    let id = format!("b{number}");
                    let batch = conformance::batch("b", "key", &[&id]);
                    second.ingest(DEFAULT_TENANT, batch).await.unwrap();
                }
            }
        );
        let ((), ()) = (a, b);
        let page = PageRequest { page: 1, limit: 10 };
        let sessions = first.sessions(DEFAULT_TENANT, SessionFilter::Active, page).await.unwrap();
        assert_eq!(sessions.total, 2);
    }
}
