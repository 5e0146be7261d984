//! What is kept beside sessions and transcripts: usage, webhooks, links, keys, recordings, people,
//! retention, audit, deadlines.

use serde_json::json;

use super::{TENANT, batch, everything, ids, new_session, spoken};
use crate::store::{
    EventBody, IngestBatch, IngestItem, PageRequest, SessionStatus, Store,
    links::Link,
    recordings::{NewRecording, RecordingEnd, RecordingSource, RecordingStatus},
    tenants::{ApiKey, NewAudit, Role, Tenant},
    usage::{UsageOf, UsageRow},
    webhooks::{Applied, RoomChange, RoomEvent},
};

pub async fn what_was_used_is_kept_once_and_summed_up(store: &Store) {
    let llm = |input_tokens, cost| UsageRow {
        service: "llm".into(),
        provider: "openai".into(),
        model: "gpt".into(),
        input_tokens,
        cost_nano_usd: Some(cost),
        ..UsageRow::default()
    };
    let stt = UsageRow { service: "stt".into(), audio_ms: 900, estimated: true, ..llm(0, 0) };
    let stt = UsageRow { cost_nano_usd: None, ..stt };
    let told = |room: &str, began, rows: &[UsageRow]| IngestBatch {
        started_at: began,
        items: vec![IngestItem::Usage(rows.to_vec())],
        ..batch(room, "key", &[])
    };
    let first = store.ingest(TENANT, told("a", 1_000, &[llm(10, 5)])).await.unwrap().session.id;
    // Later sums take the place of earlier ones; a second run of the agent counts beside the first.
    for again in [told("a", 1_000, &[llm(30, 15), stt.clone()]), told("a", 2_000, &[llm(1, 1)])] {
        store.ingest(TENANT, again).await.unwrap();
    }
    store.ingest(TENANT, told("b", 3_000, &[llm(100, 50)])).await.unwrap();
    store.ingest("other", told("c", 1_000, &[llm(7, 7)])).await.unwrap();
    let of_first = store.usage(TENANT, UsageOf::Session(&first)).await.unwrap();
    assert_eq!(of_first, [llm(31, 16), stt]);
    let began = store.usage(TENANT, UsageOf::Began(2_000, 3_001)).await.unwrap();
    assert_eq!(began, [llm(101, 51)]);
    assert_eq!(store.usage("nobody", UsageOf::Session(&first)).await.unwrap(), []);
}

fn room_event(id: &str, at: i64, change: RoomChange) -> RoomEvent {
    RoomEvent {
        id: id.into(),
        room: "session-s".into(),
        sid: "RM_1".into(),
        at,
        received_at: at + 1,
        change,
    }
}

pub async fn a_webhook_is_acted_on_once(store: &Store) {
    let unknown = room_event("E0", 1, RoomChange::Started);
    assert_eq!(store.apply_webhook(&unknown).await.unwrap(), Applied::Unknown);
    store.create_session("acme", new_session("s", 1)).await.unwrap();
    let status = async || store.session("acme", "s").await.unwrap().unwrap().status;

    store.apply_webhook(&room_event("E1", 10, RoomChange::Started)).await.unwrap();
    assert_eq!(status().await, SessionStatus::InProgress, "it is found in whichever tenant");
    let joined =
        |name: &str| RoomChange::Joined { identity: "ann".into(), name: name.into(), agent: false };
    store.apply_webhook(&room_event("E2", 20, joined("Ann"))).await.unwrap();
    let again = store.apply_webhook(&room_event("E2", 20, joined("Bob"))).await.unwrap();
    assert_eq!(again, Applied::Repeated);
    let left = RoomChange::Left { identity: "ann".into() };
    store.apply_webhook(&room_event("E3", 30, left)).await.unwrap();
    let people = store.participants("acme", "s").await.unwrap();
    assert_eq!(people.len(), 1);
    assert_eq!((people[0].name.as_str(), people[0].left_at), ("Ann", Some(30)));

    store.apply_webhook(&room_event("E4", 40, RoomChange::Finished)).await.unwrap();
    let ended = store.session("acme", "s").await.unwrap().unwrap();
    assert_eq!((ended.status, ended.ended_at), (SessionStatus::Completed, Some(40)));
    store.apply_webhook(&room_event("E5", 50, RoomChange::Started)).await.unwrap();
    assert_eq!(status().await, SessionStatus::Completed, "a late one does not begin it again");
}

