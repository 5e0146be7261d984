//! A session from its creation to its end, with a LiveKit server and without.

use livekit_api::access_token::TokenVerifier;
use livekit_protocol::participant_info::Kind;

use super::*;

#[tokio::test]
async fn a_session_is_started_watched_and_ended() {
    let livekit = LiveKitDouble::start().await;
    let control = Control::start(Some(livekit.config())).await;
    let id = control.create().await;
    let room = format!("session-{id}");

    let (_, status) = control.get(&format!("/api/sessions/{id}")).await;
    assert_eq!(status["status"], "created");
    assert_eq!((&status["active"], &status["participants"]), (&json!(false), &json!(0)));

    let (code, started) = control.post(&format!("/api/sessions/{id}/start"), &json!({})).await;
    assert_eq!(code, StatusCode::OK, "{started}");
    let session = &started["session"];
    assert_eq!(session["status"], "in_progress");
    assert_eq!(session["livekitRoom"], room.as_str());
    assert!(session["startedAt"].as_str().unwrap().ends_with('Z'));
    {
        let mut rooms = livekit.rooms.lock();
        let made = &rooms.created[0];
        assert_eq!((made.max_participants, made.empty_timeout), (10, 300));
        assert_eq!(made.metadata, r#"{"n":1}"#);
        assert_eq!(rooms.dispatches[0].agent_name, "assistant");
        rooms.join(&room, "ann", Kind::Standard);
        rooms.join(&room, "agent-1", Kind::Agent);
    }
    let (_, status) = control.get(&format!("/api/sessions/{id}")).await;
    assert_eq!(status["room"], room.as_str());
    assert_eq!(status["active"], true);
    assert_eq!(status["participants"], 1, "the agent is not counted");
    assert_eq!(status["agentConnected"], true);
    assert!(status["createdAt"].is_string());
    let (_, list) = control.get("/api/sessions").await;
    assert_eq!(list["sessions"][0]["id"], id.as_str());

    let (code, ended) = control.post(&format!("/api/sessions/{id}/end"), &json!({})).await;
    assert_eq!(code, StatusCode::OK, "{ended}");
    assert_eq!(ended["session"]["status"], "completed");
    assert!(ended["session"]["endedAt"].is_string());
    assert!(ended["session"]["duration"].is_u64());
    assert!(livekit.rooms.lock().participants.is_empty(), "the room is deleted");
    let (_, list) = control.get("/api/sessions").await;
    assert_eq!(list["sessions"], json!([]));

    let again = control.post(&format!("/api/sessions/{id}/end"), &json!({})).await;
    assert_eq!(again.1, ended, "ending it again changes nothing");
    let again = control.post(&format!("/api/sessions/{id}/start"), &json!({})).await;
    assert_error(&again, 409, "SESSION_ENDED");
}

#[tokio::test]
async fn two_starts_at_once_dispatch_one_agent() {
    let livekit = LiveKitDouble::start().await;
    let control = Control::start(Some(livekit.config())).await;
    let id = control.create().await;
    let path = format!("/api/sessions/{id}/start");
    let body = json!({});
    let (a, b) = tokio::join!(control.post(&path, &body), control.post(&path, &body));
    assert_eq!(a.0, StatusCode::OK);
    assert_eq!(a, b, "both are told the same");
    assert_eq!(livekit.rooms.lock().dispatches.len(), 1);
}

#[tokio::test]
async fn a_room_that_has_gone_already_can_be_ended() {
    let livekit = LiveKitDouble::start().await;
    let control = Control::start(Some(livekit.config())).await;
    let id = control.create().await;
    control.post(&format!("/api/sessions/{id}/start"), &json!({})).await;
    livekit.rooms.lock().participants.clear();
    let (_, status) = control.get(&format!("/api/sessions/{id}")).await;
    assert_eq!(status["active"], false);
    let (code, _) = control.post(&format!("/api/sessions/{id}/end"), &json!({})).await;
    assert_eq!(code, StatusCode::OK);
}

#[tokio::test]
async fn every_token_is_new_lasts_an_hour_and_grants_what_was_asked() {
    let livekit = LiveKitDouble::start().await;
    let control = Control::start(Some(livekit.config())).await;
    let id = control.create().await;
    let path = format!("/api/sessions/{id}/livekit-token");
    let ann = json!({"participantName": "Ann", "canPublishData": false});
    assert_error(&control.post(&path, &ann).await, 404, "ROOM_NOT_FOUND");
    control.post(&format!("/api/sessions/{id}/start"), &json!({})).await;

    let mut seen = Vec::new();
    for _ in 0..2 {
        let (code, body) = control.post(&path, &ann).await;
        assert_eq!(code, StatusCode::OK, "{body}");
        assert_eq!(body["roomName"], format!("session-{id}"));
        assert_eq!(body["url"], livekit.url.as_str());
        let token = body["token"].as_str().unwrap();
        let claims = TokenVerifier::with_api_key(KEY, SECRET).verify(token).unwrap();
        assert_eq!((claims.name.as_str(), claims.exp - claims.nbf), ("Ann", 3600));
        let video = claims.video;
        assert_eq!((video.room_join, video.room), (true, format!("session-{id}")));
        assert_eq!((video.can_publish, video.can_subscribe), (Some(true), Some(true)));
        assert_eq!(video.can_publish_data, Some(false));
        assert_eq!(video.can_update_own_metadata, Some(true));
        assert!(!video.room_admin && !video.room_create && !video.agent);
        seen.push((claims.sub, jti(token)));
    }
    assert_ne!(seen[0].0, seen[1].0, "a fresh identity");
    assert_ne!(seen[0].1, seen[1].1, "a fresh jti");

    let nameless = control.post(&path, &json!({"participantName": "  "})).await;
    assert_error(&nameless, 400, "INVALID_REQUEST");
    control.post(&format!("/api/sessions/{id}/end"), &json!({})).await;
    assert_error(&control.post(&path, &ann).await, 409, "SESSION_ENDED");
}

fn jti(token: &str) -> String {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    claims["jti"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn without_a_livekit_server_what_needs_one_says_so() {
    let control = Control::start(None).await;
    let id = control.create().await;
    let start = control.post(&format!("/api/sessions/{id}/start"), &json!({})).await;
    assert_error(&start, 503, "LIVEKIT_NOT_CONFIGURED");
    let token = json!({"participantName": "Ann"});
    let token = control.post(&format!("/api/sessions/{id}/livekit-token"), &token).await;
    assert_error(&token, 503, "LIVEKIT_NOT_CONFIGURED");
    let (code, status) = control.get(&format!("/api/sessions/{id}")).await;
    assert_eq!((code, &status["participants"]), (StatusCode::OK, &Value::Null));
    let (code, _) = control.post(&format!("/api/sessions/{id}/end"), &json!({})).await;
    assert_eq!(code, StatusCode::OK);
}

#[tokio::test]
async fn a_livekit_server_that_is_away_or_refuses_is_told_apart() {
    // A port that was free a moment ago.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = format!("ws://{}", listener.local_addr().unwrap());
    drop(listener);
    let livekit = LiveKitDouble::start().await;
    let mut wrong_secret = livekit.config();
    wrong_secret.api_secret = SecretString::from("another-secret-another-secret-another");
    let away = LiveKitConfig { url: away, ..livekit.config() };

    for (config, code) in [(away, "LIVEKIT_UNREACHABLE"), (wrong_secret, "LIVEKIT_REFUSED")] {
        let control = Control::start(Some(config)).await;
        let id = control.create().await;
        let start = control.post(&format!("/api/sessions/{id}/start"), &json!({})).await;
        assert_error(&start, 502, code);
        let (_, status) = control.get(&format!("/api/sessions/{id}")).await;
        assert_eq!(status["status"], "created", "it can be tried again");
    }
}
