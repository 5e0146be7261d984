//! Tools of MCP servers (Model Context Protocol, <https://modelcontextprotocol.io/specification>).
//!
//! One connection a server, shared by all sessions of an agent: MCP requests carry no conversation.
//! A keeper connects, lists the tools, and connects again with growing pauses whenever the server is
//! gone. What it last listed stays offered meanwhile, and a call then tells the model that the server
//! cannot be reached. The last clone of an [`McpServer`] takes the keeper and the server's process
//! with it.

mod link;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use rmcp::{
    Peer, RoleClient, ServiceError,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ResourceContents,
    },
};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};
use url::Url;

use self::link::Link;
use super::{Call, Tool, ToolError};
use crate::{
    clock,
    llm::model::ToolSpec,
    net::{self, backoff::Backoff},
};

/// Tools of one server that are offered.
const MAX_TOOLS: usize = 64;
/// Tools that a server may list.
const MAX_LISTED: usize = 256;
/// Longest name of a tool that every model takes.
const MAX_NAME: usize = 64;
/// Longest description of a tool, in bytes.
const MAX_DESCRIPTION: usize = 2_048;
/// Largest schema of a tool's arguments, in bytes of JSON.
const MAX_SCHEMA: usize = 16 << 10;
/// From the beginning of a connection until its tools are listed: servers are installed on the way.
const BEGIN: Duration = Duration::from_mins(1);
/// How long a call waits for a server that is just coming back.
const COMING: Duration = Duration::from_secs(2);
/// A connection that lived for so long has proved itself: the next pause is short again.
const PROVEN: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A server as the agent file declares it.
#[derive(Debug, Clone)]
pub struct McpConfig {
    /// Stands before names that another tool has too.
    pub name: String,
    pub reach: Reach,
    /// Its tools that are offered; empty: all.
    pub only: Vec<String>,
    /// Of one call.
    pub timeout: Duration,
    /// Tools whose calls go on when the user interrupts.
    pub outlive_interruption: Vec<String>,
}

/// Where a server is.
#[derive(Debug, Clone)]
pub enum Reach {
    /// A process of this machine, spoken with by its standard input and output.
    Process {
        command: String,
        args: Vec<String>,
        /// What the agent file sets.
        env: Vec<(String, SecretString)>,
        /// What it has of this process's environment; nothing else is handed on.
        inherited: Vec<(String, String)>,
    },
    /// Streamable HTTP.
    Http { url: Url, headers: Vec<(String, SecretString)> },
}

impl Reach {
    fn secrets(&self) -> impl Iterator<Item = &SecretString> {
        let (Self::Process { env: pairs, .. } | Self::Http { headers: pairs, .. }) = self;
        pairs.iter().map(|(_, value)| value)
    }
}

impl McpConfig {
    fn redact(&self, text: String) -> String {
        super::redact(text, self.reach.secrets())
    }
}

/// A server and its tools.
#[derive(Debug, Clone)]
pub struct McpServer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    line: Line,
    tools: Arc<Mutex<Arc<[Tool]>>>,
    _keeper: AbortOnDropHandle<()>,
}

/// The server while it is there: the number of its connection, and the way to it.
type Present = Option<(u64, Peer<RoleClient>)>;

/// What calls share with the keeper.
#[derive(Debug, Clone)]
struct Line {
    config: Arc<McpConfig>,
    present: watch::Receiver<Present>,
    /// The number of the connection that a call has last found broken.
    broken: watch::Sender<u64>,
}

impl McpServer {
    /// Begins to connect. Must be called inside a tokio runtime.
    pub fn start(config: McpConfig) -> Self {
        let tools = Arc::new(Mutex::new(Arc::default()));
        let (sender, present) = watch::channel(None);
        let line = Line { config: Arc::new(config), present, broken: watch::Sender::new(0) };
        let keeper = tokio::spawn(keep(line.clone(), sender, tools.clone()));
        Self(Arc::new(Inner { line, tools, _keeper: AbortOnDropHandle::new(keeper) }))
    }

    pub fn name(&self) -> &str {
        &self.0.line.config.name
    }

    /// What it has listed last.
    pub fn tools(&self) -> Arc<[Tool]> {
        self.0.tools.lock().clone()
    }
}

/// Keeps the server connected for as long as it is wanted.
async fn keep(line: Line, present: watch::Sender<Present>, tools: Arc<Mutex<Arc<[Tool]>>>) {
    let server = &line.config.name;
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, u32::MAX);
    for connection in 1_u64.. {
        let begun = tokio::time::timeout(BEGIN, begin(&line, connection)).await;
        let problem = match begun.unwrap_or_else(|_| Err("it was not ready in time".into())) {
            Ok((mut link, listed)) => {
                let since = clock::now();
                info!(server, tools = listed.len(), "an MCP server is connected");
                *tools.lock() = listed;
                present.send_replace(Some((connection, link.peer())));
                let problem = hold(&line, connection, &mut link, &tools).await;
                present.send_replace(None);
                if clock::now().saturating_duration_since(since) >= PROVEN {
                    backoff.reset();
                }
                link.close(problem).await
            }
            Err(problem) => problem,
        };
        let pause = backoff.next_delay(net::random_fraction()).unwrap_or(LONGEST_PAUSE);
        let (problem, pause_ms) = (line.config.redact(problem), pause.as_millis() as u64);
        warn!(server, problem, pause_ms, "an MCP server is not connected");
        tokio::time::sleep(pause).await;
    }
}

