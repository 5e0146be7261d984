//! What goes wrong is said, and never heard as silence.

use std::time::Duration;

use antiphon::{
    doubles::{Script, faults::Faulty},
    room::join::{self, RoomJob},
};
use tokio_util::sync::CancellationToken;

use crate::support::{antiphon::Worker, caller::fixture, livekit::LiveKit, stage::Stage, within};

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
    let mut script = Script::new(["First question", "Second question"], ["A good answer."]);
    // More refusals than one turn tries again.
    script.llm = (0..8).fold(script.llm, |llm, _| llm.refuse(500));
    let stage = Stage::set(script).await;
    let _worker = stage.worker().await;
    let caller = stage.caller("model-down").await;
    stage.livekit.dispatch("test-agent", "model-down").await;
    caller.heard(0).await;
    caller.say(&fixture("en-us-question.wav")).await;
    let apology = caller.final_text("an apology", |text| text.words.contains("sorry")).await;
    assert!(apology.who.starts_with("agent"));
    caller.heard(1).await;
    // Whatever is left of the refusals is used up by further turns; then it works again.
    let mut heard = 1;
    while !caller.texts().iter().any(|text| text.words == "A good answer.") {
        caller.say(&fixture("en-us-question.wav")).await;
        heard += 1;
        caller.heard(heard).await;
        assert!(heard < 10, "the agent did not recover: {:?}", caller.texts());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voice_that_is_down_is_apologised_for_from_the_bundled_recording() {
    let mut script = Script::new(["Hello"], ["Hi."]);
    script.tts = script.tts.refuse_always(401);
    let stage = Stage::set(script).await;
    let _worker = stage.worker().await;
    let caller = stage.caller("voice-down").await;
    stage.livekit.dispatch("test-agent", "voice-down").await;
    // The greeting cannot be spoken: what is heard is the recording.
    let heard = caller.heard(0).await;
    assert!(heard.to - heard.from > Duration::from_secs(1), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_is_gone_before_the_join_fails_the_job_with_its_code() {
    let stage =
        Stage::with(LiveKit::start_with("room:\n  auto_create: false\n").await, Script::default())
            .await;
    let job = RoomJob {
        url: stage.livekit.url.clone(),
        token: LiveKit::token("never-made", "agent-x"),
        ..stage.room_job("never-made").await
    };
    let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
    let failure = within("the join's end", Box::pin(join::run(job, drain, stop)))
        .await
        .leave()
        .await
        .unwrap_err();
    assert_eq!(failure.code(), "ROOM_NOT_FOUND", "{failure}");
}
