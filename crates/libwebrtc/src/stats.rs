//! Figures of a connection, in the shape of the W3C's webrtc-stats.

use std::time::Duration;

use rtc_audio::data_channel::{Channel, ChannelState};
use rtc_audio::net::Protocol;
use rtc_audio::stats::Path;
use rtc_audio::transceiver::Transceiver;
use serde::Deserialize;

use crate::audio_track::Kind;
use crate::engine::connection::State;
use crate::media_stream_track::MediaStreamTrack;
use crate::rtp_transceiver::TransceiverHandle;

pub mod dictionaries;

/// One entry.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are those of the W3C's webrtc-stats")]
pub enum RtcStats {
    Codec(CodecStats),
    InboundRtp(InboundRtpStats),
    OutboundRtp(OutboundRtpStats),
    RemoteInboundRtp(RemoteInboundRtpStats),
    RemoteOutboundRtp(RemoteOutboundRtpStats),
    MediaSource(MediaSourceStats),
    MediaPlayout(MediaPlayoutStats),
    PeerConnection(PeerConnectionStats),
    DataChannel(DataChannelStats),
    Transport(TransportStats),
    CandidatePair(CandidatePairStats),
    LocalCandidate(LocalCandidateStats),
    RemoteCandidate(RemoteCandidateStats),
    Certificate(CertificateStats),
    Stream(StreamStats),
    Track,
}

