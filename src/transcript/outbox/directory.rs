//! The directory of all files: what it may hold, and how a file in it becomes somebody's.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::files::{make_private_directory, private_file};

pub(super) const LIVE: &str = "jsonl";
pub(super) const UNNAMED: &str = "new";

#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    cap: u64,
    used: AtomicU64,
    /// Whether the alarm has been given.
    alarmed: AtomicBool,
}

impl Directory {
    /// Makes it if need be.
    pub(super) fn open(path: PathBuf, cap: u64) -> io::Result<Self> {
        make_private_directory(&path)?;
        let directory =
            Self { path, cap, used: AtomicU64::new(0), alarmed: AtomicBool::new(false) };
        directory.used.store(directory.measure()?, Ordering::Relaxed);
        Ok(directory)
    }

    /// All files in it, the oldest first: their names begin with the time.
    pub(super) fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> = fs::read_dir(&self.path)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()?;
        paths.sort();
        Ok(paths)
    }

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

    pub(super) fn reserve(&self, bytes: u64) -> io::Result<()> {
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

    /// Counts what takes the place of something that is about to go: not held against the cap.
    pub(super) fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn release(&self, bytes: u64) {
        let saturating = |used: u64| Some(used.saturating_sub(bytes));
        let before = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, saturating);
        self.alarm(before.unwrap_or_default().saturating_sub(bytes));
    }

    /// Makes a file that no other process can take for a dead one's.
    pub(super) fn make_file(&self) -> io::Result<(File, PathBuf)> {
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
