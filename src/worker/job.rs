//! The jobs that run in this process: one task each.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::{
    sync::{mpsc, oneshot},
    task::{AbortHandle, Id, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::dispatch::Assignment;
use crate::clock;

/// Codes of failed jobs; they head the error that the server shows for the job.
pub mod code {
    /// The room was gone before the agent could join it.
    pub const ROOM_NOT_FOUND: &str = "ROOM_NOT_FOUND";
    /// The room could not be joined for another reason.
    pub const JOIN_FAILED: &str = "JOIN_FAILED";
    /// The assignment lacked something, or its metadata makes no sense.
    pub const INVALID_ASSIGNMENT: &str = "INVALID_ASSIGNMENT";
    /// The job was assigned without having been accepted, or too late.
    pub const NOT_ACCEPTED: &str = "NOT_ACCEPTED";
    /// The job's task panicked; other jobs go on.
    pub const PANICKED: &str = "PANICKED";
    /// The job's task was ended from outside.
    pub const ABORTED: &str = "ABORTED";
    /// The session broke.
    pub const SESSION_FAILED: &str = "SESSION_FAILED";
}

/// Why a job failed. Both parts are sent to the server and may be shown to users: no secret, no
/// transcript.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct JobError {
    /// One of [`code`], or another in the same style.
    pub code: &'static str,
    pub message: String,
}

impl JobError {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// What a job is told while it runs.
#[derive(Debug, Clone)]
pub struct JobContext {
    /// Leave now: the server terminated the job, or the time to drain is over. A job that has not
    /// ended 10 s later is aborted.
    pub shutdown: CancellationToken,
    /// The worker is draining: end when the conversation allows it. `shutdown` follows after the
    /// worker's drain time-out.
    pub drain: CancellationToken,
    job_id: String,
    over: mpsc::Sender<Over>,
}

impl JobContext {
    /// Tells the server how the job went while the agent is still in its room, and returns when
    /// that has been read. An agent that leaves first has failed, as livekit-server sees it. What
    /// [`JobRunner::run`] returns afterwards is not reported again.
    pub async fn over(&self, result: Result<(), JobError>) {
        let (unread, read) = oneshot::channel();
        let over = Over { job_id: self.job_id.clone(), result, _unread: unread };
        // A worker that is busy or gone must not keep the agent in the room.
        let _ = tokio::time::timeout(TELL, async {
            if self.over.send(over).await.is_ok() {
                let _ = read.await;
            }
        })
        .await;
    }
}

/// The longest a job waits until its last status has been read.
const TELL: Duration = Duration::from_secs(1);

/// A job whose conversation is over. Drop it when the server has read so.
#[derive(Debug)]
pub struct Over {
    pub job_id: String,
    pub result: Result<(), JobError>,
    _unread: oneshot::Sender<()>,
}

/// What a job does. Shared by all jobs of the worker.
#[async_trait]
pub trait JobRunner: Send + Sync + 'static {
    /// Returns when the job has ended: `Ok` is reported as SUCCESS, an error as FAILED, unless
    /// [`JobContext::over`] has told before. Runs on a
    /// task of its own; a panic fails this job alone.
    async fn run(&self, job: Assignment, context: JobContext) -> Result<(), JobError>;

    /// A job is being accepted; most of the time [`Self::run`] follows. Must return at once.
    fn prepare(&self) {}
}

struct Handle {
    started: Instant,
    shutdown: CancellationToken,
    abort: AbortHandle,
}

/// The running jobs. Dropping it aborts them all.
pub struct Jobs {
    runner: Arc<dyn JobRunner>,
    drain: CancellationToken,
    tasks: Tasks,
    ids: HashMap<Id, String>,
    handles: BTreeMap<String, Handle>,
    over: (mpsc::Sender<Over>, mpsc::Receiver<Over>),
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").field("running", &self.tasks.len()).finish_non_exhaustive()
    }
}

impl Jobs {
    pub fn new(runner: Arc<dyn JobRunner>) -> Self {
        Self {
            runner,
            drain: CancellationToken::new(),
            tasks: JoinSet::new(),
            ids: HashMap::new(),
            handles: BTreeMap::new(),
            over: mpsc::channel(64),
        }
    }

    /// A job is likely to start soon. Must be called inside a tokio runtime.
    pub fn prepare(&self) {
        self.runner.prepare();
    }

    /// Must be called inside a tokio runtime.
    pub fn start(&mut self, assignment: Assignment) {
        let job_id = assignment.job_id.clone();
        let span = tracing::info_span!("job", id = %job_id, room = %assignment.room);
        let shutdown = CancellationToken::new();
        let context = JobContext {
            shutdown: shutdown.clone(),
            drain: self.drain.clone(),
            job_id: job_id.clone(),
            over: self.over.0.clone(),
        };
        let runner = self.runner.clone();
        let run = async move { runner.run(assignment, context).await };
        let abort = self.tasks.spawn(run.instrument(span));
        self.ids.insert(abort.id(), job_id.clone());
        self.handles.insert(job_id, Handle { started: clock::now(), shutdown, abort });
    }

    /// Asks all jobs, those to come as well, to end gracefully.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Tells a job to leave now.
    pub fn terminate(&self, job_id: &str) {
        if let Some(job) = self.handles.get(job_id) {
            job.shutdown.cancel();
        }
    }

    /// Ends a job's task.
    pub fn abort(&self, job_id: &str) {
        if let Some(job) = self.handles.get(job_id) {
            job.abort.abort();
        }
    }

