//! Bidirectional gRPC streams over HTTP/2 (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>),
//! as much of them as a long-lived recognition needs.
//!
//! One connection carries streams of one method, one after the other: what is sent goes to the last;
//! what comes is read in their order, so that nothing of a later stream overtakes an earlier one.
//! A stream is opened by its first message. The peer is pinged when it is silent.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{
    Ping, PingPong, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, rustls};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::ws::{ConnectError, Limits};
use crate::clock;

/// Flag and length before each message.
const PREFIX: usize = 5;
/// After its half is closed a stream must end within this time.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Longest `grpc-message` that is kept.
const MAX_REASON: usize = 300;

/// Headers that let the caller in; made anew for each stream, since tokens grow old.
pub type Authorize =
    Arc<dyn Fn() -> Result<Vec<(HeaderName, HeaderValue)>, String> + Send + Sync + 'static>;

/// What to call.
#[derive(Clone)]
pub struct Target {
    /// Scheme, host and port; http for tests alone.
    pub base: Url,
    /// `/package.Service/Method`.
    pub path: &'static str,
    pub authorize: Authorize,
}

impl fmt::Debug for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Target").field("path", &self.path).finish_non_exhaustive()
    }
}

/// How a stream ended: a code of gRPC and what the server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub code: u32,
    pub message: String,
}

pub const OK: u32 = 0;
pub const UNKNOWN: u32 = 2;
pub const INVALID_ARGUMENT: u32 = 3;
pub const NOT_FOUND: u32 = 5;
pub const PERMISSION_DENIED: u32 = 7;
pub const RESOURCE_EXHAUSTED: u32 = 8;
pub const OUT_OF_RANGE: u32 = 11;
pub const UNIMPLEMENTED: u32 = 12;
pub const INTERNAL: u32 = 13;
pub const UNAVAILABLE: u32 = 14;
pub const UNAUTHENTICATED: u32 = 16;

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// Of the stream of this number; they are counted from 0.
    Message { stream: u64, bytes: Bytes },
    /// All of this stream has come. Whether the caller had closed its half before.
    Ended { stream: u64, status: Status, was_asked: bool },
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection and its streams.
pub struct Streams {
    target: Target,
    limits: Limits,
    sender: SendRequest<Bytes>,
    ping: Option<PingPong>,
    connection: AbortOnDropHandle<()>,
    /// One that the server will not have any longer: its streams are read to their end.
    retired: Option<AbortOnDropHandle<()>>,
    /// The stream that takes messages.
    current: Option<SendStream<Bytes>>,
    readers: VecDeque<Reader>,
    /// Streams that were opened.
    opened: u64,
    heard: Instant,
    pinged: Option<Instant>,
    /// Nothing more can be sent.
    broken: Option<String>,
}

impl fmt::Debug for Streams {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Streams").field("opened", &self.opened).finish_non_exhaustive()
    }
}

/// Connects within [`Limits::connect`]. Opens no stream yet.
pub async fn connect(target: Target, limits: Limits) -> Result<Streams, ConnectError> {
    let connecting = Box::pin(open(target, limits));
    timeout(limits.connect, connecting).await.map_err(|_| ConnectError::Timeout(limits.connect))?
}

