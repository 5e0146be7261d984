//! LiveKit's room events as the session knows them.

use std::collections::{HashSet, VecDeque};

use livekit::{
    participant::ParticipantKind,
    prelude::{
        ParticipantIdentity, RemoteParticipant, RemoteTrack, RemoteTrackPublication,
        RoomEvent as LiveKitEvent, TrackKind, TrackSource,
    },
};
use tracing::debug;

use crate::{
    room::{farewell, media::TrackMicrophone},
    session::{ports::RoomEvent, state::CloseReason},
};

/// Translates one room's events and subscribes to the microphones in it.
#[derive(Debug)]
pub struct Events {
    own: ParticipantIdentity,
    /// The participant the job is for: joined first, so that it is the linked one.
    wanted: Option<String>,
    present: HashSet<String>,
}

impl Events {
    pub fn new(own: ParticipantIdentity, wanted: Option<String>) -> Self {
        Self {
            own,
            wanted: wanted.filter(|identity| !identity.is_empty()),
            present: HashSet::new(),
        }
    }

    /// What one event means to the session, in order.
    pub fn take(&mut self, event: LiveKitEvent) -> VecDeque<RoomEvent> {
        let mut out = VecDeque::new();
        match event {
            LiveKitEvent::Connected { mut participants_with_tracks } => {
                participants_with_tracks.sort_by_key(|(participant, _)| {
                    (Some(participant.identity().0) != self.wanted, participant.joined_at())
                });
                for (participant, publications) in participants_with_tracks {
                    self.joined(&participant, &mut out);
                    for publication in publications {
                        subscribe(&publication);
                    }
                }
            }
            LiveKitEvent::ParticipantConnected(participant) => self.joined(&participant, &mut out),
            // The room itself is over, which is told next.
            LiveKitEvent::ParticipantDisconnected(participant)
                if participant.disconnect_reason() == farewell::REASON.into() => {}
            LiveKitEvent::ParticipantDisconnected(participant) => {
                let identity = participant.identity().0;
                if self.present.remove(&identity) {
                    out.push_back(RoomEvent::ParticipantLeft { identity });
                }
            }
            LiveKitEvent::TrackPublished { publication, participant } if speaks(&participant) => {
                subscribe(&publication);
            }
            LiveKitEvent::TrackSubscribed {
                track: RemoteTrack::Audio(track),
                publication,
                participant,
            } if speaks(&participant) && is_microphone(&publication) => {
                self.joined(&participant, &mut out);
                out.push_back(RoomEvent::Audible {
                    identity: participant.identity().0,
                    track: publication.sid().to_string(),
                    microphone: Box::new(TrackMicrophone::new(track.rtc_track())),
                });
            }
            LiveKitEvent::TrackUnsubscribed { publication, participant, .. }
                if is_microphone(&publication) =>
            {
                let identity = participant.identity().0;
                let track = publication.sid().to_string();
                out.push_back(RoomEvent::Inaudible { identity, track });
            }
            // Before it, livekit tells of everybody that they left.
            LiveKitEvent::Reconnecting => out.push_back(RoomEvent::Reconnecting),
            LiveKitEvent::Reconnected => out.push_back(RoomEvent::Reconnected),
            LiveKitEvent::Disconnected { .. } => {
                out.push_back(RoomEvent::Closed { reason: CloseReason::RoomClosed });
            }
            _ => {}
        }
        out
    }

    /// Whether anybody who speaks is in the room.
    pub fn is_anyone_here(&self) -> bool {
        !self.present.is_empty()
    }

    fn joined(&mut self, participant: &RemoteParticipant, out: &mut VecDeque<RoomEvent>) {
        let identity = participant.identity();
        if identity == self.own || !speaks(participant) || !self.present.insert(identity.0.clone())
        {
            return;
        }
        out.push_back(RoomEvent::ParticipantJoined {
            identity: identity.0,
            name: participant.name(),
        });
    }
}

/// People speak; agents, recorders and streams don't take turns.
fn speaks(participant: &RemoteParticipant) -> bool {
    !matches!(
        participant.kind(),
        ParticipantKind::Agent | ParticipantKind::Egress | ParticipantKind::Ingress
    )
}

fn is_microphone(publication: &RemoteTrackPublication) -> bool {
    publication.kind() == TrackKind::Audio
        && (publication.source() == TrackSource::Microphone || publication.name() == "mic")
}

fn subscribe(publication: &RemoteTrackPublication) {
    if is_microphone(publication) && !publication.is_subscribed() {
        debug!(track = %publication.sid(), "subscribing to a microphone");
        publication.set_subscribed(true);
    }
}
