//! What a session shows, in order: agent state as an attribute, transcripts as text streams and to
//! the reporter, metrics.

use std::{collections::HashMap, sync::Arc};

use livekit::prelude::{LocalParticipant, Room, TrackSource};
use tokio::sync::mpsc;
use tracing::{debug, info};

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
/// Texts that wait for a room which is being reached anew; what comes on top is on disk and reported,
/// but not shown.
const WAITING: usize = 1_024;

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
    let (texts, text_queue) = mpsc::channel(WAITING);
    let showing = tokio::spawn(show_texts(room, text_queue));
    let mut transcripts = Transcripts { reporter, texts, not_shown: 0 };
    while let Some(what) = shown.recv().await {
        match what {
            Shown::State(state) => {
                transcripts.reporter.state(state.as_str());
                let _ = states.try_send(state);
            }
            Shown::Transcript(segment) => transcripts.take(segment).await,
            Shown::Metric(metric) => record::metric(metric),
            Shown::Usage(usage) => {
                let used = providers.used(usage);
                record::usage(used);
                transcripts.reporter.usage(used);
            }
            Shown::UserState(_) => {}
        }
    }
    let Transcripts { reporter, texts, not_shown } = transcripts;
    reporter.close().await;
    if not_shown > 0 {
        info!(not_shown, "the room was too slow for transcripts");
    }
    drop(texts);
    let _ = showing.await;
    // A room that is gone never acknowledges the last of them.
    attributes.abort();
}

/// Keeps and reports transcripts, which waits for nobody but the disk, and passes them on to the room,
/// which may be away.
struct Transcripts {
    reporter: SessionReporter,
    texts: mpsc::Sender<Segment>,
    not_shown: u64,
}

impl Transcripts {
    async fn take(&mut self, segment: Segment) {
        report(&self.reporter, &segment).await;
        self.not_shown += u64::from(self.texts.try_send(segment).is_err());
    }
}

async fn show_texts(room: Arc<Room>, mut texts: mpsc::Receiver<Segment>) {
    let mut transcriptions = Transcriptions::new(room.local_participant());
    while let Some(segment) = texts.recv().await {
        let track = track_of(&room, &segment);
        transcriptions.show(&segment, track).await;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::reporter::{Reporter, ReporterConfig, SessionInfo};

    fn said(text: &str) -> Segment {
        Segment {
            id: text.into(),
            kind: SpeakerKind::User,
            speaker_id: "ann".into(),
            speaker_name: "Ann".into(),
            text: text.into(),
            start_ms: 0,
            duration_ms: 0,
            confidence: 1.0,
            is_final: true,
        }
    }

    #[tokio::test]
    async fn what_is_said_while_the_room_takes_no_text_is_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        let config = ReporterConfig {
            state_dir: directory.path().to_owned(),
            control_url: None,
            token: None,
            outbox_cap: 1 << 20,
        };
        let kept = Reporter::start(config).await.unwrap();
        let reporter = kept.session(SessionInfo {
            room: "room".into(),
            session_key: "RM_1".into(),
            agent: "assistant".into(),
            started_at_unix_ms: 0,
        });
        // The room is being reached anew: nobody takes what is to be shown.
        let (texts, _waiting) = mpsc::channel(1);
        let mut transcripts = Transcripts { reporter, texts, not_shown: 0 };
        for text in ["one", "two", "three"] {
            transcripts.take(said(text)).await;
        }
        assert_eq!(transcripts.not_shown, 2);
        let files = std::fs::read_dir(directory.path().join("outbox")).unwrap();
        let kept: Vec<u8> =
            files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        let kept = String::from_utf8_lossy(&kept);
        assert!(["one", "two", "three"].iter().all(|text| kept.contains(text)));
    }
}
