//! Video tracks: they exist so that sections have one, and carry nothing.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::media_stream_track::RtcTrackState;
use crate::native::packet_trailer::PacketTrailerHandler;

/// A video track. Publishing a local one is an error; a remote one gives no frames.
#[derive(Clone)]
pub struct RtcVideoTrack {
    id: Arc<str>,
    enabled: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    trailer: Arc<Mutex<Option<PacketTrailerHandler>>>,
}

impl RtcVideoTrack {
    pub(crate) fn new(id: &str) -> Self {
        Self {
            id: id.into(),
            enabled: Arc::new(AtomicBool::new(true)),
            ended: Arc::default(),
            trailer: Arc::default(),
        }
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Its id.
    pub fn id(&self) -> String {
        self.id.to_string()
    }

    /// Says whether it is not muted.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Remembers it; gives whether anything changed.
    pub fn set_enabled(&self, enabled: bool) -> bool {
        self.enabled.swap(enabled, Ordering::AcqRel) != enabled
    }

    /// Whether the remote still sends it.
    pub fn state(&self) -> RtcTrackState {
        if self.ended.load(Ordering::Acquire) { RtcTrackState::Ended } else { RtcTrackState::Live }
    }

    /// Remembers a handler; it is never called.
    pub fn set_packet_trailer_handler(&self, handler: PacketTrailerHandler) {
        *self.trailer.lock() = Some(handler);
    }

    /// The handler that was set.
    pub fn packet_trailer_handler(&self) -> Option<PacketTrailerHandler> {
        self.trailer.lock().clone()
    }
}

impl Debug for RtcVideoTrack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RtcVideoTrack")
            .field("id", &self.id())
            .field("enabled", &self.enabled())
            .field("state", &self.state())
            .finish()
    }
}
