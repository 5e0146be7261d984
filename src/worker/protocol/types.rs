//! What goes into the protocol machine and what comes out of it.

use std::{fmt, time::Duration};

use livekit_protocol::{ServerMessage, WorkerMessage};

use crate::worker::{dispatch::Assignment, job::JobError};

/// What the operator decides.
#[derive(Debug, Clone)]
pub struct Config {
    /// Non-empty: only explicit dispatch reaches this worker.
    pub agent_name: String,
    /// This program's version, shown by the server.
    pub version: String,
    pub max_jobs: usize,
    /// Load, 0..1, from which on no job is taken.
    pub load_threshold: f32,
    /// Reported and decided by instead of the measured load.
    pub fixed_load: Option<f32>,
    /// How long running jobs may go on once draining.
    pub drain_timeout: Duration,
    pub timing: Timing,
}

/// The protocol's times; the defaults are the ones to use outside tests.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Longest wait for a connection, TLS and upgrade included.
    pub connect: Duration,
    /// Longest wait for the server's `register`.
    pub register: Duration,
    /// How long a slot is kept for a job that was accepted.
    pub assignment: Duration,
    /// Between two reports of the load.
    pub status: Duration,
    /// Between a pong and the next ping.
    pub ping: Duration,
    /// Longest wait for a pong; then the link counts as dead.
    pub pong: Duration,
    /// The n-th reconnect waits n times this, at most `backoff_max`.
    pub backoff: Duration,
    pub backoff_max: Duration,
    /// Consecutive failed connection attempts after which the worker gives up.
    pub tries: u32,
    /// How long a job may take to leave once it is told to; then it is aborted.
    pub terminate: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            register: Duration::from_secs(10),
            assignment: Duration::from_millis(7_500),
            status: Duration::from_millis(2_500),
            ping: Duration::from_secs(15),
            pong: Duration::from_secs(10),
            backoff: Duration::from_secs(2),
            backoff_max: Duration::from_secs(10),
            tries: 16,
            terminate: Duration::from_secs(10),
        }
    }
}

/// What happens to the worker.
pub enum Input {
    /// The connection asked for by [`Command::Connect`] stands.
    Connected,
    Message(Box<ServerMessage>),
    /// A frame that is no `ServerMessage`.
    Undecodable,
    /// The connection could not be made, or is lost.
    Disconnected(Disconnect),
    /// A job's conversation is over; its room is still to be left. The server is told now: to it, an
    /// agent that leaves before its job's last status has failed.
    JobOver {
        job_id: String,
        result: Result<(), JobError>,
    },
    JobEnded {
        job_id: String,
        result: Result<(), JobError>,
    },
    /// This process's share of its cores, 0..1.
    Load {
        cpu: f32,
    },
    /// Take no more jobs, let those that run end, exit.
    Drain,
    /// Exit now.
    Kill,
}

/// Messages hold tokens, so an input shows its kind alone.
impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connected => "Connected",
            Self::Message(_) => "Message",
            Self::Undecodable => "Undecodable",
            Self::Disconnected(_) => "Disconnected",
            Self::JobOver { .. } => "JobOver",
            Self::JobEnded { .. } => "JobEnded",
            Self::Load { .. } => "Load",
            Self::Drain => "Drain",
            Self::Kill => "Kill",
        })
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disconnect {
    /// 401 or 403: the key or secret is wrong; trying again cannot help.
    #[error("the server refused the API key or secret (HTTP {status})")]
    Unauthorized { status: u16 },
    #[error("the server refused the connection (HTTP {status})")]
    Refused { status: u16 },
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the connection was lost: {0}")]
    Lost(String),
    #[error("the server did not answer in time")]
    TimedOut,
    #[error("the server asked the worker to register again")]
    GoAway,
}

/// What the worker is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Connect; to be answered by `Connected` or `Disconnected`.
    Connect,
    Send(Box<WorkerMessage>),
    StartJob(Box<Assignment>),
    /// The server has read the last status of a job that is over, or never will: it may leave.
    JobRead {
        job_id: String,
    },
    /// Ask all jobs, those to come as well, to end gracefully.
    DrainJobs,
    /// Tell a job to leave now; to be answered by `JobEnded`.
    TerminateJob {
        job_id: String,
    },
    /// End a job's task; it counts as ended.
    AbortJob {
        job_id: String,
    },
    /// Send what has been said, then close the connection or give up making it. No input of that
    /// connection may follow.
    Close,
    Log(Notice),
    /// Nothing follows.
    Exit(Exit),
}

/// What the operator should read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    Registered {
        worker_id: String,
        server_version: String,
    },
    Reconnecting {
        reason: Disconnect,
        tries: u32,
        delay: Duration,
    },
    GaveUp {
        reason: Disconnect,
        jobs: usize,
    },
    Draining {
        jobs: usize,
    },
    DrainTimedOut {
        jobs: usize,
    },
    JobAborted {
        job_id: String,
    },
    /// Told once for each kind; the message is ignored or refused.
    Fault(Fault),
}

/// What can be wrong with a server's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Fault {
    #[error("a frame is no server message")]
    Undecodable,
    #[error("a message is empty or of an unknown kind")]
    UnknownMessage,
    #[error("a message came before the registration was confirmed")]
    NotRegistered,
    #[error("the registration was confirmed again")]
    RegisteredAgain,
    #[error("an availability request has no job with a usable id")]
    AvailabilityWithoutJob,
    #[error("an availability request names no room")]
    AvailabilityWithoutRoom,
    #[error("availability was asked again for a job that is accepted or running")]
    AvailabilityRepeated,
    #[error("an assignment has no job with a usable id")]
    AssignmentWithoutJob,
    #[error("an assignment lacks its room or token")]
    AssignmentIncomplete,
    #[error("an assignment was repeated")]
    AssignmentRepeated,
    #[error("an assignment was never asked for, or came too late")]
    AssignmentNotAskedFor,
    #[error("a termination names no job that runs here")]
    TerminationOfUnknownJob,
    #[error("a pong answers no ping")]
    PongWithoutPing,
}

/// How the worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// Drained: no job is left.
    Drained,
    /// Told to exit at once.
    Killed,
    /// Given up: the server refuses this worker, or cannot be reached.
    GaveUp { reason: Disconnect, tries: u32 },
}

/// What the health endpoint shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub registered: bool,
    /// Has been registered at least once.
    pub was_registered: bool,
    /// No further connection will be tried.
    pub gave_up: bool,
    pub draining: bool,
    pub jobs: usize,
    pub reserved: usize,
    /// As reported to the server, 0..1.
    pub load: f32,
}
