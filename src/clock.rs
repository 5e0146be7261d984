//! The one door to time.
//!
//! Drivers read the clock here and hand the value to the pure machines, so that a paused tokio
//! runtime (tests, `replay`) moves every part of antiphon in virtual time.

use std::time::Instant;
#[allow(clippy::disallowed_types, reason = "this is the door")]
use std::time::{SystemTime, UNIX_EPOCH};

/// The monotonic time; virtual under a paused tokio runtime.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Waits for a time, if there is one to wait for.
pub async fn at(time: Option<impl Into<tokio::time::Instant>>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Wall-clock time, for what carries times of its own, such as files.
#[allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "this is the door")]
pub fn system() -> SystemTime {
    SystemTime::now()
}

/// Wall-clock time in ms since the Unix epoch.
#[allow(clippy::disallowed_methods, reason = "this is the door")]
pub fn unix_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
