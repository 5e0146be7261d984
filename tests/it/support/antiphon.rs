//! antiphon itself, as a process.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::{Child, Command};

use super::{
    livekit::{KEY, LiveKit, SECRET, free_tcp},
    poll, within,
};

/// A running worker process; killed when dropped.
pub struct Worker {
    pub process: Child,
    pub http: u16,
    log: PathBuf,
}

/// A running control endpoint as a process of its own; killed when dropped.
pub struct Control {
    pub process: Child,
}

impl Control {
    /// Starts `antiphon control`, without a LiveKit server that answers, and waits until it is
    /// ready.
    pub async fn start(port: u16, state_dir: &Path) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(state_dir.join("control.log"))
            .expect("a log file");
        let process = Command::new(env!("CARGO_BIN_EXE_antiphon"))
            .arg("control")
            .env_clear()
            .env("LIVEKIT_URL", "ws://127.0.0.1:9")
            .env("LIVEKIT_API_KEY", KEY)
            .env("LIVEKIT_API_SECRET", SECRET)
            .env("ANTIPHON_CONTROL_PORT", port.to_string())
            .env("ANTIPHON_CONTROL_TOKEN", super::stage::TOKEN)
            .env("ANTIPHON_STATE_DIR", state_dir)
            .env("ANTIPHON_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("antiphon starts");
        let ready = format!("http://127.0.0.1:{port}/readyz");
        poll("the control endpoint", || async {
            reqwest::get(&ready).await.ok().filter(|answer| answer.status().is_success())
        })
        .await;
        Self { process }
    }
}

/// What a worker is started with.
#[derive(Clone)]
pub struct WorkerOptions<'a> {
    pub livekit: &'a LiveKit,
    pub agent: &'a str,
    pub providers: String,
    pub state_dir: &'a Path,
    pub control: Option<(String, &'a str)>,
    pub more: Vec<(&'a str, String)>,
}

impl Worker {
    /// Starts `antiphon start` and waits until it is registered.
    pub async fn start(options: &WorkerOptions<'_>) -> Self {
        let worker = Self::spawn(options);
        worker.registered().await;
        worker
    }

    pub fn spawn(options: &WorkerOptions<'_>) -> Self {
        let http = free_tcp();
        let log = options.state_dir.join(format!("worker-{http}.log"));
        let output = File::create(&log).expect("a log file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_antiphon"));
        command
            .args(["start", "--agent", options.agent])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("RUST_BACKTRACE", "1")
            .env("LIVEKIT_URL", &options.livekit.url)
            .env("LIVEKIT_API_KEY", KEY)
            .env("LIVEKIT_API_SECRET", SECRET)
            .env("ANTIPHON_AGENT_NAME", "test-agent")
            .env("ANTIPHON_HTTP_PORT", http.to_string())
            .env("ANTIPHON_LOAD", "0")
            .env("ANTIPHON_STATE_DIR", options.state_dir);
        for provider in ["DEEPGRAM", "OPENAI", "ELEVENLABS"] {
            command.env(format!("{provider}_API_KEY"), format!("{provider}-key-for-tests"));
            command.env(format!("{provider}_BASE_URL"), &options.providers);
        }
        if let Some((url, token)) = &options.control {
            command.env("ANTIPHON_CONTROL_URL", url).env("ANTIPHON_CONTROL_TOKEN", token);
        }
        command.envs(options.more.iter().map(|(key, value)| (*key, value)));
        let process = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a log file"))
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .expect("antiphon starts");
        Self { process, http, log }
    }

    pub async fn registered(&self) {
        let health = format!("http://127.0.0.1:{}/healthz", self.http);
        poll(&format!("registration ({})", self.log.display()), || async {
            let health = reqwest::get(&health).await.ok()?.text().await.ok()?;
            health.contains("\"registered\":true").then_some(())
        })
        .await;
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.process.id().expect("a running worker").to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.expect("kill").success());
    }

    pub async fn exited(&mut self) -> Option<i32> {
        within("the worker's exit", self.process.wait()).await.expect("an exit status").code()
    }
}
