//! Frames of samples.

use std::borrow::Cow;

/// Signed 16-bit samples, interleaved.
#[derive(Debug, Clone)]
pub struct AudioFrame<'a> {
    /// `num_channels * samples_per_channel` samples.
    pub data: Cow<'a, [i16]>,
    /// In Hz.
    pub sample_rate: u32,
    /// One or two.
    pub num_channels: u32,
    /// Samples of one channel.
    pub samples_per_channel: u32,
}

impl AudioFrame<'_> {
    /// A frame of silence that owns its samples.
    pub fn new(sample_rate: u32, num_channels: u32, samples_per_channel: u32) -> Self {
        let len = num_channels as usize * samples_per_channel as usize;
        Self { data: vec![0; len].into(), sample_rate, num_channels, samples_per_channel }
    }
}
