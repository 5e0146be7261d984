//! What every store must do, run against each of them: here sessions and their transcripts, what is
//! kept beside them in [`beside`].

mod beside;

use serde_json::json;

use super::{
    Consent, DEFAULT_TENANT as TENANT, EventBody, IngestBatch, IngestItem, NewSession,
    NewTranscript, PageRequest, SessionFilter, SessionKind, SessionStatus, SessionsQuery, Store,
    Transcript, TranscriptQuery,
};
use crate::transcript::segment::SpeakerKind;

/// Runs the suite; `make` gives an empty store each time.
pub async fn run<F, Fut>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Store>,
{
    a_session_moves_forward_only(&make().await).await;
    sessions_are_listed_by_status_newest_first(&make().await).await;
    another_tenant_sees_nothing(&make().await).await;
    ingest_is_idempotent_by_segment_id(&make().await).await;
    an_unknown_room_makes_its_session_once(&make().await).await;
    a_room_made_by_a_client_is_found_whatever_the_key(&make().await).await;
    a_worker_closes_only_the_session_it_made(&make().await).await;
    beside::what_was_used_is_kept_once_and_summed_up(&make().await).await;
    timestamps_count_from_the_start_of_the_session(&make().await).await;
    transcripts_are_filtered_and_paged_without_overlap(&make().await).await;
    events_are_read_in_order_from_any_point(&make().await).await;
    pages_do_not_shift_while_more_arrives(&make().await).await;
    transcripts_are_flagged_and_found_by_it(&make().await).await;
    sessions_are_listed_by_owner_and_kind(&make().await).await;
    a_refusal_to_be_transcribed_is_kept_to(&make().await).await;
    beside::a_webhook_is_acted_on_once(&make().await).await;
    beside::a_link_has_one_use_and_few_tries(&make().await).await;
    beside::keys_are_found_by_prefix_and_revoked(&make().await).await;
    beside::recordings_end_once(&make().await).await;
    beside::an_erased_person_does_not_come_back(&make().await).await;
    beside::what_is_too_old_is_purged_and_the_rest_stays(&make().await).await;
    beside::audit_rows_are_the_tenants_own(&make().await).await;
    beside::the_agents_deadlines_are_found_when_due(&make().await).await;
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
        flag: None,
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
        redact: false,
        items,
    }
}

pub fn everything() -> TranscriptQuery {
    TranscriptQuery {
        from_ms: None,
        to_ms: None,
        speaker_id: None,
        flagged: None,
        as_of: None,
        page: PageRequest { page: 1, limit: 1000 },
    }
}

fn new_session(id: &str, created_at: i64) -> NewSession {
    NewSession {
        id: id.into(),
        room: format!("session-{id}"),
        agent: "assistant".into(),
        metadata: json!({"entity_id": "e1"}),
        max_participants: 10,
        created_at,
        ..NewSession::default()
    }
}

fn ids(rows: &[Transcript]) -> Vec<&str> {
    rows.iter().map(|row| row.id.as_str()).collect()
}

