//! Audio tracks, local and remote.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::sink::RemoteAudio;
use crate::engine::source::LocalAudio;
use crate::media_stream_track::RtcTrackState;

#[derive(Clone)]
pub(crate) enum Kind {
    Local(Arc<LocalAudio>),
    Remote(Arc<RemoteAudio>),
}

/// An audio track. Clones are the same track.
#[derive(Clone)]
pub struct RtcAudioTrack {
    id: Arc<str>,
    pub(crate) kind: Kind,
    remote_enabled: Arc<AtomicBool>,
}

impl RtcAudioTrack {
    pub(crate) fn new(id: &str, kind: Kind) -> Self {
        Self { id: id.into(), kind, remote_enabled: Arc::new(AtomicBool::new(true)) }
    }

    /// Its id; for a local track what the remote sees in `a=msid` (RFC 8830).
    pub fn id(&self) -> String {
        self.id.to_string()
    }

    /// Says whether it is not muted.
    pub fn enabled(&self) -> bool {
        match &self.kind {
            Kind::Local(local) => local.is_enabled(),
            Kind::Remote(_) => self.remote_enabled.load(Ordering::Acquire),
        }
    }

    /// Mutes a local track, which then sends silence. Of a remote one it is only remembered.
    /// Gives whether anything changed.
    pub fn set_enabled(&self, enabled: bool) -> bool {
        let changed = self.enabled() != enabled;
        match &self.kind {
            Kind::Local(local) => local.set_enabled(enabled),
            Kind::Remote(_) => self.remote_enabled.store(enabled, Ordering::Release),
        }
        changed
    }

    /// A remote track ends when the remote stops sending it.
    pub fn state(&self) -> RtcTrackState {
        match &self.kind {
            Kind::Remote(remote) if remote.is_ended() => RtcTrackState::Ended,
            _ => RtcTrackState::Live,
        }
    }
}

impl Debug for RtcAudioTrack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RtcAudioTrack")
            .field("id", &self.id())
            .field("enabled", &self.enabled())
            .field("state", &self.state())
            .finish()
    }
}
