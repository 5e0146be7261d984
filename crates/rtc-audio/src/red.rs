//! Redundant audio (RFC 2198): each packet carries the one before it once more.

use std::sync::Arc;

use str0m::media::Pt;

use crate::send_queue::EncodedFrame;

/// The timestamp offset of a block has 14 bits, its length has 10 (RFC 2198 §3).
const MAX_OFFSET: u32 = (1 << 14) - 1;
const MAX_BLOCK: usize = (1 << 10) - 1;
/// A payload above this goes without its copy, so that no packet is fragmented on its way.
const MAX_PAYLOAD: usize = 1_100;
/// Headers of a redundant block and of the primary one.
const HEADERS: usize = 4 + 1;

/// Wraps the packets of one stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct RedSender {
    last: Option<(Arc<[u8]>, u32)>,
    buffer: Vec<u8>,
}

impl RedSender {
    /// The payload to send for `frame`, whose codec has the payload type `primary`.
    pub(crate) fn wrap(&mut self, primary: Pt, frame: &EncodedFrame) -> Arc<[u8]> {
        let payload_type = *primary & 0x7f;
        self.buffer.clear();
        let last = self.last.replace((Arc::clone(&frame.payload), frame.timestamp));
        let copy = last.and_then(|(payload, timestamp)| {
            let offset = frame.timestamp.wrapping_sub(timestamp);
            let fits = (1..=MAX_OFFSET).contains(&offset)
                && payload.len() <= MAX_BLOCK
                && HEADERS + payload.len() + frame.payload.len() <= MAX_PAYLOAD;
            // After a pause the packet before is silence long since heard.
            (fits && !frame.marker).then_some((payload, offset))
        });
        if let Some((payload, offset)) = &copy {
            let header = (*offset << 10) | payload.len() as u32;
            self.buffer.push(0x80 | payload_type);
            self.buffer.extend(header.to_be_bytes().iter().skip(1));
        }
        self.buffer.push(payload_type);
        if let Some((payload, _)) = &copy {
            self.buffer.extend_from_slice(payload);
        }
        self.buffer.extend_from_slice(&frame.payload);
        Arc::from(self.buffer.as_slice())
    }

    /// Forgets the last packet: the next one is the first of a stream.
    pub(crate) fn reset(&mut self) {
        self.last = None;
    }
}

/// The primary block of a payload, `None` when it is no RED payload.
pub(crate) fn primary(payload: &[u8]) -> Option<&[u8]> {
    let (mut at, mut copies) = (0_usize, 0_usize);
    while *payload.get(at)? & 0x80 != 0 {
        let length = [*payload.get(at + 2)? & 0x03, *payload.get(at + 3)?];
        copies += usize::from(u16::from_be_bytes(length));
        at += 4;
    }
    payload.get(at + 1 + copies..)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use str0m::rtp::{RedBlock, RedDecoder};

    use super::*;

    const OPUS: u8 = 111;

    fn frame(timestamp: u32, payload: &[u8], marker: bool) -> EncodedFrame {
        EncodedFrame { payload: payload.into(), timestamp, marker, level: -30, samples: 480 }
    }

    fn wrap(red: &mut RedSender, frame: &EncodedFrame) -> Arc<[u8]> {
        red.wrap(Pt::new_with_value(OPUS), frame)
    }

    fn block(payload: &[u8], timestamp_offset: u32, is_primary: bool) -> RedBlock<'_> {
        RedBlock { pt: OPUS, timestamp_offset, payload, is_primary }
    }

    #[test]
    fn a_packet_carries_the_one_before() {
        let mut red = RedSender::default();
        let first = wrap(&mut red, &frame(0, &[1; 80], false));
        assert_eq!(RedDecoder::decode(&first).unwrap(), [block(&[1; 80], 0, true)]);
        let second = wrap(&mut red, &frame(960, &[2; 70], false));
        let blocks = RedDecoder::decode(&second).unwrap();
        assert_eq!(blocks, [block(&[1; 80], 960, false), block(&[2; 70], 0, true)]);
        assert_eq!(primary(&second), Some([2; 70].as_slice()));
    }

    #[test]
    fn after_a_pause_or_beyond_a_datagram_there_is_no_copy() {
        let mut red = RedSender::default();
        wrap(&mut red, &frame(0, &[1; 600], false));
        for (alone, why) in [
            (frame(960, &[2; 600], false), "too long together"),
            (frame(1_920, &[3; 80], true), "a pause"),
            (frame(1_920 + 16_384, &[4; 80], false), "too long ago"),
        ] {
            let payload = wrap(&mut red, &alone);
            assert_eq!(RedDecoder::decode(&payload).unwrap().len(), 1, "{why}");
        }
    }

    proptest! {
        #[test]
        fn no_payload_makes_it_panic(payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = primary(&payload);
        }
    }
}
