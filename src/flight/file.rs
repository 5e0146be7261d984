//! Flights on disk: gzipped JSON lines, written beside the session, read as far as they are whole.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use tokio::sync::mpsc;

use super::{End, FORMAT, FlightConfig, Header, Step};

/// What a killed process may lose.
const FLUSH_EVERY: Duration = Duration::from_secs(2);
/// Longest line that is read, in bytes.
const MAX_LINE: u64 = 4 * 1024 * 1024;
/// Most that is read of one flight once it is unpacked, in bytes.
const MAX_UNPACKED: u64 = 512 * 1024 * 1024;

/// Why a flight cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FlightError {
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("{0}: not a flight: {1}")]
    Malformed(PathBuf, String),
    #[error("{0}: a flight of format {1}; this antiphon reads {FORMAT}")]
    Format(PathBuf, u32),
}

/// Counts what goes through it.
#[derive(Debug)]
struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes the lines that come until there are no more, or the file is full. Blocks.
///
/// # Errors
/// When the file cannot be made or written.
pub(super) fn write(
    config: &FlightConfig,
    name: &str,
    mut steps: mpsc::Receiver<Line>,
) -> io::Result<PathBuf> {
    fs::create_dir_all(&config.dir)?;
    let path = config.dir.join(format!("{name}.flight"));
    let file = Counted { inner: BufWriter::new(File::create(&path)?), bytes: 0 };
    let mut out = GzEncoder::new(file, Compression::fast());
    let mut flushed_at = Duration::ZERO;
    while let Some(line) = steps.blocking_recv() {
        let (text, at) = match &line {
            Line::Header(header) => (serde_json::to_vec(header)?, Duration::ZERO),
            Line::Step(step) => (serde_json::to_vec(step)?, step.at()),
        };
        out.write_all(&text)?;
        out.write_all(b"\n")?;
        if at >= flushed_at + FLUSH_EVERY {
            out.flush()?;
            flushed_at = at;
        }
        // What the encoder still holds is bounded by its window.
        if out.get_ref().bytes >= config.max_bytes
            && let Line::Step(step) = line
        {
            let last = Step { input: None, end: Some(End::Full), ..step };
            out.write_all(&serde_json::to_vec(&last)?)?;
            out.write_all(b"\n")?;
            break;
        }
    }
    out.finish()?.inner.flush()?;
    Ok(path)
}

/// A line of a flight.
#[derive(Debug)]
pub(super) enum Line {
    Header(Box<Header>),
    Step(Step),
}

/// Reads a flight; a file that breaks off is read as far as it goes.
///
/// # Errors
/// When it cannot be opened, or does not begin as a flight.
pub fn read(path: &Path) -> Result<(Header, Vec<Step>), FlightError> {
    let malformed = |problem: String| FlightError::Malformed(path.to_owned(), problem);
    let file = File::open(path).map_err(|error| FlightError::Io(path.to_owned(), error))?;
    let mut lines = BufReader::new(GzDecoder::new(file).take(MAX_UNPACKED));
    let first = line(&mut lines).ok_or_else(|| malformed("it has no first line".into()))?;
    let format: Format =
        serde_json::from_slice(&first).map_err(|error| malformed(error.to_string()))?;
    if format.format != FORMAT {
        return Err(FlightError::Format(path.to_owned(), format.format));
    }
    let header = serde_json::from_slice(&first).map_err(|error| malformed(error.to_string()))?;
    let mut steps = Vec::new();
    while let Some(text) = line(&mut lines) {
        match serde_json::from_slice(&text) {
            Ok(step) => steps.push(step),
            // The last line of a file that broke off is rarely whole.
            Err(_) if line(&mut lines).is_none() => break,
            Err(error) => return Err(malformed(format!("step {}: {error}", steps.len() + 1))),
        }
    }
    Ok((header, steps))
}

#[derive(serde::Deserialize)]
struct Format {
    format: u32,
}

/// The next line; none at the end, or where the file breaks off.
fn line(from: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    // An error is where the packed data breaks off.
    let _ = from.take(MAX_LINE).read_until(b'\n', &mut line);
    (!line.is_empty()).then_some(line)
}
