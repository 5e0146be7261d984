//! What was said, what workers report, and the log that live listeners resume from.

use std::collections::HashMap;

use serde_json::Value;

use super::{
    Page, PageRequest, Session, SessionStatus, Store, StoreError,
    db::{Row, Scope, Tx, args},
    sessions::read_session,
};
use crate::transcript::{redact::redact, segment::SpeakerKind};

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
    pub flagged: Option<bool>,
    /// Only what had arrived by then (a [`Transcript::seq`]): pages asked for with the same one do
    /// not shift while more arrives. None: everything.
    pub as_of: Option<i64>,
    pub page: PageRequest,
}

/// A page, and the newest row that it has counted.
#[derive(Debug, Clone, PartialEq)]
pub struct TranscriptPage {
    pub page: Page<Transcript>,
    pub as_of: i64,
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
    /// Take personal data out of what is stored.
    pub redact: bool,
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
    /// The worker has made a recording of its own.
    Recording(super::recordings::NewRecording),
    /// All that the worker's session has used so far.
    Usage(Vec<super::usage::UsageRow>),
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
    /// Flagged from the beginning, and why.
    pub flag: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Ingested {
    pub session: Session,
    /// Finals that need not be sent again: they are stored, or may not be (no consent, erased).
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

pub(super) struct NewEvent<'a> {
    pub tenant: &'a str,
    pub session: &'a str,
    pub kind: &'a str,
    pub transcript: Option<i64>,
    pub data: Option<&'a Value>,
    pub at: i64,
}

impl Store {
    /// Stores a batch in one transaction: durable when this returns, or nothing of it is there.
    /// An unknown room makes its session.
    pub async fn ingest(&self, tenant: &str, batch: IngestBatch) -> Result<Ingested, StoreError> {
        let mut tx = self.db.write(Scope::Tenant(tenant)).await?;
        let session = self.session_of_batch(&mut tx, tenant, &batch).await?;
        let erased = erased(&mut tx, tenant, &batch).await?;
        let (mut accepted, mut duplicates, mut events) = (0, 0, 0_i64);
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
                    let gone = erased.get(&new.speaker_id).is_some_and(|at| *at >= new.spoken_at);
                    if gone || !session.may_transcribe() {
                        continue;
                    }
                    event.transcript = add_final(&mut tx, &session, new, &batch).await?;
                    if event.transcript.is_none() {
                        duplicates += 1;
                        continue;
                    }
                    insert_event(&mut tx, event).await?;
                    events += 1;
                }
                IngestItem::Event { kind, data } => {
                    event.kind = kind;
                    event.data = Some(data);
                    insert_event(&mut tx, event).await?;
                    events += 1;
                }
                IngestItem::Recording(new) => {
                    super::recordings::add_in(&mut tx, tenant, &session.id, new).await?;
                }
                IngestItem::Usage(rows) => {
                    for row in rows {
                        let run = batch.started_at;
                        super::usage::set_in(&mut tx, tenant, &session.id, run, row).await?;
                    }
                }
                IngestItem::Closed { at } => {
                    let mine = tx
                        .first(
                            "SELECT id FROM sessions
                             WHERE tenant = $1 AND id = $2 AND origin = 'worker'",
                            args![tenant, &session.id],
                        )
                        .await?;
                    if mine.is_some() {
                        self.end_in(&mut tx, tenant, &session.id, *at).await?;
                    }
                }
            }
        }
        if events > 0 {
            self.count_events(&mut tx, tenant, &session.id, events).await?;
        }
        tx.commit().await?;
        Ok(Ingested { session, accepted, duplicates })
    }

    /// Finds the session of a batch, or makes it, and starts it if nobody has. The session's row
    /// stays locked until the transaction ends, so that the `seq` of its events grows in the order
    /// in which readers come to see them.
    async fn session_of_batch(
        &self,
        tx: &mut Tx,
        tenant: &str,
        batch: &IngestBatch,
    ) -> Result<Session, StoreError> {
        let known = tx
            .first(
                "UPDATE sessions SET events_kept = events_kept WHERE id =
                    (SELECT id FROM sessions
                     WHERE tenant = $1 AND room = $2 AND (origin = 'api' OR origin_key = $3)
                     ORDER BY origin LIMIT 1)
                 RETURNING *",
                args![tenant, &batch.room, &batch.session_key],
            )
            .await?;
        if let Some(row) = known {
            let session = read_session(&row)?;
            if session.status != SessionStatus::Created {
                return Ok(session);
            }
            let started = self.start_in(tx, tenant, &session.id, batch.started_at).await?;
            return Ok(started.unwrap_or(session));
        }
        // Two workers' first reports at once: the second waits for the first one's row.
        let row = tx
            .one(
                "INSERT INTO sessions (id, tenant, room, origin, origin_key, status, agent,
                                       created_at, started_at)
                 VALUES ($1, $2, $3, 'worker', $4, 'in_progress', $5, $6, $7)
                 ON CONFLICT (tenant, room, origin, origin_key)
                     DO UPDATE SET events_kept = sessions.events_kept
                 RETURNING *",
                args![
                    &uuid::Uuid::new_v4().to_string(),
                    tenant,
                    &batch.room,
                    &batch.session_key,
                    &batch.agent,
                    batch.received_at,
                    batch.started_at
                ],
            )
            .await?;
        read_session(&row)
    }

    pub async fn transcripts(
        &self,
        tenant: &str,
        session_id: &str,
        query: &TranscriptQuery,
    ) -> Result<TranscriptPage, StoreError> {
        let mut tx = self.db.read(Scope::Tenant(tenant)).await?;
        let as_of = match query.as_of {
            Some(as_of) => as_of,
            None => {
                tx.number(
                    "SELECT COALESCE(MAX(seq), 0) FROM transcripts
                     WHERE tenant = $1 AND session_id = $2",
                    args![tenant, session_id],
                )
                .await?
            }
        };
        let flagged = query.flagged.map(i64::from);
        let rows = tx
            .all(
                "SELECT * FROM transcripts
                 WHERE tenant = $1 AND session_id = $2 AND ($3 IS NULL OR timestamp_ms >= $3)
                   AND ($4 IS NULL OR timestamp_ms < $4) AND ($5 IS NULL OR speaker_id = $5)
                   AND ($6 IS NULL OR flagged = ($6 = 1)) AND seq <= $7
                 ORDER BY timestamp_ms, seq LIMIT $8 OFFSET $9",
                args![
                    tenant,
                    session_id,
                    query.from_ms,
                    query.to_ms,
                    &query.speaker_id,
                    flagged,
                    as_of,
                    query.page.limit,
                    query.page.offset()
                ],
            )
            .await?;
        let total = tx
            .number(
                "SELECT COUNT(*) FROM transcripts
                 WHERE tenant = $1 AND session_id = $2 AND ($3 IS NULL OR timestamp_ms >= $3)
                   AND ($4 IS NULL OR timestamp_ms < $4) AND ($5 IS NULL OR speaker_id = $5)
                   AND ($6 IS NULL OR flagged = ($6 = 1)) AND seq <= $7",
                args![
                    tenant,
                    session_id,
                    query.from_ms,
                    query.to_ms,
                    &query.speaker_id,
                    flagged,
                    as_of
                ],
            )
            .await?;
        Ok(TranscriptPage { page: Page::read(&rows, total, read_transcript)?, as_of })
    }

    /// At most `limit` rows of a session after a row, told by its start and its [`Transcript::seq`],
    /// in the order of [`TranscriptQuery`]. However many come before, the next cost the same.
    pub async fn transcripts_after(
        &self,
        tenant: &str,
        session_id: &str,
        after: Option<(i64, i64)>,
        limit: u32,
    ) -> Result<Vec<Transcript>, StoreError> {
        let (timestamp_ms, seq) = after.unwrap_or((i64::MIN, i64::MIN));
        let mut tx = self.db.read(Scope::Tenant(tenant)).await?;
        let rows = tx
            .all(
                "SELECT * FROM transcripts
                 WHERE tenant = $1 AND session_id = $2 AND (timestamp_ms, seq) > ($3, $4)
                 ORDER BY timestamp_ms, seq LIMIT $5",
                args![tenant, session_id, timestamp_ms, seq, limit],
            )
            .await?;
        rows.iter().map(read_transcript).collect()
    }

    /// `None`: no such transcript.
    pub async fn flag_transcript(
        &self,
        tenant: &str,
        session_id: &str,
        id: &str,
        reason: Option<&str>,
    ) -> Result<Option<Transcript>, StoreError> {
        let mut tx = self.db.write(Scope::Tenant(tenant)).await?;
        let row = tx
            .first(
                "UPDATE transcripts SET flagged = $4, flag_reason = $5
                 WHERE tenant = $1 AND session_id = $2 AND id = $3 RETURNING *",
                args![tenant, session_id, id, reason.is_some(), reason],
            )
            .await?;
        tx.commit().await?;
        row.as_ref().map(read_transcript).transpose()
    }

    /// The events with a greater `seq`, oldest first.
    pub async fn events_after(
        &self,
        tenant: &str,
        session_id: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        self.db
            .all(
                Scope::Tenant(tenant),
                "SELECT e.seq AS event_seq, e.kind AS event_kind, e.data AS event_data, t.*
                 FROM events e LEFT JOIN transcripts t ON t.seq = e.transcript_seq
                 WHERE e.tenant = $1 AND e.session_id = $2 AND e.seq > $3
                 ORDER BY e.seq LIMIT $4",
                args![tenant, session_id, after, limit],
                read_event,
            )
            .await
    }

    pub async fn event_span(
        &self,
        tenant: &str,
        session_id: &str,
    ) -> Result<EventSpan, StoreError> {
        let mut tx = self.db.read(Scope::Tenant(tenant)).await?;
        let row = tx
            .first(
                "SELECT events_dropped_to,
                        COALESCE((SELECT MAX(seq) FROM events WHERE session_id = $2), 0) AS newest
                 FROM sessions WHERE tenant = $1 AND id = $2",
                args![tenant, session_id],
            )
            .await?;
        let Some(row) = row else { return Ok(EventSpan::default()) };
        Ok(EventSpan { newest: row.int("newest")?, dropped_to: row.int("events_dropped_to")? })
    }

    pub(super) async fn add_event(
        &self,
        tx: &mut Tx,
        event: NewEvent<'_>,
    ) -> Result<(), StoreError> {
        let (tenant, session) = (event.tenant, event.session);
        insert_event(tx, event).await?;
        self.count_events(tx, tenant, session, 1).await
    }

    async fn count_events(
        &self,
        tx: &mut Tx,
        tenant: &str,
        session: &str,
        added: i64,
    ) -> Result<(), StoreError> {
        let kept = tx
            .number(
                "UPDATE sessions SET events_kept = events_kept + $3
                 WHERE tenant = $1 AND id = $2 RETURNING events_kept",
                args![tenant, session, added],
            )
            .await?;
        if kept < 2 * i64::from(self.events_kept) {
            return Ok(());
        }
        let oldest = tx
            .first(
                "SELECT seq FROM events WHERE tenant = $1 AND session_id = $2
                 ORDER BY seq DESC LIMIT 1 OFFSET $3",
                args![tenant, session, self.events_kept],
            )
            .await?;
        // Fewer are left than were counted when a person's data has been erased.
        let dropped_to = oldest.map(|row| row.int("seq")).transpose()?;
        if let Some(dropped_to) = dropped_to {
            tx.run(
                "DELETE FROM events WHERE tenant = $1 AND session_id = $2 AND seq <= $3",
                args![tenant, session, dropped_to],
            )
            .await?;
        }
        tx.run(
            "UPDATE sessions
             SET events_kept = (SELECT COUNT(*) FROM events WHERE session_id = $2),
                 events_dropped_to = COALESCE($3, events_dropped_to)
             WHERE tenant = $1 AND id = $2",
            args![tenant, session, dropped_to],
        )
        .await?;
        Ok(())
    }
}

