//! What a call costs, counted: wake-ups of the drivers. It has a process of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failure in a helper fails the test that calls it"
)]

use std::time::Duration;

use libwebrtc::audio_source::native::NativeAudioSource;
use libwebrtc::audio_stream::native::NativeAudioStream;
use libwebrtc::peer_connection_factory::native::PeerConnectionFactoryExt;
use libwebrtc::prelude::*;
use libwebrtc::session_description::{SdpType, SessionDescription};
use libwebrtc::testing;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt;

const BOUND: Duration = Duration::from_secs(10);
/// Heard while turns are counted.
const FRAMES: usize = 400;
/// Of the drivers of both connections: the listener's wakes for each packet, and both for checks,
/// reports and time-outs.
const TURNS_A_PACKET: u64 = 2;

async fn negotiate(from: &PeerConnection, to: &PeerConnection) {
    let offer = from.create_offer(OfferOptions::default()).await.unwrap();
    from.set_local_description(offer.clone()).await.unwrap();
    to.set_remote_description(offer).await.unwrap();
    let answer = to.create_answer(AnswerOptions::default()).await.unwrap();
    to.set_local_description(answer.clone()).await.unwrap();
    // As livekit does by default: silence is then sent seldom.
    let text = answer.to_string().replace("useinbandfec=1", "useinbandfec=1;usedtx=1");
    let answer = SessionDescription::parse(&text, SdpType::Answer).unwrap();
    from.set_remote_description(answer).await.unwrap();
}

/// Lets so many frames of 10 ms be heard.
async fn hear(stream: &mut NativeAudioStream, frames: usize) {
    for _ in 0..frames {
        timeout(BOUND, stream.next()).await.expect("a frame in time").expect("not the end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_wakes_for_its_packets_and_for_little_else() {
    let factory = PeerConnectionFactory::default();
    let connect = || factory.create_peer_connection(RtcConfiguration::default()).unwrap();
    let (alice, bob) = (connect(), connect());
    let (track_tx, mut tracks) = mpsc::channel(8);
    bob.on_track(Some(Box::new(move |event| {
        if let MediaStreamTrack::Audio(track) = event.track {
            track_tx.try_send(track).unwrap();
        }
    })));
    let source = NativeAudioSource::new(AudioSourceOptions::default(), 48_000, 1, 100);
    let track = factory.create_audio_track("mic", source.clone());
    alice.add_track(track.into(), &["alice"]).unwrap();
    negotiate(&alice, &bob).await;
    let heard = timeout(BOUND, tracks.recv()).await.unwrap().unwrap();
    tokio::spawn(async move {
        let mut at = 0_u32;
        loop {
            let mut frame = AudioFrame::new(48_000, 1, 480);
            for sample in frame.data.to_mut() {
                at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *sample = (at >> 20) as i16;
            }
            source.capture_frame(&frame).await.unwrap();
        }
    });
    let mut stream = NativeAudioStream::new(heard, 48_000, 1);
    // What connecting takes, and the first time-outs, are over by then.
    hear(&mut stream, 200).await;
    let before = testing::loop_turns();
    hear(&mut stream, FRAMES).await;
    let turns = testing::loop_turns() - before;
    let packets = FRAMES as u64 / 2;
    println!("{turns} turns of two connections for {packets} packets");
    assert!(turns <= TURNS_A_PACKET * packets, "{turns} turns for {packets} packets");
}
