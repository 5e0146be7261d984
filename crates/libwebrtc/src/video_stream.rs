//! Streams of remote video: they end at once.

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

    /// A stream that ends at once: no video is decoded here, and the log says so.
    #[derive(Debug)]
    pub struct NativeVideoStream {
        track: RtcVideoTrack,
    }

    impl NativeVideoStream {
        /// Says in the log that nothing will come.
        pub fn new(video_track: RtcVideoTrack) -> Self {
            log::error!("video is not part of this audio engine: no frame will come");
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
