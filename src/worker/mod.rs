//! The worker: registers with a LiveKit server and runs the jobs it is given.
//!
//! [`protocol`] decides, purely; this file carries out: it owns the link, the jobs' tasks, the
//! clock and the load, and feeds what they tell back into the machine.

pub mod connection;
pub mod dispatch;
pub mod drain;
pub mod http;
pub mod job;
pub mod load;
pub mod protocol;
pub mod threads;

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use livekit_protocol::{WorkerMessage, worker_message::Message as ToServer};
use metrics::{counter, gauge, histogram};
use secrecy::SecretString;
use tokio::{sync::watch, task::JoinHandle, time::MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;

use self::{
    connection::{Endpoint, EndpointError, Link},
    drain::Signals,
    http::{BindError, Health},
    job::{JobError, JobRunner, Jobs, News, Over},
    load::CpuAverage,
    protocol::{Command, Config, Disconnect, Exit, Input, Notice, Protocol, Timing},
};
use crate::{clock, telemetry::metrics as names};

/// Longest wait, at the exit, for the last messages to be sent.
const GOODBYE: Duration = Duration::from_millis(1_500);

/// What a worker needs to know; validated by whoever makes it, except for URL and keys.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// `ws`, `wss`, `http` or `https`.
    pub livekit_url: String,
    pub api_key: String,
    pub api_secret: SecretString,
    /// Non-empty: only explicit dispatch reaches this worker.
    pub agent_name: String,
    /// At least 1 makes sense.
    pub max_jobs: usize,
    /// Load, 0..1, from which on no job is taken; livekit-server itself offers none from 0.7 on.
    pub load_threshold: f32,
    /// Reported instead of the measured load.
    pub fixed_load: Option<f32>,
    /// How long running jobs may go on once draining.
    pub drain_timeout: Duration,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    pub http: Option<SocketAddr>,
    pub timing: Timing,
}

impl WorkerConfig {
    /// The usual settings: automatic dispatch, any number of jobs that the CPU bears (at most 100),
    /// threshold 0.7, a drain of 10 min, no HTTP.
    pub fn new(livekit_url: String, api_key: String, api_secret: SecretString) -> Self {
        Self {
            livekit_url,
            api_key,
            api_secret,
            agent_name: String::new(),
            max_jobs: 100,
            load_threshold: 0.7,
            fixed_load: None,
            drain_timeout: Duration::from_mins(10),
            http: None,
            timing: Timing::default(),
        }
    }
}

/// Why a worker could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(
        "{url} refused the API key or secret (HTTP {status}): check LIVEKIT_API_KEY and \
         LIVEKIT_API_SECRET"
    )]
    Unauthorized { url: String, status: u16 },
    #[error("gave up on {url} after {tries} attempts: {reason}")]
    Unreachable { url: String, tries: u32, reason: Disconnect },
    #[error("ended at once, as asked; running jobs were aborted")]
    Killed,
}

