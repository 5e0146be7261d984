//! The path, what secures it, and the data channels.

use std::net::SocketAddr;

use rtc_audio::Candidate;
use rtc_audio::data_channel::{Channel, ChannelState};
use rtc_audio::net::Protocol;
use rtc_audio::peer::PeerState;
use rtc_audio::stats::Path;

use super::{
    CandidatePairStats, CertificateStats, DataChannelStats, DtlsRole, DtlsTransportState,
    IceCandidatePairState, IceCandidateType, IceRole, IceTcpCandidateType, IceTransportState,
    LocalCandidateStats, PeerConnectionStats, RemoteCandidateStats, RtcStats, TRANSPORT,
    TransportStats, dictionaries, rtc, seconds,
};
use crate::engine::connection::State;

const PAIR: &str = "pair";
const LOCAL: &str = "local-candidate";
const REMOTE: &str = "remote-candidate";
const LOCAL_CERTIFICATE: &str = "local-certificate";
const REMOTE_CERTIFICATE: &str = "remote-certificate";

pub(super) fn connection(state: &State) -> RtcStats {
    let count = |wanted: &dyn Fn(ChannelState) -> bool| {
        state.peer.channels().iter().filter(|channel| wanted(channel.state())).count() as u32
    };
    RtcStats::PeerConnection(PeerConnectionStats {
        rtc: rtc("peer-connection"),
        pc: dictionaries::PeerConnectionStats {
            data_channels_opened: count(&|state| state != ChannelState::Connecting),
            data_channels_closed: count(&|state| state == ChannelState::Closed),
        },
    })
}

/// The transport, its certificates, and the pair in use with its candidates.
pub(super) fn of(state: &State) -> Vec<RtcStats> {
    let description = |it: Option<(&str, bool)>| it.map(|(text, _)| text.to_owned());
    let local = description(state.peer.local_description()).unwrap_or_default();
    let remote = description(state.peer.remote_description()).unwrap_or_default();
    let certificates: Vec<_> =
        [certificate(LOCAL_CERTIFICATE, &local), certificate(REMOTE_CERTIFICATE, &remote)]
            .into_iter()
            .flatten()
            .collect();
    let mut all = vec![transport(state, &local, &remote)];
    if let Some(path) = &state.peer.stats().path {
        all.extend(pair(state, path, &remote));
    }
    all.extend(certificates);
    all
}

/// The value of the first attribute of this name, in the session or in any section.
fn attribute<'a>(sdp: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix("a=")?.strip_prefix(name);
    sdp.lines().find_map(value).map(|value| value.trim_start_matches(':').trim())
}

fn transport(state: &State, local: &str, remote: &str) -> RtcStats {
    let stats = state.peer.stats();
    let datagrams = state.peer.datagrams();
    let known = |sdp: &str, id: &str| attribute(sdp, "fingerprint").map(|_| id.to_owned());
    let lite = remote.lines().any(|line| line.trim() == "a=ice-lite");
    RtcStats::Transport(TransportStats {
        rtc: rtc(TRANSPORT),
        transport: dictionaries::TransportStats {
            packets_sent: datagrams.sent,
            packets_received: datagrams.received,
            bytes_sent: stats.bytes_sent,
            bytes_received: stats.bytes_received,
            // RFC 8445 §6.1.1; between two full agents the role is not told here.
            ice_role: if lite { IceRole::Controlling } else { IceRole::Unknown },
            ice_local_username_fragment: attribute(local, "ice-ufrag").unwrap_or("").to_owned(),
            dtls_state: Some(dtls_state(state.peer.state())),
            ice_state: Some(ice_state(state.peer.state())),
            selected_candidate_pair_id: stats.path.map(|_| PAIR.to_owned()).unwrap_or_default(),
            local_certificate_id: known(local, LOCAL_CERTIFICATE).unwrap_or_default(),
            remote_certificate_id: known(remote, REMOTE_CERTIFICATE).unwrap_or_default(),
            dtls_role: dtls_role(state, local, remote),
            selected_candidate_pair_changes: stats.path_changes,
            ..dictionaries::TransportStats::default()
        },
    })
}

fn dtls_state(state: PeerState) -> DtlsTransportState {
    match state {
        PeerState::New => DtlsTransportState::New,
        PeerState::Connecting => DtlsTransportState::Connecting,
        PeerState::Connected | PeerState::Disconnected => DtlsTransportState::Connected,
        PeerState::Failed => DtlsTransportState::Failed,
        PeerState::Closed => DtlsTransportState::Closed,
    }
}

