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

mod directory;
mod file;

use std::{fs, io, path::Path, sync::Arc};

use self::directory::{Directory, LIVE, UNNAMED};
use crate::files::{blocking, lock_existing};

pub use self::file::{Batch, OutboxFile};

/// Files adopted at once: each is an open file.
pub const MAX_ADOPTED: usize = 64;

/// The directory.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<Directory>);

impl Outbox {
    /// Makes the directory if need be. `cap` in bytes, for all files in it.
    pub async fn open(state_dir: &Path, cap: u64) -> io::Result<Self> {
        let path = state_dir.join("outbox");
        blocking(move || Ok(Self(Arc::new(Directory::open(path, cap)?)))).await
    }

    /// A new file; it is made in the background, at the latest by the first append.
    pub fn create(&self) -> OutboxFile {
        OutboxFile::create(self.0.clone())
    }

    /// Takes over files that dead processes left, oldest first; at most 64 at a time.
    pub async fn adopt(&self) -> io::Result<Vec<OutboxFile>> {
        let directory = self.0.clone();
        blocking(move || {
            let mut adopted = Vec::new();
            for path in directory.files()? {
                let unnamed = path.extension().is_some_and(|found| found == UNNAMED);
                if !unnamed && path.extension().is_none_or(|found| found != LIVE) {
                    continue;
                }
                // One that is not ours (another user's) does not keep the others.
                let locked = match lock_existing(&path) {
                    Ok(locked) => locked,
                    Err(error) => {
                        tracing::error!(path = %path.display(), %error, "left as it is");
                        continue;
                    }
                };
                let Some((file, length)) = locked else { continue };
                if unnamed {
                    fs::remove_file(&path)?;
                    continue;
                }
                adopted.push(OutboxFile::adopted(directory.clone(), file, path, length));
                if adopted.len() == MAX_ADOPTED {
                    break;
                }
            }
            Ok(adopted)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
