use std::f64::consts::TAU;

use super::*;

const RATE: u32 = 16_000;
const LOUD: f64 = 8_000.0;

fn tone(hz: f64, frames: usize) -> Vec<i16> {
    (0..frames).map(|i| (f64::sin(i as f64 * hz * TAU / f64::from(RATE)) * LOUD) as i16).collect()
}

fn samples() -> Samples {
    Samples::new(RATE, 1, 1_920)
}

fn pull(samples: &mut Samples, frames: usize) -> Vec<i16> {
    let mut out = vec![0; frames];
    samples.pull(&mut out);
    out
}

/// The largest step between samples, in steps of the tone itself.
fn steepest(samples: &[i16], hz: f64) -> f64 {
    let step = |pair: &[i16]| (f64::from(pair[0]) - f64::from(pair[1])).abs();
    samples.windows(2).map(step).fold(0.0, f64::max) / (LOUD * TAU * hz / f64::from(RATE))
}

fn rms(samples: &[i16]) -> f64 {
    (energy(samples, 1) / samples.len() as f64).sqrt()
}

#[test]
fn made_up_sound_goes_on_as_loud_and_then_fades_away() {
    for hz in [100.0, 217.0, 400.0, 440.0, 1_000.0] {
        let mut samples = samples();
        let all = tone(hz, 1_600);
        samples.push(&all);
        let before = pull(&mut samples, 1_600);
        assert_eq!(samples.make_up(2_560), 1_920, "120 ms of 160 are heard");
        let made = pull(&mut samples, 2_560);
        let whole = rms(&all);
        assert!((rms(&made[..320]) / whole - 1.0).abs() < 0.1, "{hz} Hz: {}", rms(&made[..320]));
        assert_eq!(rms(&made[1_930..]), 0.0);
        let heard = [before, made].concat();
        assert!(steepest(&heard, hz) < 1.4, "{hz} Hz: {}", steepest(&heard, hz));
    }
}
