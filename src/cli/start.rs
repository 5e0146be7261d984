//! `antiphon start`: register with the LiveKit server and take jobs.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use secrecy::ExposeSecret;
use tracing::{Instrument, error, info};

use crate::{
    cli::{
        Exit, fail, memory,
        runtime::{AgentRuntime, NewSession},
    },
    config::{Config, Setup, env::LiveKitAccess},
    recording::{
        self,
        recorder::{self, RecorderConfig},
        storage::Storage,
    },
    room::{
        join::{self, RoomJob},
        warm_up::warm_up,
    },
    transcript::reporter::{Reporter, ReporterConfig},
    worker::{
        Worker, WorkerConfig, WorkerError,
        dispatch::Assignment,
        drain::{self, Signals},
        job::{JobContext, JobError, JobRunner, code},
        threads::Threads,
    },
};

/// How long finals may take to reach the control endpoint when the worker ends; what is left stays
/// on disk for the next start.
const FLUSH: std::time::Duration = std::time::Duration::from_secs(3);

/// What the outbox may hold before it refuses, in bytes: some million segments.
const OUTBOX_CAP: u64 = 512 * 1024 * 1024;

/// Runs jobs as sessions of one agent.
#[derive(Debug)]
struct AgentJobs {
    runtime: AgentRuntime,
    threads: Arc<Threads>,
}

#[async_trait]
impl JobRunner for AgentJobs {
    async fn run(&self, job: Assignment, context: JobContext) -> Result<(), JobError> {
        let session = Box::pin(hold(self.runtime.clone(), job, context).in_current_span());
        match self.threads.run(session).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(JobError::new(code::ABORTED, error.to_string())),
            },
        }
    }

    /// While the server chooses a worker and the room is joined, the providers are reached.
    fn prepare(&self) {
        let assembly = self.runtime.assembly.clone();
        self.threads.announce().spawn(async move { assembly.prewarm().await });
    }
}

/// A session from its room's beginning to its end.
async fn hold(runtime: AgentRuntime, job: Assignment, context: JobContext) -> Result<(), JobError> {
    let identity = format!("agent-{}", job.job_id);
    let NewSession { config, providers, reporter, recorder } =
        runtime.session(&job.room, &job.room_sid, &job.room_metadata, &identity);
    let job = RoomJob {
        url: job.url,
        token: job.token.expose_secret().to_owned(),
        config,
        providers,
        reporter,
        recorder,
        participant: job.participant.map(|participant| participant.identity),
        livekit: runtime.livekit,
    };
    let ended = join::run(job, context.drain.clone(), context.shutdown.clone()).await;
    let result = match &ended.outcome {
        Ok(reason) => {
            info!(reason = reason.as_str(), "session ended");
            Ok(())
        }
        Err(failure) => {
            error!(error = %failure, code = failure.code(), "session failed");
            Err(JobError::new(failure.code(), failure.to_string()))
        }
    };
    context.over(result.clone()).await;
    let _ = ended.leave().await;
    result
}

pub async fn run(setup: Setup) -> Exit {
    let reporter = match reporter(&setup.config).await {
        Ok(reporter) => reporter,
        Err(exit) => return exit,
    };
    serve(setup, reporter).await
}

/// The process's reporter, with what an earlier process left on disk.
pub async fn reporter(config: &Config) -> Result<Reporter, Exit> {
    Reporter::start(ReporterConfig {
        state_dir: config.state_dir.clone(),
        control_url: config.control_url.clone(),
        token: config.control_token.clone(),
        outbox_cap: OUTBOX_CAP,
    })
    .await
    .map_err(|error| {
        fail(&format!(
            "the outbox in {} cannot be used: {error}; set ANTIPHON_STATE_DIR to a folder that \
             can be written",
            config.state_dir.display()
        ));
        Exit::Usage
    })
}

