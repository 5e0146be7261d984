//! Live transcripts: server-sent events or a WebSocket, that a listener can resume.
//!
//! The store is the truth: a listener reads everything that has an id from it, in order, and the
//! [`Hub`] only says when to look. So a listener that was away or too slow misses nothing that is
//! still in the log. Interims have no id and are not stored.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{
        State,
        ws::{self, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::HeaderMap,
    response::{
        Response,
        sse::{Event as SseEvent, KeepAlive, Sse},
    },
};
use bytes::Bytes;
use futures_util::Stream;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use utoipa::IntoParams;

use super::{
    app::App,
    audit,
    auth::Principal,
    error::{ApiError, Code, Faults},
    extract::{Id, Params},
    sessions::find,
    transcripts::TranscriptView,
};
use crate::{
    store::{Event, EventBody, StoreError},
    transcript::{segment::SpeakerKind, wire::Spoken},
};

/// Signals that a listener may lag behind.
const BACKLOG: usize = 256;
/// Events that wait for a slow socket.
const OUTGOING: usize = 32;
/// Events read from the store at once.
const PAGE: u32 = 200;
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often a database that others write to is looked into.
const RECHECK: Duration = Duration::from_millis(500);
/// A listener over a WebSocket has nothing to say.
const MAX_INCOMING: usize = 1024;
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(2);

/// What listeners of a session are told.
#[derive(Debug, Clone)]
pub enum Signal {
    /// There is something new in the store.
    Stored,
    /// An interim, as JSON.
    Interim(Arc<str>),
}

/// The sessions that somebody listens to.
#[derive(Debug, Default)]
pub struct Hub(Mutex<HashMap<String, broadcast::Sender<Signal>>>);

impl Hub {
    pub fn subscribe(&self, session: &str) -> broadcast::Receiver<Signal> {
        let mut sessions = self.0.lock();
        sessions.retain(|_, sender| sender.receiver_count() > 0);
        let sender =
            sessions.entry(session.to_owned()).or_insert_with(|| broadcast::Sender::new(BACKLOG));
        sender.subscribe()
    }

    pub fn tell(&self, session: &str, signal: Signal) {
        if let Some(sender) = self.0.lock().get(session) {
            // An error means that the last listener has just gone.
            let _ = sender.send(signal);
        }
    }
}

/// An interim or a final, as a listener gets it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SpokenView {
    kind: SpeakerKind,
    #[serde(flatten)]
    transcript: TranscriptView,
}

