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

/// Blocks of a payload at most: more is no protection of a voice but an attack on us.
const MAX_BLOCKS: usize = 16;

/// One block of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block<'a> {
    /// Payload type of what is in it.
    pub(crate) payload_type: u8,
    /// How much earlier than the packet it belongs, in RTP time; 0 for the primary block.
    pub(crate) offset: u32,
    /// What is in it.
    pub(crate) payload: &'a [u8],
}

/// The blocks of a payload in the order they are in: copies, the oldest first, and last the
/// primary. `None` when it is no RED payload (RFC 2198 §3).
pub(crate) fn blocks(payload: &[u8]) -> Option<Blocks<'_>> {
    let (mut headers, mut copies, mut count) = (0_usize, 0_usize, 1);
    while *payload.get(headers)? & 0x80 != 0 {
        let header = payload.get(headers..headers + 4)?;
        copies += length_of(header);
        headers += 4;
        count += 1;
        if count > MAX_BLOCKS {
            return None;
        }
    }
    let at = headers + 1;
    (at + copies <= payload.len()).then_some(Blocks { payload, header: Some(0), at })
}

fn length_of(header: &[u8]) -> usize {
    match header {
        [_, _, high, low] => usize::from(u16::from_be_bytes([high & 0x03, *low])),
        _ => 0,
    }
}

/// See [`blocks`].
#[derive(Debug, Clone)]
pub(crate) struct Blocks<'a> {
    payload: &'a [u8],
    /// Where the next block's header is.
    header: Option<usize>,
    /// Where the next block is.
    at: usize,
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Block<'a>;

    fn next(&mut self) -> Option<Block<'a>> {
        let header_at = self.header.take()?;
        let first = *self.payload.get(header_at)?;
        let payload_type = first & 0x7f;
        if first & 0x80 == 0 {
            return Some(Block { payload_type, offset: 0, payload: self.payload.get(self.at..)? });
        }
        let header = self.payload.get(header_at..header_at + 4)?;
        let length = length_of(header);
        let offset = u32::from(u16::from_be_bytes([header[1], header[2]]) >> 2);
        let payload = self.payload.get(self.at..self.at + length)?;
        self.header = Some(header_at + 4);
        self.at += length;
        Some(Block { payload_type, offset, payload })
    }
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
        let theirs = RedDecoder::decode(&second).unwrap();
        assert_eq!(theirs, [block(&[1; 80], 960, false), block(&[2; 70], 0, true)]);
        let ours: Vec<_> = blocks(&second).unwrap().collect();
        let block = |payload, offset| Block { payload_type: OPUS, offset, payload };
        assert_eq!(ours, [block([1; 80].as_slice(), 960), block([2; 70].as_slice(), 0)]);
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
            let Some(blocks) = blocks(&payload) else { return Ok(()) };
            let blocks: Vec<_> = blocks.collect();
            prop_assert!(blocks.last().is_some_and(|block| block.offset == 0));
            prop_assert!(blocks.len() <= MAX_BLOCKS);
            if let Ok(theirs) = RedDecoder::decode(&payload) {
                let same = |(a, b): (&Block<'_>, &RedBlock<'_>)| {
                    (a.payload_type, a.offset, a.payload) == (b.pt, b.timestamp_offset, b.payload)
                };
                prop_assert!(blocks.len() == theirs.len() && blocks.iter().zip(&theirs).all(same));
            }
        }
    }
}