/// A worker that has not started yet.
pub struct Worker {
    config: WorkerConfig,
    runner: Arc<dyn JobRunner>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Worker {
    pub fn new(config: WorkerConfig, runner: Arc<dyn JobRunner>) -> Self {
        Self { config, runner }
    }

    /// Runs until drained (`Ok`), killed, or given up.
    pub async fn run(self, signals: Signals) -> Result<(), WorkerError> {
        let config = self.config;
        let endpoint = Endpoint::new(&config.livekit_url, &config.api_key, &config.api_secret)?;
        let listener = match config.http {
            Some(address) => Some(http::bind(address).await?),
            None => None,
        };
        let url = endpoint.agent_url().to_owned();
        let protocol = Protocol::new(
            Config {
                agent_name: config.agent_name,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                max_jobs: config.max_jobs,
                load_threshold: config.load_threshold,
                fixed_load: config.fixed_load,
                drain_timeout: config.drain_timeout,
                timing: config.timing,
            },
            clock::now(),
        );
        let (health, watched) = watch::channel(Health::of(&protocol.snapshot()));
        let _http = listener
            .map(|listener| AbortOnDropHandle::new(tokio::spawn(http::serve(listener, watched))));
        let driver = Driver {
            protocol,
            endpoint,
            livekit_url: config.livekit_url.trim().to_owned(),
            link: None,
            closing: None,
            jobs: Jobs::new(self.runner),
            over: Vec::new(),
            health,
        };
        match driver.run(signals).await {
            Exit::Drained => Ok(()),
            Exit::Killed => Err(WorkerError::Killed),
            Exit::GaveUp { reason: Disconnect::Unauthorized { status }, .. } => {
                Err(WorkerError::Unauthorized { url, status })
            }
            Exit::GaveUp { reason, tries } => Err(WorkerError::Unreachable { url, tries, reason }),
        }
    }
}

struct Driver {
    protocol: Protocol,
    endpoint: Endpoint,
    livekit_url: String,
    link: Option<Link>,
    /// The last link that was closed, which may still be sending.
    closing: Option<JoinHandle<()>>,
    jobs: Jobs,
    /// Jobs that wait until the server has read how they went.
    over: Vec<Over>,
    health: watch::Sender<Health>,
}

impl Driver {
    async fn run(mut self, signals: Signals) -> Exit {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut cpu = CpuAverage::new(cores);
        let mut sample = tokio::time::interval(load::SAMPLE_INTERVAL);
        sample.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut upkeep = tokio::time::interval(names::UPKEEP_INTERVAL);
        upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut draining, mut killed) = (false, false);
        loop {
            if let Some(how) = self.carry_out() {
                if let Some(closing) = self.closing.take() {
                    // Whatever has not been sent by then, the server never reads.
                    let _ = tokio::time::timeout(GOODBYE, closing).await;
                }
                return how;
            }
            self.publish();
            let deadline = self.protocol.poll_timeout();
            // A peer that floods the socket must not hold up the end, timers, jobs or the load, so
            // the socket comes last.
            tokio::select! {
                biased;
                () = signals.kill.cancelled(), if !killed => {
                    killed = true;
                    self.protocol.handle_input(Input::Kill, clock::now());
                }
                () = signals.drain.cancelled(), if !draining => {
                    draining = true;
                    self.protocol.handle_input(Input::Drain, clock::now());
                }
                () = clock::at(deadline) => self.protocol.handle_timeout(clock::now()),
                news = self.jobs.next() => match news {
                    News::Over(told) => {
                        let (job_id, result) = (told.job_id.clone(), told.result.clone());
                        self.over.push(told);
                        let over = Input::JobOver { job_id, result };
                        self.protocol.handle_input(over, clock::now());
                    }
                    News::Ended { job_id, result, ran } => {
                        record_end(&job_id, &result, ran);
                        self.over.retain(|one| one.job_id != job_id);
                        let ended = Input::JobEnded { job_id, result };
                        self.protocol.handle_input(ended, clock::now());
                    }
                },
                _ = sample.tick() => {
                    let now = clock::now();
                    let used = load::process_cpu_time().unwrap_or_default();
                    self.protocol.handle_input(Input::Load { cpu: cpu.sample(used, now) }, now);
                }
                _ = upkeep.tick() => names::upkeep(),
                input = heard(self.link.as_mut()) => {
                    if matches!(input, Input::Disconnected(_)) {
                        self.close();
                    }
                    self.protocol.handle_input(input, clock::now());
                }
            }
        }
    }

