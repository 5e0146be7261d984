//! The control endpoint as the LiveKit server and its own document see it.

use std::process::{Command, Stdio};

use antiphon::doubles::Script;
use serde_json::json;

use crate::support::{
    caller::Caller,
    poll,
    stage::{Stage, TOKEN},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_webhooks_tell_who_came_and_that_the_room_is_over() {
    let stage = Stage::with_webhooks(Script::default()).await;
    let _worker = stage.worker().await;
    let (_, created) = stage.post("/api/sessions", json!({})).await;
    let id = created["session"]["id"].as_str().expect("an id").to_owned();
    let consent = json!({"consent": {"recording": false, "transcription": true}});
    let (status, started) = stage.post(&format!("/api/sessions/{id}/start"), consent).await;
    assert_eq!(status, 200, "{started}");

    let live = reqwest::Client::new()
        .get(format!("{}/api/sessions/{id}/transcripts/live", stage.control_url()))
        .bearer_auth(TOKEN);
    let mut live = live.send().await.expect("a stream");
    let heard = tokio::spawn(async move {
        let mut text = String::new();
        while !text.contains("event: final") {
            match live.chunk().await.expect("the stream goes on") {
                Some(chunk) => text.push_str(&String::from_utf8_lossy(&chunk)),
                None => panic!("the stream has ended: {text}"),
            }
        }
    });

    let (_, link) =
        stage.post(&format!("/api/sessions/{id}/links"), json!({"participantName": "Guest"})).await;
    let (status, token) = stage
        .post(link["url"].as_str().expect("a url"), json!({"password": link["password"]}))
        .await;
    assert_eq!(status, 200, "{token}");
    let caller = Caller::join(
        token["url"].as_str().expect("a url"),
        token["token"].as_str().expect("a token"),
    )
    .await;
    caller.heard(0).await;
    heard.await.expect("the greeting is told live");

    let (_, now) = stage.get(&format!("/api/sessions/{id}")).await;
    assert_eq!((&now["participants"], &now["agentConnected"]), (&json!(1), &json!(true)), "{now}");
    let identity = caller.identity();
    poll("the webhook about the guest", || async {
        let (_, data) = stage.get(&format!("/api/people/{identity}/data")).await;
        (data["sessions"][0]["name"] == "Guest").then_some(())
    })
    .await;

    // The room goes without the control endpoint's doing.
    let rooms = livekit_api::services::room::RoomClient::with_api_key(
        &stage.livekit.http_url(),
        crate::support::livekit::KEY,
        crate::support::livekit::SECRET,
    );
    rooms.delete_room(&format!("session-{id}")).await.expect("the room goes");
    poll("the webhook about the room's end", || async {
        let (_, now) = stage.get(&format!("/api/sessions/{id}")).await;
        (now["status"] == "completed").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_keeps_to_its_own_document() {
    let program = std::env::var("ANTIPHON_TEST_SCHEMATHESIS").expect(
        "ANTIPHON_TEST_SCHEMATHESIS names no schemathesis: run `cargo xtask test`, which installs \
         one",
    );
    let stage = Stage::set(Script::default()).await;
    // Something of everything, so that not every answer is 404.
    let (_, created) = stage.post("/api/sessions", json!({})).await;
    let id = created["session"]["id"].as_str().expect("an id").to_owned();
    let consent = json!({"consent": {"recording": true}});
    stage.post(&format!("/api/sessions/{id}/start"), consent).await;
    let said = json!({"type": "segment", "id": "SG_1", "kind": "user", "speakerId": "ann",
                      "content": "hello", "spokenAtUnixMs": 1});
    let report = json!({"room": format!("session-{id}"), "startedAtUnixMs": 1, "items": [said]});
    stage.post("/api/ingest", report).await;
    let (_, voice) = stage.post("/api/voice-sessions", json!({"agent_type": "general"})).await;
    let room = voice["room_name"].as_str().expect("a room").to_owned();
    stage.post("/api/knowledge/documents", json!({"title": "t", "content": "c"})).await;

    let config = stage.state.path().join("schemathesis.toml");
    let settings = format!(
        "[parameters]\n\"path.id\" = \"{id}\"\n\
         \"path.room\" = \"{room}\"\n\"path.identity\" = \"ann\"\n\n\
         # LiveKit Egress is a service of its own, which is not here.\n\
         [[operations]]\ninclude-name = \"POST /api/sessions/{{id}}/recordings\"\n\
         checks.not_a_server_error.enabled = false\n\n\
         # A newer worker's items are passed over, whatever they are.\n\
         [[operations]]\ninclude-name = \"POST /api/ingest\"\n\
         checks.negative_data_rejection.enabled = false\n"
    );
    std::fs::write(&config, settings).expect("a file");
    let mut command = Command::new(program);
    command
        .args(["--config-file"])
        .arg(&config)
        .args(["run", &format!("{}/openapi.json", stage.control_url())])
        .args(["-H", &format!("Authorization: Bearer {TOKEN}")])
        // A stream has no end to wait for.
        .args(["--exclude-path-regex", "transcripts/(live|socket)$"])
        .args(["--max-examples", "25", "--seed", "7", "--no-color", "--workers", "1"])
        .args(["--request-timeout", "20"])
        .current_dir(stage.state.path())
        .stdin(Stdio::null());
    let run = tokio::task::spawn_blocking(move || command.output());
    let run = run.await.expect("it runs").expect("schemathesis starts");
    assert!(
        run.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
}
