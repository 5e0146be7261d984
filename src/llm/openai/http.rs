//! How requests go out and answers come in, below async-openai.
//!
//! Its own transport retries by itself, logs the bodies of failures and reads answers of any size;
//! this one does none of that: one request is one attempt, a failure is a value, and bodies are
//! bounded. Retrying belongs to the driver, which knows whether anything has been heard.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_openai::{config::Config, error::OpenAIError, middleware::HttpRequestFactory};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{
    HeaderMap, HeaderValue,
    header::{AUTHORIZATION, RETRY_AFTER},
};
use parking_lot::Mutex;
use reqwest::Response;
use secrecy::{ExposeSecret, SecretString};

use super::proto::{self, ServerError};

/// Longest answer that is taken, in bytes of the stream: far beyond what anybody would listen to.
const MAX_STREAM_BYTES: usize = 4 << 20;
/// Longest error body that is looked at.
const MAX_ERROR_BYTES: usize = 16 << 10;
/// What a stream ends with, as it stands in the bytes; inside JSON a newline is escaped.
const DONE: &[u8] = b"\ndata: [DONE]";
/// How long the rest of a finished stream is read, to keep the connection for the next turn.
const DRAIN: Duration = Duration::from_millis(500);

/// Where requests go, with what credentials.
#[derive(Clone)]
pub struct Endpoint {
    /// With the version and without a slash at the end.
    base: String,
    key: SecretString,
    headers: HeaderMap,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// `None` when the key has characters that no header takes. An empty key sends none, as local
    /// servers want it.
    pub fn new(base: &str, key: SecretString) -> Option<Self> {
        let mut headers = HeaderMap::new();
        if !key.expose_secret().is_empty() {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {}", key.expose_secret())).ok()?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Some(Self { base: base.trim_end_matches('/').to_owned(), key, headers })
    }

    /// Takes the key out of a text that a server wrote: some repeat it.
    pub fn redact(&self, text: &str) -> String {
        let key = self.key.expose_secret();
        if key.is_empty() { text.to_owned() } else { text.replace(key, "***") }
    }
}

impl Config for Endpoint {
    fn headers(&self) -> HeaderMap {
        self.headers.clone()
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn query(&self) -> Vec<(&str, &str)> {
        Vec::new()
    }

    fn api_base(&self) -> &str {
        &self.base
    }

    fn api_key(&self) -> &SecretString {
        &self.key
    }
}

/// An attempt that brought no stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("HTTP {status}: {}", .error.message)]
    Status { status: u16, retry_after: Option<Duration>, error: ServerError },
    #[error("{0}")]
    Network(String),
    /// The request could not even be made.
    #[error("{0}")]
    Invalid(String),
}

impl Failure {
    /// What async-openai made of it.
    pub fn from_openai(error: OpenAIError) -> Self {
        match error {
            OpenAIError::Boxed(error) => match error.downcast::<Self>() {
                Ok(failure) => *failure,
                Err(error) => Self::Network(error.to_string()),
            },
            OpenAIError::Reqwest(error) => Self::from_reqwest(error),
            OpenAIError::InvalidArgument(reason) => Self::Invalid(reason),
            other => Self::Network(other.to_string()),
        }
    }

