//! A worker against a server's end on loopback, over the real wire protocol.
//!
//! Sockets need real time: each wait is for an event, with a bound.

use std::future::Future;

use async_trait::async_trait;
use futures_util::{SinkExt, StreamExt};
use livekit_protocol::{
    AvailabilityRequest, Job, JobAssignment, JobStatus, RegisterWorkerResponse, Room,
    ServerMessage, WorkerMessage, WorkerPong, WorkerStatus, server_message::Message as FromServer,
    worker_message::Message as ToServer,
};
use prost::Message as _;
use secrecy::ExposeSecret;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
        http::{StatusCode, header::AUTHORIZATION},
    },
};

use super::{
    dispatch::Assignment,
    job::{JobContext, code},
    *,
};

async fn soon<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("it takes too long")
}

/// The server's end of one connection.
struct Server {
    socket: WebSocketStream<TcpStream>,
    path: String,
    token: String,
}

impl Server {
    async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = soon(listener.accept()).await.unwrap();
        let (mut path, mut token) = (String::new(), String::new());
        #[allow(clippy::result_large_err, reason = "the handshake's callback is typed so")]
        let look = |request: &Request, response: Response| {
            path = request.uri().to_string();
            token = request.headers()[AUTHORIZATION].to_str().unwrap().to_owned();
            Ok(response)
        };
        let socket = soon(accept_hdr_async(stream, look)).await.unwrap();
        Self { socket, path, token }
    }

    async fn refuse(listener: &TcpListener, status: u16) {
        let (stream, _) = soon(listener.accept()).await.unwrap();
        #[allow(clippy::result_large_err, reason = "the handshake's callback is typed so")]
        let refuse = |_: &Request, _: Response| {
            let mut response = ErrorResponse::new(None);
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            Err(response)
        };
        assert!(soon(accept_hdr_async(stream, refuse)).await.is_err());
    }

    /// Accepts a worker and confirms its registration.
    async fn registered(listener: &TcpListener) -> Self {
        let mut server = Self::accept(listener).await;
        let first = server.next().await;
        assert!(matches!(first, ToServer::Register(_)), "{first:?}");
        let worker_id = "AW_test".into();
        server
            .say(FromServer::Register(RegisterWorkerResponse { worker_id, ..Default::default() }))
            .await;
        server
    }

    async fn say(&mut self, message: FromServer) {
        let message = ServerMessage { message: Some(message) };
        self.socket.send(Message::Binary(message.encode_to_vec().into())).await.unwrap();
    }

    /// The worker's next message; `None` when it has closed.
    async fn heard(&mut self) -> Option<ToServer> {
        loop {
            match soon(self.socket.next()).await {
                Some(Ok(Message::Binary(bytes))) => {
                    match WorkerMessage::decode(bytes).unwrap().message.unwrap() {
                        ToServer::Ping(ping) => {
                            let last_timestamp = ping.timestamp;
                            let pong = WorkerPong { last_timestamp, timestamp: 0 };
                            self.say(FromServer::Pong(pong)).await;
                        }
                        message => return Some(message),
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    async fn next(&mut self) -> ToServer {
        self.heard().await.expect("the worker has closed")
    }

    /// The next message for which `wanted` finds something.
    async fn until<T>(&mut self, wanted: impl Fn(ToServer) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(self.next().await) {
                return found;
            }
        }
    }

    async fn ask(&mut self, id: &str) -> bool {
        self.say(FromServer::Availability(AvailabilityRequest {
            job: Some(job(id)),
            resuming: false,
        }))
        .await;
        self.until(|message| match message {
            ToServer::Availability(answer) if answer.job_id == id => Some(answer.available),
            _ => None,
        })
        .await
    }

    async fn dispatch(&mut self, id: &str) {
        assert!(self.ask(id).await);
        let token = format!("token-of-{id}");
        self.say(FromServer::Assignment(JobAssignment { job: Some(job(id)), url: None, token }))
            .await;
        assert_eq!(self.job_status(id).await.0, JobStatus::JsRunning);
    }

    async fn job_status(&mut self, id: &str) -> (JobStatus, String) {
        self.until(|message| match message {
            ToServer::UpdateJob(update) if update.job_id == id => {
                Some((update.status(), update.error))
            }
            _ => None,
        })
        .await
    }
}

fn job(id: &str) -> Job {
    let room = Some(Room { name: "lobby".into(), ..Default::default() });
    Job { id: id.into(), room, ..Default::default() }
}

/// Jobs do what the test tells them; their starts are reported.
struct Runner(mpsc::Sender<(Assignment, JobContext, oneshot::Sender<Act>)>);

#[derive(Debug)]
enum Act {
    End,
    Panic,
}

#[async_trait]
impl JobRunner for Runner {
    async fn run(&self, job: Assignment, context: JobContext) -> Result<(), JobError> {
        let (tell, told) = oneshot::channel();
        let (shutdown, drain) = (context.shutdown.clone(), context.drain.clone());
        self.0.send((job, context, tell)).await.unwrap();
        tokio::select! {
            act = told => match act {
                Ok(Act::End) => Ok(()),
                Ok(Act::Panic) => panic!("as told"),
                Err(_) => {
                    drain.cancelled().await;
                    Ok(())
                }
            },
            () = shutdown.cancelled() => Err(JobError::new(code::SESSION_FAILED, "shut down")),
        }
    }
}

struct Lab {
    listener: TcpListener,
    signals: Signals,
    worker: JoinHandle<Result<(), WorkerError>>,
    jobs: mpsc::Receiver<(Assignment, JobContext, oneshot::Sender<Act>)>,
}

impl Lab {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let config = WorkerConfig {
            agent_name: "assistant".into(),
            fixed_load: Some(0.0),
            timing: Timing { backoff: Duration::from_millis(10), ..Timing::default() },
            ..WorkerConfig::new(url, "devkey".into(), "devsecret-devsecret-devsecret-00".into())
        };
        let (started, jobs) = mpsc::channel(8);
        let signals = Signals::new();
        let worker = Worker::new(config, Arc::new(Runner(started)));
        let worker = tokio::spawn(worker.run(signals.clone()));
        Self { listener, signals, worker, jobs }
    }

    async fn started(&mut self) -> (Assignment, JobContext, oneshot::Sender<Act>) {
        soon(self.jobs.recv()).await.unwrap()
    }

    async fn ended(self) -> Result<(), WorkerError> {
        soon(self.worker).await.unwrap()
    }
}

#[tokio::test]
async fn a_job_is_taken_run_and_reported() {
    let mut lab = Lab::new().await;
    let mut server = Server::accept(&lab.listener).await;
    assert_eq!(server.path, "/agent");
    let ToServer::Register(request) = server.next().await else { panic!("no registration") };
    assert_eq!(request.agent_name, "assistant");
    server.say(FromServer::Register(RegisterWorkerResponse::default())).await;
    let asked = clock::now();
    server.dispatch("AJ_1").await;
    assert!(clock::now() - asked < Duration::from_secs(1));
    let (job, _, tell) = lab.started().await;
    assert_eq!((job.job_id.as_str(), job.room.as_str()), ("AJ_1", "lobby"));
    assert_eq!(job.token.expose_secret(), "token-of-AJ_1");
    assert_eq!(job.url, format!("http://{}", lab.listener.local_addr().unwrap()));
    tell.send(Act::End).unwrap();
    assert_eq!(server.job_status("AJ_1").await, (JobStatus::JsSuccess, String::new()));
}

#[tokio::test]
async fn the_workers_token_grants_agent_and_nothing_else() {
    let lab = Lab::new().await;
    let server = Server::accept(&lab.listener).await;
    let token = server.token.strip_prefix("Bearer ").unwrap();
    let verifier = livekit_api::access_token::TokenVerifier::with_api_key(
        "devkey",
        "devsecret-devsecret-devsecret-00",
    );
    let claims = verifier.verify(token).unwrap();
    let agent = livekit_api::access_token::VideoGrants { agent: true, ..Default::default() };
    assert_eq!((claims.iss.as_str(), claims.video), ("devkey", agent));
}

#[tokio::test]
async fn a_job_that_panics_fails_and_the_worker_goes_on() {
    let mut lab = Lab::new().await;
    let mut server = Server::registered(&lab.listener).await;
    server.dispatch("AJ_1").await;
    let (_, _, tell) = lab.started().await;
    tell.send(Act::Panic).unwrap();
    let (status, error) = server.job_status("AJ_1").await;
    assert_eq!((status, error.as_str()), (JobStatus::JsFailed, "PANICKED: the job panicked"));
    server.dispatch("AJ_2").await;
    let (job, _, tell) = lab.started().await;
    assert_eq!(job.job_id, "AJ_2");
    tell.send(Act::End).unwrap();
    assert_eq!(server.job_status("AJ_2").await.0, JobStatus::JsSuccess);
}

#[tokio::test]
async fn a_job_lives_through_a_lost_connection_and_is_reported_after_it() {
    let mut lab = Lab::new().await;
    let mut server = Server::registered(&lab.listener).await;
    server.dispatch("AJ_1").await;
    server.dispatch("AJ_2").await;
    let (_, _, first) = lab.started().await;
    let (_, second_context, _second) = lab.started().await;
    drop(server);
    let mut server = Server::accept(&lab.listener).await;
    // Ends while the worker is not registered.
    first.send(Act::End).unwrap();
    assert!(matches!(server.next().await, ToServer::Register(_)));
    server.say(FromServer::Register(RegisterWorkerResponse::default())).await;
    assert_eq!(server.job_status("AJ_1").await.0, JobStatus::JsSuccess);
    assert!(!second_context.shutdown.is_cancelled() && !second_context.drain.is_cancelled());
    assert!(server.ask("AJ_3").await);
}

#[tokio::test]
async fn running_jobs_are_migrated_to_the_new_connection() {
    let mut lab = Lab::new().await;
    let mut server = Server::registered(&lab.listener).await;
    server.dispatch("AJ_1").await;
    let _job = lab.started().await;
    drop(server);
    let mut server = Server::registered(&lab.listener).await;
    let migrated = server
        .until(|message| match message {
            ToServer::MigrateJob(request) => Some(request.job_ids),
            _ => None,
        })
        .await;
    assert_eq!(migrated, ["AJ_1"]);
}

#[tokio::test]
async fn wrong_credentials_are_an_error_after_one_attempt() {
    let lab = Lab::new().await;
    Server::refuse(&lab.listener, 401).await;
    // It ends, so there is no second attempt.
    let error = lab.ended().await.unwrap_err();
    assert!(matches!(error, WorkerError::Unauthorized { status: 401, .. }), "{error:?}");
    assert!(error.to_string().contains("LIVEKIT_API_SECRET"), "{error}");
    assert!(!error.to_string().contains("devsecret"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_ready_is_tried_again() {
    let lab = Lab::new().await;
    Server::refuse(&lab.listener, 503).await;
    Server::refuse(&lab.listener, 502).await;
    Server::registered(&lab.listener).await;
}

#[tokio::test]
async fn rubbish_from_the_server_does_not_end_the_connection() {
    let lab = Lab::new().await;
    let mut server = Server::registered(&lab.listener).await;
    server.socket.send(Message::Text("hello".into())).await.unwrap();
    server.socket.send(Message::Binary(vec![0xff; 64].into())).await.unwrap();
    server.socket.send(Message::Binary(Vec::new().into())).await.unwrap();
    assert!(server.ask("AJ_1").await);
}

#[tokio::test]
async fn a_message_too_large_costs_the_connection_and_not_the_worker() {
    let lab = Lab::new().await;
    let mut server = Server::registered(&lab.listener).await;
    // The worker may hang up before all of it is written.
    let _ = server.socket.send(Message::Binary(vec![0; 2 << 20].into())).await;
    let mut server = Server::registered(&lab.listener).await;
    assert!(server.ask("AJ_1").await);
}

#[tokio::test]
async fn draining_waits_for_the_job_and_refuses_another() {
    let mut lab = Lab::new().await;
    let mut server = Server::registered(&lab.listener).await;
    server.dispatch("AJ_1").await;
    let (_, context, tell) = lab.started().await;
    lab.signals.ask();
    let status = server
        .until(|message| match message {
            ToServer::UpdateWorker(status) if status.draining => Some(status),
            _ => None,
        })
        .await;
    assert_eq!(status.status(), WorkerStatus::WsFull);
    assert!(!server.ask("AJ_2").await);
    assert!(!context.drain.is_cancelled() && !context.shutdown.is_cancelled());
    assert!(!lab.worker.is_finished());
    tell.send(Act::End).unwrap();
    assert_eq!(server.job_status("AJ_1").await.0, JobStatus::JsSuccess);
    while server.heard().await.is_some() {}
    lab.ended().await.unwrap();
}

#[tokio::test]
async fn the_second_signal_ends_at_once_and_says_that_the_job_failed() {
    let mut lab = Lab::new().await;
    let mut server = Server::registered(&lab.listener).await;
    server.dispatch("AJ_1").await;
    let _job = lab.started().await;
    lab.signals.ask();
    lab.signals.ask();
    let (status, error) = server.job_status("AJ_1").await;
    assert_eq!(status, JobStatus::JsFailed);
    assert!(error.starts_with("ABORTED: "), "{error}");
    while server.heard().await.is_some() {}
    assert!(matches!(lab.ended().await, Err(WorkerError::Killed)));
}

#[tokio::test]
async fn an_idle_worker_leaves_without_a_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    drop(listener);
    let (started, _jobs) = mpsc::channel(1);
    let config = WorkerConfig::new(url, "devkey".into(), "devsecret".into());
    let signals = Signals::new();
    let worker = Worker::new(config, Arc::new(Runner(started)));
    let worker = tokio::spawn(worker.run(signals.clone()));
    signals.ask();
    soon(worker).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_taken_health_port_is_an_error_before_anything_connects() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let config = WorkerConfig {
        http: Some(taken.local_addr().unwrap()),
        ..WorkerConfig::new(url, "devkey".into(), "devsecret".into())
    };
    let (started, _jobs) = mpsc::channel(1);
    let error =
        soon(Worker::new(config, Arc::new(Runner(started))).run(Signals::new())).await.unwrap_err();
    assert!(matches!(error, WorkerError::Bind(_)), "{error:?}");
}
