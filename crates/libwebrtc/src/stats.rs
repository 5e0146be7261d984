//! Figures of a connection, in the shape of the W3C's webrtc-stats.

use serde::Deserialize;

pub mod dictionaries;
mod media;
mod transport;

use std::time::Duration;

use crate::engine::clock;
use crate::engine::connection::State;
use crate::rtp_transceiver::TransceiverHandle;

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

/// Ids of the entries that a connection has once.
const TRANSPORT: &str = "transport";
const CODEC: &str = "opus";

/// What every entry has; the stamp is in microseconds since 1970, as in Google's build.
fn rtc(id: impl Into<String>) -> dictionaries::RtcStats {
    dictionaries::RtcStats { id: id.into(), timestamp: clock::unix_micros() }
}

fn seconds(duration: Option<Duration>) -> f64 {
    duration.unwrap_or_default().as_secs_f64()
}

/// Everything about a connection.
pub(crate) fn of_connection(state: &State) -> Vec<RtcStats> {
    let mut all = vec![transport::connection(state), media::codec(state)];
    all.extend(transport::of(state));
    all.extend(state.peer.channels().iter().map(transport::data_channel));
    for handle in &state.transceivers {
        all.extend(media::sender(state, handle));
        all.extend(media::receiver(state, handle));
    }
    all
}

/// What a sender sends, with its codec and the path it takes.
pub(crate) fn of_sender(state: &State, handle: &TransceiverHandle) -> Vec<RtcStats> {
    let mut all = media::sender(state, handle);
    all.push(media::codec(state));
    all.extend(transport::of(state));
    all
}

/// What a receiver receives, with its codec and the path it takes.
pub(crate) fn of_receiver(state: &State, handle: &TransceiverHandle) -> Vec<RtcStats> {
    let mut all = media::receiver(state, handle);
    all.push(media::codec(state));
    all.extend(transport::of(state));
    all
}
