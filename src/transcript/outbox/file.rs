//! One session's file: appended to, read from its oldest record on, emptied, removed.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::PathBuf,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::directory::Directory;
use crate::{
    files::{blocking, private_file},
    transcript::line::{self, Line, MAX_LINE},
};

/// The part of a file that is read at once.
pub(super) const WINDOW: u64 = 2 * MAX_LINE as u64;
/// Waiting for a slow disk.
const MAX_PENDING: usize = 4 * 1024 * 1024;
/// A file that is all acknowledged and at least this long is emptied.
pub(super) const COMPACT: u64 = 256 * 1024;

const REJECTED: &str = "rejected";

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
    /// Made in the background, at the latest by the first append.
    pub(super) fn create(directory: Arc<Directory>) -> Self {
        let file = Self::new(directory, None, State { flushing: true, ..State::default() });
        file.start_flush();
        file
    }

    /// One that is there, `length` bytes of whole and torn lines, under our lock.
    pub(super) fn adopted(
        directory: Arc<Directory>,
        handle: File,
        path: PathBuf,
        length: u64,
    ) -> Self {
        let state = State { durable: length, path: Some(path), ..State::default() };
        Self::new(directory, Some(handle), state)
    }

    fn new(directory: Arc<Directory>, handle: Option<File>, state: State) -> Self {
        Self(Arc::new(Shared { directory, handle: Mutex::new(handle), state: Mutex::new(state) }))
    }

    /// Who holds the file open now: clones, and the tasks that write.
    #[cfg(test)]
    pub(super) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
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
            shared.directory.add(text.len() as u64);
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
