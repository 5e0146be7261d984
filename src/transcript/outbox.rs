//! Finals on disk until the control endpoint has acknowledged them.
//!
//! `{state_dir}/outbox/` holds one append-only file for each session that has something to send
//! (format: `line.rs`). [`OutboxFile::append`] returns after fsync; appends that wait at the same
//! time share one. A file goes when all of it is acknowledged and its session is closed.
//!
//! Whose file it is, a lock says, not a name or a pid: the writer holds an exclusive lock on its
//! file as long as it lives (`flock`; the kernel lets go of it when the process dies, by kill -9
//! too), and [`Outbox::adopt`] takes the files on which nobody holds one. So several workers may
//! share a state directory and none sends another's. Should one file yet be sent twice, nothing
//! happens: ingest is idempotent by segment id. A file is made under a name that nobody adopts and
//! gets its real name under its lock.
//!
//! What the directory may take up is capped. Beyond the cap an append fails and says so; nothing
//! that is there is dropped.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::line::{self, Line, MAX_LINE};

/// The part of a file that is read at once.
const WINDOW: u64 = 2 * MAX_LINE as u64;
/// Waiting for a slow disk.
const MAX_PENDING: usize = 4 * 1024 * 1024;
/// A file that is all acknowledged and at least this long is emptied.
const COMPACT: u64 = 256 * 1024;
/// Files adopted at once: each is an open file.
pub const MAX_ADOPTED: usize = 64;

const LIVE: &str = "jsonl";
const UNNAMED: &str = "new";
const REJECTED: &str = "rejected";

/// The directory.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<Directory>);

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    cap: u64,
    used: AtomicU64,
    /// Whether the alarm has been given.
    alarmed: AtomicBool,
}

impl Outbox {
    /// Makes the directory if need be. `cap` in bytes, for all files in it.
    pub async fn open(state_dir: &Path, cap: u64) -> io::Result<Self> {
        let path = state_dir.join("outbox");
        blocking(move || {
            make_private_directory(&path)?;
            let directory =
                Directory { path, cap, used: AtomicU64::new(0), alarmed: AtomicBool::new(false) };
            directory.used.store(directory.measure()?, Ordering::Relaxed);
            Ok(Self(Arc::new(directory)))
        })
        .await
    }

    /// A new file; it is made in the background, at the latest by the first append.
    pub fn create(&self) -> OutboxFile {
        let file = OutboxFile::new(self.0.clone(), State { flushing: true, ..State::default() });
        file.start_flush();
        file
    }

    /// Takes over files that dead processes left, oldest first; at most 64 at a time.
    pub async fn adopt(&self) -> io::Result<Vec<OutboxFile>> {
        let directory = self.0.clone();
        blocking(move || {
            let mut paths: Vec<PathBuf> = fs::read_dir(&directory.path)?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<io::Result<_>>()?;
            // Their names begin with the time.
            paths.sort();
            let mut adopted = Vec::new();
            for path in paths {
                let unnamed = path.extension().is_some_and(|found| found == UNNAMED);
                if !unnamed && path.extension().is_none_or(|found| found != LIVE) {
                    continue;
                }
                let Some((file, length)) = lock_existing(&path)? else { continue };
                if unnamed {
                    fs::remove_file(&path)?;
                    continue;
                }
                let state = State { durable: length, path: Some(path.clone()), ..State::default() };
                let file_of = OutboxFile::new(directory.clone(), state);
                *file_of.0.handle.lock() = Some(file);
                adopted.push(file_of);
                if adopted.len() == MAX_ADOPTED {
                    break;
                }
            }
            Ok(adopted)
        })
        .await
    }
}

impl Directory {
    fn measure(&self) -> io::Result<u64> {
        let mut total = 0;
        for entry in fs::read_dir(&self.path)? {
            match entry?.metadata() {
                Ok(metadata) => total += metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.alarm(used);
        if used <= self.cap {
            return Ok(());
        }
        // Other processes may have removed theirs since the last count.
        let measured = self.measure()?;
        if measured + bytes <= self.cap {
            self.used.store(measured + bytes, Ordering::Relaxed);
            return Ok(());
        }
        self.used.store(measured, Ordering::Relaxed);
        let cap = self.cap;
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("the outbox is full: it holds {measured} of at most {cap} bytes"),
        ))
    }

