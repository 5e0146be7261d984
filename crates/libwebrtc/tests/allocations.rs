//! What a packet allocates on its whole way through the engine: source, encoder, sockets of both
//! connections, jitter buffer, decoder, stream.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure in a helper fails the test that calls it"
)]
#![allow(unsafe_code, reason = "an allocator that counts is one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use libwebrtc::audio_source::native::NativeAudioSource;
use libwebrtc::audio_stream::native::NativeAudioStream;
use libwebrtc::peer_connection_factory::native::PeerConnectionFactoryExt;
use libwebrtc::prelude::*;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: all is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const BOUND: Duration = Duration::from_secs(20);
/// 20 ms each.
const PACKETS: u32 = 100;

/// Hands so many packets' worth of sound in at one end, and takes it out at the other.
async fn play(source: &NativeAudioSource, stream: &mut NativeAudioStream, packets: u32) {
    let mut frame = AudioFrame::new(24_000, 1, 480);
    for (at, sample) in frame.data.to_mut().iter_mut().enumerate() {
        *sample = if at % 48 < 24 { 4_000 } else { -4_000 };
    }
    for _ in 0..packets {
        source.capture_frame(&frame).await.unwrap();
        listen(stream, 1).await;
    }
}

/// Takes so many packets' worth of frames.
async fn listen(stream: &mut NativeAudioStream, packets: u32) {
    for _ in 0..packets * 2 {
        timeout(BOUND, stream.next()).await.expect("a frame in time").expect("not the end");
    }
}

/// Allocations a packet in the meantime.
async fn measure(what: impl Future<Output = ()>) -> f64 {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    what.await;
    (ALLOCATIONS.load(Ordering::Relaxed) - before) as f64 / f64::from(PACKETS)
}

#[tokio::test]
async fn a_packet_allocates_what_str0m_and_the_application_ask_for() {
    let factory = PeerConnectionFactory::default();
    let connect = || factory.create_peer_connection(RtcConfiguration::default()).unwrap();
    let (alice, bob) = (connect(), connect());
    let (tx, mut tracks) = mpsc::channel(1);
    bob.on_track(Some(Box::new(move |event| {
        if let MediaStreamTrack::Audio(track) = event.track {
            tx.try_send(track).unwrap();
        }
    })));
    let source = NativeAudioSource::new(AudioSourceOptions::default(), 24_000, 1, 100);
    let track = factory.create_audio_track("tone", source.clone());
    alice.add_track(track.clone().into(), &["stream"]).unwrap();
    let offer = alice.create_offer(OfferOptions::default()).await.unwrap();
    alice.set_local_description(offer.clone()).await.unwrap();
    bob.set_remote_description(offer).await.unwrap();
    let answer = bob.create_answer(AnswerOptions::default()).await.unwrap();
    bob.set_local_description(answer.clone()).await.unwrap();
    alice.set_remote_description(answer).await.unwrap();
    let heard = timeout(BOUND, tracks.recv()).await.expect("in time").expect("a track");
    let mut stream = NativeAudioStream::new(heard, 16_000, 1);

    play(&source, &mut stream, 50).await;
    let sounding = measure(play(&source, &mut stream, PACKETS)).await;
    // Half a second until a muted track thins out, then what there is without packets: frames for
    // the application, connectivity checks.
    track.set_enabled(false);
    listen(&mut stream, 25).await;
    let silent = measure(listen(&mut stream, PACKETS)).await;
    // Of 8.8 measured, 1 is the payload that str0m takes over and 2 are RED's (the payload around
    // it, and the one taken out of it again); the others are str0m's, most of them for
    // transport-wide feedback. The frames for the application are in both figures.
    let packet = sounding - silent;
    assert!(packet < 10.0, "{packet} allocations a packet beyond {silent} without any");
}
