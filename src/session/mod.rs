//! The conversation: a pure machine and its driver.
//!
//! [`machine::Session`] does no I/O, spawns nothing and reads no clock. `driver` holds the tasks
//! and sockets around it. Audio never enters the machine: it sees events about audio and steers it
//! by commands.

pub mod command;
pub mod driver;
mod history;
pub mod input;
pub mod machine;
pub mod ports;
pub mod settings;
pub mod simulation;
mod speaker;
mod speech;
pub mod state;
#[cfg(test)]
mod tests;
mod timers;
mod turn;

pub(crate) use turn::{interruption::is_backchannel, word_class};
