//! Video tracks. Of a remote one there are [key frames](crate::video_stream::keyframes).

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::engine::video::RemoteVideo;
use crate::media_stream_track::RtcTrackState;
use crate::native::packet_trailer::PacketTrailerHandler;

/// A video track. Publishing a local one is an error; a remote one gives key frames, undecoded.
#[derive(Clone)]
pub struct RtcVideoTrack {
    id: Arc<str>,
    enabled: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    trailer: Arc<Mutex<Option<PacketTrailerHandler>>>,
    remote: Option<Arc<RemoteVideo>>,
}

impl RtcVideoTrack {
    /// A track of one's own: `remote` is none.
    pub(crate) fn new(id: &str, remote: Option<Arc<RemoteVideo>>) -> Self {
        Self {
            id: id.into(),
            enabled: Arc::new(AtomicBool::new(true)),
            ended: Arc::default(),
            trailer: Arc::default(),
            remote,
        }
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        if let Some(remote) = &self.remote {
            remote.end();
        }
    }

    pub(crate) fn remote(&self) -> Option<&Arc<RemoteVideo>> {
        self.remote.as_ref()
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
