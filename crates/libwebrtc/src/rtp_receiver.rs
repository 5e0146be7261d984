//! The receiving half of a transceiver.

#![allow(clippy::unused_async, reason = "the signatures are those that livekit awaits")]

use std::fmt::{self, Debug};
use std::sync::Arc;

use rtc_audio::transceiver::MediaType;

use crate::RtcError;
use crate::media_stream::MediaStream;
use crate::media_stream_track::MediaStreamTrack;
use crate::rtp_parameters::{RtpParameters, opus_parameters};
use crate::rtp_transceiver::TransceiverHandle;
use crate::stats::{self, RtcStats};

/// A handle to a receiver.
#[derive(Clone)]
pub struct RtpReceiver {
    pub(crate) handle: Arc<TransceiverHandle>,
}

impl RtpReceiver {
    /// The track it receives.
    pub fn track(&self) -> Option<MediaStreamTrack> {
        Some(self.handle.receiving.lock().track.clone())
    }

    /// Ids of the streams that the remote sends here now.
    pub fn stream_ids(&self) -> Vec<String> {
        self.handle.receiving.lock().streams.clone()
    }

    /// The streams that the remote sends here now.
    pub fn streams(&self) -> Vec<MediaStream> {
        let receiving = self.handle.receiving.lock();
        let stream = |id: &String| MediaStream::new(id.clone(), receiving.track.clone());
        receiving.streams.iter().map(stream).collect()
    }

    /// Figures of what it receives.
    pub async fn get_stats(&self) -> Result<Vec<RtcStats>, RtcError> {
        let Some(connection) = self.handle.connection.upgrade() else { return Ok(Vec::new()) };
        Ok(connection.read(|state| stats::of_receiver(state, &self.handle)))
    }

    /// Its parameters.
    pub fn parameters(&self) -> RtpParameters {
        let mut parameters = RtpParameters::default();
        if self.handle.media == MediaType::Audio {
            parameters.codecs.push(opus_parameters());
        }
        parameters
    }
}

impl Debug for RtpReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RtpReceiver").field("track", &self.track()).finish()
    }
}
