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
    ingress: HashMap<Mid, Ingress>,
    egress: HashMap<Mid, Egress>,
}

/// What was measured on a section that receives.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ingress {
    /// Interarrival jitter in 1/48000 s (RFC 3550 §6.4.1).
    pub jitter: u32,
    /// Fraction of packets lost.
    pub loss: f32,
    /// Requests sent for missing packets (`nackCount` of webrtc-stats).
    pub nacks: u64,
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
}

impl Stats {
    pub(crate) fn on_peer(&mut self, stats: &PeerStats) {
        self.bytes_received = stats.peer_bytes_rx;
        self.bytes_sent = stats.peer_bytes_tx;
        self.path = stats.selected_candidate_pair.as_ref().map(|pair| Path {
            protocol: pair.protocol,
            local: pair.local.addr,
            remote: pair.remote.addr,
            round_trip: pair.current_round_trip_time,
            total_round_trip: pair.total_round_trip_time,
            responses: pair.responses_received,
        });
    }

    pub(crate) fn on_ingress(&mut self, stats: &MediaIngressStats) {
        let figures = Ingress {
            jitter: stats.jitter,
            loss: stats.loss.unwrap_or_default(),
            nacks: stats.nacks,
        };
        self.ingress.insert(stats.mid, figures);
    }

    pub(crate) fn on_egress(&mut self, stats: &MediaEgressStats) {
        let remote = stats.remote.as_ref();
        let figures = Egress {
            lost: remote.map(|r| r.packets_lost).unwrap_or_default(),
            loss: stats.loss.unwrap_or_default(),
            jitter: remote.map(|r| r.jitter).unwrap_or_default(),
            round_trip: stats.rtt,
        };
        self.egress.insert(stats.mid, figures);
    }

    pub(crate) fn ingress(&self, mid: Mid) -> Ingress {
        self.ingress.get(&mid).copied().unwrap_or_default()
    }

    pub(crate) fn egress(&self, mid: Mid) -> Egress {
        self.egress.get(&mid).copied().unwrap_or_default()
    }
}
