//! One way to ask every model that answers a POST with server-sent events: retries, time-outs,
//! bounds and the way back of connections. What is said is a [`Wire`]'s business.

use std::{fmt::Debug, time::Duration};

use futures_util::{Stream, StreamExt};
use serde_json::Value;
use tokio::{sync::mpsc, time::Instant};

use super::{
    LlmError,
    model::{Ask, Model, Patience, Piece},
    sse::{SseEvent, SseReader},
};
use crate::net::{
    http::{Endpoint, Failure, ServerError},
    random_fraction,
    warm::{Lease, Warm},
};

/// Delays before another attempt: this, doubling, up to [`LONGEST_RETRY`]; less up to a quarter.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_millis(800);
/// Events that cannot be read are passed over, up to so many in one answer.
const MAX_UNREADABLE: u32 = 8;
/// Longest answer that is taken, in bytes of the stream: far beyond what anybody would listen to.
const MAX_STREAM_BYTES: usize = 4 << 20;
/// How long the rest of a finished stream is read, to keep the connection for the next turn.
const DRAIN: Duration = Duration::from_millis(500);

/// How far an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    More,
    /// The model has stopped; usage may follow.
    Finished,
    /// Nothing more comes.
    Done,
}

/// Why an event stops an answer, or does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It is no event that can be read; passed over.
    Unreadable,
    Server(ServerError),
}

/// Reads the events of one answer.
pub trait Reader: Send {
    /// Appends what the event says.
    fn read(&mut self, event: &SseEvent, pieces: &mut Vec<Piece>) -> Result<Progress, Trouble>;
    /// The stream has ended well: what has been gathered and not been told.
    fn finish(&mut self, pieces: &mut Vec<Piece>);
}

/// What one provider puts on the wire: pure.
pub trait Wire: Send + Sync + Debug + 'static {
    type Reader: Reader;
    fn provider(&self) -> &'static str;
    fn model(&self) -> &str;
    /// Path segments after the base URL, and the query.
    fn path(&self) -> (Vec<String>, Option<&'static str>);
    fn body(&self, ask: &Ask) -> Value;
    fn reader(&self) -> Self::Reader;
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    pub connect: Duration,
    /// From the beginning of a generation: no attempt is begun after this.
    pub retry_budget: Duration,
    /// Longest wait for the first text, should nobody cancel before.
    pub first_token: Duration,
    /// Longest silence within a stream.
    pub stall: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            retry_budget: Duration::from_millis(2_500),
            first_token: Duration::from_secs(30),
            stall: Duration::from_millis(2_500),
        }
    }
}

/// A model behind a [`Wire`]; one serves all rooms of an agent and shares its connections.
#[derive(Debug)]
pub struct Streaming<W> {
    wire: W,
    endpoint: Endpoint,
    connections: Warm,
    timing: Timing,
}

impl<W: Wire> Streaming<W> {
    pub fn with(wire: W, endpoint: Endpoint, timing: Timing) -> Result<Self, String> {
        let connections = Warm::new(&endpoint, &["models"], timing.connect)?;
        Ok(Self { wire, endpoint, connections, timing })
    }

    async fn open(&self, ask: &Ask) -> Result<(reqwest::Response, Lease), Failure> {
        let (segments, query) = self.wire.path();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let mut url = self.endpoint.url(&segments);
        url.set_query(query);
        let request = self.connections.post(url).json(&self.wire.body(ask));
        self.connections.send(request).await
    }

    /// One attempt. `streamed` is set once anything has been told.
    async fn attempt(
        &self,
        ask: &Ask,
        first_token: Duration,
        stall: Duration,
        out: &mpsc::Sender<Piece>,
        streamed: &mut bool,
    ) -> Result<(), Fault> {
        let begun = Instant::now();
        let (response, lease) = tokio::time::timeout(first_token, self.open(ask))
            .await
            .map_err(|_| Fault::timeout(first_token))?
            .map_err(|failure| self.fault(failure))?;
        let mut stream = Box::pin(response.bytes_stream());
        let (mut events, mut reader) = (SseReader::default(), self.wire.reader());
        let (mut progress, mut unreadable, mut taken) = (Progress::More, 0, 0);
        let (mut pieces, mut is_read) = (Vec::new(), false);
        while progress < Progress::Done {
            let limit = if *streamed { stall } else { first_token.saturating_sub(begun.elapsed()) };
            let next = tokio::time::timeout(limit, stream.next()).await;
            let has_finished = progress == Progress::Finished;
            let is_over = match next {
                Ok(Some(Ok(bytes))) => {
                    taken += bytes.len();
                    if taken > MAX_STREAM_BYTES {
                        return Err(Fault::interrupted("too long an answer"));
                    }
                    events.push(&bytes);
                    false
                }
                Ok(None) => {
                    is_read = true;
                    true
                }
                // All text is there; only the usage or the end mark is lost.
                Ok(Some(Err(_))) | Err(_) if has_finished => true,
                Ok(Some(Err(error))) => {
                    let reason = Failure::from_reqwest(error).to_string();
                    return Err(Fault::interrupted(&self.endpoint.redact(&reason)));
                }
                Err(_) if *streamed => {
                    let ms = limit.as_millis();
                    return Err(Fault::interrupted(&format!("nothing came for {ms} ms")));
                }
                Err(_) => return Err(Fault::timeout(first_token)),
            };
            loop {
                let event =
                    events.poll().map_err(|error| Fault::interrupted(&error.to_string()))?;
                let Some(event) = event.or_else(|| is_over.then(|| events.rest()).flatten()) else {
                    break;
                };
                match reader.read(&event, &mut pieces) {
                    Ok(told) => progress = progress.max(told),
                    Err(Trouble::Unreadable) => {
                        unreadable += 1;
                        tracing::warn!(provider = self.wire.provider(), "an event is unreadable");
                        if unreadable > MAX_UNREADABLE {
                            return Err(Fault::interrupted("too many events that cannot be read"));
                        }
                    }
                    Err(Trouble::Server(error)) => return Err(self.server_error(&error)),
                }
                tell(out, &mut pieces, streamed).await?;
            }
            if is_over {
                break;
            }
        }
        if progress == Progress::More {
            return Err(Fault::interrupted("the stream ended before the answer did"));
        }
        reader.finish(&mut pieces);
        tell(out, &mut pieces, streamed).await?;
        if is_read {
            lease.ended();
        } else {
            drain(stream, lease);
        }
        Ok(())
    }

