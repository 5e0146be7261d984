//! LiveKit's own SDKs as the other side of a room: sound, data and text both ways, in clear and
//! encrypted, and the pictures of a video.

use std::{f64::consts::TAU, process::Stdio, time::Duration};

use futures_util::StreamExt;
use livekit::{
    DataPacket, E2eeOptions, SendTextOptions, StreamReader,
    e2ee::{
        EncryptionType,
        key_provider::{KeyProvider, KeyProviderOptions},
    },
    options::TrackPublishOptions,
    prelude::{
        LocalAudioTrack, LocalTrack, RemoteTrack, Room, RoomEvent, RoomOptions, TrackSource,
    },
    webrtc::{
        audio_frame::AudioFrame,
        audio_source::{AudioSourceOptions, RtcAudioSource, native::NativeAudioSource},
        audio_stream::native::NativeAudioStream,
        native::frame_cryptor::allow_clear_beside_encrypted,
        video_stream::keyframes::KeyFrameStream,
    },
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::mpsc::UnboundedReceiver,
};

use crate::support::{livekit::LiveKit, within};

const RATE: u32 = 48_000;
/// What the other side plays, and what we do.
const THEIR_HZ: f64 = 440.0;
const OUR_HZ: f64 = 600.0;
/// Of the energy of a quarter of a second, how much must be the tone's.
const CLEAN: f64 = 0.95;

/// A participant that runs on another SDK.
struct Peer {
    _process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    async fn python(livekit: &LiveKit, room: &str, key: &str, more: &[&str]) -> Self {
        let python = tool("ANTIPHON_TEST_PYTHON", "Python with LiveKit's SDK");
        Self::start(&python, &format!("{INTEROP}/peer.py"), livekit, room, key, more).await
    }

    async fn javascript(livekit: &LiveKit, room: &str, key: &str) -> Self {
        let script = tool("ANTIPHON_TEST_NODE_PEER", "a folder with LiveKit's SDK for Node");
        Self::start("node", &script, livekit, room, key, &[]).await
    }

    async fn start(
        program: &str,
        script: &str,
        livekit: &LiveKit,
        room: &str,
        key: &str,
        more: &[&str],
    ) -> Self {
        let mut process = Command::new(program)
            .arg(script)
            .args([livekit.url.as_str(), &LiveKit::token(room, "peer"), key])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the peer starts");
        let lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let mut peer = Self { _process: process, lines };
        peer.until("the peer joining", |event| event["event"] == "joined").await;
        peer
    }

    async fn until(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) {
        within(what, async {
            loop {
                let line = self.lines.next_line().await.expect("what the peer says");
                let line = line.expect("the peer is still there");
                // Anything else is a library's chatter.
                let event: Value = serde_json::from_str(&line).unwrap_or_default();
                if is_it(&event) {
                    return;
                }
            }
        })
        .await;
    }

    async fn hears_us(&mut self) {
        let clean = |event: &Value| event["share"].as_f64().is_some_and(|share| share > CLEAN);
        self.until("the peer hearing our tone", clean).await;
    }
}

const INTEROP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/interop");

fn tool(variable: &str, what: &str) -> String {
    let missing = format!("{variable} names no {what}: run `cargo xtask test`, which installs it");
    std::env::var(variable).expect(&missing)
}

/// We, on this engine.
struct Us {
    room: Room,
    events: UnboundedReceiver<RoomEvent>,
    playing: tokio::task::JoinHandle<()>,
}

impl Drop for Us {
    fn drop(&mut self) {
        self.playing.abort();
    }
}

impl Us {
    async fn join(livekit: &LiveKit, room: &str, key: &str) -> Self {
        // These tests run side by side, and not all of their rooms are encrypted.
        allow_clear_beside_encrypted(true);
        let encryption = (!key.is_empty()).then(|| E2eeOptions {
            encryption_type: EncryptionType::Gcm,
            key_provider: KeyProvider::with_shared_key(
                KeyProviderOptions::default(),
                key.as_bytes().to_vec(),
            ),
        });
        let mut options = RoomOptions::default();
        options.encryption = encryption;
        let token = LiveKit::token(room, "us");
        let (room, events) = Room::connect(&livekit.url, &token, options).await.expect("a room");
        let source = NativeAudioSource::new(AudioSourceOptions::default(), RATE, 1, 100);
        let native = RtcAudioSource::Native(source.clone());
        let track = LocalTrack::Audio(LocalAudioTrack::create_audio_track("tone", native));
        let options = TrackPublishOptions { source: TrackSource::Microphone, ..Default::default() };
        room.local_participant().publish_track(track, options).await.expect("our tone");
        Self { room, events, playing: tokio::spawn(play(source)) }
    }

    /// The first thing of its kind that happens.
    async fn first<T>(&mut self, what: &str, find: impl Fn(RoomEvent) -> Option<T>) -> T {
        within(what, async {
            loop {
                let event = self.events.recv().await.expect("the room's events");
                if let Some(found) = find(event) {
                    return found;
                }
            }
        })
        .await
    }
}