macro_rules! names {
    ($(#[$attribute:meta])* $name:ident: $($(#[$mark:meta])? $variant:ident),+) => {
        #[derive(Debug, Copy, Clone, PartialEq, Eq, Deserialize)]
        $(#[$attribute])*
        #[allow(missing_docs, reason = "the names are those of the W3C's webrtc-stats")]
        pub enum $name { $($(#[$mark])? $variant,)+ }
    };
}

names! {
    /// Why video is worse than it could be.
    #[derive(Default)]
    #[serde(rename_all = "lowercase")]
    QualityLimitationReason: #[default] None, Cpu, Bandwidth, Other
}
names! {
    /// Who nominates.
    #[derive(Default)]
    #[serde(rename_all = "lowercase")]
    IceRole: #[default] Unknown, Controlling, Controlled
}
names! {
    /// State of DTLS.
    #[serde(rename_all = "lowercase")]
    DtlsTransportState: New, Connecting, Connected, Closed, Failed
}
names! {
    /// State of ICE.
    #[serde(rename_all = "lowercase")]
    IceTransportState: New, Checking, Connected, Completed, Disconnected, Failed, Closed
}
names! {
    /// Who began the handshake.
    #[derive(Default)]
    #[serde(rename_all = "lowercase")]
    DtlsRole: #[default] Unknown, Client, Server
}
names! {
    /// State of a pair.
    #[serde(rename_all = "kebab-case")]
    IceCandidatePairState: Frozen, Waiting, InProgress, Failed, Succeeded
}
names! {
    /// Kind of a candidate.
    #[serde(rename_all = "lowercase")]
    IceCandidateType: Host, Srflx, Prflx, Relay
}
names! {
    /// How a server is reached.
    #[serde(rename_all = "lowercase")]
    IceServerTransportProtocol: Udp, Tcp, Tls
}
names! {
    /// Who connects.
    #[serde(rename_all = "lowercase")]
    IceTcpCandidateType: Active, Passive, So
}

macro_rules! entry {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default, Clone, Deserialize)]
        #[allow(missing_docs, reason = "the names are those of the W3C's webrtc-stats")]
        pub struct $name {
            #[serde(flatten)]
            pub rtc: dictionaries::RtcStats,
            $(#[serde(flatten)] pub $field: dictionaries::$kind,)*
        }
    };
}

entry! {
    /// A codec in use.
    CodecStats { codec: CodecStats, }
}

entry! {
    /// A stream that we receive.
    InboundRtpStats { stream: RtpStreamStats, received: ReceivedRtpStreamStats, inbound: InboundRtpStreamStats, }
}

entry! {
    /// A stream that we send.
    OutboundRtpStats { stream: RtpStreamStats, sent: SentRtpStreamStats, outbound: OutboundRtpStreamStats, }
}

entry! {
    /// What the remote reported of a stream that we send.
    RemoteInboundRtpStats { stream: RtpStreamStats, received: ReceivedRtpStreamStats, remote_inbound: RemoteInboundRtpStreamStats, }
}

entry! {
    /// What the remote reported of a stream that it sends.
    RemoteOutboundRtpStats { stream: RtpStreamStats, sent: SentRtpStreamStats, remote_outbound: RemoteOutboundRtpStreamStats, }
}

entry! {
    /// A local source.
    MediaSourceStats { source: MediaSourceStats, audio: AudioSourceStats, video: VideoSourceStats, }
}

entry! {
    /// A playout.
    MediaPlayoutStats { audio_playout: AudioPlayoutStats, }
}

entry! {
    /// The whole connection.
    PeerConnectionStats { pc: PeerConnectionStats, }
}

entry! {
    /// A data channel.
    DataChannelStats { dc: DataChannelStats, }
}

entry! {
    /// The transport.
    TransportStats { transport: TransportStats, }
}

entry! {
    /// The pair in use.
    CandidatePairStats { candidate_pair: CandidatePairStats, }
}

entry! {
    /// Our half of it.
    LocalCandidateStats { local_candidate: IceCandidateStats, }
}

entry! {
    /// The other half.
    RemoteCandidateStats { remote_candidate: IceCandidateStats, }
}

entry! {
    /// A certificate.
    CertificateStats { certificate: CertificateStats, }
}

entry! {
    /// A media stream.
    StreamStats { stream: StreamStats, }
}

fn rtc(id: impl Into<String>) -> dictionaries::RtcStats {
    // Microseconds of the Unix epoch would take a wall clock, which the engine does without.
    dictionaries::RtcStats { id: id.into(), timestamp: 0 }
}

fn seconds(duration: Option<Duration>) -> f64 {
    duration.unwrap_or_default().as_secs_f64()
}

fn stream(ssrc: u32) -> dictionaries::RtpStreamStats {
    dictionaries::RtpStreamStats {
        ssrc,
        kind: "audio".to_owned(),
        transport_id: "transport".to_owned(),
        codec_id: "opus".to_owned(),
    }
}

/// Everything about a connection.
pub(crate) fn of_connection(state: &State) -> Vec<RtcStats> {
    let mut all = vec![opus(), transport(state)];
    if let Some(path) = &state.peer.stats().path {
        all.extend(pair(path));
    }
    all.extend(state.peer.channels().iter().map(data_channel));
    for handle in &state.transceivers {
        all.extend(sender(state, handle));
        all.extend(receiver(state, handle));
    }
    all
}

/// What a sender sends, with its codec.
pub(crate) fn of_sender(state: &State, handle: &TransceiverHandle) -> Vec<RtcStats> {
    let mut all = sender(state, handle);
    all.push(opus());
    all
}

/// What a receiver receives, with its codec.
pub(crate) fn of_receiver(state: &State, handle: &TransceiverHandle) -> Vec<RtcStats> {
    let mut all = receiver(state, handle);
    all.push(opus());
    all
}

fn opus() -> RtcStats {
    RtcStats::Codec(CodecStats {
        rtc: rtc("opus"),
        codec: dictionaries::CodecStats {
            payload_type: 111,
            transport_id: "transport".to_owned(),
            mime_type: "audio/opus".to_owned(),
            clock_rate: 48_000,
            channels: 2,
            sdp_fmtp_line: "minptime=10;useinbandfec=1".to_owned(),
        },
    })
}

fn transport(state: &State) -> RtcStats {
    let stats = state.peer.stats();
    let pair = stats.path.map(|_| "pair".to_owned());
    RtcStats::Transport(TransportStats {
        rtc: rtc("transport"),
        transport: dictionaries::TransportStats {
            bytes_sent: stats.bytes_sent,
            bytes_received: stats.bytes_received,
            selected_candidate_pair_id: pair.unwrap_or_default(),
            ..dictionaries::TransportStats::default()
        },
    })
}

fn pair(path: &Path) -> [RtcStats; 3] {
    let protocol = if path.protocol == Protocol::Udp { "udp" } else { "tcp" };
    let candidate = |address: std::net::SocketAddr| dictionaries::IceCandidateStats {
        address: address.ip().to_string(),
        port: i32::from(address.port()),
        protocol: protocol.to_owned(),
        candidate_type: Some(IceCandidateType::Host),
        ..dictionaries::IceCandidateStats::default()
    };
    [
        RtcStats::CandidatePair(CandidatePairStats {
            rtc: rtc("pair"),
            candidate_pair: dictionaries::CandidatePairStats {
                transport_id: "transport".to_owned(),
                local_candidate_id: "local".to_owned(),
                remote_candidate_id: "remote".to_owned(),
                state: Some(IceCandidatePairState::Succeeded),
                nominated: true,
                total_round_trip_time: path.total_round_trip.as_secs_f64(),
                current_round_trip_time: seconds(path.round_trip),
                responses_received: path.responses,
                ..dictionaries::CandidatePairStats::default()
            },
        }),
        RtcStats::LocalCandidate(LocalCandidateStats {
            rtc: rtc("local"),
            local_candidate: candidate(path.local),
        }),
        RtcStats::RemoteCandidate(RemoteCandidateStats {
            rtc: rtc("remote"),
            remote_candidate: candidate(path.remote),
        }),
    ]
}

fn data_channel(channel: &Channel) -> RtcStats {
    let counters = channel.counters();
    let state: ChannelState = channel.state();
    RtcStats::DataChannel(DataChannelStats {
        rtc: rtc(format!("channel-{}", channel.init().label)),
        dc: dictionaries::DataChannelStats {
            label: channel.init().label.clone(),
            protocol: channel.init().protocol.clone(),
            data_channel_identifier: channel.stream().map_or(-1, i32::from),
            state: Some(state.into()),
            messages_sent: counters.messages_sent as u32,
            bytes_sent: counters.bytes_sent,
            messages_received: counters.messages_received as u32,
            bytes_received: counters.bytes_received,
        },
    })
}

fn sender(state: &State, handle: &TransceiverHandle) -> Vec<RtcStats> {
    let Some(transceiver) = state.peer.transceiver(handle.id) else { return Vec::new() };
    let sent = transceiver.sent();
    if transceiver.track().is_none() || sent.packets == 0 {
        return Vec::new();
    }
    let mid = transceiver.mid().unwrap_or_default();
    let remote = state.peer.egress(handle.id);
    let (id, remote_id) = (format!("outbound-{mid}"), format!("remote-inbound-{mid}"));
    vec![
        RtcStats::OutboundRtp(OutboundRtpStats {
            rtc: rtc(id.clone()),
            stream: stream(sent.ssrc),
            sent: dictionaries::SentRtpStreamStats {
                packets_sent: sent.packets,
                bytes_sent: sent.bytes,
            },
            outbound: dictionaries::OutboundRtpStreamStats {
                mid,
                remote_id: remote_id.clone(),
                active: true,
                ..dictionaries::OutboundRtpStreamStats::default()
            },
        }),
        RtcStats::RemoteInboundRtp(RemoteInboundRtpStats {
            rtc: rtc(remote_id),
            stream: stream(sent.ssrc),
            received: dictionaries::ReceivedRtpStreamStats {
                packets_lost: remote.lost as i64,
                jitter: f64::from(remote.jitter) / 48_000.0,
                ..dictionaries::ReceivedRtpStreamStats::default()
            },
            remote_inbound: dictionaries::RemoteInboundRtpStreamStats {
                local_id: id,
                round_trip_time: seconds(remote.round_trip),
                fraction_lost: f64::from(remote.loss),
                ..dictionaries::RemoteInboundRtpStreamStats::default()
            },
        }),
    ]
}

fn receiver(state: &State, handle: &TransceiverHandle) -> Vec<RtcStats> {
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
    let mid = Transceiver::mid(transceiver).unwrap_or_default();
    let target = playout.target.as_secs_f64();
    vec![RtcStats::InboundRtp(InboundRtpStats {
        rtc: rtc(format!("inbound-{mid}")),
        stream: stream(received.ssrc),
        received: dictionaries::ReceivedRtpStreamStats {
            packets_received: received.packets,
            packets_lost: (playout.buffer.concealed + playout.buffer.recovered) as i64,
            jitter: f64::from(ingress.jitter) / 48_000.0,
        },
        inbound: dictionaries::InboundRtpStreamStats {
            track_identifier: track.id(),
            mid,
            bytes_received: received.bytes,
            packets_discarded: playout.buffer.late + playout.buffer.discarded,
            fec_packets_received: playout.buffer.recovered,
            jitter_buffer_target_delay: target * playout.samples as f64,
            jitter_buffer_emitted_count: playout.samples,
            total_samples_received: playout.samples,
            concealed_samples: playout.concealed_samples,
            concealment_events: playout.buffer.concealed,
            ..dictionaries::InboundRtpStreamStats::default()
        },
    })]
}
