//! Candidates of a peer, and the pace of its connectivity checks.

use std::net::{IpAddr, SocketAddr};

use str0m::net::{Protocol, TcpType};
use str0m::{Candidate, CandidateKind, IceConnectionState, Input};
use tracing::warn;

use crate::peer::{Peer, PeerError};

/// Port of a candidate that only connects (RFC 6544 §4.5).
const ACTIVE_TCP_PORT: u16 = 9;

/// Candidates of the remote that are kept for the figures.
const REMEMBERED: usize = 64;

/// Checks made and answered at once when the remote's description comes.
const FIRST_CHECKS: usize = 8;

/// Which of our candidates may be told and used (W3C `RTCIceTransportPolicy`, and Google's NoHost).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transports {
    /// All.
    #[default]
    All,
    /// Host candidates are told to nobody. The agent knows their UDP ones all the same: they are
    /// the bases of server-reflexive candidates, and checks come to them.
    NoHost,
    /// Only relayed ones are there at all.
    Relay,
}

impl Peer {
    /// Says which of our candidates may be used from now on. Those that may not are taken out at
    /// once, also from the next description; those that may must be added (again).
    pub fn set_transports(&mut self, transports: Transports) {
        self.transports = transports;
        let barred = |candidate: &Candidate| match transports {
            Transports::All => false,
            Transports::NoHost => candidate.proto() != Protocol::Udp,
            Transports::Relay => candidate.kind() != CandidateKind::Relayed,
        };
        self.remove_candidates(barred);
    }

    /// Adds the address of a socket of ours, and the same address for outgoing TCP. Gives what is
    /// to be told to the remote. Addresses that ICE has no use for, or that may not be used, are
    /// passed over.
    pub fn add_local_address(&mut self, address: SocketAddr) -> Vec<Candidate> {
        let udp = Candidate::host(address, "udp");
        let tcp = Candidate::builder()
            .tcp()
            .host(SocketAddr::new(address.ip(), ACTIVE_TCP_PORT))
            .tcptype(TcpType::Active)
            .build();
        match self.transports {
            Transports::All => {
                [udp, tcp].into_iter().flatten().filter_map(|c| self.add_candidate(c)).collect()
            }
            Transports::NoHost => {
                if let Ok(candidate) = udp {
                    self.add_candidate(candidate);
                }
                Vec::new()
            }
            Transports::Relay => Vec::new(),
        }
    }

    /// Adds what a STUN server says of a socket of ours. Gives the candidate if it is new.
    pub fn add_reflexive(&mut self, mapped: SocketAddr, base: SocketAddr) -> Option<Candidate> {
        if self.transports == Transports::Relay || mapped == base {
            return None;
        }
        self.add_candidate(Candidate::server_reflexive(mapped, base, "udp").ok()?)
    }

    /// Adds an address that a TURN server relays, reached from `local`. Gives the candidate if it
    /// is new. Transmits to the remote that have this address as their source go to the server;
    /// what it relays is handled as come to this address.
    pub fn add_relayed(&mut self, relayed: SocketAddr, local: SocketAddr) -> Option<Candidate> {
        self.add_candidate(Candidate::relayed(relayed, local, "udp").ok()?)
    }

    /// Takes out what was added for an address that is gone, whether it was a socket's or relayed.
    pub fn remove_local_address(&mut self, address: SocketAddr) {
        // All of an interface's candidates have its address as their local one, a relayed
        // candidate has that of the path to the server.
        let active = SocketAddr::new(address.ip(), ACTIVE_TCP_PORT);
        self.remove_candidates(|candidate| match candidate.kind() {
            CandidateKind::Relayed => candidate.addr() == address,
            _ if candidate.proto() == Protocol::Udp => candidate.local() == address,
            _ => candidate.local() == active,
        });
    }

    /// Takes out a relayed address over which nothing came any more: that the path is lost is known.
    pub fn give_up_relayed(&mut self, address: SocketAddr) {
        if self.sent_from == Some(address) {
            self.sent_from = None;
        }
        self.remove_candidates(|candidate| {
            candidate.kind() == CandidateKind::Relayed && candidate.addr() == address
        });
    }

