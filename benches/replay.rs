//! All speech fixtures through detector and machine in virtual time; the counter is seconds of
//! audio, so its rate is "times real time".

use std::{fs, path::Path};

use antiphon::{
    audio::{
        resample,
        vad::{self, VadConfig},
        wav,
    },
    replay::simulated::{self, Utterance},
    session::settings::Settings,
};
use divan::{Bencher, counter::ItemsCount};

fn main() {
    divan::main();
}

struct Fixture {
    samples: Vec<i16>,
    said: Vec<Utterance>,
}

/// Every WAV with an expected.json beside it that can be read.
fn fixtures() -> Vec<Fixture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/audio");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|it| it == "wav"))
        .collect();
    paths.sort();
    paths
        .iter()
        .filter_map(|path| {
            let heard = wav::read(path).ok()?;
            let samples =
                resample::resample(&heard.samples, heard.sample_rate, vad::SAMPLE_RATE).ok()?;
            let expected = fs::read(path.with_extension("expected.json")).ok()?;
            let mut expected: serde_json::Value = serde_json::from_slice(&expected).ok()?;
            let said = serde_json::from_value(expected.get_mut("utterances")?.take()).ok()?;
            Some(Fixture { samples, said })
        })
        .collect()
}

#[divan::bench]
fn all_fixtures(bencher: Bencher<'_, '_>) {
    let fixtures = fixtures();
    let seconds = fixtures.iter().map(|fixture| fixture.samples.len()).sum::<usize>() / 16_000;
    bencher.counter(ItemsCount::new(seconds)).bench_local(|| {
        fixtures
            .iter()
            .filter_map(|fixture| {
                let Fixture { samples, said } = fixture;
                let settings = Settings::default();
                simulated::run("", samples, settings, VadConfig::default(), said, |_, _| {}).ok()
            })
            .map(|done| done.report.turns.len())
            .sum::<usize>()
    });
}
