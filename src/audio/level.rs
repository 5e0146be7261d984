//! How loud samples are.

/// The RMS level of mono s16 samples in dBFS: 0 for a full-scale square wave, -infinity for
/// silence or for no samples.
pub fn dbfs(samples: &[i16]) -> f32 {
    if samples.is_empty() {
        return f32::NEG_INFINITY;
    }
    let energy: f64 = samples.iter().map(|&sample| f64::from(sample).powi(2)).sum();
    let rms = (energy / samples.len() as f64).sqrt() / 32_768.0;
    (20.0 * rms.log10()) as f32
}

/// Samples up to this are no sound: 72 dB below full scale, as the noise of an encoder in a pause is.
const SILENT: u16 = 8;

/// Whether there is nothing to be heard in these samples (s16).
pub fn is_silent(samples: &[i16]) -> bool {
    samples.iter().all(|sample| sample.unsigned_abs() <= SILENT)
}

/// Where mono s16 samples are audible: the index of the first sample above `floor` (dBFS, of its
/// own amplitude) and one past the last. `None` where nothing is.
pub fn audible(samples: &[i16], floor: f32) -> Option<std::ops::Range<usize>> {
    let limit = 32_768.0 * 10_f32.powf(floor / 20.0);
    let loud = |sample: &i16| f32::from(sample.unsigned_abs()) > limit;
    let first = samples.iter().position(loud)?;
    let last = samples.iter().rposition(loud)?;
    Some(first..last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_square_wave_is_zero_dbfs_and_half_of_it_six_less() {
        assert!(dbfs(&[i16::MIN, i16::MIN]).abs() < 0.001);
        assert!((dbfs(&[16_384, -16_384]) + 6.02).abs() < 0.01);
    }

    #[test]
    fn silence_and_nothing_have_no_level() {
        for nothing in [&[0; 10][..], &[]] {
            assert!(dbfs(nothing).is_infinite() && dbfs(nothing) < 0.0);
        }
        assert_eq!(audible(&[0, 3, -3], -45.0), None);
        assert!(is_silent(&[0, 8, -8]) && is_silent(&[]));
        assert!(!is_silent(&[0, 9]) && !is_silent(&[i16::MIN]));
    }

    #[test]
    fn what_is_audible_is_found_between_silences() {
        assert_eq!(audible(&[0, 10, -500, 0, i16::MIN, 7], -45.0), Some(2..5));
    }
}
