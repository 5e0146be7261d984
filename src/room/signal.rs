//! The WebSocket that `livekit` signals over, with `TCP_NODELAY`.
//!
//! `livekit`'s own leaves Nagle's algorithm on: each of its small messages waits for the server's
//! acknowledgement of the one before, which the server's kernel puts off by 40 ms. The agent's track,
//! and with it the agent itself, is seen that much later in the room.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use livekit::Room;
use livekit_api::access_token::Claims;
use livekit_net::{Header, TransportError, WsClient, WsConnectResult, WsConnection};
use secrecy::SecretString;
use tokio::sync::{Mutex, Notify};
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};
use url::Url;

use crate::{
    net::ws::{self, ConnectError, Limits, Request, Socket},
    room::farewell::Present,
};

/// The largest message of the server: it lists every participant of a room.
const MAX_MESSAGE: usize = 16 << 20;
/// How long a room may take to hear that the others have left.
const PARTING: Duration = Duration::from_millis(250);
/// Where a proxy is named. `livekit`'s own client knows how to go through one.
const PROXIES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// Makes `livekit` use this for every room of the process, unless it has to go through a proxy.
pub fn install() {
    let proxied = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if !PROXIES.into_iter().any(proxied) {
        livekit_net::set_ws_client(Arc::new(Client));
    }
}

/// Leaves a room and everything that hangs on it: see [`farewell`](super::farewell).
pub async fn leave(room: &Room) {
    let mut events = room.subscribe();
    if part(&(room.name(), room.local_participant().identity().0)) {
        let empty = async {
            while !room.remote_participants().is_empty() && events.recv().await.is_some() {}
        };
        let _ = tokio::time::timeout(PARTING, empty).await;
    }
    // A room that has ended is left.
    let _ = room.close().await;
}

/// A room's name and the own identity in it.
type Key = (String, String);

/// The sockets that are open, to be told that their room is about to be left.
static OPEN: LazyLock<parking_lot::Mutex<HashMap<Key, Arc<Notify>>>> =
    LazyLock::new(Default::default);

/// Whether there is such a room.
fn part(key: &Key) -> bool {
    let parting = OPEN.lock().get(key).cloned();
    parting.inspect(|parting| parting.notify_one()).is_some()
}

/// Whose socket it is. The token is not checked: the server does.
fn key(headers: &[Header]) -> Option<Key> {
    let token = headers.iter().find(|one| one.name.eq_ignore_ascii_case("authorization"))?;
    let claims = Claims::from_unverified(token.value.strip_prefix("Bearer ")?).ok()?;
    Some((claims.video.room, claims.sub))
}

#[derive(Debug)]
struct Client;

#[async_trait]
impl WsClient for Client {
    async fn connect(
        &self,
        url: String,
        headers: Vec<Header>,
        timeout_ms: u64,
    ) -> Result<WsConnectResult, TransportError> {
        let url = Url::parse(&url).map_err(|error| TransportError::Other(error.to_string()))?;
        let key = key(&headers);
        let mut request = Request::new(url);
        for Header { name, value } in headers {
            request = request.secret_header(&name, "", &SecretString::from(value));
        }
        let connect = Duration::from_millis(timeout_ms);
        let limits = Limits { connect, max_message: MAX_MESSAGE, ..Limits::default() };
        let (writer, reader) = ws::open(request, limits).await.map_err(told)?.split();
        let parting = Arc::new(Notify::new());
        if let Some(key) = &key {
            OPEN.lock().insert(key.clone(), parting.clone());
        }
        let reader = Reader { socket: reader, present: Present::default(), held: None };
        let (writer, reader) = (Mutex::new(writer), Mutex::new(reader));
        Ok(WsConnectResult { connection: Arc::new(Connection { writer, reader, parting, key }) })
    }
}

fn told(error: ConnectError) -> TransportError {
    match error {
        ConnectError::Timeout(_) => TransportError::Timeout,
        ConnectError::Refused { status, .. } => TransportError::Http { status },
        ConnectError::Invalid(why) => TransportError::Other(why),
        ConnectError::Network(why) | ConnectError::Protocol(why) => TransportError::Connection(why),
    }
}

/// Both halves, so that a message goes out while another is waited for.
struct Connection {
    writer: Mutex<SplitSink<Box<Socket>, Message>>,
    reader: Mutex<Reader>,
    parting: Arc<Notify>,
    key: Option<Key>,
}

