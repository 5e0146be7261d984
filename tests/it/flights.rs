//! A call on a real server, recorded by the worker and done again.

use std::{path::PathBuf, time::Duration};

use antiphon::{
    doubles::Script,
    flight::{End, replay},
};

use crate::support::{antiphon::Worker, caller::fixture, poll, stage::Stage};

const QUESTION: &str = "en-us-question.wav";

#[tokio::test(flavor = "multi_thread")]
async fn a_live_call_done_again_gives_the_same_commands() {
    let long = "One is a number. Two is a number. Three is a number. Four is a number. \
                Five is a number. Six is a number. Seven is a number. Eight is a number.";
    let script = Script::new(
        ["Count for me", "Stop please", "And then?"],
        [long, "I have stopped.", "Then we are done."],
    );
    let stage = Stage::set(script).await;
    let mut options = stage.worker_options("lab");
    options.more.push(("ANTIPHON_FLIGHT", "full".into()));
    let _worker = Worker::start(&options).await;
    let caller = stage.caller("flown").await;
    stage.livekit.dispatch("test-agent", "flown").await;
    caller.heard(0).await;
    caller.say(&fixture(QUESTION)).await;
    // In the middle of the answer, so that there is an interruption to do again.
    caller.has_heard(1, Duration::from_millis(1_500)).await;
    caller.say(&fixture(QUESTION)).await;
    caller.heard(2).await;
    caller.chat("And then?").await;
    caller.heard(3).await;
    caller.leave().await;

    let folder = stage.state.path().join("flights");
    let over = poll("the whole recording", || async {
        let recorded: Vec<PathBuf> =
            std::fs::read_dir(&folder).ok()?.filter_map(|file| Some(file.ok()?.path())).collect();
        let flown = replay::fly(recorded.first()?, None).ok()?;
        flown.end.map(|end| (end, flown))
    })
    .await;
    let (end, flown) = over;
    assert_eq!(end, End::Over);
    assert_eq!(flown.diverged, None, "{} steps", flown.steps);
    assert!(flown.steps > 100 && flown.commands.len() > 50, "{} steps", flown.steps);
}
