//! The data channels of a peer.

use str0m::Input;
use str0m::channel::ChannelId;
use tracing::{debug, warn};

use crate::data_channel::{Channel, ChannelInit, ChannelKey, ChannelState, SendError};
use crate::negotiation::{is_anchor, is_anchor_stream};
use crate::peer::{Event, Peer, PeerError};

/// Channels that the remote may open over a connection's life, and the bytes of all their labels. A
/// channel's figures stay when it is closed.
const MAX_OPENED: usize = 1_024;
const MAX_LABELS: usize = 1 << 16;
/// Bytes of label and protocol of a channel that we open in-band: str0m writes them to one packet, and
/// breaks where they do not fit.
const MAX_NAMES: usize = 1_200;

impl Peer {
    /// Makes a data channel. It opens when the connection is up; before the first, an offer must
    /// go out (or an answer to one with data channels).
    pub fn create_channel(&mut self, init: ChannelInit) -> Result<ChannelKey, PeerError> {
        if self.closed {
            return Err(PeerError::State("the connection is closed"));
        }
        if init.negotiated.is_none() && init.label.len() + init.protocol.len() > MAX_NAMES {
            return Err(PeerError::State("the data channel's label and protocol are too long"));
        }
        if init.negotiated.is_some_and(is_anchor_stream) {
            return Err(PeerError::State("data channel ids from 1000 to 1999 are the engine's"));
        }
        let taken = init.negotiated.is_some()
            && self
                .channels
                .iter()
                .any(|c| c.stream == init.negotiated && c.state != ChannelState::Closed);
        if taken {
            return Err(PeerError::State("the data channel id is in use"));
        }
        let key = ChannelKey(self.new_id());
        self.channels.push(Channel::new(key, init));
        if self.negotiation.data_negotiated() {
            self.open_waiting_channels();
        } else {
            self.negotiation.want_data();
        }
        Ok(key)
    }

    /// One channel.
    pub fn channel(&self, key: ChannelKey) -> Option<&Channel> {
        self.channels.iter().find(|c| c.key == key)
    }

    /// All channels.
    pub fn channels(&self) -> &[Channel] {
        &self.channels
    }

    /// Queues a message.
    pub fn send_message(
        &mut self,
        key: ChannelKey,
        binary: bool,
        data: &[u8],
    ) -> Result<(), SendError> {
        let Some(channel) = self.channels.iter_mut().find(|c| c.key == key) else {
            return Err(SendError::NotOpen);
        };
        channel.enqueue(binary, data)?;
        self.flush_channels();
        Ok(())
    }

    /// Closes a channel after what is queued in it.
    pub fn close_channel(&mut self, key: ChannelKey) {
        let Some(index) = self.channels.iter().position(|c| c.key == key) else { return };
        match self.channels.get(index).map(|c| c.state) {
            Some(ChannelState::Connecting) => self.set_channel_state(index, ChannelState::Closed),
            Some(ChannelState::Open) => {
                self.set_channel_state(index, ChannelState::Closing);
                self.flush_channels();
            }
            _ => {}
        }
    }

    pub(crate) fn open_waiting_channels(&mut self) {
        for index in 0..self.channels.len() {
            let Some(channel) = self.channels.get(index) else { continue };
            if channel.id.is_some() || channel.state != ChannelState::Connecting {
                continue;
            }
            // str0m takes a second use of a negotiated id for a bug: the earlier must be gone.
            let config = channel.init.config();
            let taken = config.negotiated.is_some_and(|stream| {
                self.rtc.direct_api().channel_id_by_sctp_stream_id(stream).is_some()
                    || self
                        .channels
                        .iter()
                        .any(|c| c.id.is_some() && c.key != channel.key && c.stream == Some(stream))
            });
            if taken {
                warn!(label = config.label, "data channel id is still in use");
                self.set_channel_state(index, ChannelState::Closed);
                continue;
            }
            let id = self.rtc.direct_api().create_data_channel(config);
            if let Some(channel) = self.channels.get_mut(index) {
                channel.id = Some(id);
            }
            self.drain();
        }
        // Opening happens as time passes.
        if let Err(error) = self.rtc.handle_input(Input::Timeout(self.now)) {
            warn!(%error, "open data channels");
        }
        self.drain();
    }

    pub(crate) fn flush_channels(&mut self) {
        for index in 0..self.channels.len() {
            let mut sent = 0;
            while let Some(written) = self.write_next(index) {
                sent += written;
                self.drain();
            }
            let Some(channel) = self.channels.get(index) else { continue };
            if sent > 0 {
                self.events.push_back(Event::BytesSent(channel.key, sent));
            }
            if channel.state == ChannelState::Closing && channel.outgoing.is_empty() {
                if let Some(id) = channel.id {
                    self.rtc.direct_api().close_data_channel(id);
                    self.drain();
                }
                self.set_channel_state(index, ChannelState::Closed);
            }
        }
    }

    /// Hands one message to SCTP if it takes it; gives its bytes.
    fn write_next(&mut self, index: usize) -> Option<u64> {
        let channel = self.channels.get_mut(index)?;
        let id = channel.id?;
        let (binary, data) = channel.outgoing.front()?;
        let written = self.rtc.channel(id)?.write(*binary, data);
        match written {
            Ok(false) => return None,
            Ok(true) => channel.counters.messages_sent += 1,
            Err(error) => warn!(%error, label = channel.init.label, "message dropped"),
        }
        let len = data.len();
        channel.outgoing.pop_front();
        channel.queued = channel.queued.saturating_sub(len);
        channel.counters.bytes_sent += len as u64;
        Some(len as u64)
    }

    pub(crate) fn set_channel_state(&mut self, index: usize, state: ChannelState) {
        let Some(channel) = self.channels.get_mut(index) else { return };
        if channel.state == state || channel.state == ChannelState::Closed {
            return;
        }
        channel.state = state;
        if state == ChannelState::Closed {
            channel.outgoing.clear();
            channel.queued = 0;
        }
        self.events.push_back(Event::ChannelState(channel.key, state));
    }

    pub(crate) fn on_channel_open(&mut self, id: ChannelId, label: String) {
        if is_anchor(&label) {
            return;
        }
        let stream = self.rtc.direct_api().sctp_stream_id_by_channel_id(id);
        if let Some(index) = self.channels.iter().position(|c| c.id == Some(id)) {
            if let Some(channel) = self.channels.get_mut(index) {
                channel.stream = stream;
                if channel.state != ChannelState::Connecting {
                    self.rtc.direct_api().close_data_channel(id);
                    return;
                }
            }
            self.set_channel_state(index, ChannelState::Open);
            return;
        }
        let labels = self.opened_labels + label.len();
        if self.opened >= MAX_OPENED || labels > MAX_LABELS {
            debug!("the remote opens too many data channels");
            self.rtc.direct_api().close_data_channel(id);
            return;
        }
        (self.opened, self.opened_labels) = (self.opened + 1, labels);
        let key = ChannelKey(self.new_id());
        let mut channel = Channel::new(key, ChannelInit { label, ..ChannelInit::default() });
        channel.id = Some(id);
        channel.stream = stream;
        self.channels.push(channel);
        self.events.push_back(Event::ChannelAdded(key));
        self.set_channel_state(self.channels.len() - 1, ChannelState::Open);
    }
}