async fn begin(line: &Line, connection: u64) -> Result<(Link, Arc<[Tool]>), String> {
    let link = Link::open(&line.config, connection).await?;
    match link::list(link.peer(), MAX_LISTED).await {
        Ok(listed) => {
            let tools = offer(line, listed);
            Ok((link, tools))
        }
        Err(problem) => Err(link.close(problem).await),
    }
}

/// Until the connection is gone; tells how.
async fn hold(line: &Line, connection: u64, link: &mut Link, tools: &Mutex<Arc<[Tool]>>) -> String {
    let mut broken = line.broken.subscribe();
    loop {
        tokio::select! {
            news = link.news() => if let Err(problem) = news {
                return problem;
            },
            _ = broken.wait_for(|broken| *broken == connection) => {
                return "a call found the connection broken".into();
            }
        }
        match tokio::time::timeout(BEGIN, link::list(link.peer(), MAX_LISTED)).await {
            Ok(Ok(listed)) => *tools.lock() = offer(line, listed),
            Ok(Err(problem)) => return problem,
            Err(_) => return "it did not list its tools in time".into(),
        }
    }
}

/// The tools that fit.
fn offer(line: &Line, listed: Vec<rmcp::model::Tool>) -> Arc<[Tool]> {
    let config = &line.config;
    let mut tools: Vec<Tool> = Vec::new();
    for tool in listed {
        if !(config.only.is_empty() || config.only.iter().any(|name| *name == tool.name)) {
            continue;
        }
        let name = fit_name(&tool.name);
        let parameters = object_schema(Value::Object((*tool.input_schema).clone()));
        let is_known = tools.iter().any(|other| other.spec.name == name);
        if is_known || tools.len() == MAX_TOOLS || parameters.to_string().len() > MAX_SCHEMA {
            warn!(server = config.name, tool = name, "a tool of an MCP server is left out");
            continue;
        }
        let mut description = tool.description.unwrap_or_default().into_owned();
        description.truncate(description.floor_char_boundary(MAX_DESCRIPTION));
        tools.push(Tool {
            spec: ToolSpec { name, description, parameters },
            outlives_interruption: config.outlive_interruption.iter().any(|it| *it == tool.name),
            run: Arc::new(McpTool { line: line.clone(), name: tool.name.into_owned() }),
            timeout: config.timeout,
            waits_for_speech: false,
        });
    }
    for name in &config.only {
        if tools.iter().all(|tool| tool.spec.name != fit_name(name)) {
            warn!(server = config.name, tool = name, "an MCP server does not have this tool");
        }
    }
    tools.into()
}

/// A name that every model takes: letters, digits, `-` and `_`, the first no digit.
pub(super) fn fit_name(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let name = name.chars().map(|c| if fits(c) { c } else { '_' });
    let mut name: String = name.take(MAX_NAME).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        name.insert(0, '_');
        name.truncate(MAX_NAME);
    }
    name
}

/// Some models refuse a schema that leaves out what it is of.
fn object_schema(mut schema: Value) -> Value {
    if let Value::Object(fields) = &mut schema {
        fields.entry("type").or_insert_with(|| json!("object"));
        fields.entry("properties").or_insert_with(|| json!({}));
    }
    schema
}

/// One tool of a server.
#[derive(Debug)]
struct McpTool {
    line: Line,
    /// As the server has it.
    name: String,
}

#[async_trait::async_trait]
impl Call for McpTool {
    async fn call(&self, arguments: &Value) -> Result<String, ToolError> {
        let Line { config, present, broken } = &self.line;
        let gone = || ToolError::Failed("the server of this tool cannot be reached".into());
        let mut present = present.clone();
        let coming = tokio::time::timeout(COMING, present.wait_for(Option::is_some)).await;
        let present = coming.ok().and_then(Result::ok).and_then(|present| present.clone());
        let (connection, peer) = present.ok_or_else(gone)?;
        let mut params = CallToolRequestParams::new(self.name.clone());
        if let Value::Object(arguments) = arguments {
            params = params.with_arguments(arguments.clone());
        }
        // Dropped, it tells the server that the call is cancelled.
        match peer.call_tool_once(params).await {
            Ok(CallToolResponse::Complete(result)) => {
                let text = config.redact(text(&result));
                if result.is_error == Some(true) { Err(ToolError::Failed(text)) } else { Ok(text) }
            }
            Ok(_) => Err(ToolError::Failed("the tool asks for more than a call can give".into())),
            Err(ServiceError::McpError(error)) => {
                let message = net::http::shorten(&error.message);
                Err(ToolError::Failed(config.redact(message)))
            }
            Err(error) => {
                broken.send_replace(connection);
                let error = config.redact(net::http::shorten(&error.to_string()));
                warn!(server = config.name, error, "a call of an MCP server broke off");
                Err(ToolError::Failed("the server of this tool broke off".into()))
            }
        }
    }
}

/// What of a result a voice can say.
fn text(result: &CallToolResult) -> String {
    let parts = result.content.iter().map(|block| match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Resource(resource) => match &resource.resource {
            ResourceContents::TextResourceContents { text, .. } => text.clone(),
            _ => "(a file)".to_owned(),
        },
        ContentBlock::ResourceLink(link) => link.uri.clone(),
        ContentBlock::Image(_) => "(a picture)".to_owned(),
        ContentBlock::Audio(_) => "(a recording)".to_owned(),
        _ => "(something else)".to_owned(),
    });
    let text = parts.collect::<Vec<_>>().join("\n");
    match &result.structured_content {
        Some(value) if text.is_empty() => value.to_string(),
        _ => text,
    }
}
