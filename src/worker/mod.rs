//! The worker: registers with a LiveKit server and runs the jobs it is given.

pub mod dispatch;
pub mod job;
pub mod load;
pub mod protocol;
