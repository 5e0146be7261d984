//! What only a native build has.

pub mod frame_cryptor;
mod keys;
pub mod packet_trailer;
mod reporter;
#[cfg(target_os = "linux")]
mod slice;

#[cfg(target_os = "linux")]
pub use slice::ask_for_short_slices;

/// There is no such thing here.
///
/// # Errors
///
/// None.
#[cfg(not(target_os = "linux"))]
#[allow(clippy::unnecessary_wraps, reason = "Linux may refuse")]
pub fn ask_for_short_slices() -> std::io::Result<()> {
    Ok(())
}

/// A random UUID (RFC 9562 §5.4).
pub fn create_random_uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}
