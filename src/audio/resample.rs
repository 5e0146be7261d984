//! Sample rate conversion of mono s16 streams, and down-mixing to mono.
//!
//! rubato's synchronous FFT resampler works in blocks of a few milliseconds. Streams of any chunk
//! length are cut into these blocks, so the chunking never changes the output.

use rubato::{
    Fft, FixedSync, Resampler as _, WindowFunction, audioadapter_buffers::direct::SequentialSlice,
};

/// Block on the slower side, in samples: long enough for a steep filter (5 ms at 16 kHz).
const BLOCK: u32 = 80;
/// Rates whose greatest common divisor is lower need blocks above 40 ms.
const MIN_DIVISOR: u32 = 25;
const RATES: std::ops::RangeInclusive<u32> = 4_000..=192_000;

/// There is no conversion between these rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("audio cannot be converted from {from} Hz to {to} Hz")]
pub struct UnsupportedRates {
    pub from: u32,
    pub to: u32,
}

/// Converts one mono s16 stream from one rate to another.
///
/// The filter's delay is cut off at the start of the output, so sample `n` of the output belongs to
/// the input's time `n / to`; the last few milliseconds come with [`Self::flush`]. After
/// construction nothing is allocated but what the caller's output needs.
#[derive(Debug)]
pub struct Resampler {
    from: u32,
    to: u32,
    blocks: Option<Blocks>,
}

#[derive(Debug)]
struct Blocks {
    fft: Box<Fft<f32>>,
    input: Vec<f32>,
    filled: usize,
    output: Vec<f32>,
    /// Output samples of the filter's delay still to be cut off.
    skip: usize,
    pushed: u64,
    given: u64,
}

impl Resampler {
    /// From and to any of the usual rates (8, 11.025, 12, 16, 22.05, 24, 32, 44.1, 48, 88.2, 96,
    /// 192 kHz) and all pairs alike; equal rates pass through.
    pub fn new(from: u32, to: u32) -> Result<Self, UnsupportedRates> {
        let unsupported = UnsupportedRates { from, to };
        if !RATES.contains(&from) || !RATES.contains(&to) {
            return Err(unsupported);
        }
        if from == to {
            return Ok(Self { from, to, blocks: None });
        }
        let divisor = gcd(from, to);
        if divisor < MIN_DIVISOR {
            return Err(unsupported);
        }
        let units = BLOCK.div_ceil(from.min(to) / divisor);
        let chunk = (units * (from / divisor)) as usize;
        let fft = Fft::new_custom(
            from as usize,
            to as usize,
            chunk,
            1,
            1,
            WindowFunction::Hann2,
            FixedSync::Input,
        )
        .map_err(|_| unsupported)?;
        let blocks = Blocks {
            input: vec![0.0; fft.input_frames_max()],
            filled: 0,
            output: vec![0.0; fft.output_frames_max()],
            skip: fft.output_delay(),
            fft: Box::new(fft),
            pushed: 0,
            given: 0,
        };
        Ok(Self { from, to, blocks: Some(blocks) })
    }

    pub fn from_rate(&self) -> u32 {
        self.from
    }

    pub fn to_rate(&self) -> u32 {
        self.to
    }

    /// How far the output lags behind the input at most, in ms of audio: one block.
    pub fn lag_ms(&self) -> u32 {
        self.blocks.as_ref().map_or(0, |blocks| {
            let samples = blocks.output.len() + blocks.fft.output_delay();
            (samples as u64 * 1000).div_ceil(u64::from(self.to)) as u32
        })
    }

    /// Takes samples at `from` in a chunk of any length; appends to `out` what is ready at `to`.
    pub fn push(&mut self, samples: &[i16], out: &mut Vec<i16>) {
        match &mut self.blocks {
            None => out.extend_from_slice(samples),
            Some(blocks) => blocks.push(samples, out),
        }
    }

    /// Appends the rest, so that the output is as long as the input, and begins a new stream.
    pub fn flush(&mut self, out: &mut Vec<i16>) {
        if let Some(blocks) = &mut self.blocks {
            blocks.flush(self.from, self.to, out);
        }
    }
}

impl Blocks {
    fn push(&mut self, mut samples: &[i16], out: &mut Vec<i16>) {
        self.pushed += samples.len() as u64;
        while !samples.is_empty() {
            let room = &mut self.input[self.filled..];
            let (now, later) = samples.split_at(room.len().min(samples.len()));
            for (slot, &sample) in room.iter_mut().zip(now) {
                *slot = f32::from(sample) / 32_768.0;
            }
            self.filled += now.len();
            samples = later;
            if self.filled == self.input.len() {
                self.run(u64::MAX, out);
            }
        }
    }

