//! The driver against the double, over loopback.

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    doubles::{
        Context,
        faults::Faulty,
        llm::LlmScript,
        log::{Entry, Log, What},
        openai as double,
    },
    llm::{
        LlmError, LlmEvent, Message, Role,
        model::{Ask, Model, Patience, Piece},
    },
    net::{http::EndpointError, url::BaseUrlError},
};

const BOUND: Duration = Duration::from_secs(10);
const KEY: &str = "sk-test-99f1";

struct Line {
    llm: Arc<OpenAi>,
    log: Log,
    /// Ends the double's connections when dropped.
    _stop: tokio_util::sync::DropGuard,
}

impl Line {
    async fn open(script: LlmScript) -> Self {
        Self::open_with(script, |_| {}).await
    }

    async fn open_with(script: LlmScript, change: impl FnOnce(&mut OpenAiConfig)) -> Self {
        let context = Context::default();
        let router = axum::Router::new().nest("/v1", double::router(script, &context));
        let (base, log) = (serve(router).await, context.log.clone());
        let mut config = OpenAiConfig::new(KEY.into(), "gpt-4o-mini");
        config.base_url = base;
        change(&mut config);
        let llm = Arc::new(OpenAi::new(config).unwrap());
        Self { llm, log, _stop: context.stop.drop_guard() }
    }

    fn ask(&self, said: &[&str]) -> Answer {
        ask(self.llm.clone(), said)
    }

    async fn logged(&self, count: usize, is: impl Fn(&What) -> bool) {
        let is = |entry: &Entry| is(&entry.what);
        timeout(BOUND, self.log.wait_for_count(count, is)).await.unwrap();
    }

    fn requests(&self) -> usize {
        let is_chat = |entry: &Entry| {
            matches!(&entry.what,
            What::Request { target, .. } if target.ends_with("/completions"))
        };
        self.log.entries().iter().filter(|entry| is_chat(entry)).count()
    }
}

async fn serve(router: axum::Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    base
}

/// A generation under way.
struct Answer {
    events: mpsc::Receiver<LlmEvent>,
    cancel: CancellationToken,
}

fn ask(llm: Arc<OpenAi>, said: &[&str]) -> Answer {
    let mut messages = vec![Message { role: Role::System, text: "Be brief.".into() }];
    messages.extend(said.iter().map(|text| Message { role: Role::User, text: (*text).to_owned() }));
    let (sender, events) = mpsc::channel(4);
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    tokio::spawn(async move {
        let (piece_sender, mut pieces) = mpsc::channel(4);
        let forward = async {
            while let Some(piece) = pieces.recv().await {
                let event = match piece {
                    Piece::Text(text) => LlmEvent::Text(text),
                    Piece::Usage(usage) => LlmEvent::Usage {
                        link: 0,
                        estimated: false,
                        input_tokens: usage.input,
                        cached_tokens: usage.cached,
                        output_tokens: usage.output,
                    },
                    Piece::Call(call) => panic!("{call:?}"),
                };
                sender.send(event).await.unwrap();
            }
        };
        let ask = Ask::new(&messages);
        let streaming = llm.stream(&ask, Patience::OWN, piece_sender);
        tokio::select! {
            () = token.cancelled() => {}
            (result, ()) = async { tokio::join!(streaming, forward) } => {
                let last = result.map_or_else(LlmEvent::Error, |()| LlmEvent::End);
                sender.send(last).await.unwrap();
            }
        }
    });
    Answer { events, cancel }
}

impl Answer {
    async fn event(&mut self) -> Option<LlmEvent> {
        timeout(BOUND, self.events.recv()).await.unwrap()
    }

    /// All the text, and what else came.
    async fn all(mut self) -> (String, Vec<LlmEvent>) {
        let (mut text, mut rest) = (String::new(), Vec::new());
        while let Some(event) = self.event().await {
            match event {
                LlmEvent::Text(piece) => text.push_str(&piece),
                other => rest.push(other),
            }
        }
        (text, rest)
    }

