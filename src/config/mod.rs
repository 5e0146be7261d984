//! Settings: strings in, a configuration or the list of all faults out.
//!
//! antiphon.toml holds the process's settings (`env`, `file`, `names`), agents/NAME.toml the
//! agent's (`agent`, `agent_file`, `prompt`), never the other's. [`setup::Setup`] puts them
//! together for a command and lists every fault of both at once.

pub mod agent;
mod agent_file;
mod agent_tools;
pub mod control;
pub mod env;
pub mod error;
mod file;
pub mod flags;
pub mod library;
pub mod names;
pub mod prices;
pub mod prompt;
mod reader;
mod resolver;
pub mod setup;
pub mod source;

pub use agent::Agent;
pub use env::{Config, Sources};
pub use error::{ConfigErrors, Fault};
pub use flags::ProcessArgs;
pub use library::Library;
pub use prices::Prices;
pub use prompt::RoomContext;
pub use setup::{Needs, Setup};
