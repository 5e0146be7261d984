//! The queue on disk: `{state_dir}/late/`, one file an utterance.
//!
//! A file is a line of JSON ([`Head`]) and the audio as s16 little-endian, 16 kHz mono. It is written
//! under a name that nobody reads and gets its own when it is whole, so a file that is there outlives
//! the process and is taken up by the next, or by another that shares the directory: whoever works
//! on one holds a lock on it.
//!
//! What the directory may take up is capped: beyond that the oldest go, which is counted and said.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use tracing::{debug, error, warn};

use crate::{
    clock,
    files::{blocking, lock_existing, make_private_directory, private_file},
    telemetry::metrics as names,
    transcript::reporter::SessionInfo,
};

/// What the queue may take up by default: more than four hours of speech.
pub const DEFAULT_CAP: u64 = 512 << 20;
/// Utterances that wait for the disk; each is at most 28 s long.
const WAITING: usize = 32;
/// Longest head that is read.
const MAX_HEAD: usize = 16 << 10;
/// The longest audio that is read, in bytes: 2 min.
const MAX_AUDIO: usize = 2 * 60 * 2 * 16_000;
/// A file that has been in the making for longer was left by a process that died.
const ABANDONED_MS: i64 = 60 * 60 * 1_000;

const WHOLE: &str = "late";
const UNNAMED: &str = "new";
/// Kept for a person to look at: it held up the queue.
const REJECTED: &str = "rejected";

/// What is known of an utterance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    pub session: SessionInfo,
    pub speaker_id: String,
    pub speaker_name: String,
    pub spoken_at_unix_ms: i64,
    /// Of the audio.
    pub crc: u32,
}

/// The queue of one process; clones are the same.
#[derive(Debug, Clone)]
pub struct LateQueue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    directory: Arc<Directory>,
    writer: mpsc::Sender<(Head, Vec<i16>)>,
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    cap: u64,
    /// Utterances that are on their way to the disk.
    pending: watch::Sender<usize>,
    /// There is something new to work on.
    fresh: Notify,
}

/// An utterance that nobody else works on as long as this is held.
#[derive(Debug)]
pub struct Claim {
    pub head: Head,
    /// 16 kHz mono.
    pub samples: Vec<i16>,
    path: PathBuf,
    _lock: File,
}

impl LateQueue {
    /// Makes the directory if need be. `cap` in bytes. Runs in a tokio runtime.
    pub async fn open(state_dir: &Path, cap: u64) -> io::Result<Self> {
        let path = state_dir.join("late");
        let made = path.clone();
        blocking(move || make_private_directory(&made)).await?;
        let pending = watch::Sender::new(0);
        let directory = Arc::new(Directory { path, cap, pending, fresh: Notify::new() });
        let (writer, mut waiting) = mpsc::channel::<(Head, Vec<i16>)>(WAITING);
        let disk = directory.clone();
        tokio::spawn(async move {
            while let Some((head, samples)) = waiting.recv().await {
                let place = disk.clone();
                let written = blocking(move || place.write(head, &samples)).await;
                match written {
                    Ok(()) => disk.fresh.notify_one(),
                    Err(error) => lost(1, &error.to_string()),
                }
                disk.pending.send_modify(|count| *count = count.saturating_sub(1));
            }
        });
        Ok(Self(Arc::new(Shared { directory, writer })))
    }

    /// Puts an utterance (16 kHz mono s16) on its way to the disk. Never waits.
    pub fn keep(&self, head: Head, samples: Vec<i16>) {
        metrics::counter!(names::STT_LATE_TOTAL, "outcome" => "queued").increment(1);
        self.0.directory.pending.send_modify(|count| *count += 1);
        if self.0.writer.try_send((head, samples)).is_err() {
            self.0.directory.pending.send_modify(|count| *count = count.saturating_sub(1));
            lost(1, "the disk is too slow");
        }
    }

    /// Waits until all that was kept is on disk; `false`: the time was too short.
    pub async fn flush(&self, limit: Duration) -> bool {
        let mut pending = self.0.directory.pending.subscribe();
        let done = pending.wait_for(|count| *count == 0);
        tokio::time::timeout(limit, done).await.is_ok()
    }

