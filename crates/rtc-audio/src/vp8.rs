//! Key frames of VP8 out of their RTP packets (RFC 7741), and as WebP pictures.
//!
//! Of other frames only the first bytes of their packets are looked at.

use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes of a key frame before its first partition: the frame tag, the start code and the
/// dimensions (RFC 6386 §9.1).
const KEY_HEADER: usize = 10;
const START_CODE: [u8; 3] = [0x9d, 0x01, 0x2a];

/// The largest frame that is put together.
pub const MOST_BYTES: usize = 4 * 1024 * 1024;
/// The most packets that one frame may have.
pub const MOST_PACKETS: usize = 4_096;
/// Packets kept that may belong to a key frame whose first packet is still on its way.
const EARLY: usize = 32;

/// A packet of a frame, behind its payload descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part<'a> {
    /// The first of its frame.
    first: bool,
    data: &'a [u8],
}

/// Takes off the payload descriptor (RFC 7741 §4.2).
fn part(payload: &[u8]) -> Option<Part<'_>> {
    let (required, mut rest) = payload.split_first()?;
    let first = required & 0x10 != 0 && required & 0x07 == 0;
    if required & 0x80 != 0 {
        let extensions;
        (extensions, rest) = rest.split_first()?;
        if extensions & 0x80 != 0 {
            let id = *rest.first()?;
            rest = rest.get(if id & 0x80 == 0 { 1 } else { 2 }..)?;
        }
        if extensions & 0x40 != 0 {
            rest = rest.get(1..)?;
        }
        if extensions & 0x30 != 0 {
            rest = rest.get(1..)?;
        }
    }
    (!rest.is_empty()).then_some(Part { first, data: rest })
}

/// Says whether a frame that begins so is a key frame (RFC 6386 §9.1: the bit is inverse).
fn is_key(frame: &[u8]) -> bool {
    frame.first().is_some_and(|tag| tag & 1 == 0)
}

/// Width and height of a key frame in pixels; none if it is none, or not well-formed.
pub fn dimensions(frame: &[u8]) -> Option<(u16, u16)> {
    let header = frame.first_chunk::<KEY_HEADER>()?;
    let [tag0, tag1, tag2, s0, s1, s2, w0, w1, h0, h1] = *header;
    let tag = u32::from_le_bytes([tag0, tag1, tag2, 0]);
    let shown = tag & 0x10 != 0;
    let first_partition = (tag >> 5) as usize;
    // The two upper bits are a hint for scaling.
    let width = u16::from_le_bytes([w0, w1]) & 0x3fff;
    let height = u16::from_le_bytes([h0, h1]) & 0x3fff;
    let whole = is_key(frame)
        && shown
        && [s0, s1, s2] == START_CODE
        && first_partition <= frame.len() - KEY_HEADER
        && width > 0
        && height > 0;
    whole.then_some((width, height))
}

/// A key frame as a WebP file: that is the lossy form of it (RFC 9649 §2.5).
pub fn to_webp(frame: &[u8]) -> Vec<u8> {
    let padding = frame.len() % 2;
    let len = frame.len() as u32;
    let mut file = Vec::with_capacity(20 + frame.len() + padding);
    file.extend_from_slice(b"RIFF");
    file.extend_from_slice(&(4 + 8 + len + padding as u32).to_le_bytes());
    file.extend_from_slice(b"WEBPVP8 ");
    file.extend_from_slice(&len.to_le_bytes());
    file.extend_from_slice(frame);
    file.resize(file.len() + padding, 0);
    file
}

/// A packet as it waits.
#[derive(Debug, Clone)]
struct Kept {
    sequence: u64,
    timestamp: u32,
    marker: bool,
    payload: Arc<[u8]>,
}

/// Puts key frames together. Packets may come in any order; a newer key frame takes the place of
/// one that is not whole yet.
#[derive(Debug, Clone, Default)]
pub struct KeyFrames {
    /// Of the key frame at hand, in no order.
    parts: Vec<Kept>,
    bytes: usize,
    /// Its RTP time and its first packet.
    at_hand: Option<(u32, u64)>,
    last: Option<u64>,
    /// The last packet of the frame that was given: nothing up to it matters any more.
    given: Option<u64>,
    early: VecDeque<Kept>,
}

