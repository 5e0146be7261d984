//! The states of a peer connection, as the W3C names them.

use rtc_audio::peer::{PeerState, SignalingState as Engine};

/// State of the whole connection.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum PeerConnectionState {
    /// Nothing was negotiated.
    New,
    /// ICE or DTLS is on its way.
    Connecting,
    /// Media and data flow.
    Connected,
    /// The path is lost, perhaps for a moment.
    Disconnected,
    /// The path did not come back within 6 s, or the remote closed.
    Failed,
    /// Closed by us.
    Closed,
}

impl From<PeerState> for PeerConnectionState {
    fn from(state: PeerState) -> Self {
        match state {
            PeerState::New => Self::New,
            PeerState::Connecting => Self::Connecting,
            PeerState::Connected => Self::Connected,
            PeerState::Disconnected => Self::Disconnected,
            PeerState::Failed => Self::Failed,
            PeerState::Closed => Self::Closed,
        }
    }
}

/// State of ICE.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum IceConnectionState {
    /// Nothing was tried.
    New,
    /// Paths are tried.
    Checking,
    /// A path works.
    Connected,
    /// The best path was found.
    Completed,
    /// No path works.
    Failed,
    /// The path is lost, perhaps for a moment.
    Disconnected,
    /// Closed by us.
    Closed,
    /// Never reported.
    Max,
}

pub(crate) fn ice_state(state: PeerState) -> IceConnectionState {
    match state {
        PeerState::New => IceConnectionState::New,
        PeerState::Connecting => IceConnectionState::Checking,
        PeerState::Connected => IceConnectionState::Connected,
        PeerState::Disconnected => IceConnectionState::Disconnected,
        PeerState::Failed => IceConnectionState::Failed,
        PeerState::Closed => IceConnectionState::Closed,
    }
}

/// State of gathering. Host candidates are there from the start, and in the first description.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum IceGatheringState {
    /// No description was set.
    New,
    /// STUN or TURN servers are being asked.
    Gathering,
    /// All candidates are known.
    Complete,
}

/// Where offer and answer stand.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum SignalingState {
    /// Nothing is out.
    Stable,
    /// Our offer waits for its answer.
    HaveLocalOffer,
    /// Never reported: provisional answers are not taken.
    HaveLocalPrAnswer,
    /// Their offer waits for our answer.
    HaveRemoteOffer,
    /// Never reported: provisional answers are not taken.
    HaveRemotePrAnswer,
    /// The connection is closed.
    Closed,
}

impl From<Engine> for SignalingState {
    fn from(state: Engine) -> Self {
        match state {
            Engine::Stable => Self::Stable,
            Engine::HaveLocalOffer => Self::HaveLocalOffer,
            Engine::HaveRemoteOffer => Self::HaveRemoteOffer,
            Engine::Closed => Self::Closed,
        }
    }
}
