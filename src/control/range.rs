//! Which bytes of something a client asks for (RFC 9110 §14.2).

use std::ops::Range;

/// More parts than a player asks for; such a request is answered with the whole (§14.2).
const MAX_PARTS: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// Nothing that we understand was asked for.
    Whole,
    /// At least one, each within the size and not empty.
    Parts(Vec<Range<u64>>),
    Unsatisfiable,
}

pub fn read(header: Option<&str>, size: u64) -> Ranges {
    let Some((unit, set)) = header.and_then(|header| header.split_once('=')) else {
        return Ranges::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Ranges::Whole;
    }
    let mut parts = Vec::new();
    for spec in set.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        let Some(part) = one(spec, size) else { return Ranges::Whole };
        if !part.is_empty() {
            parts.push(part);
        }
        if parts.len() > MAX_PARTS {
            return Ranges::Whole;
        }
    }
    if parts.is_empty() { Ranges::Unsatisfiable } else { Ranges::Parts(parts) }
}

/// `None`: not a range. An empty one lies beyond the end.
fn one(spec: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number beyond any size is as good as the greatest.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    if first.is_empty() {
        let suffix = number(last)?.min(size);
        return Some(size - suffix..size);
    }
    let first = number(first)?;
    let end = if last.is_empty() { size } else { number(last)?.saturating_add(1) };
    if !last.is_empty() && end <= first {
        return None;
    }
    Some(first.min(size)..end.min(size))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "one part is meant")]
    fn parts_are_read_as_the_rfc_has_them() {
        let parts = |header: &str| read(Some(header), 10_000);
        assert_eq!(parts("bytes=0-499"), Ranges::Parts(vec![0..500]));
        assert_eq!(parts("bytes=-500"), Ranges::Parts(vec![9_500..10_000]));
        assert_eq!(parts("bytes=9500-"), Ranges::Parts(vec![9_500..10_000]));
        assert_eq!(parts("bytes=0-0, -1"), Ranges::Parts(vec![0..1, 9_999..10_000]));
        assert_eq!(parts("bytes=0-99999999999999999999"), Ranges::Parts(vec![0..10_000]));
        assert_eq!(parts("bytes=-20000"), Ranges::Parts(vec![0..10_000]));
        for beyond in ["bytes=10000-", "bytes=-0", "bytes=20000-30000", "bytes="] {
            assert_eq!(parts(beyond), Ranges::Unsatisfiable, "{beyond}");
        }
        for other in ["items=0-1", "bytes", "bytes=a-b", "bytes=5-2", "bytes=--1", "bytes=0-1;2"] {
            assert_eq!(parts(other), Ranges::Whole, "{other}");
        }
        assert_eq!(read(None, 5), Ranges::Whole);
        assert_eq!(read(Some("bytes=0-"), 0), Ranges::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_lies_within(header in "bytes=[0-9, -]{0,30}", size in 0..500_u64) {
            if let Ranges::Parts(parts) = read(Some(&header), size) {
                prop_assert!(!parts.is_empty());
                for part in parts {
                    prop_assert!(part.start < part.end && part.end <= size);
                }
            }
        }
    }
}
