use std::sync::atomic::{AtomicBool, Ordering};

use axum::{extract::Request, http::StatusCode, middleware, response::IntoResponse};
use rmcp::{
    ErrorData, RoleServer, ServerHandler, ServiceExt,
    model::{
        ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig,
        Tool as ServerTool,
    },
    service::RequestContext,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use tokio::sync::mpsc;

use super::*;
use crate::{
    llm::model::{ToolCall, ToolResult},
    tools::Toolbox,
};

const SECRET: &str = "Bearer hush-hush";

/// A real server, over HTTP or as a process.
#[derive(Debug, Clone)]
struct Shop {
    /// Of a call of `wait`: begun, then cancelled.
    news: mpsc::Sender<&'static str>,
}

impl ServerHandler for Shop {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let schema = json!({
            "type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"],
        });
        let Value::Object(schema) = schema else { unreachable!() };
        let tool = |name: &'static str, schema: &serde_json::Map<String, Value>| {
            ServerTool::new(name, "Does it", Arc::new(schema.clone()))
        };
        let none = serde_json::Map::new();
        Ok(ListToolsResult::with_all_items(vec![
            tool("stock.level", &schema),
            tool("who", &none),
            tool("wait", &none),
            tool("refuse", &none),
            tool("exit", &none),
        ]))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let text = match &*request.name {
            "stock.level" => format!("12 of {}", request.arguments.unwrap()["item"]),
            "who" => match context.extensions.get::<http::request::Parts>() {
                Some(parts) => format!("you sent {:?}", parts.headers["authorization"].to_str()),
                None => std::process::id().to_string(),
            },
            "wait" => {
                self.news.send("begun").await.unwrap();
                context.ct.cancelled().await;
                self.news.send("cancelled").await.unwrap();
                String::new()
            }
            "exit" => std::process::exit(3),
            _ => {
                let text = ContentBlock::text("the shop is closed");
                return Ok(CallToolResult::error(vec![text]).into());
            }
        };
        Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into())
    }
}

struct Double {
    url: Url,
    news: mpsc::Receiver<&'static str>,
    /// Every request fails.
    is_down: Arc<AtomicBool>,
}

async fn over_http() -> Double {
    let (sender, news) = mpsc::channel(8);
    let shop = Shop { news: sender };
    let service = StreamableHttpService::new(
        move || Ok(shop.clone()),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default(),
    );
    let is_down = Arc::new(AtomicBool::new(false));
    let down = is_down.clone();
    let guard = middleware::from_fn(move |request: Request, next: middleware::Next| {
        let down = down.load(Ordering::SeqCst);
        async move {
            if down { StatusCode::BAD_GATEWAY.into_response() } else { next.run(request).await }
        }
    });
    let app = axum::Router::new().nest_service("/mcp", service).layer(guard);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    Double { url: url.parse().unwrap(), news, is_down }
}

fn config(name: &str, reach: Reach) -> McpConfig {
    McpConfig {
        name: name.into(),
        reach,
        only: Vec::new(),
        timeout: Duration::from_secs(20),
        outlive_interruption: vec!["refuse".into()],
    }
}

fn http(double: &Double) -> Reach {
    let headers = vec![("authorization".to_owned(), SECRET.into())];
    Reach::Http { url: double.url.clone(), headers }
}

/// The name of [`serves_when_run_as_a_process`] and the variable that makes it serve.
const SERVING: [&str; 2] = ["tools::mcp::tests::serves_when_run_as_a_process", "SHOP_KEY"];

/// This test program as a server.
fn process() -> Reach {
    Reach::Process {
        command: std::env::current_exe().unwrap().to_string_lossy().into_owned(),
        args: ["--exact", SERVING[0], "--nocapture", "-q", "--test-threads=2"]
            .map(str::to_owned)
            .to_vec(),
        env: vec![(SERVING[1].to_owned(), "hush-hush".into())],
        inherited: Vec::new(),
    }
}

#[tokio::test]
async fn serves_when_run_as_a_process() {
    if std::env::var_os(SERVING[1]).is_none() {
        return;
    }
    // No key of this process gets to it.
    assert_eq!(std::env::vars_os().filter(|(name, _)| name != SERVING[1]).count(), 0);
    let shop = Shop { news: mpsc::channel(8).0 };
    let service = shop.serve((tokio::io::stdin(), tokio::io::stdout())).await.unwrap();
    let _ = service.waiting().await;
    std::process::exit(0);
}

/// Waits until the server is there, or is not.
async fn until(server: &McpServer, there: bool) {
    let mut present = server.0.line.present.clone();
    let waiting = present.wait_for(|present| present.is_some() == there);
    tokio::time::timeout(Duration::from_mins(1), waiting).await.unwrap().unwrap();
}

async fn run(toolbox: &Toolbox, name: &str, arguments: Value) -> ToolResult {
    let call = ToolCall {
        id: "1".into(),
        name: name.into(),
        arguments: arguments.to_string(),
        signature: None,
    };
    toolbox.offered().run(&call).await
}

