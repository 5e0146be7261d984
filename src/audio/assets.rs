//! The sounds that the binary carries. `fixtures/make.py` makes them.

use crate::audio::{
    resample::{self, UnsupportedRates},
    wav,
};

static APOLOGY: &[u8] = include_bytes!("../../assets/apology.wav");
static DEMO_CALLER: &[u8] = include_bytes!("../../assets/demo-caller.wav");
static DEMO_CALLER_EXPECTED: &str = include_str!("../../assets/demo-caller.expected.json");

/// What the user hears when synthesis itself is down, as a WAV file (16 kHz mono s16).
pub fn apology() -> &'static [u8] {
    APOLOGY
}

/// The apology as mono s16 at `rate` (Hz).
pub fn apology_at(rate: u32) -> Result<Vec<i16>, ApologyError> {
    let wav = wav::decode(APOLOGY, "apology.wav")?;
    Ok(resample::resample(&wav.samples, wav.sample_rate, rate)?)
}

/// Why the apology cannot be had at a rate.
#[derive(Debug, thiserror::Error)]
pub enum ApologyError {
    #[error(transparent)]
    Wav(#[from] wav::WavError),
    #[error(transparent)]
    Rates(#[from] UnsupportedRates),
}

/// The demo's caller: three utterances five seconds apart, as a WAV file (16 kHz mono s16).
pub fn demo_caller() -> &'static [u8] {
    DEMO_CALLER
}

/// What the demo's caller says and when, as JSON: `{"sampleRate", "channels", "durationMs",
/// "utterances": [{"startMs", "endMs", "text"}]}`.
pub fn demo_caller_expected() -> &'static str {
    DEMO_CALLER_EXPECTED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::level;

    #[test]
    fn the_apology_is_had_at_every_rate_that_a_voice_may_have() {
        for rate in [8_000, 12_000, 16_000, 22_050, 24_000, 44_100, 48_000] {
            let samples = apology_at(rate).unwrap();
            let seconds = samples.len() as f64 / f64::from(rate);
            assert!((3.0..5.0).contains(&seconds), "{seconds} s at {rate} Hz");
            assert!(level::dbfs(&samples) > -30.0);
        }
        assert!(apology().len() < 150_000);
    }

    #[test]
    fn the_demo_caller_is_what_its_json_says() {
        let wav = wav::decode(demo_caller(), "demo-caller.wav").unwrap();
        let expected: serde_json::Value = serde_json::from_str(demo_caller_expected()).unwrap();
        assert_eq!(expected["sampleRate"], wav.sample_rate);
        assert_eq!(expected["durationMs"], wav.duration_ms());
        assert_eq!(expected["utterances"].as_array().unwrap().len(), 3);
    }
}
