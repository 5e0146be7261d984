//! How many requests a tenant may make: a bucket that fills as time goes.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::ApiError;

/// A bucket holds this many seconds' requests.
const BURST_S: f64 = 2.0;
/// Full buckets are forgotten beyond this.
const MAX_TENANTS: usize = 10_000;

#[derive(Debug)]
pub struct Limits {
    /// Requests a second; 0: no limit.
    usual: u32,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Limits {
    pub fn new(usual: u32) -> Self {
        Self { usual, buckets: Mutex::default() }
    }

    /// Takes one request from the tenant's bucket; `own`: the tenant's own limit.
    pub fn take(&self, tenant: &str, own: Option<u32>) -> Result<(), ApiError> {
        let rate = f64::from(own.unwrap_or(self.usual));
        if rate == 0.0 {
            return Ok(());
        }
        let full = (rate * BURST_S).max(1.0);
        let now = Instant::now();
        let refilled = |bucket: &Bucket| {
            let since = now.duration_since(bucket.at).as_secs_f64();
            (bucket.left + since * rate).min(full)
        };
        let mut buckets = self.buckets.lock();
        if buckets.len() >= MAX_TENANTS {
            buckets.retain(|_, bucket| now.duration_since(bucket.at).as_secs_f64() < BURST_S);
        }
        let bucket = buckets.entry(tenant.to_owned()).or_insert(Bucket { left: full, at: now });
        let left = refilled(bucket);
        *bucket = Bucket { left, at: now };
        if left < 1.0 {
            return Err(ApiError::too_many(((1.0 - left) / rate).ceil() as u32));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tenant_that_asks_too_fast_waits_and_others_do_not() {
        let limits = Limits::new(5);
        let granted = |tenant: &str| (0..100).filter(|_| limits.take(tenant, None).is_ok()).count();
        assert_eq!(granted("a"), 10);
        assert_eq!(granted("b"), 10);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(granted("a"), 5);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(granted("a"), 10, "never more than the bucket");
        let own = (0..100).filter(|_| limits.take("c", Some(1)).is_ok()).count();
        assert_eq!(own, 2);
        let free = Limits::new(0);
        assert!((0..1000).all(|_| free.take("a", None).is_ok()));
    }
}
