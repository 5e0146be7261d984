//! The one place that reads the clock.

use std::time::Instant;

/// The time now.
#[allow(clippy::disallowed_methods, reason = "the engine's door to the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
