//! A job's room from join to leave.

use std::{sync::Arc, time::Duration};

use livekit::{
    TextStreamReader,
    options::{AudioEncoding, TrackPublishOptions},
    prelude::{
        LocalAudioTrack, LocalTrack, Room, RoomError, RoomEvent as LiveKitEvent, RoomOptions,
        TrackSource,
    },
    webrtc::audio_source::RtcAudioSource,
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{debug, info, warn};

use crate::{
    clock,
    config::env::LiveKitAccess,
    recording::recorder::{RecorderConfig, Recording},
    room::{
        events::Events,
        figures,
        media::{SourceVoice, knock, voice_source},
        opening::Opening,
        signal, stage,
        telephone::RoomTelephone,
        text::{CHAT, read_chat},
    },
    session::{
        driver::{self, DriverConfig, Providers},
        ports::{RoomEvent, Voice},
        state::CloseReason,
    },
    transcript::reporter::{SessionInfo, SessionReporter},
};

/// The name of the agent's track.
pub const VOICE_TRACK: &str = "voice";
/// In bits per second, without the copies.
const VOICE_BITRATE: u64 = 64_000;
/// How long the last finals may take to be written and shown after the session's end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why a room could not be served.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the room does not exist any more")]
    RoomNotFound,
    #[error("the server refused the token: {0}")]
    Refused(String),
    #[error("the room cannot be joined: {0}")]
    Join(RoomError),
    #[error("the voice track cannot be published: {0}")]
    Publish(RoomError),
    #[error("the session failed")]
    Failed,
}

impl RunError {
    /// The code of SPEC's error table, or a plain one.
    pub fn code(&self) -> &'static str {
        match self {
            Self::RoomNotFound => "ROOM_NOT_FOUND",
            Self::Refused(_) => "TOKEN_EXPIRED",
            Self::Join(_) => "ROOM_JOIN_FAILED",
            Self::Publish(_) => "PUBLISH_FAILED",
            Self::Failed => "SESSION_FAILED",
        }
    }
}

impl From<RoomError> for RunError {
    fn from(error: RoomError) -> Self {
        use livekit::rtc_engine::EngineError;
        let text = error.to_string();
        let RoomError::Engine(EngineError::Signal(_)) = &error else { return Self::Join(error) };
        if text.contains("404") || text.contains("does not exist") {
            Self::RoomNotFound
        } else if text.contains("401") || text.contains("403") {
            Self::Refused(text)
        } else {
            Self::Join(error)
        }
    }
}

/// Where and how to run one session.
#[derive(Debug)]
pub struct RoomJob {
    pub url: String,
    pub token: String,
    pub config: DriverConfig,
    pub providers: Providers,
    pub reporter: SessionReporter,
    /// Records the session, when that is wanted and its people have agreed to it.
    pub recorder: Option<RecorderConfig>,
    /// The participant the job is for, when dispatch named one.
    pub participant: Option<String>,
    /// By which callers are transferred; none: they are not.
    pub livekit: Option<Arc<LiveKitAccess>>,
}

/// A session that is over. The agent is in its room until [`Ended::leave`].
#[derive(Debug)]
#[must_use = "the room is to be left"]
pub struct Ended {
    pub outcome: Result<CloseReason, RunError>,
    room: Option<Arc<Room>>,
}

impl Ended {
    /// Leaves the room; within 3 s, whatever the server does.
    pub async fn leave(self) -> Result<CloseReason, RunError> {
        if let Some(room) = self.room
            && tokio::time::timeout(Duration::from_secs(3), signal::leave(&room)).await.is_err()
        {
            debug!("the room did not close in time");
        }
        self.outcome
    }
}