    fn fault(&self, failure: Failure) -> Fault {
        match failure {
            Failure::Status { status: status @ (401 | 403), .. } => {
                Fault::Fatal(LlmError::Unauthorized { status })
            }
            Failure::Status { status, retry_after, error } => {
                let message = self.endpoint.redact(&error.message);
                if matches!(status, 408 | 409 | 425 | 429 | 500..) && !error.is_out_of_quota() {
                    let error = LlmError::Unreachable(format!("HTTP {status} {message}"));
                    Fault::Retryable { error, after: retry_after }
                } else {
                    Fault::Fatal(LlmError::Rejected { status, message })
                }
            }
            Failure::Network(reason) => {
                let error = LlmError::Unreachable(self.endpoint.redact(&reason));
                Fault::Retryable { error, after: None }
            }
        }
    }

    fn server_error(&self, error: &ServerError) -> Fault {
        let message = self.endpoint.redact(&error.message);
        if error.is_unauthorized() {
            Fault::Fatal(LlmError::Unauthorized { status: 200 })
        } else if error.is_final() {
            Fault::Fatal(LlmError::Rejected { status: 200, message })
        } else {
            Fault::interrupted(&message)
        }
    }
}

/// Why an attempt came to nothing.
enum Fault {
    Retryable {
        error: LlmError,
        after: Option<Duration>,
    },
    Fatal(LlmError),
    /// Nobody listens any more.
    Unwanted,
}

impl Fault {
    fn interrupted(reason: &str) -> Self {
        Self::Retryable { error: LlmError::Interrupted(reason.to_owned()), after: None }
    }

    fn timeout(limit: Duration) -> Self {
        Self::Fatal(LlmError::Timeout(limit.as_millis() as u64))
    }
}

async fn tell(
    out: &mpsc::Sender<Piece>,
    pieces: &mut Vec<Piece>,
    streamed: &mut bool,
) -> Result<(), Fault> {
    for piece in pieces.drain(..) {
        *streamed |= !matches!(piece, Piece::Usage(_));
        out.send(piece).await.map_err(|_| Fault::Unwanted)?;
    }
    Ok(())
}

/// A connection can be used again only when the response has been read to its end.
fn drain(
    mut stream: impl Stream<Item = reqwest::Result<bytes::Bytes>> + Send + Unpin + 'static,
    lease: Lease,
) {
    tokio::spawn(tokio::time::timeout(DRAIN, async move {
        loop {
            match stream.next().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return,
                None => return lease.ended(),
            }
        }
    }));
}

#[async_trait::async_trait]
impl<W: Wire> Model for Streaming<W> {
    fn provider(&self) -> &'static str {
        self.wire.provider()
    }

    fn model(&self) -> &str {
        self.wire.model()
    }

    async fn prewarm(&self) {
        self.connections.ready().await;
    }

    async fn stream(
        &self,
        ask: &Ask,
        patience: Patience,
        pieces: mpsc::Sender<Piece>,
    ) -> Result<(), LlmError> {
        let begun = Instant::now();
        let budget = self.timing.retry_budget.min(patience.retry);
        let stall = self.timing.stall.min(patience.stall);
        let mut delay = FIRST_RETRY;
        let mut streamed = false;
        loop {
            let longest = self.timing.first_token.min(patience.first_token);
            let first_token = longest.saturating_sub(begun.elapsed());
            let attempt = self.attempt(ask, first_token, stall, &pieces, &mut streamed);
            let error = match attempt.await {
                Ok(()) | Err(Fault::Unwanted) => return Ok(()),
                Err(Fault::Fatal(LlmError::Timeout(_))) => {
                    return Err(LlmError::Timeout(longest.as_millis() as u64));
                }
                Err(Fault::Fatal(error)) => return Err(error),
                Err(Fault::Retryable { error, after }) => {
                    let wait = after.unwrap_or(delay.mul_f64(1.0 - random_fraction() / 4.0));
                    if !streamed && begun.elapsed() + wait <= budget {
                        tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "asking again");
                        tokio::time::sleep(wait).await;
                        delay = (delay * 2).min(LONGEST_RETRY);
                        continue;
                    }
                    error
                }
            };
            return Err(error);
        }
    }
}
