//! The audio path: frames, resampling, voice activity, playout, WAV files.

pub mod assets;
pub mod fade;
pub mod in_place;
pub mod level;
pub mod playout;
pub mod queue;
pub mod resample;
pub mod smart_turn;
pub mod vad;
pub mod wav;

pub use assets::{apology, apology_at, demo_caller, demo_caller_expected};
