//! What happens to a session: links, webhooks, agents, consent, recordings, people.

use base64::Engine;
use livekit_api::access_token::{AccessToken, TokenVerifier};
use livekit_protocol::participant_info::Kind;
use ring::digest;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use super::{
    access::{World, user},
    *,
};
use crate::clock;

/// As a LiveKit server sends it (<https://docs.livekit.io/home/server/webhooks/>).
fn signed(body: &str, ttl: Duration) -> String {
    let hash = digest::digest(&digest::SHA256, body.as_bytes());
    AccessToken::with_api_key(KEY, SECRET)
        .with_ttl(ttl)
        .with_sha256(&base64::engine::general_purpose::STANDARD.encode(hash))
        .to_jwt()
        .unwrap()
}

async fn webhook(world: &World, body: &Value, signature: Option<String>) -> (StatusCode, Value) {
    let text = body.to_string();
    let signature = signature.unwrap_or_else(|| signed(&text, Duration::from_mins(1)));
    let request = world
        .control
        .client
        .post(format!("{}/api/webhooks/livekit", world.control.url))
        .header("authorization", signature)
        .header("content-type", "application/webhook+json")
        .body(text);
    read(request.send().await.unwrap()).await
}

fn event(id: &str, name: &str, room: &str) -> Value {
    json!({"event": name, "id": id, "room": {"name": room, "sid": "RM_1"},
           "createdAt": (clock::unix_ms() / 1000).to_string()})
}

#[tokio::test]
async fn a_session_follows_the_servers_webhooks_each_once() {
    let world = World::new(|_| {}).await;
    let ann = user("acme", "ann", "participant");
    let (_, made) = world.post_as(&ann, "/api/sessions", &json!({})).await;
    let id = made["session"]["id"].as_str().unwrap();
    let room = format!("session-{id}");
    let status =
        async || world.get_as(&ann, &format!("/api/sessions/{id}")).await.1["status"].clone();

    let (code, body) = webhook(&world, &event("EV_1", "room_started", &room), None).await;
    assert_eq!((code, body), (StatusCode::OK, json!({"applied": true})));
    assert_eq!(status().await, "in_progress");
    let mut joined = event("EV_2", "participant_joined", &room);
    joined["participant"] = json!({"identity": "ann", "name": "Ann"});
    assert_eq!(webhook(&world, &joined, None).await.1, json!({"applied": true}));
    assert_eq!(webhook(&world, &joined, None).await.1, json!({"applied": false}));
    let (_, data) = world.get_as(&ann, "/api/people/ann/data").await;
    assert_eq!(data["sessions"][0]["name"], "Ann", "{data}");

    webhook(&world, &event("EV_3", "room_finished", &room), None).await;
    assert_eq!(status().await, "completed");
    webhook(&world, &event("EV_1", "room_started", &room), None).await;
    assert_eq!(status().await, "completed", "told before");
    let unknown = webhook(&world, &event("EV_4", "room_started", "nobody's"), None).await;
    assert_eq!(unknown, (StatusCode::OK, json!({"applied": false})));
}

#[tokio::test]
async fn a_webhook_that_is_not_the_servers_is_refused() {
    let world = World::new(|_| {}).await;
    let body = event("EV_1", "room_started", "r");
    let text = body.to_string();
    let another =
        AccessToken::with_api_key(KEY, "another-secret-another-secret-another").to_jwt().unwrap();
    let of_another_body = signed("{}", Duration::from_mins(1));
    for signature in ["", "nonsense", &another, &of_another_body] {
        let answer = webhook(&world, &body, Some(signature.into())).await;
        assert_error(&answer, 401, "UNAUTHORIZED");
    }
    // Too late: made an hour ago, for a minute.
    let claims = json!({
        "iss": KEY, "nbf": 1, "exp": clock::unix_ms() / 1000 - 3_600,
        "sha256": base64::engine::general_purpose::STANDARD
            .encode(digest::digest(&digest::SHA256, text.as_bytes())),
    });
    let late = crate::control::jwt::testing::hs256(SECRET, &claims);
    assert_error(&webhook(&world, &body, Some(late)).await, 401, "UNAUTHORIZED");
    let bare = json!({"event": "room_started", "room": {"name": "r"}});
    assert_error(&webhook(&world, &bare, None).await, 400, "INVALID_REQUEST");
}