pub async fn a_link_has_one_use_and_few_tries(store: &Store) {
    store.create_session(TENANT, new_session("s", 1)).await.unwrap();
    let link = Link {
        token: "t".into(),
        tenant: TENANT.into(),
        session_id: "s".into(),
        password_hash: "hash".into(),
        name: "Ann".into(),
        attempts: 0,
        created_at: 1,
        expires_at: 2,
        used_at: None,
    };
    store.create_link(&link).await.unwrap();
    assert_eq!(store.link("t").await.unwrap(), Some(link));
    assert_eq!(store.link("u").await.unwrap(), None);
    let tries = async || store.take_attempt("t", 3).await.unwrap();
    assert_eq!(
        [tries().await, tries().await, tries().await, tries().await],
        [true, true, true, false]
    );
    assert!(store.use_link("t", 9).await.unwrap());
    assert!(!store.use_link("t", 10).await.unwrap());
    let used = store.link("t").await.unwrap().unwrap();
    assert_eq!((used.attempts, used.used_at), (3, Some(9)));
}

pub async fn keys_are_found_by_prefix_and_revoked(store: &Store) {
    let tenant = Tenant {
        id: "acme".into(),
        name: "Acme".into(),
        retention_days: 30,
        rate_limit: Some(5),
        redact: true,
        created_at: 1,
        revoked_at: None,
    };
    assert!(store.create_tenant(&tenant).await.unwrap());
    assert!(!store.create_tenant(&tenant).await.unwrap());
    assert_eq!(store.tenant("acme").await.unwrap(), Some(tenant.clone()));
    assert_eq!(store.tenants().await.unwrap(), [tenant]);
    let key = ApiKey {
        id: "k1".into(),
        tenant: "acme".into(),
        prefix: "abc".into(),
        hash: "ff".into(),
        role: Role::Agent,
        subject: String::new(),
        label: "worker".into(),
        created_at: 2,
        revoked_at: None,
    };
    store.create_key(&key).await.unwrap();
    assert_eq!(store.key_by_prefix("abc").await.unwrap(), Some(key.clone()));
    assert_eq!(store.keys("acme").await.unwrap(), [key]);
    assert_eq!(store.keys("other").await.unwrap(), []);
    assert!(store.revoke_key("abc", 7).await.unwrap());
    assert!(!store.revoke_key("k1", 8).await.unwrap(), "it is revoked already");
    assert_eq!(store.key_by_prefix("abc").await.unwrap().unwrap().revoked_at, Some(7));
    assert!(store.revoke_tenant("acme", 9).await.unwrap());
    assert_eq!(store.tenant("acme").await.unwrap().unwrap().revoked_at, Some(9));
}

fn recording(id: &str) -> NewRecording {
    NewRecording {
        id: id.into(),
        filename: format!("{id}.mp4"),
        object_key: format!("recordings/{id}.mp4"),
        track_type: "mixed".into(),
        source: RecordingSource::Egress,
        status: RecordingStatus::Active,
        egress_id: Some(format!("EG_{id}")),
        encrypted: false,
        duration_ms: 0,
        file_size: 0,
        created_at: 5,
        ended_at: None,
    }
}

pub async fn recordings_end_once(store: &Store) {
    store.create_session(TENANT, new_session("s", 1)).await.unwrap();
    store.add_recording(TENANT, "s", &recording("a")).await.unwrap();
    store.add_recording(TENANT, "s", &recording("a")).await.unwrap();
    store.add_recording(TENANT, "s", &recording("b")).await.unwrap();
    let end = |status, at| RecordingEnd { status, duration_ms: 1_000, file_size: 9, at };
    store.end_recording(TENANT, "a", end(RecordingStatus::Complete, 8)).await.unwrap();
    store.end_recording(TENANT, "a", end(RecordingStatus::Failed, 9)).await.unwrap();
    let ended = RoomChange::EgressEnded {
        egress_id: "EG_b".into(),
        failed: true,
        duration_ms: 3,
        file_size: 4,
    };
    store.apply_webhook(&room_event("E1", 10, ended)).await.unwrap();
    let found = store.recordings(TENANT, "s").await.unwrap();
    let ends: Vec<_> = found.iter().map(|row| (&*row.id, row.status, row.ended_at)).collect();
    let expected =
        [("a", RecordingStatus::Complete, Some(8)), ("b", RecordingStatus::Failed, Some(10))];
    assert_eq!(ends, expected);
    assert_eq!(store.recording("other", "a").await.unwrap(), None);
}

