//! HTTP requests to providers: one client, bounded bodies, failures that are values.

use std::time::Duration;

use futures_util::StreamExt;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, RETRY_AFTER},
};
use reqwest::Response;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;

use super::url::BaseUrlError;

/// Longest error body that is looked at.
const MAX_ERROR_BYTES: usize = 16 << 10;
/// How much of a server's message is kept in an error.
const MAX_MESSAGE_CHARS: usize = 200;

/// How long a connection may rest before the client closes it.
pub(super) const POOL_IDLE: Duration = Duration::from_mins(2);
/// How a [`Failure::Network`] begins that came before there was a connection.
pub(super) const NO_CONNECTION: &str = "no connection";

/// How a provider wants to be shown the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyHeader {
    /// `Authorization: Bearer KEY`
    Bearer,
    /// A header of this name with the key alone.
    Named(&'static str),
}

/// Why an endpoint cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("the base URL is not usable: {0}")]
    BaseUrl(#[from] BaseUrlError),
    #[error("the API key has characters that cannot be sent")]
    ApiKey,
}

/// Where requests go, with what credentials.
#[derive(Clone)]
pub struct Endpoint {
    base: Url,
    key: SecretString,
    headers: HeaderMap,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// `base` carries the API's version. An empty key sends no header, as local servers want it.
    pub fn new(base: &str, key: SecretString, header: KeyHeader) -> Result<Self, EndpointError> {
        let base = super::url::parse_base(base)?;
        let mut headers = HeaderMap::new();
        if !key.expose_secret().is_empty() {
            let (name, prefix) = match header {
                KeyHeader::Bearer => (AUTHORIZATION, "Bearer "),
                KeyHeader::Named(name) => (HeaderName::from_static(name), ""),
            };
            let mut value = HeaderValue::from_str(&format!("{prefix}{}", key.expose_secret()))
                .map_err(|_| EndpointError::ApiKey)?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(Self { base, key, headers })
    }

    /// Sent with every request.
    pub fn with_header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        self
    }

    pub const fn base(&self) -> &Url {
        &self.base
    }

    pub const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// `segments` after the base's path.
    pub fn url(&self, segments: &[&str]) -> Url {
        super::url::request(&self.base, segments)
    }

    /// Takes the key out of a text that a server wrote: some repeat it.
    pub fn redact(&self, text: &str) -> String {
        let key = self.key.expose_secret();
        if key.is_empty() { text.to_owned() } else { text.replace(key, "***") }
    }
}

/// An error that a server told, in the body of a response or within a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    pub message: String,
    /// `type`, `code` and `status`, as far as they are there: `insufficient_quota`,
    /// `overloaded_error`, `RESOURCE_EXHAUSTED`, …
    pub kinds: [String; 3],
}

impl ServerError {
    fn is(&self, kind: &str) -> bool {
        self.kinds.iter().any(|of| of == kind)
    }

    /// The account is exhausted: waiting does not help, although the status is 429.
    pub fn is_out_of_quota(&self) -> bool {
        self.is("insufficient_quota") || self.is("billing_hard_limit_reached")
    }

    /// The credentials are refused.
    pub fn is_unauthorized(&self) -> bool {
        self.is("authentication_error")
            || self.is("permission_error")
            || self.is("UNAUTHENTICATED")
            || self.is("PERMISSION_DENIED")
    }

    /// The request itself is at fault: sent again it fails again.
    pub fn is_final(&self) -> bool {
        const FINAL: [&str; 6] = [
            "invalid_request_error",
            "context_length_exceeded",
            "model_not_found",
            "not_found_error",
            "INVALID_ARGUMENT",
            "NOT_FOUND",
        ];
        self.is_out_of_quota() || self.is_unauthorized() || FINAL.iter().any(|kind| self.is(kind))
    }

