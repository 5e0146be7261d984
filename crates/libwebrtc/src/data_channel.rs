//! Data channels (RFC 8831).

use std::fmt::{self, Debug};
use std::str::{self, Utf8Error};
use std::sync::{Arc, Weak};

use rtc_audio::data_channel::{ChannelInit, ChannelKey, ChannelState};
use serde::Deserialize;
use thiserror::Error;

use crate::engine::callback::Callback;
use crate::engine::connection::Connection;
use crate::rtp_parameters::Priority;

/// How a channel is to be made.
#[derive(Clone, Debug)]
pub struct DataChannelInit {
    /// Messages keep their order.
    pub ordered: bool,
    /// A message is given up after so many milliseconds.
    pub max_retransmit_time: Option<i32>,
    /// A message is given up after so many retransmissions.
    pub max_retransmits: Option<i32>,
    /// Subprotocol.
    pub protocol: String,
    /// Both sides make the channel with the same `id`; nothing is sent to open it.
    pub negotiated: bool,
    /// SCTP stream id of a negotiated channel.
    pub id: i32,
    /// Not used by this engine.
    pub priority: Option<Priority>,
}

impl Default for DataChannelInit {
    fn default() -> Self {
        Self {
            ordered: true,
            max_retransmit_time: None,
            max_retransmits: None,
            protocol: String::new(),
            negotiated: false,
            id: -1,
            priority: None,
        }
    }
}

impl DataChannelInit {
    pub(crate) fn to_engine(&self, label: &str) -> Result<ChannelInit, crate::RtcError> {
        let negotiated = if self.negotiated {
            let id = u16::try_from(self.id)
                .map_err(|_| crate::RtcError::state("a negotiated data channel needs an id"))?;
            Some(id)
        } else {
            None
        };
        let small = |value: Option<i32>| value.map(|v| v.clamp(0, i32::from(u16::MAX)) as u16);
        Ok(ChannelInit {
            label: label.to_owned(),
            protocol: self.protocol.clone(),
            unordered: !self.ordered,
            max_lifetime_ms: small(self.max_retransmit_time),
            max_retransmits: small(self.max_retransmits),
            negotiated,
        })
    }
}

/// Why a message was not taken.
#[derive(Debug, Error)]
pub enum DataChannelError {
    /// Not open, or 16 MiB wait already.
    #[error("failed to send data, dc not open? send buffer is full ?")]
    Send,
    /// A text message must be UTF-8.
    #[error("only utf8 strings can be sent")]
    Utf8(#[from] Utf8Error),
}

/// State of a channel.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataChannelState {
    /// Not usable yet.
    Connecting,
    /// Messages flow.
    Open,
    /// What is queued goes out, then it closes.
    Closing,
    /// Over.
    Closed,
}

impl From<ChannelState> for DataChannelState {
    fn from(state: ChannelState) -> Self {
        match state {
            ChannelState::Connecting => Self::Connecting,
            ChannelState::Open => Self::Open,
            ChannelState::Closing => Self::Closing,
            ChannelState::Closed => Self::Closed,
        }
    }
}

/// A message.
#[derive(Debug)]
pub struct DataBuffer<'a> {
    /// Its bytes.
    pub data: &'a [u8],
    /// Binary or text.
    pub binary: bool,
}

/// Called with the new state.
pub type OnStateChange = Box<dyn FnMut(DataChannelState) + Send + Sync>;
/// Called with each message.
pub type OnMessage = Box<dyn FnMut(DataBuffer<'_>) + Send + Sync>;
/// Called with the bytes handed to SCTP since the last call.
pub type OnBufferedAmountChange = Box<dyn FnMut(u64) + Send + Sync>;

pub(crate) struct ChannelHandle {
    connection: Weak<Connection>,
    pub(crate) key: ChannelKey,
    label: String,
    pub(crate) on_state: Callback<OnStateChange>,
    pub(crate) on_message: Callback<OnMessage>,
    pub(crate) on_buffered: Callback<OnBufferedAmountChange>,
}

impl ChannelHandle {
    pub(crate) fn new(connection: &Arc<Connection>, key: ChannelKey, label: String) -> Arc<Self> {
        Arc::new(Self {
            connection: Arc::downgrade(connection),
            key,
            label,
            on_state: Callback::default(),
            on_message: Callback::default(),
            on_buffered: Callback::default(),
        })
    }

    fn read<R>(&self, read: impl FnOnce(&rtc_audio::data_channel::Channel) -> R) -> Option<R> {
        let connection = self.connection.upgrade()?;
        connection.read(|state| state.peer.channel(self.key).map(read))
    }
}

/// A handle to a channel. Closing the peer connection closes it.
#[derive(Clone)]
pub struct DataChannel {
    pub(crate) handle: Arc<ChannelHandle>,
}

impl DataChannel {
    /// Queues a message; `binary` or UTF-8 text.
    pub fn send(&self, data: &[u8], binary: bool) -> Result<(), DataChannelError> {
        if !binary {
            str::from_utf8(data)?;
        }
        let connection = self.handle.connection.upgrade().ok_or(DataChannelError::Send)?;
        connection
            .with(|state| state.peer.send_message(self.handle.key, binary, data))
            .map_err(|_| DataChannelError::Send)
    }

    /// SCTP stream id, -1 while there is none.
    pub fn id(&self) -> i32 {
        self.handle.read(|channel| channel.stream().map_or(-1, i32::from)).unwrap_or(-1)
    }

    /// Label, as the maker of the channel chose it.
    pub fn label(&self) -> String {
        self.handle.label.clone()
    }

    /// Its state.
    pub fn state(&self) -> DataChannelState {
        self.handle.read(|channel| channel.state().into()).unwrap_or(DataChannelState::Closed)
    }

    /// Closes it after what is queued.
    pub fn close(&self) {
        if let Some(connection) = self.handle.connection.upgrade() {
            connection.with(|state| state.peer.close_channel(self.handle.key));
        }
    }

    /// Bytes that wait to be handed to SCTP.
    pub fn buffered_amount(&self) -> u64 {
        self.handle.read(|channel| channel.queued() as u64).unwrap_or_default()
    }

    /// Replaces the callback for state changes.
    pub fn on_state_change(&self, callback: Option<OnStateChange>) {
        self.handle.on_state.set(callback);
    }

    /// Replaces the callback for messages.
    pub fn on_message(&self, callback: Option<OnMessage>) {
        self.handle.on_message.set(callback);
    }

    /// Replaces the callback for bytes handed on.
    pub fn on_buffered_amount_change(&self, callback: Option<OnBufferedAmountChange>) {
        self.handle.on_buffered.set(callback);
    }
}

impl Debug for DataChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataChannel")
            .field("id", &self.id())
            .field("label", &self.handle.label)
            .field("state", &self.state())
            .finish()
    }
}