#[tokio::test]
async fn a_link_lets_one_person_in_once() {
    let world = World::new(|_| {}).await;
    let ann = user("acme", "ann", "participant");
    let id = world.session(&ann).await;
    let make = async || {
        let asked = json!({"participantName": "Guest"});
        let (status, link) =
            world.post_as(&ann, &format!("/api/sessions/{id}/links"), &asked).await;
        assert_eq!(status, StatusCode::CREATED, "{link}");
        (link["url"].as_str().unwrap().to_owned(), link["password"].as_str().unwrap().to_owned())
    };
    let join = async |url: &str, password: &str| {
        let body = json!({ "password": password });
        read(world.send(None, Method::POST, url, Some(&body)).await).await
    };
    let (url, password) = make().await;
    assert_error(&join(&url, "not it").await, 401, "WRONG_PASSWORD");
    let (status, joined) = join(&url, &password).await;
    assert_eq!(status, StatusCode::OK, "{joined}");
    let verifier = TokenVerifier::with_api_key(KEY, SECRET);
    let claims = verifier.verify(joined["token"].as_str().unwrap()).unwrap();
    assert_eq!((claims.name.as_str(), claims.video.room), ("Guest", format!("session-{id}")));
    assert_error(&join(&url, &password).await, 403, "LINK_USED");

    let (url, password) = make().await;
    for _ in 0..3 {
        assert_error(&join(&url, "not it").await, 401, "WRONG_PASSWORD");
    }
    assert_error(&join(&url, &password).await, 429, "TOO_MANY_ATTEMPTS");
    assert_error(&join("/join/nothing", &password).await, 404, "LINK_EXPIRED");

    let (url, password) = make().await;
    let (a, b) = tokio::join!(join(&url, &password), join(&url, &password));
    let mut both = [a.0.as_u16(), b.0.as_u16()];
    both.sort_unstable();
    assert_eq!(both, [200, 403], "of two at once, one");
}