fn ice_state(state: PeerState) -> IceTransportState {
    match state {
        PeerState::New => IceTransportState::New,
        PeerState::Connecting => IceTransportState::Checking,
        PeerState::Connected => IceTransportState::Connected,
        PeerState::Disconnected => IceTransportState::Disconnected,
        PeerState::Failed => IceTransportState::Failed,
        PeerState::Closed => IceTransportState::Closed,
    }
}

/// Who began the handshake is what the answer says (RFC 8842 §5).
fn dtls_role(state: &State, local: &str, remote: &str) -> DtlsRole {
    let Some((_, ours)) = state.peer.local_description() else { return DtlsRole::Unknown };
    let answer = if ours { local } else { remote };
    match attribute(answer, "setup") {
        Some("active") if ours => DtlsRole::Client,
        Some("passive") if !ours => DtlsRole::Client,
        Some("active" | "passive") => DtlsRole::Server,
        _ => DtlsRole::Unknown,
    }
}

fn certificate(id: &str, sdp: &str) -> Option<RtcStats> {
    let (algorithm, fingerprint) = attribute(sdp, "fingerprint")?.split_once(' ')?;
    Some(RtcStats::Certificate(CertificateStats {
        rtc: rtc(id),
        certificate: dictionaries::CertificateStats {
            fingerprint: fingerprint.to_owned(),
            fingerprint_algorithm: algorithm.to_owned(),
            ..dictionaries::CertificateStats::default()
        },
    }))
}

fn pair(state: &State, path: &Path, remote: &str) -> [RtcStats; 3] {
    let ours: Vec<_> = state.peer.local_candidates().map(Candidate::to_sdp_string).collect();
    let trickled: Vec<_> =
        state.peer.remote_candidates().iter().map(Candidate::to_sdp_string).collect();
    let theirs = remote.lines().filter(|line| line.starts_with("a=candidate:"));
    let local = candidate(path.local, path.protocol, ours.iter().map(String::as_str));
    let theirs = theirs.chain(trickled.iter().map(String::as_str));
    let remote = candidate(path.remote, path.protocol, theirs);
    let (datagrams, stats) = (state.peer.datagrams(), state.peer.stats());
    [
        RtcStats::CandidatePair(CandidatePairStats {
            rtc: rtc(PAIR),
            candidate_pair: dictionaries::CandidatePairStats {
                transport_id: TRANSPORT.to_owned(),
                local_candidate_id: LOCAL.to_owned(),
                remote_candidate_id: REMOTE.to_owned(),
                state: Some(IceCandidatePairState::Succeeded),
                nominated: true,
                // Of all pairs together: only one is used at a time.
                packets_sent: datagrams.sent,
                packets_received: datagrams.received,
                bytes_sent: stats.bytes_sent,
                bytes_received: stats.bytes_received,
                total_round_trip_time: path.total_round_trip.as_secs_f64(),
                current_round_trip_time: seconds(path.round_trip),
                responses_received: path.responses,
                ..dictionaries::CandidatePairStats::default()
            },
        }),
        RtcStats::LocalCandidate(LocalCandidateStats { rtc: rtc(LOCAL), local_candidate: local }),
        RtcStats::RemoteCandidate(RemoteCandidateStats {
            rtc: rtc(REMOTE),
            remote_candidate: remote,
        }),
    ]
}

/// What the candidate lines (RFC 8839 §5.1) say of an address; one that none of them has was seen
/// first in a connectivity check.
fn candidate<'a>(
    address: SocketAddr,
    protocol: Protocol,
    mut lines: impl Iterator<Item = &'a str>,
) -> dictionaries::IceCandidateStats {
    let udp = protocol == Protocol::Udp;
    let of_unknown = dictionaries::IceCandidateStats {
        transport_id: TRANSPORT.to_owned(),
        address: address.ip().to_string(),
        port: i32::from(address.port()),
        protocol: if udp { "udp" } else { "tcp" }.to_owned(),
        candidate_type: Some(IceCandidateType::Prflx),
        ..dictionaries::IceCandidateStats::default()
    };
    lines.find_map(|line| read_candidate(line, address, udp, &of_unknown)).unwrap_or(of_unknown)
}

