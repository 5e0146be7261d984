//! The outbox's file format: one record a line, `{crc32 of the record, 8 hex digits} {record}\n`.
//!
//! A record has no newline in it (JSON escapes them). A line that was only partly written when the
//! power went has no newline or a wrong sum; what was written before it is not touched by that.

/// The longest line, its newline included.
pub const MAX_LINE: usize = 256 * 1024;
const PREFIX: usize = 9;

/// The record as a line; `None` when it is too long or has a newline in it.
pub fn encode(record: &[u8]) -> Option<Vec<u8>> {
    if record.len() > MAX_LINE - PREFIX - 1 || record.contains(&b'\n') {
        return None;
    }
    let mut line = Vec::with_capacity(PREFIX + record.len() + 1);
    line.extend_from_slice(format!("{:08x} ", crc32fast::hash(record)).as_bytes());
    line.extend_from_slice(record);
    line.push(b'\n');
    Some(line)
}

/// What a stretch of the file holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    Record(&'a [u8]),
    /// Whole, but not what was written.
    Corrupt(&'a [u8]),
    /// No newline: the rest of it is further on in the file, or was never written.
    Partial(&'a [u8]),
}

impl Line<'_> {
    /// Bytes of the file that it covers.
    pub fn len(&self) -> usize {
        match self {
            Self::Record(record) => PREFIX + record.len() + 1,
            Self::Corrupt(bytes) => bytes.len() + 1,
            Self::Partial(bytes) => bytes.len(),
        }
    }
}

/// The lines of a stretch that begins at the beginning of one.
pub fn lines(mut bytes: &[u8]) -> impl Iterator<Item = Line<'_>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
            return Some(Line::Partial(std::mem::take(&mut bytes)));
        };
        let line = &bytes[..end];
        bytes = &bytes[end + 1..];
        Some(decode(line).map_or(Line::Corrupt(line), Line::Record))
    })
}

fn decode(line: &[u8]) -> Option<&[u8]> {
    let (prefix, record) = line.split_at_checked(PREFIX)?;
    (prefix == format!("{:08x} ", crc32fast::hash(record)).as_bytes()).then_some(record)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
        lines(bytes)
            .filter_map(|line| match line {
                Line::Record(record) => Some(record.to_vec()),
                Line::Corrupt(_) | Line::Partial(_) => None,
            })
            .collect()
    }

    #[test]
    fn a_record_with_a_newline_or_too_long_is_refused() {
        assert_eq!(encode(b"a\nb"), None);
        assert_eq!(encode(&vec![b'x'; MAX_LINE]), None);
        assert_eq!(encode(&vec![b'x'; MAX_LINE - PREFIX - 1]).unwrap().len(), MAX_LINE);
    }

    #[test]
    fn a_damaged_line_costs_only_itself() {
        let mut file = encode(b"one").unwrap();
        let second = file.len();
        file.extend(encode(b"two").unwrap());
        file.extend(encode(b"three").unwrap());
        file[second + PREFIX] ^= 1;
        assert_eq!(records(&file), [b"one".to_vec(), b"three".to_vec()]);
    }

    fn written() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = any::<u8>().prop_filter("no newline", |byte| *byte != b'\n');
        prop::collection::vec(prop::collection::vec(byte, 0..60), 0..12)
    }

    proptest! {
        #[test]
        fn a_file_cut_anywhere_gives_a_prefix_of_what_was_written(
            written in written(),
            cut in any::<prop::sample::Index>(),
        ) {
            let file: Vec<u8> = written.iter().flat_map(|record| encode(record).unwrap()).collect();
            let cut = cut.index(file.len() + 1);
            let whole = written
                .iter()
                .scan(0, |end, record| {
                    *end += PREFIX + record.len() + 1;
                    Some(*end)
                })
                .take_while(|end| *end <= cut)
                .count();
            prop_assert_eq!(records(&file[..cut]), written[..whole].to_vec());
        }

        #[test]
        fn any_bytes_are_covered_exactly(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert_eq!(lines(&bytes).map(|line| line.len()).sum::<usize>(), bytes.len());
        }
    }
}
