//! What the integration tests share.

pub mod antiphon;
pub mod caller;
pub mod livekit;
pub mod stage;

use std::{future::Future, time::Duration};

/// The longest anything here is waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for something to happen, and says what did not.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let missing = format!("{what} did not happen within {} s", PATIENCE.as_secs());
    tokio::time::timeout(PATIENCE, future).await.expect(&missing)
}

/// Asks again and again, at a steady pace, until there is an answer.
pub async fn poll<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    within(what, async {
        loop {
            pace.tick().await;
            if let Some(value) = ask().await {
                return value;
            }
        }
    })
    .await
}
