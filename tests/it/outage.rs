//! UDP fails under a call, and everything else goes on. In real time: the clocks are the server's.

use std::{f64::consts::TAU, time::Duration};

use futures_util::StreamExt;
use livekit::{
    options::TrackPublishOptions,
    prelude::{
        LocalAudioTrack, LocalTrack, RemoteTrack, Room, RoomEvent, RoomOptions, TrackSource,
    },
    webrtc::{
        audio_frame::AudioFrame,
        audio_source::{AudioSourceOptions, RtcAudioSource, native::NativeAudioSource},
        audio_stream::native::NativeAudioStream,
    },
};
use tokio::sync::mpsc;

use crate::support::{livekit::LiveKit, within};

const RATE: u32 = 16_000;
const HZ: f64 = 440.0;
/// How long UDP is away.
const OUTAGE: Duration = Duration::from_secs(22);
/// When sound is back at the latest, from the outage's start.
const BACK_WITHIN: Duration = Duration::from_secs(40);
/// What was on its way when UDP went, concealment included, is over after this.
const ECHO: Duration = Duration::from_secs(3);

async fn hum(source: NativeAudioSource) {
    let mut at = 0_u64;
    loop {
        let samples: Vec<i16> = (at..at + 160)
            .map(|i| (f64::sin(i as f64 * HZ * TAU / f64::from(RATE)) * 8_000.0) as i16)
            .collect();
        at += 160;
        let frame = AudioFrame {
            data: samples.into(),
            sample_rate: RATE,
            num_channels: 1,
            samples_per_channel: 160,
        };
        if source.capture_frame(&frame).await.is_err() {
            return;
        }
    }
}

/// Share of the energy that is at [`HZ`].
fn share(samples: &[i16]) -> f64 {
    let (mut re, mut im, mut all) = (0.0, 0.0, 0.0);
    for (i, sample) in samples.iter().enumerate() {
        let (s, phase) = (f64::from(*sample), i as f64 * HZ * TAU / f64::from(RATE));
        re += s * phase.cos();
        im += s * phase.sin();
        all += s * s;
    }
    if all == 0.0 { 0.0 } else { 2.0 * (re * re + im * im) / (all * samples.len() as f64) }
}

/// Waits for half a second in a row that is nothing but the tone.
async fn tone(stream: &mut NativeAudioStream) {
    let (mut heard, half) = (Vec::new(), RATE as usize / 2);
    while let Some(frame) = stream.next().await {
        heard.extend_from_slice(&frame.data);
        if heard.len() >= half {
            if share(&heard[heard.len() - half..]) > 0.9 {
                return;
            }
            heard.drain(..heard.len() - half);
        }
    }
    panic!("the stream ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_two_seconds_without_udp_end_no_call_and_sound_is_back_within_forty() {
    let livekit = LiveKit::start().await;
    let join = async |who: &str| {
        let token = LiveKit::token("outage", who);
        within("joining", Room::connect(&livekit.url, &token, RoomOptions::default()))
            .await
            .expect("a room")
    };
    let (speaker, mut speaker_events) = join("speaker").await;
    let source = NativeAudioSource::new(AudioSourceOptions::default(), RATE, 1, 100);
    let track = LocalAudioTrack::create_audio_track("mic", RtcAudioSource::Native(source.clone()));
    let options = TrackPublishOptions { source: TrackSource::Microphone, ..Default::default() };
    speaker
        .local_participant()
        .publish_track(LocalTrack::Audio(track), options)
        .await
        .expect("a track");
    tokio::spawn(hum(source));

    let (_listener, mut listener_events) = join("listener").await;
    let (streams, mut tracks) = mpsc::channel(8);
    let (ends, mut ended) = mpsc::channel(8);
    let listener_ends = ends.clone();
    tokio::spawn(async move {
        while let Some(event) = listener_events.recv().await {
            match event {
                RoomEvent::TrackSubscribed { track: RemoteTrack::Audio(track), .. } => {
                    let stream = NativeAudioStream::new(track.rtc_track(), RATE as i32, 1);
                    let _ = streams.try_send(stream);
                }
                RoomEvent::Disconnected { reason } => {
                    let _ = listener_ends.try_send(format!("listener: {reason:?}"));
                }
                _ => {}
            }
        }
    });
    tokio::spawn(async move {
        while let Some(event) = speaker_events.recv().await {
            if let RoomEvent::Disconnected { reason } = event {
                let _ = ends.try_send(format!("speaker: {reason:?}"));
            }
        }
    });
    let mut stream = within("the track", tracks.recv()).await.expect("a track");
    within("the tone", tone(&mut stream)).await;

    libwebrtc::testing::block_udp(Some(livekit.udp_port));
    let start = antiphon::clock::now();
    let outage = async {
        tokio::time::sleep(OUTAGE).await;
        libwebrtc::testing::block_udp(None);
        std::future::pending::<()>().await;
    };
    let back = async {
        tokio::time::sleep(ECHO).await;
        // A full reconnection would subscribe anew.
        loop {
            tokio::select! {
                () = tone(&mut stream) => break,
                Some(newer) = tracks.recv() => stream = newer,
            }
        }
    };
    tokio::select! {
        () = back => {}
        () = outage => {}
        () = tokio::time::sleep(BACK_WITHIN) => {
            panic!("no sound within {} s", BACK_WITHIN.as_secs());
        }
    }
    let silent = start.elapsed();
    libwebrtc::testing::block_udp(None);
    println!("sound was back {:.1} s after UDP went", silent.as_secs_f64());
    assert!(ended.try_recv().is_err(), "the room was kept");
}