    /// Says in time that it fills up: while there is still room, and again only after it emptied.
    fn alarm(&self, used: u64) {
        metrics::gauge!("antiphon_outbox_bytes").set(used as f64);
        metrics::gauge!("antiphon_outbox_fill_ratio").set(used as f64 / self.cap.max(1) as f64);
        if used >= self.cap / 10 * 8 {
            if !self.alarmed.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    used,
                    cap = self.cap,
                    path = %self.path.display(),
                    "the outbox is filling up: the control endpoint takes no reports; when it is \
                     full, finals that the endpoint does not take at once are lost"
                );
            }
        } else if used < self.cap / 2 {
            self.alarmed.store(false, Ordering::Relaxed);
        }
    }

    fn release(&self, bytes: u64) {
        let saturating = |used: u64| Some(used.saturating_sub(bytes));
        let before = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, saturating);
        self.alarm(before.unwrap_or_default().saturating_sub(bytes));
    }

    /// Makes a file that no other process can take for a dead one's.
    fn make_file(&self) -> io::Result<(File, PathBuf)> {
        loop {
            let time = crate::clock::unix_ms();
            let name = format!("{time:014}-{}", uuid::Uuid::new_v4().simple());
            let unnamed = self.path.join(&name).with_extension(UNNAMED);
            let file = private_file().create_new(true).open(&unnamed)?;
            match file.try_lock() {
                Ok(()) => {}
                // An adopter is about to remove what it takes for a leftover.
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let path = unnamed.with_extension(LIVE);
            match fs::rename(&unnamed, &path) {
                Ok(()) => {}
                // An adopter has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            // The name itself must survive a power cut.
            #[cfg(unix)]
            File::open(&self.path)?.sync_all()?;
            return Ok((file, path));
        }
    }
}

/// One session's file. Clones are the same file.
#[derive(Debug, Clone)]
pub struct OutboxFile(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    directory: Arc<Directory>,
    /// Held by the flush, or by what excludes one.
    handle: Mutex<Option<File>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whole lines that the next fsync will cover, and who waits for it.
    pending: Vec<u8>,
    waiters: Vec<oneshot::Sender<io::Result<()>>>,
    /// Whether a blocking task writes, or will look at `pending` before it ends.
    flushing: bool,
    path: Option<PathBuf>,
    /// The file is on disk up to here.
    durable: u64,
    acknowledged: u64,
    removed: bool,
}

/// Records that wait to be acknowledged, oldest first.
#[derive(Debug, Default)]
pub struct Batch {
    pub records: Vec<Vec<u8>>,
    /// Lines that are not what was written; to be kept by [`OutboxFile::reject`].
    pub corrupt: Vec<Vec<u8>>,
    end: u64,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.corrupt.is_empty() && self.end == 0
    }
}

impl OutboxFile {
    fn new(directory: Arc<Directory>, state: State) -> Self {
        Self(Arc::new(Shared { directory, handle: Mutex::new(None), state: Mutex::new(state) }))
    }

    fn start_flush(&self) {
        let shared = self.0.clone();
        tokio::task::spawn_blocking(move || shared.flush());
    }

    /// Returns when the record is on disk. Dropping the future does not undo it.
    ///
    /// Errors: `StorageFull` beyond the cap (or a full disk), `InvalidInput` for a record that is
    /// longer than a line may be, and what the file system says.
    pub async fn append(&self, record: &[u8]) -> io::Result<()> {
        let line = line::encode(record).ok_or_else(|| {
            let text = format!("a record of {} bytes does not fit in the outbox", record.len());
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        let (done, written) = oneshot::channel();
        let start = {
            let mut state = self.0.state.lock();
            if state.pending.len() + line.len() > MAX_PENDING {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "the disk is too slow"));
            }
            state.pending.extend_from_slice(&line);
            state.waiters.push(done);
            !std::mem::replace(&mut state.flushing, true)
        };
        if start {
            self.start_flush();
        }
        written.await.unwrap_or_else(|_| Err(io::Error::other("the runtime is shutting down")))
    }

