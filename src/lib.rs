//! antiphon: a standalone real-time voice agent worker for LiveKit.
//!
//! ARCHITECTURE.md is the map of the house.

pub mod audio;
pub mod cli;
pub mod clock;
pub mod config;
pub mod context;
pub mod control;
pub mod doubles;
pub mod eval;
pub mod files;
pub mod flight;
pub mod llm;
pub mod net;
pub mod recording;
pub mod replay;
pub mod room;
pub mod session;
pub mod store;
pub mod stt;
pub mod telemetry;
pub mod tools;
pub mod transcript;
pub mod tts;
pub mod worker;
