//! What every store must do, run against each of them.

use serde_json::json;

use super::{
    DEFAULT_TENANT as TENANT, EventBody, IngestBatch, IngestItem, NewSession, NewTranscript,
    PageRequest, SessionFilter, SessionStatus, Store, Transcript, TranscriptQuery,
};
use crate::transcript::segment::SpeakerKind;

/// Runs the suite; `make` gives an empty store each time.
pub async fn run<S, F, Fut>(make: F)
where
    S: Store,
    F: Fn() -> Fut,
    Fut: Future<Output = S>,
{
    a_session_moves_forward_only(&make().await).await;
    sessions_are_listed_by_status_newest_first(&make().await).await;
    another_tenant_sees_nothing(&make().await).await;
    ingest_is_idempotent_by_segment_id(&make().await).await;
    an_unknown_room_makes_its_session_once(&make().await).await;
    a_room_made_by_a_client_is_found_whatever_the_key(&make().await).await;
    a_worker_closes_only_the_session_it_made(&make().await).await;
    timestamps_count_from_the_start_of_the_session(&make().await).await;
    transcripts_are_filtered_and_paged_without_overlap(&make().await).await;
    events_are_read_in_order_from_any_point(&make().await).await;
}

pub fn spoken(id: &str, speaker: &str, spoken_at: i64) -> NewTranscript {
    NewTranscript {
        id: id.into(),
        kind: SpeakerKind::User,
        speaker_id: speaker.into(),
        speaker_name: speaker.to_uppercase(),
        content: format!("said {id}"),
        spoken_at,
        duration_ms: 400,
        confidence: 0.75,
    }
}

/// Finals spoken 100 ms apart in a session that began at 1,000,000.
pub fn batch(room: &str, key: &str, ids: &[&str]) -> IngestBatch {
    let items = ids
        .iter()
        .zip(0..)
        .map(|(id, number)| IngestItem::Final(spoken(id, "ann", 1_000_000 + 100 * number)))
        .collect();
    IngestBatch {
        room: room.into(),
        session_key: key.into(),
        agent: "assistant".into(),
        started_at: 1_000_000,
        received_at: 1_500_000,
        items,
    }
}

pub fn everything() -> TranscriptQuery {
    TranscriptQuery {
        from_ms: None,
        to_ms: None,
        speaker_id: None,
        page: PageRequest { page: 1, limit: 1000 },
    }
}

fn new_session(id: &str, created_at: i64) -> NewSession {
    NewSession {
        id: id.into(),
        room: format!("session-{id}"),
        agent: "assistant".into(),
        metadata: json!({"entity_id": "e1"}),
        created_at,
    }
}

fn ids(rows: &[Transcript]) -> Vec<&str> {
    rows.iter().map(|row| row.id.as_str()).collect()
}

async fn a_session_moves_forward_only(store: &impl Store) {
    let created = store.create_session(TENANT, new_session("s", 5)).await.unwrap();
    assert_eq!(created.status, SessionStatus::Created);
    assert_eq!(created.metadata, json!({"entity_id": "e1"}));
    assert_eq!(store.session(TENANT, "s").await.unwrap(), Some(created));

    let started = store.start_session(TENANT, "s", 10).await.unwrap().unwrap();
    assert_eq!((started.status, started.started_at), (SessionStatus::InProgress, Some(10)));
    let again = store.start_session(TENANT, "s", 99).await.unwrap().unwrap();
    assert_eq!(again.started_at, Some(10), "the start is kept");

    let ended = store.end_session(TENANT, "s", 20).await.unwrap().unwrap();
    assert_eq!((ended.status, ended.ended_at), (SessionStatus::Completed, Some(20)));
    let again = store.end_session(TENANT, "s", 99).await.unwrap().unwrap();
    assert_eq!(again.ended_at, Some(20), "the end is kept");
    let again = store.start_session(TENANT, "s", 99).await.unwrap().unwrap();
    assert_eq!(again.status, SessionStatus::Completed, "it does not begin again");

    assert_eq!(store.start_session(TENANT, "nobody", 1).await.unwrap(), None);
    assert_eq!(store.end_session(TENANT, "nobody", 1).await.unwrap(), None);
}