fn read_candidate(
    line: &str,
    address: SocketAddr,
    udp: bool,
    of_unknown: &dictionaries::IceCandidateStats,
) -> Option<dictionaries::IceCandidateStats> {
    let line = line.trim().trim_start_matches("a=").strip_prefix("candidate:")?;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let &[foundation, _, protocol, priority, ip, port, "typ", kind, ref rest @ ..] = &fields[..]
    else {
        return None;
    };
    if protocol.eq_ignore_ascii_case("udp") != udp || ip.parse() != Ok(address.ip()) {
        return None;
    }
    let value =
        |name: &str| rest.chunks_exact(2).find_map(|pair| (pair[0] == name).then_some(pair[1]));
    let tcp_type = match value("tcptype") {
        Some("active") => Some(IceTcpCandidateType::Active),
        Some("passive") => Some(IceTcpCandidateType::Passive),
        Some("so") => Some(IceTcpCandidateType::So),
        _ => None,
    };
    // A candidate that only connects has no port of its own (RFC 6544 §4.5).
    if tcp_type != Some(IceTcpCandidateType::Active) && port.parse() != Ok(address.port()) {
        return None;
    }
    let candidate_type = match kind {
        "host" => IceCandidateType::Host,
        "srflx" => IceCandidateType::Srflx,
        "relay" => IceCandidateType::Relay,
        _ => IceCandidateType::Prflx,
    };
    Some(dictionaries::IceCandidateStats {
        candidate_type: Some(candidate_type),
        // The dictionary's field is signed; priorities are below 2³¹ (RFC 8445 §5.1.2.1).
        priority: priority.parse::<u32>().unwrap_or_default().min(i32::MAX as u32) as i32,
        foundation: foundation.to_owned(),
        related_address: value("raddr").unwrap_or("").to_owned(),
        related_port: value("rport").and_then(|port| port.parse().ok()).unwrap_or_default(),
        username_fragment: value("ufrag").unwrap_or("").to_owned(),
        tcp_type,
        ..of_unknown.clone()
    })
}

pub(super) fn data_channel(channel: &Channel) -> RtcStats {
    let counters = channel.counters();
    let id = channel.stream().map_or_else(String::new, |stream| format!("-{stream}"));
    RtcStats::DataChannel(DataChannelStats {
        rtc: rtc(format!("channel-{}{id}", channel.init().label)),
        dc: dictionaries::DataChannelStats {
            label: channel.init().label.clone(),
            protocol: channel.init().protocol.clone(),
            data_channel_identifier: channel.stream().map_or(-1, i32::from),
            state: Some(channel.state().into()),
            messages_sent: counters.messages_sent as u32,
            bytes_sent: counters.bytes_sent,
            messages_received: counters.messages_received as u32,
            bytes_received: counters.bytes_received,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRFLX: &str = "candidate:2 1 udp 1694498815 203.0.113.7 61665 typ srflx raddr \
                         10.0.0.2 rport 50000 ufrag abcd";

    #[test]
    fn a_candidate_line_tells_the_kind_of_the_path() {
        let address = "203.0.113.7:61665".parse().unwrap();
        let found = candidate(address, Protocol::Udp, [SRFLX].into_iter());
        assert_eq!(found.candidate_type, Some(IceCandidateType::Srflx));
        assert_eq!((found.priority, found.related_port), (1_694_498_815, 50_000));
        assert_eq!((&*found.related_address, &*found.username_fragment), ("10.0.0.2", "abcd"));
    }

    #[test]
    fn an_address_that_nobody_named_is_peer_reflexive() {
        let address = "203.0.113.7:1".parse().unwrap();
        let found = candidate(address, Protocol::Udp, [SRFLX, "candidate:", ""].into_iter());
        assert_eq!(found.candidate_type, Some(IceCandidateType::Prflx));
        assert_eq!((&*found.address, found.port), ("203.0.113.7", 1));
    }

    #[test]
    fn an_active_tcp_candidate_is_found_by_its_address_alone() {
        let line = "a=candidate:9 1 tcp 99 10.0.0.2 9 typ host tcptype active";
        let found = candidate("10.0.0.2:40000".parse().unwrap(), Protocol::Tcp, [line].into_iter());
        assert_eq!(found.tcp_type, Some(IceTcpCandidateType::Active));
        assert_eq!((&*found.protocol, found.port), ("tcp", 40_000));
    }

    #[test]
    fn a_fingerprint_is_a_certificate() {
        let sdp = "v=0\r\na=setup:active\r\na=fingerprint:sha-256 AB:CD\r\n";
        let Some(RtcStats::Certificate(entry)) = certificate("c", sdp) else { panic!() };
        assert_eq!(entry.certificate.fingerprint_algorithm, "sha-256");
        assert_eq!(entry.certificate.fingerprint, "AB:CD");
        assert!(certificate("c", "a=fingerprint:").is_none());
        assert_eq!(attribute(sdp, "setup"), Some("active"));
    }
}
