//! The one place that reads the clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The time now.
#[allow(clippy::disallowed_methods, reason = "the engine's door to the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Microseconds since 1970, for the stamps of figures.
#[allow(clippy::disallowed_methods, reason = "the engine's door to the clock")]
pub(crate) fn unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
