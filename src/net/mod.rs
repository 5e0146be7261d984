//! What every network driver shares: back-off, connections, WebSockets, HTTP, provider URLs.

pub mod backoff;
pub mod breaker;
pub mod dial;
pub mod dns;
pub mod grpc;
pub mod http;
pub mod url;
pub mod warm;
pub mod ws;

/// Makes ring the process's TLS provider. Idempotent; call it before any TLS connection is built
/// (several rustls providers are linked in, so rustls cannot choose by itself).
pub fn install_crypto() {
    // An error means that one is installed already, which is what was asked for.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A random number in 0..1 for jitter. Not for secrets.
pub fn random_fraction() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / (f64::from(u32::MAX) + 1.0)
}
