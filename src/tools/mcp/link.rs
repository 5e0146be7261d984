//! One connection to an MCP server: over HTTP, or to a process of its own.

use std::{collections::HashMap, pin::Pin, process::Stdio, sync::Arc, time::Duration};

use futures_util::{
    FutureExt,
    future::{Fuse, FusedFuture},
};
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use rmcp::{
    ClientHandler, ClientLifecycleMode, ClientServiceExt, Peer, RoleClient, ServiceError,
    model::{
        ClientCapabilities, ClientConfig, Implementation, PaginatedRequestParams, ProtocolVersion,
        Tool,
    },
    service::{NotificationContext, RunningService, RunningServiceCancellationToken},
    transport::{
        StreamableHttpClientTransport, async_rw::AsyncRwTransport,
        streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::Notify,
};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::{McpConfig, Reach};
use crate::net;

/// Largest message of a server, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// Pages of one list of tools.
const MAX_PAGES: usize = 16;
/// What is kept of the end of a process's error output, in bytes.
const MAX_LAST_WORDS: usize = 1_024;
/// How long a process may take to end once nobody speaks with it.
const LEAVE: Duration = Duration::from_secs(1);

/// A connection whose handshake is done. Dropping it ends it, and the process with all of its group.
pub(super) struct Link {
    peer: Peer<RoleClient>,
    changed: Arc<Notify>,
    /// Owns the connection; is over when that is.
    running: Fuse<Pin<Box<dyn Future<Output = String> + Send>>>,
    stop: RunningServiceCancellationToken,
    process: Option<Process>,
}

impl Link {
    /// Connects. Servers of all versions are spoken with: every second `attempt` begins the old way,
    /// for those that cannot bear to be asked for the new one.
    ///
    /// # Errors
    /// Why not; may hold secrets.
    pub async fn open(config: &McpConfig, attempt: u64) -> Result<Self, String> {
        let lifecycle = if attempt % 2 == 1 {
            ClientLifecycleMode::Auto {
                preferred_versions: vec![ProtocolVersion::V_2026_07_28],
                legacy_version: None,
            }
        } else {
            ClientLifecycleMode::Initialize
        };
        let ears = Ears::default();
        match &config.reach {
            Reach::Http { url, headers } => {
                let transport = http(url, headers)?;
                let service = ears.serve_with_lifecycle(transport, lifecycle).await;
                Ok(Self::new(service.map_err(|error| error.to_string())?, None))
            }
            Reach::Process { command, args, env, inherited } => {
                let mut child = Command::new(command);
                child.args(args).env_clear();
                child.envs(inherited.iter().map(|(name, value)| (name, value)));
                child.envs(env.iter().map(|(name, value)| (name, value.expose_secret())));
                let (process, transport) = Process::spawn(&mut child)?;
                match ears.serve_with_lifecycle(transport, lifecycle).await {
                    Ok(service) => Ok(Self::new(service, Some(process))),
                    Err(error) => Err(process.leave(error.to_string()).await),
                }
            }
        }
    }

    fn new(service: RunningService<RoleClient, Ears>, process: Option<Process>) -> Self {
        Self {
            peer: service.peer().clone(),
            changed: service.service().changed.clone(),
            stop: service.cancellation_token(),
            running: (Box::pin(async move {
                match service.waiting().await {
                    Ok(_) => "the connection has ended".into(),
                    Err(error) => error.to_string(),
                }
            }) as Pin<Box<dyn Future<Output = String> + Send>>)
                .fuse(),
            process,
        }
    }

    pub fn peer(&self) -> Peer<RoleClient> {
        self.peer.clone()
    }

    /// Waits until the server has other tools, or until the connection ends: then tells why.
    pub async fn news(&mut self) -> Result<(), String> {
        tokio::select! {
            biased;
            problem = &mut self.running => Err(problem),
            () = self.changed.notified() => Ok(()),
        }
    }

    /// Ends the connection; `problem`, and what its process said last.
    pub async fn close(self, problem: String) -> String {
        let Self { running, stop, process, .. } = self;
        if !running.is_terminated() {
            stop.cancel();
            let _ = tokio::time::timeout(LEAVE, running).await;
        }
        match process {
            Some(process) => process.leave(problem).await,
            None => problem,
        }
    }
}

/// All tools of a server, at most `most`.
pub(super) async fn list(peer: Peer<RoleClient>, most: usize) -> Result<Vec<Tool>, String> {
    let (mut tools, mut cursor) = (Vec::new(), None);
    for _ in 0..MAX_PAGES {
        let page = PaginatedRequestParams::default().with_cursor(cursor);
        let listed = match peer.list_tools(Some(page)).await {
            Ok(listed) => listed,
            // A server without tools need not know of them.
            Err(ServiceError::McpError(_)) if tools.is_empty() => return Ok(tools),
            Err(error) => return Err(error.to_string()),
        };
        tools.extend(listed.tools);
        cursor = listed.next_cursor;
        if cursor.is_none() || tools.len() >= most {
            break;
        }
    }
    tools.truncate(most);
    Ok(tools)
}

/// Who we are, and what servers may tell unasked.
#[derive(Debug, Default)]
struct Ears {
    changed: Arc<Notify>,
}

impl ClientHandler for Ears {
    fn get_info(&self) -> ClientConfig {
        let who = Implementation::new("antiphon", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), who)
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changed.notify_one();
    }
}

