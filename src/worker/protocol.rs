//! The worker's side of LiveKit's agent worker protocol, as a pure machine.
//!
//! Source: the messages of `livekit_agent.proto` (crate `livekit-protocol`) and the answers of
//! livekit-server 1.13.5. One machine lives as long as the worker: links come and go under it, jobs
//! live on. It does no I/O and reads no clock; [`crate::worker::Worker`] drives it.

mod receipts;
mod types;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use livekit_protocol::{
    self as wire, JobStatus, JobType, ServerMessage, WorkerMessage, WorkerStatus,
    server_message::Message as FromServer, worker_message::Message as ToServer,
};

use self::receipts::Receipts;
use super::{
    dispatch::{self, Assignment, MissingField},
    job::{JobError, code},
    load,
};

pub use types::{Command, Config, Disconnect, Exit, Fault, Input, Notice, Snapshot, Timing};

/// Whatever the operator says; a deadline must be a time.
const LONGEST_DRAIN: Duration = Duration::from_hours(7 * 24);
/// How many ended jobs are remembered, to know a repeated message from one never asked for.
const REMEMBERED_JOBS: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Connect,
    Register,
    Reconnect,
    Status,
    Ping,
    Pong,
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

#[derive(Debug, Default)]
struct Running {
    /// Set once the job has been told to leave.
    abort_at: Option<Instant>,
    /// Its last status is out; it is leaving its room.
    told: bool,
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

    // The link.

    fn connect(&mut self, now: Instant) {
        self.link = Link::Connecting;
        self.tries = self.tries.saturating_add(1);
        self.set(Timer::Connect, now + self.config.timing.connect);
        self.command(Command::Connect);
    }

    #[allow(deprecated, reason = "`agent` still marks the permission on servers that know no kind")]
    fn on_connected(&mut self, now: Instant) {
        if self.link != Link::Connecting {
            return;
        }
        self.link = Link::Registering;
        self.timers.remove(&Timer::Connect);
        self.set(Timer::Register, now + self.config.timing.register);
        let register = wire::RegisterWorkerRequest {
            r#type: JobType::JtRoom.into(),
            agent_name: self.config.agent_name.clone(),
            version: self.config.version.clone(),
            ping_interval: u32::try_from(self.config.timing.ping.as_secs()).unwrap_or(u32::MAX),
            allowed_permissions: Some(wire::ParticipantPermission {
                can_publish: true,
                can_subscribe: true,
                can_publish_data: true,
                can_update_metadata: true,
                agent: true,
                ..Default::default()
            }),
            ..Default::default()
        };
        self.send(ToServer::Register(register));
    }

    fn on_registered(&mut self, response: wire::RegisterWorkerResponse, now: Instant) {
        if self.link != Link::Registering {
            return self.fault(Fault::RegisteredAgain);
        }
        self.link = Link::Registered;
        self.was_registered = true;
        self.tries = 0;
        self.status_seq = 0;
        self.timers.remove(&Timer::Register);
        self.set(Timer::Ping, now + self.config.timing.ping);
        self.command(Command::Log(Notice::Registered {
            worker_id: clipped(&response.worker_id),
            server_version: response
                .server_info
                .map(|info| clipped(&info.version))
                .unwrap_or_default(),
        }));
        // Before anything else, so that a draining worker is not offered a job.
        self.report_status(now);
        let going_on = self.jobs.iter().filter(|(_, job)| !job.told);
        let job_ids: Vec<String> = going_on.map(|(id, _)| id.clone()).collect();
        if !job_ids.is_empty() {
            self.send(ToServer::MigrateJob(wire::MigrateJobRequest { job_ids }));
        }
        for status in std::mem::take(&mut self.unsent) {
            self.send(ToServer::UpdateJob(status));
        }
    }

