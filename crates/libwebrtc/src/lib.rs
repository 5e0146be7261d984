//! The public surface of LiveKit's `libwebrtc` crate over a pure-Rust engine.