impl KeyFrames {
    /// Nothing at hand.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a packet. Gives the frame that became whole.
    pub fn push(
        &mut self,
        sequence: u64,
        timestamp: u32,
        marker: bool,
        payload: &Arc<[u8]>,
    ) -> Option<Vec<u8>> {
        if self.given.is_some_and(|given| sequence <= given) {
            return None;
        }
        let part = part(payload)?;
        if part.first {
            if !is_key(part.data) || self.at_hand.is_some_and(|(_, first)| first >= sequence) {
                return None;
            }
            self.begin(sequence, timestamp);
        }
        let kept = Kept { sequence, timestamp, marker, payload: Arc::clone(payload) };
        match self.at_hand {
            Some((at_hand, first)) if at_hand == timestamp && sequence >= first => self.add(kept),
            _ => {
                if self.early.len() >= EARLY {
                    self.early.pop_front();
                }
                self.early.push_back(kept);
            }
        }
        self.finish()
    }

    fn begin(&mut self, sequence: u64, timestamp: u32) {
        self.forget();
        self.at_hand = Some((timestamp, sequence));
        for _ in 0..self.early.len() {
            let Some(kept) = self.early.pop_front() else { break };
            if kept.timestamp == timestamp && kept.sequence > sequence {
                self.add(kept);
            } else {
                self.early.push_back(kept);
            }
        }
    }

    fn forget(&mut self) {
        self.parts.clear();
        self.bytes = 0;
        self.at_hand = None;
        self.last = None;
    }

    fn add(&mut self, kept: Kept) {
        if self.parts.iter().any(|known| known.sequence == kept.sequence) {
            return;
        }
        self.bytes += kept.payload.len();
        if self.bytes > MOST_BYTES || self.parts.len() >= MOST_PACKETS {
            self.forget();
            return;
        }
        if kept.marker {
            self.last = Some(kept.sequence);
        }
        self.parts.push(kept);
    }