pub async fn an_erased_person_does_not_come_back(store: &Store) {
    store.create_session(TENANT, new_session("s", 1)).await.unwrap();
    let mut said = batch("session-s", "k", &["a"]);
    said.items.push(IngestItem::Final(spoken("b", "bob", 1_000_500)));
    store.ingest(TENANT, said.clone()).await.unwrap();
    store.add_recording(TENANT, "s", &recording("r")).await.unwrap();
    let data = store.person(TENANT, "ann").await.unwrap();
    assert_eq!((ids(&data.transcripts), data.recordings.len()), (vec!["a"], 1));

    let erased = store.erase_person(TENANT, "ann", &data.recordings, 1_200_000).await.unwrap();
    assert_eq!((erased.transcripts, erased.recordings), (1, 1));
    assert_eq!(store.person(TENANT, "ann").await.unwrap(), Default::default());
    // The worker had no answer and sends it all again, and something said later.
    said.items.push(IngestItem::Final(spoken("later", "ann", 1_300_000)));
    store.ingest(TENANT, said).await.unwrap();
    let found = store.transcripts(TENANT, "s", &everything()).await.unwrap().page;
    assert_eq!(ids(&found.rows), ["b", "later"]);
    let events = store.events_after(TENANT, "s", 0, 10).await.unwrap();
    let finals = events.iter().filter(|event| matches!(event.body, EventBody::Final(_)));
    assert_eq!(finals.count(), 2, "nor is it in the log");
}

pub async fn what_is_too_old_is_purged_and_the_rest_stays(store: &Store) {
    for (id, at) in [("old", 10), ("recorded", 20), ("young", 900)] {
        store.create_session(TENANT, new_session(id, at)).await.unwrap();
        store.end_session(TENANT, id, at + 5).await.unwrap();
    }
    store.create_session("other", new_session("theirs", 10)).await.unwrap();
    store.ingest(TENANT, batch("session-old", "k", &["a", "b"])).await.unwrap();
    store.add_recording(TENANT, "recorded", &recording("r")).await.unwrap();

    let purged = store.purge(TENANT, 100).await.unwrap();
    assert_eq!((purged.sessions, purged.transcripts), (1, 2));
    let old = store.recordings_before(TENANT, 100).await.unwrap();
    assert_eq!(old.len(), 1);
    store.remove_recording(TENANT, &old[0].id).await.unwrap();
    assert_eq!(store.purge(TENANT, 100).await.unwrap().sessions, 1);
    assert!(store.session(TENANT, "young").await.unwrap().is_some());
    assert!(store.session("other", "theirs").await.unwrap().is_some());
    assert_eq!(store.tenants_with_sessions().await.unwrap(), [TENANT, "other"]);
}

pub async fn audit_rows_are_the_tenants_own(store: &Store) {
    for object in ["a", "b", "a"] {
        let new = NewAudit { at: 1, actor: "ann", action: "read", object, detail: json!({"n": 1}) };
        store.audit(TENANT, new).await.unwrap();
    }
    let page = PageRequest { page: 1, limit: 10 };
    let found = store.audit_rows(TENANT, Some("a"), page).await.unwrap();
    assert_eq!((found.total, &found.rows[0].detail), (2, &json!({"n": 1})));
    assert!(found.rows[0].seq > found.rows[1].seq, "the newest first");
    assert_eq!(store.audit_rows(TENANT, None, page).await.unwrap().total, 3);
    assert_eq!(store.audit_rows("other", None, page).await.unwrap().total, 0);
}

pub async fn the_agents_deadlines_are_found_when_due(store: &Store) {
    for id in ["a", "b"] {
        store.create_session(TENANT, new_session(id, 1)).await.unwrap();
    }
    store.set_agent_pending(TENANT, "a", Some(("leave", 100))).await.unwrap();
    store.set_agent_pending(TENANT, "b", Some(("leave", 100))).await.unwrap();
    store.set_agent_pending(TENANT, "b", None).await.unwrap();
    assert_eq!(store.agents_due(99).await.unwrap(), []);
    let due = store.agents_due(100).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].agent_pending, Some(("leave".into(), 100)));
    store.end_session(TENANT, "a", 101).await.unwrap();
    assert_eq!(store.agents_due(200).await.unwrap(), [], "over is over");
    let open = store.open_sessions((0, ""), 10).await.unwrap();
    assert_eq!(open.iter().map(|session| &*session.id).collect::<Vec<_>>(), ["b"]);
}