    /// The link is gone, whoever closed it.
    fn lose(&mut self, reason: Disconnect, now: Instant) {
        for timer in [Timer::Connect, Timer::Register, Timer::Status, Timer::Ping, Timer::Pong] {
            self.timers.remove(&timer);
        }
        // An assignment can only come over the link that the job was accepted on.
        self.reserved.clear();
        self.reported = None;
        self.ping = None;
        self.give_receipts_up();
        let hopeless = matches!(reason, Disconnect::Unauthorized { .. });
        if hopeless || self.tries >= self.config.timing.tries {
            self.link = Link::Down;
            let jobs = self.jobs.len();
            self.command(Command::Log(Notice::GaveUp { reason: reason.clone(), jobs }));
            self.gave_up = Some(Exit::GaveUp { reason, tries: self.tries });
            // The jobs have their own connections: they may end in peace.
            return self.drain(now);
        }
        self.link = Link::Waiting;
        let timing = &self.config.timing;
        let delay = timing.backoff.saturating_mul(self.tries.max(1)).min(timing.backoff_max);
        self.set(Timer::Reconnect, now + delay);
        self.command(Command::Log(Notice::Reconnecting { reason, tries: self.tries, delay }));
    }

    fn close_and_lose(&mut self, reason: Disconnect, now: Instant) {
        self.command(Command::Close);
        self.lose(reason, now);
    }

