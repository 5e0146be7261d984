//! What a session shows, in order: agent state as an attribute, transcripts as text streams and to
//! the reporter, metrics.

use std::{collections::HashMap, sync::Arc};

use livekit::prelude::{LocalParticipant, Room, TrackSource};
use tokio::sync::mpsc;
use tracing::debug;

use crate::{
    room::text::Transcriptions,
    session::{driver::Providers, ports::Shown, state::AgentState},
    telemetry::record,
    transcript::{
        reporter::SessionReporter,
        segment::{Segment, SpeakerKind},
    },
};

const STATE: &str = "lk.agent.state";

/// Runs until the session has nothing more to show.
pub async fn run(
    room: Arc<Room>,
    mut shown: mpsc::Receiver<Shown>,
    reporter: SessionReporter,
    providers: Providers,
) {
    let participant = room.local_participant();
    // Attributes are acknowledged by the server: a round trip that transcripts don't wait for.
    let (states, state_queue) = mpsc::channel(64);
    let attributes = tokio::spawn(show_states(participant.clone(), state_queue));
    let mut transcriptions = Transcriptions::new(participant);
    while let Some(what) = shown.recv().await {
        match what {
            Shown::State(state) => {
                reporter.state(state.as_str());
                let _ = states.try_send(state);
            }
            Shown::Transcript(segment) => {
                report(&reporter, &segment).await;
                let track = track_of(&room, &segment);
                transcriptions.show(&segment, track).await;
            }
            Shown::Metric(metric) => record::metric(metric),
            Shown::Usage(usage) => {
                let used = providers.used(usage);
                record::usage(used);
                reporter.usage(used);
            }
            Shown::UserState(_) => {}
        }
    }
    drop(states);
    let _ = attributes.await;
    reporter.close().await;
}

/// A final is on disk before it is shown.
pub async fn report(reporter: &SessionReporter, segment: &Segment) {
    if segment.is_final {
        // It says so itself when the disk refuses; the words are shown all the same.
        let _ = reporter.final_segment(segment).await;
    } else {
        reporter.interim(segment);
    }
}

/// Front ends take `idle` for not ready: both IDLE and LISTENING are shown as `listening`.
const fn shown_state(state: AgentState) -> &'static str {
    match state {
        AgentState::Idle | AgentState::Listening => "listening",
        AgentState::Thinking => "thinking",
        AgentState::Speaking => "speaking",
    }
}

async fn show_states(participant: LocalParticipant, mut states: mpsc::Receiver<AgentState>) {
    let mut last = "";
    while let Some(state) = states.recv().await {
        let state = shown_state(state);
        if state == last {
            continue;
        }
        last = state;
        let attributes = HashMap::from([(STATE.to_owned(), state.to_owned())]);
        if let Err(error) = participant.set_attributes(attributes).await {
            debug!(%error, "the agent state could not be shown");
        }
    }
}

/// The sid of the track whose speech the segment is.
fn track_of(room: &Room, segment: &Segment) -> Option<String> {
    match segment.kind {
        SpeakerKind::Agent => {
            let tracks = room.local_participant().track_publications();
            tracks.into_keys().next().map(|sid| sid.to_string())
        }
        SpeakerKind::User => {
            let people = room.remote_participants();
            let speaker = people.get(&segment.speaker_id.clone().into())?;
            let tracks = speaker.track_publications();
            tracks
                .into_values()
                .find(|track| track.source() == TrackSource::Microphone || track.name() == "mic")
                .map(|track| track.sid().to_string())
        }
    }
}
