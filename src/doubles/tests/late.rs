//! Calls in which nobody can hear the caller.

use super::*;
use crate::{
    doubles::faults::Faulty,
    stt::late::queue::{DEFAULT_CAP, LateQueue},
    transcript::reporter::SessionInfo,
};

#[tokio::test(start_paused = true)]
async fn who_is_not_heard_is_told_so_and_what_was_said_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let queue = LateQueue::open(directory.path(), DEFAULT_CAP).await.unwrap();
    let info = SessionInfo {
        room: "r".into(),
        session_key: "k".into(),
        agent: "a".into(),
        started_at_unix_ms: 0,
    };
    let mut script = Script::new([QUESTION, NEXT_QUESTION], [ANSWER]);
    script.stt = script.stt.refuse_always(401);
    let (samples, ends) = caller(2, Duration::from_secs(10));
    let keeper = Keeper::new(queue.clone(), info);
    let call = run_kept(&agent(ALONE), script, samples, &ends, Some(keeper)).await;
    assert_eq!(call.apologies, 2, "{call:#?}");
    assert!(call.silences.iter().all(Option::is_some), "{call:#?}");
    assert!(call.said(SpeakerKind::User).is_empty(), "{call:#?}");
    // The session's stream ends a moment after the session.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(queue.flush(Duration::from_secs(20)).await);
    assert_eq!(queue.waiting().await.unwrap().0, 2, "one a question");
}