    fn on_timer(&mut self, timer: Timer, now: Instant) {
        match timer {
            Timer::Connect | Timer::Register | Timer::Pong => {
                self.close_and_lose(Disconnect::TimedOut, now);
            }
            Timer::Reconnect => self.connect(now),
            Timer::Status => self.report_status(now),
            Timer::Ping => self.send_ping(now),
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

    /// The server waits up to 10 s for the answer and tries no other worker before it has it.
    fn on_availability(&mut self, request: &wire::AvailabilityRequest, now: Instant) {
        let Ok(job_id) = dispatch::job_id(request.job.as_ref()) else {
            return self.fault(Fault::AvailabilityWithoutJob);
        };
        let job_id = job_id.to_owned();
        let has_room = request.job.as_ref().is_some_and(|job| dispatch::room_name(job).is_ok());
        let running = self.jobs.contains_key(&job_id);
        let accepted = self.reserved.contains_key(&job_id);
        if !has_room {
            self.fault(Fault::AvailabilityWithoutRoom);
        }
        if running || accepted {
            self.fault(Fault::AvailabilityRepeated);
        }
        if !has_room || running || !(accepted || self.can_take()) {
            return self.send(ToServer::Availability(wire::AvailabilityResponse {
                job_id,
                available: false,
                ..Default::default()
            }));
        }
        self.reserved.insert(job_id.clone(), now + self.config.timing.assignment);
        self.ended.retain(|ended| *ended != job_id);
        let name = &self.config.agent_name;
        let mut attributes = HashMap::from([("lk.agent.state".into(), "initializing".into())]);
        if !name.is_empty() {
            attributes.insert("lk.agent.name".into(), name.clone());
        }
        self.send(ToServer::Availability(wire::AvailabilityResponse {
            participant_identity: format!("agent-{job_id}"),
            participant_name: name.clone(),
            participant_attributes: attributes,
            available: true,
            job_id,
            ..Default::default()
        }));
    }

    fn on_assignment(&mut self, assignment: wire::JobAssignment) {
        let Ok(job_id) = dispatch::job_id(assignment.job.as_ref()) else {
            return self.fault(Fault::AssignmentWithoutJob);
        };
        let job_id = job_id.to_owned();
        if self.jobs.contains_key(&job_id) || self.ended.contains(&job_id) {
            return self.fault(Fault::AssignmentRepeated);
        }
        if self.reserved.remove(&job_id).is_none() {
            // The server counts the job as running here, so it is told that it does not.
            self.fault(Fault::AssignmentNotAskedFor);
            let message = "this worker has not accepted the job, or not in time";
            return self.finish(job_id, Err(JobError::new(code::NOT_ACCEPTED, message)));
        }
        match Assignment::try_from(assignment) {
            Ok(assignment) => {
                self.jobs.insert(job_id.clone(), Running::default());
                self.command(Command::StartJob(Box::new(assignment)));
                self.send(job_status(job_id, JobStatus::JsRunning, String::new()));
            }
            Err(missing) => self.refuse_incomplete(job_id, missing),
        }
    }

    fn refuse_incomplete(&mut self, job_id: String, missing: MissingField) {
        self.fault(Fault::AssignmentIncomplete);
        self.finish(job_id, Err(JobError::new(code::INVALID_ASSIGNMENT, missing.to_string())));
    }

    fn on_termination(&mut self, job_id: &str, now: Instant) {
        if self.jobs.contains_key(job_id) {
            self.terminate(job_id, now);
        } else if self.reserved.remove(job_id).is_none()
            // One that crosses the job's own end is nobody's fault.
            && !self.ended.iter().any(|ended| ended == job_id)
        {
            self.fault(Fault::TerminationOfUnknownJob);
        }
    }

    // Jobs.

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

    /// Tells the server how a job ended, now or when there is a link again.
    fn finish(&mut self, job_id: String, result: Result<(), JobError>) {
        let (status, error) = match result {
            Ok(()) => (JobStatus::JsSuccess, String::new()),
            Err(error) => (JobStatus::JsFailed, error.to_string()),
        };
        self.ended.push_back(job_id.clone());
        if self.ended.len() > REMEMBERED_JOBS {
            self.ended.pop_front();
        }
        let update = wire::UpdateJobStatus { job_id, status: status.into(), error };
        if self.link == Link::Registered {
            self.send(ToServer::UpdateJob(update));
        } else {
            self.unsent.push(update);
        }
    }

    fn terminate(&mut self, job_id: &str, now: Instant) {
        let abort_at = now + self.config.timing.terminate;
        if let Some(job) = self.jobs.get_mut(job_id)
            && job.abort_at.is_none()
        {
            job.abort_at = Some(abort_at);
            self.command(Command::TerminateJob { job_id: job_id.to_owned() });
        }
    }

    fn abort_overdue(&mut self, now: Instant) {
        let overdue = |job: &Running| job.abort_at.is_some_and(|at| at <= now);
        let ids: Vec<String> =
            self.jobs.iter().filter(|(_, job)| overdue(job)).map(|(id, _)| id.clone()).collect();
        for job_id in ids {
            let Some(job) = self.jobs.remove(&job_id) else { continue };
            self.command(Command::Log(Notice::JobAborted { job_id: job_id.clone() }));
            self.abort(job_id, &job, "the job did not leave in time");
        }
    }

    fn abort(&mut self, job_id: String, job: &Running, why: &str) {
        self.command(Command::AbortJob { job_id: job_id.clone() });
        if !job.told {
            self.finish(job_id, Err(JobError::new(code::ABORTED, why)));
        }
    }

    // The end.

    fn drain(&mut self, now: Instant) {
        if self.draining {
            return;
        }
        self.draining = true;
        self.set(Timer::Drain, now + self.config.drain_timeout.min(LONGEST_DRAIN));
        self.command(Command::DrainJobs);
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

    fn send_ping(&mut self, now: Instant) {
        let timestamp = now.saturating_duration_since(self.epoch).as_millis() as i64;
        self.ping = Some(timestamp);
        self.receipts.on_ping();
        self.timers.remove(&Timer::Ping);
        self.set(Timer::Pong, now + self.config.timing.pong);
        self.send(ToServer::Ping(wire::WorkerPing { timestamp }));
    }

    /// There is no link to get them over: nobody waits for it.
    fn give_receipts_up(&mut self) {
        let left = self.receipts.take();
        self.commands.extend(left.into_iter().map(|job_id| Command::JobRead { job_id }));
    }

    fn set(&mut self, timer: Timer, at: Instant) {
        self.timers.insert(timer, at);
    }

    fn command(&mut self, command: Command) {
        self.commands.push_back(command);
    }
}

fn job_status(job_id: String, status: JobStatus, error: String) -> ToServer {
    ToServer::UpdateJob(wire::UpdateJobStatus { job_id, status: status.into(), error })
}

/// A server's word for the log: its first 64 printable characters.
fn clipped(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests;
