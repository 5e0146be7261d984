//! Fades of mono sound: what breaks off or begins in the middle of a sound is heard as a tick.

/// Silences these samples step by step, down to zero.
pub fn fade_out(samples: &mut [i16]) {
    let count = samples.len();
    for (at, sample) in samples.iter_mut().enumerate() {
        *sample = scaled(*sample, count - 1 - at, count);
    }
}

/// Raises these samples step by step, from zero.
pub fn fade_in(samples: &mut [i16]) {
    let count = samples.len();
    for (at, sample) in samples.iter_mut().enumerate() {
        *sample = scaled(*sample, at, count);
    }
}

fn scaled(sample: i16, numerator: usize, denominator: usize) -> i16 {
    (i64::from(sample) * numerator as i64 / denominator.max(1) as i64) as i16
}
