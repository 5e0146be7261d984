//! What a connection says of itself, on loopback.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failure in a helper fails the test that calls it"
)]

use std::time::Duration;

use libwebrtc::audio_source::native::NativeAudioSource;
use libwebrtc::audio_stream::native::NativeAudioStream;
use libwebrtc::peer_connection_factory::native::PeerConnectionFactoryExt;
use libwebrtc::prelude::*;
use libwebrtc::stats::{IceCandidateType, RtcStats};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt;

/// RTCP reports come every few seconds.
const BOUND: Duration = Duration::from_secs(30);

async fn negotiate(from: &PeerConnection, to: &PeerConnection) {
    let offer = from.create_offer(OfferOptions::default()).await.unwrap();
    from.set_local_description(offer.clone()).await.unwrap();
    to.set_remote_description(offer).await.unwrap();
    let answer = to.create_answer(AnswerOptions::default()).await.unwrap();
    to.set_local_description(answer.clone()).await.unwrap();
    from.set_remote_description(answer).await.unwrap();
}

/// The figures once `what` finds its own among them. Frames of audio are the clock: `heard` is
/// read until then.
async fn when<T>(
    connection: &PeerConnection,
    heard: &mut NativeAudioStream,
    what: impl Fn(&RtcStats) -> Option<T>,
) -> T {
    let search = async {
        loop {
            let stats = connection.get_stats().await.unwrap();
            if let Some(found) = stats.iter().find_map(&what) {
                return found;
            }
            heard.next().await.expect("audio goes on");
        }
    };
    timeout(BOUND, search).await.expect("the figures in time")
}

#[tokio::test]
async fn both_ends_of_a_call_tell_how_it_is() {
    let factory = PeerConnectionFactory::default();
    let caller = factory.create_peer_connection(RtcConfiguration::default()).unwrap();
    let callee = factory.create_peer_connection(RtcConfiguration::default()).unwrap();
    let (sender, mut tracks) = mpsc::channel(1);
    callee.on_track(Some(Box::new(move |event| {
        if let MediaStreamTrack::Audio(track) = event.track {
            sender.try_send(track).unwrap();
        }
    })));
    let source = NativeAudioSource::new(AudioSourceOptions::default(), 48_000, 1, 100);
    let track = factory.create_audio_track("microphone", source.clone());
    let sending = caller.add_track(MediaStreamTrack::Audio(track), &["stream"]).unwrap();
    let _channel = caller.create_data_channel("chat", DataChannelInit::default()).unwrap();
    negotiate(&caller, &callee).await;
    let frames = tokio::spawn(async move {
        loop {
            let frame = AudioFrame::new(48_000, 1, 480);
            source.capture_frame(&frame).await.unwrap();
        }
    });
    let remote = timeout(BOUND, tracks.recv()).await.expect("in time").expect("a track");
    let mut heard = NativeAudioStream::new(remote, 16_000, 1);

    // The path.
    let (pair, round_trip) = when(&caller, &mut heard, |entry| match entry {
        RtcStats::CandidatePair(entry) if entry.candidate_pair.responses_received > 0 => {
            let pair = entry.candidate_pair.clone();
            Some((entry.rtc.id.clone(), pair.current_round_trip_time))
        }
        _ => None,
    })
    .await;
    assert!(round_trip > 0.0 && round_trip < 5.0, "{round_trip} s");
    let selected = when(&caller, &mut heard, |entry| match entry {
        RtcStats::Transport(entry) if entry.transport.packets_received > 0 => {
            Some(entry.transport.clone())
        }
        _ => None,
    })
    .await;
    assert_eq!(selected.selected_candidate_pair_id, pair);
    assert!(selected.bytes_sent > 0 && !selected.ice_local_username_fragment.is_empty());
    let local = when(&caller, &mut heard, |entry| match entry {
        RtcStats::LocalCandidate(entry) => Some(entry.local_candidate.clone()),
        _ => None,
    })
    .await;
    assert_eq!((local.candidate_type, &*local.protocol), (Some(IceCandidateType::Host), "udp"));
    assert!(local.port > 0 && local.priority > 0);

    // What is heard.
    let inbound = when(&callee, &mut heard, |entry| match entry {
        RtcStats::InboundRtp(entry) if entry.inbound.jitter_buffer_emitted_count > 16_000 => {
            Some(entry.clone())
        }
        _ => None,
    })
    .await;
    let figures = &inbound.inbound;
    assert!(inbound.received.packets_received > 40 && figures.bytes_received > 0);
    assert!(figures.total_samples_received >= figures.jitter_buffer_emitted_count);
    let delay = figures.jitter_buffer_delay / figures.jitter_buffer_emitted_count as f64;
    assert!((0.0..1.0).contains(&delay), "{delay} s in the jitter buffer");
    assert!(figures.jitter_buffer_target_delay > 0.0);

    // What is sent, and what the other side says of it.
    let reported = when(&caller, &mut heard, |entry| match entry {
        RtcStats::RemoteInboundRtp(entry) => Some(entry.clone()),
        _ => None,
    })
    .await;
    assert_eq!(reported.received.packets_lost, 0);
    let outbound = sending.get_stats().await.unwrap();
    let outbound = outbound.iter().find_map(|entry| match entry {
        RtcStats::OutboundRtp(entry) => Some(entry),
        _ => None,
    });
    let outbound = outbound.expect("an outbound stream");
    assert_eq!(outbound.outbound.remote_id, reported.rtc.id);
    assert_eq!(outbound.stream.ssrc, inbound.stream.ssrc);
    assert!(outbound.sent.packets_sent >= inbound.received.packets_received);
    assert!(outbound.rtc.timestamp > 1_500_000_000_000_000, "microseconds since 1970");

    // Around them.
    let all = caller.get_stats().await.unwrap();
    let has = |wanted: fn(&RtcStats) -> bool| assert!(all.iter().any(wanted), "{all:?}");
    has(|entry| matches!(entry, RtcStats::Codec(codec) if codec.codec.mime_type == "audio/opus"));
    has(|entry| matches!(entry, RtcStats::DataChannel(channel) if channel.dc.label == "chat"));
    has(|entry| matches!(entry, RtcStats::MediaSource(source) if source.source.kind == "audio"));
    has(|entry| matches!(entry, RtcStats::Certificate(_)));
    has(|entry| matches!(entry, RtcStats::PeerConnection(_)));
    frames.abort();
}
