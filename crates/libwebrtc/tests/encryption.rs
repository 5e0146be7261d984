//! An encrypted call of two peer connections on loopback. Alone in its process: while one of its
//! rooms asks for encryption, new senders wait for their cryptors.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failure in a helper fails the test that calls it"
)]

use std::f64::consts::TAU;
use std::time::Duration;

use libwebrtc::audio_source::native::NativeAudioSource;
use libwebrtc::audio_stream::native::NativeAudioStream;
use libwebrtc::native::frame_cryptor::{
    DataPacketCryptor, EncryptionAlgorithm, EncryptionState, FrameCryptor, KeyDerivationAlgorithm,
    KeyProvider, KeyProviderOptions,
};
use libwebrtc::peer_connection_factory::native::PeerConnectionFactoryExt;
use libwebrtc::prelude::*;
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::timeout;
use tokio_stream::StreamExt;

const RATE: u32 = 48_000;
const HZ: f64 = 440.0;
const BOUND: Duration = Duration::from_secs(10);

fn keys() -> KeyProvider {
    KeyProvider::new(KeyProviderOptions {
        shared_key: true,
        ratchet_window_size: 16,
        ratchet_salt: b"LKFrameEncryptionKey".to_vec(),
        failure_tolerance: -1,
        key_ring_size: 16,
        key_derivation_algorithm: KeyDerivationAlgorithm::PBKDF2,
    })
}

fn states(cryptor: &FrameCryptor) -> Receiver<EncryptionState> {
    let (to, from) = mpsc::channel(16);
    cryptor.on_state_change(Some(Box::new(move |participant, state| {
        assert_eq!(participant, "alice");
        to.try_send(state).unwrap();
    })));
    from
}

async fn next<T>(receiver: &mut Receiver<T>) -> T {
    timeout(BOUND, receiver.recv()).await.expect("in time").expect("not closed")
}

async fn play_tone(source: NativeAudioSource) {
    let mut at = 0_u64;
    loop {
        let mut frame = AudioFrame::new(RATE, 1, RATE / 100);
        for sample in frame.data.to_mut() {
            *sample = (f64::sin(at as f64 / f64::from(RATE) * HZ * TAU) * 8_000.0) as i16;
            at += 1;
        }
        source.capture_frame(&frame).await.unwrap();
    }
}

/// Share of the energy that is the tone's.
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

/// Half a second of what comes.
async fn half_a_second(stream: &mut NativeAudioStream) -> Vec<i16> {
    let mut heard = Vec::new();
    while heard.len() < RATE as usize / 2 {
        let frame = timeout(BOUND, stream.next()).await.expect("in time").expect("not ended");
        heard.extend_from_slice(&frame.data);
    }
    heard
}

async fn expect_tone(stream: &mut NativeAudioStream) {
    let listen = async { while share(&half_a_second(stream).await) < 0.9 {} };
    timeout(BOUND, listen).await.expect("the tone in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_heard_by_those_who_have_the_key_alone() {
    let (hers, his) = (keys(), keys());
    let room = DataPacketCryptor::new(EncryptionAlgorithm::AesGcm, hers.clone());
    let factory = PeerConnectionFactory::default();
    let alice = factory.create_peer_connection(RtcConfiguration::default()).unwrap();
    let bob = factory.create_peer_connection(RtcConfiguration::default()).unwrap();
    let (to, mut tracks) = mpsc::channel(1);
    bob.on_track(Some(Box::new(move |event| to.try_send(event).unwrap())));

    let source = NativeAudioSource::new(AudioSourceOptions::default(), RATE, 1, 100);
    let track = factory.create_audio_track("track", source.clone());
    let sender = alice.add_track(track.into(), &["alice"]).unwrap();
    let gcm = EncryptionAlgorithm::AesGcm;
    let hers_frames =
        FrameCryptor::new_for_rtp_sender(&factory, "alice".into(), gcm, hers.clone(), sender);
    hers_frames.set_enabled(true);
    let mut sent = states(&hers_frames);
    let playing = tokio::spawn(play_tone(source));

    let offer = alice.create_offer(OfferOptions::default()).await.unwrap();
    alice.set_local_description(offer.clone()).await.unwrap();
    bob.set_remote_description(offer).await.unwrap();
    let answer = bob.create_answer(AnswerOptions::default()).await.unwrap();
    bob.set_local_description(answer.clone()).await.unwrap();
    alice.set_remote_description(answer).await.unwrap();

    let event = next(&mut tracks).await;
    let MediaStreamTrack::Audio(track) = event.track else { panic!("no audio") };
    let mut stream = NativeAudioStream::new(track, RATE as i32, 1);
    assert_eq!(next(&mut sent).await, EncryptionState::MissingKey);
    hers.set_shared_key(0, b"secret".to_vec());
    assert_eq!(next(&mut sent).await, EncryptionState::Ok);

    let noise = half_a_second(&mut stream).await;
    assert!(share(&noise) < 0.1, "ciphertext is no tone: {}", share(&noise));

    let his_frames = FrameCryptor::new_for_rtp_receiver(
        &factory,
        "alice".into(),
        gcm,
        his.clone(),
        event.receiver,
    );
    his_frames.set_enabled(true);
    let mut received = states(&his_frames);
    assert_eq!(next(&mut received).await, EncryptionState::MissingKey);
    his.set_shared_key(0, b"secret".to_vec());
    assert_eq!(next(&mut received).await, EncryptionState::Ok);
    expect_tone(&mut stream).await;

    hers.ratchet_shared_key(0).unwrap();
    assert_eq!(next(&mut received).await, EncryptionState::KeyRatcheted);
    assert_eq!(next(&mut received).await, EncryptionState::Ok);
    expect_tone(&mut stream).await;

    let packet = room.encrypt("alice", 0, b"hello").unwrap();
    let his_room = DataPacketCryptor::new(gcm, his);
    assert_eq!(his_room.decrypt("alice", &packet).unwrap(), b"hello");
    playing.abort();
}