    fn flush(&mut self, from: u32, to: u32, out: &mut Vec<i16>) {
        let total = (self.pushed * u64::from(to)).div_ceil(u64::from(from));
        while self.given < total {
            self.input[self.filled..].fill(0.0);
            self.run(total, out);
        }
        self.fft.reset();
        self.filled = 0;
        self.skip = self.fft.output_delay();
        self.pushed = 0;
        self.given = 0;
    }

    /// Converts one full block, giving no more than `total` samples altogether.
    fn run(&mut self, total: u64, out: &mut Vec<i16>) {
        self.filled = 0;
        let made = self.convert();
        let ready = &self.output[self.skip.min(made)..made];
        self.skip -= self.skip.min(made);
        let wanted = usize::try_from(total - self.given).unwrap_or(usize::MAX);
        let ready = &ready[..ready.len().min(wanted)];
        // The cast saturates: a filter's overshoot is clipped, not wrapped.
        out.extend(ready.iter().map(|&sample| (sample * 32_768.0).round() as i16));
        self.given += ready.len() as u64;
    }

    /// The buffers have the lengths that the resampler asked for, so it cannot refuse them; were it
    /// to do so all the same, the block would be silent rather than lost.
    fn convert(&mut self) -> usize {
        let (frames_in, frames_out) = (self.input.len(), self.output.len());
        if let Ok(input) = SequentialSlice::new(self.input.as_slice(), 1, frames_in)
            && let Ok(mut output) =
                SequentialSlice::new_mut(self.output.as_mut_slice(), 1, frames_out)
            && let Ok((_, made)) = self.fft.process_into_buffer(&input, &mut output, None)
        {
            return made;
        }
        self.output.fill(0.0);
        frames_out
    }
}

/// Converts a whole mono s16 clip; the output is as long as the input, in time.
pub fn resample(samples: &[i16], from: u32, to: u32) -> Result<Vec<i16>, UnsupportedRates> {
    let mut resampler = Resampler::new(from, to)?;
    let mut out = Vec::with_capacity(
        (samples.len() as u64 * u64::from(to)).div_ceil(u64::from(from)) as usize,
    );
    resampler.push(samples, &mut out);
    resampler.flush(&mut out);
    Ok(out)
}

