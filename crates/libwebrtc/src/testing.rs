//! Switches for tests: no part of the surface, never to be used in production.
//!
//! They hold for the whole process and cost one relaxed load a datagram.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

static UDP_BLOCKED: AtomicBool = AtomicBool::new(false);
static ADDRESSES: Mutex<Option<Vec<IpAddr>>> = Mutex::new(None);
static LOOK_EVERY_MS: AtomicU64 = AtomicU64::new(0);
static TRUSTED: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Drops every datagram of every peer connection, both ways, as a firewall does.
pub fn block_udp(blocked: bool) {
    UDP_BLOCKED.store(blocked, Ordering::Relaxed);
}

pub(crate) fn udp_is_blocked() -> bool {
    UDP_BLOCKED.load(Ordering::Relaxed)
}

/// Takes these for the addresses of this host, and looks for a change so often. Call it first
/// before the first connection is made.
pub fn set_addresses(addresses: Vec<IpAddr>, look_every: Duration) {
    *ADDRESSES.lock() = Some(addresses);
    LOOK_EVERY_MS.store(look_every.as_millis() as u64, Ordering::Relaxed);
}

pub(crate) fn addresses() -> Option<Vec<IpAddr>> {
    ADDRESSES.lock().clone()
}

pub(crate) fn look_every() -> Option<Duration> {
    let ms = LOOK_EVERY_MS.load(Ordering::Relaxed);
    (ms > 0).then(|| Duration::from_millis(ms))
}

/// Trusts a certificate authority (DER) for `turns:`, besides those of the web.
pub fn trust(authority: &[u8]) {
    TRUSTED.lock().push(authority.to_vec());
}

pub(crate) fn trusted() -> Vec<Vec<u8>> {
    TRUSTED.lock().clone()
}