/// The data of an `interim`; `session_start` in ms since the Unix epoch.
pub fn interim_json(spoken: Spoken, session_start: i64) -> Option<Arc<str>> {
    let view = SpokenView {
        kind: spoken.kind,
        transcript: TranscriptView {
            id: spoken.id,
            speaker_id: spoken.speaker_id,
            speaker_name: spoken.speaker_name,
            content: spoken.content,
            timestamp_ms: spoken.spoken_at_unix_ms.saturating_sub(session_start).max(0),
            duration_ms: i64::try_from(spoken.duration_ms).unwrap_or(i64::MAX),
            confidence: f64::from(spoken.confidence),
            is_final: false,
            flagged: false,
            flag_reason: None,
        },
    };
    serde_json::to_string(&view).ok().map(Into::into)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct LiveQuery {
    /// Begin after this event, as with the header Last-Event-ID; 0 for all that is still there.
    /// Without it: from now on.
    #[param(example = 0)]
    last_event_id: Option<i64>,
}

/// Follow a session live.
///
/// Events: `interim`, `final` (a transcript), `state` (the agent's), `usage`, `event`, `session`
/// (its status). All but `interim` have an id to resume from; a `gap` says that events before the
/// first one sent have been dropped from the log (their transcripts are in `…/transcripts`).
#[utoipa::path(
    get, path = "/api/sessions/{id}/transcripts/live", tag = "transcripts",
    params(
        ("id" = String, Path, description = "The session"),
        ("Last-Event-ID" = Option<String>, Header, description = "The last event received"),
        LiveQuery,
    ),
    responses(
        (status = 200, description = "A stream of events", body = String,
         content_type = "text/event-stream",
         example = json!(
            "id: 42\nevent: final\ndata: {\"kind\":\"user\",\"id\":\"SG_1\",\"speakerId\":\"ann\",\
             \"speakerName\":\"Ann\",\"content\":\"Book a table.\",\"timestampMs\":2100,\
             \"durationMs\":900,\"confidence\":0.97,\"isFinal\":true}\n\n")),
        Faults,
    ),
)]
pub async fn live(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
    Params(query): Params<LiveQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, ApiError> {
    let resume = match headers.get("last-event-id") {
        Some(value) => {
            let id = value.to_str().ok().and_then(|value| value.trim().parse().ok());
            Some(id.ok_or_else(|| ApiError::invalid("Last-Event-ID is not an id of ours"))?)
        }
        None => query.last_event_id,
    };
    let messages = listen(app, &principal, &id, resume).await?;
    let stream = ReceiverStream::new(messages).map(|message| Ok(message.into_sse()));
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Follow a session live over a WebSocket: the same events, each a text message.
///
/// A message is `{"id"?, "event", "data"}`; resume by `lastEventId`. A browser, which cannot set a
/// header, offers the subprotocols `bearer` and its token.
#[utoipa::path(
    get, path = "/api/sessions/{id}/transcripts/socket", tag = "transcripts",
    params(
        ("id" = String, Path, description = "The session"), LiveQuery,
    ),
    responses(
        (status = 101, description = "Switching to WebSocket (RFC 6455)"),
        (status = 426, description = "UPGRADE_REQUIRED",
         body = super::error::ErrorBody),
        Faults,
    ),
)]
pub async fn socket(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
    Params(query): Params<LiveQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    find(&app, &principal, &id).await?;
    let upgrade = upgrade.map_err(|_| ApiError::new(Code::UpgradeRequired))?;
    let messages = listen(app, &principal, &id, query.last_event_id).await?;
    let upgrade = upgrade.protocols(["bearer"]).max_message_size(MAX_INCOMING);
    Ok(upgrade.on_upgrade(move |socket| talk(socket, messages)))
}

