//! WebSocket client connections to providers (RFC 6455 over tokio-tungstenite and rustls).
//!
//! A connection knows whether its peer is alive: when nothing has been heard for a while it pings,
//! and when that brings nothing either it fails, so that a socket that died without a FIN is noticed
//! within [`Limits::idle_ping`] + [`Limits::pong_wait`].

use std::{
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderName, HeaderValue, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};
use url::Url;

use super::dial;
use crate::clock;

/// Longest text of a peer that is kept in an error.
const MAX_REASON: usize = 300;

/// What a connection may take and how long it may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// DNS, TCP, TLS and upgrade together.
    pub connect: Duration,
    /// One message into the socket; longer means that the peer no longer reads.
    pub send: Duration,
    /// Silence of the peer after which it is pinged.
    pub idle_ping: Duration,
    /// Silence after the ping that means that the peer is gone.
    pub pong_wait: Duration,
    /// Largest message taken, in bytes.
    pub max_message: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            send: Duration::from_secs(5),
            idle_ping: Duration::from_secs(4),
            pong_wait: Duration::from_secs(4),
            max_message: 4 << 20,
        }
    }
}

/// Why no connection came about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The URL or a header cannot be used.
    #[error("the request is invalid: {0}")]
    Invalid(String),
    #[error("no connection within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// DNS, TCP or TLS failed.
    #[error("no connection: {0}")]
    Network(String),
    /// The server answered the upgrade with another HTTP status than 101. `message` is what it said,
    /// cut short; empty for 401 and 403, whose texts may repeat parts of a key.
    #[error("the upgrade was refused with HTTP {status}")]
    Refused { status: u16, retry_after: Option<Duration>, message: String },
    #[error("the upgrade broke the protocol: {0}")]
    Protocol(String),
}

impl ConnectError {
    /// The credentials are wrong (HTTP 401 or 403): trying again with them is of no use.
    pub const fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Refused { status: 401 | 403, .. })
    }

    /// Whether the same request may succeed later.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Invalid(_) => false,
            Self::Refused { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
            Self::Timeout(_) | Self::Network(_) | Self::Protocol(_) => true,
        }
    }

    /// How long the server asked to be left alone (`Retry-After` in seconds, at most 5 min).
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WsError {
    /// Nothing was heard, not even a pong, or the peer takes no more data.
    #[error("the peer is silent for {} ms", .0.as_millis())]
    Dead(Duration),
    #[error("the connection broke: {0}")]
    Network(String),
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// A message larger than [`Limits::max_message`].
    #[error("a message is too large")]
    TooLarge,
}

/// A message of the peer; pings and pongs are handled inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Text(String),
    Binary(Bytes),
    /// The peer has closed; nothing more comes. `code` is 1005 when it gave none and 1006 when the
    /// stream ended without a close frame (RFC 6455 section 7.4.1).
    Closed {
        code: u16,
        reason: String,
    },
}

/// What to connect to.
#[derive(Debug, Clone)]
pub struct Request {
    url: Url,
    headers: Vec<(HeaderName, HeaderValue)>,
    invalid: Option<String>,
}

impl Request {
    /// `url` with the scheme ws or wss (see [`super::url::socket`]).
    pub const fn new(url: Url) -> Self {
        Self { url, headers: Vec::new(), invalid: None }
    }

    pub fn header(self, name: &'static str, value: &str) -> Self {
        self.with_header(name, value, false)
    }

    /// A header that carries a key: `prefix` and the secret. It is marked as sensitive, so that no
    /// `Debug` output shows it.
    pub fn secret_header(self, name: &str, prefix: &str, secret: &SecretString) -> Self {
        self.with_header(name, &format!("{prefix}{}", secret.expose_secret()), true)
    }

    fn with_header(mut self, name: &str, value: &str, sensitive: bool) -> Self {
        let header = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(header), Ok(mut value)) = (header, HeaderValue::from_str(value)) {
            value.set_sensitive(sensitive);
            self.headers.push((header, value));
        } else {
            let fault = format!("the value for the header {name} has control characters");
            self.invalid = Some(fault);
        }
        self
    }
}

/// When to ping and when to give up: pure, so that it is tested without a socket.
#[derive(Debug, Clone, Copy)]
struct Liveness {
    idle_ping: Duration,
    pong_wait: Duration,
    heard: Instant,
    pinged: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Check {
    Alive,
    Ping,
    Dead,
}

impl Liveness {
    const fn new(limits: Limits, now: Instant) -> Self {
        let Limits { idle_ping, pong_wait, .. } = limits;
        Self { idle_ping, pong_wait, heard: now, pinged: None }
    }

    const fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = None;
    }

