//! Virtual time: `now` is a number that the tests move.

use livekit_protocol::{
    AvailabilityRequest, Job, JobAssignment, JobStatus, JobTermination, JobType,
    RegisterWorkerResponse, Room, WorkerPong, agent_http,
};

use super::*;
use crate::worker::job::{JobError, code};

mod dispatch;
mod draining;
mod jobs;
mod link;
mod load;
mod orders;
mod receipts;
mod registration;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn config() -> Config {
    Config {
        agent_name: "assistant".into(),
        version: "1.2.3".into(),
        max_jobs: 4,
        load_threshold: 0.7,
        fixed_load: None,
        drain_timeout: ms(60_000),
        timing: Timing::default(),
    }
}

fn job(id: &str) -> Job {
    Job {
        id: id.into(),
        room: Some(Room { name: format!("room-{id}"), ..Default::default() }),
        ..Default::default()
    }
}

fn asked(id: &str) -> FromServer {
    FromServer::Availability(AvailabilityRequest { job: Some(job(id)), resuming: false })
}

fn assigned(id: &str) -> FromServer {
    FromServer::Assignment(JobAssignment { job: Some(job(id)), url: None, token: "token".into() })
}

fn terminated(id: &str) -> FromServer {
    FromServer::Termination(JobTermination { job_id: id.into() })
}

fn registered() -> FromServer {
    FromServer::Register(RegisterWorkerResponse { worker_id: "AW_1".into(), ..Default::default() })
}

fn lost() -> Input {
    Input::Disconnected(Disconnect::Lost("reset".into()))
}

/// A worker, and the server's end of it.
struct Worker {
    machine: Protocol,
    now: Instant,
    seen: Vec<Command>,
}

impl Worker {
    fn new(config: Config) -> Self {
        let now = crate::clock::now();
        let mut worker = Self { machine: Protocol::new(config, now), now, seen: Vec::new() };
        worker.drain_commands();
        worker
    }

    fn registered() -> Self {
        Self::registered_with(config())
    }

    fn registered_with(config: Config) -> Self {
        let mut worker = Self::new(config);
        worker.register();
        worker.seen.clear();
        worker
    }

    fn register(&mut self) {
        self.input(Input::Connected);
        self.server(registered());
    }

    fn input(&mut self, input: Input) -> &mut Self {
        self.machine.handle_input(input, self.now);
        self.drain_commands();
        self
    }

    fn server(&mut self, message: FromServer) -> &mut Self {
        self.input(Input::Message(Box::new(ServerMessage { message: Some(message) })))
    }

    fn start(&mut self, id: &str) -> &mut Self {
        self.server(asked(id)).server(assigned(id))
    }

    fn end(&mut self, id: &str, result: Result<(), JobError>) -> &mut Self {
        self.input(Input::JobEnded { job_id: id.into(), result })
    }

    fn drain_commands(&mut self) {
        while let Some(command) = self.machine.poll_command() {
            self.seen.push(command);
        }
    }

    /// Lets time pass, firing every timer on its way.
    fn pass(&mut self, time: Duration) -> &mut Self {
        let until = self.now + time;
        while let Some(at) = self.machine.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.machine.handle_timeout(self.now);
            self.drain_commands();
        }
        self.now = until;
        self
    }

    /// As `pass`, with a server that answers pings.
    fn pass_alive(&mut self, time: Duration) -> &mut Self {
        let until = self.now + time;
        while self.now < until {
            self.pass(ms(100));
            self.pong();
        }
        self
    }

    fn pong(&mut self) -> &mut Self {
        if let Some(last_timestamp) = self.machine.ping {
            self.server(FromServer::Pong(WorkerPong { last_timestamp, timestamp: 0 }));
        }
        self
    }

    fn take(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.seen)
    }

    fn sent(&self) -> Vec<&ToServer> {
        self.seen
            .iter()
            .filter_map(|command| match command {
                Command::Send(message) => message.message.as_ref(),
                _ => None,
            })
            .collect()
    }

    fn count(&self, wanted: &Command) -> usize {
        self.seen.iter().filter(|command| *command == wanted).count()
    }

    fn answers(&self) -> Vec<(String, bool)> {
        self.sent()
            .iter()
            .filter_map(|message| match message {
                ToServer::Availability(answer) => Some((answer.job_id.clone(), answer.available)),
                _ => None,
            })
            .collect()
    }

    fn statuses(&self) -> Vec<wire::UpdateWorkerStatus> {
        self.sent()
            .iter()
            .filter_map(|message| match message {
                ToServer::UpdateWorker(status) => Some(*status),
                _ => None,
            })
            .collect()
    }

    /// (job, status, error) as sent.
    fn job_statuses(&self) -> Vec<(String, JobStatus, String)> {
        self.sent()
            .iter()
            .filter_map(|message| match message {
                ToServer::UpdateJob(update) => {
                    Some((update.job_id.clone(), update.status(), update.error.clone()))
                }
                _ => None,
            })
            .collect()
    }

    fn finals(&self, id: &str) -> Vec<JobStatus> {
        self.job_statuses()
            .into_iter()
            .filter(|(job, status, _)| job == id && *status != JobStatus::JsRunning)
            .map(|(_, status, _)| status)
            .collect()
    }

    fn started(&self) -> Vec<&str> {
        self.seen
            .iter()
            .filter_map(|command| match command {
                Command::StartJob(job) => Some(job.job_id.as_str()),
                _ => None,
            })
            .collect()
    }

    fn faults(&self) -> Vec<Fault> {
        self.seen
            .iter()
            .filter_map(|command| match command {
                Command::Log(Notice::Fault(fault)) => Some(*fault),
                _ => None,
            })
            .collect()
    }

    fn exit(&self) -> Option<&Exit> {
        self.seen.iter().find_map(|command| match command {
            Command::Exit(how) => Some(how),
            _ => None,
        })
    }

    fn connects(&self) -> usize {
        self.count(&Command::Connect)
    }
}
