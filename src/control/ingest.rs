//! The workers' way in.

use axum::{Extension, Json, extract::State};

use super::{
    app::App,
    auth::Principal,
    error::{ApiError, BodyFaults, Faults},
    extract::Body,
    live::{Signal, interim_json},
    usage,
};
use crate::{
    store::{
        IngestBatch, IngestItem, NewTranscript,
        recordings::{NewRecording, RecordingSource, RecordingStatus},
    },
    transcript::wire::{
        IngestRequest, IngestResponse, Item, MAX_ITEMS, RecordingItem, Spoken, UsageItem,
    },
};

const MAX_NAME: usize = 256;
const MAX_CONTENT: usize = 100_000;
const MAX_EVENT: usize = 16_384;
/// Rows of a session's sums.
const MAX_USAGE: usize = 64;
/// The end of the year 9999.
const MAX_TIME: i64 = 253_402_300_799_999;
/// Why a row is flagged that was understood after the fact.
const LATE: &str = "late";
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Report what happened in a room.
///
/// Finals are stored once for each id, all of a request in one transaction; the answer comes after
/// the commit. A room that is not known makes its session. Refused as a whole when one item is not
/// valid.
#[utoipa::path(
    post, path = "/api/ingest", tag = "ingest", request_body = IngestRequest,
    responses((status = 200, description = "Stored", body = IngestResponse), Faults, BodyFaults),
)]
pub async fn ingest(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Body(request): Body<IngestRequest>,
) -> Result<Json<IngestResponse>, ApiError> {
    check(&request)?;
    let mut items = Vec::with_capacity(request.items.len());
    // Interims, and `None` where something is stored, in the order of the request.
    let mut told = Vec::new();
    for item in request.items {
        let stored = match item {
            Item::Segment(spoken) => IngestItem::Final(NewTranscript {
                id: spoken.id,
                kind: spoken.kind,
                speaker_id: spoken.speaker_id,
                speaker_name: spoken.speaker_name,
                content: spoken.content,
                spoken_at: spoken.spoken_at_unix_ms,
                duration_ms: spoken.duration_ms.min(DAY_MS) as i64,
                confidence: f64::from(spoken.confidence.clamp(0.0, 1.0)),
                flag: spoken.late.then(|| LATE.to_owned()),
            }),
            Item::Interim(spoken) => {
                told.push(Some(spoken));
                continue;
            }
            Item::State { state } => event("state", serde_json::json!({ "state": state })),
            Item::Usage(usage) => event("usage", serde_json::json!(usage)),
            Item::Totals { usage } => {
                IngestItem::Usage(usage.into_iter().map(usage::row).collect())
            }
            Item::Event { name, data } => {
                event("event", serde_json::json!({ "name": name, "data": data }))
            }
            Item::Recording(made) => IngestItem::Recording(NewRecording {
                id: made.id,
                filename: made.filename,
                object_key: made.object_key,
                track_type: made.track_type,
                source: RecordingSource::Worker,
                status: RecordingStatus::Complete,
                egress_id: None,
                encrypted: made.encrypted,
                duration_ms: made.duration_ms.min(DAY_MS) as i64,
                file_size: made.file_size.min(i64::MAX as u64) as i64,
                created_at: made.created_at_unix_ms,
                ended_at: Some(
                    made.created_at_unix_ms.saturating_add(made.duration_ms.min(DAY_MS) as i64),
                ),
            }),
            Item::Closed { at_unix_ms } => IngestItem::Closed { at: at_unix_ms },
            Item::Unknown => continue,
        };
        items.push(stored);
        if !matches!(told.last(), Some(None)) {
            told.push(None);
        }
    }
    let batch = IngestBatch {
        room: request.room,
        session_key: request.session_key,
        agent: request.agent,
        started_at: request.started_at_unix_ms,
        received_at: crate::clock::unix_ms(),
        redact: false,
        items,
    };
    // Rooms are one namespace at the LiveKit server: who has the service token reports for all.
    let known =
        if principal.service { app.store.session_of_room(&batch.room).await? } else { None };
    let tenant = known.map_or(principal.tenant, |session| session.tenant);
    let own = app.auth.tenant(&app.store, &tenant).await?;
    let batch = IngestBatch { redact: own.is_some_and(|own| own.redact), ..batch };
    let ingested = app.store.ingest(&tenant, batch).await?;
    metrics::counter!("antiphon_ingested_segments_total").increment(ingested.accepted);
    metrics::counter!("antiphon_ingested_duplicates_total").increment(ingested.duplicates);

    let session = ingested.session;
    let begun = session.started_at.unwrap_or(session.created_at);
    for one in told {
        match one {
            None => app.hub.tell(&session.id, Signal::Stored),
            Some(spoken) => {
                if let Some(json) = interim_json(spoken, begun) {
                    app.hub.tell(&session.id, Signal::Interim(json));
                }
            }
        }
    }
    Ok(Json(IngestResponse { accepted: ingested.accepted, duplicates: ingested.duplicates }))
}