    /// Returns when something has come in since the last time, or after `limit`.
    pub(super) async fn wait(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.0.directory.fresh.notified()).await;
    }

    /// The oldest utterance of those that were tried least often.
    pub(super) async fn claim(&self, tried: &HashMap<PathBuf, u32>) -> io::Result<Option<Claim>> {
        let (directory, tried) = (self.0.directory.clone(), tried.clone());
        blocking(move || directory.claim(&tried)).await
    }

    /// How many utterances wait, and their size in bytes.
    pub async fn waiting(&self) -> io::Result<(usize, u64)> {
        let directory = self.0.directory.clone();
        blocking(move || {
            let files = directory.files()?;
            Ok((files.len(), files.iter().map(|(_, length)| length).sum()))
        })
        .await
    }
}

impl Claim {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unique for ever.
    pub fn id(&self) -> String {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        stem.rsplit_once('.').map_or_else(|| stem.to_string(), |(_, id)| id.to_owned())
    }

    /// It is done with.
    pub async fn remove(self) -> io::Result<()> {
        blocking(move || fs::remove_file(&self.path)).await
    }

    /// It holds up the others.
    pub async fn set_aside(self) -> io::Result<()> {
        blocking(move || fs::rename(&self.path, self.path.with_extension(REJECTED))).await
    }
}

impl Directory {
    /// Whole files, oldest first, with their lengths.
    fn files(&self) -> io::Result<Vec<(PathBuf, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_some_and(|found| found == UNNAMED) {
                if began(&path).is_none_or(|at| at < clock::unix_ms() - ABANDONED_MS) {
                    let _ = fs::remove_file(&path);
                }
                continue;
            }
            if path.extension().is_none_or(|found| found != WHOLE) {
                continue;
            }
            match entry.metadata() {
                Ok(metadata) => files.push((path, metadata.len())),
                // Somebody else is done with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // Their names begin with the time.
        files.sort();
        Ok(files)
    }

    fn write(&self, mut head: Head, samples: &[i16]) -> io::Result<()> {
        let audio: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        head.crc = crc32fast::hash(&audio);
        let mut bytes = serde_json::to_vec(&head)?;
        bytes.push(b'\n');
        bytes.extend(audio);
        self.make_room(bytes.len() as u64)?;
        let (time, id) = (clock::unix_ms(), uuid::Uuid::new_v4().simple());
        let unnamed = self.path.join(format!("{time:014}.{id}.{UNNAMED}"));
        let mut file = private_file().create_new(true).open(&unnamed)?;
        let written = file.write_all(&bytes).and_then(|()| file.sync_all());
        let named = written.and_then(|()| fs::rename(&unnamed, unnamed.with_extension(WHOLE)));
        if named.is_err() {
            let _ = fs::remove_file(&unnamed);
            return named;
        }
        // The name itself must survive a power cut.
        #[cfg(unix)]
        File::open(&self.path)?.sync_all()?;
        Ok(())
    }

    /// Lets the oldest go for what is to come.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        if bytes > self.cap {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "it is larger than the queue"));
        }
        let files = self.files()?;
        let mut used: u64 = files.iter().map(|(_, length)| length).sum();
        let mut gone = 0;
        for (path, length) in files {
            if used + bytes <= self.cap {
                break;
            }
            // What is being worked on will go by itself.
            let _lock = match lock_existing(&path) {
                Ok(Some(lock)) => lock,
                Ok(None) => continue,
                // Another user's takes nothing of what is ours.
                Err(_) => {
                    used -= length;
                    continue;
                }
            };
            fs::remove_file(&path)?;
            used -= length;
            gone += 1;
        }
        metrics::gauge!(names::STT_LATE_BYTES).set((used + bytes) as f64);
        if gone > 0 {
            lost(gone, "the queue is full: the oldest go");
        }
        Ok(())
    }

    fn claim(&self, tried: &HashMap<PathBuf, u32>) -> io::Result<Option<Claim>> {
        let mut files = self.files()?;
        metrics::gauge!(names::STT_LATE_BYTES)
            .set(files.iter().map(|(_, length)| *length).sum::<u64>() as f64);
        files.sort_by_key(|(path, _)| tried.get(path).copied().unwrap_or(0));
        for (path, length) in files {
            // One that is not ours (another user's) does not keep the others.
            let locked = lock_existing(&path)
                .inspect_err(|error| debug!(path = %path.display(), %error, "left as it is"));
            let Ok(Some((lock, _))) = locked else { continue };
            if let Some((head, samples)) = read(&path, length) {
                return Ok(Some(Claim { head, samples, path, _lock: lock }));
            }
            error!(path = %path.display(), "audio that waits for recognition is damaged");
            fs::rename(&path, path.with_extension(REJECTED))?;
        }
        Ok(None)
    }
}