    /// Whether there is something on disk that is not acknowledged.
    pub fn has_unacknowledged(&self) -> bool {
        let state = self.0.state.lock();
        state.acknowledged < state.durable
    }

    /// The oldest records that are not acknowledged, at most `max`.
    pub async fn unacknowledged(&self, max: usize) -> io::Result<Batch> {
        let shared = self.0.clone();
        blocking(move || shared.read(max)).await
    }

    /// All of the batch is safe elsewhere.
    pub async fn acknowledge(&self, batch: &Batch) -> io::Result<()> {
        {
            let mut state = self.0.state.lock();
            state.acknowledged = state.acknowledged.max(batch.end);
            let compact =
                state.acknowledged == state.durable && state.durable >= COMPACT && !state.flushing;
            if !compact {
                return Ok(());
            }
            // In the place of a flush: none runs beside it.
            state.flushing = true;
        }
        let shared = self.0.clone();
        blocking(move || {
            let emptied = shared.empty();
            shared.flush();
            emptied
        })
        .await
    }

    /// Keeps a record that will never be accepted in a file of its own, for a person to look at.
    pub async fn reject(&self, records: Vec<Vec<u8>>) -> io::Result<()> {
        let shared = self.0.clone();
        blocking(move || {
            let Some(path) = shared.state.lock().path.clone() else { return Ok(()) };
            let mut file = private_file().append(true).open(path.with_extension(REJECTED))?;
            let mut text = records.join(&b'\n');
            text.push(b'\n');
            // Not held against the cap: it takes the place of what is about to go.
            shared.directory.used.fetch_add(text.len() as u64, Ordering::Relaxed);
            file.write_all(&text)?;
            file.sync_data()
        })
        .await
    }

    /// Removes the file; for a session that is closed and all of it acknowledged.
    pub async fn remove(&self) -> io::Result<()> {
        let shared = self.0.clone();
        blocking(move || {
            let mut handle = shared.handle.lock();
            let (path, length) = {
                let mut state = shared.state.lock();
                state.removed = true;
                (state.path.take(), state.durable)
            };
            let Some(path) = path else { return Ok(()) };
            // The name goes before the lock does.
            let removed = fs::remove_file(path);
            *handle = None;
            shared.directory.release(length);
            removed
        })
        .await
    }
}

impl Shared {
    fn flush(&self) {
        loop {
            let (bytes, waiters) = {
                let mut state = self.state.lock();
                (std::mem::take(&mut state.pending), std::mem::take(&mut state.waiters))
            };
            let written = self.write(&bytes);
            let mut state = self.state.lock();
            if written.is_ok() {
                state.durable += bytes.len() as u64;
            }
            for waiter in waiters {
                // One error for several waiters: `io::Error` cannot be cloned.
                let told = match &written {
                    Ok(()) => Ok(()),
                    Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
                };
                let _ = waiter.send(told);
            }
            if state.pending.is_empty() {
                state.flushing = false;
                return;
            }
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut handle = self.handle.lock();
        let (at, removed) = {
            let state = self.state.lock();
            (state.durable, state.removed)
        };
        if removed {
            return if bytes.is_empty() { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) };
        }
        let file = if let Some(file) = &mut *handle {
            file
        } else {
            let (file, path) = self.directory.make_file()?;
            self.state.lock().path = Some(path);
            handle.insert(file)
        };
        if bytes.is_empty() {
            return Ok(());
        }
        self.directory.reserve(bytes.len() as u64)?;
        // Always where the last good write ended: what a failed one left is written over.
        let written = file
            .seek(SeekFrom::Start(at))
            .and_then(|_| file.write_all(bytes))
            .and_then(|()| file.sync_data());
        if written.is_err() {
            self.directory.release(bytes.len() as u64);
            let _ = file.set_len(at);
        }
        written
    }

