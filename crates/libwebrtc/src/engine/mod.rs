//! The driver: sockets, time and threads around the sans-IO peers.

mod alarm;
pub(crate) mod callback;
pub(crate) mod clock;
pub(crate) mod connection;
mod driver;
pub(crate) mod gather;
pub(crate) mod interfaces;
mod moments;
mod relay;
mod resolve;
mod shards;
pub(crate) mod sink;
pub(crate) mod source;
mod stamps;
mod tcp;
mod udp;
pub(crate) mod video;

pub(crate) use shards::{place, runtime};