struct Reader {
    socket: SplitStream<Box<Socket>>,
    present: Present,
    /// What the server said after the farewell that was put before it.
    held: Option<Vec<u8>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Connection {
    /// Unless a later socket of the same participant has taken its place.
    fn forget(&self) {
        let Some(key) = &self.key else { return };
        let mut open = OPEN.lock();
        if open.get(key).is_some_and(|parting| Arc::ptr_eq(parting, &self.parting)) {
            open.remove(key);
        }
    }
}

#[async_trait]
impl WsConnection for Connection {
    async fn send(&self, frame: Vec<u8>) -> Result<(), TransportError> {
        let sent = self.writer.lock().await.send(Message::binary(frame)).await;
        sent.map_err(|error| TransportError::Connection(error.to_string()))
    }

    async fn recv(&self) -> Result<Option<Vec<u8>>, TransportError> {
        let reader = &mut *self.reader.lock().await;
        if let Some(held) = reader.held.take() {
            return Ok(Some(held));
        }
        loop {
            let message = tokio::select! {
                biased;
                () = self.parting.notified() => match reader.present.farewell() {
                    Some(farewell) => return Ok(Some(farewell)),
                    None => continue,
                },
                message = reader.socket.next() => message,
            };
            match message {
                Some(Ok(Message::Binary(data))) => {
                    let data = Vec::from(data);
                    let Some(farewell) = reader.present.read(&data) else { return Ok(Some(data)) };
                    reader.held = Some(data);
                    return Ok(Some(farewell));
                }
                // Tungstenite answers a ping itself, with what is written next; the server's own
                // pings are messages.
                Some(Ok(Message::Ping(_))) => {
                    let _ = self.writer.lock().await.flush().await;
                }
                Some(Ok(Message::Pong(_) | Message::Frame(_) | Message::Text(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Ok(None),
                Some(Err(error)) if is_over(&error) => return Ok(None),
                Some(Err(error)) => return Err(TransportError::Connection(error.to_string())),
            }
        }
    }

    async fn close(&self) {
        self.forget();
        // A connection that is broken already is closed.
        let _ = self.writer.lock().await.close().await;
    }
}

/// The server went away, if without ceremony.
fn is_over(error: &Error) -> bool {
    match error {
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => true,
        Error::Io(error) => error.kind() == std::io::ErrorKind::UnexpectedEof,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        Router,
        extract::ws::{Message as Theirs, WebSocketUpgrade},
        http::{HeaderMap, StatusCode},
        response::{IntoResponse, Response},
        routing::get,
    };

    use super::*;

    /// Echoes binary messages after a ping and a text; refuses without the token.
    async fn server() -> String {
        let upgrade = async |headers: HeaderMap, upgrade: WebSocketUpgrade| -> Response {
            if headers.get("authorization").is_none_or(|token| token != "Bearer t") {
                return StatusCode::UNAUTHORIZED.into_response();
            }
            upgrade.on_upgrade(async |mut socket| {
                let _ = socket.send(Theirs::Ping("there?".into())).await;
                let _ = socket.send(Theirs::Text("not for signalling".into())).await;
                while let Some(Ok(message)) = socket.recv().await {
                    if let Theirs::Binary(_) = message {
                        let _ = socket.send(message).await;
                    }
                }
            })
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/rtc", listener.local_addr().unwrap());
        tokio::spawn(async move {
            axum::serve(listener, Router::new().route("/rtc", get(upgrade))).await
        });
        url
    }

    fn token(token: &str) -> Vec<Header> {
        vec![Header { name: "Authorization".into(), value: format!("Bearer {token}") }]
    }

    #[tokio::test]
    async fn binary_messages_come_and_go_until_the_end() {
        let url = server().await;
        let connection = Client.connect(url, token("t"), 5_000).await.unwrap().connection;
        for message in [b"one".to_vec(), vec![0; 70_000]] {
            connection.send(message.clone()).await.unwrap();
            assert_eq!(connection.recv().await.unwrap(), Some(message));
        }
        connection.close().await;
        assert_eq!(connection.recv().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_its_status() {
        let refused = Client.connect(server().await, token("x"), 5_000).await;
        assert!(matches!(refused.err(), Some(TransportError::Http { status: 401 })));
        let nobody = Client.connect("ws://127.0.0.1:1/rtc".into(), token("t"), 5_000).await;
        assert!(matches!(nobody.err(), Some(TransportError::Connection(_))));
    }
}
