//! Where recordings are kept: a directory, or an S3-compatible storage.

use std::{ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, stream};
use object_store::{
    ObjectStore, ObjectStoreExt, PutPayload, aws::AmazonS3Builder, local::LocalFileSystem,
    path::Path,
};
use secrecy::ExposeSecret;

use super::{RecordingKey, sealed};
use crate::config::control::S3;

/// Read at once.
const PIECE: u64 = 256 * 1024;

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

    /// In pieces, so that a long recording is never in memory as a whole.
    pub async fn put_file(&self, name: &str, file: &std::path::Path) -> Result<(), StorageError> {
        use tokio::io::AsyncReadExt;
        /// S3 takes no smaller part but the last.
        const PART: usize = 8 * 1024 * 1024;
        let failed = |error: std::io::Error| {
            StorageError::Failed(object_store::Error::Generic {
                store: "file",
                source: Box::new(error),
            })
        };
        let mut file = tokio::fs::File::open(file).await.map_err(failed)?;
        let mut upload = None;
        loop {
            let mut part = Vec::new();
            (&mut file).take(PART as u64).read_to_end(&mut part).await.map_err(failed)?;
            let last = part.len() < PART;
            if last && upload.is_none() {
                return self.put(name, part.into()).await;
            }
            let upload = match &mut upload {
                Some(upload) => upload,
                None => upload.insert(self.objects.put_multipart(&path(name)?).await?),
            };
            if let Err(error) = upload.put_part(PutPayload::from(part)).await {
                // What is there of it is of no use; the first error counts.
                let _ = upload.abort().await;
                return Err(error.into());
            }
            if last {
                upload.complete().await?;
                return Ok(());
            }
        }
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

fn path(name: &str) -> Result<Path, StorageError> {
    Path::parse(name).map_err(|_| StorageError::Name)
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;
    use proptest::prelude::*;

    use super::*;

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

    /// An S3-compatible storage as far as one bucket goes
    /// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html>).
    async fn s3_double() -> (url::Url, Objects) {
        use axum::{
            Router,
            extract::{Path as UrlPath, State},
            http::{HeaderMap, Method, StatusCode, header},
            response::{IntoResponse, Response},
            routing::any,
        };
        async fn answer(
            method: Method,
            State(objects): State<Objects>,
            UrlPath((bucket, key)): UrlPath<(String, String)>,
            headers: HeaderMap,
            body: Bytes,
        ) -> Response {
            assert_eq!(bucket, "calls");
            let signed = headers[header::AUTHORIZATION].to_str().unwrap();
            assert!(signed.starts_with("AWS4-HMAC-SHA256 Credential=access/"), "{signed}");
            let mut objects = objects.lock();
            let etag =
                [(header::ETAG, "\"1\""), (header::LAST_MODIFIED, "Thu, 01 Jan 2026 00:00:00 GMT")];
            match method {
                Method::PUT => {
                    objects.insert(key, body);
                    (etag, "").into_response()
                }
                Method::DELETE => {
                    objects.remove(&key);
                    StatusCode::NO_CONTENT.into_response()
                }
                _ => {
                    let Some(bytes) = objects.get(&key) else {
                        return StatusCode::NOT_FOUND.into_response();
                    };
                    let Some(range) = headers.get(header::RANGE) else {
                        return (etag, bytes.clone()).into_response();
                    };
                    let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap();
                    let (from, to) = range.split_once('-').unwrap();
                    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                    let said = format!("bytes {from}-{to}/{}", bytes.len());
                    let part = bytes.slice(from..=to);
                    (StatusCode::PARTIAL_CONTENT, etag, [(header::CONTENT_RANGE, said)], part)
                        .into_response()
                }
            }
        }
        let objects = Objects::default();
        let app = Router::new().route("/{bucket}/{*key}", any(answer)).with_state(objects.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        (url, objects)
    }

    type Objects = Arc<parking_lot::Mutex<std::collections::HashMap<String, Bytes>>>;

    #[tokio::test]
    async fn an_s3_compatible_storage_holds_recordings_too() {
        crate::net::install_crypto();
        let (endpoint, objects) = s3_double().await;
        let s3 = S3 {
            bucket: "calls".into(),
            access_key: Some("access".into()),
            secret_key: Some("secret".to_owned().into()),
            region: "eu-1".into(),
            endpoint: Some(endpoint),
        };
        let storage = Storage::s3(&s3, Some(key())).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sound");
        std::fs::write(&file, b"a voice").unwrap();
        storage.put_file("recordings/a.ogg", &file).await.unwrap();
        assert_eq!(objects.lock()["recordings/a.ogg"], "a voice");
        let found = storage.find("recordings/a.ogg", false).await.unwrap();
        assert_eq!(found.size, 7);
        assert_eq!(read(found, 2..7).await, b"voice");
        storage.delete("recordings/a.ogg").await.unwrap();
        assert!(objects.lock().is_empty());
        assert!(matches!(
            storage.find("recordings/a.ogg", false).await,
            Err(StorageError::Missing)
        ));
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