async fn open(target: Target, limits: Limits) -> Result<Streams, ConnectError> {
    let network = |error: &dyn fmt::Display| ConnectError::Network(error.to_string());
    let invalid = |what: &str| ConnectError::Invalid(what.to_owned());
    let host = target.base.host_str().ok_or_else(|| invalid("a host is missing"))?.to_owned();
    let port = target.base.port_or_known_default().ok_or_else(|| invalid("a port is missing"))?;
    let is_secure = match target.base.scheme() {
        "https" => true,
        "http" => false,
        _ => return Err(invalid("the scheme must be http or https")),
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((bare, port)).await.map_err(|error| network(&error))?;
    tcp.set_nodelay(true).map_err(|error| network(&error))?;
    let io: Box<dyn Io> = if is_secure {
        let name = rustls::pki_types::ServerName::try_from(bare.to_owned())
            .map_err(|_| invalid("that is no name of a server"))?;
        let connector = TlsConnector::from(tls().map_err(|error| network(&error))?);
        Box::new(connector.connect(name, tcp).await.map_err(|error| network(&error))?)
    } else {
        Box::new(tcp)
    };
    let mut builder = h2::client::Builder::new();
    builder.enable_push(false).max_header_list_size(64 << 10);
    let handshake = builder.handshake::<_, Bytes>(io).await;
    let (sender, mut connection) = handshake.map_err(|error| network(&error))?;
    let ping = connection.ping_pong();
    let task = tokio::spawn(async move {
        // Its error is every stream's too.
        let _ = connection.await;
    });
    Ok(Streams {
        target,
        limits,
        sender,
        ping,
        connection: AbortOnDropHandle::new(task),
        retired: None,
        current: None,
        readers: VecDeque::new(),
        opened: 0,
        heard: clock::now(),
        pinged: None,
        broken: None,
    })
}

fn tls() -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

impl Streams {
    /// Sends a message; the first after [`Streams::end`] opens a stream. An error of the peer is told
    /// by [`Streams::next`], which knows why.
    ///
    /// Not cancel-safe; bounded by [`Limits::send`].
    pub async fn send(&mut self, message: &[u8]) {
        if self.broken.is_some() {
            return;
        }
        let limit = self.limits.send;
        match timeout(limit, self.try_send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.breaks(error),
            Err(_) => self.breaks(format!("the peer takes nothing for {} ms", limit.as_millis())),
        }
    }

    async fn try_send(&mut self, message: &[u8]) -> Result<(), String> {
        if self.current.is_none() {
            self.open().await?;
        }
        let Some(stream) = &mut self.current else { return Ok(()) };
        let mut frame = BytesMut::with_capacity(PREFIX + message.len());
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).map_err(|_| "too long".to_owned())?);
        frame.put_slice(message);
        stream.reserve_capacity(frame.len());
        while stream.capacity() < frame.len() {
            match poll_fn(|context| stream.poll_capacity(context)).await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the stream is closed".into()),
            }
        }
        stream.send_data(frame.freeze(), false).map_err(|error| error.to_string())
    }

    async fn open(&mut self) -> Result<(), String> {
        self.sender = match self.sender.clone().ready().await {
            Ok(sender) => sender,
            // Servers say goodbye to old connections, and finish the streams that are there.
            Err(error) if error.is_go_away() => {
                let fresh = connect(self.target.clone(), self.limits).await;
                let fresh = fresh.map_err(|error| error.to_string())?;
                self.retired = Some(std::mem::replace(&mut self.connection, fresh.connection));
                self.ping = fresh.ping;
                self.pinged = None;
                fresh.sender
            }
            Err(error) => return Err(error.to_string()),
        };
        let uri = self.target.base.join(self.target.path).map_err(|error| error.to_string())?;
        let mut request = Request::post(uri.as_str())
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", concat!("antiphon/", env!("CARGO_PKG_VERSION")));
        for (name, mut value) in (self.target.authorize)()? {
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        let request = request.body(()).map_err(|error| error.to_string())?;
        let sent = self.sender.send_request(request, false);
        let (response, stream) = sent.map_err(|error| error.to_string())?;
        self.current = Some(stream);
        self.readers.push_back(Reader {
            number: self.opened,
            response: Some(response),
            body: None,
            buffer: BytesMut::new(),
            largest: self.limits.max_message,
            ends_by: None,
        });
        self.opened += 1;
        Ok(())
    }

    fn breaks(&mut self, why: String) {
        self.current = None;
        self.broken = Some(why);
    }

    /// No more will be sent on this stream: the server tells the rest of it.
    pub fn end(&mut self) {
        if let Some(mut stream) = self.current.take() {
            if let Err(error) = stream.send_data(Bytes::new(), true) {
                self.breaks(error.to_string());
            }
            if let Some(reader) = self.readers.back_mut() {
                reader.ends_by = Some(clock::now() + LAST_WORDS);
            }
        }
    }

    /// What comes next. Cancel-safe.
    ///
    /// # Errors
    /// The connection, which is of no more use.
    pub async fn next(&mut self) -> Result<Incoming, String> {
        loop {
            if self.readers.is_empty()
                && let Some(why) = &self.broken
            {
                return Err(why.clone());
            }
            let Limits { idle_ping, pong_wait, .. } = self.limits;
            let check_at = self.pinged.map_or(self.heard + idle_ping, |at| at + pong_wait);
            let ends_by = self.readers.front().and_then(|reader| reader.ends_by);
            let wake_at = ends_by.map_or(check_at, |by| by.min(check_at));
            tokio::select! {
                biased;
                read = read(self.readers.front_mut()) => {
                    self.heard = clock::now();
                    self.pinged = None;
                    return self.take(read);
                }
                pong = pong(self.ping.as_mut()), if self.pinged.is_some() => {
                    pong?;
                    self.heard = clock::now();
                    self.pinged = None;
                }
                () = tokio::time::sleep_until(wake_at.into()) => {
                    let now = clock::now();
                    if ends_by.is_some_and(|by| by <= now) {
                        return Err("a stream does not end".into());
                    }
                    if self.pinged.is_some() {
                        let silent = now.saturating_duration_since(self.heard).as_millis();
                        return Err(format!("the peer is silent for {silent} ms"));
                    }
                    self.pinged = Some(now);
                    if let Some(ping) = &mut self.ping {
                        ping.send_ping(Ping::opaque()).map_err(|error| error.to_string())?;
                    }
                }
            }
        }
    }

    fn take(&mut self, read: Result<(u64, Read), String>) -> Result<Incoming, String> {
        let (stream, read) = read?;
        match read {
            Read::Message(bytes) => Ok(Incoming::Message { stream, bytes }),
            Read::Ended(status) => {
                let ended = self.readers.pop_front();
                let was_asked = ended.is_some_and(|reader| reader.ends_by.is_some());
                if !was_asked {
                    self.breaks("the server has ended the stream".into());
                }
                Ok(Incoming::Ended { stream, status, was_asked })
            }
        }
    }
}

