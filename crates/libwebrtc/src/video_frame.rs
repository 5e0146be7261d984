//! Video frames, as far as livekit's types need them. No video is encoded or decoded here.

use std::fmt::Debug;

/// Rotation to apply when a frame is shown, in degrees clockwise.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum VideoRotation {
    /// None.
    VideoRotation0 = 0,
    /// A quarter.
    VideoRotation90 = 90,
    /// A half.
    VideoRotation180 = 180,
    /// Three quarters.
    VideoRotation270 = 270,
}

/// Formats with one plane.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum VideoFormatType {
    /// Alpha first.
    ARGB,
    /// Blue first.
    BGRA,
    /// Alpha first, then blue.
    ABGR,
    /// Red first.
    RGBA,
}

/// Formats of buffers.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VideoBufferType {
    /// 4:2:0 in three planes.
    I420,
}

/// Metadata of a frame.
#[derive(Debug, Clone)]
pub struct FrameMetadata {
    /// Capture time in microseconds.
    pub user_timestamp: Option<u64>,
    /// Grows with every frame.
    pub frame_id: Option<u32>,
    /// Anything.
    pub user_data: Option<Vec<u8>>,
}

/// A frame.
#[derive(Debug)]
pub struct VideoFrame<T>
where
    T: AsRef<dyn VideoBuffer>,
{
    /// How to turn it.
    pub rotation: VideoRotation,
    /// Capture time in microseconds.
    pub timestamp_us: i64,
    /// Metadata.
    pub frame_metadata: Option<FrameMetadata>,
    /// Pixels.
    pub buffer: T,
}

impl<T: AsRef<dyn VideoBuffer>> VideoFrame<T> {
    /// A frame without time or metadata.
    pub fn new(rotation: VideoRotation, buffer: T) -> Self {
        Self { rotation, timestamp_us: 0, frame_metadata: None, buffer }
    }
}

/// Any buffer.
pub type BoxVideoBuffer = Box<dyn VideoBuffer>;
/// A frame with any buffer.
pub type BoxVideoFrame = VideoFrame<BoxVideoBuffer>;

/// Pixels of a frame.
pub trait VideoBuffer: Debug + Send + Sync {
    /// In pixels.
    fn width(&self) -> u32;
    /// In pixels.
    fn height(&self) -> u32;
    /// Format.
    fn buffer_type(&self) -> VideoBufferType;
    /// As 4:2:0, if it is.
    fn as_i420(&self) -> Option<&I420Buffer> {
        None
    }
}

/// 4:2:0 in three planes without padding.
#[derive(Debug, Clone)]
pub struct I420Buffer {
    width: u32,
    height: u32,
    planes: [Vec<u8>; 3],
}

impl I420Buffer {
    /// A buffer of zeros.
    pub fn new(width: u32, height: u32) -> Self {
        let luma = width as usize * height as usize;
        let chroma = width.div_ceil(2) as usize * height.div_ceil(2) as usize;
        Self { width, height, planes: [vec![0; luma], vec![0; chroma], vec![0; chroma]] }
    }

    /// A black buffer.
    pub fn new_black(width: u32, height: u32) -> Self {
        let mut buffer = Self::new(width, height);
        let [_, u, v] = &mut buffer.planes;
        u.fill(128);
        v.fill(128);
        buffer
    }

    /// Width of the chroma planes.
    pub fn chroma_width(&self) -> u32 {
        self.width.div_ceil(2)
    }

    /// Height of the chroma planes.
    pub fn chroma_height(&self) -> u32 {
        self.height.div_ceil(2)
    }

    /// Bytes from one row to the next, by plane.
    pub fn strides(&self) -> (u32, u32, u32) {
        (self.width, self.chroma_width(), self.chroma_width())
    }

    /// The planes.
    pub fn data(&self) -> (&[u8], &[u8], &[u8]) {
        let [y, u, v] = &self.planes;
        (y, u, v)
    }

    /// The planes.
    pub fn data_mut(&mut self) -> (&mut [u8], &mut [u8], &mut [u8]) {
        let [y, u, v] = &mut self.planes;
        (y, u, v)
    }
}

impl VideoBuffer for I420Buffer {
    fn width(&self) -> u32 {
        self.width
    }

    fn height(&self) -> u32 {
        self.height
    }

    fn buffer_type(&self) -> VideoBufferType {
        VideoBufferType::I420
    }

    fn as_i420(&self) -> Option<&Self> {
        Some(self)
    }
}

impl AsRef<dyn VideoBuffer> for I420Buffer {
    fn as_ref(&self) -> &(dyn VideoBuffer + 'static) {
        self
    }
}