    fn deadline(&self) -> Instant {
        self.pinged.map_or(self.heard + self.idle_ping, |pinged| pinged + self.pong_wait)
    }

    fn check(&self, now: Instant) -> Check {
        match self.pinged {
            _ if now < self.deadline() => Check::Alive,
            None => Check::Ping,
            Some(_) => Check::Dead,
        }
    }

    const fn pinged(&mut self, now: Instant) {
        self.pinged = Some(now);
    }
}

/// An open connection.
pub struct Connection {
    socket: Box<Socket>,
    limits: Limits,
    liveness: Liveness,
    closed: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").field("closed", &self.closed).finish_non_exhaustive()
    }
}

/// A socket as tokio-tungstenite has it.
pub type Socket = WebSocketStream<dial::Stream>;

/// Opens a connection with `TCP_NODELAY`, or takes one that was opened ahead ([`dial::prepare`]),
/// within [`Limits::connect`].
pub async fn connect(request: Request, limits: Limits) -> Result<Connection, ConnectError> {
    let socket = open(request, limits).await?;
    let liveness = Liveness::new(limits, clock::now());
    Ok(Connection { socket, limits, liveness, closed: false })
}

/// The same without what watches over the peer: for a protocol that has its own pings.
pub async fn open(request: Request, limits: Limits) -> Result<Box<Socket>, ConnectError> {
    if let Some(fault) = request.invalid {
        return Err(ConnectError::Invalid(fault));
    }
    if !matches!(request.url.scheme(), "ws" | "wss") {
        return Err(ConnectError::Invalid("the scheme must be ws or wss".into()));
    }
    let mut upgrade = request.url.as_str().into_client_request().map_err(connect_error)?;
    upgrade.headers_mut().extend(request.headers);
    let config = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(16 << 10)
        .max_write_buffer_size(4 << 20)
        .max_message_size(Some(limits.max_message))
        .max_frame_size(Some(limits.max_message));
    // The handshake's state is 20 KB: it does not belong in every caller's future.
    let connecting = Box::pin(async {
        if let Some(stream) = dial::ready(&request.url) {
            match client_async_with_config(upgrade.clone(), stream, Some(config)).await {
                // It had been opened ahead, and the server has closed it since.
                Err(tungstenite::Error::Io(_) | tungstenite::Error::Protocol(_)) => {}
                result => return result,
            }
        }
        let stream = dial::open(&request.url).await?;
        client_async_with_config(upgrade, stream, Some(config)).await
    });
    let (socket, _) = tokio::time::timeout(limits.connect, connecting)
        .await
        .map_err(|_| ConnectError::Timeout(limits.connect))?
        .map_err(connect_error)?;
    Ok(Box::new(socket))
}

impl Connection {
    pub async fn send_text(&mut self, text: String) -> Result<(), WsError> {
        self.send(Message::text(text)).await
    }

    pub async fn send_binary(&mut self, data: Bytes) -> Result<(), WsError> {
        self.send(Message::Binary(data)).await
    }

    /// Not cancel-safe: a message may be sent in part when the future is dropped. Await it to its
    /// end, which is bounded by [`Limits::send`].
    async fn send(&mut self, message: Message) -> Result<(), WsError> {
        match tokio::time::timeout(self.limits.send, self.socket.send(message)).await {
            Ok(sent) => sent.map_err(|error| ws_error(&error)),
            Err(_) => Err(WsError::Dead(self.limits.send)),
        }
    }

    /// The next message. Cancel-safe. After an error or `Closed` the connection is of no more use.
    pub async fn next(&mut self) -> Result<Frame, WsError> {
        loop {
            let deadline = self.liveness.deadline().into();
            let message = tokio::select! {
                biased;
                message = self.socket.next() => message,
                () = tokio::time::sleep_until(deadline) => {
                    let now = clock::now();
                    match self.liveness.check(now) {
                        Check::Alive => {}
                        Check::Ping => {
                            // Marked first: if this future is dropped while the ping goes out, the
                            // peer still gets its time to answer and no second ping is queued.
                            self.liveness.pinged(now);
                            self.send(Message::Ping(Bytes::new())).await?;
                        }
                        Check::Dead => return Err(WsError::Dead(now - self.liveness.heard)),
                    }
                    continue;
                }
            };
            self.liveness.heard(clock::now());
            match message {
                Some(Ok(Message::Text(text))) => return Ok(Frame::Text(text.as_str().to_owned())),
                Some(Ok(Message::Binary(data))) => return Ok(Frame::Binary(data)),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(close))) => {
                    self.closed = true;
                    let (code, reason) = close.map_or((1005, String::new()), |close| {
                        (close.code.into(), tidy(&close.reason))
                    });
                    return Ok(Frame::Closed { code, reason });
                }
                None => {
                    self.closed = true;
                    return Ok(Frame::Closed { code: 1006, reason: String::new() });
                }
                Some(Err(error)) => {
                    self.closed = true;
                    return match error {
                        tungstenite::Error::Protocol(
                            tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
                        ) => Ok(Frame::Closed { code: 1006, reason: String::new() }),
                        error => Err(ws_error(&error)),
                    };
                }
            }
        }
    }

    /// Says goodbye (1000) without waiting for the answer; bounded by [`Limits::send`].
    pub async fn close(mut self) {
        let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // The connection is dropped next; that it is broken already changes nothing.
        let _ = self.send(Message::Close(Some(close))).await;
    }
}