/// Until either side has enough.
async fn talk(mut socket: WebSocket, mut messages: mpsc::Receiver<Message>) {
    let mut pings = tokio::time::interval(KEEP_ALIVE);
    loop {
        let frame = tokio::select! {
            biased;
            heard = socket.recv() => match heard {
                // Pongs are answered below; what a listener says is not listened to.
                Some(Ok(ws::Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
            message = messages.recv() => {
                let Some(message) = message else {
                    let _ = socket.send(ws::Message::Close(None)).await;
                    return;
                };
                ws::Message::text(message.into_text())
            }
            _ = pings.tick() => ws::Message::Ping(Bytes::new()),
        };
        // One that does not read is cut off, and comes back.
        match tokio::time::timeout(SEND_TIMEOUT, socket.send(frame)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Begins to follow a session.
async fn listen(
    app: App,
    principal: &Principal,
    id: &str,
    resume: Option<i64>,
) -> Result<mpsc::Receiver<Message>, ApiError> {
    let session = find(&app, principal, id).await?;
    audit::record(&app, principal, "transcript.live", id, json!({})).await?;
    let span = app.store.event_span(&session.tenant, id).await?;
    // Before the first look into the store, so that nothing falls between the two.
    let signals = app.hub.subscribe(id);
    let (sender, receiver) = mpsc::channel(OUTGOING);
    let listener = Listener {
        last: resume.unwrap_or(span.newest),
        gap: resume.is_some_and(|last| last < span.dropped_to),
        tenant: session.tenant,
        session: session.id,
        app,
        sender,
    };
    tokio::spawn(listener.run(signals));
    Ok(receiver)
}

/// One event on its way to a listener.
#[derive(Debug)]
enum Message {
    /// Without data: who is cut off before the first event resumes from this id.
    Hello {
        last: i64,
    },
    /// So many signals were missed; what they told of follows.
    Lagged(u64),
    Event {
        id: Option<i64>,
        name: String,
        data: Arc<str>,
    },
}

impl Message {
    fn into_sse(self) -> SseEvent {
        match self {
            // An event without data is not dispatched, but its id is remembered.
            Self::Hello { last } => {
                SseEvent::default().comment("live").retry(RETRY).id(last.to_string())
            }
            Self::Lagged(missed) => SseEvent::default().comment(format!("lagged by {missed}")),
            Self::Event { id, name, data } => {
                let event = SseEvent::default().event(name).data(data);
                match id {
                    Some(id) => event.id(id.to_string()),
                    None => event,
                }
            }
        }
    }

    fn into_text(self) -> String {
        match self {
            Self::Hello { last } => json!({ "id": last, "event": "hello", "data": {} }).to_string(),
            Self::Lagged(missed) => {
                json!({ "event": "lagged", "data": { "missed": missed } }).to_string()
            }
            // The data is JSON already.
            Self::Event { id: Some(id), name, data } => {
                format!(r#"{{"id":{id},"event":{},"data":{data}}}"#, json!(name))
            }
            Self::Event { id: None, name, data } => {
                format!(r#"{{"event":{},"data":{data}}}"#, json!(name))
            }
        }
    }
}

struct Listener {
    app: App,
    tenant: String,
    session: String,
    /// The id of the last event sent.
    last: i64,
    gap: bool,
    sender: mpsc::Sender<Message>,
}

/// The listener has gone, or has to.
struct Gone;

impl From<mpsc::error::SendError<Message>> for Gone {
    fn from(_: mpsc::error::SendError<Message>) -> Self {
        Self
    }
}

impl From<StoreError> for Gone {
    /// The listener comes back and resumes.
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "a live stream ends: the store failed");
        Self
    }
}

impl Listener {
    async fn run(mut self, signals: broadcast::Receiver<Signal>) {
        let shutdown = self.app.shutdown.clone();
        let sender = self.sender.clone();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = sender.closed() => {}
            _ = self.follow(signals) => {}
        }
    }

    async fn follow(&mut self, mut signals: broadcast::Receiver<Signal>) -> Result<(), Gone> {
        self.sender.send(Message::Hello { last: self.last }).await?;
        if self.gap {
            let data = json!({ "after": self.last }).to_string().into();
            self.sender.send(Message::Event { id: None, name: "gap".into(), data }).await?;
        }
        self.catch_up().await?;
        // Other endpoints of a fleet write to the same database.
        let recheck = if self.app.store.is_shared() { RECHECK } else { Duration::MAX };
        loop {
            let signal = match tokio::time::timeout(recheck, signals.recv()).await {
                Ok(signal) => signal,
                Err(_) => Ok(Signal::Stored),
            };
            match signal {
                Ok(Signal::Stored) => self.catch_up().await?,
                Ok(Signal::Interim(data)) => {
                    let name = "interim".into();
                    self.sender.send(Message::Event { id: None, name, data }).await?;
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    self.sender.send(Message::Lagged(missed)).await?;
                    self.catch_up().await?;
                }
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            }
        }
    }

    async fn catch_up(&mut self) -> Result<(), Gone> {
        loop {
            let events =
                self.app.store.events_after(&self.tenant, &self.session, self.last, PAGE).await?;
            let more = events.len() == PAGE as usize;
            for event in events {
                self.last = event.seq;
                self.sender.send(to_message(event)).await?;
            }
            if !more {
                return Ok(());
            }
        }
    }
}

fn to_message(event: Event) -> Message {
    let (name, data) = match event.body {
        EventBody::Final(row) => {
            let view = SpokenView { kind: row.kind, transcript: row.into() };
            ("final".to_owned(), serde_json::to_string(&view).unwrap_or_default())
        }
        EventBody::Other { kind, data } => (kind, data.to_string()),
    };
    Message::Event { id: Some(event.seq), name, data: data.into() }
}