/// The process's recorder, if it is to record; what an earlier process left is saved.
async fn recorder(config: &Config, reporter: &Reporter) -> Result<Option<RecorderConfig>, Exit> {
    let settings = &config.control;
    if !settings.record {
        return Ok(None);
    }
    let key = settings.recording_key.as_ref().and_then(recording::parse_key);
    let upload = match &settings.s3 {
        Some(s3) => Some(Storage::s3(s3, key.clone()).map_err(|error| {
            fail(&format!("the storage of recordings cannot be used: {error}"));
            Exit::Usage
        })?),
        None => None,
    };
    let recorder = RecorderConfig { directory: settings.recordings_dir.clone(), upload, key };
    match recorder::recover(&recorder, reporter).await {
        Ok(0) => {}
        Ok(saved) => info!(saved, "recordings of a former worker are saved"),
        Err(error) => {
            fail(&format!(
                "the folder of recordings {} cannot be used: {error}",
                recorder.directory.display()
            ));
            return Err(Exit::Usage);
        }
    }
    Ok(Some(recorder))
}

/// Serves jobs until drained.
pub async fn serve(setup: Setup, reporter: Reporter) -> Exit {
    let Setup { config, livekit, agent, providers, colleagues, prices, .. } = setup;
    let (Some(livekit), Some(agent), Some(providers)) = (livekit, agent, providers) else {
        return Exit::Usage;
    };
    let recorder = match recorder(&config, &reporter).await {
        Ok(recorder) => recorder,
        Err(exit) => return exit,
    };
    let (runtime, scribe) = match AgentRuntime::new(agent, providers, reporter.clone())
        .and_then(|runtime| runtime.with_colleagues(colleagues))
    {
        Ok(runtime) => {
            let runtime = runtime.priced(prices).with_phrases(&config).recorded(&config);
            let runtime = runtime.with_turn_model(&config.state_dir);
            let livekit = Some(Arc::new(livekit.clone()));
            AgentRuntime { recorder, livekit, ..runtime }.keeping_late(&config.state_dir).await
        }
        Err(problem) => {
            fail(&problem);
            return Exit::Usage;
        }
    };
    let Some(signals) = signals() else { return Exit::Usage };
    let threads = match Threads::start() {
        Ok(threads) => Arc::new(threads),
        Err(error) => {
            fail(&format!("the threads for sessions cannot be started: {error}"));
            return Exit::Usage;
        }
    };
    // While the worker registers; no call waits for either.
    tokio::task::spawn_blocking(|| {
        if let Err(error) = memory::read_code() {
            tracing::debug!(%error, "the program's code is read as it is run");
        }
    });
    threads.any().spawn(warm_up());
    let late = runtime.late.clone();
    let worker = Worker::new(
        worker_config(&config, livekit),
        Arc::new(AgentJobs { runtime, threads: threads.clone() }),
    );
    let outcome = worker.run(signals).await;
    if let Some(late) = late {
        late.flush(FLUSH).await;
    }
    drop(scribe);
    reporter.flush(FLUSH).await;
    // What sessions have left to do goes on until here.
    drop(threads);
    match outcome {
        Ok(()) => Exit::Done,
        Err(error) => {
            fail(&error);
            match error {
                WorkerError::Killed => Exit::Interrupted,
                WorkerError::Bind(_) | WorkerError::Endpoint(_) => Exit::Usage,
                _ => Exit::Server,
            }
        }
    }
}

fn worker_config(config: &Config, livekit: LiveKitAccess) -> WorkerConfig {
    let url = livekit.ws_url();
    let mut worker = WorkerConfig::new(url, livekit.api_key, livekit.api_secret);
    worker.agent_name.clone_from(&config.agent_name);
    worker.max_jobs = config.max_jobs;
    worker.fixed_load = config.load;
    worker.drain_timeout = config.drain_timeout;
    worker.http = Some(SocketAddr::new(config.bind, config.http_port));
    worker
}

/// The process's signals: the first drains, the second ends at once.
pub fn signals() -> Option<Signals> {
    drain::on_process_signals()
        .map_err(|error| fail(&format!("signals cannot be handled: {error}")))
        .ok()
}
