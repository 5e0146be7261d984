//! kill -9 of the worker or of the control endpoint: no final is lost, none is doubled.

use std::{collections::HashSet, time::Duration};

use antiphon::{
    doubles::Script,
    transcript::{
        reporter::{Reporter, ReporterConfig, SessionInfo},
        segment::{Segment, SpeakerKind},
    },
};
use secrecy::SecretString;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::support::{
    antiphon::{Control, Worker},
    caller::fixture,
    livekit::free_tcp,
    poll,
    stage::{Stage, TOKEN},
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

/// What dies in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    Worker,
    Control,
    Both,
}

/// Kills one after the other in a lane; of more there are more lanes, side by side.
const LANE: u64 = 200;

#[tokio::test(flavor = "multi_thread")]
async fn every_final_that_was_shown_survives_kill_9_of_worker_and_control_once() {
    let rounds = rounds();
    let lanes = (0..rounds.div_ceil(LANE)).map(|lane| {
        let rounds = LANE.min(rounds - lane * LANE);
        tokio::spawn(kill_worker_and_control(lane, rounds))
    });
    for lane in futures_util::future::join_all(lanes).await {
        lane.expect("the lane holds");
    }
}

#[allow(clippy::print_stdout, reason = "a soak says how far it is")]
async fn kill_worker_and_control(lane: u64, rounds: u64) {
    // More than there are rounds: a voice that stutters on a busy machine is two utterances.
    let script: Vec<String> = (0..2 * rounds).map(|n| format!("sentence number {n}")).collect();
    let stage = Stage::set(Script::new(script.iter().map(String::as_str), [])).await;
    let question = fixture("one-word.wav");
    let (port, state) = (free_tcp(), stage.state.path().join("killed"));
    std::fs::create_dir(&state).expect("a folder");
    let url = format!("http://127.0.0.1:{port}");
    let mut options = stage.worker_options("transcriber");
    options.control = Some((url.clone(), TOKEN));
    let (mut worker, mut control) = (None, None);
    let mut seed = SEED + lane;
    // What each room's caller has read.
    let mut shown = Vec::new();
    for round in 0..rounds {
        if control.is_none() {
            control = Some(Control::start(port, &state).await);
        }
        if worker.is_none() {
            worker = Some(Worker::start(&options).await);
        }
        let room = format!("kill-{round}");
        let caller = stage.caller(&room).await;
        stage.livekit.dispatch("test-agent", &room).await;
        caller.agent_joined().await;
        // Speaks until it is understood; who dies does so at a seeded moment right after.
        let speaking = caller.say(&question);
        tokio::join!(speaking, caller.final_text(&room, |_| true));
        tokio::time::sleep(Duration::from_micros(random(&mut seed) % 20_000)).await;
        let dies = [Dies::Worker, Dies::Control, Dies::Both][(random(&mut seed) % 3) as usize];
        if dies != Dies::Control {
            let mut dead = worker.take().expect("it runs");
            dead.process.kill().await.expect("kill -9");
        }
        if dies != Dies::Worker {
            let mut dead = control.take().expect("it runs");
            dead.process.kill().await.expect("kill -9");
        }
        let finals = caller.texts().into_iter().filter(|text| text.is_final);
        shown.push((room, finals.map(|text| text.words).collect::<Vec<_>>()));
        caller.leave().await;
        if round % 50 == 49 {
            println!("lane {lane}: {} of {rounds} kills", round + 1);
        }
    }
    drop((worker, control));
    // One more start: what the dead left behind is sent.
    let _control = Control::start(port, &state).await;
    let _worker = Worker::start(&options).await;
    let mut stored = HashSet::new();
    for (room, shown) in shown {
        let rows: Vec<Value> = transcripts(&url, &room).await;
        let contents: Vec<&str> = rows.iter().filter_map(|row| row["content"].as_str()).collect();
        for words in &shown {
            assert!(contents.contains(&words.as_str()), "{room}: {words} is lost: {contents:?}");
        }
        for words in contents {
            assert!(stored.insert(words.to_owned()), "{room}: {words} is there twice");
        }
    }
}

