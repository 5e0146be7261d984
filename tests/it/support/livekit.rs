//! A real livekit-server, one per test, on ports of its own.

use std::{
    fs::File,
    net::{TcpListener, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use livekit_api::{
    access_token::{AccessToken, VideoGrants},
    services::agent_dispatch::AgentDispatchClient,
};
use tempfile::TempDir;

use super::poll;

pub const KEY: &str = "devkey";
pub const SECRET: &str = "a-secret-of-at-least-32-characters";

/// A running server; ends when dropped.
pub struct LiveKit {
    process: Child,
    pub url: String,
    pub port: u16,
    /// Where media come to.
    pub udp_port: u16,
    log: PathBuf,
    _directory: TempDir,
}

impl LiveKit {
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// With these lines added to its configuration.
    pub async fn start_with(more: &str) -> Self {
        antiphon::net::install_crypto();
        let mut ended = 0;
        loop {
            let mut server = Self::spawn(more);
            if server.answers().await {
                return server;
            }
            // Somebody took one of its ports before it did.
            ended += 1;
            assert!(ended < 5, "livekit-server ends as soon as it starts: {}", server.log());
        }
    }

    fn spawn(more: &str) -> Self {
        let binary = std::env::var("ANTIPHON_TEST_LIVEKIT_SERVER").expect(
            "ANTIPHON_TEST_LIVEKIT_SERVER names no livekit-server: run `cargo xtask test`, \
             which installs one",
        );
        let (port, rtc_tcp, rtc_udp) = (free_tcp(), free_tcp(), free_udp());
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = directory.path().join("livekit.yaml");
        std::fs::write(
            &config,
            format!(
                "port: {port}\nbind_addresses: [127.0.0.1]\nlog_level: info\n\
                 rtc:\n  tcp_port: {rtc_tcp}\n  udp_port: {rtc_udp}\n  node_ip: 127.0.0.1\n  \
                 enable_loopback_candidate: true\n\
                 agents:\n  target_load: 2.0\n\
                 keys:\n  {KEY}: {SECRET}\n{more}"
            ),
        )
        .expect("the server's configuration");
        let path = directory.path().join("livekit.log");
        let log = File::create(&path).expect("a log file");
        let process = Command::new(binary)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("livekit-server starts");
        let url = format!("ws://127.0.0.1:{port}");
        Self { process, url, port, udp_port: rtc_udp, log: path, _directory: directory }
    }

    /// Waits until it answers, or has ended.
    async fn answers(&mut self) -> bool {
        let address = format!("{}/", self.http_url());
        let process = parking_lot::Mutex::new(&mut self.process);
        poll("livekit-server answering", || async {
            if process.lock().try_wait().is_ok_and(|ended| ended.is_some()) {
                return Some(false);
            }
            let answer = reqwest::get(&address).await.ok();
            answer.filter(|answer| answer.status().is_success()).map(|_| true)
        })
        .await
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn http_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn dispatches(&self) -> AgentDispatchClient {
        AgentDispatchClient::with_api_key(&self.http_url(), KEY, SECRET)
    }

    /// Sends an agent into a room, which is made if need be.
    pub async fn dispatch(&self, agent: &str, room: &str) -> String {
        let request = livekit_protocol::CreateAgentDispatchRequest {
            agent_name: agent.into(),
            room: room.into(),
            metadata: String::new(),
            ..Default::default()
        };
        self.dispatches().create_dispatch(request).await.expect("a dispatch").id
    }

    /// The job that the server made of a dispatch, if a worker has taken it.
    pub async fn job(&self, room: &str, dispatch: &str) -> Option<String> {
        let listed = self.dispatches().list_dispatch(room).await.ok()?;
        let dispatch = listed.into_iter().find(|listed| listed.id == dispatch)?;
        Some(dispatch.state?.jobs.first()?.id.clone())
    }

    /// What the server logged when the worker said that a job is over: its status and its error.
    /// No API tells: the state of a listed job stays that of its assignment.
    pub fn job_ended(&self, job: &str) -> Option<String> {
        let log = self.log();
        let mut lines = log.lines().filter(|line| line.contains("job ended"));
        lines.find(|line| line.contains(job)).map(str::to_owned)
    }

    pub fn token(room: &str, identity: &str) -> String {
        AccessToken::with_api_key(KEY, SECRET)
            .with_identity(identity)
            .with_name(identity)
            .with_grants(VideoGrants { room_join: true, room: room.into(), ..Default::default() })
            .to_jwt()
            .expect("a token")
    }
}

impl Drop for LiveKit {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn free_tcp() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

fn free_udp() -> u16 {
    UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}
