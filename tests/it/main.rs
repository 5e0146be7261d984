//! antiphon against a real livekit-server, with a real LiveKit client as the caller and provider
//! doubles on loopback. `cargo xtask test` runs these; see CONTRIBUTING.md.

#![expect(clippy::expect_used, reason = "a failed expectation is how a test fails")]

mod support;

mod call;
mod control;
mod failures;
mod flights;
mod interop;
mod kill;
mod leaving;
mod outage;
mod sessions;
