//! Where recordings are kept: a directory, or an S3-compatible storage.

use std::{ops::Range, path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use object_store::{
    ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart, aws::AmazonS3Builder,
    local::LocalFileSystem, path::Path,
};
use secrecy::ExposeSecret;
use tokio::{fs::File, io::AsyncReadExt};

use super::{RecordingKey, sealed};
use crate::config::control::S3;

/// Read at once.
const PIECE: u64 = 256 * 1024;
/// Of a large upload; S3 takes no part below 5 MiB but the last, and at most 10,000.
const PART: usize = 8 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("there is no such object")]
    Missing,
    #[error("the storage failed: {0}")]
    Failed(object_store::Error),
    #[error("the recording is encrypted, and ANTIPHON_RECORDING_KEY is not set to its key")]
    Sealed,
    #[error("the object's name is not valid")]
    Name,
    #[error("the directory of recordings cannot be made: {0}")]
    Directory(std::io::Error),
}

impl From<object_store::Error> for StorageError {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::Missing,
            error => Self::Failed(error),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Storage {
    objects: Arc<dyn ObjectStore>,
    key: Option<RecordingKey>,
}

/// An object as its reader gets it.
#[derive(Debug, Clone)]
pub struct Found {
    storage: Storage,
    path: Path,
    /// In bytes, decrypted.
    pub size: u64,
    sealed: Option<sealed::Opener>,
}

impl Storage {
    /// A directory, made if need be.
    pub fn local(directory: &PathBuf, key: Option<RecordingKey>) -> Result<Self, StorageError> {
        std::fs::create_dir_all(directory).map_err(StorageError::Directory)?;
        let objects = LocalFileSystem::new_with_prefix(directory)?.with_fsync(true);
        Ok(Self { objects: Arc::new(objects), key })
    }

    pub fn s3(s3: &S3, key: Option<RecordingKey>) -> Result<Self, StorageError> {
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&s3.bucket)
            .with_region(&s3.region)
            .with_virtual_hosted_style_request(s3.endpoint.is_none())
            // One by one: not every compatible storage knows more.
            .with_disable_bulk_delete(true);
        if let Some(endpoint) = &s3.endpoint {
            builder = builder
                .with_endpoint(endpoint.as_str().trim_end_matches('/'))
                .with_allow_http(endpoint.scheme() == "http");
        }
        if let Some(access) = &s3.access_key {
            builder = builder.with_access_key_id(access);
        }
        if let Some(secret) = &s3.secret_key {
            builder = builder.with_secret_access_key(secret.expose_secret());
        }
        Ok(Self { objects: Arc::new(builder.build()?), key })
    }

    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<(), StorageError> {
        self.objects.put(&path(name)?, PutPayload::from(bytes)).await?;
        Ok(())
    }

    /// A large file goes in parts: of a long recording no more than one is in memory.
    pub async fn put_file(&self, name: &str, file: &std::path::Path) -> Result<(), StorageError> {
        let file = File::open(file).await.map_err(unreadable)?;
        let size = file.metadata().await.map_err(unreadable)?.len();
        if size < PART as u64 {
            let mut bytes = Vec::with_capacity(size as usize);
            file.take(PART as u64).read_to_end(&mut bytes).await.map_err(unreadable)?;
            return self.put(name, bytes.into()).await;
        }
        let upload = self.objects.put_multipart(&path(name)?).await?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
        if let Err(error) = send(file, &mut upload).await {
            // What is there of it is of no use; the first error counts.
            let _ = upload.abort().await;
            return Err(error);
        }
        // Aborts by itself what cannot be completed.
        upload.finish().await?;
        Ok(())
    }

