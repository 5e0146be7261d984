//! The driver: sockets, time and threads around the sans-IO peers.

pub(crate) mod callback;
pub(crate) mod clock;
pub(crate) mod connection;
mod driver;
pub(crate) mod gather;
pub(crate) mod interfaces;
pub(crate) mod net;
mod relay;
mod resolve;
pub(crate) mod sink;
pub(crate) mod source;
pub(crate) mod video;

use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::RtcError;

/// Threads of all peer connections of the process together.
const MAX_THREADS: usize = 4;

/// The engine's own runtime: an application whose workers are blocked makes no gap in the audio.
pub(crate) fn runtime() -> Result<&'static Handle, RtcError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Builder::new_multi_thread()
            .worker_threads(cores.clamp(2, MAX_THREADS))
            .thread_name("rtc-engine")
            .enable_all()
            .build()
            .map_err(|error| error.to_string())
    });
    match runtime {
        Ok(runtime) => Ok(runtime.handle()),
        Err(error) => Err(RtcError {
            error_type: crate::RtcErrorType::Internal,
            message: format!("the engine's threads cannot start: {error}"),
        }),
    }
}