fn toolbox(servers: &[&McpServer]) -> Toolbox {
    let servers: Vec<_> = servers.iter().map(|server| (*server).clone()).collect();
    Toolbox::default().with_servers(servers.into())
}

fn names(toolbox: &Toolbox) -> Vec<String> {
    toolbox.offered().specs().iter().map(|spec| spec.name.clone()).collect()
}

#[tokio::test]
async fn tools_of_a_server_are_offered_and_called_over_http() {
    let double = over_http().await;
    let server = McpServer::start(config("shop", http(&double)));
    until(&server, true).await;
    let tools = toolbox(&[&server]);
    assert_eq!(names(&tools), ["stock_level", "who", "wait", "refuse", "exit"]);
    let specs = tools.offered().specs();
    assert_eq!(specs[0].parameters["required"], json!(["item"]));
    assert_eq!(specs[1].parameters["type"], "object");
    let level = run(&tools, "stock_level", json!({"item": "bells"})).await;
    assert_eq!((level.text.as_str(), level.is_error), ("12 of \"bells\"", false));
    let wrong = run(&tools, "stock_level", json!({"item": 1})).await;
    assert!(wrong.is_error && wrong.text.contains("must be of type string"), "{wrong:?}");
    let refused = run(&tools, "refuse", json!({})).await;
    assert_eq!((refused.text.as_str(), refused.is_error), ("the shop is closed", true));
    // The header arrived, and what the server repeats of it does not come back.
    let who = run(&tools, "who", json!({})).await;
    assert!(who.text.contains("you sent Ok(\"***\")"), "{who:?}");
    assert!(!format!("{server:?}").contains("hush"));
}

#[tokio::test]
async fn a_call_that_is_dropped_is_cancelled_at_the_server() {
    let mut double = over_http().await;
    let server = McpServer::start(config("shop", http(&double)));
    until(&server, true).await;
    let tools = toolbox(&[&server]);
    tokio::select! {
        result = run(&tools, "wait", json!({})) => panic!("{result:?}"),
        news = double.news.recv() => assert_eq!(news, Some("begun")),
    }
    let news = tokio::time::timeout(Duration::from_secs(10), double.news.recv()).await;
    assert_eq!(news.unwrap(), Some("cancelled"));
}

#[tokio::test]
async fn a_server_that_fails_is_told_of_and_connected_again() {
    let double = over_http().await;
    let server = McpServer::start(config("shop", http(&double)));
    until(&server, true).await;
    let tools = toolbox(&[&server]);
    double.is_down.store(true, Ordering::SeqCst);
    let broken = run(&tools, "who", json!({})).await;
    assert!(broken.is_error && broken.text.contains("broke off"), "{broken:?}");
    until(&server, false).await;
    assert_eq!(names(&tools).len(), 5, "they stay offered");
    double.is_down.store(false, Ordering::SeqCst);
    until(&server, true).await;
    assert!(!run(&tools, "who", json!({})).await.is_error);
}

#[tokio::test]
async fn a_process_that_ends_is_started_again_and_goes_with_its_server() {
    let server = McpServer::start(config("shop", process()));
    until(&server, true).await;
    let tools = toolbox(&[&server]);
    let first = run(&tools, "who", json!({})).await;
    let ended = run(&tools, "exit", json!({})).await;
    assert!(ended.is_error && ended.text.contains("broke off"), "{ended:?}");
    until(&server, false).await;
    until(&server, true).await;
    let second = run(&tools, "who", json!({})).await;
    assert!(!second.is_error && first.text != second.text, "{first:?} {second:?}");
    let pid: i32 = second.text.parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    assert!(rustix::process::test_kill_process(pid).is_ok());
    drop((server, tools));
    let gone = async {
        while rustix::process::test_kill_process(pid).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_holds_up_nothing() {
    let nowhere = Reach::Process {
        command: "/nowhere/server".into(),
        args: Vec::new(),
        env: Vec::new(),
        inherited: Vec::new(),
    };
    let server = McpServer::start(config("shop", nowhere));
    assert!(names(&toolbox(&[&server])).is_empty());
}

#[tokio::test]
async fn names_that_two_have_are_told_apart() {
    let (one, other) = (over_http().await, over_http().await);
    let only = |name, double: &Double| McpConfig {
        only: vec!["who".into(), "wait".into()],
        ..config(name, http(double))
    };
    let one = McpServer::start(only("one", &one));
    let other = McpServer::start(McpConfig { only: vec!["who".into()], ..only("other", &other) });
    until(&one, true).await;
    until(&other, true).await;
    assert_eq!(names(&toolbox(&[&one, &other])), ["one_who", "wait", "other_who"]);
}

#[test]
fn names_fit_every_model() {
    for (name, fit) in
        [("a", "a"), ("stock.level", "stock_level"), ("3d", "_3d"), ("", "_"), ("größe", "gr__e")]
    {
        assert_eq!(fit_name(name), fit);
    }
    assert_eq!(fit_name(&"x".repeat(100)).len(), MAX_NAME);
    assert_eq!(fit_name(&"3".repeat(100)).len(), MAX_NAME);
}
