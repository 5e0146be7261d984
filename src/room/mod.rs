//! One room: join, hear, speak, text streams, attributes.
//!
//! `input` and `output` are the two audio paths, whatever the place they run in; the rest binds a
//! session to a LiveKit room.

pub mod events;
pub mod farewell;
pub mod figures;
pub mod input;
pub mod join;
pub mod loopback;
pub mod media;
pub mod opening;
pub mod output;
pub mod signal;
pub mod stage;
pub mod telephone;
pub mod text;
pub mod warm_up;
