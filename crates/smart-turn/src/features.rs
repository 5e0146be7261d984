//! The picture of sound that the network is shown: 80 mel bands of the last 8 s, in 10 ms steps.

use std::sync::LazyLock;

use ndarray::{Array2, Array3, Axis};

/// Samples of 8 s at 16 kHz.
pub const WINDOW: usize = 128_000;
const FFT: usize = 400;
const HOP: usize = 160;
const BINS: usize = FFT / 2 + 1;
const MELS: usize = 80;
const STEPS: usize = WINDOW / HOP;
const RATE: f64 = 16_000.0;

/// Cosines and sines of every bin, under a periodic Hann window: `[FFT, 2 × BINS]`.
static FOURIER: LazyLock<Array2<f32>> = LazyLock::new(|| {
    Array2::from_shape_fn((FFT, 2 * BINS), |(n, column)| {
        let turn = std::f64::consts::TAU / FFT as f64;
        let hann = 0.5 - 0.5 * (turn * n as f64).cos();
        let angle = turn * ((n * (column / 2)) % FFT) as f64;
        (hann * if column % 2 == 0 { angle.cos() } else { angle.sin() }) as f32
    })
});

/// Slaney's mel filters, each of the same area: `[BINS, MELS]`.
static FILTERS: LazyLock<Array2<f32>> = LazyLock::new(|| {
    let edges: Vec<f64> =
        (0..MELS + 2).map(|n| to_hz(to_mel(RATE / 2.0) * n as f64 / (MELS + 1) as f64)).collect();
    Array2::from_shape_fn((BINS, MELS), |(bin, mel)| {
        let hz = bin as f64 * RATE / FFT as f64;
        let (low, middle, high) = (edges[mel], edges[mel + 1], edges[mel + 2]);
        let rise = (hz - low) / (middle - low);
        let fall = (high - hz) / (high - middle);
        (rise.min(fall).max(0.0) * 2.0 / (high - low)) as f32
    })
});

/// Linear to 1 kHz, logarithmic above (Slaney's auditory toolbox).
const BREAK_HZ: f64 = 1_000.0;
const HZ_PER_MEL: f64 = 200.0 / 3.0;
const BREAK_MEL: f64 = BREAK_HZ / HZ_PER_MEL;

fn log_step() -> f64 {
    6.4_f64.ln() / 27.0
}

fn to_mel(hz: f64) -> f64 {
    if hz < BREAK_HZ { hz / HZ_PER_MEL } else { BREAK_MEL + (hz / BREAK_HZ).ln() / log_step() }
}

fn to_hz(mel: f64) -> f64 {
    if mel < BREAK_MEL {
        mel * HZ_PER_MEL
    } else {
        BREAK_HZ * (log_step() * (mel - BREAK_MEL)).exp()
    }
}

/// The features of the last 8 s of `samples` (mono s16 at 16 kHz; silence before, if they are
/// fewer): `[1, 80, 800]`.
pub fn features(samples: &[i16]) -> Array3<f32> {
    let last = &samples[samples.len().saturating_sub(WINDOW)..];
    let mut sound = vec![0.0_f32; WINDOW];
    for (to, from) in sound[WINDOW - last.len()..].iter_mut().zip(last) {
        *to = f32::from(*from) / 32_768.0;
    }
    let mean = sound.iter().map(|x| f64::from(*x)).sum::<f64>() / WINDOW as f64;
    let variance =
        sound.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / WINDOW as f64;
    let by = 1.0 / (variance + 1e-7).sqrt();
    for x in &mut sound {
        *x = ((f64::from(*x) - mean) * by) as f32;
    }
    // Frames are centred: the sound is mirrored at both ends.
    let at = |n: isize| {
        let last = WINDOW as isize - 1;
        let n = n.abs();
        sound[if n > last { 2 * last - n } else { n } as usize]
    };
    let half = (FFT / 2) as isize;
    let frames =
        Array2::from_shape_fn((STEPS, FFT), |(step, n)| at((step * HOP + n) as isize - half));
    let spectrum = frames.dot(&*FOURIER);
    let power = Array2::from_shape_fn((STEPS, BINS), |(step, bin)| {
        spectrum[[step, 2 * bin]].powi(2) + spectrum[[step, 2 * bin + 1]].powi(2)
    });
    let mut mels = power.dot(&*FILTERS).mapv(|x| x.max(1e-10).log10());
    let floor = mels.fold(f32::NEG_INFINITY, |most, x| most.max(*x)) - 8.0;
    mels.mapv_inplace(|x| (x.max(floor) + 4.0) / 4.0);
    mels.reversed_axes().as_standard_layout().into_owned().insert_axis(Axis(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_are_those_of_the_last_eight_seconds_with_silence_before() {
        let sound: Vec<i16> = (0..20_000).map(|n| (n * 37 % 9_000) as i16 - 4_500).collect();
        let picture = features(&sound);
        assert_eq!(picture.shape(), [1, MELS, STEPS]);
        let mut longer = vec![9_000_i16; WINDOW];
        longer.extend(vec![0_i16; WINDOW - sound.len()]);
        longer.extend(&sound);
        assert_eq!(features(&longer), picture);
    }

    #[test]
    fn a_tone_is_in_its_band() {
        let tone: Vec<i16> = (0..WINDOW)
            .map(|n| ((n as f32 * 1_000.0 / 16_000.0 * std::f32::consts::TAU).sin() * 9e3) as i16)
            .collect();
        let picture = features(&tone);
        let step = picture.index_axis(Axis(0), 0);
        let column = step.column(STEPS / 2);
        let loudest = (0..MELS).max_by(|a, b| column[*a].total_cmp(&column[*b])).unwrap();
        // 1 kHz is 15 of Slaney's mels, of which 8 kHz are 45.2.
        assert_eq!(loudest, 26);
    }
}
