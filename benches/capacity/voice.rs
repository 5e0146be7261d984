//! A voice that never pauses: harmonics of a wandering pitch under wandering formants, over a little
//! noise. It costs an encoder what speech does, and every 10 ms of it are loud.

use std::f64::consts::TAU;

/// One second and a bit at `rate` Hz, mono, about -20 dBFS; it can be repeated.
pub fn synthesise(rate: u32, seed: u32) -> Vec<i16> {
    let seconds = 4.0;
    let count = (f64::from(rate) * seconds) as usize;
    let mut noise = seed.wrapping_mul(2_654_435_761) | 1;
    let mut phase = 0.0;
    let base = 100.0 + f64::from(seed % 8) * 12.0;
    let mut samples = Vec::with_capacity(count);
    for index in 0..count {
        let t = index as f64 / f64::from(rate);
        let turn = TAU * t / seconds;
        let pitch = base * (1.0 + 0.2 * (turn * 3.0).sin());
        phase = (phase + pitch / f64::from(rate)) % 1.0;
        // Two formants that move as between vowels, five times a second.
        let formants = [450.0 + 250.0 * (turn * 20.0).sin(), 1_500.0 + 600.0 * (turn * 13.0).cos()];
        let mut sample = 0.0;
        for harmonic in 1..=20 {
            let frequency = pitch * f64::from(harmonic);
            let gain: f64 = formants
                .iter()
                .map(|formant| 1.0 / (1.0 + ((frequency - formant) / 120.0).powi(2)))
                .sum();
            sample += (gain + 0.02) * (phase * TAU * f64::from(harmonic)).sin();
        }
        noise ^= noise << 13;
        noise ^= noise >> 17;
        noise ^= noise << 5;
        sample += (f64::from(noise) / f64::from(u32::MAX) - 0.5) * 0.1;
        samples.push((sample * 2_500.0).clamp(-32_000.0, 32_000.0) as i16);
    }
    samples
}
