//! Metadata behind video frames. There is no video here: handlers are kept and never called.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::peer_connection_factory::PeerConnectionFactory;
use crate::rtp_receiver::RtpReceiver;
use crate::rtp_sender::RtpSender;

/// How far a published frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishTimingStage {
    /// Before the encoder.
    EncoderUpload,
    /// After it.
    EncoderOutput,
    /// Before packets are made.
    WebrtcPacketize,
}

/// How far a received frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubscribeTimingStage {
    /// Out of its packets.
    WebrtcReceive,
    /// Before the decoder.
    DecoderUpload,
    /// After it.
    DecoderOutput,
}

/// Times are in microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishTimingEvent {
    /// How far.
    pub stage: PublishTimingStage,
    /// When.
    pub timestamp_us: u64,
    /// When the frame was captured.
    pub capture_timestamp_us: u64,
    /// Chosen by the application.
    pub frame_id: Option<u32>,
}

/// Times are in microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscribeTimingEvent {
    /// How far.
    pub stage: SubscribeTimingStage,
    /// When.
    pub timestamp_us: u64,
    /// When the frame was captured.
    pub capture_timestamp_us: u64,
    /// Chosen by the application.
    pub frame_id: Option<u32>,
}

/// Never called.
pub type PublishTimingObserver = Arc<dyn Fn(PublishTimingEvent) + Send + Sync + 'static>;
/// Never called.
pub type SubscribeTimingObserver = Arc<dyn Fn(SubscribeTimingEvent) + Send + Sync + 'static>;

/// A handler for frames that do not come.
#[derive(Debug, Clone, Default)]
pub struct PacketTrailerHandler {
    enabled: Arc<AtomicBool>,
}

impl PacketTrailerHandler {
    /// Remembers it.
    pub fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Release);
    }

    /// What was set.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// None.
    pub fn lookup_frame_metadata(&self, _rtp_timestamp: u32) -> Option<(u64, u32, Vec<u8>)> {
        None
    }

    /// Does nothing.
    pub fn store_frame_metadata(
        &self,
        _capture_timestamp_us: i64,
        _user_timestamp: u64,
        _frame_id: u32,
        _user_data: &[u8],
    ) {
    }

    /// Says in the log that nothing will come.
    pub fn set_publish_timing_observer(&self, observer: Option<PublishTimingObserver>) {
        if observer.is_some() {
            log::error!("packet trailers are not part of this audio engine: no timing will come");
        }
    }

    /// Says in the log that nothing will come.
    pub fn set_subscribe_timing_observer(&self, observer: Option<SubscribeTimingObserver>) {
        if observer.is_some() {
            log::error!("packet trailers are not part of this audio engine: no timing will come");
        }
    }
}

/// Says in the log that nothing will be sent.
pub fn create_sender_handler(
    _peer_factory: &PeerConnectionFactory,
    _sender: &RtpSender,
) -> PacketTrailerHandler {
    log::error!("packet trailers are not part of this audio engine");
    PacketTrailerHandler::default()
}

/// Says in the log that nothing will come.
pub fn create_receiver_handler(
    _peer_factory: &PeerConnectionFactory,
    _receiver: &RtpReceiver,
) -> PacketTrailerHandler {
    log::error!("packet trailers are not part of this audio engine");
    PacketTrailerHandler::default()
}