    /// One that is not there is fine.
    pub async fn delete(&self, name: &str) -> Result<(), StorageError> {
        match self.objects.delete(&path(name)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub async fn find(&self, name: &str, encrypted: bool) -> Result<Found, StorageError> {
        let path = path(name)?;
        let stored = self.objects.head(&path).await?.size;
        let sealed = if encrypted {
            let key = self.key.as_ref().ok_or(StorageError::Sealed)?;
            let header = 0..(sealed::HEADER as u64).min(stored);
            let header = self.objects.get_range(&path, header).await?;
            Some(sealed::Opener::new(key, &header).ok_or(StorageError::Sealed)?)
        } else {
            None
        };
        let size = if encrypted { sealed::plain_size(stored) } else { stored };
        Ok(Found { storage: self.clone(), path, size, sealed })
    }
}

impl Found {
    /// `range` lies within the size.
    pub fn read(
        self,
        range: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, StorageError>> + Send + 'static {
        stream::try_unfold((self, range), |(found, range)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let end = range.end.min(range.start + PIECE);
            let piece = found.piece(range.start..end).await?;
            Ok(Some((piece, (found, end..range.end))))
        })
    }

    async fn piece(&self, range: Range<u64>) -> Result<Bytes, StorageError> {
        let objects = &self.storage.objects;
        let Some(sealed) = &self.sealed else {
            return Ok(objects.get_range(&self.path, range).await?);
        };
        let chunks = sealed::chunks_of(&range);
        let bytes = objects.get_range(&self.path, sealed::stored(&chunks)).await?;
        let plain = sealed.open(chunks.start, &bytes).ok_or(StorageError::Sealed)?;
        let skipped = (range.start - chunks.start * sealed::CHUNK as u64) as usize;
        let length = (range.end - range.start) as usize;
        let part = plain.get(skipped..skipped + length).ok_or(StorageError::Sealed)?;
        Ok(Bytes::copy_from_slice(part))
    }
}

/// One part is on its way at a time.
async fn send(mut file: File, upload: &mut WriteMultipart) -> Result<(), StorageError> {
    loop {
        let mut piece = BytesMut::with_capacity(PIECE as usize);
        if file.read_buf(&mut piece).await.map_err(unreadable)? == 0 {
            return Ok(());
        }
        upload.wait_for_capacity(1).await?;
        upload.put(piece.freeze());
    }
}

fn unreadable(error: std::io::Error) -> StorageError {
    StorageError::Failed(object_store::Error::Generic { store: "file", source: Box::new(error) })
}

fn path(name: &str) -> Result<Path, StorageError> {
    Path::parse(name).map_err(|_| StorageError::Name)
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;
    use proptest::prelude::*;

    use super::*;
    use crate::recording::s3_double::S3Double;

    fn key() -> RecordingKey {
        RecordingKey([7; 32])
    }

    async fn read(found: Found, range: Range<u64>) -> Vec<u8> {
        let pieces: Vec<Bytes> = found.read(range).try_collect().await.unwrap();
        pieces.concat()
    }

    #[tokio::test]
    async fn what_is_put_is_read_in_any_part_and_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let storage = Storage::local(&directory.path().join("deep"), None).unwrap();
        let bytes: Vec<u8> = (0..600_000_u32).map(|n| (n / 7) as u8).collect();
        storage.put("a/b.mp4", bytes.clone().into()).await.unwrap();
        let found = storage.find("a/b.mp4", false).await.unwrap();
        assert_eq!(found.size, 600_000);
        assert_eq!(read(found.clone(), 0..600_000).await, bytes);
        assert_eq!(read(found, 299_999..300_002).await, bytes[299_999..300_002]);
        storage.delete("a/b.mp4").await.unwrap();
        storage.delete("a/b.mp4").await.unwrap();
        assert!(matches!(storage.find("a/b.mp4", false).await, Err(StorageError::Missing)));
        assert!(matches!(storage.find("../x", false).await, Err(StorageError::Name)));
    }

    async fn s3() -> (Storage, S3Double) {
        let double = S3Double::start().await;
        (Storage::s3(&double.settings, Some(key())).unwrap(), double)
    }