async fn pong(ping: Option<&mut PingPong>) -> Result<(), String> {
    let Some(ping) = ping else { return std::future::pending().await };
    poll_fn(|context| ping.poll_pong(context)).await.map_err(|error| error.to_string())?;
    Ok(())
}

async fn read(reader: Option<&mut Reader>) -> Result<(u64, Read), String> {
    let Some(reader) = reader else { return std::future::pending().await };
    let read = reader.read().await?;
    Ok((reader.number, read))
}

enum Read {
    Message(Bytes),
    Ended(Status),
}

/// The server's half of one stream.
struct Reader {
    number: u64,
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    buffer: BytesMut,
    largest: usize,
    ends_by: Option<Instant>,
}

impl Reader {
    /// Cancel-safe.
    async fn read(&mut self) -> Result<Read, String> {
        if let Some(response) = &mut self.response {
            let response = Pin::new(response).await.map_err(|error| error.to_string())?;
            self.response = None;
            if let Some(status) = status_of(&response) {
                return Ok(Read::Ended(status));
            }
            self.body = Some(response.into_body());
        }
        let Some(body) = &mut self.body else { return Err("the stream has ended".into()) };
        loop {
            if let Some(message) = message(&mut self.buffer, self.largest)? {
                return Ok(Read::Message(message));
            }
            let Some(chunk) = body.data().await else { break };
            let chunk = chunk.map_err(|error| error.to_string())?;
            // The window is the peer's to fill again.
            let _ = body.flow_control().release_capacity(chunk.len());
            self.buffer.extend_from_slice(&chunk);
        }
        let trailers = body.trailers().await.map_err(|error| error.to_string())?;
        let lost = || Status { code: UNKNOWN, message: "ended without a status".into() };
        Ok(Read::Ended(trailers.as_ref().and_then(status).unwrap_or_else(lost)))
    }
}

