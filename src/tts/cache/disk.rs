//! Phrases on disk: a file each, named by a hash of voice and text, the least used gone first.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Phrase;
use crate::{
    clock,
    tts::{TimedText, pcm::to_samples},
};

/// How a file begins; the number is the format's.
const MAGIC: &[u8] = b"antiphon phrase 1\n";
/// Files that are looked at when room is made.
const MAX_FILES: usize = 10_000;
/// Longest file, in bytes: a minute of 48 kHz and its words.
const MAX_FILE: u64 = 8 << 20;

#[derive(Serialize, Deserialize)]
struct Head {
    words: Vec<TimedText>,
    samples: usize,
}

/// A folder of phrases; several processes may share it.
#[derive(Debug, Clone)]
pub struct Disk {
    folder: PathBuf,
    /// In bytes.
    cap: u64,
}

impl Disk {
    /// The folder is made when something is kept.
    pub const fn new(folder: PathBuf, cap: u64) -> Self {
        Self { folder, cap }
    }

    /// What is there of a phrase. A file that cannot be read is as good as none.
    pub async fn load(&self, key: &str, text: &str) -> Option<Phrase> {
        let path = self.path(key, text);
        let load = move || {
            let bytes = read(&path).ok()?;
            let phrase = decode(&bytes)?;
            // The time of the last use says what goes first.
            if let Ok(file) = fs::File::options().append(true).open(&path) {
                let _ = file.set_modified(clock::system());
            }
            Some(phrase)
        };
        tokio::task::spawn_blocking(load).await.ok()?
    }

    /// Keeps a phrase, and makes room for it. Failure is logged; the phrase is spoken again then.
    pub async fn keep(&self, key: &str, text: &str, phrase: Phrase) {
        let (this, path) = (self.clone(), self.path(key, text));
        let keep = move || -> io::Result<()> {
            let bytes = encode(&phrase)?;
            fs::create_dir_all(&this.folder)?;
            this.make_room(bytes.len() as u64)?;
            if bytes.len() as u64 > this.cap {
                return Ok(());
            }
            let draft = path.with_extension(format!("{}.draft", uuid::Uuid::new_v4().simple()));
            fs::write(&draft, &bytes)?;
            fs::rename(&draft, &path).inspect_err(|_| _ = fs::remove_file(&draft))
        };
        let kept = tokio::task::spawn_blocking(keep).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, folder = %self.folder.display(), "a phrase could not be kept");
        }
    }

    fn path(&self, key: &str, text: &str) -> PathBuf {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        for part in [key, text] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let mut name = String::with_capacity(64);
        for byte in hash.finish().as_ref() {
            let _ = write!(name, "{byte:02x}");
        }
        self.folder.join(name).with_extension("phrase")
    }

    /// Removes the files that were used the longest ago until `more` bytes fit.
    fn make_room(&self, more: u64) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)?.take(MAX_FILES) {
            let entry = entry?;
            let path = entry.path();
            let is_ours = path.extension().is_some_and(|it| it == "phrase" || it == "draft");
            if let (true, Ok(about)) = (is_ours, entry.metadata()) {
                files.push((about.modified().ok(), about.len(), path));
            }
        }
        files.sort();
        let mut sum: u64 = files.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in files {
            if sum + more <= self.cap {
                break;
            }
            // Another process may have been quicker.
            let _ = fs::remove_file(path);
            sum -= length;
        }
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read(path)
}

/// The mark, the words as a line of JSON, the samples as little-endian bytes, a CRC-32 of all that.
fn encode(phrase: &Phrase) -> io::Result<Vec<u8>> {
    let head = Head { words: phrase.words.clone(), samples: phrase.samples.len() };
    let mut bytes = MAGIC.to_vec();
    serde_json::to_writer(&mut bytes, &head)?;
    bytes.push(b'\n');
    bytes.extend(phrase.samples.iter().flat_map(|sample| sample.to_le_bytes()));
    let check = crc32fast::hash(&bytes);
    bytes.extend(check.to_le_bytes());
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Option<Phrase> {
    let (bytes, check) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(bytes) != u32::from_le_bytes(*check) {
        return None;
    }
    let rest = bytes.strip_prefix(MAGIC)?;
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let head: Head = serde_json::from_slice(&rest[..end]).ok()?;
    let samples = to_samples(&mut None, &rest[end + 1..]);
    (samples.len() == head.samples && !samples.is_empty())
        .then_some(Phrase { samples, words: head.words })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn phrase(length: usize) -> Phrase {
        let word = TimedText { text: "Hello.".into(), start_ms: 0, end_ms: 9 };
        Phrase { samples: vec![-7; length], words: vec![word] }
    }

    #[tokio::test]
    async fn a_phrase_is_there_for_its_own_voice_alone() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(folder.path().join("phrases"), 1 << 20);
        assert_eq!(disk.load("voice a", "Hello.").await, None);
        disk.keep("voice a", "Hello.", phrase(240)).await;
        assert_eq!(disk.load("voice a", "Hello.").await, Some(phrase(240)));
        assert_eq!(disk.load("voice b", "Hello.").await, None);
        assert_eq!(disk.load("voice aH", "ello.").await, None);
    }

    #[tokio::test]
    async fn what_was_used_the_longest_ago_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(folder.path().to_owned(), 5_000);
        for (nth, text) in ["one", "two"].into_iter().enumerate() {
            disk.keep("v", text, phrase(1_000)).await;
            let file = fs::File::options().append(true).open(disk.path("v", text)).unwrap();
            let since = std::time::Duration::from_secs(1_000 + nth as u64);
            file.set_modified(std::time::UNIX_EPOCH + since).unwrap();
        }
        // Used now, so that the other is the older.
        assert!(disk.load("v", "one").await.is_some());
        disk.keep("v", "three", phrase(1_000)).await;
        assert!(disk.load("v", "one").await.is_some());
        assert_eq!(disk.load("v", "two").await, None);
        assert!(disk.load("v", "three").await.is_some());
        disk.keep("v", "four", phrase(4_000)).await;
        assert_eq!(disk.load("v", "four").await, None, "it would not fit alone");
    }

    #[test]
    fn a_damaged_file_is_none() {
        let whole = encode(&phrase(10)).unwrap();
        assert_eq!(decode(&whole), Some(phrase(10)));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert_eq!(decode(&damaged), None, "byte {at}");
            assert_eq!(decode(&whole[..at]), None, "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn no_file_can_hurt(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