    fn empty(&self) -> io::Result<()> {
        let handle = self.handle.lock();
        let Some(file) = &*handle else { return Ok(()) };
        file.set_len(0)?;
        let mut state = self.state.lock();
        self.directory.release(state.durable);
        state.durable = 0;
        state.acknowledged = 0;
        Ok(())
    }

    fn read(&self, max: usize) -> io::Result<Batch> {
        let (path, from, to) = {
            let state = self.state.lock();
            (state.path.clone(), state.acknowledged, state.durable)
        };
        let Some(path) = path.filter(|_| from < to) else { return Ok(Batch::default()) };
        let length = (to - from).min(WINDOW);
        let mut window = Vec::with_capacity(length as usize);
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        file.take(length).read_to_end(&mut window)?;

        let last = from + length == to;
        let mut batch = Batch { end: from, ..Batch::default() };
        for line in line::lines(&window) {
            if batch.records.len() == max {
                break;
            }
            match &line {
                Line::Record(record) => batch.records.push(record.to_vec()),
                Line::Corrupt(bytes) => batch.corrupt.push(bytes.to_vec()),
                // The end of what a process wrote that died writing it: its append never returned.
                Line::Partial(bytes) if last => {
                    tracing::warn!(bytes = bytes.len(), "an outbox file ends in a torn record");
                }
                // No line is as long as a window.
                Line::Partial(bytes) if batch.end == from => batch.corrupt.push(bytes.to_vec()),
                Line::Partial(_) => break,
            }
            batch.end += line.len() as u64;
        }
        Ok(batch)
    }
}

/// The file under an exclusive lock, and its length; `None` when somebody holds it or it has gone.
pub fn lock_existing(path: &Path) -> io::Result<Option<(File, u64)>> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Its owner may have renamed or removed it between the opening and the lock.
    if !path.try_exists()? {
        return Ok(None);
    }
    let length = file.metadata()?.len();
    Ok(Some((file, length)))
}

/// What people said is for the owner of the process alone.
pub fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

