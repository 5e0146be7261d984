//! The audio path: frames, resampling, voice activity, playout, WAV files.

pub mod queue;
