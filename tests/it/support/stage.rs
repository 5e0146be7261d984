//! Everything a call needs: server, provider doubles, control endpoint, state directory.

use antiphon::{
    cli::runtime::{self, AgentRuntime},
    config::{Config, Library},
    control::{self, Bound, ControlConfig},
    doubles::{self, Doubles, Script, log::What},
};
use antiphon::{
    room::join::RoomJob,
    transcript::reporter::{Reporter, ReporterConfig},
};
use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    antiphon::{Worker, WorkerOptions},
    caller::Caller,
    livekit::{KEY, LiveKit, SECRET},
    poll,
};

pub const TOKEN: &str = "a-service-token-for-tests";

pub struct Stage {
    pub livekit: LiveKit,
    pub doubles: Doubles,
    pub control: Bound,
    pub state: TempDir,
    stop: CancellationToken,
}

impl Stage {
    pub async fn set(script: Script) -> Self {
        Self::with(LiveKit::start().await, script).await
    }

    /// The server's webhooks go to the control endpoint.
    pub async fn with_webhooks(script: Script) -> Self {
        let port = super::livekit::free_tcp();
        let url = format!("http://127.0.0.1:{port}/api/webhooks/livekit");
        let webhooks = format!("webhook:\n  api_key: {KEY}\n  urls: [\"{url}\"]\n");
        Self::on_port(LiveKit::start_with(&webhooks).await, script, port).await
    }

    pub async fn with(livekit: LiveKit, script: Script) -> Self {
        Self::on_port(livekit, script, 0).await
    }

    async fn on_port(livekit: LiveKit, script: Script, port: u16) -> Self {
        let doubles = doubles::serve(script).await.expect("the provider doubles");
        let state = tempfile::tempdir().expect("a state directory");
        let stop = CancellationToken::new();
        let control = control::serve(
            ControlConfig {
                bind: std::net::Ipv4Addr::LOCALHOST.into(),
                port,
                token: SecretString::from(TOKEN),
                livekit: Some(control::LiveKitConfig {
                    url: livekit.url.clone(),
                    api_key: KEY.into(),
                    api_secret: SecretString::from(SECRET),
                }),
                database_url: format!("sqlite://{}", state.path().join("control.db").display()),
                agent_name: "test-agent".into(),
                metrics: None,
                settings: Config::from_vars([
                    ("ANTIPHON_STATE_DIR", state.path().to_str().expect("UTF-8")),
                    ("ANTIPHON_RATE_LIMIT", "0"),
                ])
                .expect("settings")
                .control,
            },
            stop.clone(),
        )
        .await
        .expect("the control endpoint");
        Self { livekit, doubles, control, state, stop }
    }

    pub fn control_url(&self) -> String {
        format!("http://{}", self.control.addr)
    }

    pub fn worker_options<'a>(&'a self, agent: &'a str) -> WorkerOptions<'a> {
        WorkerOptions {
            livekit: &self.livekit,
            agent,
            providers: self.doubles.base_url(),
            state_dir: self.state.path(),
            control: Some((self.control_url(), TOKEN)),
            more: vec![("ANTIPHON_GREETING", "Hello, how can I help you today?".into())],
        }
    }

    /// What a worker would make of a job in this room.
    pub async fn room_job(&self, room: &str) -> RoomJob {
        let agent = Library::built_in().load("lab").expect("the lab agent");
        let base_url = Url::parse(&self.doubles.base_url()).expect("a base URL");
        let endpoints = runtime::double_endpoints(&agent, &base_url);
        let reporter = Reporter::start(ReporterConfig {
            state_dir: self.state.path().join("in-process"),
            control_url: None,
            token: None,
            outbox_cap: 1 << 20,
        })
        .await
        .expect("an outbox");
        let runtime = AgentRuntime::new(agent, endpoints, reporter).expect("an agent");
        let session = runtime.session(room, "", "", "agent-x");
        RoomJob {
            url: String::new(),
            token: String::new(),
            config: session.config,
            providers: session.providers,
            reporter: session.reporter,
            recorder: None,
            participant: None,
            livekit: None,
        }
    }

    pub async fn worker(&self) -> Worker {
        Worker::start(&self.worker_options("lab")).await
    }

    pub async fn caller(&self, room: &str) -> Caller {
        Caller::join(&self.livekit.url, &LiveKit::token(room, "alice")).await
    }

    /// The bodies of the requests to the model.
    pub fn llm_requests(&self) -> Vec<String> {
        let entries = self.doubles.log().entries();
        entries
            .into_iter()
            .filter_map(|entry| match entry.what {
                What::Request { target, body } if target.ends_with("/chat/completions") => {
                    Some(body)
                }
                _ => None,
            })
            .collect()
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.request(reqwest::Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.request(reqwest::Method::POST, path, Some(body)).await
    }

    async fn request(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let client = reqwest::Client::new();
        let mut request =
            client.request(method, format!("{}{path}", self.control_url())).bearer_auth(TOKEN);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// The stored transcripts of a room once `enough` says so, in order.
    pub async fn transcripts(&self, room: &str, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        poll(&format!("the transcripts of {room}"), || async {
            let (_, sessions) = self.get("/api/sessions?status=all").await;
            let session = sessions["sessions"]
                .as_array()?
                .iter()
                .find(|session| session["room"] == room || session["livekitRoom"] == room)?["id"]
                .as_str()?
                .to_owned();
            let (_, page) =
                self.get(&format!("/api/sessions/{session}/transcripts?limit=200")).await;
            let rows = page["transcripts"].as_array()?.clone();
            enough(&rows).then_some(rows)
        })
        .await
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
