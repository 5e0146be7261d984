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
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

const BOUND: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(4);

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

/// CPU of this process so far, in ticks of 10 ms.
fn cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Turns of the loops of both connections, a second.
async fn turns(what: &str) -> f64 {
    sleep(Duration::from_secs(2)).await;
    let (before, ticks) = (testing::loop_turns(), cpu());
    sleep(LOOK).await;
    let a_second = (testing::loop_turns() - before) as f64 / LOOK.as_secs_f64();
    let percent = (cpu() - ticks) as f64 / LOOK.as_secs_f64();
    println!("{what}: {a_second:.1} turns/s of two connections, {percent:.1} % of a core");
    a_second
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
    timeout(BOUND, async {
        while alice.connection_state() != PeerConnectionState::Connected
            || bob.connection_state() != PeerConnectionState::Connected
        {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    let idle = turns("idle").await;
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
    tokio::spawn(async move { while stream.next().await.is_some() {} });
    let talking = turns("one way audio").await;
    // 50 packets a second leave one and come to the other.
    assert!(idle <= 40.0, "{idle} turns a second of two idle connections");
    assert!(talking - idle <= 150.0, "{talking} turns a second for 50 packets");
}
