//! Whose last status the server has read.
//!
//! It answers no status, but reads a worker's messages one after the other and answers a ping where
//! it comes to it (livekit-server, `agent.DispatchWorkerSignal`): a pong is a receipt for all that
//! was sent before its ping.

/// Jobs that wait for a receipt.
#[derive(Debug, Default)]
pub struct Receipts {
    /// Sent before the ping that is out.
    asked: Vec<String>,
    /// Sent after it, or while there was none.
    wanted: Vec<String>,
}

impl Receipts {
    /// The job's last status has been sent.
    pub fn want(&mut self, job_id: String) {
        self.wanted.push(job_id);
    }

    /// Whether another ping is needed.
    pub fn are_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    pub fn on_ping(&mut self) {
        self.asked.append(&mut self.wanted);
    }

    /// The jobs whose status has been read.
    pub fn on_pong(&mut self) -> Vec<String> {
        std::mem::take(&mut self.asked)
    }

    /// All that still wait.
    pub fn take(&mut self) -> Vec<String> {
        self.on_ping();
        self.on_pong()
    }
}