    fn add_candidate(&mut self, candidate: Candidate) -> Option<Candidate> {
        let added = self.rtc.add_local_candidate(candidate).cloned();
        self.drain();
        let added = added?;
        if self.candidates.iter().any(|known| same(known, &added)) {
            return None;
        }
        self.candidates.push(added.clone());
        Some(added)
    }

    fn remove_candidates(&mut self, gone: impl Fn(&Candidate) -> bool) {
        let (out, kept) = std::mem::take(&mut self.candidates).into_iter().partition(gone);
        self.candidates = kept;
        let out: Vec<Candidate> = out;
        for candidate in out {
            self.rtc.direct_api().invalidate_candidate(&candidate);
            self.drain();
            let base = match candidate.kind() {
                CandidateKind::Relayed => candidate.addr(),
                _ => candidate.local(),
            };
            self.on_address_gone(base);
        }
    }

    /// The candidates that our descriptions carry.
    pub fn local_candidates(&self) -> impl Iterator<Item = &Candidate> {
        let hidden = self.transports == Transports::NoHost;
        self.candidates.iter().filter(move |c| !hidden || c.kind() != CandidateKind::Host)
    }

    /// Takes out of a description of ours what the remote is not to know.
    pub(crate) fn without_hidden(&self, description: String) -> String {
        if self.transports != Transports::NoHost {
            return description;
        }
        let told = |line: &&str| {
            !(line.starts_with("a=candidate:")
                && line.split_ascii_whitespace().any(|field| field == "host"))
        };
        description.split_inclusive('\n').filter(told).collect()
    }

    /// Adds a candidate of the remote, `candidate:…` as in RFC 8839 §5.1. An empty one says that
    /// there are no more. One with a host name for an address (mDNS) is passed over.
    pub fn add_remote_candidate(&mut self, text: &str) -> Result<(), PeerError> {
        let Some(candidate) = parse_candidate(text)? else { return Ok(()) };
        if self.remote_candidates.len() < REMEMBERED {
            self.remote_candidates.push(candidate.clone());
        }
        self.rtc.add_remote_candidate(candidate);
        self.drain();
        Ok(())
    }

    /// The first candidates of the remote that came one by one, after its description.
    pub fn remote_candidates(&self) -> &[Candidate] {
        &self.remote_candidates
    }

    /// The remote's checks may have come before its description: str0m answers one a time-out, and
    /// ours wait behind them.
    pub(crate) fn hasten_checks(&mut self) {
        for _ in 0..FIRST_CHECKS {
            if self.ice != IceConnectionState::Checking {
                return;
            }
            if let Err(error) = self.rtc.handle_input(Input::Timeout(self.now)) {
                warn!(%error, "connectivity checks");
            }
            self.drain();
        }
    }
}

fn same(a: &Candidate, b: &Candidate) -> bool {
    a.addr() == b.addr() && a.local() == b.local() && a.kind() == b.kind() && a.proto() == b.proto()
}

/// Says whether a description or candidate names the IPv6 loopback address: only then is it worth
/// a socket of ours.
pub fn names_loopback_v6(text: &str) -> bool {
    let is_candidate = |line: &str| line.contains("candidate:");
    text.lines()
        .filter(|line| is_candidate(line))
        .any(|line| line.split_ascii_whitespace().nth(4) == Some("::1"))
}

/// Reads a candidate line. `None` for the end of candidates and for what cannot be used here: a
/// host name in place of an address, or a kind of address ICE excludes.
pub fn parse_candidate(text: &str) -> Result<Option<Candidate>, PeerError> {
    let text = text.trim();
    let text = text.strip_prefix("a=").unwrap_or(text);
    if text.is_empty() {
        return Ok(None);
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    let address = fields.get(4).ok_or_else(|| PeerError::Sdp("candidate too short".into()))?;
    if address.parse::<IpAddr>().is_err() {
        let name = address.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        return if name && fields.len() >= 8 {
            Ok(None)
        } else {
            Err(PeerError::Sdp("candidate without an address".into()))
        };
    }
    Candidate::from_sdp_string(text).map(Some).map_err(|error| PeerError::Sdp(error.to_string()))
}

#[cfg(test)]
mod tests;
