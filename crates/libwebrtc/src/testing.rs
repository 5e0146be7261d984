//! Switches for tests: no part of the surface, never to be used in production.
//!
//! They hold for the whole process and cost one relaxed load a datagram.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

static BLOCKED_PORT: AtomicU16 = AtomicU16::new(0);
static ADDRESSES: Mutex<Option<Vec<IpAddr>>> = Mutex::new(None);
static LOOK_EVERY_MS: AtomicU64 = AtomicU64::new(0);
static TURNS: AtomicU64 = AtomicU64::new(0);
static TRUSTED: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Drops every datagram from and to this port of remotes, both ways, as a firewall does; `None`
/// lets all through again. A TURN server's port counts, not its peers'.
pub fn block_udp(port: Option<u16>) {
    BLOCKED_PORT.store(port.unwrap_or(0), Ordering::Relaxed);
}

pub(crate) fn udp_is_blocked(remote: SocketAddr) -> bool {
    let port = BLOCKED_PORT.load(Ordering::Relaxed);
    port != 0 && port == remote.port()
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

/// How often all connections together went through their loops: what a room costs when nothing
/// happens, and beyond its packets when something does.
pub fn loop_turns() -> u64 {
    TURNS.load(Ordering::Relaxed)
}

pub(crate) fn count_turn() {
    TURNS.fetch_add(1, Ordering::Relaxed);
}
