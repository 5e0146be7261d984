//! Figures of a peer that str0m measures.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use str0m::media::Mid;
use str0m::net::Protocol;
use str0m::stats::{MediaEgressStats, MediaIngressStats, PeerStats};

/// The path in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// UDP or TCP.
    pub protocol: Protocol,
    /// Our address.
    pub local: SocketAddr,
    /// The other's address.
    pub remote: SocketAddr,
    /// Last STUN round trip.
    pub round_trip: Option<Duration>,
    /// Sum of the STUN round trips.
    pub total_round_trip: Duration,
    /// How many there were.
    pub responses: u64,
}

/// Figures of a whole peer, at most a second old.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Datagram bytes received.
    pub bytes_received: u64,
    /// Datagram bytes sent.
    pub bytes_sent: u64,
    /// The path in use.
    pub path: Option<Path>,
    /// How often another path was taken, the first one included.
    pub path_changes: u32,
    ingress: HashMap<Mid, Ingress>,
    egress: HashMap<Mid, Egress>,
}

/// What was measured on a section that receives.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ingress {
    /// Interarrival jitter in ticks of the RTP clock (RFC 3550 §6.4.1): 1/48000 s of Opus, 1/90000 s of
    /// video.
    pub jitter: u32,
    /// Fraction of packets lost.
    pub loss: f32,
    /// NACKs sent (RFC 4585 §6.2.1).
    pub nacks: u64,
    /// What the sender's reports say that it has sent (RFC 3550 §6.4.1): packets and bytes.
    pub reported: Option<(u64, u64)>,
}

/// What the other side reported of a section that sends.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Egress {
    /// Packets lost.
    pub lost: u64,
    /// Fraction of packets lost.
    pub loss: f32,
    /// Jitter in 1/48000 s.
    pub jitter: u32,
    /// RTCP round trip.
    pub round_trip: Option<Duration>,
    /// Sum of the round trips.
    pub total_round_trip: Duration,
    /// How many there were.
    pub measurements: u64,
    /// NACKs received.
    pub nacks: u64,
    /// Says whether a report has come.
    pub reported: bool,
    /// Last sequence number that was reported, which tells a new report from the one before.
    highest: u64,
}

impl Stats {
    pub(crate) fn on_peer(&mut self, stats: &PeerStats) {
        self.bytes_received = stats.peer_bytes_rx;
        self.bytes_sent = stats.peer_bytes_tx;
        let before = self.path.map(|path| (path.local, path.remote));
        self.path = stats.selected_candidate_pair.as_ref().map(|pair| Path {
            protocol: pair.protocol,
            local: pair.local.addr,
            remote: pair.remote.addr,
            round_trip: pair.current_round_trip_time,
            total_round_trip: pair.total_round_trip_time,
            responses: pair.responses_received,
        });
        let after = self.path.map(|path| (path.local, path.remote));
        if after.is_some() && after != before {
            self.path_changes += 1;
        }
    }

    pub(crate) fn on_ingress(&mut self, stats: &MediaIngressStats) {
        let figures = Ingress {
            jitter: stats.jitter,
            loss: stats.loss.unwrap_or_default(),
            nacks: stats.nacks,
            reported: stats.remote.as_ref().map(|remote| (remote.packets, remote.bytes)),
        };
        self.ingress.insert(stats.mid, figures);
    }

    pub(crate) fn on_egress(&mut self, stats: &MediaEgressStats) {
        let figures = self.egress.entry(stats.mid).or_default();
        figures.nacks = stats.nacks;
        let Some(remote) = &stats.remote else { return };
        figures.reported = true;
        figures.lost = remote.packets_lost;
        figures.jitter = remote.jitter;
        if let Some(loss) = stats.loss {
            figures.loss = loss;
        }
        figures.round_trip = stats.rtt.or(figures.round_trip);
        let highest = *remote.maximum_sequence_number;
        if let Some(round_trip) = stats.rtt
            && highest != figures.highest
        {
            figures.highest = highest;
            figures.total_round_trip += round_trip;
            figures.measurements += 1;
        }
    }

    pub(crate) fn ingress(&self, mid: Mid) -> Ingress {
        self.ingress.get(&mid).copied().unwrap_or_default()
    }

    pub(crate) fn egress(&self, mid: Mid) -> Egress {
        self.egress.get(&mid).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use str0m::stats::RemoteIngressStats;

    fn report(highest: u64, milliseconds: u64) -> MediaEgressStats {
        #[allow(clippy::disallowed_methods, reason = "a stamp that nothing reads")]
        let timestamp = std::time::Instant::now();
        MediaEgressStats {
            mid: "0".into(),
            rid: None,
            bytes: 0,
            packets: 0,
            firs: 0,
            plis: 0,
            nacks: 3,
            rtt: Some(Duration::from_millis(milliseconds)),
            loss: Some(0.25),
            timestamp,
            remote: Some(RemoteIngressStats {
                jitter: 48,
                maximum_sequence_number: highest.into(),
                packets_lost: 7,
            }),
        }
    }

    #[test]
    fn a_report_seen_twice_is_one_round_trip() {
        let mut stats = Stats::default();
        stats.on_egress(&report(100, 40));
        stats.on_egress(&report(100, 40));
        stats.on_egress(&report(150, 60));
        let egress = stats.egress("0".into());
        assert_eq!((egress.measurements, egress.total_round_trip.as_millis()), (2, 100));
        assert_eq!((egress.lost, egress.nacks, egress.jitter), (7, 3, 48));
    }

    #[test]
    fn nothing_is_reported_of_a_stream_before_its_first_report() {
        let mut stats = Stats::default();
        stats.on_egress(&MediaEgressStats { remote: None, rtt: None, loss: None, ..report(0, 0) });
        assert!(!stats.egress("0".into()).reported);
    }
}