    /// The next news of a job; waits for ever while there is none. Cancel safe.
    pub async fn next(&mut self) -> News {
        tokio::select! {
            // What a job says before it ends comes before its end.
            biased;
            Some(over) = self.over.1.recv() => News::Over(over),
            ended = ended(&mut self.tasks) => {
                let (id, result) = ended;
                let job_id = self.ids.remove(&id).unwrap_or_default();
                let started = self.handles.remove(&job_id).map(|job| job.started);
                let ran = started.map(|at| clock::now().saturating_duration_since(at));
                News::Ended { job_id, result, ran: ran.unwrap_or_default() }
            }
        }
    }
}

/// What a job lets know.
#[derive(Debug)]
pub enum News {
    /// The last status; the task goes on.
    Over(Over),
    /// The task is over, and ran so long.
    Ended { job_id: String, result: Result<(), JobError>, ran: Duration },
}

type Tasks = JoinSet<Result<(), JobError>>;

async fn ended(tasks: &mut Tasks) -> (Id, Result<(), JobError>) {
    match tasks.join_next_with_id().await {
        Some(Ok((id, result))) => (id, result),
        // The panic's message goes to the log by the panic hook; it may hold anything, so it is not
        // passed on.
        Some(Err(error)) if error.is_panic() => {
            (error.id(), Err(JobError::new(code::PANICKED, "the job panicked")))
        }
        Some(Err(error)) => (error.id(), Err(JobError::new(code::ABORTED, "the job was aborted"))),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Runner;

    #[async_trait]
    impl JobRunner for Runner {
        async fn run(&self, job: Assignment, context: JobContext) -> Result<(), JobError> {
            match job.room.as_str() {
                "panics" => panic!("boom"),
                "fails" => Err(JobError::new(code::ROOM_NOT_FOUND, "the room is gone")),
                "polite" => {
                    context.over(Ok(())).await;
                    Err(JobError::new(code::SESSION_FAILED, "too late"))
                }
                "deaf" => std::future::pending().await,
                "patient" => {
                    context.drain.cancelled().await;
                    Ok(())
                }
                _ => {
                    context.shutdown.cancelled().await;
                    Ok(())
                }
            }
        }
    }

    fn job(job_id: &str, room: &str) -> Assignment {
        Assignment {
            job_id: job_id.into(),
            dispatch_id: String::new(),
            room: room.into(),
            room_sid: String::new(),
            room_metadata: String::new(),
            agent_name: String::new(),
            metadata: String::new(),
            attributes: HashMap::new(),
            participant: None,
            url: String::new(),
            token: "token".into(),
        }
    }

    async fn next_ended(jobs: &mut Jobs) -> (String, Result<(), JobError>, Duration) {
        match jobs.next().await {
            News::Ended { job_id, result, ran } => (job_id, result, ran),
            News::Over(over) => panic!("{over:?}"),
        }
    }

    fn code_of(result: Result<(), JobError>) -> &'static str {
        result.unwrap_err().code
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_fails_its_own_job_alone() {
        let mut jobs = Jobs::new(Arc::new(Runner));
        jobs.start(job("AJ_1", "waits"));
        jobs.start(job("AJ_2", "panics"));
        let (id, result, _) = next_ended(&mut jobs).await;
        assert_eq!((id.as_str(), code_of(result)), ("AJ_2", code::PANICKED));
        jobs.terminate("AJ_1");
        assert_eq!(next_ended(&mut jobs).await, ("AJ_1".to_owned(), Ok(()), Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_tells_how_it_went_before_it_ends() {
        let mut jobs = Jobs::new(Arc::new(Runner));
        jobs.start(job("AJ_1", "polite"));
        let News::Over(over) = jobs.next().await else { panic!("it ended first") };
        assert_eq!((over.job_id.as_str(), &over.result), ("AJ_1", &Ok(())));
        drop(over);
        let (id, _, ran) = next_ended(&mut jobs).await;
        assert_eq!((id.as_str(), ran), ("AJ_1", Duration::ZERO), "it waits for no more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_leaves_though_nobody_listens_to_how_it_went() {
        let mut jobs = Jobs::new(Arc::new(Runner));
        jobs.start(job("AJ_1", "polite"));
        let News::Over(_held) = jobs.next().await else { panic!("it ended first") };
        let (_, _, ran) = next_ended(&mut jobs).await;
        assert_eq!(ran, TELL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_hears_nothing_is_ended_by_abort() {
        let mut jobs = Jobs::new(Arc::new(Runner));
        jobs.start(job("AJ_1", "deaf"));
        jobs.terminate("AJ_1");
        jobs.abort("AJ_1");
        jobs.abort("AJ_9");
        let (id, result, _) = next_ended(&mut jobs).await;
        assert_eq!((id.as_str(), code_of(result)), ("AJ_1", code::ABORTED));
    }

    #[tokio::test(start_paused = true)]
    async fn draining_reaches_running_and_later_jobs() {
        let mut jobs = Jobs::new(Arc::new(Runner));
        jobs.start(job("AJ_1", "patient"));
        jobs.drain();
        assert_eq!(next_ended(&mut jobs).await, ("AJ_1".to_owned(), Ok(()), Duration::ZERO));
        jobs.start(job("AJ_2", "patient"));
        assert_eq!(next_ended(&mut jobs).await, ("AJ_2".to_owned(), Ok(()), Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_job_says_why() {
        let mut jobs = Jobs::new(Arc::new(Runner));
        jobs.start(job("AJ_1", "fails"));
        let (_, result, _) = next_ended(&mut jobs).await;
        assert_eq!(result.unwrap_err().to_string(), "ROOM_NOT_FOUND: the room is gone");
    }
}
