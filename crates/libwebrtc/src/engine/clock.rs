//! The one place that reads the clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time now.
#[allow(clippy::disallowed_methods, reason = "the engine's door to the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Time since 1970.
#[allow(clippy::disallowed_methods, reason = "the engine's door to the clock")]
pub(crate) fn since_unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Microseconds since 1970, for the stamps of figures.
pub(crate) fn unix_micros() -> i64 {
    i64::try_from(since_unix().as_micros()).unwrap_or(i64::MAX)
}
