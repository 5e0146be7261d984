//! Two peer connections of one process on loopback, without any server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failure in a helper fails the test that calls it"
)]

use std::f64::consts::TAU;
use std::time::Duration;

use libwebrtc::audio_source::native::NativeAudioSource;
use libwebrtc::audio_stream::native::{NativeAudioStream, NativeAudioStreamOptions};
use libwebrtc::peer_connection_factory::native::PeerConnectionFactoryExt;
use libwebrtc::prelude::*;
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::timeout;
use tokio_stream::StreamExt;

const BOUND: Duration = Duration::from_secs(10);

struct Side {
    connection: PeerConnection,
    channels: Receiver<DataChannel>,
    tracks: Receiver<RtcAudioTrack>,
    states: Receiver<PeerConnectionState>,
}

fn side(factory: &PeerConnectionFactory) -> Side {
    let connection = factory.create_peer_connection(RtcConfiguration::default()).unwrap();
    let (channel_tx, channels) = mpsc::channel(8);
    let (track_tx, tracks) = mpsc::channel(8);
    let (state_tx, states) = mpsc::channel(8);
    connection.on_data_channel(Some(Box::new(move |channel| {
        channel_tx.try_send(channel).unwrap();
    })));
    connection.on_track(Some(Box::new(move |event| {
        if let MediaStreamTrack::Audio(track) = event.track {
            track_tx.try_send(track).unwrap();
        }
    })));
    connection.on_connection_state_change(Some(Box::new(move |state| {
        // Nobody listens any more when a test has ended.
        let _ = state_tx.try_send(state);
    })));
    Side { connection, channels, tracks, states }
}

async fn next<T>(receiver: &mut Receiver<T>) -> T {
    timeout(BOUND, receiver.recv()).await.expect("in time").expect("not closed")
}

async fn negotiate(from: &PeerConnection, to: &PeerConnection) {
    let offer = from.create_offer(OfferOptions::default()).await.unwrap();
    from.set_local_description(offer.clone()).await.unwrap();
    to.set_remote_description(offer).await.unwrap();
    let answer = to.create_answer(AnswerOptions::default()).await.unwrap();
    to.set_local_description(answer.clone()).await.unwrap();
    from.set_remote_description(answer).await.unwrap();
}

fn audio_track(factory: &PeerConnectionFactory, rate: u32) -> (NativeAudioSource, RtcAudioTrack) {
    let source = NativeAudioSource::new(AudioSourceOptions::default(), rate, 1, 100);
    let id = libwebrtc::native::create_random_uuid();
    let track = factory.create_audio_track(&id, source.clone());
    (source, track)
}

/// Plays a tone for as long as the task lives.
fn play_tone(source: NativeAudioSource, hz: f64) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let rate = source.sample_rate();
        let mut at = 0_u64;
        loop {
            let mut frame = AudioFrame::new(rate, 1, rate / 100);
            for sample in frame.data.to_mut() {
                let t = at as f64 / f64::from(rate);
                *sample = (f64::sin(t * hz * TAU) * 8_000.0) as i16;
                at += 1;
            }
            source.capture_frame(&frame).await.unwrap();
        }
    })
}

/// Share of the energy that is at `hz`.
fn share_at(samples: &[i16], rate: u32, hz: f64) -> f64 {
    let (mut re, mut im, mut all) = (0.0, 0.0, 0.0);
    for (i, sample) in samples.iter().enumerate() {
        let (s, phase) = (f64::from(*sample), i as f64 * hz * TAU / f64::from(rate));
        re += s * phase.cos();
        im += s * phase.sin();
        all += s * s;
    }
    if all == 0.0 { 0.0 } else { 2.0 * (re * re + im * im) / (all * samples.len() as f64) }
}

/// Listens until half a second in a row is nearly nothing but the tone.
async fn expect_tone(track: RtcAudioTrack, rate: u32, hz: f64) {
    let mut stream = NativeAudioStream::new(track, rate as i32, 1);
    let mut heard = Vec::new();
    let listen = async {
        while let Some(frame) = stream.next().await {
            assert_eq!(frame.sample_rate, rate);
            assert_eq!(frame.data.len(), rate as usize / 100);
            heard.extend_from_slice(&frame.data);
            let half = rate as usize / 2;
            if heard.len() >= half && share_at(&heard[heard.len() - half..], rate, hz) > 0.9 {
                return;
            }
        }
        panic!("the stream ended");
    };
    timeout(BOUND, listen).await.expect("the tone in time");
}