    /// Does all that the machine wants; `Some` when it wants to exit.
    fn carry_out(&mut self) -> Option<Exit> {
        while let Some(command) = self.protocol.poll_command() {
            match command {
                Command::Connect => self.link = Some(Link::open(self.endpoint.clone())),
                Command::Send(message) => {
                    if accepts(&message) {
                        self.jobs.prepare();
                    }
                    if let Some(Err(reason)) = self.link.as_ref().map(|link| link.send(*message)) {
                        self.close();
                        self.protocol.handle_input(Input::Disconnected(reason), clock::now());
                    }
                }
                Command::StartJob(mut assignment) => {
                    tracing::info!(job = %assignment.job_id, room = %assignment.room, "job starts");
                    if assignment.url.is_empty() {
                        assignment.url.clone_from(&self.livekit_url);
                    }
                    self.jobs.start(*assignment);
                }
                Command::JobRead { job_id } => self.over.retain(|one| one.job_id != job_id),
                Command::DrainJobs => self.jobs.drain(),
                Command::TerminateJob { job_id } => self.jobs.terminate(&job_id),
                Command::AbortJob { job_id } => self.jobs.abort(&job_id),
                Command::Close => self.close(),
                Command::Log(notice) => log(&notice, &self.endpoint),
                Command::Exit(how) => return Some(how),
            }
        }
        None
    }

    fn close(&mut self) {
        if let Some(link) = self.link.take() {
            self.closing = Some(link.close());
        }
    }

    fn publish(&self) {
        let snapshot = self.protocol.snapshot();
        gauge!(names::WORKER_REGISTERED).set(if snapshot.registered { 1.0 } else { 0.0 });
        gauge!(names::WORKER_LOAD).set(snapshot.load);
        gauge!(names::JOBS_ACTIVE).set(snapshot.jobs as f64);
        let health = Health::of(&snapshot);
        self.health.send_if_modified(|told| {
            let changed = *told != health;
            *told = health;
            changed
        });
    }
}

async fn heard(link: Option<&mut Link>) -> Input {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

/// Whether a job that was offered is taken.
fn accepts(message: &WorkerMessage) -> bool {
    matches!(&message.message, Some(ToServer::Availability(answer)) if answer.available)
}

fn record_end(job_id: &str, result: &Result<(), JobError>, ran: Duration) {
    let status = if result.is_ok() { "success" } else { "failed" };
    counter!(names::JOBS_TOTAL, "status" => status).increment(1);
    histogram!(names::JOB_SECONDS).record(ran.as_secs_f64());
    let seconds = ran.as_secs();
    match result {
        Ok(()) => tracing::info!(job = %job_id, seconds, "job ended"),
        Err(error) => tracing::error!(job = %job_id, seconds, %error, "job failed"),
    }
}

fn log(notice: &Notice, endpoint: &Endpoint) {
    let url = endpoint.agent_url();
    match notice {
        Notice::Registered { worker_id, server_version } => {
            tracing::info!(url, worker = %worker_id, server = %server_version, "registered worker");
        }
        Notice::Reconnecting { reason, tries, delay } => {
            counter!(names::WORKER_CONNECTIONS_LOST_TOTAL).increment(1);
            let retry_in_ms = delay.as_millis() as u64;
            tracing::warn!(url, %reason, attempts = tries, retry_in_ms, "no connection");
        }
        Notice::GaveUp { reason, jobs } => {
            counter!(names::WORKER_CONNECTIONS_LOST_TOTAL).increment(1);
            tracing::error!(url, %reason, jobs, "gave up on the server");
        }
        Notice::Draining { jobs } => {
            let note = "draining: no more jobs are taken; a second signal ends the calls at once";
            tracing::info!(jobs, "{note}");
        }
        Notice::DrainTimedOut { jobs } => {
            tracing::warn!(jobs, "drain timed out: the remaining jobs are told to leave");
        }
        Notice::JobAborted { job_id } => {
            tracing::error!(job = %job_id, "job did not leave in time and is aborted");
        }
        Notice::Fault(fault) => {
            tracing::warn!(%fault, "ignored a server message; others like it are not logged");
        }
    }
}

#[cfg(test)]
mod tests;
