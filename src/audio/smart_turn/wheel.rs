//! A file out of a Python wheel, which is a ZIP archive (PKWARE's APPNOTE, 4.3): stored or deflated,
//! without ZIP64 and without encryption.

use std::io::Read;

use flate2::read::DeflateDecoder;

/// Longest file that is unpacked, in bytes.
const MAX_UNPACKED: u64 = 64 * 1024 * 1024;
const END: [u8; 4] = *b"PK\x05\x06";
const ENTRY: [u8; 4] = *b"PK\x01\x02";
const LOCAL: [u8; 4] = *b"PK\x03\x04";
/// The archive's comment is at most this long, and its end record lies before it.
const MAX_COMMENT: usize = 65_535 + 22;

/// The file whose path ends with `/name`.
///
/// # Errors
/// What is wrong with the archive.
pub fn file(wheel: &[u8], name: &str) -> Result<Vec<u8>, String> {
    let from = wheel.len().saturating_sub(MAX_COMMENT);
    let end = wheel[from..]
        .windows(4)
        .rposition(|window| window == END)
        .map(|at| at + from)
        .ok_or("it is no ZIP archive")?;
    let entries = number(wheel, end + 10, 2)?;
    let mut at = number(wheel, end + 16, 4)?;
    for _ in 0..entries {
        if wheel.get(at..at + 4) != Some(&ENTRY) {
            return Err("its directory is broken".into());
        }
        let length = number(wheel, at + 28, 2)?;
        let path = wheel.get(at + 46..at + 46 + length).ok_or("it is cut short")?;
        if path.ends_with(format!("/{name}").as_bytes()) {
            return unpack(wheel, at);
        }
        at += 46 + length + number(wheel, at + 30, 2)? + number(wheel, at + 32, 2)?;
    }
    Err("the file is not in it".into())
}

fn unpack(wheel: &[u8], entry: usize) -> Result<Vec<u8>, String> {
    let method = number(wheel, entry + 10, 2)?;
    let packed = number(wheel, entry + 20, 4)?;
    let size = number(wheel, entry + 24, 4)?;
    let local = number(wheel, entry + 42, 4)?;
    if wheel.get(local..local + 4) != Some(&LOCAL) {
        return Err("its directory is broken".into());
    }
    let data = local + 30 + number(wheel, local + 26, 2)? + number(wheel, local + 28, 2)?;
    let data = wheel.get(data..data + packed).ok_or("it is cut short")?;
    let mut out = Vec::new();
    match method {
        0 => out.extend_from_slice(data),
        8 => {
            DeflateDecoder::new(data)
                .take(MAX_UNPACKED)
                .read_to_end(&mut out)
                .map_err(|error| error.to_string())?;
        }
        other => return Err(format!("it is packed by method {other}")),
    }
    if out.len() == size { Ok(out) } else { Err("the file in it is cut short".into()) }
}

/// A little-endian number of `bytes` bytes.
fn number(wheel: &[u8], at: usize, bytes: usize) -> Result<usize, String> {
    let bytes = wheel.get(at..at + bytes).ok_or("it is cut short")?;
    Ok(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::DeflateEncoder};

    use super::*;

    fn archive(name: &str, method: u16, data: &[u8], size: u32) -> Vec<u8> {
        let sizes = [data.len() as u32, size].map(u32::to_le_bytes).concat();
        let length = (name.len() as u16).to_le_bytes();
        let mut out = LOCAL.to_vec();
        out.extend([0; 22]);
        out.extend(length);
        out.extend([0; 2]);
        out.extend(name.as_bytes());
        out.extend(data);
        let directory = out.len() as u32;
        out.extend(ENTRY);
        out.extend([0; 6]);
        out.extend(method.to_le_bytes());
        out.extend([0; 8]);
        out.extend(&sizes);
        out.extend(length);
        out.extend([0; 16]);
        out.extend(name.as_bytes());
        out.extend(END);
        out.extend([0; 6]);
        out.extend(1_u16.to_le_bytes());
        out.extend([0; 4]);
        out.extend(directory.to_le_bytes());
        out.extend([0; 2]);
        out
    }

    #[test]
    fn a_file_is_found_by_its_name_stored_or_deflated() {
        let data = b"to be or not to be or not to be";
        let stored = archive("a/b/model.onnx", 0, data, data.len() as u32);
        assert_eq!(file(&stored, "model.onnx").unwrap(), data);
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(data).unwrap();
        let deflated = archive("a/model.onnx", 8, &encoder.finish().unwrap(), data.len() as u32);
        assert_eq!(file(&deflated, "model.onnx").unwrap(), data);
        assert_eq!(file(&deflated, "other.onnx").unwrap_err(), "the file is not in it");
    }

    #[test]
    fn a_broken_archive_is_an_error_wherever_it_breaks() {
        let whole = archive("a/model.onnx", 0, b"model", 5);
        // The last two bytes tell the length of a comment, which is not read.
        for length in 0..whole.len() - 2 {
            assert!(file(&whole[..length], "model.onnx").is_err());
        }
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 0xff;
            let _ = file(&broken, "model.onnx");
        }
        assert!(file(b"no archive at all", "model.onnx").is_err());
    }
}
