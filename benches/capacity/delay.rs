//! Audio one way through the server: from `capture_frame` to the frame that a listener gets.

use std::time::{Duration, Instant};

use ::livekit::{
    prelude::{RemoteTrack, Room, RoomEvent, RoomOptions},
    webrtc::{
        audio_frame::AudioFrame, audio_source::native::NativeAudioSource,
        audio_stream::native::NativeAudioStream,
    },
};
use antiphon::{audio::level::dbfs, clock};
use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{member, support::livekit::LiveKit, voice};

const RATE: u32 = 48_000;
const ROOM: &str = "delay";
/// A burst is this many frames of 10 ms; so many silent ones lie between two.
const BURST: usize = 10;
const SILENCE: usize = 47;
const LOUD: f32 = -45.0;

#[derive(Debug, Serialize)]
pub struct Report {
    bursts: usize,
    p50_ms: f64,
    p95_ms: f64,
    least_ms: f64,
    most_ms: f64,
}

pub async fn measure(server: &LiveKit, bursts: usize) -> Report {
    antiphon::room::warm_up::warm_up().await;
    antiphon::room::signal::install();
    let (speaker, _events) = connect(server, "speaker").await;
    let (_listener, mut events) = connect(server, "listener").await;
    let source = NativeAudioSource::new(Default::default(), RATE, 1, 100);
    member::publish(&speaker, source.clone()).await;
    let track = loop {
        let event = events.recv().await.expect("the listener stays");
        if let RoomEvent::TrackSubscribed { track: RemoteTrack::Audio(track), .. } = event {
            break track;
        }
    };
    let stream = NativeAudioStream::new(track.rtc_track(), 16_000, 1);
    let (heard_sender, mut heard) = mpsc::channel(16);
    tokio::spawn(listen(stream, heard_sender));
    let mut delays = Vec::new();
    let loud = voice::synthesise(RATE, 1);
    // The first ones find the jitter buffer and the path as a call's beginning does.
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    for number in 0..bursts + 5 {
        // A gap that is no multiple of a packet's 20 ms: all phases come to pass.
        for _ in 0..SILENCE + number % 2 {
            pace.tick().await;
            capture(&source, &[0; RATE as usize / 100]).await;
        }
        while heard.try_recv().is_ok() {}
        let mut said = None;
        for chunk in loud.chunks_exact(RATE as usize / 100).take(BURST) {
            pace.tick().await;
            said = said.or_else(|| Some(clock::now()));
            capture(&source, chunk).await;
        }
        let at = tokio::time::timeout(Duration::from_secs(1), heard.recv()).await;
        if let (Ok(Some(at)), Some(said), true) = (at, said, number >= 5) {
            delays.push((at - said).as_secs_f64() * 1_000.0);
        }
    }
    delays.sort_by(f64::total_cmp);
    let rank = |share| rank(&delays, share);
    let report = Report {
        bursts: delays.len(),
        p50_ms: rank(0.5),
        p95_ms: rank(0.95),
        least_ms: rank(0.0),
        most_ms: rank(1.0),
    };
    println!(
        "one way, {} of {bursts} bursts heard: p50 {:.1} ms, p95 {:.1}, {:.1} to {:.1}",
        report.bursts, report.p50_ms, report.p95_ms, report.least_ms, report.most_ms
    );
    report
}

/// The quantile of sorted values; NaN of none.
pub fn rank(sorted: &[f64], share: f64) -> f64 {
    let index = ((sorted.len() as f64 - 1.0) * share).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

async fn connect(server: &LiveKit, name: &str) -> (Room, mpsc::UnboundedReceiver<RoomEvent>) {
    let token = LiveKit::token(ROOM, name);
    Room::connect(&server.url, &token, RoomOptions::default()).await.expect("the room")
}

async fn capture(source: &NativeAudioSource, samples: &[i16]) {
    let frame = AudioFrame {
        data: samples.into(),
        sample_rate: RATE,
        num_channels: 1,
        samples_per_channel: samples.len() as u32,
    };
    source.capture_frame(&frame).await.expect("a captured frame");
}

/// Tells when each burst begins.
async fn listen(mut stream: NativeAudioStream, heard: mpsc::Sender<Instant>) {
    let mut silent = 10;
    while let Some(frame) = stream.next().await {
        if dbfs(&frame.data) > LOUD {
            if silent >= 10 {
                let _ = heard.try_send(clock::now());
            }
            silent = 0;
        } else {
            silent += 1;
        }
    }
}