#[tokio::test]
async fn messages_both_ways_and_goodbye() {
    let factory = PeerConnectionFactory::default();
    let (mut alice, mut bob) = (side(&factory), side(&factory));
    let ours = alice.connection.create_data_channel("chat", DataChannelInit::default()).unwrap();
    let (tx, mut at_alice) = mpsc::channel(8);
    ours.on_message(Some(Box::new(move |m| tx.try_send(m.data.to_vec()).unwrap())));
    let (open_tx, mut open) = mpsc::channel(8);
    ours.on_state_change(Some(Box::new(move |state| open_tx.try_send(state).unwrap())));
    negotiate(&alice.connection, &bob.connection).await;

    let theirs = next(&mut bob.channels).await;
    let (tx, mut at_bob) = mpsc::channel(8);
    theirs.on_message(Some(Box::new(move |m| tx.try_send(m.data.to_vec()).unwrap())));
    assert_eq!(theirs.label(), "chat");
    assert_eq!(next(&mut open).await, DataChannelState::Open);
    let (sent_tx, mut sent) = mpsc::channel(8);
    ours.on_buffered_amount_change(Some(Box::new(move |n| sent_tx.try_send(n).unwrap())));
    ours.send(b"hello", true).unwrap();
    assert_eq!(next(&mut at_bob).await, b"hello");
    assert_eq!(next(&mut sent).await, 5);
    theirs.send(b"hello yourself", true).unwrap();
    assert_eq!(next(&mut at_alice).await, b"hello yourself");

    alice.connection.close();
    assert_eq!(next(&mut open).await, DataChannelState::Closed);
    assert!(ours.send(b"too late", true).is_err());
    expect_goodbye(&mut bob).await;
    while next(&mut alice.states).await != PeerConnectionState::Closed {}
}