async fn insert_event(tx: &mut Tx, event: NewEvent<'_>) -> Result<(), StoreError> {
    let data = event.data.map(ToString::to_string);
    tx.run(
        "INSERT INTO events (tenant, session_id, kind, transcript_seq, data, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        args![event.tenant, event.session, event.kind, event.transcript, &data, event.at],
    )
    .await?;
    Ok(())
}

/// Whose data has been erased since they spoke, and when: a late report must not bring it back.
async fn erased(
    tx: &mut Tx,
    tenant: &str,
    batch: &IngestBatch,
) -> Result<HashMap<String, i64>, StoreError> {
    let spoken = batch.items.iter().filter_map(|item| match item {
        IngestItem::Final(new) => Some(new.spoken_at),
        _ => None,
    });
    let Some(first) = spoken.min() else { return Ok(HashMap::new()) };
    let rows = tx
        .all(
            "SELECT identity, at FROM erasures WHERE tenant = $1 AND at >= $2",
            args![tenant, first],
        )
        .await?;
    rows.iter().map(|row| Ok((row.text("identity")?, row.int("at")?))).collect()
}

/// The new row's `seq`; `None` when this id is stored already.
async fn add_final(
    tx: &mut Tx,
    session: &Session,
    new: &NewTranscript,
    batch: &IngestBatch,
) -> Result<Option<i64>, StoreError> {
    let content = if batch.redact { redact(&new.content) } else { (&*new.content).into() };
    let row = tx
        .first(
            "INSERT INTO transcripts (id, tenant, session_id, kind, speaker_id, speaker_name,
                                      content, timestamp_ms, duration_ms, confidence, created_at,
                                      flagged, flag_reason)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
             ON CONFLICT (tenant, id) DO NOTHING RETURNING seq",
            args![
                &new.id,
                &session.tenant,
                &session.id,
                kind_name(new.kind),
                &new.speaker_id,
                &new.speaker_name,
                &*content,
                new.spoken_at.saturating_sub(session.begun()).max(0),
                new.duration_ms,
                new.confidence,
                batch.received_at,
                new.flag.is_some(),
                &new.flag
            ],
        )
        .await?;
    row.map(|row| row.int("seq")).transpose()
}

pub(super) fn read_transcript(row: &Row) -> Result<Transcript, StoreError> {
    Ok(Transcript {
        seq: row.int("seq")?,
        id: row.text("id")?,
        session_id: row.text("session_id")?,
        kind: match row.text("kind")?.as_str() {
            "user" => SpeakerKind::User,
            "agent" => SpeakerKind::Agent,
            _ => return Err(StoreError::Corrupt("transcript's kind")),
        },
        speaker_id: row.text("speaker_id")?,
        speaker_name: row.text("speaker_name")?,
        content: row.text("content")?,
        timestamp_ms: row.int("timestamp_ms")?,
        duration_ms: row.int("duration_ms")?,
        confidence: row.real("confidence")?,
        is_final: row.bool("is_final")?,
        flagged: row.bool("flagged")?,
        flag_reason: row.text_or_none("flag_reason")?,
        created_at: row.int("created_at")?,
    })
}

fn read_event(row: &Row) -> Result<Event, StoreError> {
    let seq = row.int("event_seq")?;
    let body = match row.text_or_none("event_data")? {
        Some(data) => EventBody::Other {
            kind: row.text("event_kind")?,
            data: serde_json::from_str(&data).map_err(|_| StoreError::Corrupt("event"))?,
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