fn event(kind: &str, data: serde_json::Value) -> IngestItem {
    IngestItem::Event { kind: kind.into(), data }
}

fn check(request: &IngestRequest) -> Result<(), ApiError> {
    name("room", &request.room)?;
    short("sessionKey", &request.session_key, MAX_NAME)?;
    short("agent", &request.agent, MAX_NAME)?;
    time("startedAtUnixMs", request.started_at_unix_ms)?;
    if request.items.len() > MAX_ITEMS {
        return Err(ApiError::invalid(format!("items: at most {MAX_ITEMS}")));
    }
    for item in &request.items {
        match item {
            Item::Segment(spoken) | Item::Interim(spoken) => check_spoken(spoken)?,
            Item::State { state } => name("state", state)?,
            Item::Usage(usage) => check_usage(usage)?,
            Item::Totals { usage } if usage.len() > MAX_USAGE => {
                return Err(ApiError::invalid(format!("usage: at most {MAX_USAGE}")));
            }
            Item::Totals { usage } => usage.iter().try_for_each(check_usage)?,
            Item::Event { name: event, data } => {
                name("name", event)?;
                short("data", &data.to_string(), MAX_EVENT)?;
            }
            Item::Recording(made) => check_recording(made)?,
            Item::Closed { at_unix_ms } => time("atUnixMs", *at_unix_ms)?,
            Item::Unknown => {}
        }
    }
    Ok(())
}

fn check_usage(usage: &UsageItem) -> Result<(), ApiError> {
    short("service", &usage.service, MAX_NAME)?;
    short("provider", &usage.provider, MAX_NAME)?;
    short("model", &usage.model, MAX_NAME)
}

/// A worker names objects of recordings alone: whatever it says, nothing else can be read by it.
fn check_recording(made: &RecordingItem) -> Result<(), ApiError> {
    name("id", &made.id)?;
    name("filename", &made.filename)?;
    name("trackType", &made.track_type)?;
    short("objectKey", &made.object_key, 2 * MAX_NAME)?;
    let plain =
        made.object_key.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if !plain || !made.object_key.starts_with("recordings/rooms/") {
        return Err(ApiError::invalid("objectKey is not that of a worker's recording"));
    }
    time("createdAtUnixMs", made.created_at_unix_ms)
}

fn check_spoken(spoken: &Spoken) -> Result<(), ApiError> {
    name("id", &spoken.id)?;
    name("speakerId", &spoken.speaker_id)?;
    short("speakerName", &spoken.speaker_name, MAX_NAME)?;
    short("content", &spoken.content, MAX_CONTENT)?;
    time("spokenAtUnixMs", spoken.spoken_at_unix_ms)
}

fn name(field: &str, text: &str) -> Result<(), ApiError> {
    if text.is_empty() {
        return Err(ApiError::invalid(format!("{field} must not be empty")));
    }
    short(field, text, MAX_NAME)
}

fn short(field: &str, text: &str, max: usize) -> Result<(), ApiError> {
    // Bytes first: counting is for the few that are long.
    if text.len() > max && text.chars().count() > max {
        return Err(ApiError::invalid(format!("{field}: at most {max} characters")));
    }
    Ok(())
}

fn time(field: &str, unix_ms: i64) -> Result<(), ApiError> {
    if !(0..=MAX_TIME).contains(&unix_ms) {
        return Err(ApiError::invalid(format!("{field} is not a time in ms since the Unix epoch")));
    }
    Ok(())
}
