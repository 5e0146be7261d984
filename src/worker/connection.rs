//! The socket to the server: WebSocket with binary protobuf at `/agent`.
//!
//! Connecting, reading and writing happen on a task of their own, so that a peer that reads slowly
//! stalls neither timers nor jobs.

use std::{fmt, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use livekit_api::access_token::{AccessToken, VideoGrants};
use livekit_protocol::{ServerMessage, WorkerMessage};
use prost::Message as _;
use secrecy::{ExposeSecret, SecretString};
use tokio::{net::TcpStream, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{
        Error as WsError, Message,
        client::IntoClientRequest,
        http::{HeaderValue, StatusCode, header::AUTHORIZATION},
        protocol::WebSocketConfig,
    },
};
use url::Url;

use super::protocol::{Disconnect, Input};

/// Largest message taken from a server, in bytes. A room's metadata may have 64 KiB.
const MAX_MESSAGE: usize = 1 << 20;
/// The machine answers each message with few; more than this waiting means a dead peer.
const OUTGOING: usize = 256;
const INCOMING: usize = 64;
/// Longest time for one write.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// Longest time for the close frame and what comes before it.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// A token is made for each connection, and is only looked at when it is opened.
const TOKEN_TTL: Duration = Duration::from_hours(1);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Where the server is, and how this worker is known there.
#[derive(Clone)]
pub struct Endpoint {
    agent: Url,
    api_key: String,
    api_secret: SecretString,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("agent", &self.agent.as_str()).finish_non_exhaustive()
    }
}

/// What is wrong with the settings of the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("LIVEKIT_URL is not a URL: {0}")]
    NotAUrl(String),
    #[error("LIVEKIT_URL must begin with ws://, wss://, http:// or https://")]
    Scheme,
    #[error("LIVEKIT_URL has no host")]
    NoHost,
    #[error("LIVEKIT_API_KEY or LIVEKIT_API_SECRET is empty")]
    NoKey,
}

impl Endpoint {
    /// `livekit_url`: `ws`, `wss`, `http` or `https`, with or without a path before `/agent`.
    pub fn new(
        livekit_url: &str,
        api_key: &str,
        api_secret: &SecretString,
    ) -> Result<Self, EndpointError> {
        if api_key.is_empty() || api_secret.expose_secret().is_empty() {
            return Err(EndpointError::NoKey);
        }
        let mut agent = Url::parse(livekit_url.trim())
            .map_err(|error| EndpointError::NotAUrl(error.to_string()))?;
        let scheme = match agent.scheme() {
            "http" | "ws" => "ws",
            "https" | "wss" => "wss",
            _ => return Err(EndpointError::Scheme),
        };
        if agent.host_str().is_none_or(str::is_empty) {
            return Err(EndpointError::NoHost);
        }
        let path = format!("{}/agent", agent.path().trim_end_matches('/'));
        agent.set_path(&path);
        agent.set_query(None);
        agent.set_fragment(None);
        // Credentials in a URL would end up in logs, and the server takes none there.
        agent
            .set_scheme(scheme)
            .and_then(|()| agent.set_username(""))
            .and_then(|()| agent.set_password(None))
            .map_err(|()| EndpointError::Scheme)?;
        Ok(Self { agent, api_key: api_key.to_owned(), api_secret: api_secret.clone() })
    }

    /// The worker's address at the server; holds no credentials.
    pub fn agent_url(&self) -> &str {
        self.agent.as_str()
    }

    fn authorization(&self) -> Option<HeaderValue> {
        let grants = VideoGrants { agent: true, ..Default::default() };
        let token = AccessToken::with_api_key(&self.api_key, self.api_secret.expose_secret())
            .with_grants(grants)
            .with_ttl(TOKEN_TTL)
            .to_jwt()
            .ok()?;
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    async fn connect(&self) -> Result<Socket, Disconnect> {
        let unreachable = |error: WsError| Disconnect::Unreachable(error.to_string());
        let mut request = self.agent.as_str().into_client_request().map_err(unreachable)?;
        let authorization = self
            .authorization()
            .ok_or_else(|| Disconnect::Unreachable("no token could be made".into()))?;
        request.headers_mut().insert(AUTHORIZATION, authorization);
        let config = WebSocketConfig::default()
            .read_buffer_size(16 << 10)
            .write_buffer_size(0)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        install_crypto();
        match connect_async_with_config(request, Some(config), true).await {
            Ok((socket, _)) => Ok(socket),
            Err(WsError::Http(response)) => Err(match response.status() {
                status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                    Disconnect::Unauthorized { status: status.as_u16() }
                }
                status => Disconnect::Refused { status: status.as_u16() },
            }),
            Err(error) => Err(unreachable(error)),
        }
    }
}

/// Two providers may be compiled in, and then rustls chooses none by itself.
fn install_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that somebody else was quicker.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

/// One connection, from the attempt to its end.
#[derive(Debug)]
pub struct Link {
    outgoing: mpsc::Sender<WorkerMessage>,
    incoming: mpsc::Receiver<Input>,
    task: JoinHandle<()>,
}

impl Link {
    /// Starts to connect. Must be called inside a tokio runtime.
    pub fn open(endpoint: Endpoint) -> Self {
        let (outgoing, to_send) = mpsc::channel(OUTGOING);
        let (events, incoming) = mpsc::channel(INCOMING);
        Self { outgoing, incoming, task: tokio::spawn(run(endpoint, to_send, events)) }
    }

    /// `Connected` or `Disconnected`, then messages, then `Disconnected`; nothing after that.
    /// Cancel safe.
    pub async fn next(&mut self) -> Input {
        let gone = || Input::Disconnected(Disconnect::Lost("the connection has ended".into()));
        self.incoming.recv().await.unwrap_or_else(gone)
    }

