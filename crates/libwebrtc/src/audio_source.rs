//! Sources of local audio.

/// Sample rate assumed of a device.
pub const DEFAULT_SAMPLE_RATE: u32 = 48000;
/// Channels assumed of a device.
pub const DEFAULT_NUM_CHANNELS: u32 = 1;

/// Processing of captured audio. Remembered, but nothing is processed here: samples are sent as
/// they come.
#[derive(Default, Debug, Clone)]
pub struct AudioSourceOptions {
    /// Remove the far end's echo.
    pub echo_cancellation: bool,
    /// Remove noise.
    pub noise_suppression: bool,
    /// Even out the level.
    pub auto_gain_control: bool,
}

/// Where a track's samples come from.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub enum RtcAudioSource {
    /// Frames that the application pushes.
    Native(native::NativeAudioSource),
    /// A microphone. There is no device audio here: publishing such a track is an error.
    Device,
}

impl RtcAudioSource {
    /// Sets the processing options.
    pub fn set_audio_options(&self, options: AudioSourceOptions) {
        match self {
            Self::Native(source) => source.set_audio_options(options),
            Self::Device => {}
        }
    }

    /// Gives the processing options.
    pub fn audio_options(&self) -> AudioSourceOptions {
        match self {
            Self::Native(source) => source.audio_options(),
            Self::Device => AudioSourceOptions::default(),
        }
    }

    /// Sample rate in Hz.
    pub fn sample_rate(&self) -> u32 {
        match self {
            Self::Native(source) => source.sample_rate(),
            Self::Device => DEFAULT_SAMPLE_RATE,
        }
    }

    /// Channel count.
    pub fn num_channels(&self) -> u32 {
        match self {
            Self::Native(source) => source.num_channels(),
            Self::Device => DEFAULT_NUM_CHANNELS,
        }
    }
}

/// Sources fed by the application.
pub mod native {
    use std::fmt::{self, Debug};
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::AudioSourceOptions;
    use crate::RtcError;
    use crate::audio_frame::AudioFrame;
    use crate::engine::source::Source;

    /// A source fed by the application, paced to one Opus packet every 20 ms.
    ///
    /// While its queue is empty it sends silence, thinning out to a packet every 400 ms if the
    /// receiver allows discontinuous transmission (`usedtx`, RFC 7587 §6.1) or the track is muted.
    #[derive(Clone)]
    pub struct NativeAudioSource {
        pub(crate) source: Arc<Source>,
        options: Arc<Mutex<AudioSourceOptions>>,
    }

    impl Debug for NativeAudioSource {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("NativeAudioSource").finish_non_exhaustive()
        }
    }

    impl NativeAudioSource {
        /// Takes 8, 12, 16, 24 or 48 kHz with one or two channels; with any other format every
        /// capture fails. Up to `queue_size_ms` of samples (20 at least) wait; with 0 there is no
        /// queue and no pacing: every capture is a frame of 10 ms, sent by the caller's thread.
        pub fn new(
            options: AudioSourceOptions,
            sample_rate: u32,
            num_channels: u32,
            queue_size_ms: u32,
        ) -> Self {
            Self {
                source: Source::new(sample_rate, num_channels, queue_size_ms),
                options: Arc::new(Mutex::new(options)),
            }
        }

        /// Drops what waits to be sent: sound fades out within 10 ms, in the next packet. A capture
        /// that waits for room gives up its rest and succeeds.
        pub fn clear_buffer(&self) {
            self.source.clear();
        }

        /// Queues a frame of any length, waiting while the queue holds `queue_size_ms`.
        pub async fn capture_frame(&self, frame: &AudioFrame<'_>) -> Result<(), RtcError> {
            self.source.capture(frame).await
        }

        /// Sets the processing options.
        pub fn set_audio_options(&self, options: AudioSourceOptions) {
            *self.options.lock() = options;
        }

        /// Gives the processing options.
        pub fn audio_options(&self) -> AudioSourceOptions {
            self.options.lock().clone()
        }

        /// Sample rate in Hz.
        pub fn sample_rate(&self) -> u32 {
            self.source.sample_rate()
        }

        /// Channel count.
        pub fn num_channels(&self) -> u32 {
            self.source.channels()
        }
    }
}
