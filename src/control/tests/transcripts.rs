//! What is ingested, and how it is read and listened to.

use super::*;

#[tokio::test]
async fn ingesting_twice_changes_nothing() {
    let control = Control::start(None).await;
    let items = json!([segment("a", "hello", 100), segment("b", "you", 900)]);
    assert_eq!(control.ingest("r", items.clone()).await, json!({"accepted": 2, "duplicates": 0}));
    assert_eq!(control.ingest("r", items).await, json!({"accepted": 2, "duplicates": 2}));

    let id = control.session_of("r").await;
    let (code, page) = control.get(&format!("/api/sessions/{id}/transcripts")).await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(page["pagination"], json!({"total": 2, "page": 1, "limit": 50, "asOf": 2}));
    let first = json!({
        "id": "a", "speakerId": "ann", "speakerName": "Ann", "content": "hello",
        "timestampMs": 100, "durationMs": 900, "confidence": 0.97, "isFinal": true,
    });
    assert_eq!(page["transcripts"][0], first);
}

#[tokio::test]
async fn transcripts_are_filtered_and_paged() {
    let control = Control::start(None).await;
    let items: Vec<_> = (0..5).map(|n| segment(&format!("s{n}"), "x", 100 * n)).collect();
    control.ingest("r", json!(items)).await;
    let id = control.session_of("r").await;
    let ids = async |query: &str| {
        let (_, page) = control.get(&format!("/api/sessions/{id}/transcripts?{query}")).await;
        let rows = page["transcripts"].as_array().unwrap();
        rows.iter().map(|row| row["id"].as_str().unwrap()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ids("limit=2").await, "s0 s1");
    assert_eq!(ids("limit=2&page=3").await, "s4");
    assert_eq!(ids("from=100&to=300").await, "s1 s2");
    assert_eq!(ids("speaker=nobody").await, "");
    for query in ["page=0", "limit=0", "limit=501", "from=soon"] {
        let answer = control.get(&format!("/api/sessions/{id}/transcripts?{query}")).await;
        assert_error(&answer, 400, "INVALID_REQUEST");
    }
}

#[tokio::test]
async fn a_listener_hears_interims_finals_states_and_usage() {
    let control = Control::start(None).await;
    control.ingest("r", json!([segment("before", "earlier", 0)])).await;
    let id = control.session_of("r").await;
    let mut listener = control.listen(&id, None).await;
    let mut interim = segment("a", "hel", 100);
    interim["type"] = "interim".into();
    control
        .ingest(
            "r",
            json!([
                interim,
                segment("a", "hello", 100),
                {"type": "state", "state": "thinking"},
                {"type": "hologram"},
                {"type": "usage", "service": "tts", "provider": "p", "model": "m", "characters": 3},
                {"type": "event", "name": "fault", "data": {"code": "TRANSCRIPTION_FAILED"}},
            ]),
        )
        .await;
    let heard = listener.next().await.unwrap();
    assert_eq!((heard.name.as_str(), &heard.data["isFinal"]), ("interim", &json!(false)));
    assert_eq!((&heard.data["timestampMs"], &heard.data["kind"]), (&json!(100), &json!("user")));
    assert_eq!(
        listener.hear(4).await,
        [
            "final:hello",
            "state:thinking",
            r#"usage:{"characters":3,"model":"m","provider":"p","service":"tts"}"#,
            r#"event:{"data":{"code":"TRANSCRIPTION_FAILED"},"name":"fault"}"#,
        ]
    );
}

#[tokio::test]
async fn a_listener_that_comes_back_resumes_where_it_was() {
    let control = Control::start(None).await;
    control.ingest("r", json!([segment("0", "zero", 0)])).await;
    let id = control.session_of("r").await;
    let mut listener = control.listen(&id, None).await;
    control.ingest("r", json!([segment("1", "one", 1)])).await;
    assert_eq!(listener.hear(1).await, ["final:one"]);
    let last = listener.last.clone().unwrap();
    drop(listener);

    control.ingest("r", json!([segment("2", "two", 2), {"type": "state", "state": "idle"}])).await;
    let mut listener = control.listen(&id, Some(&last)).await;
    control.ingest("r", json!([segment("3", "three", 3)])).await;
    assert_eq!(listener.hear(3).await, ["final:two", "state:idle", "final:three"]);

    let mut from_the_start = control.listen(&id, Some("0")).await;
    assert_eq!(from_the_start.hear(2).await, ["final:zero", "final:one"]);
    let bad = control
        .request(Method::GET, &format!("/api/sessions/{id}/transcripts/live"))
        .header("Last-Event-ID", "soon");
    assert_error(&read(bad.send().await.unwrap()).await, 400, "INVALID_REQUEST");
}

#[tokio::test]
async fn a_listener_that_was_cut_off_before_the_first_event_misses_nothing() {
    let control = Control::start(None).await;
    control.ingest("r", json!([segment("0", "zero", 0)])).await;
    let id = control.session_of("r").await;
    let last = control.listen(&id, None).await.last.unwrap();
    control.ingest("r", json!([segment("1", "one", 1)])).await;
    let mut listener = control.listen(&id, Some(&last)).await;
    assert_eq!(listener.hear(1).await, ["final:one"]);
}

#[tokio::test]
async fn a_slow_listener_gets_every_final() {
    let control = Control::start(None).await;
    control.ingest("r", json!([])).await;
    let id = control.session_of("r").await;
    let mut listener = control.listen(&id, None).await;
    let text = "x".repeat(20_000);
    for batch in 0..40 {
        let items: Vec<_> =
            (0..20).map(|n| segment(&format!("{batch} {n}"), &text, 20 * batch + n)).collect();
        control.ingest("r", json!(items)).await;
    }
    // It reads only now: 16 MB have not fitted into any buffer on the way.
    let mut times = Vec::new();
    while times.len() < 800 {
        let heard = listener.next().await.unwrap();
        if heard.name == "final" {
            times.push(heard.data["timestampMs"].as_i64().unwrap());
        }
    }
    assert_eq!(times, (0..800).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_report_with_one_invalid_item_is_refused_as_a_whole() {
    let control = Control::start(None).await;
    let report = |room: &str, item: Value| json!({"room": room, "startedAtUnixMs": 1, "items": [segment("good", "x", 0), item]});
    let wrong = [
        report("", json!({"type": "state", "state": "idle"})),
        report("r", segment("", "x", 0)),
        report("r", segment("long", &"x".repeat(100_001), 0)),
        report("r", segment("early", "x", -1_000_001)),
        report("r", json!({"type": "segment"})),
        report("r", json!({"type": "event", "name": "n", "data": "x".repeat(20_000)})),
    ];
    for body in wrong {
        assert_error(&control.post("/api/ingest", &body).await, 400, "INVALID_REQUEST");
    }
    let (_, list) = control.get("/api/sessions?status=all").await;
    assert_eq!(list["sessions"], json!([]));
}
