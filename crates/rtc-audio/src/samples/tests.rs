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
        assert!(made[1_930..].iter().all(|sample| *sample == 0));
        let heard = [before, made].concat();
        assert!(steepest(&heard, hz) < 1.4, "{hz} Hz: {}", steepest(&heard, hz));
    }
}

#[test]
fn real_sound_comes_back_in_step_with_the_made_up() {
    for hz in [100.0, 217.0, 400.0, 440.0, 1_000.0] {
        for gap in [80, 160, 480, 800, 3_200] {
            let mut samples = samples();
            let all = tone(hz, 1_600 + gap + 800);
            samples.push(&all[..1_600]);
            let mut heard = pull(&mut samples, 1_600);
            samples.make_up(gap);
            heard.extend(pull(&mut samples, gap));
            samples.push(&all[1_600 + gap..]);
            let left = samples.len();
            assert!(
                left.abs_diff(800) <= 243 / 2 + 1,
                "time moved by {} samples",
                left.abs_diff(800)
            );
            heard.extend(pull(&mut samples, left));
            assert!(steepest(&heard, hz) < 1.4, "{hz} Hz, {gap}: {}", steepest(&heard, hz));
            let back = &heard[1_600 + gap + 40..];
            assert!(rms(back) > 0.9 * rms(&all), "{hz} Hz, {gap}: {}", rms(back) / rms(&all));
        }
    }
}

#[test]
fn jumps_in_time_are_whole_periods_and_leave_no_trace() {
    for hz in [100.0, 217.0, 400.0, 440.0, 1_000.0] {
        let mut samples = samples();
        let all = tone(hz, 1_600);
        samples.push(&all);
        let mut heard = pull(&mut samples, 640);
        let left_out = samples.leave_out(240, ALIKE).unwrap();
        assert_eq!(samples.len(), 960 - left_out);
        heard.extend(pull(&mut samples, 320));
        let repeated = samples.repeat(240, ALIKE).unwrap();
        assert_eq!(samples.len(), 640 - left_out + repeated);
        let rest = samples.len();
        heard.extend(pull(&mut samples, rest));
        let period = f64::from(RATE) / hz;
        for jump in [left_out, repeated] {
            let periods = jump as f64 / period;
            assert!((periods - periods.round()).abs() * period < 1.0, "{hz} Hz: {jump} samples");
        }
        assert!(steepest(&heard, hz) < 1.1, "{hz} Hz: {}", steepest(&heard, hz));
        assert!((rms(&heard) / rms(&all) - 1.0).abs() < 0.02, "{hz} Hz");
    }
}

#[test]
fn nothing_is_left_out_where_no_two_places_are_alike_unless_they_are_quiet() {
    let mut seed = 1_u32;
    let mut noise = |loud: i32| -> Vec<i16> {
        (0..1_600)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((seed >> 16) as i32 % (2 * loud) - loud) as i16
            })
            .collect()
    };
    let (loud, quiet) = (noise(8_000), noise(40));
    let mut at_once = samples();
    at_once.push(&loud);
    assert_eq!(at_once.leave_out(240, ALIKE), None);
    assert_eq!(at_once.len(), 1_600);
    let mut in_a_pause = samples();
    in_a_pause.push(&quiet);
    assert_eq!(in_a_pause.repeat(240, ALIKE), None, "nothing was played yet");
    assert!(in_a_pause.leave_out(240, ALIKE).is_some());
}

#[test]
fn making_up_out_of_nothing_is_silence() {
    let mut samples = samples();
    assert_eq!(samples.make_up(160), 0);
    samples.push(&tone(400.0, 320));
    let heard = pull(&mut samples, 480);
    assert!(steepest(&heard, 400.0) < 1.1, "fades in");
    // Too little to find a period in.
    let mut samples = Samples::new(RATE, 1, 1_920);
    samples.push(&[8_000; 20]);
    assert_eq!(samples.make_up(160), 0);
    let heard = pull(&mut samples, 180);
    let steps = heard.windows(2).map(|pair| (pair[0] - pair[1]).abs()).max();
    assert!(steps < Some(600), "fades out: {steps:?}");
}

#[test]
fn what_is_kept_is_bounded() {
    let mut samples = samples();
    let capacity = samples.data.capacity();
    for _ in 0..2_000 {
        samples.push(&tone(440.0, 320));
        pull(&mut samples, 320);
        samples.make_up(160);
        pull(&mut samples, 160);
        let rest = samples.len();
        pull(&mut samples, rest);
    }
    assert_eq!(samples.data.capacity(), capacity, "nothing is allocated on the way");
}

proptest::proptest! {
    /// Whatever is pushed, made up and jumped over: as much comes out as was said to be there.
    #[test]
    fn any_use_keeps_count(steps in proptest::collection::vec((0_u8..5, 1_usize..1_920), 0..60)) {
        for channels in [1, 2] {
            let mut samples = Samples::new(RATE, channels, 1_920);
            for (what, frames) in &steps {
                let before = samples.len();
                match what {
                    0 => samples.push(&vec![1_000; frames * channels]),
                    1 => {
                        samples.make_up(*frames);
                        proptest::prop_assert_eq!(samples.len(), before + frames);
                    }
                    2 => {
                        let out = samples.leave_out(*frames, 0.5).unwrap_or_default();
                        proptest::prop_assert_eq!(samples.len(), before - out);
                    }
                    3 => {
                        let more = samples.repeat(*frames, 0.5).unwrap_or_default();
                        proptest::prop_assert_eq!(samples.len(), before + more);
                    }
                    _ => {
                        samples.pull(&mut vec![0; frames * channels]);
                        proptest::prop_assert_eq!(samples.len(), before.saturating_sub(*frames));
                    }
                }
            }
        }
    }
}
