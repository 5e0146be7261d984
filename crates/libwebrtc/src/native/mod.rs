//! What only a native build has.

pub mod frame_cryptor;
mod keys;
pub mod packet_trailer;
mod reporter;

/// A random UUID (RFC 9562 §5.4).
pub fn create_random_uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}