fn connect_error(error: tungstenite::Error) -> ConnectError {
    use tungstenite::Error;
    match error {
        Error::Http(response) => {
            let status = response.status();
            let secret = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            let message = response.body().as_deref().filter(|_| !secret).unwrap_or_default();
            ConnectError::Refused {
                status: status.as_u16(),
                retry_after: response.headers().get(header::RETRY_AFTER).and_then(retry_after),
                message: tidy(&String::from_utf8_lossy(message)),
            }
        }
        Error::Io(error) => ConnectError::Network(error.to_string()),
        Error::Tls(error) => ConnectError::Network(error.to_string()),
        Error::Url(error) => ConnectError::Invalid(error.to_string()),
        Error::HttpFormat(error) => ConnectError::Invalid(error.to_string()),
        other => ConnectError::Protocol(tidy(&other.to_string())),
    }
}

fn ws_error(error: &tungstenite::Error) -> WsError {
    use tungstenite::Error;
    match error {
        Error::Io(_) | Error::Tls(_) | Error::ConnectionClosed | Error::AlreadyClosed => {
            WsError::Network(tidy(&error.to_string()))
        }
        Error::Capacity(_) => WsError::TooLarge,
        other => WsError::Protocol(tidy(&other.to_string())),
    }
}

fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let seconds: u64 = value.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(300)))
}

