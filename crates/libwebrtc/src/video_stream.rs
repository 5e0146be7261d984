//! Streams of remote video. Those of decoded frames end at once; those of
//! [key frames](keyframes), which are whole pictures, give some.

/// Pictures of a remote video, without decoding it. Not part of LiveKit's own crate.
pub mod keyframes {
    use std::fmt::{self, Debug};
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};
    use std::time::Duration;

    pub use rtc_audio::keyframe::{KeyFrame, VideoCodec};
    use tokio_stream::Stream;

    use crate::RtcError;
    use crate::engine::video::Watcher;
    use crate::video_track::RtcVideoTrack;

    /// The shortest interval: each picture costs the sender and all who watch a key frame's bytes.
    pub const SHORTEST: Duration = Duration::from_millis(200);

    /// Key frames of a subscribed track, at most one an interval; the newest takes the place of one
    /// that was not read. It asks the sender for them, and ends with the track. Only VP8 gives any.
    pub struct KeyFrameStream {
        watcher: Arc<Watcher>,
    }

    impl KeyFrameStream {
        /// Watches a remote track. An interval below [`SHORTEST`] is that.
        pub fn new(track: &RtcVideoTrack, interval: Duration) -> Result<Self, RtcError> {
            let Some(video) = track.remote() else {
                return Err(RtcError::unsupported("watching a track of one's own"));
            };
            let _guard = crate::engine::runtime()?.enter();
            Ok(Self { watcher: Watcher::attach(video, interval.max(SHORTEST)) })
        }
    }

    impl Drop for KeyFrameStream {
        fn drop(&mut self) {
            self.watcher.detach();
        }
    }

    impl Stream for KeyFrameStream {
        type Item = KeyFrame;

        fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<KeyFrame>> {
            self.watcher.poll(context)
        }
    }

    impl Debug for KeyFrameStream {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("KeyFrameStream").finish_non_exhaustive()
        }
    }
}

/// Streams read by the application.
pub mod native {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio_stream::Stream;

    use crate::native::packet_trailer::PacketTrailerHandler;
    use crate::video_frame::BoxVideoFrame;
    use crate::video_track::RtcVideoTrack;

    /// Options of a stream.
    #[derive(Clone, Debug, Default)]
    pub struct NativeVideoStreamOptions {
        /// Frames that may wait.
        pub queue_size_frames: Option<usize>,
    }

    /// A stream that ends at once: no video is decoded here, and the log says so. There are
    /// [key frames](super::keyframes).
    #[derive(Debug)]
    pub struct NativeVideoStream {
        track: RtcVideoTrack,
    }

    impl NativeVideoStream {
        /// Says in the log that nothing will come.
        pub fn new(video_track: RtcVideoTrack) -> Self {
            log::error!(
                "video is not decoded by this engine: no frame will come, see video_stream::keyframes"
            );
            Self { track: video_track }
        }

        /// Like [`Self::new`].
        pub fn with_options(
            video_track: RtcVideoTrack,
            _options: NativeVideoStreamOptions,
        ) -> Self {
            Self::new(video_track)
        }

        /// Does nothing.
        pub fn set_packet_trailer_handler(&self, _handler: PacketTrailerHandler) {}

        /// The track.
        pub fn track(&self) -> RtcVideoTrack {
            self.track.clone()
        }

        /// Does nothing.
        pub fn close(&mut self) {}
    }

    impl Stream for NativeVideoStream {
        type Item = BoxVideoFrame;

        fn poll_next(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            Poll::Ready(None)
        }
    }
}
