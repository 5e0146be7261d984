//! A WAV through the whole conversation, without any server.
//!
//! In real time through the driver, with provider doubles or real providers; or in virtual time
//! through the machine alone, with scripted providers.

pub mod caller;
pub mod realtime;
pub mod report;
pub mod simulated;
