//! The worker's side of LiveKit's agent worker protocol, as a pure machine.
//!
//! Source: the messages of `livekit_agent.proto` (crate `livekit-protocol`) and the answers of
//! livekit-server 1.13.5. One machine lives as long as the worker: links come and go under it, jobs
//! live on. It does no I/O and reads no clock; [`crate::worker::Worker`] drives it.

mod jobs;
mod link;
mod receipts;
mod types;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use livekit_protocol::{
    self as wire, ServerMessage, WorkerMessage, WorkerStatus,
    server_message::Message as FromServer, worker_message::Message as ToServer,
};

use self::{jobs::Running, receipts::Receipts};
use super::load;

pub use types::{Command, Config, Disconnect, Exit, Fault, Input, Notice, Snapshot, Timing};

/// Whatever the operator says; a deadline must be a time.
const LONGEST_DRAIN: Duration = Duration::from_hours(7 * 24);
/// So long before a drain's time is over, or for its second half, calls that go on are brought to
/// their ends: the agents finish their sentences and say farewell.
const FAREWELL: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Connect,
    Register,
    Reconnect,
    Status,
    Ping,
    Pong,
    Farewell,
    Drain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Connecting,
    Registering,
    Registered,
    Waiting,
    /// Given up, or exited.
    Down,
}

/// The worker protocol's machine.
///
/// After every `handle_*`, drain [`Self::poll_command`] to `None`, then wait for
/// [`Self::poll_timeout`].
///
/// Invariants: jobs and reserved slots together never exceed `max_jobs`; a started job gets exactly
/// one final status, kept while there is no link; before the exit there is always a timer.
#[derive(Debug)]
pub struct Protocol {
    config: Config,
    /// When the machine was made; pings count from here.
    epoch: Instant,
    link: Link,
    /// Connection attempts since the last registration.
    tries: u32,
    was_registered: bool,
    timers: BTreeMap<Timer, Instant>,
    jobs: BTreeMap<String, Running>,
    /// Accepted jobs that are not assigned yet, and until when each is waited for.
    reserved: BTreeMap<String, Instant>,
    /// Ended and refused jobs, oldest first.
    ended: VecDeque<String>,
    /// Final statuses that found no link; at most one for each job that ran when it was lost.
    unsent: Vec<wire::UpdateJobStatus>,
    cpu: f32,
    draining: bool,
    drain_timed_out: bool,
    gave_up: Option<Exit>,
    exited: bool,
    /// Status and number of jobs as last reported on this link.
    reported: Option<(WorkerStatus, usize)>,
    status_seq: u64,
    /// The timestamp of the ping that waits for its pong.
    ping: Option<i64>,
    receipts: Receipts,
    faults: BTreeSet<Fault>,
    commands: VecDeque<Command>,
}

impl Protocol {
    /// Starts by asking for a connection.
    pub fn new(config: Config, now: Instant) -> Self {
        let mut machine = Self {
            config,
            epoch: now,
            link: Link::Waiting,
            tries: 0,
            was_registered: false,
            timers: BTreeMap::new(),
            jobs: BTreeMap::new(),
            reserved: BTreeMap::new(),
            ended: VecDeque::new(),
            unsent: Vec::new(),
            cpu: 0.0,
            draining: false,
            drain_timed_out: false,
            gave_up: None,
            exited: false,
            reported: None,
            status_seq: 0,
            ping: None,
            receipts: Receipts::default(),
            faults: BTreeSet::new(),
            commands: VecDeque::new(),
        };
        machine.connect(now);
        machine
    }

    pub fn handle_input(&mut self, input: Input, now: Instant) {
        if self.exited {
            return;
        }
        match input {
            Input::Connected => self.on_connected(now),
            Input::Message(message) => self.on_message(*message, now),
            Input::Undecodable => self.fault(Fault::Undecodable),
            Input::Disconnected(reason) => {
                if matches!(self.link, Link::Connecting | Link::Registering | Link::Registered) {
                    self.lose(reason, now);
                }
            }
            Input::JobOver { job_id, result } => {
                if let Some(job) = self.jobs.get_mut(&job_id)
                    && !std::mem::replace(&mut job.told, true)
                {
                    self.finish(job_id.clone(), result);
                    self.receipts.want(job_id);
                    if self.link != Link::Registered {
                        self.give_receipts_up();
                    } else if self.ping.is_none() {
                        self.send_ping(now);
                    }
                }
            }
            Input::JobEnded { job_id, result } => {
                if self.jobs.remove(&job_id).is_some_and(|job| !job.told) {
                    self.finish(job_id, result);
                }
            }
            Input::Load { cpu } => self.cpu = load::unit(cpu),
            Input::Drain => {
                self.command(Command::Log(Notice::Draining { jobs: self.jobs.len() }));
                self.drain(now);
            }
            Input::Kill => self.kill(),
        }
        self.settle(now);
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.exited {
            return;
        }
        let mut due: Vec<(Instant, Timer)> =
            self.timers.iter().filter(|(_, at)| **at <= now).map(|(t, at)| (*at, *t)).collect();
        due.sort_unstable();
        for (_, timer) in due {
            // One that was due may have been cancelled by the one before it.
            if self.timers.get(&timer).is_some_and(|at| *at <= now) {
                self.timers.remove(&timer);
                self.on_timer(timer, now);
            }
        }
        self.reserved.retain(|_, until| *until > now);
        self.abort_overdue(now);
        self.settle(now);
    }