    fn from_reqwest(error: reqwest::Error) -> Self {
        let kind = if error.is_connect() {
            "no connection"
        } else if error.is_timeout() {
            "no answer in time"
        } else {
            "the request failed"
        };
        // The innermost cause says most; the URL is known and may be long.
        let error = error.without_url();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Self::Network(format!("{kind}: {cause}"))
    }
}

impl From<Failure> for OpenAIError {
    fn from(failure: Failure) -> Self {
        Self::Boxed(Box::new(failure))
    }
}

/// How a stream has ended, which async-openai does not tell.
#[derive(Debug, Default)]
pub struct Ending {
    done: AtomicBool,
    broken: Mutex<Option<String>>,
}

impl Ending {
    /// It has told that it is complete.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    /// Why it broke off.
    pub fn broken(&self) -> Option<String> {
        self.broken.lock().clone()
    }
}

/// Sends one request of one generation.
#[derive(Debug, Clone)]
pub struct Transport {
    client: reqwest::Client,
    ending: Arc<Ending>,
}

impl Transport {
    pub fn new(client: reqwest::Client, ending: Arc<Ending>) -> Self {
        Self { client, ending }
    }
}

impl tower_service::Service<HttpRequestFactory> for Transport {
    type Response = Response;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequestFactory) -> Self::Future {
        let Self { client, ending } = self.clone();
        Box::pin(async move {
            let request = request.build().await.map_err(Failure::from_openai)?;
            let response = client.execute(request).await.map_err(Failure::from_reqwest)?;
            let status = response.status();
            if !status.is_success() {
                let retry_after = response.headers().get(RETRY_AFTER).and_then(seconds);
                let error = proto::read_error_body(&read_bounded(response, MAX_ERROR_BYTES).await);
                return Err(Failure::Status { status: status.as_u16(), retry_after, error });
            }
            let response = http::Response::<reqwest::Body>::from(response);
            let (parts, body) = response.into_parts();
            let body = Bounded {
                inner: Some(Box::pin(body_stream(body))),
                left: MAX_STREAM_BYTES,
                tail: vec![b'\n'],
                ending,
            };
            Ok(Response::from(http::Response::from_parts(parts, reqwest::Body::wrap_stream(body))))
        })
    }
}

fn body_stream(body: reqwest::Body) -> impl Stream<Item = reqwest::Result<Bytes>> + Send {
    Response::from(http::Response::new(body)).bytes_stream()
}

fn seconds(value: &HeaderValue) -> Option<Duration> {
    let seconds: f64 = value.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds.min(3_600.0)).ok()
}

/// The beginning of a body.
pub async fn read_bounded(response: Response, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(Ok(chunk)) = stream.next().await {
        let room = most - bytes.len();
        bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if bytes.len() == most {
            break;
        }
    }
    bytes
}

type Bytestream = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// A body of at most so many bytes. Dropped after `[DONE]` its rest is read, since a connection can
/// be used again only when the response has been read to its end; dropped before, it is cut at once.
struct Bounded {
    inner: Option<Bytestream>,
    left: usize,
    /// The end of what has been read, shorter than [`DONE`].
    tail: Vec<u8>,
    ending: Arc<Ending>,
}

impl Bounded {
    fn break_off(&mut self, reason: &str) -> std::io::Error {
        self.inner = None;
        *self.ending.broken.lock() = Some(reason.to_owned());
        std::io::Error::other(reason.to_owned())
    }

    fn watch(&mut self, chunk: &[u8]) {
        self.tail.extend_from_slice(chunk);
        if self.tail.windows(DONE.len()).any(|window| window == DONE) {
            self.ending.done.store(true, Ordering::Relaxed);
        }
        let surplus = self.tail.len().saturating_sub(DONE.len() - 1);
        self.tail.drain(..surplus);
    }
}

impl Stream for Bounded {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        match inner.as_mut().poll_next(cx) {
            Poll::Ready(Some(Ok(chunk))) if chunk.len() <= self.left => {
                self.left -= chunk.len();
                self.watch(&chunk);
                Poll::Ready(Some(Ok(chunk)))
            }
            Poll::Ready(Some(Ok(_))) => {
                Poll::Ready(Some(Err(self.break_off("too long an answer"))))
            }
            Poll::Ready(Some(Err(error))) => {
                let reason = Failure::from_reqwest(error).to_string();
                Poll::Ready(Some(Err(self.break_off(&reason))))
            }
            Poll::Ready(None) => {
                self.inner = None;
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Bounded {
    fn drop(&mut self) {
        let Some(mut inner) = self.inner.take().filter(|_| self.ending.is_done()) else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(DRAIN, async move {
                while let Some(Ok(_)) = inner.next().await {}
            }));
        }
    }
}

/// An HTTP client with Mozilla's roots and ring, whatever the machine has installed.
pub fn client(connect_timeout: Duration) -> Result<reqwest::Client, String> {
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(20))
        .pool_idle_timeout(Duration::from_mins(2))
        .pool_max_idle_per_host(32)
        // A redirected POST would carry the conversation somewhere else.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("antiphon/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| error.to_string())
}