/// Appends the mean of `channels` interleaved channels to `out`; an incomplete last frame, or zero
/// channels, give nothing.
pub fn downmix(interleaved: &[i16], channels: usize, out: &mut Vec<i16>) {
    match channels {
        0 => {}
        1 => out.extend_from_slice(interleaved),
        _ => out.extend(interleaved.chunks_exact(channels).map(|frame| {
            let sum: i64 = frame.iter().map(|&sample| i64::from(sample)).sum();
            (sum / channels as i64) as i16
        })),
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audio::level::dbfs;

    const RATES: [u32; 6] = [8_000, 16_000, 22_050, 24_000, 44_100, 48_000];

    fn tone(hz: f64, rate: u32, seconds: f64) -> Vec<i16> {
        (0..(f64::from(rate) * seconds) as usize)
            .map(|n| {
                let phase = std::f64::consts::TAU * hz * n as f64 / f64::from(rate);
                (phase.sin() * 16_384.0).round() as i16
            })
            .collect()
    }

    /// Without the edges, where a tone that begins and ends at once is no pure tone.
    fn middle(samples: &[i16]) -> &[i16] {
        let edge = samples.len() / 10;
        &samples[edge..samples.len() - edge]
    }

    #[test]
    fn a_tone_keeps_its_level_between_all_rates() {
        for from in RATES {
            for to in RATES {
                let out = resample(&tone(1_000.0, from, 0.5), from, to).unwrap();
                let change = dbfs(middle(&out)) - dbfs(&tone(1_000.0, to, 0.5));
                assert!(change.abs() < 0.05, "{change} dB from {from} to {to} Hz");
            }
        }
    }

    #[test]
    fn the_voice_band_passes_and_what_would_alias_does_not() {
        let level = |hz| {
            let input = tone(hz, 48_000, 0.5);
            dbfs(middle(&resample(&input, 48_000, 16_000).unwrap())) - dbfs(&input)
        };
        assert!(level(6_000.0).abs() < 0.2, "{} dB at 6 kHz", level(6_000.0));
        for hz in [8_100.0, 9_000.0, 10_000.0, 15_000.0, 17_000.0, 23_000.0] {
            assert!(level(hz) < -60.0, "{} dB at {hz} Hz", level(hz));
        }
    }

    #[test]
    fn upsampling_leaves_no_image_of_the_tone() {
        let rate = 24_000;
        let out = resample(&tone(1_000.0, 8_000, 0.5), 8_000, rate).unwrap();
        let pure = tone(1_000.0, rate, 0.5);
        let error: Vec<i16> = out.iter().zip(&pure).map(|(a, b)| a - b).collect();
        assert!(dbfs(middle(&error)) - dbfs(&pure) < -60.0, "{}", dbfs(middle(&error)));
    }

    #[test]
    fn the_output_is_as_long_as_the_input_and_in_time_with_it() {
        for from in RATES {
            for to in RATES {
                let mut input = vec![0; from as usize];
                let at = from as usize / 2;
                input[at - 8..at + 8].fill(10_000);
                let out = resample(&input, from, to).unwrap();
                assert_eq!(out.len(), to as usize);
                let peak = out.iter().enumerate().max_by_key(|(_, sample)| sample.abs()).unwrap().0;
                let late_ms = (peak as f64 / f64::from(to) - 0.5) * 1000.0;
                assert!(late_ms.abs() < 1.1, "{late_ms} ms late from {from} to {to} Hz");
            }
        }
    }

    #[test]
    fn full_scale_is_clipped_rather_than_wrapped() {
        let square: Vec<i16> =
            (0..4_800).map(|n| if n / 40 % 2 == 0 { i16::MAX } else { i16::MIN }).collect();
        let out = resample(&square, 48_000, 16_000).unwrap();
        let jumps = out.windows(2).filter(|pair| i32::from(pair[0]) - i32::from(pair[1]) > 60_000);
        assert!(jumps.count() < 70);
        assert!(out.contains(&i16::MAX));
    }

    #[test]
    fn a_stream_lags_by_a_few_milliseconds_only() {
        for (from, to) in [(48_000, 16_000), (24_000, 48_000), (16_000, 48_000), (44_100, 16_000)] {
            let mut resampler = Resampler::new(from, to).unwrap();
            assert!(resampler.lag_ms() <= 15, "{} ms from {from} to {to}", resampler.lag_ms());
            let mut out = Vec::new();
            resampler.push(&vec![0; from as usize / 10], &mut out);
            let given_ms = out.len() as u32 * 1000 / to;
            assert!(given_ms + resampler.lag_ms() >= 100, "{given_ms} ms from {from} to {to}");
        }
    }

    #[test]
    fn a_flushed_resampler_begins_anew() {
        let input = tone(700.0, 48_000, 0.05);
        let mut resampler = Resampler::new(48_000, 16_000).unwrap();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        resampler.push(&input, &mut first);
        resampler.flush(&mut first);
        resampler.push(&input, &mut second);
        resampler.flush(&mut second);
        assert_eq!(first, second);
    }

    #[test]
    fn absurd_rates_are_refused() {
        for (from, to) in [(0, 16_000), (16_000, 0), (44_101, 16_000), (1, 2), (u32::MAX, 16_000)] {
            assert_eq!(Resampler::new(from, to).unwrap_err(), UnsupportedRates { from, to });
        }
    }

    #[test]
    fn channels_are_averaged_without_overflow() {
        let mut out = Vec::new();
        downmix(&[i16::MIN, i16::MIN, i16::MAX, i16::MAX, 100, -50, 7], 2, &mut out);
        assert_eq!(out, [i16::MIN, i16::MAX, 25]);
        downmix(&[1, 2], 0, &mut out);
        assert_eq!(out.len(), 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn chunking_does_not_change_the_output(
            input in prop::collection::vec(any::<i16>(), 0..4_000),
            sizes in prop::collection::vec(1_usize..700, 1..20),
            from in prop::sample::select(&RATES[..]),
            to in prop::sample::select(&RATES[..]),
        ) {
            let whole = resample(&input, from, to).unwrap();
            let mut resampler = Resampler::new(from, to).unwrap();
            let mut out = Vec::new();
            let (mut rest, mut sizes) = (&input[..], sizes.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
                resampler.push(now, &mut out);
                rest = later;
            }
            resampler.flush(&mut out);
            prop_assert_eq!(whole, out);
        }
    }
}