fn http(
    url: &Url,
    headers: &[(String, SecretString)],
) -> Result<StreamableHttpClientTransport<reqwest::Client>, String> {
    let mut all = HashMap::new();
    for (name, value) in headers {
        let wrong = || format!("the header `{name}` cannot be sent");
        let mut value = HeaderValue::from_str(value.expose_secret()).map_err(|_| wrong())?;
        value.set_sensitive(true);
        all.insert(HeaderName::try_from(name).map_err(|_| wrong())?, value);
    }
    let config = StreamableHttpClientTransportConfig::with_uri(url.as_str())
        .custom_headers(all)
        .max_sse_event_size(MAX_MESSAGE);
    // Redirects are not followed: the headers go where the agent file says.
    let client = net::http::client(Duration::from_secs(5))?;
    Ok(StreamableHttpClientTransport::with_client(client, config))
}

/// A server's process, at the head of a group of its own: wrappers such as `npx` start others.
#[derive(Debug)]
struct Process {
    child: Child,
    group: Option<Pid>,
    /// The end of its error output.
    last_words: Arc<Mutex<Vec<u8>>>,
    _listening: Option<AbortOnDropHandle<()>>,
}

type Pipes = AsyncRwTransport<RoleClient, ChildStdout, ChildStdin>;

impl Process {
    fn spawn(command: &mut Command) -> Result<(Self, Pipes), String> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("it cannot start: {error}"))?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let pipes = child.stdout.take().zip(child.stdin.take());
        let last_words = Arc::default();
        let listening = child.stderr.take().map(|errors| {
            AbortOnDropHandle::new(tokio::spawn(listen(errors, Arc::clone(&last_words))))
        });
        let process = Self { child, group, last_words, _listening: listening };
        let (out, into) = pipes.ok_or("it has no pipes")?;
        Ok((process, Pipes::new(out, into).with_max_line_length(MAX_MESSAGE)))
    }

    /// Waits a little for the end of a process that nobody speaks with any more; what is left of
    /// its group is ended. `problem`, how it ended, and what it said last.
    async fn leave(mut self, problem: String) -> String {
        let ended = match tokio::time::timeout(LEAVE, self.child.wait()).await {
            Ok(Ok(status)) => format!("{problem}; {status}"),
            _ => problem,
        };
        self.kill();
        let words = self.last_words.lock().clone();
        match String::from_utf8_lossy(&words).trim() {
            "" => ended,
            words => format!("{ended}; it said: {words}"),
        }
    }

    fn kill(&self) {
        if let Some(group) = self.group {
            // It has gone by itself most of the time.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Once waited for, the number may soon be another's.
        if self.child.id().is_some() {
            self.kill();
        }
    }
}

/// Keeps the end of what a process writes.
async fn listen(mut errors: ChildStderr, last_words: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; MAX_LAST_WORDS];
    while let Ok(read @ 1..) = errors.read(&mut buffer).await {
        let mut words = last_words.lock();
        words.extend_from_slice(&buffer[..read]);
        let surplus = words.len().saturating_sub(MAX_LAST_WORDS);
        words.drain(..surplus);
    }
}