/// A peer's words made fit for a log line: no control characters, at most [`MAX_REASON`] characters.
fn tidy(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(MAX_REASON).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use axum::{
        Router,
        extract::ws::{Message as Served, WebSocketUpgrade},
        http::{HeaderMap, StatusCode},
        response::IntoResponse,
        routing::any,
    };
    use tokio::net::TcpListener;

    use super::*;

    async fn serve(router: Router) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Url::parse(&format!("ws://{address}/")).unwrap()
    }

    async fn bounded<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(10), future).await.unwrap()
    }

    #[test]
    fn a_peer_is_pinged_when_idle_and_dead_without_an_answer() {
        let start = clock::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut liveness = Liveness::new(Limits::default(), start);
        assert_eq!(liveness.check(at(3_999)), Check::Alive);
        assert_eq!(liveness.check(at(4_000)), Check::Ping);
        liveness.pinged(at(4_000));
        assert_eq!(liveness.check(at(7_999)), Check::Alive);
        assert_eq!(liveness.check(at(8_000)), Check::Dead);
        liveness.heard(at(7_999));
        assert_eq!(liveness.check(at(8_000)), Check::Alive);
        assert_eq!(liveness.deadline(), at(11_999));
    }

    #[tokio::test]
    async fn messages_go_both_ways_with_the_headers_seen() {
        let router = Router::new().route(
            "/",
            any(|headers: HeaderMap, upgrade: WebSocketUpgrade| async move {
                let key = headers["authorization"].to_str().unwrap().to_owned();
                upgrade.on_upgrade(async move |mut socket| {
                    socket.send(Served::Text(key.into())).await.unwrap();
                    while let Some(Ok(message)) = socket.recv().await {
                        if matches!(message, Served::Text(_) | Served::Binary(_)) {
                            socket.send(message).await.unwrap();
                        }
                    }
                })
            }),
        );
        let url = serve(router).await;
        let request = Request::new(url).secret_header("authorization", "Token ", &"k".into());
        let mut ws = bounded(connect(request, Limits::default())).await.unwrap();
        assert_eq!(bounded(ws.next()).await, Ok(Frame::Text("Token k".into())));
        ws.send_binary(Bytes::from_static(&[1, 2])).await.unwrap();
        assert_eq!(bounded(ws.next()).await, Ok(Frame::Binary(Bytes::from_static(&[1, 2]))));
        ws.close().await;
    }

    #[tokio::test]
    async fn a_connection_opened_ahead_is_taken_up_and_done_without_if_it_is_gone() {
        let router = Router::new().route(
            "/",
            any(|upgrade: WebSocketUpgrade| async move {
                upgrade.on_upgrade(async |mut socket| {
                    let _ = socket.recv().await;
                })
            }),
        );
        let url = serve(router.clone()).await;
        dial::prepare(&url).await;
        bounded(connect(Request::new(url.clone()), Limits::default())).await.unwrap();
        assert!(dial::ready(&url).is_none(), "it was taken up");
        // One that is closed when the upgrade has been asked for.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("ws://{}/", listener.local_addr().unwrap())).unwrap();
        dial::prepare(&url).await;
        tokio::spawn(async move {
            let (first, _) = listener.accept().await.unwrap();
            first.readable().await.unwrap();
            drop(first);
            axum::serve(listener, router).await.unwrap();
        });
        bounded(connect(Request::new(url), Limits::default())).await.unwrap();
    }

    #[tokio::test]
    async fn a_refusal_tells_its_status_and_when_to_come_back() {
        let router = Router::new()
            .route(
                "/429",
                any(|| async { (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "7")]) }),
            )
            .route("/401", any(|| async { (StatusCode::UNAUTHORIZED, "bad key sk-123") }))
            .route(
                "/400",
                any(|| async { (StatusCode::BAD_REQUEST, "no such\nmodel").into_response() }),
            );
        let url = serve(router).await;
        let mut seen = Vec::new();
        for path in ["429", "401", "400", "nowhere"] {
            let request = Request::new(url.join(path).unwrap());
            seen.push(bounded(connect(request, Limits::default())).await.unwrap_err());
        }
        assert_eq!(seen[0].retry_after(), Some(Duration::from_secs(7)));
        assert!(seen[0].is_retryable() && !seen[0].is_unauthorized());
        assert!(seen[1].is_unauthorized() && !seen[1].is_retryable());
        assert!(!format!("{:?}", seen[1]).contains("sk-123"));
        assert!(matches!(&seen[2],
            ConnectError::Refused { status: 400, message, .. } if message == "no such model"));
        assert!(!seen[3].is_retryable());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_the_upgrade_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("ws://{}/", listener.local_addr().unwrap())).unwrap();
        let limits = Limits::default();
        let error = connect(Request::new(url), limits).await.unwrap_err();
        assert_eq!(error, ConnectError::Timeout(limits.connect));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_falls_silent_without_closing_is_noticed() {
        let router = Router::new().route(
            "/",
            any(|upgrade: WebSocketUpgrade| async move {
                upgrade.on_upgrade(async |_socket| std::future::pending::<()>().await)
            }),
        );
        let url = serve(router).await;
        let mut ws = connect(Request::new(url), Limits::default()).await.unwrap();
        assert_eq!(ws.next().await, Err(WsError::Dead(Duration::from_secs(8))));
    }

    #[tokio::test]
    async fn an_idle_peer_that_answers_pings_stays_connected() {
        let router = Router::new().route(
            "/",
            any(|upgrade: WebSocketUpgrade| async move {
                upgrade.on_upgrade(async |mut socket| {
                    let mut pings = 0;
                    while let Some(Ok(message)) = socket.recv().await {
                        pings += usize::from(matches!(message, Served::Ping(_)));
                        if pings == 4 {
                            socket.send(Served::Text("still here".into())).await.unwrap();
                        }
                    }
                })
            }),
        );
        let url = serve(router).await;
        let limits = Limits { idle_ping: Duration::from_millis(10), ..Limits::default() };
        let mut ws = bounded(connect(Request::new(url), limits)).await.unwrap();
        assert_eq!(bounded(ws.next()).await, Ok(Frame::Text("still here".into())));
    }

    #[tokio::test]
    async fn a_message_beyond_the_limit_ends_the_connection() {
        let router = Router::new().route(
            "/",
            any(|upgrade: WebSocketUpgrade| async move {
                upgrade.on_upgrade(async |mut socket| {
                    socket.send(Served::Text("x".repeat(2_000).into())).await.unwrap();
                    socket.recv().await;
                })
            }),
        );
        let url = serve(router).await;
        let limits = Limits { max_message: 1_000, ..Limits::default() };
        let mut ws = bounded(connect(Request::new(url), limits)).await.unwrap();
        assert_eq!(bounded(ws.next()).await, Err(WsError::TooLarge));
    }

    #[test]
    fn a_key_is_in_no_debug_output() {
        let url = Url::parse("ws://host/").unwrap();
        let request = Request::new(url).secret_header("authorization", "Token ", &"hush".into());
        assert!(!format!("{request:?}").contains("hush"));
    }
}