    fn finish(&mut self) -> Option<Vec<u8>> {
        let ((_, first), last) = (self.at_hand?, self.last?);
        if last.checked_sub(first)? + 1 != self.parts.len() as u64 {
            return None;
        }
        self.parts.sort_unstable_by_key(|kept| kept.sequence);
        let mut frame = Vec::with_capacity(self.bytes);
        for part in self.parts.iter().filter_map(|kept| part(&kept.payload)) {
            frame.extend_from_slice(part.data);
        }
        self.forget();
        self.given = Some(last);
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key_frame(len: usize) -> Vec<u8> {
        let tag = 0x10_u32 | (4 << 5);
        let mut frame = tag.to_le_bytes()[..3].to_vec();
        frame.extend_from_slice(&START_CODE);
        frame.extend_from_slice(&[0x40, 0x01, 0xb4, 0x40]);
        frame.extend((frame.len()..len).map(|i| i as u8));
        frame
    }

    /// The frame in packets, with the descriptor that LiveKit's server sends: picture id of 15
    /// bits, TL0PICIDX, TID and KEYIDX.
    fn packets(frame: &[u8], size: usize) -> Vec<Arc<[u8]>> {
        let packet = |(i, chunk): (usize, &[u8])| {
            let start = if i == 0 { 0x90 } else { 0x80 };
            [&[start, 0xf0, 0x81, 0x02, 3, 0x20][..], chunk].concat().into()
        };
        frame.chunks(size).enumerate().map(packet).collect()
    }

    fn push_all(frames: &mut KeyFrames, order: &[usize], packets: &[Arc<[u8]>]) -> Vec<Vec<u8>> {
        let last = packets.len() - 1;
        let push = |at: &usize| frames.push(100 + *at as u64, 9_000, *at == last, &packets[*at]);
        order.iter().filter_map(push).collect()
    }

    #[test]
    fn a_key_frame_is_put_together_in_any_order_and_once() {
        let frame = key_frame(500);
        let packets = packets(&frame, 200);
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]] {
            let mut frames = KeyFrames::new();
            assert_eq!(push_all(&mut frames, &order, &packets), [frame.clone()], "{order:?}");
            assert!(push_all(&mut frames, &order, &packets).is_empty(), "{order:?} again");
        }
    }

    #[test]
    fn a_gap_waits_and_a_newer_key_frame_wins() {
        let (frame, newer) = (key_frame(500), key_frame(90));
        let old = packets(&frame, 200);
        let mut frames = KeyFrames::new();
        assert!(push_all(&mut frames, &[0, 2], &old).is_empty());
        let new = &packets(&newer, 200)[0];
        assert_eq!(frames.push(110, 12_000, true, new), Some(newer));
        assert_eq!(frames.push(101, 9_000, false, &old[1]), None);
    }

    #[test]
    fn a_lost_packet_may_come_after_the_frames_that_follow() {
        let frame = key_frame(500);
        let packets = packets(&frame, 200);
        let mut frames = KeyFrames::new();
        assert!(push_all(&mut frames, &[0, 2], &packets).is_empty());
        let inter: Arc<[u8]> = [0x10, 0x31, 0, 0, 7].into();
        assert_eq!(frames.push(103, 12_000, true, &inter), None);
        assert_eq!(push_all(&mut frames, &[1], &packets), [frame]);
    }

    #[test]
    fn other_frames_leave_nothing_behind() {
        let mut frames = KeyFrames::new();
        let (start, more): (Arc<[u8]>, Arc<[u8]>) = ([0x10, 0x31, 0, 0].into(), [0, 1].into());
        for at in 0..1_000 {
            assert_eq!(frames.push(at * 2, at as u32, false, &start), None);
            assert_eq!(frames.push(at * 2 + 1, at as u32, true, &more), None);
        }
        assert!(frames.parts.is_empty() && frames.early.len() == EARLY);
    }

    #[test]
    fn a_frame_without_end_is_given_up() {
        let mut frames = KeyFrames::new();
        let first = &packets(&key_frame(90), 200)[0];
        frames.push(0, 0, false, first);
        let more: Arc<[u8]> = vec![0; 1_200].into();
        for sequence in 1..=MOST_PACKETS as u64 {
            frames.push(sequence, 0, false, &more);
            assert!(frames.bytes <= MOST_BYTES && frames.parts.len() <= MOST_PACKETS);
        }
        assert_eq!(frames.at_hand, None);
    }

    #[test]
    fn dimensions_are_those_of_the_header() {
        let frame = key_frame(60);
        assert_eq!(dimensions(&frame), Some((320, 180)));
        assert_eq!(dimensions(&frame[..13]), None, "shorter than its first partition");
        let mut other = frame.clone();
        other[3] = 0;
        assert_eq!(dimensions(&other), None, "another start code");
        other.clone_from(&frame);
        other[0] |= 1;
        assert_eq!(dimensions(&other), None, "no key frame");
    }

    #[test]
    fn a_picture_has_the_length_that_it_says() {
        for len in [60, 61] {
            let frame = key_frame(len);
            let file = to_webp(&frame);
            let says = u32::from_le_bytes(file[4..8].try_into().unwrap()) as usize;
            assert_eq!((&file[..4], says), (&b"RIFF"[..], file.len() - 8));
            assert_eq!(&file[8..16], b"WEBPVP8 ");
            assert_eq!(u32::from_le_bytes(file[16..20].try_into().unwrap()) as usize, len);
            assert_eq!((&file[20..20 + len], file.len() % 2), (&frame[..], 0));
        }
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(
            packets in proptest::collection::vec(
                (0_u64..50, 0_u32..5, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..20)),
                0..60,
            ),
        ) {
            let mut frames = KeyFrames::new();
            for (sequence, timestamp, marker, payload) in packets {
                if let Some(frame) = frames.push(sequence, timestamp, marker, &payload.into()) {
                    let _ = dimensions(&frame);
                }
            }
        }
    }
}
