//! Raw PCM as providers send it.

/// Little-endian bytes to samples; `half` carries the odd byte from frame to frame.
pub fn to_samples(half: &mut Option<u8>, pcm: &[u8]) -> Vec<i16> {
    let mut bytes = half.take().into_iter().chain(pcm.iter().copied());
    let mut samples = Vec::with_capacity(pcm.len() / 2 + 1);
    while let Some(low) = bytes.next() {
        let Some(high) = bytes.next() else {
            *half = Some(low);
            break;
        };
        samples.push(i16::from_le_bytes([low, high]));
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_byte_waits_for_its_other_half() {
        let mut half = None;
        assert_eq!(to_samples(&mut half, &[1, 0, 2]), [1]);
        assert_eq!(to_samples(&mut half, &[]), Vec::<i16>::new());
        assert_eq!(to_samples(&mut half, &[0, 255, 255]), [2, -1]);
        assert_eq!(half, None);
    }
}