fn read(path: &Path, length: u64) -> Option<(Head, Vec<i16>)> {
    if length > (MAX_HEAD + MAX_AUDIO) as u64 {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    let end = bytes.iter().take(MAX_HEAD).position(|byte| *byte == b'\n')?;
    let head: Head = serde_json::from_slice(&bytes[..end]).ok()?;
    let audio = &bytes[end + 1..];
    if crc32fast::hash(audio) != head.crc {
        return None;
    }
    let pairs = audio.as_chunks::<2>().0;
    Some((head, pairs.iter().map(|pair| i16::from_le_bytes(*pair)).collect()))
}

/// The time in a file's name.
fn began(path: &Path) -> Option<i64> {
    path.file_name()?.to_str()?.split('.').next()?.parse().ok()
}

fn lost(utterances: u64, why: &str) {
    metrics::counter!(names::STT_LATE_TOTAL, "outcome" => "dropped").increment(utterances);
    warn!(utterances, why, "what was said while nobody could hear it is lost");
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn head(speaker: &str) -> Head {
        Head {
            session: SessionInfo {
                room: "r".into(),
                session_key: "k".into(),
                agent: "a".into(),
                started_at_unix_ms: 1_000,
            },
            speaker_id: speaker.into(),
            speaker_name: String::new(),
            spoken_at_unix_ms: 2_000,
            crc: 0,
        }
    }

    async fn kept(queue: &LateQueue, speaker: &str, samples: usize) {
        queue.keep(head(speaker), vec![7; samples]);
        assert!(queue.flush(LIMIT).await);
    }

    async fn next(queue: &LateQueue) -> Option<Claim> {
        queue.claim(&HashMap::new()).await.unwrap()
    }

    #[tokio::test]
    async fn an_utterance_comes_back_as_it_was_also_to_the_next_process() {
        let directory = tempfile::tempdir().unwrap();
        kept(&LateQueue::open(directory.path(), DEFAULT_CAP).await.unwrap(), "ann", 500).await;
        let queue = LateQueue::open(directory.path(), DEFAULT_CAP).await.unwrap();
        let claim = next(&queue).await.unwrap();
        assert_eq!((claim.head.speaker_id.as_str(), claim.samples.len()), ("ann", 500));
        assert_eq!(claim.id().len(), 32, "{}", claim.id());
        assert!(next(&queue).await.is_none(), "one works on it");
        claim.remove().await.unwrap();
        assert!(next(&queue).await.is_none());
    }

    #[tokio::test]
    async fn beyond_the_cap_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let queue = LateQueue::open(directory.path(), 5_000).await.unwrap();
        for speaker in ["one", "two", "three"] {
            kept(&queue, speaker, 1_000).await;
            // Names are told apart by the ms.
            while began_of_last(directory.path()) >= clock::unix_ms() {
                std::hint::spin_loop();
            }
        }
        let (files, bytes) = queue.waiting().await.unwrap();
        assert!(files == 2 && bytes <= 5_000, "{files} {bytes}");
        let claims = [next(&queue).await.unwrap(), next(&queue).await.unwrap()];
        assert_eq!(claims.map(|claim| claim.head.speaker_id), ["two", "three"]);
        kept(&queue, "too long", 5_000).await;
        assert_eq!(queue.waiting().await.unwrap().0, 2);
    }

    fn began_of_last(path: &Path) -> i64 {
        let entries = fs::read_dir(path.join("late")).unwrap();
        entries.filter_map(|entry| began(&entry.unwrap().path())).max().unwrap()
    }

    #[tokio::test]
    async fn what_is_damaged_is_set_aside_and_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let queue = LateQueue::open(directory.path(), DEFAULT_CAP).await.unwrap();
        kept(&queue, "ann", 500).await;
        let path = next(&queue).await.unwrap().path().to_owned();
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        kept(&queue, "bob", 500).await;
        assert_eq!(next(&queue).await.unwrap().head.speaker_id, "bob");
        assert!(path.with_extension(REJECTED).exists());
    }

    #[tokio::test]
    async fn who_failed_often_is_tried_last() {
        let directory = tempfile::tempdir().unwrap();
        let queue = LateQueue::open(directory.path(), DEFAULT_CAP).await.unwrap();
        kept(&queue, "ann", 500).await;
        let path = next(&queue).await.unwrap().path().to_owned();
        kept(&queue, "bob", 500).await;
        let tried = HashMap::from([(path, 1)]);
        let claim = queue.claim(&tried).await.unwrap().unwrap();
        assert_eq!(claim.head.speaker_id, "bob");
    }
}
