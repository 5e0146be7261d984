//! Logs, metrics, and what was used.

pub mod logging;
pub mod metrics;
pub mod record;
pub mod usage;
