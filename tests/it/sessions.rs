//! The control endpoint with a real server behind it.

use antiphon::doubles::Script;
use serde_json::json;

use crate::support::{caller::Caller, poll, stage::Stage};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_created_started_joined_and_ended() {
    let stage = Stage::set(Script::default()).await;
    let _worker = stage.worker().await;

    let (status, created) = stage.post("/api/sessions", json!({})).await;
    assert_eq!(status, 201, "{created}");
    let id = created["session"]["id"].as_str().expect("an id").to_owned();
    let (status, started) = stage.post(&format!("/api/sessions/{id}/start"), json!({})).await;
    assert_eq!(status, 200, "{started}");
    assert_eq!(started["session"]["status"], "in_progress");
    let room = started["session"]["livekitRoom"].as_str().expect("a room").to_owned();
    assert_eq!(room, format!("session-{id}"));

    let asked = json!({"participantName": "Alice"});
    let (status, token) = stage.post(&format!("/api/sessions/{id}/livekit-token"), asked).await;
    assert_eq!(status, 200, "{token}");
    assert_eq!(token["roomName"], room);
    let caller = Caller::join(
        token["url"].as_str().expect("a url"),
        token["token"].as_str().expect("a token"),
    )
    .await;
    caller.heard(0).await;

    let now = poll("the agent in the session's status", || async {
        let (_, now) = stage.get(&format!("/api/sessions/{id}")).await;
        (now["agentConnected"] == true).then_some(now)
    })
    .await;
    assert_eq!(now["active"], true, "{now}");

    let path = format!("/api/sessions/{id}/transcripts");
    let rows = poll("the greeting in the session's transcripts", || async {
        let (_, page) = stage.get(&path).await;
        page["transcripts"].as_array().filter(|rows| !rows.is_empty()).cloned()
    })
    .await;
    assert_eq!(rows[0]["isFinal"], true);

    let (status, ended) = stage.post(&format!("/api/sessions/{id}/end"), json!({})).await;
    assert_eq!(status, 200, "{ended}");
    assert_eq!(ended["session"]["status"], "completed");
    assert!(ended["session"]["duration"].is_number(), "{ended}");
    caller.agent_left().await;
}