/// The stored transcripts of a room, once there are any.
async fn transcripts(control: &str, room: &str) -> Vec<Value> {
    poll(&format!("the transcripts of {room}"), || async {
        for page in 1.. {
            let path = format!("api/sessions?status=all&limit=200&page={page}");
            let sessions = get(control, &path).await;
            let sessions = sessions["sessions"].as_array()?;
            if sessions.is_empty() {
                break;
            }
            let Some(session) = sessions.iter().find(|session| session["room"] == room) else {
                continue;
            };
            let path = format!("api/sessions/{}/transcripts", session["id"].as_str()?);
            let page = get(control, &path).await;
            return page["transcripts"].as_array().filter(|rows| !rows.is_empty()).cloned();
        }
        None
    })
    .await
}

async fn get(control: &str, path: &str) -> Value {
    let request = reqwest::Client::new().get(format!("{control}/{path}")).bearer_auth(TOKEN);
    request.send().await.expect("an answer").json().await.expect("JSON")
}

/// How often each test kills; the soak asks for more.
fn rounds() -> u64 {
    std::env::var("ANTIPHON_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_final_survives_kill_9_of_the_control_endpoint_once_and_in_order() {
    const CALLS: usize = 8;
    let state = tempfile::tempdir().expect("a state directory");
    let port = free_tcp();
    let url: Url = format!("http://127.0.0.1:{port}").parse().expect("a URL");
    let reporter = Reporter::start(ReporterConfig {
        state_dir: state.path().to_owned(),
        control_url: Some(url.clone()),
        token: Some(SecretString::from(TOKEN)),
        outbox_cap: 1 << 30,
    })
    .await
    .expect("an outbox");
    let stop = CancellationToken::new();
    let calls: Vec<_> = (0..CALLS)
        .map(|call| {
            let session = reporter.session(SessionInfo {
                room: format!("call-{call}"),
                session_key: format!("RM_{call}"),
                agent: "assistant".into(),
                started_at_unix_ms: 1_000,
            });
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut said: u64 = 0;
                while !stop.is_cancelled() {
                    let segment = Segment {
                        id: format!("{call}-{said}"),
                        kind: SpeakerKind::User,
                        speaker_id: "ann".into(),
                        speaker_name: "Ann".into(),
                        text: format!("sentence {said}"),
                        start_ms: said,
                        duration_ms: 1,
                        confidence: 1.0,
                        is_final: true,
                    };
                    session.final_segment(&segment).await.expect("it is on disk");
                    said += 1;
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                session.close().await;
                said
            })
        })
        .collect();
    let mut seed = SEED;
    for _ in 0..rounds() {
        let mut control = Control::start(port, state.path()).await;
        tokio::time::sleep(Duration::from_millis(20 + random(&mut seed) % 400)).await;
        control.process.kill().await.expect("kill -9");
    }
    let _control = Control::start(port, state.path()).await;
    stop.cancel();
    let mut said = Vec::new();
    for call in calls {
        said.push(call.await.expect("the call goes on"));
    }
    assert!(reporter.flush(Duration::from_mins(2)).await, "all of it is acknowledged");

    let control = url.as_str().trim_end_matches('/');
    let sessions = get(control, "api/sessions?status=all&limit=200").await;
    let sessions = sessions["sessions"].as_array().expect("sessions");
    assert_eq!(sessions.len(), CALLS);
    for session in sessions {
        let room = session["room"].as_str().expect("a room");
        let call: usize = room.strip_prefix("call-").expect("ours").parse().expect("a number");
        let id = session["id"].as_str().expect("an id");
        // In the order of arrival, which is the order in which it was said.
        let export = get(control, &format!("api/sessions/{id}/transcripts/export")).await;
        let rows = export.as_array().expect("rows");
        let found: Vec<&str> = rows.iter().filter_map(|row| row["content"].as_str()).collect();
        let expected: Vec<String> = (0..said[call]).map(|n| format!("sentence {n}")).collect();
        assert_eq!(found, expected, "{room}");
    }
    println!("{} finals through {} kills", said.iter().sum::<u64>(), rounds());
}
