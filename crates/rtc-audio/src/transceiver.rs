//! Transceivers: what one media section sends and receives (RFC 8829 §3.4.1).

use std::collections::HashMap;

use str0m::media::{MediaKind, Mid, Pt};
use str0m::rtp::Ssrc;

use crate::arrivals::Arrivals;
use crate::frame_crypto::Transform;
use crate::opus_format::OpusFormat;
use crate::red::RedSender;
use crate::sdp::Direction;

/// Names a transceiver of one peer, for its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransceiverId(pub(crate) u32);

/// Audio or video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    /// Opus.
    Audio,
    /// Negotiated for the sake of the sections that a server wants; its packets are dropped.
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
    pub(crate) payload_types: Option<PayloadTypes>,
    /// What the remote's description asks of the encoder.
    pub(crate) opus: Option<OpusFormat>,
    pub(crate) red: RedSender,
    /// RED may be sent, if it was negotiated.
    pub(crate) red_allowed: bool,
    pub(crate) sent: SentCounters,
    pub(crate) received: ReceivedCounters,
    pub(crate) arrivals: Arrivals,
    pub(crate) sealing: Transform,
    pub(crate) opening: Transform,
}

/// What packets of a section are sent as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PayloadTypes {
    pub(crate) opus: Pt,
    /// Of the redundant payload around it, if that is what the remote prefers.
    pub(crate) red: Option<Pt>,
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
    /// Extended sequence numbers of the SSRC in use: the first and the highest.
    range: Option<(u64, u64)>,
    /// Packets of the SSRC in use.
    of_ssrc: u64,
    /// Losses of SSRCs before.
    lost_before: i64,
}

impl ReceivedCounters {
    /// Counts a packet with an extended sequence number.
    pub(crate) fn count(&mut self, ssrc: u32, sequence: u64, payload: usize) {
        if self.ssrc != ssrc && self.packets > 0 {
            self.lost_before = self.lost();
            self.range = None;
            self.of_ssrc = 0;
        }
        self.ssrc = ssrc;
        self.packets += 1;
        self.of_ssrc += 1;
        self.bytes += payload as u64;
        let (first, highest) = self.range.unwrap_or((sequence, sequence));
        self.range = Some((first.min(sequence), highest.max(sequence)));
    }

    /// Packets expected less those that came, so that duplicates may make it negative
    /// (RFC 3550 §6.4.1).
    pub fn lost(&self) -> i64 {
        let expected = self.range.map_or(0, |(first, highest)| highest - first + 1);
        self.lost_before + expected as i64 - self.of_ssrc as i64
    }
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
            payload_types: None,
            opus: None,
            red: RedSender::default(),
            red_allowed: true,
            sent: SentCounters::default(),
            received: ReceivedCounters::default(),
            arrivals: Arrivals::default(),
            sealing: Transform::default(),
            opening: Transform::default(),
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

    /// Payload type of Opus here, once something was sent.
    pub fn payload_type(&self) -> Option<u8> {
        self.payload_types.map(|payload_types| *payload_types.opus)
    }

    /// What the remote asks of the encoder, once it has described this section; RED only if it may
    /// be sent.
    pub fn opus_format(&self) -> Option<OpusFormat> {
        self.opus.map(|format| OpusFormat { red: format.red && self.red_allowed, ..format })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_in_the_sequence_is_lost_until_it_comes() {
        let mut received = ReceivedCounters::default();
        for sequence in [65_535, 65_536, 65_539] {
            received.count(7, sequence, 10);
        }
        assert_eq!(received.lost(), 2);
        received.count(7, 65_537, 10);
        assert_eq!((received.lost(), received.packets, received.bytes), (1, 4, 40));
    }

    #[test]
    fn another_ssrc_begins_a_sequence_of_its_own() {
        let mut received = ReceivedCounters::default();
        received.count(7, 100, 10);
        received.count(7, 103, 10);
        received.count(8, 9_000, 10);
        received.count(8, 9_002, 10);
        assert_eq!((received.lost(), received.ssrc), (3, 8));
    }
}
