//! Ogg pages of one Opus stream (RFC 3533, RFC 7845), written as they come.
//!
//! Every page stands for itself: a file that ends in the middle of one is playable up to there.

/// Granule positions count samples at this rate, whatever the input's was (RFC 7845 §4).
pub const RATE: u64 = 48_000;
const CONTINUES: u8 = 0x01;
const FIRST: u8 = 0x02;
const LAST: u8 = 0x04;
/// Lacing values in one page.
const MAX_SEGMENTS: usize = 255;

#[derive(Debug)]
pub struct OggOpus {
    serial: u32,
    page: u32,
    /// Samples up to the end of what has been taken, the skip included.
    granule: u64,
    lacing: Vec<u8>,
    body: Vec<u8>,
}

impl OggOpus {
    /// And the two header pages. `skip`: what the decoder drops at the beginning, `rate`: of the
    /// input, for information.
    pub fn new(serial: u32, channels: u8, skip: u16, rate: u32) -> (Self, Vec<u8>) {
        let mut ogg = Self { serial, page: 0, granule: 0, lacing: Vec::new(), body: Vec::new() };
        let mut head = b"OpusHead\x01".to_vec();
        head.push(channels);
        head.extend(skip.to_le_bytes());
        head.extend(rate.to_le_bytes());
        // No gain, mapping family 0: mono or stereo.
        head.extend([0, 0, 0]);
        let vendor = b"antiphon";
        let mut tags = b"OpusTags".to_vec();
        tags.extend((vendor.len() as u32).to_le_bytes());
        tags.extend(vendor);
        tags.extend(0_u32.to_le_bytes());
        let mut out = Vec::new();
        for (packet, flags) in [(head, FIRST), (tags, 0)] {
            ogg.take(&packet);
            out.extend(ogg.write(flags));
        }
        (ogg, out)
    }

    /// Adds a packet that plays for `samples` at 48 kHz; what was full before it, as a page.
    pub fn packet(&mut self, packet: &[u8], samples: u64) -> Option<Vec<u8>> {
        let needed = packet.len() / 255 + 1;
        let full = self.lacing.len() + needed > MAX_SEGMENTS;
        let page = full.then(|| self.write(0));
        self.take(packet);
        self.granule += samples;
        page
    }

    /// What has been taken since, as a page.
    pub fn flush(&mut self) -> Option<Vec<u8>> {
        (!self.lacing.is_empty()).then(|| self.write(0))
    }

    /// The last page, which may be empty.
    pub fn finish(&mut self) -> Vec<u8> {
        self.write(LAST)
    }

    fn take(&mut self, packet: &[u8]) {
        self.lacing.extend(std::iter::repeat_n(255, packet.len() / 255));
        self.lacing.push((packet.len() % 255) as u8);
        self.body.extend_from_slice(packet);
    }

    fn write(&mut self, flags: u8) -> Vec<u8> {
        let mut page = b"OggS\0".to_vec();
        page.push(flags);
        page.extend(self.granule.to_le_bytes());
        page.extend(self.serial.to_le_bytes());
        page.extend(self.page.to_le_bytes());
        page.extend(0_u32.to_le_bytes());
        page.push(self.lacing.len() as u8);
        page.append(&mut self.lacing);
        page.append(&mut self.body);
        let sum = checksum(&page);
        page[22..26].copy_from_slice(&sum.to_le_bytes());
        self.page += 1;
        page
    }
}

/// RFC 3533 §6: polynomial 0x04c11db7, no reflection, nothing in or out.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |sum, byte| {
        let mut sum = sum ^ (u32::from(*byte) << 24);
        for _ in 0..8 {
            sum = if sum & 0x8000_0000 == 0 { sum << 1 } else { (sum << 1) ^ 0x04c1_1db7 };
        }
        sum
    })
}

/// One page as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<'a> {
    pub granule: u64,
    pub last: bool,
    /// Its packets; the writer above never lets one go on in the next page.
    pub packets: Vec<&'a [u8]>,
}

/// The whole pages that the bytes begin with, and how long these are: the rest is torn.
pub fn pages(bytes: &[u8]) -> (Vec<Page<'_>>, usize) {
    let (mut pages, mut at) = (Vec::new(), 0);
    while let Some((page, length)) = page(&bytes[at..]) {
        pages.push(page);
        at += length;
    }
    (pages, at)
}

fn page(bytes: &[u8]) -> Option<(Page<'_>, usize)> {
    let header = bytes.get(..27)?;
    if !header.starts_with(b"OggS\0") || header[5] & CONTINUES != 0 {
        return None;
    }
    let granule = u64::from_le_bytes(header[6..14].try_into().ok()?);
    let lacing = bytes.get(27..27 + usize::from(header[26]))?;
    let body = 27 + lacing.len();
    let length = body + lacing.iter().map(|it| usize::from(*it)).sum::<usize>();
    let mut whole = bytes.get(..length)?.to_vec();
    whole[22..26].fill(0);
    if checksum(&whole).to_le_bytes() != header[22..26] {
        return None;
    }
    let (mut packets, mut from, mut at) = (Vec::new(), body, body);
    for value in lacing {
        at += usize::from(*value);
        if *value < 255 {
            packets.push(&bytes[from..at]);
            from = at;
        }
    }
    Some((Page { granule, last: header[5] & LAST != 0, packets }, length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksum_is_oggs() {
        // The page that ends an empty stream, as libogg 1.3 writes it, has this sum.
        assert_eq!(checksum(b"123456789"), 0x89a1_897f);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_even_when_it_is_cut_off(
            packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..700), 1..60),
            cut: prop::sample::Index,
        ) {
            let (mut ogg, mut file) = OggOpus::new(7, 2, 312, 16_000);
            for packet in &packets {
                file.extend(ogg.packet(packet, 960).unwrap_or_default());
            }
            file.extend(ogg.finish());
            let (read, length) = pages(&file);
            prop_assert_eq!(length, file.len());
            prop_assert!(read[0].packets[0].starts_with(b"OpusHead\x01\x02"));
            prop_assert!(read.last().unwrap().last);
            prop_assert_eq!(read.last().unwrap().granule, 960 * packets.len() as u64);
            let found: Vec<_> = read[2..].iter().flat_map(|page| page.packets.clone()).collect();
            prop_assert_eq!(found, packets.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let at = cut.index(file.len());
            let (torn, whole) = pages(&file[..at]);
            prop_assert!(whole <= at && torn.len() <= read.len());
            prop_assert_eq!(&torn[..], &read[..torn.len()]);
        }
    }
}
