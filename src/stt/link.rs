//! What a recogniser's stream is carried by: a WebSocket, or streams of gRPC.

use bytes::Bytes;

use super::dialect::Outgoing;
use crate::net::{
    grpc::{self, Status, Streams, Target},
    ws::{self, ConnectError, Connection, Frame, Limits},
};

#[derive(Debug)]
pub enum Link {
    Socket(Connection),
    Streams(Box<Streams>),
}

#[derive(Debug)]
pub enum Incoming {
    Text(String),
    /// Of a stream of gRPC.
    Message {
        stream: u64,
        bytes: Bytes,
    },
    Ended {
        stream: u64,
        status: Status,
        was_asked: bool,
    },
    Closed {
        code: u16,
        reason: String,
    },
    /// Nothing that means anything.
    Nothing,
}

type Connecting = std::pin::Pin<Box<dyn Future<Output = Result<Link, ConnectError>> + Send>>;

impl Link {
    pub fn socket(request: ws::Request, limits: Limits) -> Connecting {
        Box::pin(async move { ws::connect(request, limits).await.map(Self::Socket) })
    }

    pub fn call(target: Target, limits: Limits) -> Connecting {
        Box::pin(async move {
            let streams = grpc::connect(target, limits).await?;
            Ok(Self::Streams(Box::new(streams)))
        })
    }

    /// Not cancel-safe; bounded by [`Limits::send`].
    pub async fn send(&mut self, message: Outgoing) -> Result<(), String> {
        match self {
            Self::Socket(connection) => match message {
                Outgoing::Text(text) => connection.send_text(text).await,
                Outgoing::Binary(bytes) => connection.send_binary(bytes.into()).await,
                Outgoing::End => Ok(()),
            }
            .map_err(|error| error.to_string()),
            Self::Streams(streams) => {
                match message {
                    Outgoing::Binary(bytes) => streams.send(&bytes).await,
                    Outgoing::Text(text) => streams.send(text.as_bytes()).await,
                    Outgoing::End => streams.end(),
                }
                Ok(())
            }
        }
    }

    /// What comes next. Cancel-safe.
    pub async fn next(&mut self) -> Result<Incoming, String> {
        match self {
            Self::Socket(connection) => match connection.next().await {
                Ok(Frame::Text(text)) => Ok(Incoming::Text(text)),
                Ok(Frame::Binary(_)) => Ok(Incoming::Nothing),
                Ok(Frame::Closed { code, reason }) => Ok(Incoming::Closed { code, reason }),
                Err(error) => Err(error.to_string()),
            },
            Self::Streams(streams) => Ok(match streams.next().await? {
                grpc::Incoming::Message { stream, bytes } => Incoming::Message { stream, bytes },
                grpc::Incoming::Ended { stream, status, was_asked } => {
                    Incoming::Ended { stream, status, was_asked }
                }
            }),
        }
    }

    pub async fn close(self) {
        if let Self::Socket(connection) = self {
            connection.close().await;
        }
    }
}
