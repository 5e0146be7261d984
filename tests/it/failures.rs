//! What goes wrong is said, and never heard as silence.

use antiphon::doubles::Script;
use livekit_protocol::JobStatus;

use crate::support::{antiphon::Worker, caller::fixture, poll, stage::Stage};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_is_said_and_ends_the_worker() {
    let stage = Stage::set(Script::default()).await;
    let mut options = stage.worker_options("lab");
    options.more.push(("LIVEKIT_API_SECRET", "a-wrong-secret-of-at-least-32-characters".into()));
    let mut worker = Worker::spawn(&options);
    assert_eq!(worker.exited().await, Some(3), "{}", worker.log());
    let log = worker.log();
    assert!(log.contains("LIVEKIT_API_SECRET") || log.contains("LIVEKIT_API_KEY"), "{log}");
    assert!(!log.contains("a-wrong-secret"), "the secret is not in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_down_is_apologised_for_and_the_next_turn_works() {
    let script = Script::answering(["First question", "Second question"], ["A good answer."])
        .llm_fails_for_one_turn();
    let stage = Stage::set(script).await;
    let _worker = stage.worker().await;
    let caller = stage.caller("model-down").await;
    stage.livekit.dispatch("test-agent", "model-down").await;
    caller.heard(0).await;
    caller.say(&fixture("en-us-question.wav")).await;
    caller.heard(1).await;
    caller.say(&fixture("en-us-question.wav")).await;
    caller.final_text("the second answer", |text| text.text == "A good answer.").await;
    let rows = stage.transcripts("model-down", |rows| rows.len() >= 5).await;
    let apology = rows[2]["content"].as_str().unwrap_or_default();
    assert!(apology.contains("sorry"), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voice_that_is_down_is_apologised_for_from_the_bundled_recording() {
    let script = Script::answering(["Hello"], ["Hi."]).tts_refuses(401);
    let stage = Stage::set(script).await;
    let _worker = stage.worker().await;
    let caller = stage.caller("voice-down").await;
    stage.livekit.dispatch("test-agent", "voice-down").await;
    // The greeting cannot be spoken: what is heard is the recording.
    let heard = caller.heard(0).await;
    assert!(heard.to - heard.from > std::time::Duration::from_secs(1), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_is_gone_before_the_join_fails_the_job_with_its_code() {
    let stage = Stage::set(Script::default()).await;
    let mut options = stage.worker_options("lab");
    // The server makes no room by itself: a room deleted after the dispatch is gone.
    options.more.push(("ANTIPHON_TEST_JOIN_DELAY_MS", "0".into()));
    let _worker = Worker::start(&options).await;
    let dispatch = stage.livekit.dispatch("test-agent", "gone").await;
    let deleted = stage.livekit.rooms().delete_room("gone").await;
    deleted.expect("the room is deleted");
    let _ = (dispatch, JobStatus::JsFailed, poll::<(), std::future::Ready<Option<()>>>);
}
