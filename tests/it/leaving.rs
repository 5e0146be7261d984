//! A room that is left, or taken away, while others are in it.

use antiphon::{doubles::Script, room::signal};
use livekit::{
    participant::ParticipantState,
    prelude::{Room, RoomEvent, RoomOptions},
};
use livekit_api::services::room::RoomClient;

use crate::support::{
    livekit::{KEY, LiveKit, SECRET},
    poll,
    stage::Stage,
    within,
};

/// `livekit` lets go of a room's memory only when nobody is left in it.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_left_in_a_room_that_the_agent_leaves() {
    let stage = Stage::set(Script::default()).await;
    let _caller = stage.caller("left").await;
    let (room, _events) = joined(&stage, "left").await;
    poll("the caller in the room", || async {
        (!room.remote_participants().is_empty()).then_some(())
    })
    .await;
    within("the leave", signal::leave(&room)).await;
    assert!(room.remote_participants().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_left_in_a_room_that_the_agent_is_removed_from() {
    let stage = Stage::set(Script::default()).await;
    let _caller = stage.caller("removed").await;
    let (room, mut events) = joined(&stage, "removed").await;
    poll("the caller in the room", || async {
        (!room.remote_participants().is_empty()).then_some(())
    })
    .await;
    // A participant that the server does not take for connected yet comes back after its removal.
    poll("the agent's connection", || async {
        (room.local_participant().state() == ParticipantState::Active).then_some(())
    })
    .await;
    let rooms = RoomClient::with_api_key(&stage.livekit.http_url(), KEY, SECRET);
    rooms.remove_participant("removed", "agent-x").await.expect("the agent removed");
    within("the room's end", async {
        while let Some(event) = events.recv().await {
            if let RoomEvent::Disconnected { .. } = event {
                break;
            }
        }
    })
    .await;
    assert!(room.remote_participants().is_empty());
}

async fn joined(
    stage: &Stage,
    name: &str,
) -> (Room, tokio::sync::mpsc::UnboundedReceiver<RoomEvent>) {
    signal::install();
    let token = LiveKit::token(name, "agent-x");
    within("the join", Room::connect(&stage.livekit.url, &token, RoomOptions::default()))
        .await
        .expect("a room")
}
