//! Video sources: they exist so that tracks can be made, and take no frames.

use crate::enum_dispatch;

/// In pixels.
#[derive(Debug, Clone)]
pub struct VideoResolution {
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

impl Default for VideoResolution {
    fn default() -> Self {
        Self { width: 1280, height: 720 }
    }
}

/// Where a track's frames come from.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub enum RtcVideoSource {
    /// The application.
    Native(native::NativeVideoSource),
}

impl RtcVideoSource {
    enum_dispatch!(
        [Native];
        pub fn video_resolution(self: &Self) -> VideoResolution;
    );
}

/// Sources fed by the application.
pub mod native {
    use super::VideoResolution;
    use crate::native::packet_trailer::PacketTrailerHandler;
    use crate::video_frame::{VideoBuffer, VideoFrame};

    /// A source whose track cannot be published.
    #[derive(Debug, Clone, Default)]
    pub struct NativeVideoSource {
        resolution: VideoResolution,
    }

    impl NativeVideoSource {
        /// Remembers the resolution.
        pub fn new(resolution: VideoResolution, _is_screencast: bool) -> Self {
            Self { resolution }
        }

        /// Takes no frame: always false.
        pub fn capture_frame<T: AsRef<dyn VideoBuffer>>(&self, _frame: &VideoFrame<T>) -> bool {
            false
        }

        /// Does nothing.
        pub fn set_packet_trailer_handler(&self, _handler: PacketTrailerHandler) {}

        /// The resolution it was made with.
        pub fn video_resolution(&self) -> VideoResolution {
            self.resolution.clone()
        }
    }
}
