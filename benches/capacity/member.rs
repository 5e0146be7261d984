//! One participant in each of many rooms.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ::livekit::{
    prelude::{LocalAudioTrack, LocalTrack, RemoteTrack, Room, RoomEvent, RoomOptions},
    webrtc::{
        audio_frame::AudioFrame,
        audio_source::{AudioSourceOptions, RtcAudioSource, native::NativeAudioSource},
        audio_stream::native::NativeAudioStream,
    },
};
use antiphon::audio::{
    level::dbfs,
    vad::{VadConfig, VoiceDetector},
};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{support::livekit::LiveKit, voice};

/// Quieter than this is a gap: the voice never is.
const GAP: f32 = -45.0;
/// Sources that the callers share: what they encode is not what is measured.
const CALLER_SOURCES: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A voice at 24 kHz for every room; what it hears goes through voice activity detection.
    Agent,
    Caller,
}

/// What one side has heard since it was reset.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Heard {
    pub rooms: u64,
    /// Rooms in which nothing was heard.
    pub silent_rooms: u64,
    /// Of 10 ms.
    pub frames: u64,
    /// Frames without sound.
    pub gaps: u64,
}

impl Heard {
    pub fn read(line: &str) -> Self {
        serde_json::from_str(line).expect("what was heard")
    }
}

#[derive(Debug, Default)]
struct Ear {
    subscribed: AtomicBool,
    frames: AtomicU64,
    gaps: AtomicU64,
}

struct Member {
    room: Room,
    ear: Arc<Ear>,
}

/// Obeys the lines that come in until they end.
pub async fn serve(url: &str, side: Side) {
    antiphon::room::warm_up::warm_up().await;
    antiphon::room::signal::install();
    let mut members: Vec<Member> = Vec::new();
    let mut shared: Vec<NativeAudioSource> = Vec::new();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("join", room) => {
                let source = match side {
                    Side::Agent => speak(24_000, members.len()),
                    Side::Caller if shared.len() < CALLER_SOURCES => {
                        shared.push(speak(48_000, members.len()));
                        shared.last().cloned().expect("just pushed")
                    }
                    Side::Caller => shared[members.len() % CALLER_SOURCES].clone(),
                };
                members.push(Member::join(url, room, side, source).await);
                println!("joined");
            }
            ("wait", _) => {
                crate::support::poll("every room being heard", || async {
                    let heard = |member: &Member| member.ear.subscribed.load(Ordering::Relaxed);
                    members.iter().all(heard).then_some(())
                })
                .await;
                println!("all heard");
            }
            ("reset", _) => {
                for member in &members {
                    member.ear.frames.store(0, Ordering::Relaxed);
                    member.ear.gaps.store(0, Ordering::Relaxed);
                }
                println!("reset");
            }
            ("heard", _) => {
                let mut all = Heard { rooms: members.len() as u64, ..Heard::default() };
                for member in &members {
                    let frames = member.ear.frames.load(Ordering::Relaxed);
                    let gaps = member.ear.gaps.load(Ordering::Relaxed);
                    all.frames += frames;
                    all.gaps += gaps;
                    all.silent_rooms += u64::from(gaps == frames);
                }
                println!("{}", serde_json::to_string(&all).expect("JSON"));
            }
            _ => println!("ready"),
        }
    }
    for member in &members {
        let _ = member.room.close().await;
    }
}

impl Member {
    async fn join(url: &str, room: &str, side: Side, source: NativeAudioSource) -> Self {
        let identity = match side {
            Side::Agent => "agent",
            Side::Caller => "caller",
        };
        let token = LiveKit::token(room, identity);
        let (room, mut events) =
            Room::connect(url, &token, RoomOptions::default()).await.expect("a room");
        let ear = Arc::new(Ear::default());
        let listening = ear.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let RoomEvent::TrackSubscribed { track: RemoteTrack::Audio(track), .. } = event {
                    let open = match side {
                        Side::Agent => NativeAudioStream::unpaced,
                        Side::Caller => NativeAudioStream::new,
                    };
                    let stream = open(track.rtc_track(), 16_000, 1);
                    tokio::spawn(listen(stream, listening.clone(), side));
                }
            }
        });
        publish(&room, source).await;
        Self { room, ear }
    }
}

pub async fn publish(room: &Room, source: NativeAudioSource) {
    let track = LocalAudioTrack::create_audio_track("voice", RtcAudioSource::Native(source));
    let options = antiphon::room::join::voice_options();
    room.local_participant()
        .publish_track(LocalTrack::Audio(track), options)
        .await
        .expect("a published voice");
}

/// A source that speaks without end.
pub fn speak(rate: u32, number: usize) -> NativeAudioSource {
    let source = NativeAudioSource::new(AudioSourceOptions::default(), rate, 1, 100);
    let speaking = source.clone();
    let samples = voice::synthesise(rate, number as u32);
    tokio::spawn(async move {
        for chunk in samples.chunks_exact(rate as usize / 100).cycle() {
            let frame = AudioFrame {
                data: chunk.into(),
                sample_rate: rate,
                num_channels: 1,
                samples_per_channel: chunk.len() as u32,
            };
            if speaking.capture_frame(&frame).await.is_err() {
                return;
            }
        }
    });
    source
}

async fn listen(mut stream: NativeAudioStream, ear: Arc<Ear>, side: Side) {
    let mut detector =
        VoiceDetector::new(VadConfig::default()).expect("a detector with the defaults");
    while let Some(frame) = stream.next().await {
        let loud = dbfs(&frame.data) > GAP;
        if side == Side::Agent {
            detector.push(&frame.data, |_, _| ());
        }
        if loud {
            ear.subscribed.store(true, Ordering::Relaxed);
        }
        ear.frames.fetch_add(1, Ordering::Relaxed);
        ear.gaps.fetch_add(u64::from(!loud), Ordering::Relaxed);
    }
}

/// How long a join may take.
pub const JOIN: Duration = Duration::from_secs(20);