    /// A file of this many bytes, none of which is like its neighbours.
    fn file(size: usize) -> (tempfile::NamedTempFile, Vec<u8>) {
        let bytes: Vec<u8> = (0..size).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        (file, bytes)
    }

    #[tokio::test]
    async fn an_s3_compatible_storage_holds_recordings_too() {
        let (storage, double) = s3().await;
        let (sound, bytes) = file(7);
        storage.put_file("recordings/a.ogg", sound.path()).await.unwrap();
        assert_eq!(double.objects.lock().stored["recordings/a.ogg"], bytes);
        let found = storage.find("recordings/a.ogg", false).await.unwrap();
        assert_eq!(found.size, 7);
        assert_eq!(read(found, 2..7).await, bytes[2..]);
        storage.delete("recordings/a.ogg").await.unwrap();
        assert!(double.objects.lock().stored.is_empty());
        assert!(matches!(
            storage.find("recordings/a.ogg", false).await,
            Err(StorageError::Missing)
        ));
    }

    #[tokio::test]
    async fn a_long_recording_goes_to_s3_in_parts() {
        for rest in [0, 1_000_003] {
            let (storage, double) = s3().await;
            let (sound, bytes) = file(2 * PART + rest);
            storage.put_file("recordings/long.ogg", sound.path()).await.unwrap();
            let objects = double.objects.lock();
            assert!(objects.stored["recordings/long.ogg"] == bytes);
            assert!(objects.open.is_empty());
            let parts = objects.bodies.iter().filter(|size| **size >= 1_000_003).count();
            assert_eq!(parts, 2 + usize::from(rest > 0));
            assert_eq!(objects.bodies.iter().max(), Some(&PART));
        }
    }

    #[tokio::test]
    async fn of_an_upload_that_fails_nothing_stays() {
        for part in [1, 3] {
            let (storage, double) = s3().await;
            double.objects.lock().refused_part = Some(part);
            let (sound, _) = file(2 * PART + 5);
            let told = storage.put_file("recordings/long.ogg", sound.path()).await;
            assert!(matches!(told, Err(StorageError::Failed(_))), "{told:?}");
            let objects = double.objects.lock();
            assert!(objects.stored.is_empty() && objects.open.is_empty(), "part {part}");
        }
    }

    #[tokio::test]
    async fn a_directory_takes_a_long_recording_whole() {
        let directory = tempfile::tempdir().unwrap();
        let storage = Storage::local(&directory.path().into(), None).unwrap();
        let (sound, bytes) = file(PART + 1);
        storage.put_file("long.ogg", sound.path()).await.unwrap();
        assert!(std::fs::read(directory.path().join("long.ogg")).unwrap() == bytes);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn a_sealed_object_is_read_in_any_part(size in 1..20_000_usize, a: u16, b: u16) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let directory = tempfile::tempdir().unwrap();
                let storage = Storage::local(&directory.path().into(), Some(key())).unwrap();
                let plain: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
                let mut sealer = sealed::Sealer::new(&key()).unwrap();
                let mut stored = sealer.header().to_vec();
                stored.extend(sealer.write(&plain).unwrap());
                stored.extend(sealer.finish().unwrap());
                let beginning = &plain[..size.min(32)];
                assert!(size < 8 || !stored.windows(beginning.len()).any(|it| it == beginning));
                storage.put("x", stored.into()).await.unwrap();
                let found = storage.find("x", true).await.unwrap();
                assert_eq!(found.size, size as u64);
                let (a, b) = (a as usize % size, b as usize % size);
                let (from, to) = (a.min(b), a.max(b) + 1);
                assert_eq!(read(found, from as u64..to as u64).await, plain[from..to]);
                let other = Storage { key: Some(RecordingKey([8; 32])), ..storage };
                let wrong = other.find("x", true).await.unwrap().read(0..1);
                assert!(wrong.try_collect::<Vec<_>>().await.is_err());
            });
        }
    }
}