#[tokio::test]
async fn a_full_room_says_how_full_and_what_to_do() {
    let world = World::new(|_| {}).await;
    let ann = user("acme", "ann", "participant");
    let (_, made) = world.post_as(&ann, "/api/sessions", &json!({"maxParticipants": 1})).await;
    let id = made["session"]["id"].as_str().unwrap();
    world.post_as(&ann, &format!("/api/sessions/{id}/start"), &Value::Null).await;
    let room = format!("session-{id}");
    assert_eq!(world.livekit.rooms.lock().created[0].max_participants, 1);
    world.livekit.rooms.lock().join(&room, "agent", Kind::Agent);
    let path = format!("/api/sessions/{id}/livekit-token");
    let asked = json!({"participantName": "Ann"});
    assert_eq!(world.post_as(&ann, &path, &asked).await.0, StatusCode::OK);
    world.livekit.rooms.lock().join(&room, "somebody", Kind::Standard);
    let full = world.post_as(&ann, &path, &asked).await;
    assert_error(&full, 409, "ROOM_FULL");
    let details = &full.1["details"];
    assert_eq!((&details["current"], &details["max"]), (&json!(1), &json!(1)));
    assert!(!details["suggestions"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn tokens_are_for_taking_part_sending_only_or_listening_only() {
    let world = World::new(|_| {}).await;
    let ann = user("acme", "ann", "participant");
    let id = world.session(&ann).await;
    let claims = async |profile: &str| {
        let asked = json!({"participantName": "Ann", "profile": profile});
        let path = format!("/api/sessions/{id}/livekit-token");
        let (_, token) = world.post_as(&ann, &path, &asked).await;
        let verifier = TokenVerifier::with_api_key(KEY, SECRET);
        let claims = verifier.verify(token["token"].as_str().unwrap()).unwrap();
        let lasts = (claims.exp - claims.nbf) as u64;
        let grants = (claims.video.can_publish, claims.video.can_subscribe);
        (claims.sub, grants, lasts / 60)
    };
    let part = (Some(true), Some(true));
    assert_eq!(claims("participant").await, ("ann".into(), part, 60));
    assert_eq!(claims("client").await, ("ann".into(), (Some(true), Some(false)), 5));
    let agent = ("cloud-agent:ann".into(), (Some(false), Some(true)), 10);
    assert_eq!(claims("agent").await, agent);
}

#[tokio::test]
async fn the_agent_comes_and_goes_as_it_is_told() {
    let world = World::new(|_| {}).await;
    let ann = user("acme", "ann", "participant");
    let id = world.session(&ann).await;
    let room = format!("session-{id}");
    let tell = async |action: &str, grace: u32| {
        let body = json!({"action": action, "graceSeconds": grace});
        let (status, answer) =
            world.post_as(&ann, &format!("/api/sessions/{id}/agent"), &body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["agent"].clone()
    };
    world.livekit.rooms.lock().join(&room, "agent-1", Kind::Agent);
    let due = tell("leave", 600).await;
    assert_eq!((&due["done"], due["dueAt"].is_string()), (&json!(false), true));
    tell("join", 0).await;
    let pending = world.store.session("acme", &id).await.unwrap().unwrap().agent_pending;
    assert_eq!(pending, None, "called off");
    assert_eq!(world.livekit.rooms.lock().dispatches.len(), 1, "it was there still");

    tell("unsubscribe", 0).await;
    tell("subscribe", 0).await;
    let heard: Vec<bool> =
        world.livekit.rooms.lock().subscriptions.iter().map(|(_, _, hears)| *hears).collect();
    assert_eq!(heard, [false, true]);

    assert_eq!(tell("leave", 0).await["done"], true);
    assert!(world.livekit.rooms.lock().participants[&room].is_empty());
    tell("join", 0).await;
    assert_eq!(world.livekit.rooms.lock().dispatches.len(), 1, "sent anew");

    // After the grace period it goes by itself.
    world.livekit.rooms.lock().join(&room, "agent-2", Kind::Agent);
    tell("leave", 1).await;
    let removed = world.livekit.rooms.lock().removed.clone();
    tokio::time::timeout(LIMIT, async {
        while !world.livekit.rooms.lock().participants[&room].is_empty() {
            removed.notified().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn without_consent_nothing_is_recorded_and_a_refusal_to_be_stored_holds() {
    let world = World::new(|_| {}).await;
    let ann = user("acme", "ann", "participant");
    let (_, made) = world.post_as(&ann, "/api/sessions", &json!({})).await;
    let id = made["session"]["id"].as_str().unwrap();
    let no = json!({"consent": {"recording": false, "transcription": false}});
    world.post_as(&ann, &format!("/api/sessions/{id}/start"), &no).await;
    let metadata = world.livekit.rooms.lock().created[0].metadata.clone();
    assert!(metadata.contains(r#""consent":{"recording":false,"transcription":false}"#));
    let refused =
        world.post_as(&ann, &format!("/api/sessions/{id}/recordings"), &Value::Null).await;
    assert_error(&refused, 403, "CONSENT_REQUIRED");
    let report = json!({
        "room": format!("session-{id}"), "startedAtUnixMs": 1, "items": [segment("a", "x", 0)],
    });
    let (_, taken) = world.post_as(TOKEN, "/api/ingest", &report).await;
    assert_eq!(taken["accepted"], 1, "the worker need not try again");
    let (_, found) = world.get_as(&ann, &format!("/api/sessions/{id}/transcripts")).await;
    assert_eq!(found["transcripts"], json!([]));
    let admin = user("acme", "boss", "admin");
    let (_, audit) = world.get_as(&admin, &format!("/api/audit?object={id}")).await;
    let consent =
        audit["entries"].as_array().unwrap().iter().find(|row| row["action"] == "session.consent");
    assert_eq!(consent.unwrap()["actor"], "user:ann", "{audit}");
}

#[tokio::test]
async fn a_recording_is_made_by_egress_and_described() {
    let world = World::new(|settings| {
        settings.s3 = Some(crate::config::control::S3 {
            bucket: "calls".into(),
            access_key: Some("access".into()),
            secret_key: Some(SecretString::from("s3-secret")),
            region: "eu-1".into(),
            endpoint: Some("http://127.0.0.1:9".parse().unwrap()),
        });
    })
    .await;
    let ann = user("acme", "ann", "participant");
    let id = world.session(&ann).await;
    let path = format!("/api/sessions/{id}/recordings");
    let (status, made) = world.post_as(&ann, &path, &Value::Null).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let request = world.livekit.rooms.lock().egresses[0].clone();
    assert_eq!(request.room_name, format!("session-{id}"));
    let file = &request.file_outputs[0];
    assert!(file.filepath.starts_with(&format!("recordings/sessions/{id}/recording-")));
    assert!(std::path::Path::new(&file.filepath).extension().is_some_and(|it| it == "mp4"));
    let Some(livekit_protocol::encoded_file_output::Output::S3(s3)) = &file.output else {
        panic!("{file:?}")
    };
    assert_eq!((&*s3.bucket, &*s3.access_key, s3.force_path_style), ("calls", "access", true));
    assert_error(&world.post_as(&ann, &path, &Value::Null).await, 409, "ALREADY_RECORDING");
    let ended = json!({
        "event": "egress_ended", "id": "EV_9",
        "egressInfo": {"egressId": "EG_0", "roomName": format!("session-{id}"),
                       "status": "EGRESS_COMPLETE",
                       "fileResults": [{"duration": "61000000000", "size": "5000"}]},
    });
    assert_eq!(webhook(&world, &ended, None).await.1, json!({"applied": true}));
    let (_, list) = world.get_as(&ann, &path).await;
    assert_eq!(
        (&list[0]["status"], &list[0]["duration"], &list[0]["fileSize"]),
        (&json!("complete"), &json!(61_000), &json!(5_000)),
        "{list}"
    );
}

#[tokio::test]
async fn a_recording_is_played_in_parts_and_by_a_signed_address() {
    let world = World::new(|_| {}).await;
    let ann = user("acme", "ann", "participant");
    let id = world.session(&ann).await;
    let sound: Vec<u8> = (0..1_000_u32).map(|n| (n % 250) as u8).collect();
    let recording = world.recording("acme", &id, &sound).await;
    let path = format!("/api/recordings/{recording}/stream");
    let play = async |range: &str| {
        let request = world.control.client.get(format!("{}{path}", world.control.url));
        let answer = request.bearer_auth(&ann).header("range", range).send().await.unwrap();
        let said = answer.headers().get("content-range").map(|it| it.to_str().unwrap().to_owned());
        (answer.status().as_u16(), said, answer.bytes().await.unwrap())
    };
    let (status, said, bytes) = play("bytes=10-19").await;
    assert_eq!((status, said.as_deref()), (206, Some("bytes 10-19/1000")));
    assert_eq!(bytes, sound[10..20]);
    assert_eq!(play("bytes=-5").await.2, sound[995..]);
    let (status, said, _) = play("bytes=1000-").await;
    assert_eq!((status, said.as_deref()), (416, Some("bytes */1000")));
    let (status, _, bytes) = play("bytes=0-1,-2").await;
    let text = String::from_utf8_lossy(&bytes);
    assert_eq!((status, text.matches("Content-Range: bytes").count()), (206, 2));
    assert!(text.contains("bytes 998-999/1000"), "{text}");

    let sign = format!("/api/sessions/{id}/recordings/{recording}/url");
    let (_, signed) = world.post_as(&ann, &sign, &json!({"expiresInSeconds": 60})).await;
    let url = signed["url"].as_str().unwrap();
    let open = async |url: &str| world.send(None, Method::GET, url, None).await;
    let whole = open(url).await;
    assert_eq!(whole.status(), StatusCode::OK);
    assert_eq!(whole.headers()["accept-ranges"], "bytes");
    assert_eq!(whole.bytes().await.unwrap(), sound);
    for forged in
        [url.replace("acme", "other"), url.replace("expires=", "expires=9"), format!("{url}0")]
    {
        assert_eq!(open(&forged).await.status(), StatusCode::UNAUTHORIZED, "{forged}");
    }
    let admin = user("acme", "boss", "admin");
    let (_, audit) = world.get_as(&admin, &format!("/api/audit?object={recording}")).await;
    let plays = audit["entries"].as_array().unwrap().iter();
    assert_eq!(plays.filter(|row| row["action"] == "recording.stream").count(), 5);
}

#[tokio::test]
async fn a_voice_session_is_made_joined_listed_and_ended() {
    let world = World::new(|settings| {
        settings.voice_prefix = "fitness-voice".into();
        settings.voice_agents = [("workout".to_owned(), "coach".to_owned())].into();
    })
    .await;
    let ann = user("acme", "ann", "participant");
    let asked = json!({"agent_type": "workout", "mode": "converse"});
    let (status, made) = world.post_as(&ann, "/api/voice-sessions", &asked).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let room = made["room_name"].as_str().unwrap();
    assert!(room.starts_with("fitness-voice-ann-"), "{room}");
    {
        let mut rooms = world.livekit.rooms.lock();
        assert_eq!((rooms.created[0].max_participants, rooms.created[0].empty_timeout), (2, 300));
        let metadata: Value = serde_json::from_str(&rooms.created[0].metadata).unwrap();
        assert_eq!((&metadata["user_id"], &metadata["mode"]), (&json!("ann"), &json!("converse")));
        assert_eq!(rooms.dispatches[0].agent_name, "coach");
        rooms.join(room, "ann", Kind::Standard);
    }
    let verifier = TokenVerifier::with_api_key(KEY, SECRET);
    let claims = verifier.verify(made["token"].as_str().unwrap()).unwrap();
    assert_eq!((claims.sub.as_str(), claims.name.as_str()), ("ann", "ann@x.org"));
    assert_eq!((claims.exp - claims.nbf) / 3600, 6);

    let (_, list) = world.get_as(&ann, "/api/voice-sessions").await;
    assert_eq!((&list[0]["room_name"], &list[0]["participants"]), (&json!(room), &json!(1)));
    let path = format!("/api/voice-sessions/{room}");
    let (_, state) = world.get_as(&ann, &path).await;
    assert_eq!((&state["active"], &state["agent_connected"]), (&json!(true), &json!(false)));
    let (_, ended) = world.ask(&ann, Method::DELETE, &path, &Value::Null).await;
    assert_eq!(ended, json!({"status": "ended", "room_name": room}));
    assert!(world.livekit.rooms.lock().participants.is_empty());
    assert_eq!(world.get_as(&ann, "/api/voice-sessions").await.1, json!([]));
    let wrong = world.post_as(&ann, "/api/voice-sessions", &json!({"agent_type": "chess"})).await;
    assert_error(&wrong, 400, "INVALID_REQUEST");
}

#[tokio::test]
async fn an_erased_person_is_nowhere_to_be_found() {
    let world = World::new(|_| {}).await;
    let ann = user("acme", "ann", "participant");
    let id = world.session(&ann).await;
    let recording = world.recording("acme", &id, b"her voice").await;
    let spoken = clock::unix_ms();
    let report = json!({
        "room": format!("session-{id}"), "startedAtUnixMs": spoken,
        "items": [{"type": "segment", "id": "a", "kind": "user", "speakerId": "ann",
                   "content": "my number", "spokenAtUnixMs": spoken}],
    });
    world.post_as(TOKEN, "/api/ingest", &report).await;
    let (_, data) = world.get_as(&ann, "/api/people/ann/data").await;
    assert_eq!(data["transcripts"][0]["content"], "my number", "{data}");
    assert_eq!(data["recordings"][0]["id"], recording.as_str());

    let (_, erased) = world.ask(&ann, Method::DELETE, "/api/people/ann/data", &Value::Null).await;
    assert_eq!((&erased["transcripts"], &erased["recordings"]), (&json!(1), &json!(1)));
    world.post_as(TOKEN, "/api/ingest", &report).await;
    assert_error(&world.get_as(&ann, "/api/people/ann/data").await, 404, "PERSON_NOT_FOUND");
    let admin = user("acme", "boss", "admin");
    let stream = format!("/api/recordings/{recording}/stream");
    assert_eq!(world.get_as(&admin, &stream).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn pages_of_transcripts_hold_still_and_exports_are_whole() {
    let world = World::new(|_| {}).await;
    let ann = user("acme", "ann", "participant");
    let id = world.session(&ann).await;
    let report = async |items: Value| world.report(&id, items).await;
    report(json!([segment("a", "one", 0), segment("b", "two", 1), segment("c", "three", 2)])).await;
    let path = format!("/api/sessions/{id}/transcripts");
    let (_, first) = world.get_as(&ann, &format!("{path}?limit=2")).await;
    report(json!([segment("0", "late", 0)])).await;
    let as_of = first["pagination"]["asOf"].as_i64().unwrap();
    let next = format!("{path}?limit=2&page=2&asOf={as_of}");
    let (_, second) = world.get_as(&ann, &next).await;
    assert_eq!(second["pagination"]["total"], 3);
    assert_eq!(second["transcripts"].as_array().unwrap().len(), 1);

    let flag = json!({"flagged": true, "reason": "look"});
    let (_, flagged) = world.ask(&ann, Method::PATCH, &format!("{path}/b"), &flag).await;
    assert_eq!(flagged["transcript"]["flagReason"], "look");
    let (_, found) = world.get_as(&ann, &format!("{path}?flagged=true")).await;
    assert_eq!(
        (&found["pagination"]["total"], &found["transcripts"][0]["id"]),
        (&json!(1), &json!("b"))
    );

    for (format, beginning) in [("vtt", "WEBVTT\n"), ("srt", "1\n00:00:"), ("text", "[00:00:")] {
        let (status, text) = world.get_as(&ann, &format!("{path}/export?format={format}")).await;
        assert_eq!(status, StatusCode::OK);
        let text = text.as_str().unwrap();
        assert!(text.starts_with(beginning) && text.contains("three"), "{text}");
    }
    let (_, all) = world.get_as(&ann, &format!("{path}/export")).await;
    assert_eq!(all.as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn what_was_understood_late_is_flagged_so() {
    let world = World::new(|_| {}).await;
    let ann = user("acme", "ann", "participant");
    let id = world.session(&ann).await;
    let mut late = segment("a", "is anybody there", 0);
    late["late"] = true.into();
    let items = json!([late, segment("b", "hello", 1)]);
    let body =
        json!({"room": format!("session-{id}"), "startedAtUnixMs": 1_000_000, "items": items});
    assert_eq!(world.post_as(TOKEN, "/api/ingest", &body).await.0, StatusCode::OK);
    let path = format!("/api/sessions/{id}/transcripts?flagged=true");
    let (_, found) = world.get_as(&ann, &path).await;
    assert_eq!(found["pagination"]["total"], 1);
    assert_eq!(
        (&found["transcripts"][0]["id"], &found["transcripts"][0]["flagReason"]),
        (&json!("a"), &json!("late"))
    );
}

#[tokio::test]
async fn a_listener_over_a_websocket_resumes_too() {
    use futures_util::{SinkExt, StreamExt};
    let world = World::new(|_| {}).await;
    let ann = user("acme", "ann", "participant");
    let id = world.session(&ann).await;
    let report = async |items: Value| world.report(&id, items).await;
    let connect = async |query: &str| {
        let url = world.control.url.replace("http", "ws");
        let url = format!("{url}/api/sessions/{id}/transcripts/socket{query}");
        let mut request = url.into_client_request().unwrap();
        let offer = format!("bearer, {ann}").parse().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", offer);
        let (socket, answer) = tokio_tungstenite::connect_async(request).await.unwrap();
        assert_eq!(answer.headers()["sec-websocket-protocol"], "bearer");
        socket
    };
    let mut socket = connect("").await;
    let hear = async |socket: &mut tokio_tungstenite::WebSocketStream<_>| loop {
        let frame = tokio::time::timeout(LIMIT, socket.next()).await.unwrap().unwrap().unwrap();
        if let Message::Text(text) = frame {
            return serde_json::from_str::<Value>(&text).unwrap();
        }
    };
    assert_eq!(hear(&mut socket).await["event"], "hello");
    report(json!([segment("a", "one", 0)])).await;
    let heard = hear(&mut socket).await;
    assert_eq!((&heard["event"], &heard["data"]["content"]), (&json!("final"), &json!("one")));
    socket.send(Message::Close(None)).await.unwrap();
    report(json!([segment("b", "two", 1)])).await;
    let mut socket = connect(&format!("?lastEventId={}", heard["id"])).await;
    assert_eq!(hear(&mut socket).await["event"], "hello");
    assert_eq!(hear(&mut socket).await["data"]["content"], "two");
}

#[tokio::test]
async fn a_tenants_transcripts_are_stored_without_numbers_and_addresses_if_it_says_so() {
    let world = World::new(|_| {}).await;
    let tenant = crate::store::tenants::Tenant {
        id: "acme".into(),
        name: "Acme".into(),
        retention_days: 30,
        rate_limit: None,
        redact: true,
        created_at: 0,
        revoked_at: None,
    };
    world.store.create_tenant(&tenant).await.unwrap();
    let ann = user("acme", "ann", "participant");
    let id = world.session(&ann).await;
    let items = json!([segment("a", "call 030 1234567 or ann@x.org", 0)]);
    let report = json!({"room": format!("session-{id}"), "startedAtUnixMs": 1, "items": items});
    world.post_as(TOKEN, "/api/ingest", &report).await;
    let (_, found) = world.get_as(&ann, &format!("/api/sessions/{id}/transcripts")).await;
    assert_eq!(found["transcripts"][0]["content"], "call [redacted] or [redacted]");
}

#[tokio::test]
async fn the_docs_page_loads_nothing_from_elsewhere() {
    let control = Control::start(None).await;
    let page = control.client.get(format!("{}/docs", control.url)).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    let text = page.text().await.unwrap();
    assert!(!text.contains("https://") && !text.contains("src="), "{text}");
}

#[tokio::test]
async fn documents_are_added_listed_by_entity_and_taken_away() {
    let world = World::new(|_| {}).await;
    let admin = user("acme", "boss", "admin");
    let path = "/api/knowledge/documents";
    let mut ids = Vec::new();
    for (title, entity) in [("Hours", "ulm"), ("Prices", "ulm"), ("Way", "bonn")] {
        let document = json!({"title": title, "content": "9 to 5", "entityId": entity});
        let (status, added) = world.post_as(&admin, path, &document).await;
        assert_eq!(status, StatusCode::CREATED, "{added}");
        assert_eq!(
            (&added["document"]["title"], &added["document"]["size"]),
            (&json!(title), &json!(6))
        );
        ids.push(added["document"]["id"].as_str().unwrap().to_owned());
    }
    let titles = async |who: &str, query: &str| {
        let (_, list) = world.get_as(who, &format!("{path}?{query}")).await;
        let mut titles: Vec<String> = list["documents"]
            .as_array()
            .unwrap()
            .iter()
            .map(|document| document["title"].as_str().unwrap().to_owned())
            .collect();
        titles.sort();
        assert_eq!(list["pagination"]["total"], titles.len());
        titles.join(" ")
    };
    assert_eq!(titles(&admin, "").await, "Hours Prices Way");
    assert_eq!(titles(&admin, "entityId=ulm").await, "Hours Prices");
    assert_eq!(titles(&user("other", "boss", "admin"), "").await, "", "another tenant's are not");

    let first = format!("{path}/{}", ids[0]);
    let gone = world.ask(&admin, Method::DELETE, &first, &Value::Null).await;
    assert_eq!(gone.0, StatusCode::NO_CONTENT);
    assert_eq!(titles(&admin, "entityId=ulm").await, "Prices");
    let again = world.ask(&admin, Method::DELETE, &first, &Value::Null).await;
    assert_error(&again, 404, "DOCUMENT_NOT_FOUND");
    let empty = json!({"title": " ", "content": "x"});
    assert_error(&world.post_as(&admin, path, &empty).await, 400, "INVALID_REQUEST");
}
