//! Transceivers: what one media section sends and receives (RFC 8829 §3.4.1).

use std::collections::HashMap;

use str0m::media::{MediaKind, Mid, Pt};
use str0m::rtp::Ssrc;

use crate::frame_crypto::Transform;
use crate::sdp::Direction;
use crate::vp8::KeyFrames;

/// Names a transceiver of one peer, for its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransceiverId(pub(crate) u32);

/// Audio or video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    /// Opus.
    Audio,
    /// Received only, and of that the key frames where somebody watches.
    Video,
}

impl MediaType {
    pub(crate) fn kind(self) -> MediaKind {
        match self {
            Self::Audio => MediaKind::Audio,
            Self::Video => MediaKind::Video,
        }
    }
}

/// What a remote section turned out to do when a description was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrackChange {
    /// The remote sends now, or sends another stream than before.
    Started {
        /// The section's transceiver.
        id: TransceiverId,
        /// Stream ids of its msid lines.
        streams: Vec<String>,
    },
    /// The remote no longer sends.
    Ended {
        /// The section's transceiver.
        id: TransceiverId,
    },
}

/// State of one transceiver.
#[derive(Debug, Clone)]
pub struct Transceiver {
    pub(crate) id: TransceiverId,
    pub(crate) media: MediaType,
    /// Section, once an answer made it real.
    pub(crate) mid: Option<Mid>,
    /// Section in the offer that is out.
    pub(crate) tentative: Option<Mid>,
    pub(crate) direction: Direction,
    pub(crate) current: Option<Direction>,
    pub(crate) track: Option<String>,
    pub(crate) stream: Option<String>,
    /// Made by `add_track`: an offer of the other side may use it (RFC 8829 §5.10).
    pub(crate) reusable: bool,
    pub(crate) remote_sends: bool,
    pub(crate) remote_streams: Vec<String>,
    pub(crate) sequence: u64,
    pub(crate) payload_type: Option<Pt>,
    pub(crate) sent: SentCounters,
    pub(crate) received: ReceivedCounters,
    pub(crate) sealing: Transform,
    pub(crate) opening: Transform,
    /// Where somebody watches.
    pub(crate) key_frames: Option<Box<KeyFrames>>,
}

/// What went out on a transceiver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SentCounters {
    /// RTP packets.
    pub packets: u64,
    /// RTP payload bytes.
    pub bytes: u64,
    /// Packets that could not be sent: not connected, or not negotiated.
    pub dropped: u64,
    /// SSRC in use.
    pub ssrc: u32,
}

/// What came in on a transceiver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReceivedCounters {
    /// RTP packets.
    pub packets: u64,
    /// RTP payload bytes.
    pub bytes: u64,
    /// Packets that are no Opus.
    pub discarded: u64,
    /// SSRC in use.
    pub ssrc: u32,
}

impl Transceiver {
    pub(crate) fn new(id: TransceiverId, media: MediaType, direction: Direction) -> Self {
        Self {
            id,
            media,
            mid: None,
            tentative: None,
            direction,
            current: None,
            track: None,
            stream: None,
            reusable: false,
            remote_sends: false,
            remote_streams: Vec::new(),
            // Low enough that the first packets cannot wrap (RFC 3711 §3.3.1), yet not zero.
            sequence: 1_000,
            payload_type: None,
            sent: SentCounters::default(),
            received: ReceivedCounters::default(),
            sealing: Transform::default(),
            opening: Transform::default(),
            key_frames: None,
        }
    }

    /// Its name.
    pub fn id(&self) -> TransceiverId {
        self.id
    }

    /// Audio or video.
    pub fn media(&self) -> MediaType {
        self.media
    }

    /// The section's mid, once an offer with it is out.
    pub fn mid(&self) -> Option<String> {
        self.mid.or(self.tentative).map(|mid| mid.to_string())
    }

    /// The direction that is wanted.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The direction that was negotiated last.
    pub fn current_direction(&self) -> Option<Direction> {
        self.current
    }

    /// Id of the track it sends.
    pub fn track(&self) -> Option<&str> {
        self.track.as_deref()
    }

    /// Stream ids that the remote sends here.
    pub fn remote_streams(&self) -> &[String] {
        &self.remote_streams
    }

    /// Says whether the remote sends here.
    pub fn remote_sends(&self) -> bool {
        self.remote_sends
    }

    /// What went out.
    pub fn sent(&self) -> SentCounters {
        self.sent
    }

    /// What came in.
    pub fn received(&self) -> ReceivedCounters {
        self.received
    }
}

/// Which transceiver an SSRC belongs to, so that no packet needs a search.
pub(crate) type Routes = HashMap<Ssrc, usize>;
