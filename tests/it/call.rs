//! A call from dispatch to its end.

use std::time::Duration;

use antiphon::doubles::Script;
use livekit_api::services::room::RoomClient;
use serde_json::Value;

use crate::support::{
    antiphon::Worker,
    caller::{Caller, fixture},
    livekit::{KEY, SECRET},
    poll,
    stage::Stage,
    within,
};

const QUESTION: &str = "en-us-question.wav";
const GREETING: &str = "Hello, how can I help you today?";

fn contents(rows: &[Value]) -> Vec<&str> {
    rows.iter().filter_map(|row| row["content"].as_str()).collect()
}

/// Says the question and waits until the nth answer has been heard.
async fn ask(caller: &Caller, nth: usize) {
    caller.say(&fixture(QUESTION)).await;
    caller.heard(nth).await;
}

/// How the job of a dispatch ended, as the server has it.
async fn end_of(stage: &Stage, room: &str, dispatch: &str) -> String {
    let job = poll("a job", || stage.livekit.job(room, dispatch)).await;
    poll("the end of the job", || async { stage.livekit.job_ended(&job) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_comes_after_the_agent_hears_the_whole_greeting() {
    let stage = Stage::set(Script::default()).await;
    let _worker = stage.worker().await;
    stage.livekit.dispatch("test-agent", "waiting").await;
    let rooms = RoomClient::with_api_key(&stage.livekit.http_url(), KEY, SECRET);
    poll("the agent in the room", || async {
        let there = rooms.list_participants("waiting").await.ok()?;
        there.iter().any(|one| !one.tracks.is_empty()).then_some(())
    })
    .await;

    let caller = stage.caller("waiting").await;
    let greeting = caller.heard(0).await;
    let length = greeting.to.duration_since(greeting.from);
    // The double speaks a character in 60 ms.
    let spoken = Duration::from_millis(60 * GREETING.len() as u64);
    assert!(length + Duration::from_millis(150) > spoken, "{length:?} of {spoken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_turns_are_answered_from_history_shown_and_stored() {
    let script = Script::new(
        ["What is the weather in Paris?", "And tomorrow?"],
        ["It is sunny in Paris today.", "Tomorrow it will rain."],
    );
    let stage = Stage::set(script).await;
    let _worker = stage.worker().await;
    let caller = stage.caller("weather").await;
    let dispatch = stage.livekit.dispatch("test-agent", "weather").await;

    let agent = caller.agent_joined().await;
    caller.heard(0).await;
    ask(&caller, 1).await;
    ask(&caller, 2).await;

    // The room has seen what was said, in the name of who said it.
    let said = caller.final_text("the second question", |text| text.words == "And tomorrow?").await;
    assert_eq!(said.who, "alice");
    let answer = caller.final_text("the second answer", |text| text.words.contains("rain")).await;
    assert_eq!(answer.who, agent);
    let interims = caller.texts();
    let of_the_question = interims.iter().filter(|text| text.segment == said.segment);
    assert!(
        of_the_question.clone().any(|text| !text.is_final),
        "interims were shown: {interims:?}"
    );
    caller.final_text("the greeting", |text| text.words == GREETING).await;

    // The second request to the model held the first turn.
    let requests = stage.llm_requests();
    assert_eq!(requests.len(), 2, "one request per turn");
    let second = &requests[1];
    assert!(second.contains("weather in Paris") && second.contains("sunny in Paris"), "{second}");

    // The agent's state was shown all along.
    let states = caller.states();
    let pattern = ["listening", "thinking", "speaking", "listening", "thinking", "speaking"];
    let mut wanted = pattern.iter().peekable();
    for state in &states {
        wanted.next_if(|wanted| *wanted == state);
    }
    assert_eq!(wanted.next(), None, "{states:?}");

    // Everything lies in the database, once and in order.
    let rows = stage.transcripts("weather", |rows| rows.len() >= 5).await;
    assert_eq!(
        contents(&rows),
        [
            GREETING,
            "What is the weather in Paris?",
            "It is sunny in Paris today.",
            "And tomorrow?",
            "Tomorrow it will rain."
        ]
    );
    assert_eq!(rows[1]["speakerId"], "alice");
    assert_eq!(rows[2]["speakerId"], agent);
    assert_eq!(rows[2]["speakerName"], "lab", "its name, not where its file lies");
    let times: Vec<_> = rows.iter().map(|row| row["timestampMs"].as_i64()).collect();
    assert!(times.is_sorted(), "{times:?}");

    // The caller leaves, the job succeeds.
    caller.leave().await;
    let end = end_of(&stage, "weather", &dispatch).await;
    assert!(end.contains("JS_SUCCESS") && end.contains(r#""error": """#), "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_answer_falls_silent_and_only_what_was_heard_is_kept() {
    let long = "One is a number. Two is a number. Three is a number. Four is a number. \
                Five is a number. Six is a number. Seven is a number. Eight is a number.";
    let script = Script::new(["Count for me", "Stop please"], [long, "I have stopped."]);
    let stage = Stage::set(script).await;
    let _worker = stage.worker().await;
    let caller = stage.caller("counting").await;
    stage.livekit.dispatch("test-agent", "counting").await;
    caller.heard(0).await;

    caller.say(&fixture(QUESTION)).await;
    caller.has_heard(1, Duration::from_millis(1_500)).await;
    caller.say(&fixture(QUESTION)).await;
    caller.heard(2).await;

    let rows = stage.transcripts("counting", |rows| rows.len() >= 5).await;
    let said = contents(&rows);
    let cut = said[2];
    assert!(long.starts_with(cut) && cut.len() < long.len() / 2, "heard: {said:?}");
    assert!(cut.starts_with("One is"), "heard: {cut}");
    assert_eq!(said[3..], ["Stop please", "I have stopped."]);
    // The model is told what was heard, no more.
    let second = stage.llm_requests()[1].clone();
    assert!(second.contains(cut) && !second.contains("Eight"), "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn typed_text_is_answered_aloud() {
    let script = Script::new([], ["You typed hello."]);
    let stage = Stage::set(script).await;
    let _worker = stage.worker().await;
    let caller = stage.caller("typing").await;
    stage.livekit.dispatch("test-agent", "typing").await;
    caller.heard(0).await;
    caller.chat("hello there").await;
    caller.heard(1).await;
    let rows = stage.transcripts("typing", |rows| rows.len() >= 3).await;
    assert_eq!(contents(&rows)[1..], ["hello there", "You typed hello."]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_whose_time_is_half_over_finishes_the_sentence_and_takes_no_new_job() {
    let answer = "This answer takes a little while to be spoken to its end.";
    let script = Script::new(["Tell me something"], [answer]);
    let stage = Stage::set(script).await;
    let mut options = stage.worker_options("lab");
    options.more.push(("ANTIPHON_DRAIN_TIMEOUT_S", "6".into()));
    let mut worker = Worker::start(&options).await;
    let caller = stage.caller("draining").await;
    let dispatch = stage.livekit.dispatch("test-agent", "draining").await;
    caller.heard(0).await;
    caller.say(&fixture(QUESTION)).await;
    caller.hears(1).await;
    worker.signal("TERM");
    let late = stage.livekit.dispatch("test-agent", "too-late").await;

    caller.agent_left().await;
    assert_eq!(worker.exited().await, Some(0), "{}", worker.log());
    let end = end_of(&stage, "draining", &dispatch).await;
    assert!(end.contains("JS_SUCCESS"), "{end}");
    assert_eq!(stage.livekit.job("too-late", &late).await, None, "a job for a draining worker");
    let rows = stage.transcripts("draining", |rows| rows.len() >= 3).await;
    assert_eq!(contents(&rows)[2], answer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_lets_its_call_go_on_to_its_end() {
    let script = Script::new(["Tell me something"], ["Something.", "Something else."]);
    let stage = Stage::set(script).await;
    let mut worker = stage.worker().await;
    let caller = stage.caller("going-on").await;
    let dispatch = stage.livekit.dispatch("test-agent", "going-on").await;
    caller.heard(0).await;
    worker.signal("TERM");
    poll("the drain", || async { worker.log().contains("draining").then_some(()) }).await;
    caller.say(&fixture(QUESTION)).await;
    caller.heard(1).await;
    caller.leave().await;
    assert_eq!(worker.exited().await, Some(0), "{}", worker.log());
    let end = end_of(&stage, "going-on", &dispatch).await;
    assert!(end.contains("JS_SUCCESS"), "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let stage = Stage::set(Script::default()).await;
    let mut worker = stage.worker().await;
    let caller = stage.caller("busy").await;
    stage.livekit.dispatch("test-agent", "busy").await;
    caller.hears(0).await;
    worker.signal("TERM");
    // Two that come before the first is seen are one to the system.
    poll("the drain", || async { worker.log().contains("draining").then_some(()) }).await;
    worker.signal("TERM");
    let code = within("the worker's exit", worker.exited()).await;
    assert_eq!(code, Some(130), "{}", worker.log());
}