    /// When to call [`Self::handle_timeout`]; `None` only after the exit.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let jobs = self.jobs.values().filter_map(|job| job.abort_at.as_ref());
        self.timers.values().chain(self.reserved.values()).chain(jobs).min().copied()
    }

    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            registered: self.link == Link::Registered,
            was_registered: self.was_registered,
            gave_up: self.gave_up.is_some() || self.exited,
            draining: self.draining,
            jobs: self.jobs.len(),
            reserved: self.reserved.len(),
            load: self.load(),
        }
    }

    fn on_timer(&mut self, timer: Timer, now: Instant) {
        match timer {
            Timer::Connect | Timer::Register | Timer::Pong => {
                self.close_and_lose(Disconnect::TimedOut, now);
            }
            Timer::Reconnect => self.connect(now),
            Timer::Status => self.report_status(now),
            Timer::Ping => self.send_ping(now),
            Timer::Farewell => self.command(Command::DrainJobs),
            Timer::Drain => {
                self.drain_timed_out = true;
                // Nothing may start from here on: what comes late is refused.
                self.reserved.clear();
                self.command(Command::Log(Notice::DrainTimedOut { jobs: self.jobs.len() }));
                let ids: Vec<String> = self.jobs.keys().cloned().collect();
                for id in ids {
                    self.terminate(&id, now);
                }
            }
        }
    }

    // Messages.

    fn on_message(&mut self, message: ServerMessage, now: Instant) {
        let Some(message) = message.message else {
            return self.fault(Fault::UnknownMessage);
        };
        match (message, self.link) {
            (FromServer::Register(response), _) => self.on_registered(response, now),
            (FromServer::GoAway(_), Link::Registering | Link::Registered) => {
                self.close_and_lose(Disconnect::GoAway, now);
            }
            (FromServer::Availability(request), Link::Registered) => {
                self.on_availability(&request, now);
            }
            (FromServer::Assignment(assignment), Link::Registered) => {
                self.on_assignment(assignment);
            }
            (FromServer::Termination(termination), Link::Registered) => {
                self.on_termination(&termination.job_id, now);
            }
            (FromServer::Pong(pong), Link::Registered) => {
                if self.ping.take_if(|sent| *sent == pong.last_timestamp).is_none() {
                    return self.fault(Fault::PongWithoutPing);
                }
                self.timers.remove(&Timer::Pong);
                self.set(Timer::Ping, now + self.config.timing.ping);
                let read = self.receipts.on_pong();
                self.commands.extend(read.into_iter().map(|job_id| Command::JobRead { job_id }));
                if self.receipts.are_wanted() {
                    self.send_ping(now);
                }
            }
            _ => self.fault(Fault::NotRegistered),
        }
    }

    fn can_take(&self) -> bool {
        let taken = self.jobs.len() + self.reserved.len();
        !self.draining
            && taken < self.config.max_jobs
            && self.load_with(self.reserved.len()) < self.config.load_threshold
    }

    fn load_with(&self, reserved: usize) -> f32 {
        match self.config.fixed_load {
            Some(load) => load::unit(load),
            None => load::combined(
                self.cpu,
                self.jobs.len(),
                reserved,
                self.config.max_jobs,
                self.config.load_threshold,
            ),
        }
    }

    /// As reported: what runs, not what was promised.
    fn load(&self) -> f32 {
        self.load_with(0)
    }

    // The end.

    fn drain(&mut self, now: Instant) {
        if self.draining {
            return;
        }
        self.draining = true;
        let timeout = self.config.drain_timeout.min(LONGEST_DRAIN);
        let goes_on = timeout.saturating_sub(FAREWELL).max(timeout / 2);
        self.set(Timer::Farewell, now + goes_on);
        self.set(Timer::Drain, now + timeout);
    }

    fn kill(&mut self) {
        while let Some((job_id, job)) = self.jobs.pop_first() {
            self.abort(job_id, &job, "the worker was told to exit at once");
        }
        self.exit(Exit::Killed);
    }

    fn exit(&mut self, how: Exit) {
        if matches!(self.link, Link::Connecting | Link::Registering | Link::Registered) {
            self.command(Command::Close);
        }
        self.link = Link::Down;
        self.timers.clear();
        self.reserved.clear();
        self.exited = true;
        self.command(Command::Exit(how));
    }

    /// After every step: what the server must know at once, and whether all is done.
    fn settle(&mut self, now: Instant) {
        if self.exited {
            return;
        }
        if self.draining && self.jobs.is_empty() && self.reserved.is_empty() {
            if let Some(how) = self.gave_up.take() {
                return self.exit(how);
            }
            if self.unsent.is_empty() || self.drain_timed_out {
                return self.exit(Exit::Drained);
            }
        }
        if self.link == Link::Registered && self.reported != Some(self.status()) {
            self.report_status(now);
        }
    }

    // Small things.

    fn status(&self) -> (WorkerStatus, usize) {
        let status = if self.can_take() { WorkerStatus::WsAvailable } else { WorkerStatus::WsFull };
        (status, self.jobs.len())
    }

    fn report_status(&mut self, now: Instant) {
        let (status, jobs) = self.status();
        self.reported = Some((status, jobs));
        self.set(Timer::Status, now + self.config.timing.status);
        self.status_seq += 1;
        self.send(ToServer::UpdateWorker(wire::UpdateWorkerStatus {
            status: Some(status.into()),
            load: self.load(),
            job_count: u32::try_from(jobs).unwrap_or(u32::MAX),
            draining: self.draining,
            seq: self.status_seq,
        }));
    }

    fn fault(&mut self, fault: Fault) {
        if self.faults.insert(fault) {
            self.command(Command::Log(Notice::Fault(fault)));
        }
    }

    fn send(&mut self, message: ToServer) {
        self.command(Command::Send(Box::new(WorkerMessage { message: Some(message) })));
    }

    fn set(&mut self, timer: Timer, at: Instant) {
        self.timers.insert(timer, at);
    }

    fn command(&mut self, command: Command) {
        self.commands.push_back(command);
    }
}

#[cfg(test)]
mod tests;
