//! Streams: the first half of an msid (RFC 8830).

use crate::audio_track::RtcAudioTrack;
use crate::media_stream_track::MediaStreamTrack;
use crate::video_track::RtcVideoTrack;

/// A stream of one track.
#[derive(Clone, Debug)]
pub struct MediaStream {
    id: String,
    track: MediaStreamTrack,
}

impl MediaStream {
    pub(crate) fn new(id: String, track: MediaStreamTrack) -> Self {
        Self { id, track }
    }

    /// Its id; LiveKit puts the participant and the track into it.
    pub fn id(&self) -> String {
        self.id.clone()
    }

    /// Its audio tracks.
    pub fn audio_tracks(&self) -> Vec<RtcAudioTrack> {
        match &self.track {
            MediaStreamTrack::Audio(track) => vec![track.clone()],
            MediaStreamTrack::Video(_) => Vec::new(),
        }
    }

    /// Its video tracks.
    pub fn video_tracks(&self) -> Vec<RtcVideoTrack> {
        match &self.track {
            MediaStreamTrack::Video(track) => vec![track.clone()],
            MediaStreamTrack::Audio(_) => Vec::new(),
        }
    }
}