async fn a_session_moves_forward_only(store: &Store) {
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

async fn sessions_are_listed_by_status_newest_first(store: &Store) {
    for (id, created_at) in [("a", 1), ("b", 2), ("c", 3)] {
        store.create_session(TENANT, new_session(id, created_at)).await.unwrap();
    }
    store.end_session(TENANT, "b", 9).await.unwrap();
    let page = PageRequest { page: 1, limit: 10 };
    let list = async |filter, page| {
        let query = SessionsQuery::new(filter, page);
        let found = store.sessions(TENANT, &query).await.unwrap();
        (found.rows.into_iter().map(|row| row.id).collect::<Vec<_>>(), found.total)
    };
    assert_eq!(list(SessionFilter::Active, page).await, (vec!["c".into(), "a".into()], 2));
    assert_eq!(list(SessionFilter::Completed, page).await, (vec!["b".into()], 1));
    let second = PageRequest { page: 2, limit: 2 };
    assert_eq!(list(SessionFilter::All, second).await, (vec!["a".into()], 3));
}

async fn another_tenant_sees_nothing(store: &Store) {
    store.create_session(TENANT, new_session("s", 1)).await.unwrap();
    let room = batch("session-s", "key", &["one"]);
    store.ingest(TENANT, room.clone()).await.unwrap();

    assert_eq!(store.session("other", "s").await.unwrap(), None);
    assert_eq!(store.start_session("other", "s", 2).await.unwrap(), None);
    assert_eq!(store.end_session("other", "s", 2).await.unwrap(), None);
    assert_eq!(store.transcripts("other", "s", &everything()).await.unwrap().page.total, 0);
    assert!(store.events_after("other", "s", 0, 10).await.unwrap().is_empty());
    let theirs = store.ingest("other", room).await.unwrap();
    assert_ne!(theirs.session.id, "s", "a room of the same name is another room");
    assert_eq!(theirs.duplicates, 0, "a segment of the same id is another segment");
}

async fn ingest_is_idempotent_by_segment_id(store: &Store) {
    let first = store.ingest(TENANT, batch("r", "k", &["one", "two"])).await.unwrap();
    assert_eq!((first.accepted, first.duplicates), (2, 0));

    let mut again = batch("r", "k", &["two", "three", "three"]);
    if let Some(IngestItem::Final(two)) = again.items.first_mut() {
        two.content = "something else".into();
    }
    let second = store.ingest(TENANT, again).await.unwrap();
    assert_eq!((second.accepted, second.duplicates), (3, 2));
    assert_eq!(second.session.id, first.session.id);

    let page = store.transcripts(TENANT, &first.session.id, &everything()).await.unwrap().page;
    assert_eq!(page.total, 3);
    let two = page.rows.iter().find(|row| row.id == "two").unwrap();
    assert_eq!(two.content, "said two", "the first one stands");
    let events = store.events_after(TENANT, &first.session.id, 0, 10).await.unwrap();
    assert_eq!(events.len(), 3, "a repeated final is not announced again");
}

async fn an_unknown_room_makes_its_session_once(store: &Store) {
    let one = store.ingest(TENANT, batch("r", "RM_1", &["a"])).await.unwrap().session;
    let same = store.ingest(TENANT, batch("r", "RM_1", &["b"])).await.unwrap().session;
    let next = store.ingest(TENANT, batch("r", "RM_2", &["c"])).await.unwrap().session;
    assert_eq!(one.id, same.id);
    assert_ne!(one.id, next.id, "the name is used again by a new room");
    assert_eq!((one.status, one.started_at), (SessionStatus::InProgress, Some(1_000_000)));
    assert_eq!((one.room.as_str(), one.agent.as_str()), ("r", "assistant"));
}

async fn a_room_made_by_a_client_is_found_whatever_the_key(store: &Store) {
    store.create_session(TENANT, new_session("s", 1)).await.unwrap();
    let found = store.ingest(TENANT, batch("session-s", "RM_9", &["a"])).await.unwrap().session;
    assert_eq!(found.id, "s");
    assert_eq!(found.started_at, Some(1_000_000), "a report starts it if nobody has");
    store.end_session(TENANT, "s", 2_000_000).await.unwrap();
    let late = store.ingest(TENANT, batch("session-s", "RM_9", &["b"])).await.unwrap().session;
    assert_eq!(late.id, "s", "what comes late still belongs to it");
    assert_eq!(late.status, SessionStatus::Completed);
}

async fn a_worker_closes_only_the_session_it_made(store: &Store) {
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

async fn timestamps_count_from_the_start_of_the_session(store: &Store) {
    store.create_session(TENANT, new_session("s", 1)).await.unwrap();
    store.start_session(TENANT, "s", 999_500).await.unwrap();
    let mut reported = batch("session-s", "k", &["a"]);
    reported.items.push(IngestItem::Final(spoken("early", "ann", 900_000)));
    store.ingest(TENANT, reported).await.unwrap();
    let page = store.transcripts(TENANT, "s", &everything()).await.unwrap().page;
    let times: Vec<_> = page.rows.iter().map(|row| (row.id.as_str(), row.timestamp_ms)).collect();
    assert_eq!(times, [("early", 0), ("a", 500)], "never before the start");
    let row = &page.rows[1];
    assert_eq!((row.speaker_id.as_str(), row.speaker_name.as_str()), ("ann", "ANN"));
    assert_eq!((row.duration_ms, row.confidence, row.is_final), (400, 0.75, true));
}

async fn transcripts_are_filtered_and_paged_without_overlap(store: &Store) {
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
        let found = store.transcripts(TENANT, &session.id, &query).await.unwrap().page;
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
    let all = ["x0", "x1", "x2", "x3", "x4", "x5", "x6", "bob's"];
    assert_eq!(seen, all);
    let (mut read, mut after) = (Vec::new(), None);
    loop {
        let rows = store.transcripts_after(TENANT, &session.id, after, 3).await.unwrap();
        let Some(last) = rows.last() else { break };
        after = Some((last.timestamp_ms, last.seq));
        read.extend(ids(&rows).into_iter().map(str::to_owned));
    }
    assert_eq!(read, all);
    assert_eq!(store.transcripts_after("other", &session.id, None, 3).await.unwrap(), []);

    let filter = |from_ms, to_ms, speaker: Option<&str>| TranscriptQuery {
        from_ms,
        to_ms,
        speaker_id: speaker.map(Into::into),
        ..everything()
    };
    let found = async |query: TranscriptQuery| {
        let page = store.transcripts(TENANT, &session.id, &query).await.unwrap().page;
        assert_eq!(page.rows.len() as u64, page.total);
        ids(&page.rows).join(" ")
    };
    assert_eq!(found(filter(None, None, Some("bob"))).await, "bob's");
    assert_eq!(found(filter(Some(200), None, None)).await, "bob's", "from is inclusive");
    assert_eq!(found(filter(Some(100), Some(200), Some("bob"))).await, "", "to is exclusive");
}

async fn events_are_read_in_order_from_any_point(store: &Store) {
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

async fn pages_do_not_shift_while_more_arrives(store: &Store) {
    let session = store.ingest(TENANT, batch("r", "k", &["a", "b", "c"])).await.unwrap().session;
    let query = |page, as_of| TranscriptQuery {
        page: PageRequest { page, limit: 2 },
        as_of,
        ..everything()
    };
    let first = store.transcripts(TENANT, &session.id, &query(1, None)).await.unwrap();
    assert_eq!(ids(&first.page.rows), ["a", "b"]);
    // Said before everything else, but reported late.
    let mut late = batch("r", "k", &[]);
    late.items.push(IngestItem::Final(spoken("late", "bob", 1_000_000)));
    store.ingest(TENANT, late).await.unwrap();
    let next = query(2, Some(first.as_of));
    let second = store.transcripts(TENANT, &session.id, &next).await.unwrap();
    assert_eq!((ids(&second.page.rows), second.page.total), (vec!["c"], 3));
    let fresh = store.transcripts(TENANT, &session.id, &query(1, None)).await.unwrap();
    assert_eq!(fresh.page.total, 4);
    assert!(fresh.as_of > first.as_of);
}

async fn transcripts_are_flagged_and_found_by_it(store: &Store) {
    let session = store.ingest(TENANT, batch("r", "k", &["a", "b"])).await.unwrap().session;
    let flag = async |id, reason| store.flag_transcript(TENANT, &session.id, id, reason).await;
    let flagged = flag("a", Some("rude")).await.unwrap().unwrap();
    assert_eq!((flagged.flagged, flagged.flag_reason.as_deref()), (true, Some("rude")));
    assert_eq!(flag("nothing", Some("x")).await.unwrap(), None);
    let found = async |flagged| {
        let query = TranscriptQuery { flagged: Some(flagged), ..everything() };
        let found = store.transcripts(TENANT, &session.id, &query).await.unwrap().page;
        ids(&found.rows).join(" ")
    };
    assert_eq!((found(true).await.as_str(), found(false).await.as_str()), ("a", "b"));
    let cleared = flag("a", None).await.unwrap().unwrap();
    assert_eq!((cleared.flagged, cleared.flag_reason), (false, None));
}

async fn sessions_are_listed_by_owner_and_kind(store: &Store) {
    for (id, owner, kind) in [
        ("a", "ann", SessionKind::Session),
        ("b", "bob", SessionKind::Voice),
        ("c", "ann", SessionKind::Voice),
    ] {
        let new = NewSession { owner: owner.into(), kind, ..new_session(id, 1) };
        store.create_session(TENANT, new).await.unwrap();
    }
    let page = PageRequest { page: 1, limit: 10 };
    let query = |owner: &str, kind| SessionsQuery {
        owner: Some(owner.into()),
        kind,
        ..SessionsQuery::new(SessionFilter::All, page)
    };
    let found = async |query| {
        let found = store.sessions(TENANT, &query).await.unwrap();
        assert_eq!(found.rows.len() as u64, found.total);
        found.rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(found(query("ann", None)).await, "a c");
    assert_eq!(found(query("ann", Some(SessionKind::Voice))).await, "c");
    assert_eq!(found(query("zoe", None)).await, "");
}

async fn a_refusal_to_be_transcribed_is_kept_to(store: &Store) {
    store.create_session(TENANT, new_session("s", 1)).await.unwrap();
    let no = Consent { recording: true, transcription: false, by: "ann".into(), at: 5 };
    store.set_consent(TENANT, "s", &no).await.unwrap();
    let done = store.ingest(TENANT, batch("session-s", "k", &["a"])).await.unwrap();
    assert_eq!((done.accepted, done.duplicates), (1, 0), "the worker need not send it again");
    let found = store.transcripts(TENANT, "s", &everything()).await.unwrap().page;
    assert_eq!(found.total, 0);
    assert_eq!(store.session(TENANT, "s").await.unwrap().unwrap().consent, Some(no));
}
