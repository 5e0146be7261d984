//! kill -9 of the worker: no final that was shown is lost, none is doubled.

use std::time::Duration;

use antiphon::doubles::Script;
use serde_json::Value;

use crate::support::{
    antiphon::Worker,
    caller::{Text, fixture},
    stage::Stage,
};

const ROUNDS: u64 = 25;
const SEED: u64 = 0x5EED;

/// SplitMix64: moments that are the same in every run.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_final_that_was_shown_survives_kill_9_once() {
    let said: Vec<String> = (0..ROUNDS).map(|round| format!("sentence number {round}")).collect();
    let stage = Stage::set(Script::new(said.iter().map(String::as_str), [])).await;
    let question = fixture("one-word.wav");
    let mut seed = SEED;
    for (round, sentence) in said.iter().enumerate() {
        let room = format!("kill-{round}");
        let options = stage.worker_options("transcriber");
        let mut worker = Worker::start(&options).await;
        let caller = stage.caller(&room).await;
        stage.livekit.dispatch("test-agent", &room).await;
        caller.agent_joined().await;
        // Speaks until it is understood; the worker dies at a seeded moment right after.
        let shown = |text: &Text| text.words == *sentence;
        let speaking = caller.say(&question);
        let ((), _) = tokio::join!(speaking, caller.final_text(sentence, shown));
        tokio::time::sleep(Duration::from_micros(random(&mut seed) % 20_000)).await;
        worker.process.kill().await.expect("kill -9");
        caller.leave().await;
    }
    // One more start: what the dead left behind is sent.
    let _worker = Worker::start(&stage.worker_options("transcriber")).await;
    for (round, sentence) in said.iter().enumerate() {
        let room = format!("kill-{round}");
        let rows: Vec<Value> = stage.transcripts(&room, |rows| !rows.is_empty()).await;
        let same = rows.iter().filter(|row| row["content"] == **sentence).count();
        assert_eq!((rows.len(), same), (1, 1), "{room}: {rows:?}");
    }
}
