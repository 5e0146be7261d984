//! Candidates of a peer, and the pace of its connectivity checks.

use std::net::{IpAddr, SocketAddr};

use str0m::net::TcpType;
use str0m::{Candidate, IceConnectionState, Input};
use tracing::warn;

use crate::peer::{Peer, PeerError};

/// Port of a candidate that only connects (RFC 6544 §4.5).
const ACTIVE_TCP_PORT: u16 = 9;

/// Candidates of the remote that are kept for the figures.
const REMEMBERED: usize = 64;

/// Checks made and answered at once when the remote's description comes.
const FIRST_CHECKS: usize = 8;

impl Peer {
    /// Adds the address of a socket of ours, and the same address for outgoing TCP. Call it before
    /// the first offer or answer. Addresses that ICE has no use for are passed over.
    pub fn add_local_address(&mut self, address: SocketAddr) {
        let udp = Candidate::host(address, "udp");
        let tcp = Candidate::builder()
            .tcp()
            .host(SocketAddr::new(address.ip(), ACTIVE_TCP_PORT))
            .tcptype(TcpType::Active)
            .build();
        for candidate in [udp, tcp].into_iter().flatten() {
            if let Some(added) = self.rtc.add_local_candidate(candidate).cloned() {
                self.candidates.push(added);
            }
            self.drain();
        }
    }

    /// The candidates that our descriptions carry.
    pub fn local_candidates(&self) -> &[Candidate] {
        &self.candidates
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
