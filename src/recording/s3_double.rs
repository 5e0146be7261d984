//! An S3-compatible storage as far as one bucket goes, uploads in parts included
//! (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html>).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use parking_lot::Mutex;

use crate::config::control::S3;

const BUCKET: &str = "calls";
/// S3 takes no smaller part but the last.
const SMALLEST_PART: usize = 5 << 20;

#[derive(Debug, Default)]
pub struct Objects {
    pub stored: HashMap<String, Bytes>,
    /// Uploads that are neither complete nor aborted: they are paid for until somebody looks.
    pub open: HashMap<String, BTreeMap<u32, Bytes>>,
    /// The sizes of all bodies, in the order in which they came.
    pub bodies: Vec<usize>,
    /// The part of this number is refused.
    pub refused_part: Option<u32>,
}

#[derive(Debug)]
pub struct S3Double {
    pub settings: S3,
    pub objects: Arc<Mutex<Objects>>,
}

impl S3Double {
    pub async fn start() -> Self {
        crate::net::install_crypto();
        let objects = Arc::<Mutex<Objects>>::default();
        let app = Router::new()
            .route("/{bucket}/{*key}", any(answer))
            .layer(DefaultBodyLimit::disable())
            .with_state(objects.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let settings = S3 {
            bucket: BUCKET.into(),
            access_key: Some("access".into()),
            secret_key: Some("secret".to_owned().into()),
            region: "eu-1".into(),
            endpoint: Some(endpoint),
        };
        Self { settings, objects }
    }
}

async fn answer(
    method: Method,
    State(objects): State<Arc<Mutex<Objects>>>,
    Path((bucket, key)): Path<(String, String)>,
    Query(asked): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    assert_eq!(bucket, BUCKET);
    let signed = headers[header::AUTHORIZATION].to_str().unwrap();
    assert!(signed.starts_with("AWS4-HMAC-SHA256 Credential=access/"), "{signed}");
    let mut objects = objects.lock();
    objects.bodies.push(body.len());
    if asked.contains_key("uploads") {
        let id = format!("upload-{}", objects.open.len());
        objects.open.insert(id.clone(), BTreeMap::new());
        let answer = format!("<UploadId>{id}</UploadId>");
        return xml("InitiateMultipartUploadResult", &answer);
    }
    if let Some(upload) = asked.get("uploadId") {
        let part = asked.get("partNumber").map(|number| number.parse().unwrap());
        return objects.answer_upload(&method, upload, part, key, body);
    }
    let etag = [(header::ETAG, "\"1\""), (header::LAST_MODIFIED, "Thu, 01 Jan 2026 00:00:00 GMT")];
    match method {
        Method::PUT => {
            objects.stored.insert(key, body);
            (etag, "").into_response()
        }
        Method::DELETE => {
            objects.stored.remove(&key);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => {
            let Some(bytes) = objects.stored.get(&key) else {
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

impl Objects {
    fn answer_upload(
        &mut self,
        method: &Method,
        upload: &str,
        part: Option<u32>,
        key: String,
        body: Bytes,
    ) -> Response {
        match (method, part) {
            (&Method::PUT, Some(part)) if self.refused_part == Some(part) => {
                StatusCode::FORBIDDEN.into_response()
            }
            (&Method::PUT, Some(part)) => {
                self.open.get_mut(upload).unwrap().insert(part, body);
                ([(header::ETAG, format!("\"{part}\""))], "").into_response()
            }
            (&Method::POST, None) => {
                let parts: Vec<Bytes> = self.open.remove(upload).unwrap().into_values().collect();
                let (_, all_but_last) = parts.split_last().unwrap();
                assert!(all_but_last.iter().all(|part| part.len() >= SMALLEST_PART));
                self.stored.insert(key, parts.concat().into());
                xml("CompleteMultipartUploadResult", "<ETag>\"1\"</ETag>")
            }
            (&Method::DELETE, None) => {
                self.open.remove(upload);
                StatusCode::NO_CONTENT.into_response()
            }
            (method, part) => panic!("{method} of part {part:?}"),
        }
    }
}

fn xml(name: &str, content: &str) -> Response {
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?><{name}>{content}</{name}>").into_response()
}
