//! A sans-IO WebRTC audio and data peer over str0m.
