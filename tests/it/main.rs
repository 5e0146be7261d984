//! antiphon against a real livekit-server, with a real LiveKit client as the caller and provider
//! doubles on loopback. `cargo xtask test` runs these; see CONTRIBUTING.md.

mod support;

mod call;
mod failures;
mod kill;
mod sessions;
