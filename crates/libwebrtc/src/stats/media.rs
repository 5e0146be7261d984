//! The streams that are sent and received.

use rtc_audio::transceiver::{MediaType, Transceiver};

use super::{
    CODEC, CodecStats, InboundRtpStats, MediaSourceStats, OutboundRtpStats, RemoteInboundRtpStats,
    RemoteOutboundRtpStats, RtcStats, TRANSPORT, dictionaries, rtc, seconds,
};
use crate::audio_track::Kind;
use crate::engine::connection::State;
use crate::media_stream_track::MediaStreamTrack;
use crate::rtp_transceiver::TransceiverHandle;

/// Ticks of the RTP clock of audio a second (RFC 7587 §4.1).
const CLOCK: u32 = 48_000;
/// What Opus is offered as.
const USUAL_PAYLOAD_TYPE: u8 = 111;

/// Of the RTP clock of VP8 (RFC 7741 §4.1), and of H.264 and VP9 alike.
const VIDEO_CLOCK: u32 = 90_000;

/// Jitter in s.
fn ticks(jitter: u32, media: MediaType) -> f64 {
    let clock = if media == MediaType::Audio { CLOCK } else { VIDEO_CLOCK };
    f64::from(jitter) / f64::from(clock)
}

fn stream(ssrc: u32, media: MediaType) -> dictionaries::RtpStreamStats {
    let audio = media == MediaType::Audio;
    dictionaries::RtpStreamStats {
        ssrc,
        kind: if audio { "audio" } else { "video" }.to_owned(),
        transport_id: TRANSPORT.to_owned(),
        codec_id: if audio { CODEC } else { "" }.to_owned(),
    }
}

/// Opus, with the parameters of the last description.
pub(super) fn codec(state: &State) -> RtcStats {
    let known = state.peer.transceivers().iter().find_map(Transceiver::payload_type);
    let payload_type = known.unwrap_or(USUAL_PAYLOAD_TYPE);
    let prefix = format!("a=fmtp:{payload_type} ");
    let parameters = state.peer.local_description().and_then(|(text, _)| {
        let line = text.lines().find_map(|line| line.strip_prefix(&prefix))?;
        Some(line.trim().to_owned())
    });
    RtcStats::Codec(CodecStats {
        rtc: rtc(CODEC),
        codec: dictionaries::CodecStats {
            payload_type: u32::from(payload_type),
            transport_id: TRANSPORT.to_owned(),
            mime_type: "audio/opus".to_owned(),
            clock_rate: CLOCK,
            channels: 2,
            sdp_fmtp_line: parameters.unwrap_or_default(),
        },
    })
}

/// What a transceiver sends, once it has sent something.
pub(super) fn sender(state: &State, handle: &TransceiverHandle) -> Vec<RtcStats> {
    let Some(transceiver) = state.peer.transceiver(handle.id) else { return Vec::new() };
    let sent = transceiver.sent();
    let Some(track) = transceiver.track().filter(|_| sent.packets > 0) else { return Vec::new() };
    let mid = transceiver.mid().unwrap_or_default();
    let remote = state.peer.egress(handle.id);
    let id = format!("outbound-{mid}");
    let remote_id = remote.reported.then(|| format!("remote-inbound-{mid}"));
    let source_id = format!("source-{mid}");
    let mut all = vec![
        RtcStats::OutboundRtp(OutboundRtpStats {
            rtc: rtc(id.clone()),
            stream: stream(sent.ssrc, transceiver.media()),
            sent: dictionaries::SentRtpStreamStats {
                packets_sent: sent.packets,
                bytes_sent: sent.bytes,
            },
            outbound: dictionaries::OutboundRtpStreamStats {
                mid,
                media_source_id: source_id.clone(),
                remote_id: remote_id.clone().unwrap_or_default(),
                nack_count: remote.nacks as u32,
                active: handle.sending.lock().is_some(),
                ..dictionaries::OutboundRtpStreamStats::default()
            },
        }),
        RtcStats::MediaSource(MediaSourceStats {
            rtc: rtc(source_id),
            source: dictionaries::MediaSourceStats {
                track_identifier: track.to_owned(),
                kind: "audio".to_owned(),
            },
            audio: dictionaries::AudioSourceStats::default(),
            video: dictionaries::VideoSourceStats::default(),
        }),
    ];
    if let Some(remote_id) = remote_id {
        all.push(RtcStats::RemoteInboundRtp(RemoteInboundRtpStats {
            rtc: rtc(remote_id),
            stream: stream(sent.ssrc, transceiver.media()),
            received: dictionaries::ReceivedRtpStreamStats {
                packets_lost: remote.lost as i64,
                jitter: ticks(remote.jitter, transceiver.media()),
                ..dictionaries::ReceivedRtpStreamStats::default()
            },
            remote_inbound: dictionaries::RemoteInboundRtpStreamStats {
                local_id: id,
                round_trip_time: seconds(remote.round_trip),
                total_round_trip_time: remote.total_round_trip.as_secs_f64(),
                fraction_lost: f64::from(remote.loss),
                round_trip_time_measurements: remote.measurements,
            },
        }));
    }
    all
}

