//! Reading WAV files that nobody vouches for.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use hound::{SampleFormat, WavReader, WavSpec};

use super::{MAX_BYTES, MAX_MS, RATES, WavError};

const MAX_CHANNELS: u16 = 8;

/// A WAV file's audio, down-mixed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wav {
    /// In Hz, as in the file.
    pub sample_rate: u32,
    /// How many channels the file has; `samples` is their mean.
    pub channels: u16,
    /// Mono s16.
    pub samples: Vec<i16>,
}

impl Wav {
    /// Rounded to the nearest ms.
    pub fn duration_ms(&self) -> u64 {
        let rate = u64::from(self.sample_rate).max(1);
        (self.samples.len() as u64 * 1000 + rate / 2) / rate
    }
}

/// Reads a WAV file. Blocks on the disk.
pub fn read(path: &Path) -> Result<Wav, WavError> {
    let name = path.display().to_string();
    let open = |source| WavError::Open { file: name.clone(), source };
    let file = File::open(path).map_err(open)?;
    let metadata = file.metadata().map_err(open)?;
    if !metadata.is_file() {
        return Err(WavError::NotAFile { file: name });
    }
    from_reader(BufReader::new(file), metadata.len(), &name)
}

/// Reads a WAV file that is in memory; `name` stands for it in errors.
pub fn decode(bytes: &[u8], name: &str) -> Result<Wav, WavError> {
    from_reader(bytes, bytes.len() as u64, name)
}

fn from_reader(reader: impl Read, bytes: u64, name: &str) -> Result<Wav, WavError> {
    let file = || name.to_owned();
    if bytes == 0 {
        return Err(WavError::Empty { file: file() });
    }
    if bytes > MAX_BYTES {
        return Err(WavError::TooLarge { file: file(), bytes });
    }
    let mut wav = WavReader::new(reader).map_err(|error| read_error(error, name))?;
    let spec = wav.spec();
    check(spec, name)?;
    if wav.len() == 0 {
        return Err(WavError::NoSamples { file: file() });
    }
    // Before the length: a program that writes into a pipe promises 2 or 4 GB.
    if u64::from(wav.len()) * u64::from(spec.bits_per_sample / 8) > bytes {
        return Err(WavError::Truncated { file: file() });
    }
    let ms = u64::from(wav.duration()) * 1000 / u64::from(spec.sample_rate);
    if ms > MAX_MS {
        return Err(WavError::TooLong { file: file(), ms });
    }
    let mut mono = Mono::new(spec.channels, wav.duration() as usize);
    match spec.sample_format {
        SampleFormat::Float => {
            for sample in wav.samples::<f32>() {
                mono.push(sample.map_err(|error| read_error(error, name))?);
            }
        }
        SampleFormat::Int => {
            let scale = 1.0 / 2_f32.powi(i32::from(spec.bits_per_sample) - 1);
            for sample in wav.samples::<i32>() {
                mono.push(sample.map_err(|error| read_error(error, name))? as f32 * scale);
            }
        }
    }
    Ok(Wav { sample_rate: spec.sample_rate, channels: spec.channels, samples: mono.samples })
}

fn check(spec: WavSpec, name: &str) -> Result<(), WavError> {
    let unsupported = |what: String| Err(WavError::Unsupported { file: name.to_owned(), what });
    match (spec.sample_format, spec.bits_per_sample) {
        (SampleFormat::Int, 8 | 16 | 24 | 32) | (SampleFormat::Float, 32) => {}
        (SampleFormat::Int, bits) => return unsupported(format!("{bits}-bit PCM")),
        (SampleFormat::Float, bits) => return unsupported(format!("{bits}-bit float")),
    }
    if spec.channels > MAX_CHANNELS {
        return unsupported(format!("{} channels", spec.channels));
    }
    if !RATES.contains(&spec.sample_rate) {
        return unsupported(format!("a sample rate of {} Hz", spec.sample_rate));
    }
    Ok(())
}

fn read_error(error: hound::Error, name: &str) -> WavError {
    let file = name.to_owned();
    match error {
        // hound says that a read came short by an error of kind `Other`.
        hound::Error::IoError(source)
            if matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::Other) =>
        {
            WavError::Truncated { file }
        }
        hound::Error::IoError(source) => WavError::Read { file, source },
        hound::Error::FormatError("no RIFF tag found" | "no WAVE tag found") => {
            WavError::NotWav { file }
        }
        hound::Error::FormatError(reason) => WavError::Malformed { file, reason },
        hound::Error::Unsupported => {
            WavError::Unsupported { file, what: "this encoding".to_owned() }
        }
        hound::Error::TooWide | hound::Error::InvalidSampleFormat => {
            WavError::Malformed { file, reason: "samples do not fit the declared format" }
        }
        hound::Error::UnfinishedSample => {
            WavError::Malformed { file, reason: "the last frame lacks a channel" }
        }
    }
}

/// Averages interleaved samples in -1..1 into mono s16.
struct Mono {
    channels: u16,
    sum: f32,
    seen: u16,
    samples: Vec<i16>,
}

impl Mono {
    fn new(channels: u16, frames: usize) -> Self {
        Self { channels, sum: 0.0, seen: 0, samples: Vec::with_capacity(frames) }
    }