/// Takes a whole message off the front.
fn message(buffer: &mut BytesMut, largest: usize) -> Result<Option<Bytes>, String> {
    let Some(prefix) = buffer.first_chunk::<PREFIX>() else { return Ok(None) };
    let [flag, length @ ..] = *prefix;
    let length = u32::from_be_bytes(length) as usize;
    if flag != 0 {
        return Err("a message is compressed, which was not offered".into());
    }
    if length > largest {
        return Err("a message is too large".into());
    }
    if buffer.len() < PREFIX + length {
        return Ok(None);
    }
    buffer.advance(PREFIX);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// Of a response that is over with its headers, or is none of gRPC.
fn status_of<B>(response: &Response<B>) -> Option<Status> {
    if let Some(status) = status(response.headers()) {
        return Some(status);
    }
    let code = match response.status().as_u16() {
        200 => return None,
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502..=504 => UNAVAILABLE,
        _ => UNKNOWN,
    };
    Some(Status { code, message: format!("HTTP {}", response.status().as_u16()) })
}

fn status(headers: &HeaderMap) -> Option<Status> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().unwrap_or(UNKNOWN);
    let message = headers.get("grpc-message").and_then(|value| value.to_str().ok());
    Some(Status { code, message: unescaped(message.unwrap_or_default()) })
}

/// Percent-decoded, as the protocol says, and cut short.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let code = others.first_chunk::<2>().filter(|_| *first == b'%');
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        if let Some(byte) = code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            bytes.push(byte);
            rest = &others[2..];
        } else {
            bytes.push(*first);
            rest = others;
        }
    }
    String::from_utf8_lossy(&bytes).chars().take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for byte in *b"\0\0\0\0\x02ab\0\0\0\0\0\0\0\0\0\x01c" {
            buffer.put_u8(byte);
            found.extend(message(&mut buffer, 100).unwrap());
        }
        assert_eq!(found, ["ab", "", "c"]);
        assert!(message(&mut BytesMut::from(&b"\x01\0\0\0\x01a"[..]), 100).is_err());
        assert!(message(&mut BytesMut::from(&b"\0\0\0\x01\0"[..]), 100).is_err());
    }

    #[test]
    fn a_status_is_read_from_trailers_or_from_plain_http() {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", HeaderValue::from_static("16"));
        headers.insert("grpc-message", HeaderValue::from_static("no%20key %zz%"));
        let read = status(&headers).unwrap();
        assert_eq!((read.code, read.message.as_str()), (UNAUTHENTICATED, "no key %zz%"));
        let response = Response::builder().status(503).body(()).unwrap();
        assert_eq!(status_of(&response).unwrap().code, UNAVAILABLE);
        assert_eq!(status_of(&Response::new(())), None);
    }

    /// Answers each stream with its messages' count, and says goodbye to a connection after one.
    async fn server(listener: tokio::net::TcpListener) {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        let mut buffer = BytesMut::new();
                        let mut count = 0;
                        while let Some(Ok(chunk)) = body.data().await {
                            buffer.extend_from_slice(&chunk);
                            while message(&mut buffer, 100).unwrap().is_some() {
                                count += 1;
                            }
                        }
                        let mut out = respond.send_response(Response::new(()), false).unwrap();
                        let told = [0, 0, 0, 0, 1, count];
                        out.send_data(Bytes::copy_from_slice(&told), false).unwrap();
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", HeaderValue::from_static("0"));
                        out.send_trailers(trailers).unwrap();
                    });
                    connection.graceful_shutdown();
                }
            });
        }
    }

    #[tokio::test]
    async fn streams_follow_one_another_also_over_another_connection() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let _server = AbortOnDropHandle::new(tokio::spawn(server(listener)));
        let base = Url::parse(&format!("http://{address}")).unwrap();
        let target = Target { base, path: "/a.B/C", authorize: Arc::new(|| Ok(Vec::new())) };
        let mut streams = connect(target, Limits::default()).await.unwrap();
        for stream in 0..3 {
            for _ in 0..=stream {
                streams.send(b"hello").await;
            }
            streams.end();
            let bytes = Bytes::from(vec![stream as u8 + 1]);
            assert_eq!(streams.next().await, Ok(Incoming::Message { stream, bytes }));
            let status = Status { code: OK, message: String::new() };
            let ended = Incoming::Ended { stream, status, was_asked: true };
            assert_eq!(streams.next().await, Ok(ended));
        }
    }

    proptest! {
        #[test]
        fn no_text_can_hurt(text in "\\PC{0,40}") {
            let _ = unescaped(&text);
        }
    }
}
