//! Writing WAV files that survive the process.

use std::{
    fs::File,
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use hound::{SampleFormat, WavSpec, WavWriter};

use super::{RATES, WavError};

/// A RIFF file counts its bytes in 32 bits; the last megabyte is left alone.
const MAX_WRITTEN: u64 = u32::MAX as u64 - 1_000_000;

/// Writes a mono s16 WAV file as the audio comes. Blocks on the disk.
///
/// The header is brought up to date after every second of audio and on drop; [`Self::finish`] also
/// says whether that went well.
#[derive(Debug)]
pub struct MonoWriter(Writer);

impl MonoWriter {
    /// Makes or replaces the file; `rate` in Hz.
    pub fn create(path: &Path, rate: u32) -> Result<Self, WavError> {
        Writer::create(path, rate, 1).map(Self)
    }

    /// Appends samples.
    pub fn write(&mut self, samples: &[i16]) -> Result<(), WavError> {
        self.0.append(samples.iter().copied(), samples.len())
    }

    pub fn duration_ms(&self) -> u64 {
        self.0.duration_ms()
    }

    /// Ends the file.
    pub fn finish(self) -> Result<(), WavError> {
        self.0.finish()
    }
}

/// Writes a stereo s16 WAV file as the audio comes: the caller left, the agent right. Otherwise as
/// [`MonoWriter`].
#[derive(Debug)]
pub struct StereoWriter(Writer);

impl StereoWriter {
    /// Makes or replaces the file; `rate` in Hz.
    pub fn create(path: &Path, rate: u32) -> Result<Self, WavError> {
        Writer::create(path, rate, 2).map(Self)
    }

    /// Appends the same stretch of time of both; the shorter one is filled up with silence.
    pub fn write(&mut self, caller: &[i16], agent: &[i16]) -> Result<(), WavError> {
        let frames = caller.len().max(agent.len());
        let at = |side: &[i16], n: usize| side.get(n).copied().unwrap_or(0);
        self.0.append((0..frames).flat_map(|n| [at(caller, n), at(agent, n)]), frames)
    }

    pub fn duration_ms(&self) -> u64 {
        self.0.duration_ms()
    }

    /// Ends the file.
    pub fn finish(self) -> Result<(), WavError> {
        self.0.finish()
    }
}

struct Writer {
    path: PathBuf,
    inner: WavWriter<BufWriter<File>>,
    spec: WavSpec,
    frames: u64,
    since_checkpoint: u64,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("path", &self.path)
            .field("spec", &self.spec)
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl Writer {
    fn create(path: &Path, rate: u32, channels: u16) -> Result<Self, WavError> {
        let file = path.display().to_string();
        if !RATES.contains(&rate) {
            return Err(WavError::Unsupported {
                file,
                what: format!("a sample rate of {rate} Hz"),
            });
        }
        let spec = WavSpec {
            channels,
            sample_rate: rate,
            bits_per_sample: 16,
            sample_format: SampleFormat::Int,
        };
        let inner = WavWriter::create(path, spec).map_err(|error| write_error(error, file))?;
        Ok(Self { path: path.to_owned(), inner, spec, frames: 0, since_checkpoint: 0 })
    }

    fn append(
        &mut self,
        interleaved: impl Iterator<Item = i16>,
        frames: usize,
    ) -> Result<(), WavError> {
        let frames = frames as u64;
        if (self.frames + frames) * u64::from(self.spec.channels) * 2 > MAX_WRITTEN {
            return Err(WavError::Full { file: self.file() });
        }
        for sample in interleaved {
            self.inner.write_sample(sample).map_err(|error| write_error(error, self.file()))?;
        }
        self.frames += frames;
        self.since_checkpoint += frames;
        if self.since_checkpoint >= u64::from(self.spec.sample_rate) {
            self.since_checkpoint = 0;
            self.inner.flush().map_err(|error| write_error(error, self.file()))?;
        }
        Ok(())
    }

    fn duration_ms(&self) -> u64 {
        self.frames * 1000 / u64::from(self.spec.sample_rate)
    }

    fn finish(self) -> Result<(), WavError> {
        let file = self.file();
        self.inner.finalize().map_err(|error| write_error(error, file))
    }

    fn file(&self) -> String {
        self.path.display().to_string()
    }
}

fn write_error(error: hound::Error, file: String) -> WavError {
    let source = match error {
        hound::Error::IoError(source) => source,
        other => io::Error::other(other),
    };
    WavError::Write { file, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::wav::read;

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mono.wav");
        let samples: Vec<i16> = (0..24_000).map(|n| (n % 777) as i16 - 300).collect();
        let mut writer = MonoWriter::create(&path, 24_000).unwrap();
        for chunk in samples.chunks(999) {
            writer.write(chunk).unwrap();
        }
        assert_eq!(writer.duration_ms(), 1000);
        writer.finish().unwrap();
        let wav = read(&path).unwrap();
        assert_eq!((wav.sample_rate, wav.channels, wav.samples), (24_000, 1, samples));
    }

    #[test]
    fn the_caller_is_left_the_agent_right_and_the_shorter_filled_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stereo.wav");
        let mut writer = StereoWriter::create(&path, 16_000).unwrap();
        writer.write(&[1, 2, 3], &[-1]).unwrap();
        writer.write(&[], &[-2]).unwrap();
        writer.finish().unwrap();
        let mut wav = hound::WavReader::open(&path).unwrap();
        let samples: Vec<i16> = wav.samples().map(Result::unwrap).collect();
        assert_eq!(samples, [1, -1, 2, 0, 3, 0, 0, -2]);
    }

    #[test]
    fn a_file_that_was_never_finished_holds_all_but_the_last_second() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("killed.wav");
        let mut writer = StereoWriter::create(&path, 8_000).unwrap();
        for _ in 0..35 {
            writer.write(&[7; 800], &[7; 800]).unwrap();
        }
        // A killed process runs no destructor.
        std::mem::forget(writer);
        let bytes = std::fs::read(&path).unwrap();
        let mut wav = hound::WavReader::new(&bytes[..]).unwrap();
        assert_eq!(wav.duration(), 24_000);
        assert!(wav.samples::<i16>().all(|sample| sample.unwrap() == 7));
    }

    #[test]
    fn where_nothing_can_be_written_the_error_names_the_file() {
        let error = MonoWriter::create(Path::new("/nonexistent/a.wav"), 16_000).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/a.wav: cannot be written: "));
        let error = MonoWriter::create(Path::new("a.wav"), 0).unwrap_err();
        assert!(error.to_string().contains("a sample rate of 0 Hz"));
    }
}
