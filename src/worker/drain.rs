//! The two ways to ask a worker to end.

use std::io;

use tokio_util::sync::CancellationToken;

/// Ask for the end once, then for good.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Take no more jobs and end when those that run have ended.
    pub drain: CancellationToken,
    /// End now.
    pub kill: CancellationToken,
}

impl Signals {
    pub fn new() -> Self {
        Self::default()
    }

    /// As the process's signals: the first drains, the second ends.
    pub fn ask(&self) {
        if self.drain.is_cancelled() {
            self.kill.cancel();
        }
        self.drain.cancel();
    }
}

/// SIGTERM or SIGINT drains, the second of either ends at once. Must be called inside a tokio
/// runtime; the process no longer dies of these signals afterwards.
#[cfg(unix)]
pub fn on_process_signals() -> io::Result<Signals> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let signals = Signals::new();
    let asked = signals.clone();
    tokio::spawn(async move {
        while !asked.kill.is_cancelled() {
            tokio::select! {
                heard = terminate.recv() => if heard.is_none() { return },
                heard = interrupt.recv() => if heard.is_none() { return },
            }
            asked.ask();
        }
    });
    Ok(signals)
}

/// Ctrl-C drains, the second ends at once. Must be called inside a tokio runtime.
#[cfg(not(unix))]
pub fn on_process_signals() -> io::Result<Signals> {
    let signals = Signals::new();
    let asked = signals.clone();
    tokio::spawn(async move {
        while !asked.kill.is_cancelled() && tokio::signal::ctrl_c().await.is_ok() {
            asked.ask();
        }
    });
    Ok(signals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_drains_and_the_second_ends() {
        let signals = Signals::new();
        signals.ask();
        assert!(signals.drain.is_cancelled() && !signals.kill.is_cancelled());
        signals.ask();
        assert!(signals.kill.is_cancelled());
    }
}