    /// Queues a message. An error means that the peer does not read: the link is useless.
    pub fn send(&self, message: WorkerMessage) -> Result<(), Disconnect> {
        self.outgoing
            .try_send(message)
            .map_err(|_| Disconnect::Lost("the server does not read".into()))
    }

    /// Sends what is queued, closes, gives up after a second. The task ends by itself; await it to
    /// know that all has been sent.
    pub fn close(self) -> JoinHandle<()> {
        self.task
    }
}

async fn run(
    endpoint: Endpoint,
    mut to_send: mpsc::Receiver<WorkerMessage>,
    events: mpsc::Sender<Input>,
) {
    let mut socket = tokio::select! {
        biased;
        // Nothing is sent before `Connected`, so this is the owner giving up.
        _ = to_send.recv() => return,
        connected = endpoint.connect() => match connected {
            Ok(socket) => socket,
            Err(reason) => {
                // The owner may have gone; then nobody is to be told.
                let _ = events.send(Input::Disconnected(reason)).await;
                return;
            }
        },
    };
    if events.send(Input::Connected).await.is_err() {
        return flush_and_close(&mut socket, &mut to_send).await;
    }
    let reason = loop {
        tokio::select! {
            biased;
            message = to_send.recv() => match message {
                Some(message) => if let Err(reason) = write(&mut socket, &message).await {
                    break reason;
                },
                None => return flush_and_close(&mut socket, &mut to_send).await,
            },
            frame = socket.next() => match read(frame) {
                Ok(Some(input)) => if events.send(input).await.is_err() {
                    return flush_and_close(&mut socket, &mut to_send).await;
                },
                Ok(None) => {}
                Err(reason) => break reason,
            },
        }
    };
    let _ = events.send(Input::Disconnected(reason)).await;
    let _ = timeout(CLOSE_LIMIT, socket.close(None)).await;
}

/// The owner has dropped its end, so the queue has an end too.
async fn flush_and_close(socket: &mut Socket, to_send: &mut mpsc::Receiver<WorkerMessage>) {
    let flush = async {
        while let Some(message) = to_send.recv().await {
            if write(socket, &message).await.is_err() {
                return;
            }
        }
        let _ = socket.close(None).await;
        // What was written is only sure to arrive once the server has answered the close frame: a
        // socket dropped with unread data is reset.
        while socket.next().await.is_some_and(|frame| frame.is_ok()) {}
    };
    let _ = timeout(CLOSE_LIMIT, flush).await;
}

async fn write(socket: &mut Socket, message: &WorkerMessage) -> Result<(), Disconnect> {
    let frame = Message::Binary(message.encode_to_vec().into());
    match timeout(WRITE_LIMIT, socket.send(frame)).await {
        Ok(sent) => sent.map_err(|error| Disconnect::Lost(error.to_string())),
        Err(_) => Err(Disconnect::TimedOut),
    }
}

/// `Ok(None)`: nothing for the machine.
fn read(frame: Option<Result<Message, WsError>>) -> Result<Option<Input>, Disconnect> {
    match frame {
        Some(Ok(Message::Binary(bytes))) => Ok(Some(decode(bytes))),
        Some(Ok(Message::Text(_))) => Ok(Some(Input::Undecodable)),
        Some(Ok(Message::Close(frame))) => {
            let code = frame.map_or(1005, |frame| u16::from(frame.code));
            Err(Disconnect::Lost(format!("closed by the server (code {code})")))
        }
        // tungstenite answers pings by itself.
        Some(Ok(_)) => Ok(None),
        Some(Err(error)) => Err(Disconnect::Lost(error.to_string())),
        None => Err(Disconnect::Lost("the stream has ended".into())),
    }
}

fn decode(bytes: Bytes) -> Input {
    match ServerMessage::decode(bytes) {
        Ok(message) => Input::Message(Box::new(message)),
        Err(_) => Input::Undecodable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str) -> Result<Endpoint, EndpointError> {
        Endpoint::new(url, "devkey", &"secret".into())
    }

    #[test]
    fn every_form_of_the_servers_url_leads_to_its_agent_socket() {
        for (url, agent) in [
            ("ws://localhost:7880", "ws://localhost:7880/agent"),
            ("http://localhost:7880/", "ws://localhost:7880/agent"),
            (" https://lk.example.com ", "wss://lk.example.com/agent"),
            ("wss://lk.example.com/eu/", "wss://lk.example.com/eu/agent"),
            ("wss://user:pass@lk.example.com/?a=b#c", "wss://lk.example.com/agent"),
        ] {
            assert_eq!(endpoint(url).unwrap().agent_url(), agent);
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        assert!(matches!(endpoint("lk.example.com"), Err(EndpointError::NotAUrl(_))));
        assert_eq!(endpoint("ftp://lk.example.com").unwrap_err(), EndpointError::Scheme);
        let unnamed = Endpoint::new("ws://localhost", "", &"secret".into());
        assert_eq!(unnamed.unwrap_err(), EndpointError::NoKey);
    }

    #[test]
    fn the_secret_is_not_in_the_debug_form() {
        let shown = format!("{:?}", endpoint("ws://localhost").unwrap());
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn frames_that_are_no_message_are_told_apart_from_the_end() {
        let text = Some(Ok(Message::Text("{}".into())));
        assert!(matches!(read(text), Ok(Some(Input::Undecodable))));
        let garbage = Some(Ok(Message::Binary(vec![0xff; 9].into())));
        assert!(matches!(read(garbage), Ok(Some(Input::Undecodable))));
        assert!(matches!(read(Some(Ok(Message::Close(None)))), Err(Disconnect::Lost(_))));
        assert!(read(None).is_err());
    }
}