    /// The body of a response with an error status, JSON or not.
    pub fn from_body(body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            // Some servers send a list with one error in it, some the error without a wrapper.
            Ok(Value::Array(list)) => list.first().map(Self::unwrapped).unwrap_or_default(),
            Ok(body) => Self::unwrapped(&body),
            Err(_) => Self { message: shorten(&String::from_utf8_lossy(body)), ..Self::default() },
        }
    }

    fn unwrapped(body: &Value) -> Self {
        let inner = ["error", "detail"].into_iter().find_map(|key| body.get(key));
        Self::from_value(inner.filter(|error| !error.is_null()).unwrap_or(body))
    }

    /// An error object, or the message alone.
    pub fn from_value(error: &Value) -> Self {
        let text = |key: &str| match error.get(key) {
            Some(Value::String(text)) => shorten(text),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        let message = match error {
            Value::String(message) => shorten(message),
            _ => text("message"),
        };
        Self { message, kinds: [text("type"), text("code"), text("status")] }
    }
}

/// A server's words made fit for a log line.
pub fn shorten(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(MAX_MESSAGE_CHARS).collect::<String>().trim().to_owned()
}

/// A request that brought no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("HTTP {status} {}", .error.message)]
    Status { status: u16, retry_after: Option<Duration>, error: ServerError },
    #[error("{0}")]
    Network(String),
}

impl Failure {
    pub fn from_reqwest(error: reqwest::Error) -> Self {
        let kind = if error.is_connect() {
            NO_CONNECTION
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

/// Sends one request once; another status than 2xx is a failure.
pub async fn send(request: reqwest::RequestBuilder) -> Result<Response, Failure> {
    let response = request.send().await.map_err(Failure::from_reqwest)?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response.headers().get(RETRY_AFTER).and_then(seconds);
    let error = ServerError::from_body(&read_bounded(response, MAX_ERROR_BYTES).await);
    Err(Failure::Status { status: status.as_u16(), retry_after, error })
}

fn seconds(value: &HeaderValue) -> Option<Duration> {
    let seconds: f64 = value.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds.clamp(0.0, 3_600.0)).ok()
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

/// An HTTP client. Connections are kept for the next turn; names and TLS sessions are those of all
/// connections of the process.
pub fn client(connect_timeout: Duration) -> Result<reqwest::Client, String> {
    builder(connect_timeout)?.build().map_err(|error| error.to_string())
}

/// The same, to be changed before it is built.
pub fn builder(connect_timeout: Duration) -> Result<reqwest::ClientBuilder, String> {
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured((*super::dial::tls()?).clone())
        .dns_resolver(super::dns::Names::shared().clone())
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(20))
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(32)
        // A redirected POST would carry the conversation somewhere else.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("antiphon/", env!("CARGO_PKG_VERSION"))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn error_bodies_are_read_in_every_shape() {
        let read = |body: &str| ServerError::from_body(body.as_bytes());
        let quota = r#"{"error":{"message":"Exceeded","type":"insufficient_quota","code":null}}"#;
        assert!(read(quota).is_out_of_quota());
        let google = r#"[{"error":{"code":429,"message":"slow","status":"RESOURCE_EXHAUSTED"}}]"#;
        assert_eq!(read(google).kinds[2], "RESOURCE_EXHAUSTED");
        assert!(!read(google).is_final());
        let anthropic =
            r#"{"type":"error","error":{"type":"authentication_error","message":"bad key"}}"#;
        assert!(read(anthropic).is_unauthorized());
        assert_eq!(read(r#"{"detail":"gone"}"#).message, "gone");
        let eleven = r#"{"detail":{"status":"quota_exceeded","message":"none left"}}"#;
        assert_eq!(read(eleven).message, "none left");
        assert_eq!(read("<h1>Bad\ngateway</h1>").message, "<h1>Bad gateway</h1>");
        assert_eq!(read(&"x".repeat(10_000)).message.len(), MAX_MESSAGE_CHARS);
    }

    #[test]
    fn a_key_is_in_no_debug_output_and_taken_out_of_texts() {
        let base = "https://host/v1";
        let endpoint = Endpoint::new(base, "hush-1".into(), KeyHeader::Named("x-api-key")).unwrap();
        assert!(!format!("{endpoint:?}").contains("hush"));
        assert_eq!(endpoint.redact("no such key: hush-1"), "no such key: ***");
        assert!(Endpoint::new(base, "a\nb".into(), KeyHeader::Bearer).is_err());
    }

    proptest! {
        #[test]
        fn no_body_can_hurt(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = ServerError::from_body(&body);
        }
    }
}