async fn sessions_are_listed_by_status_newest_first(store: &impl Store) {
    for (id, created_at) in [("a", 1), ("b", 2), ("c", 3)] {
        store.create_session(TENANT, new_session(id, created_at)).await.unwrap();
    }
    store.end_session(TENANT, "b", 9).await.unwrap();
    let page = PageRequest { page: 1, limit: 10 };
    let list = async |filter, page| {
        let found = store.sessions(TENANT, filter, page).await.unwrap();
        (found.rows.into_iter().map(|row| row.id).collect::<Vec<_>>(), found.total)
    };
    assert_eq!(list(SessionFilter::Active, page).await, (vec!["c".into(), "a".into()], 2));
    assert_eq!(list(SessionFilter::Completed, page).await, (vec!["b".into()], 1));
    let second = PageRequest { page: 2, limit: 2 };
    assert_eq!(list(SessionFilter::All, second).await, (vec!["a".into()], 3));
}

async fn another_tenant_sees_nothing(store: &impl Store) {
    store.create_session(TENANT, new_session("s", 1)).await.unwrap();
    let room = batch("session-s", "key", &["one"]);
    store.ingest(TENANT, room.clone()).await.unwrap();

    assert_eq!(store.session("other", "s").await.unwrap(), None);
    assert_eq!(store.start_session("other", "s", 2).await.unwrap(), None);
    assert_eq!(store.end_session("other", "s", 2).await.unwrap(), None);
    assert_eq!(store.transcripts("other", "s", &everything()).await.unwrap().total, 0);
    assert!(store.events_after("other", "s", 0, 10).await.unwrap().is_empty());
    let theirs = store.ingest("other", room).await.unwrap();
    assert_ne!(theirs.session.id, "s", "a room of the same name is another room");
    assert_eq!(theirs.duplicates, 0, "a segment of the same id is another segment");
}

async fn ingest_is_idempotent_by_segment_id(store: &impl Store) {
    let first = store.ingest(TENANT, batch("r", "k", &["one", "two"])).await.unwrap();
    assert_eq!((first.accepted, first.duplicates), (2, 0));

    let mut again = batch("r", "k", &["two", "three", "three"]);
    if let Some(IngestItem::Final(two)) = again.items.first_mut() {
        two.content = "something else".into();
    }
    let second = store.ingest(TENANT, again).await.unwrap();
    assert_eq!((second.accepted, second.duplicates), (3, 2));
    assert_eq!(second.session.id, first.session.id);

    let page = store.transcripts(TENANT, &first.session.id, &everything()).await.unwrap();
    assert_eq!(page.total, 3);
    let two = page.rows.iter().find(|row| row.id == "two").unwrap();
    assert_eq!(two.content, "said two", "the first one stands");
    let events = store.events_after(TENANT, &first.session.id, 0, 10).await.unwrap();
    assert_eq!(events.len(), 3, "a repeated final is not announced again");
}

async fn an_unknown_room_makes_its_session_once(store: &impl Store) {
    let one = store.ingest(TENANT, batch("r", "RM_1", &["a"])).await.unwrap().session;
    let same = store.ingest(TENANT, batch("r", "RM_1", &["b"])).await.unwrap().session;
    let next = store.ingest(TENANT, batch("r", "RM_2", &["c"])).await.unwrap().session;
    assert_eq!(one.id, same.id);
    assert_ne!(one.id, next.id, "the name is used again by a new room");
    assert_eq!((one.status, one.started_at), (SessionStatus::InProgress, Some(1_000_000)));
    assert_eq!((one.room.as_str(), one.agent.as_str()), ("r", "assistant"));
}

async fn a_room_made_by_a_client_is_found_whatever_the_key(store: &impl Store) {
    store.create_session(TENANT, new_session("s", 1)).await.unwrap();
    let found = store.ingest(TENANT, batch("session-s", "RM_9", &["a"])).await.unwrap().session;
    assert_eq!(found.id, "s");
    assert_eq!(found.started_at, Some(1_000_000), "a report starts it if nobody has");
    store.end_session(TENANT, "s", 2_000_000).await.unwrap();
    let late = store.ingest(TENANT, batch("session-s", "RM_9", &["b"])).await.unwrap().session;
    assert_eq!(late.id, "s", "what comes late still belongs to it");
    assert_eq!(late.status, SessionStatus::Completed);
}

async fn a_worker_closes_only_the_session_it_made(store: &impl Store) {
    store.create_session(TENANT, new_session("s", 1)).await.unwrap();
    let mut close = batch("session-s", "k", &["a"]);
    close.items.push(IngestItem::Closed { at: 1_600_000 });
    store.ingest(TENANT, close.clone()).await.unwrap();
    let mine = store.session(TENANT, "s").await.unwrap().unwrap();
    assert_eq!(mine.status, SessionStatus::InProgress);

    close.room = "another".into();
    let made = store.ingest(TENANT, close).await.unwrap().session;
    let made = store.session(TENANT, &made.id).await.unwrap().unwrap();
    assert_eq!((made.status, made.ended_at), (SessionStatus::Completed, Some(1_600_000)));
}

