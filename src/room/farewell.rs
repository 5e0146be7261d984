//! Who is in a room, by its signalling, and the message that says they have all left.
//!
//! `livekit` 0.10.0 frees a room that is left only when nobody in it publishes: a remote participant
//! and its publications hold each other and, with them, the engine and both connections (a quarter
//! of a megabyte for each call). They let go of each other when the server says that the
//! participant has left, so that is what a room is told before it ends.

use std::collections::BTreeMap;

use livekit_protocol::{
    DisconnectReason, ParticipantInfo, ParticipantUpdate, SignalResponse, leave_request::Action,
    participant_info::State, signal_response::Message,
};
use prost::Message as _;

/// Remembered at most: more than a room has.
const MAX_PARTICIPANTS: usize = 4_096;
/// The reason in what is told: the server gives it to everybody in a room that it closes.
pub const REASON: DisconnectReason = DisconnectReason::RoomClosed;

/// The others in a room: identities by their sid.
#[derive(Debug, Default)]
pub struct Present(BTreeMap<String, String>);

impl Present {
    /// Takes note of one of the server's messages. What is returned goes before this message: with
    /// it the room ends.
    pub fn read(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        match SignalResponse::decode(message).ok()?.message? {
            Message::Join(join) => {
                self.0.clear();
                join.other_participants.into_iter().for_each(|one| self.note(one));
            }
            Message::Update(update) => {
                update.participants.into_iter().for_each(|one| self.note(one));
            }
            Message::Leave(leave) if leave.action() == Action::Disconnect => {
                return self.farewell();
            }
            _ => {}
        }
        None
    }

    fn note(&mut self, participant: ParticipantInfo) {
        if participant.state() == State::Disconnected {
            self.0.remove(&participant.sid);
        } else if self.0.len() < MAX_PARTICIPANTS {
            self.0.insert(participant.sid, participant.identity);
        }
    }

    /// Says that everybody has left. `livekit` knows its own participant by its identity and
    /// minds no participant that it has not seen.
    pub fn farewell(&mut self) -> Option<Vec<u8>> {
        let participants: Vec<_> = std::mem::take(&mut self.0)
            .into_iter()
            .map(|(sid, identity)| ParticipantInfo {
                sid,
                identity,
                state: State::Disconnected.into(),
                disconnect_reason: REASON.into(),
                ..Default::default()
            })
            .collect();
        if participants.is_empty() {
            return None;
        }
        let message = Message::Update(ParticipantUpdate { participants });
        Some(SignalResponse { message: Some(message) }.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use livekit_protocol::{JoinResponse, LeaveRequest};

    use super::*;

    fn participant(sid: &str, state: State) -> ParticipantInfo {
        let identity = format!("of {sid}");
        ParticipantInfo { sid: sid.into(), identity, state: state.into(), ..Default::default() }
    }

    fn encoded(message: Message) -> Vec<u8> {
        SignalResponse { message: Some(message) }.encode_to_vec()
    }

    fn joined(sids: &[&str]) -> Vec<u8> {
        let other_participants = sids.iter().map(|sid| participant(sid, State::Active)).collect();
        encoded(Message::Join(JoinResponse { other_participants, ..Default::default() }))
    }

    fn updated(sid: &str, state: State) -> Vec<u8> {
        let participants = vec![participant(sid, state)];
        encoded(Message::Update(ParticipantUpdate { participants }))
    }

    fn left(farewell: Option<Vec<u8>>) -> Vec<String> {
        let Some(farewell) = farewell else { return Vec::new() };
        let Some(Message::Update(update)) = SignalResponse::decode(&*farewell).unwrap().message
        else {
            panic!("no update")
        };
        let gone = |one: &ParticipantInfo| {
            one.state() == State::Disconnected && one.disconnect_reason() == REASON
        };
        assert!(update.participants.iter().all(gone));
        update.participants.into_iter().map(|one| one.identity).collect()
    }

    #[test]
    fn everybody_who_is_there_has_left_when_the_agent_leaves() {
        let mut present = Present::default();
        assert_eq!(present.read(&joined(&["PA_1", "PA_2"])), None);
        assert_eq!(present.read(&updated("PA_3", State::Joined)), None);
        assert_eq!(present.read(&updated("PA_1", State::Disconnected)), None);
        assert_eq!(left(present.farewell()), ["of PA_2", "of PA_3"]);
        assert_eq!(present.farewell(), None);
    }

    #[test]
    fn the_servers_own_end_is_preceded_by_the_farewell_and_a_reconnect_is_not() {
        let leave = |action: Action| {
            encoded(Message::Leave(LeaveRequest { action: action.into(), ..Default::default() }))
        };
        let mut present = Present::default();
        present.read(&joined(&["PA_1"]));
        for action in [Action::Resume, Action::Reconnect] {
            assert_eq!(present.read(&leave(action)), None);
        }
        assert_eq!(left(present.read(&leave(Action::Disconnect))), ["of PA_1"]);
    }

    #[test]
    fn what_is_no_message_is_passed_on() {
        assert_eq!(Present::default().read(b"\xff\xff\xff"), None);
    }
}
