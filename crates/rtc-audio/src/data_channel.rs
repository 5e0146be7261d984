//! Data channels (RFC 8831) over str0m's SCTP, with a bounded queue before it.

use std::collections::VecDeque;

use str0m::channel::{ChannelConfig, ChannelId, Reliability};
use thiserror::Error;

/// Data that SCTP holds until it is acknowledged, in bytes: bounds throughput at this much a round trip,
/// and no message is larger.
pub const SCTP_BUFFER: usize = 512 * 1024;
/// What may wait in one channel, in bytes: as much as browsers allow.
pub const MAX_QUEUED: usize = 16 * 1024 * 1024;

/// Names a data channel of one peer, for its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChannelKey(pub(crate) u32);

/// How a channel is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChannelInit {
    /// Label, seen by both sides.
    pub label: String,
    /// Subprotocol.
    pub protocol: String,
    /// Messages may overtake one another.
    pub unordered: bool,
    /// A message is given up after so many milliseconds.
    pub max_lifetime_ms: Option<u16>,
    /// A message is given up after so many retransmissions.
    pub max_retransmits: Option<u16>,
    /// Stream id agreed on beforehand; `None` opens the channel in-band (RFC 8832).
    pub negotiated: Option<u16>,
}

impl ChannelInit {
    pub(crate) fn config(&self) -> ChannelConfig {
        let reliability = match (self.max_retransmits, self.max_lifetime_ms) {
            (Some(retransmits), _) => Reliability::MaxRetransmits { retransmits },
            (None, Some(lifetime)) => Reliability::MaxPacketLifetime { lifetime },
            (None, None) => Reliability::Reliable,
        };
        ChannelConfig {
            label: self.label.clone(),
            ordered: !self.unordered,
            reliability,
            negotiated: self.negotiated,
            protocol: self.protocol.clone(),
        }
    }
}

/// State of a channel (W3C `RTCDataChannelState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelState {
    /// Not usable yet.
    Connecting,
    /// Messages flow.
    Open,
    /// What is queued goes out, then it closes.
    Closing,
    /// Over.
    Closed,
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// The channel is not open.
    #[error("the data channel is not open")]
    NotOpen,
    /// More than [`SCTP_BUFFER`].
    #[error("the message is larger than the data channel ever takes")]
    TooLarge,
    /// More than [`MAX_QUEUED`] waits.
    #[error("the data channel's queue is full")]
    Full,
}

/// Counts of one channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelCounters {
    /// Messages handed to SCTP.
    pub messages_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Messages received.
    pub messages_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
}

/// One channel.
#[derive(Debug)]
pub struct Channel {
    pub(crate) key: ChannelKey,
    pub(crate) init: ChannelInit,
    pub(crate) id: Option<ChannelId>,
    pub(crate) stream: Option<u16>,
    pub(crate) state: ChannelState,
    pub(crate) outgoing: VecDeque<(bool, Vec<u8>)>,
    pub(crate) queued: usize,
    pub(crate) counters: ChannelCounters,
}

impl Channel {
    pub(crate) fn new(key: ChannelKey, init: ChannelInit) -> Self {
        let stream = init.negotiated;
        Self {
            key,
            init,
            id: None,
            stream,
            state: ChannelState::Connecting,
            outgoing: VecDeque::new(),
            queued: 0,
            counters: ChannelCounters::default(),
        }
    }

    pub(crate) fn enqueue(&mut self, binary: bool, data: &[u8]) -> Result<(), SendError> {
        if self.state != ChannelState::Open {
            return Err(SendError::NotOpen);
        }
        if data.len() > SCTP_BUFFER {
            return Err(SendError::TooLarge);
        }
        if self.queued + data.len() > MAX_QUEUED {
            return Err(SendError::Full);
        }
        self.queued += data.len();
        self.outgoing.push_back((binary, data.to_vec()));
        Ok(())
    }

    /// Its name.
    pub fn key(&self) -> ChannelKey {
        self.key
    }

    /// How it was made.
    pub fn init(&self) -> &ChannelInit {
        &self.init
    }

    /// SCTP stream id, once known.
    pub fn stream(&self) -> Option<u16> {
        self.stream
    }

    /// Its state.
    pub fn state(&self) -> ChannelState {
        self.state
    }

    /// Bytes that wait to be handed to SCTP.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Counts since it was made.
    pub fn counters(&self) -> ChannelCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_bounded_and_closed_channels_take_nothing() {
        let mut channel = Channel::new(ChannelKey(1), ChannelInit::default());
        assert_eq!(channel.enqueue(true, b"x"), Err(SendError::NotOpen));
        channel.state = ChannelState::Open;
        let mut chunk = vec![0; SCTP_BUFFER];
        for _ in 0..MAX_QUEUED / SCTP_BUFFER {
            assert_eq!(channel.enqueue(true, &chunk), Ok(()));
        }
        chunk.push(0);
        assert_eq!(
            channel.enqueue(true, &chunk),
            Err(SendError::TooLarge),
            "it never would go out"
        );
        assert_eq!(channel.enqueue(true, b"x"), Err(SendError::Full));
    }
}