/// What a transceiver receives, once something has come. What a listener does with it, such as
/// concealment and the delay of the jitter buffer, is that of the longest there; samples are
/// counted at its rate.
pub(super) fn receiver(state: &State, handle: &TransceiverHandle) -> Vec<RtcStats> {
    let Some(transceiver) = state.peer.transceiver(handle.id) else { return Vec::new() };
    let received = transceiver.received();
    if received.packets == 0 {
        return Vec::new();
    }
    let track = handle.receiving.lock().track.clone();
    let playout = match &track {
        MediaStreamTrack::Audio(audio) => match &audio.kind {
            Kind::Remote(remote) => remote.stats(),
            Kind::Local(_) => None,
        },
        MediaStreamTrack::Video(_) => None,
    }
    .unwrap_or_default();
    let ingress = state.peer.ingress(handle.id);
    let mid = transceiver.mid().unwrap_or_default();
    let id = format!("inbound-{mid}");
    let remote_id = ingress.reported.map(|_| format!("remote-outbound-{mid}"));
    let mut all = vec![RtcStats::InboundRtp(InboundRtpStats {
        rtc: rtc(id.clone()),
        stream: stream(received.ssrc, transceiver.media()),
        received: dictionaries::ReceivedRtpStreamStats {
            packets_received: received.packets,
            packets_lost: received.lost(),
            jitter: ticks(ingress.jitter, transceiver.media()),
        },
        inbound: dictionaries::InboundRtpStreamStats {
            track_identifier: track.id(),
            mid,
            remote_id: remote_id.clone().unwrap_or_default(),
            bytes_received: received.bytes,
            packets_discarded: playout.buffer.late + playout.buffer.discarded,
            // Opus carries its FEC in-band: what is counted is the frames recovered by it or by RED.
            fec_packets_received: playout.buffer.recovered + playout.buffer.redundant,
            retransmitted_packets_received: playout.buffer.resent,
            nack_count: ingress.nacks as u32,
            jitter_buffer_delay: playout.delay_sum.as_secs_f64(),
            jitter_buffer_target_delay: playout.target_sum.as_secs_f64(),
            jitter_buffer_emitted_count: playout.emitted_samples,
            total_samples_received: playout.samples,
            concealed_samples: playout.concealed_samples,
            silent_concealed_samples: playout.silent_concealed_samples,
            concealment_events: playout.concealment_events,
            inserted_samples_for_deceleration: playout.inserted_samples,
            removed_samples_for_acceleration: playout.removed_samples,
            ..dictionaries::InboundRtpStreamStats::default()
        },
    })];
    if let (Some(remote_id), Some((packets, bytes))) = (remote_id, ingress.reported) {
        all.push(RtcStats::RemoteOutboundRtp(RemoteOutboundRtpStats {
            rtc: rtc(remote_id),
            stream: stream(received.ssrc, transceiver.media()),
            sent: dictionaries::SentRtpStreamStats { packets_sent: packets, bytes_sent: bytes },
            remote_outbound: dictionaries::RemoteOutboundRtpStreamStats {
                local_id: id,
                ..dictionaries::RemoteOutboundRtpStreamStats::default()
            },
        }));
    }
    all
}