async fn play(source: NativeAudioSource) {
    let mut at = 0_u64;
    loop {
        let mut frame = AudioFrame::new(RATE, 1, RATE / 100);
        for sample in frame.data.to_mut() {
            *sample = (f64::sin(at as f64 / f64::from(RATE) * OUR_HZ * TAU) * 8_000.0) as i16;
            at += 1;
        }
        source.capture_frame(&frame).await.expect("our tone");
    }
}

fn share(samples: &[i16]) -> f64 {
    let (mut re, mut im, mut all) = (0.0, 0.0, 0.0);
    for (i, sample) in samples.iter().enumerate() {
        let (s, phase) = (f64::from(*sample), i as f64 * THEIR_HZ * TAU / f64::from(RATE));
        re += s * phase.cos();
        im += s * phase.sin();
        all += s * s;
    }
    if all == 0.0 { 0.0 } else { 2.0 * (re * re + im * im) / (all * samples.len() as f64) }
}

async fn hear_them(track: livekit::prelude::RemoteAudioTrack) {
    let mut stream = NativeAudioStream::new(track.rtc_track(), RATE as i32, 1);
    within("their tone", async {
        let mut heard = Vec::new();
        loop {
            heard.extend_from_slice(&stream.next().await.expect("their track").data);
            if heard.len() >= RATE as usize / 4 {
                if share(&heard) > CLEAN {
                    return;
                }
                heard.clear();
            }
        }
    })
    .await;
}

/// Sound, data and text both ways.
async fn talk(livekit: &LiveKit, mut peer: Peer, room: &str, key: &str) {
    let mut us = Us::join(livekit, room, key).await;
    let track = us
        .first("their track", |event| match event {
            RoomEvent::TrackSubscribed { track: RemoteTrack::Audio(track), .. } => Some(track),
            _ => None,
        })
        .await;
    hear_them(track).await;
    peer.hears_us().await;

    let ours = us.room.local_participant();
    let packet = DataPacket {
        payload: b"some data".to_vec(),
        topic: Some("ping".into()),
        reliable: true,
        ..Default::default()
    };
    ours.publish_data(packet).await.expect("our data");
    let data = us.first("their data", |event| match event {
        RoomEvent::DataReceived { payload, topic: Some(topic), .. } if topic == "pong" => {
            Some(payload)
        }
        _ => None,
    });
    assert_eq!(*data.await, b"some data");

    let text = "some text".repeat(5_000);
    ours.send_text(&text, SendTextOptions::new_with_topic("ping")).await.expect("our text");
    let reader = us.first("their text", |event| match event {
        RoomEvent::TextStreamOpened { reader, topic, .. } if topic == "pong" => reader.take(),
        _ => None,
    });
    let answer = within("their text", reader.await.read_all()).await.expect("their text");
    assert!(answer == text, "{} bytes came back of {}", answer.len(), text.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_and_we_understand_each_other() {
    let livekit = LiveKit::start().await;
    let peer = Peer::python(&livekit, "room", "", &[]).await;
    talk(&livekit, peer, "room", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_and_we_understand_each_other_encrypted() {
    let livekit = LiveKit::start().await;
    let peer = Peer::python(&livekit, "room", "a shared key", &[]).await;
    talk(&livekit, peer, "room", "a shared key").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_sdk_and_we_understand_each_other() {
    let livekit = LiveKit::start().await;
    let peer = Peer::javascript(&livekit, "room", "").await;
    talk(&livekit, peer, "room", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_sdk_and_we_understand_each_other_encrypted() {
    let livekit = LiveKit::start().await;
    let peer = Peer::javascript(&livekit, "room", "a shared key").await;
    talk(&livekit, peer, "room", "a shared key").await;
}

/// Pictures of a video come at the rate that was asked for.
async fn watch(key: &str) {
    let livekit = LiveKit::start().await;
    let _peer = Peer::python(&livekit, "room", key, &["video"]).await;
    let mut us = Us::join(&livekit, "room", key).await;
    let track = us
        .first("their video", |event| match event {
            RoomEvent::TrackSubscribed { track: RemoteTrack::Video(track), .. } => Some(track),
            _ => None,
        })
        .await;
    let interval = Duration::from_millis(1_500);
    let mut pictures = KeyFrameStream::new(&track.rtc_track(), interval).expect("a remote track");
    let mut last = None;
    for _ in 0..3 {
        let picture = within("a picture", pictures.next()).await.expect("their video");
        assert_eq!((picture.width, picture.height), (320, 180));
        let webp = picture.to_webp();
        assert!(webp.starts_with(b"RIFF") && webp.len() > picture.data.len());
        if let Ok(folder) = std::env::var("ANTIPHON_TEST_PICTURES") {
            std::fs::write(format!("{folder}/picture{}.webp", key.len()), &webp).expect("a file");
        }
        if let Some(last) = last.replace(picture.arrival) {
            assert!(picture.arrival - last >= interval);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_video_gives_its_pictures() {
    watch("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_video_gives_its_pictures() {
    watch("a shared key").await;
}