/// Expects to be told that the other side is gone: its silence alone shows after 6 s.
async fn expect_goodbye(side: &mut Side) {
    let told = async {
        loop {
            match next(&mut side.states).await {
                PeerConnectionState::Disconnected => break,
                PeerConnectionState::Connecting | PeerConnectionState::Connected => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    };
    timeout(Duration::from_secs(3), told).await.expect("a goodbye");
}

/// A call in which one side's tone is heard by the other, which goes on listening.
struct OneWay {
    alice: Side,
    sender: RtpSender,
    playing: tokio::task::JoinHandle<()>,
    bob: Side,
    at_bob: RtcAudioTrack,
    _listening: NativeAudioStream,
}

impl Drop for OneWay {
    fn drop(&mut self) {
        self.playing.abort();
    }
}

async fn tone_one_way() -> OneWay {
    let factory = PeerConnectionFactory::default();
    let (alice, mut bob) = (side(&factory), side(&factory));
    let (source, track) = audio_track(&factory, 24_000);
    let sender = alice.connection.add_track(track.into(), &["alice"]).unwrap();
    negotiate(&alice.connection, &bob.connection).await;
    let playing = play_tone(source, 440.0);
    let at_bob = next(&mut bob.tracks).await;
    let listening = NativeAudioStream::new(at_bob.clone(), 16_000, 1);
    expect_tone(at_bob.clone(), 16_000, 440.0).await;
    OneWay { alice, sender, playing, bob, at_bob, _listening: listening }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_track_that_is_set_again_goes_on() {
    let call = tone_one_way().await;
    call.sender.set_track(call.sender.track()).unwrap();
    expect_tone(call.at_bob.clone(), 16_000, 440.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_of_another_connection_takes_no_track_back() {
    let call = tone_one_way().await;
    let factory = PeerConnectionFactory::default();
    let before = side(&factory);
    let (_, track) = audio_track(&factory, 24_000);
    let stale = before.connection.add_track(track.into(), &["before"]).unwrap();
    assert!(call.alice.connection.remove_track(stale).is_err());
    negotiate(&call.alice.connection, &call.bob.connection).await;
    expect_tone(call.at_bob.clone(), 16_000, 440.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_listens_says_goodbye() {
    let mut call = tone_one_way().await;
    call.bob.connection.close();
    expect_goodbye(&mut call.alice).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tones_both_ways_in_one_negotiation() {
    let factory = PeerConnectionFactory::default();
    let (mut alice, mut bob) = (side(&factory), side(&factory));
    let (alice_source, alice_track) = audio_track(&factory, 24_000);
    let (bob_source, bob_track) = audio_track(&factory, 48_000);
    alice.connection.add_track(alice_track.into(), &["alice"]).unwrap();
    bob.connection.add_track(bob_track.into(), &["bob"]).unwrap();
    negotiate(&alice.connection, &bob.connection).await;
    let playing = [play_tone(alice_source, 440.0), play_tone(bob_source, 600.0)];
    let (at_bob, at_alice) = (next(&mut bob.tracks).await, next(&mut alice.tracks).await);
    tokio::join!(expect_tone(at_bob, 16_000, 440.0), expect_tone(at_alice, 48_000, 600.0));
    for task in playing {
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_whole_and_soon_to_a_connection_that_is_listened_to() {
    const PIECE: usize = 15_000;
    const PIECES: usize = 60;
    let factory = PeerConnectionFactory::default();
    let (alice, mut bob) = (side(&factory), side(&factory));
    let ours = alice.connection.create_data_channel("file", DataChannelInit::default()).unwrap();
    let (source, track) = audio_track(&factory, 16_000);
    alice.connection.add_track(track.into(), &["alice"]).unwrap();
    negotiate(&alice.connection, &bob.connection).await;
    let theirs = next(&mut bob.channels).await;
    let (tx, mut at_bob) = mpsc::channel(PIECES);
    theirs.on_message(Some(Box::new(move |m| tx.try_send(m.data.to_vec()).unwrap())));
    let playing = play_tone(source, 500.0);
    let mut stream = NativeAudioStream::new(next(&mut bob.tracks).await, 16_000, 1);
    for _ in 0..50 {
        next_frame(&mut stream).await;
    }
    let hearing = tokio::spawn(async move { while stream.next().await.is_some() {} });
    for piece in 0..PIECES {
        ours.send(&vec![piece as u8; PIECE], true).unwrap();
    }
    for piece in 0..PIECES {
        assert_eq!(next(&mut at_bob).await, vec![piece as u8; PIECE]);
    }
    playing.abort();
    hearing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_track_added_later_is_heard_and_ends_with_removal() {
    let factory = PeerConnectionFactory::default();
    let (alice, mut bob) = (side(&factory), side(&factory));
    alice.connection.create_data_channel("first", DataChannelInit::default()).unwrap();
    negotiate(&alice.connection, &bob.connection).await;
    next(&mut bob.channels).await;

    let (source, track) = audio_track(&factory, 16_000);
    let init = RtpTransceiverInit {
        direction: RtpTransceiverDirection::SendOnly,
        stream_ids: vec!["PA_x|TR_y".to_owned()],
        send_encodings: Vec::new(),
    };
    let transceiver = alice.connection.add_transceiver(track.into(), init).unwrap();
    negotiate(&alice.connection, &bob.connection).await;
    let playing = play_tone(source, 500.0);
    let heard = next(&mut bob.tracks).await;
    let receiver = &bob.connection.transceivers()[0].receiver();
    assert_eq!(receiver.stream_ids(), ["PA_x|TR_y"]);
    expect_tone(heard.clone(), 48_000, 500.0).await;

    let mut stream = NativeAudioStream::new(heard.clone(), 48_000, 1);
    alice.connection.remove_track(transceiver.sender()).unwrap();
    negotiate(&alice.connection, &bob.connection).await;
    let end = async { while stream.next().await.is_some() {} };
    timeout(BOUND, end).await.expect("the stream ends with the track");
    assert_eq!(heard.state(), RtcTrackState::Ended);
    playing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ice_restart_keeps_the_tone() {
    let factory = PeerConnectionFactory::default();
    let (alice, mut bob) = (side(&factory), side(&factory));
    let (source, track) = audio_track(&factory, 48_000);
    alice.connection.add_track(track.into(), &["a"]).unwrap();
    negotiate(&alice.connection, &bob.connection).await;
    let playing = play_tone(source, 500.0);
    let heard = next(&mut bob.tracks).await;
    expect_tone(heard.clone(), 48_000, 500.0).await;
    let before = alice.connection.current_local_description().unwrap().to_string();
    let restart = OfferOptions { ice_restart: true, ..OfferOptions::default() };
    let offer = alice.connection.create_offer(restart).await.unwrap();
    let ufrag = |text: &str| text.lines().find(|l| l.starts_with("a=ice-ufrag")).map(str::to_owned);
    assert_ne!(ufrag(&before), ufrag(&offer.to_string()));
    alice.connection.set_local_description(offer.clone()).await.unwrap();
    bob.connection.set_remote_description(offer).await.unwrap();
    let answer = bob.connection.create_answer(AnswerOptions::default()).await.unwrap();
    bob.connection.set_local_description(answer.clone()).await.unwrap();
    alice.connection.set_remote_description(answer).await.unwrap();
    expect_tone(heard, 48_000, 500.0).await;
    playing.abort();
}

#[tokio::test]
async fn what_is_not_there_says_so() {
    let factory = PeerConnectionFactory::default();
    let alice = side(&factory).connection;
    let init = RtpTransceiverInit {
        direction: RtpTransceiverDirection::SendOnly,
        stream_ids: Vec::new(),
        send_encodings: Vec::new(),
    };
    let device = factory.create_device_audio_track("mic");
    let error = alice.add_transceiver(device.into(), init.clone()).unwrap_err();
    assert!(error.message.contains("audio device"), "{error}");
    let camera = factory.create_video_track("cam", Default::default());
    let error = alice.add_transceiver(camera.into(), init).unwrap_err();
    assert!(error.message.contains("video"), "{error}");
    let source = NativeAudioSource::new(AudioSourceOptions::default(), 44_100, 1, 100);
    let error = source.capture_frame(&AudioFrame::new(44_100, 1, 441)).await.unwrap_err();
    assert!(error.message.contains("44100"), "{error}");
    assert!(!factory.acquire_platform_adm());
}

#[tokio::test]
async fn hostile_descriptions_are_errors() {
    let factory = PeerConnectionFactory::default();
    let alice = side(&factory).connection;
    for text in ["", "nonsense", "v=0\r\nm=audio 9 x\r\n", "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\n"] {
        let offer = SessionDescription::parse(text, SdpType::Offer).unwrap();
        assert!(alice.set_remote_description(offer).await.is_err(), "{text:?}");
    }
    let candidate = IceCandidate::parse("0", 0, "candidate:1 1 udp").unwrap();
    assert!(alice.add_ice_candidate(candidate).await.is_err());
    let end = IceCandidate::parse("0", 0, "").unwrap();
    alice.add_ice_candidate(end).await.unwrap();
}

#[tokio::test]
async fn a_full_queue_waits_and_clearing_frees_it() {
    let source = NativeAudioSource::new(AudioSourceOptions::default(), 48_000, 1, 100);
    let second = AudioFrame::new(48_000, 1, 48_000);
    let waiting = {
        let source = source.clone();
        let frame = second.clone();
        tokio::spawn(async move { source.capture_frame(&frame).await })
    };
    // One second does not fit into 100 ms: the capture is still at it after some pacing.
    assert!(
        timeout(Duration::from_millis(200), async {
            while !waiting.is_finished() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .is_err()
    );
    source.clear_buffer();
    timeout(BOUND, waiting).await.expect("clearing ends it").unwrap().unwrap();
}

/// On a runtime of one thread, which is then blocked: what was captured before still goes out, and
/// is heard, without a gap.
#[tokio::test]
async fn a_blocked_application_makes_no_gap() {
    let factory = PeerConnectionFactory::default();
    let (alice, mut bob) = (side(&factory), side(&factory));
    let source = NativeAudioSource::new(AudioSourceOptions::default(), 48_000, 1, 3_000);
    let track = factory.create_audio_track("tone", source.clone());
    alice.connection.add_track(track.into(), &["a"]).unwrap();
    negotiate(&alice.connection, &bob.connection).await;
    let heard = next(&mut bob.tracks).await;
    while next(&mut bob.states).await != PeerConnectionState::Connected {}
    let options = NativeAudioStreamOptions { queue_size_frames: Some(400) };
    let also_heard = heard.clone();
    let mut stream = NativeAudioStream::with_options(heard, 48_000, 1, options);

    let mut tone = AudioFrame::new(48_000, 1, 48_000 * 2);
    for (i, sample) in tone.data.to_mut().iter_mut().enumerate() {
        *sample = (f64::sin(i as f64 * 500.0 * TAU / 48_000.0) * 8_000.0) as i16;
    }
    source.capture_frame(&tone).await.unwrap();
    // This thread, the application's only one, does nothing until another listener, which is not
    // blocked, has heard a second and a half.
    let (heard_tx, blocked) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut other = NativeAudioStream::new(also_heard, 48_000, 1);
            for _ in 0..150 {
                next_frame(&mut other).await;
            }
        });
        heard_tx.send(()).unwrap();
    });
    blocked.recv_timeout(BOUND).expect("the other listener hears in time");

    let mut samples = Vec::new();
    let mut loud = 0;
    // By now more than a second of sound waits: silence before it is skipped, none is in it.
    while loud < 100 {
        let frame = next_frame(&mut stream).await;
        if share_at(&frame.data, 48_000, 500.0) > 0.8 {
            loud += 1;
        }
        if loud > 5 {
            samples.extend_from_slice(&frame.data);
        }
    }
    assert_eq!(stream.dropped_frames(), 0);
    let share = share_at(&samples[..48_000 / 2], 48_000, 500.0);
    assert!(share > 0.9, "{share}");
}

async fn next_frame(stream: &mut NativeAudioStream) -> AudioFrame<'static> {
    timeout(BOUND, stream.next()).await.expect("a frame in time").expect("not the end")
}