async fn timestamps_count_from_the_start_of_the_session(store: &impl Store) {
    store.create_session(TENANT, new_session("s", 1)).await.unwrap();
    store.start_session(TENANT, "s", 999_500).await.unwrap();
    let mut reported = batch("session-s", "k", &["a"]);
    reported.items.push(IngestItem::Final(spoken("early", "ann", 900_000)));
    store.ingest(TENANT, reported).await.unwrap();
    let page = store.transcripts(TENANT, "s", &everything()).await.unwrap();
    let times: Vec<_> = page.rows.iter().map(|row| (row.id.as_str(), row.timestamp_ms)).collect();
    assert_eq!(times, [("early", 0), ("a", 500)], "never before the start");
    let row = &page.rows[1];
    assert_eq!((row.speaker_id.as_str(), row.speaker_name.as_str()), ("ann", "ANN"));
    assert_eq!((row.duration_ms, row.confidence, row.is_final), (400, 0.75, true));
}

async fn transcripts_are_filtered_and_paged_without_overlap(store: &impl Store) {
    let mut reported = batch("r", "k", &[]);
    // All at the same moment: only the order of arrival tells them apart.
    for number in 0..7 {
        reported.items.push(IngestItem::Final(spoken(&format!("x{number}"), "ann", 1_000_100)));
    }
    reported.items.push(IngestItem::Final(spoken("bob's", "bob", 1_000_200)));
    let session = store.ingest(TENANT, reported).await.unwrap().session;

    let mut seen = Vec::new();
    for page in 1..=4 {
        let query = TranscriptQuery { page: PageRequest { page, limit: 3 }, ..everything() };
        let found = store.transcripts(TENANT, &session.id, &query).await.unwrap();
        assert_eq!(found.total, 8);
        seen.extend(found.rows.into_iter().map(|row| row.id));
        // A later arrival between two pages does not move what was there.
        let late = format!("late{page}");
        let late = IngestBatch {
            items: vec![IngestItem::Final(spoken(&late, "zoe", 2_000_000))],
            ..batch("other", "k", &[])
        };
        store.ingest(TENANT, late).await.unwrap();
    }
    assert_eq!(seen, ["x0", "x1", "x2", "x3", "x4", "x5", "x6", "bob's"]);

    let filter = |from_ms, to_ms, speaker: Option<&str>| TranscriptQuery {
        from_ms,
        to_ms,
        speaker_id: speaker.map(Into::into),
        ..everything()
    };
    let found = async |query: TranscriptQuery| {
        let page = store.transcripts(TENANT, &session.id, &query).await.unwrap();
        assert_eq!(page.rows.len() as u64, page.total);
        ids(&page.rows).join(" ")
    };
    assert_eq!(found(filter(None, None, Some("bob"))).await, "bob's");
    assert_eq!(found(filter(Some(200), None, None)).await, "bob's", "from is inclusive");
    assert_eq!(found(filter(Some(100), Some(200), Some("bob"))).await, "", "to is exclusive");
}

async fn events_are_read_in_order_from_any_point(store: &impl Store) {
    let mut reported = batch("r", "k", &["one", "two"]);
    let state = json!({"state": "thinking"});
    reported.items.insert(1, IngestItem::Event { kind: "state".into(), data: state.clone() });
    let session = store.ingest(TENANT, reported).await.unwrap().session;
    store.end_session(TENANT, &session.id, 3_000_000).await.unwrap();

    let events = store.events_after(TENANT, &session.id, 0, 10).await.unwrap();
    let names: Vec<_> = events
        .iter()
        .map(|event| match &event.body {
            EventBody::Final(row) => row.id.clone(),
            EventBody::Other { kind, data } => format!("{kind} {data}"),
        })
        .collect();
    let expected =
        ["one", r#"state {"state":"thinking"}"#, "two", r#"session {"status":"completed"}"#];
    assert_eq!(names, expected);
    assert!(events.is_sorted_by(|a, b| a.seq < b.seq));

    let rest = store.events_after(TENANT, &session.id, events[1].seq, 1).await.unwrap();
    assert_eq!(rest, [events[2].clone()]);
    let span = store.event_span(TENANT, &session.id).await.unwrap();
    assert_eq!((span.newest, span.dropped_to), (events[3].seq, 0));
}