/// Joins the room and holds the conversation. `drain` asks for a graceful end, `stop` for an
/// immediate one; either way every final is on disk before this returns.
pub async fn run(job: RoomJob, drain: CancellationToken, stop: CancellationToken) -> Ended {
    let ended = |outcome, room| Ended { outcome, room };
    let RoomJob { url, token, config, providers, reporter, recorder, participant, livekit } = job;
    let names = providers.clone();
    let speaks = providers.speaking.as_ref().map(|(_, tts)| voice_source(tts.sample_rate()));
    let recordings = reporter.sibling();
    let mut recording = recorder.and_then(|recorder| begin(&recorder, reporter.info()));
    let rate = providers.speaking.as_ref().map_or(0, |(_, tts)| tts.sample_rate());
    let voice = speaks.clone().map(|source| {
        let voice: Box<dyn Voice> = Box::new(SourceVoice::new(source));
        match &mut recording {
            Some(recording) => recording.voice(voice, rate),
            None => voice,
        }
    });

    // The driver starts first: the providers' connections are made while the room is joined.
    let (room_sender, room_events) = mpsc::channel(256);
    providers.room.bind(&room_sender);
    let (shown_sender, shown) = mpsc::channel(1_024);
    let session = tokio::spawn(driver::run(config, providers, room_events, voice, shown_sender));
    let abandon = session.abort_handle();

    let joined = tokio::select! {
        joined = join(&url, &token) => joined,
        () = stop.cancelled() => {
            abandon.abort();
            return ended(Ok(CloseReason::Terminated), None);
        }
    };
    let (room, mut events) = match joined {
        Ok(joined) => joined,
        Err(error) => {
            abandon.abort();
            return ended(Err(error), None);
        }
    };
    let room = Arc::new(room);
    info!(room = room.name(), "joined");
    let _figures = AbortOnDropHandle::new(tokio::spawn(figures::watch(room.clone())));
    let telephone = RoomTelephone::new(&room, participant.clone(), livekit);
    names.room.bind_telephone(Arc::new(telephone));
    let stage = tokio::spawn(stage::run(room.clone(), shown, reporter, names));

    // Subscriptions go on while the track is being published.
    let mut translate = Events::new(room.local_participant().identity(), participant);
    let mut opening = Opening::new(speaks.is_some());
    let publish = publish(&room, speaks.clone());
    tokio::pin!(publish);
    let (mut published, mut draining) = (false, false);
    let mut knocking = None;
    // Without a voice the call is over, but the caller may have spoken already.
    let mut unpublished = None;
    let reason = loop {
        if opening.begins(clock::now()) {
            knocking = None;
            let _ = room_sender.send(RoomEvent::Ready).await;
        }
        let due = opening.due();
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                let _ = room_sender.send(RoomEvent::Closed { reason: CloseReason::Terminated }).await;
                break CloseReason::Terminated;
            }
            () = drain.cancelled(), if !draining => {
                draining = true;
                let _ = room_sender.send(RoomEvent::Drain).await;
            }
            outcome = &mut publish, if !published => {
                published = true;
                if let Err(error) = outcome {
                    unpublished = Some(error);
                    let reason = CloseReason::Failed;
                    let _ = room_sender.send(RoomEvent::Closed { reason }).await;
                    break reason;
                }
                opening.published(clock::now());
                knocking = speaks.clone().map(|it| AbortOnDropHandle::new(tokio::spawn(knock(it))));
            }
            () = clock::at(due), if due.is_some() => {}
            event = events.recv() => {
                let Some(event) = event else { break CloseReason::RoomClosed };
                match &event {
                    LiveKitEvent::LocalTrackSubscribed { .. } => opening.heard(),
                    LiveKitEvent::Disconnected { reason } => {
                        info!(?reason, "disconnected from the room");
                    }
                    LiveKitEvent::TextStreamOpened { reader, topic, participant_identity }
                        if topic == CHAT =>
                    {
                        if let Some(reader) = reader.take() {
                            let identity = participant_identity.0.clone();
                            tokio::spawn(take_chat(reader, identity, room_sender.clone()));
                        }
                    }
                    _ => {}
                }
                for mut event in translate.take(event) {
                    if let (RoomEvent::Audible { microphone, .. }, Some(recording)) =
                        (&mut event, &mut recording)
                    {
                        recording.tap_into(microphone);
                    }
                    let _ = room_sender.send(event).await;
                }
                opening.attended(translate.is_anyone_here(), clock::now());
            }
            () = room_sender.closed() => break CloseReason::Failed,
        }
    };
    drop((room_sender, knocking));
    let reason = match session.await {
        Ok(told) => told,
        Err(error) => {
            warn!(%error, "the session broke");
            if reason == CloseReason::RoomClosed { reason } else { CloseReason::Failed }
        }
    };
    // Together, and with recognition's last words before, within what the worker gives a job to end.
    let finish = async {
        if let Some(recording) = recording {
            recording.finish(&recordings).await;
        }
    };
    let (shown, recorded) = futures_util::join!(
        tokio::time::timeout(LAST_WORDS, stage),
        tokio::time::timeout(LAST_WORDS, finish)
    );
    if shown.is_err() {
        warn!("the last transcripts could not be shown in time; they are on disk");
    }
    if recorded.is_err() {
        warn!("the recording could not be finished in time; the next start saves it");
    }
    let outcome = match unpublished {
        Some(error) => Err(RunError::Publish(error)),
        None if reason == CloseReason::Failed => Err(RunError::Failed),
        None => Ok(reason),
    };
    ended(outcome, Some(room.clone()))
}

/// A call is not refused because it cannot be recorded.
fn begin(recorder: &RecorderConfig, session: &SessionInfo) -> Option<Recording> {
    Recording::start(recorder, session)
        .inspect_err(|error| warn!(%error, "the session cannot be recorded"))
        .ok()
}

async fn join(
    url: &str,
    token: &str,
) -> Result<(Room, mpsc::UnboundedReceiver<LiveKitEvent>), RunError> {
    signal::install();
    let mut options = RoomOptions::default();
    // Microphones are subscribed one by one: video that nobody looks at costs bandwidth.
    options.auto_subscribe = false;
    let joined = Room::connect(url, token, options).await?;
    Ok(joined)
}

/// How the agent's voice is published: with a copy of every packet in the next (RED), and at a bitrate
/// from which Opus encodes speech as well without its speech layer as with it, for a third of the CPU.
pub fn voice_options() -> TrackPublishOptions {
    TrackPublishOptions {
        source: TrackSource::Microphone,
        audio_encoding: Some(AudioEncoding { max_bitrate: VOICE_BITRATE }),
        ..Default::default()
    }
}

async fn publish(
    room: &Room,
    source: Option<libwebrtc::audio_source::native::NativeAudioSource>,
) -> Result<(), RoomError> {
    let Some(source) = source else { return Ok(()) };
    let track = LocalAudioTrack::create_audio_track(VOICE_TRACK, RtcAudioSource::Native(source));
    room.local_participant().publish_track(LocalTrack::Audio(track), voice_options()).await?;
    Ok(())
}

async fn take_chat(reader: TextStreamReader, identity: String, room: mpsc::Sender<RoomEvent>) {
    if let Some(text) = read_chat(reader).await {
        let _ = room.send(RoomEvent::Chat { identity, text }).await;
    }
}