    fn push(&mut self, sample: f32) {
        self.sum += sample;
        self.seen += 1;
        if self.seen == self.channels {
            // The cast saturates, and takes what is not a number for 0.
            let mean = self.sum / f32::from(self.channels);
            self.samples.push((mean * 32_768.0).round() as i16);
            self.sum = 0.0;
            self.seen = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::audio::level::{audible, dbfs};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/audio").join(name)
    }

    fn refusal(name: &str) -> String {
        let path = fixture(name);
        let message = read(&path).unwrap_err().to_string();
        let (file, reason) = message.split_once(": ").unwrap();
        assert_eq!(file, path.display().to_string());
        reason.to_owned()
    }

    /// A header with these fields before `data` bytes of nothing.
    fn wav(tag: u16, channels: u16, rate: u32, bits: u16, data: usize) -> Vec<u8> {
        let align = channels.wrapping_mul(bits / 8);
        let mut out = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0".to_vec();
        out.extend(tag.to_le_bytes());
        out.extend(channels.to_le_bytes());
        out.extend(rate.to_le_bytes());
        out.extend(rate.wrapping_mul(u32::from(align)).to_le_bytes());
        out.extend(align.to_le_bytes());
        out.extend(bits.to_le_bytes());
        out.extend(b"data");
        out.extend((data as u32).to_le_bytes());
        out.resize(out.len() + data, 0);
        out
    }

    #[test]
    fn every_fixture_is_read_as_its_json_says() {
        let mut seen = 0;
        for entry in std::fs::read_dir(fixture("")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "wav") {
                continue;
            }
            let wav = read(&path).unwrap();
            let json = std::fs::read_to_string(path.with_extension("expected.json")).unwrap();
            let expected: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(expected["sampleRate"], wav.sample_rate, "{}", path.display());
            assert_eq!(expected["channels"], wav.channels, "{}", path.display());
            assert_eq!(expected["durationMs"], wav.duration_ms(), "{}", path.display());
            seen += 1;
        }
        assert!(seen >= 28, "{seen}");
    }

    #[test]
    fn all_sample_formats_give_the_same_speech() {
        for name in ["pcm24.wav", "pcm32.wav", "float32.wav", "pcm8-8k.wav", "rate-8k.wav"] {
            let wav = read(&fixture(name)).unwrap();
            let speech = audible(&wav.samples, -40.0).unwrap();
            let ms = |samples: usize| samples * 1000 / wav.sample_rate as usize;
            assert!(ms(speech.start).abs_diff(200) < 30, "{name}: from {}", ms(speech.start));
            assert!(ms(speech.end).abs_diff(1242) < 60, "{name}: to {}", ms(speech.end));
            assert!((-26.0..-14.0).contains(&dbfs(&wav.samples[speech])), "{name}");
        }
        let float = read(&fixture("float32.wav")).unwrap();
        let pcm = read(&fixture("pcm24.wav")).unwrap();
        assert!(float.samples.iter().zip(&pcm.samples).all(|(a, b)| a.abs_diff(*b) <= 1));
    }

    #[test]
    fn broken_files_are_refused_with_their_name_and_the_reason() {
        assert_eq!(refusal("broken/empty.wav"), "the file is empty");
        assert_eq!(refusal("broken/not-a-wav.wav"), "not a WAV file");
        assert_eq!(refusal("broken/header-only.wav"), "a WAV file without a single sample");
        let short = "the file is cut short: its header promises more audio than there is";
        assert_eq!(refusal("broken/truncated.wav"), short);
        assert_eq!(refusal("broken/truncated-header.wav"), short);
        assert!(refusal("broken/zero-rate.wav").starts_with("a sample rate of 0 Hz is not"));
        assert!(refusal("broken/adpcm.wav").starts_with("this encoding is not supported"));
        assert!(refusal("missing.wav").starts_with("cannot be opened: "));
        assert_eq!(refusal("broken"), "not a file");
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let refusal = |bytes: &[u8]| decode(bytes, "x").unwrap_err();
        let nine = wav(1, 9, 16_000, 16, 18);
        assert!(
            matches!(refusal(&nine), WavError::Unsupported { what, .. } if what == "9 channels")
        );
        let long = wav(1, 1, 4_000, 8, 4_000 * 60 * 31);
        assert!(matches!(refusal(&long), WavError::TooLong { ms: 1_860_000, .. }));
        let zero = wav(1, 0, 16_000, 16, 0);
        assert!(matches!(refusal(&zero), WavError::Malformed { .. }));
        let wide = wav(1, 1, 16_000, 48, 12);
        assert!(matches!(refusal(&wide), WavError::Unsupported { .. }));
        let mut piped = wav(1, 1, 16_000, 16, 3_200);
        piped[40..44].copy_from_slice(&0x7FFF_FFF0_u32.to_le_bytes());
        assert!(matches!(refusal(&piped), WavError::Truncated { .. }));
        let huge = from_reader(io::empty(), MAX_BYTES + 1, "x").unwrap_err();
        assert!(matches!(huge, WavError::TooLarge { .. }));
    }

    #[test]
    fn floats_that_are_no_numbers_or_too_loud_are_tamed() {
        let mut bytes = wav(3, 1, 16_000, 32, 16);
        let samples = [f32::NAN, f32::INFINITY, -7.0, 0.5];
        let data = bytes.len() - 16;
        for (slot, sample) in bytes[data..].chunks_exact_mut(4).zip(samples) {
            slot.copy_from_slice(&sample.to_le_bytes());
        }
        let wav = decode(&bytes, "x").unwrap();
        assert_eq!(wav.samples, [0, i16::MAX, i16::MIN, 16_384]);
    }

    proptest::proptest! {
        #[test]
        fn no_damaged_header_makes_the_reader_panic(
            damage in proptest::collection::vec((0_usize..64, proptest::num::u8::ANY), 1..6),
            cut in 0_usize..400,
        ) {
            let mut bytes = wav(1, 2, 16_000, 16, 400);
            for (at, value) in damage {
                bytes[at] = value;
            }
            bytes.truncate(bytes.len() - cut);
            let _ = decode(&bytes, "x");
        }
    }
}