pub fn make_private_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// File work beside the runtime's own threads.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the runtime is shutting down")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: u64 = 1 << 20;

    async fn open(directory: &tempfile::TempDir) -> Outbox {
        Outbox::open(directory.path(), CAP).await.unwrap()
    }

    async fn texts(file: &OutboxFile, max: usize) -> Vec<String> {
        let batch = file.unacknowledged(max).await.unwrap();
        batch.records.into_iter().map(|record| String::from_utf8(record).unwrap()).collect()
    }

    /// Lets go of the lock, as the kernel does after kill -9.
    async fn die(file: OutboxFile) {
        // The task that wrote may not have ended yet.
        while Arc::strong_count(&file.0) > 1 {
            tokio::task::yield_now().await;
        }
    }

    fn files(directory: &tempfile::TempDir) -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(directory.path().join("outbox"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        paths
    }

    #[tokio::test]
    async fn records_come_back_in_order_until_they_are_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let file = open(&directory).await.create();
        for record in ["one", "two", "three"] {
            file.append(record.as_bytes()).await.unwrap();
        }
        assert_eq!(texts(&file, 2).await, ["one", "two"]);
        let batch = file.unacknowledged(2).await.unwrap();
        file.acknowledge(&batch).await.unwrap();
        assert_eq!(texts(&file, 9).await, ["three"]);
        let batch = file.unacknowledged(9).await.unwrap();
        file.acknowledge(&batch).await.unwrap();
        assert!(!file.has_unacknowledged());
        assert!(file.unacknowledged(9).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_a_dead_process_left_is_adopted_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let file = open(&directory).await.create();
        file.append(b"one").await.unwrap();
        file.append(b"two").await.unwrap();
        die(file).await;

        let adopted = open(&directory).await.adopt().await.unwrap();
        assert_eq!(adopted.len(), 1);
        assert_eq!(texts(&adopted[0], 9).await, ["one", "two"]);
        adopted[0].remove().await.unwrap();
        assert!(files(&directory).is_empty());
    }

    #[tokio::test]
    async fn the_file_of_a_living_writer_is_nobody_elses() {
        let directory = tempfile::tempdir().unwrap();
        let file = open(&directory).await.create();
        file.append(b"one").await.unwrap();
        assert!(open(&directory).await.adopt().await.unwrap().is_empty());
        assert_eq!(texts(&file, 9).await, ["one"], "and it is still there");
    }

    #[tokio::test]
    async fn a_torn_last_record_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let file = open(&directory).await.create();
        file.append(b"one").await.unwrap();
        file.append(b"two").await.unwrap();
        die(file).await;
        let path = files(&directory).remove(0);
        let length = fs::metadata(&path).unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 2).unwrap();

        let adopted = open(&directory).await.adopt().await.unwrap().remove(0);
        let batch = adopted.unacknowledged(9).await.unwrap();
        assert_eq!(batch.records, [b"one"]);
        adopted.acknowledge(&batch).await.unwrap();
        assert!(!adopted.has_unacknowledged(), "the torn end does not hold it up");
    }

    #[tokio::test]
    async fn a_file_of_garbage_is_handed_out_as_corrupt_and_comes_to_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let outbox = open(&directory).await;
        let path = directory.path().join("outbox/0-garbage.jsonl");
        fs::write(path, vec![b'x'; 3 * WINDOW as usize / 2]).unwrap();
        let adopted = outbox.adopt().await.unwrap().remove(0);
        let mut rounds = 0;
        while adopted.has_unacknowledged() {
            let batch = adopted.unacknowledged(9).await.unwrap();
            assert!(batch.records.is_empty());
            adopted.acknowledge(&batch).await.unwrap();
            rounds += 1;
            assert!(rounds < 5);
        }
    }

    #[tokio::test]
    async fn appends_that_wait_together_are_all_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = open(&directory).await.create();
        let appends = (0..50).map(|number| {
            let file = file.clone();
            async move { file.append(format!("{number:02}").as_bytes()).await.unwrap() }
        });
        futures_util::future::join_all(appends).await;
        let expected: Vec<_> = (0..50).map(|number| format!("{number:02}")).collect();
        assert_eq!(texts(&file, 100).await, expected);
    }

    #[tokio::test]
    async fn beyond_the_cap_an_append_fails_and_what_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(directory.path(), 100).await.unwrap();
        let file = outbox.create();
        file.append(&[b'a'; 60]).await.unwrap();
        let error = file.append(&[b'b'; 60]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(texts(&file, 9).await, ["a".repeat(60)]);

        // Room again once another file has gone.
        let batch = file.unacknowledged(9).await.unwrap();
        file.acknowledge(&batch).await.unwrap();
        file.remove().await.unwrap();
        let next = outbox.create();
        next.append(&[b'c'; 60]).await.unwrap();
        assert_eq!(texts(&next, 9).await, ["c".repeat(60)]);
    }

    #[tokio::test]
    async fn a_long_session_does_not_grow_what_is_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let file = open(&directory).await.create();
        for _ in 0..40 {
            file.append(&vec![b'x'; 100_000]).await.unwrap();
            let batch = file.unacknowledged(9).await.unwrap();
            assert_eq!(batch.records.len(), 1);
            file.acknowledge(&batch).await.unwrap();
        }
        let length = fs::metadata(files(&directory).remove(0)).unwrap().len();
        assert!(length < 2 * COMPACT, "{length}");
    }

    #[tokio::test]
    async fn rejected_records_are_kept_beside_and_never_adopted() {
        let directory = tempfile::tempdir().unwrap();
        let file = open(&directory).await.create();
        file.append(b"poison").await.unwrap();
        file.reject(vec![b"poison".to_vec()]).await.unwrap();
        file.remove().await.unwrap();
        drop(file);
        let left = files(&directory);
        assert_eq!(left.len(), 1);
        assert_eq!(fs::read_to_string(&left[0]).unwrap(), "poison\n");
        assert!(open(&directory).await.adopt().await.unwrap().is_empty());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn only_the_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = open(&directory).await.create();
        file.append(b"one").await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory.path().join("outbox")), 0o700);
        assert_eq!(mode(&files(&directory)[0]), 0o600);
    }
}