    async fn error(self) -> LlmError {
        match self.all().await.1.pop() {
            Some(LlmEvent::Error(error)) => error,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn tokens_stream_and_the_usage_comes_before_the_end() {
    let line = Line::open(LlmScript::new().answer("Sure. I can help.")).await;
    let mut answer = line.ask(&["Hi"]);
    assert_eq!(answer.event().await, Some(LlmEvent::Text("Sure.".into())));
    let (text, rest) = answer.all().await;
    assert_eq!(text, " I can help.");
    assert!(
        matches!(rest[..], [LlmEvent::Usage { output_tokens: 4, .. }, LlmEvent::End]),
        "{rest:?}"
    );
}

#[tokio::test]
async fn the_whole_conversation_is_sent() {
    let line = Line::open(LlmScript::new()).await;
    let (text, _) = line.ask(&["Hello.", "Book a table."]).all().await;
    assert_eq!(text, "All right. That was turn 2, and you said: Book a table. What next?");
}

#[tokio::test]
async fn null_choices_are_tolerated() {
    let line = Line::open(LlmScript::new().answer("Yes.").null_choices()).await;
    let (text, rest) = line.ask(&["Hi"]).all().await;
    assert_eq!(text, "Yes.");
    assert!(matches!(rest[..], [LlmEvent::Usage { .. }, LlmEvent::End]), "{rest:?}");
}

#[tokio::test]
async fn a_server_error_is_tried_again_and_not_heard_of() {
    let script = LlmScript::new().refuse(500).refuse_for(429, 0).refuse(503).answer("Yes.");
    let line = Line::open(script).await;
    let (text, rest) = line.ask(&["Hi"]).all().await;
    assert_eq!((text.as_str(), rest.last()), ("Yes.", Some(&LlmEvent::End)));
    assert_eq!(line.requests(), 4);
}

#[tokio::test]
async fn retries_end_with_their_budget() {
    let script = LlmScript::new().refuse_always(500);
    let budget = Duration::from_millis(500);
    let line = Line::open_with(script, |config| config.timing.retry_budget = budget).await;
    assert!(matches!(line.ask(&["Hi"]).error().await, LlmError::Unreachable(_)));
    assert!((2..=4).contains(&line.requests()), "{}", line.requests());
}

#[tokio::test]
async fn a_wait_that_the_server_asks_for_is_not_cut_short() {
    let line = Line::open(LlmScript::new().refuse_for(429, 60)).await;
    let error = line.ask(&["Hi"]).error().await;
    assert!(matches!(&error, LlmError::Unreachable(reason) if reason.starts_with("HTTP 429")));
    assert_eq!(line.requests(), 1);
}

#[tokio::test]
async fn wrong_credentials_and_wrong_requests_are_not_tried_again() {
    let line = Line::open(LlmScript::new().refuse(401).refuse(404)).await;
    assert_eq!(line.ask(&["Hi"]).error().await, LlmError::Unauthorized { status: 401 });
    let error = line.ask(&["Hi"]).error().await;
    assert!(matches!(error, LlmError::Rejected { status: 404, .. }));
    assert_eq!(line.requests(), 2);
}

#[tokio::test]
async fn no_key_is_sent_when_there_is_none() {
    let line = Line::open_with(LlmScript::new(), |config| config.api_key = "".into()).await;
    assert_eq!(line.ask(&["Hi"]).error().await, LlmError::Unauthorized { status: 401 });
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let mut config = OpenAiConfig::new(KEY.into(), "m");
    config.base_url = "http://127.0.0.1:1/v1".into();
    config.timing.retry_budget = Duration::from_millis(300);
    let error = ask(Arc::new(OpenAi::new(config).unwrap()), &["Hi"]).error().await;
    assert!(
        matches!(&error, LlmError::Unreachable(reason) if reason.starts_with("no connection")),
        "{error}"
    );
}

#[tokio::test]
async fn a_drop_in_mid_stream_is_told() {
    // A reset takes with it what has not been read yet: there must be time to read it.
    let script = LlmScript::new().answer("One two three").token(Duration::from_millis(400));
    let line = Line::open(script.disconnect_after(2)).await;
    let (text, rest) = line.ask(&["Hi"]).all().await;
    assert_eq!(text, "One two");
    assert!(matches!(rest[..], [LlmEvent::Error(LlmError::Interrupted(_))]), "{rest:?}");
    assert_eq!(line.requests(), 1);
}

#[tokio::test]
async fn a_drop_before_the_first_token_is_not_heard_of() {
    let script = LlmScript::new().answer("One.").answer("Two.").disconnect_after(0);
    let line = Line::open(script).await;
    let (text, rest) = line.ask(&["Hi"]).all().await;
    assert_eq!((text.as_str(), rest.last()), ("Two.", Some(&LlmEvent::End)));
}

#[tokio::test]
async fn an_error_within_the_stream_is_told() {
    let line = Line::open(LlmScript::new().answer("One two three").fail_after(1)).await;
    let (text, rest) = line.ask(&["Hi"]).all().await;
    assert_eq!(text, "One");
    let overloaded = LlmError::Interrupted("The server is overloaded.".into());
    assert_eq!(rest, [LlmEvent::Error(overloaded)]);
}

#[tokio::test]
async fn a_malformed_chunk_is_passed_over() {
    let line = Line::open(LlmScript::new().answer("One two three").malformed_after(2)).await;
    let (text, rest) = line.ask(&["Hi"]).all().await;
    assert_eq!((text.as_str(), rest.last()), ("One two three", Some(&LlmEvent::End)));
}

#[tokio::test]
async fn a_stall_in_mid_stream_is_told() {
    let script = LlmScript::new().answer("One two three").stall_after(2);
    let limit = Duration::from_millis(200);
    let line = Line::open_with(script, |config| config.timing.stall = limit).await;
    let stalled = LlmError::Interrupted("nothing came for 200 ms".into());
    assert_eq!(line.ask(&["Hi"]).error().await, stalled);
    line.logged(1, |what| *what == What::Closed).await;
}

#[tokio::test]
async fn a_first_token_that_never_comes_is_a_time_out() {
    let script = LlmScript::new().stall_after(0);
    let limit = Duration::from_millis(200);
    let line = Line::open_with(script, |config| config.timing.first_token = limit).await;
    assert_eq!(line.ask(&["Hi"]).error().await, LlmError::Timeout(200));
}

#[tokio::test]
async fn a_dropped_generation_closes_its_connection_at_once() {
    let line = Line::open(LlmScript::new().answer("One two three").stall_after(2)).await;
    let mut answer = line.ask(&["Hi"]);
    assert_eq!(answer.event().await, Some(LlmEvent::Text("One".into())));
    answer.cancel.cancel();
    // The double has stalled: only the client can have closed.
    line.logged(1, |what| *what == What::Closed).await;
    let rest: Vec<_> = answer.all().await.1;
    assert!(rest.is_empty(), "{rest:?}");
}

#[tokio::test]
async fn a_turn_goes_over_the_connection_that_was_opened_ahead_and_so_does_the_next() {
    let connections = Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new()));
    let seen = connections.clone();
    let context = Context::default();
    let router = axum::Router::new().nest("/v1", double::router(LlmScript::new(), &context)).layer(
        axum::middleware::from_fn(
            move |axum::extract::ConnectInfo(peer): axum::extract::ConnectInfo<
                std::net::SocketAddr,
            >,
                  request: axum::extract::Request,
                  next: axum::middleware::Next| {
                seen.lock().unwrap().insert(peer);
                next.run(request)
            },
        ),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = OpenAiConfig::new(KEY.into(), "m");
    config.base_url = format!("http://{}/v1/", listener.local_addr().unwrap());
    let service = router.into_make_service_with_connect_info::<std::net::SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    let llm = Arc::new(OpenAi::new(config).unwrap());
    timeout(BOUND, llm.prewarm()).await.unwrap();
    for turn in 1..=3 {
        let (text, rest) = ask(llm.clone(), &["Hi"]).all().await;
        assert_eq!(rest.last(), Some(&LlmEvent::End), "{text}");
        // The end of the stream is read in the background, after the answer's own end.
        let closed = |entry: &Entry| entry.what == What::Closed;
        timeout(BOUND, context.log.wait_for_count(turn, closed)).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(connections.lock().unwrap().len(), 2, "one and a spare");
}

#[tokio::test]
async fn a_key_that_a_server_repeats_does_not_come_through() {
    let complain = axum::routing::post(|headers: http::HeaderMap| async move {
        let key = headers["authorization"].to_str().unwrap().to_owned();
        (http::StatusCode::BAD_REQUEST, format!("bad header: {key}"))
    });
    let router = axum::Router::new().route("/v1/chat/completions", complain);
    let mut config = OpenAiConfig::new(KEY.into(), "m");
    config.base_url = serve(router).await;
    assert!(!format!("{config:?}").contains(KEY));
    let llm = Arc::new(OpenAi::new(config).unwrap());
    assert!(!format!("{llm:?}").contains(KEY));
    let error = ask(llm, &["Hi"]).error().await;
    assert_eq!(error, LlmError::Rejected { status: 400, message: "bad header: Bearer ***".into() });
}

#[tokio::test]
async fn an_answer_without_end_is_cut() {
    let endless = axum::routing::post(|| async {
        let chunk = serde_json::json!({"choices": [{"delta": {"content": "x".repeat(10_000)}}]});
        let event = bytes::Bytes::from(format!("data: {chunk}\n\n"));
        let stream =
            futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(event.clone()));
        axum::body::Body::from_stream(stream)
    });
    let router = axum::Router::new().route("/v1/chat/completions", endless);
    let mut config = OpenAiConfig::new(KEY.into(), "m");
    config.base_url = serve(router).await;
    let error = ask(Arc::new(OpenAi::new(config).unwrap()), &["Hi"]).error().await;
    assert!(
        matches!(&error, LlmError::Interrupted(reason) if reason.contains("too long")),
        "{error}"
    );
}

#[test]
fn settings_that_cannot_work_are_refused() {
    use ModelConfigError as Fault;
    let refused = |change: fn(&mut OpenAiConfig)| {
        let mut config = OpenAiConfig::new(KEY.into(), "m");
        change(&mut config);
        OpenAi::new(config).unwrap_err()
    };
    let key = Fault::Endpoint(EndpointError::ApiKey);
    assert_eq!(refused(|config| config.api_key = "a\nb".into()), key);
    assert_eq!(refused(|config| config.model = " ".into()), Fault::Model);
    assert_eq!(refused(|config| config.temperature = Some(3.0)), Fault::Temperature);
    assert_eq!(refused(|config| config.base_url = "ws://host/v1".into()), Fault::Scheme);
    let nowhere = Fault::Endpoint(EndpointError::BaseUrl(BaseUrlError::Scheme));
    assert_eq!(refused(|config| config.base_url = "ftp://host".into()), nowhere);
}
