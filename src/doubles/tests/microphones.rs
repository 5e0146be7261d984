//! Callers who change their microphones, and come back.

use tokio::sync::mpsc;

use super::*;
use crate::{
    clock,
    replay::realtime::{Recording, WavMicrophone},
    session::{driver, ports::RoomEvent, state::CloseReason},
};

fn joined() -> RoomEvent {
    RoomEvent::ParticipantJoined { identity: "anna".into(), name: "Anna".into() }
}

fn left() -> RoomEvent {
    RoomEvent::ParticipantLeft { identity: "anna".into() }
}

fn audible(track: &str, samples: &[i16]) -> RoomEvent {
    let microphone = Box::new(WavMicrophone::new(Arc::from(samples), clock::now()));
    RoomEvent::Audible { identity: "anna".into(), track: track.into(), microphone }
}

fn inaudible(track: &str) -> RoomEvent {
    RoomEvent::Inaudible { identity: "anna".into(), track: track.into() }
}

/// A call in which the caller is there with one microphone, and then this happens: a pause in ms, then an
/// event. Gives the caller's words, and why the session ended, if it did before it was told to.
async fn call_with(events: Vec<(u64, RoomEvent)>) -> (Vec<String>, Option<CloseReason>) {
    let agent = agent(ALONE);
    let doubles = serve(Script::new([QUESTION], [ANSWER])).await.unwrap();
    let base = Url::parse(&doubles.base_url()).unwrap();
    let providers = providers(&agent, double_endpoints(&agent, &base)).unwrap();
    let config = driver_config(&agent, "", "agent");
    let (room, room_events) = mpsc::channel(64);
    let (shown_sender, mut shown) = mpsc::channel(1_024);
    let voice = Box::new(Recording::new(24_000, clock::now()));
    let mut session =
        tokio::spawn(driver::run(config, providers, room_events, Some(voice), shown_sender));
    let rows = tokio::spawn(async move {
        let (mut rows, mut spoke) = (Vec::new(), false);
        while let Some(shown) = shown.recv().await {
            match shown {
                Shown::Transcript(row) if row.is_final && row.kind == SpeakerKind::User => {
                    rows.push(row.text);
                }
                Shown::State(AgentState::Speaking) => spoke = true,
                _ => {}
            }
        }
        (rows, spoke)
    });
    let opening = [RoomEvent::Ready, joined(), audible("one", &[])].map(|event| (0, event));
    for (after, event) in opening.into_iter().chain(events) {
        tokio::time::sleep(Duration::from_millis(after)).await;
        let _ = room.send(event).await;
    }
    let by_itself = tokio::time::timeout(Duration::from_secs(20), &mut session).await;
    let reason = by_itself.ok().and_then(Result::ok);
    drop(room);
    let (rows, spoke) = rows.await.unwrap();
    if reason.is_none() {
        assert_eq!(spoke, !rows.is_empty(), "what is said is answered");
    }
    doubles.shutdown().await;
    (rows, reason)
}

#[tokio::test(start_paused = true)]
async fn a_microphone_that_takes_another_s_place_is_heard() {
    let question = caller(1, Duration::from_secs(5)).0;
    let (rows, reason) =
        call_with(vec![(1_000, audible("two", &question)), (100, inaudible("one"))]).await;
    assert_eq!((&rows[..], reason), (&[QUESTION.to_owned()][..], None));
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_at_once_is_heard() {
    let question = caller(1, Duration::from_secs(5)).0;
    let (rows, reason) = call_with(vec![
        (1_000, inaudible("one")),
        (0, left()),
        (0, joined()),
        (0, audible("two", &question)),
    ])
    .await;
    assert_eq!((&rows[..], reason), (&[QUESTION.to_owned()][..], None));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_made_anew_ends_no_call() {
    let question = caller(1, Duration::from_secs(5)).0;
    let (rows, reason) = call_with(vec![
        (1_000, inaudible("one")),
        (0, left()),
        (0, RoomEvent::Reconnecting),
        (7_000, joined()),
        (0, RoomEvent::Reconnected),
        (300, audible("two", &question)),
    ])
    .await;
    assert_eq!((&rows[..], reason), (&[QUESTION.to_owned()][..], None));
}

#[tokio::test(start_paused = true)]
async fn who_is_not_there_after_a_reconnection_has_left() {
    let (rows, reason) = call_with(vec![
        (1_000, inaudible("one")),
        (0, left()),
        (0, RoomEvent::Reconnecting),
        (7_000, RoomEvent::Reconnected),
    ])
    .await;
    assert_eq!((rows.len(), reason), (0, Some(CloseReason::ParticipantLeft)));
}

#[tokio::test(start_paused = true)]
async fn what_recognition_knows_when_the_room_is_closed_is_a_row() {
    let (question, ends) = caller(1, Duration::from_secs(5));
    let reason = CloseReason::RoomClosed;
    // Recognition knows a word that it has not told.
    let (rows, ended) = call_with(vec![
        (1_000, audible("two", &question)),
        (ends[0] - 2_000, RoomEvent::Closed { reason }),
    ])
    .await;
    assert_eq!((&rows[..], ended), (&[QUESTION.to_owned()][..], Some(reason)));
}

#[tokio::test(start_paused = true)]
async fn a_microphone_that_was_just_changed_loses_no_word_at_the_end() {
    let (question, ends) = caller(1, Duration::from_secs(5));
    let reason = CloseReason::RoomClosed;
    let (rows, ended) = call_with(vec![
        (1_000, audible("two", &question)),
        (ends[0] - 2_000, audible("three", &[])),
        (0, RoomEvent::Closed { reason }),
    ])
    .await;
    assert_eq!((&rows[..], ended), (&[QUESTION.to_owned()][..], Some(reason)));
}
