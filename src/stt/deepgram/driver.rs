//! The task behind one speaker's stream.

use std::{collections::VecDeque, future::ready, pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, warn};

use super::{
    DeepgramConfig,
    proto::{self, Codec, SAMPLE_RATE},
};
use crate::{
    audio::queue::AudioReceiver,
    net::{
        self,
        backoff::Backoff,
        ws::{self, ConnectError, Connection, Frame},
    },
    stt::{SttControl, SttError, SttEvent, backlog::Backlog},
};

const SAMPLES_PER_MS: u64 = SAMPLE_RATE as u64 / 1_000;
/// 50 ms: shorter adds overhead, longer adds latency.
const CHUNK: usize = 50 * SAMPLES_PER_MS as usize;
/// Usage is told after this much audio, in samples (10 s).
const USAGE_STEP: u64 = 10 * SAMPLE_RATE as u64;
/// Events that the session has not taken yet; beyond this the socket is not read.
const OUTBOX: usize = 64;
/// A connection that lived this long has proved itself even if nobody spoke.
const PROVEN: Duration = Duration::from_secs(10);
/// While closing there is no time for the usual wait before a retry.
const RETRY_WHILE_CLOSING: Duration = Duration::from_millis(100);

pub(super) struct Driver {
    config: Arc<DeepgramConfig>,
    audio: AudioReceiver,
    control: mpsc::Receiver<SttControl>,
    events: mpsc::Sender<SttEvent>,
    outbox: VecDeque<SttEvent>,
    codec: Codec,
    backoff: Backoff,
    backlog: Backlog,
    /// Number of the sample that goes to the connection next.
    next_sample: u64,
    /// Samples sent since usage was last told.
    used: u64,
    scratch: Vec<i16>,
    /// `Finalize` is to be sent when all audio is.
    finalize: bool,
    audio_ended: bool,
    /// When closing: give up at this time.
    deadline: Option<Instant>,
}

enum News {
    NobodyListens,
    /// `None`: the session has let go of the stream, which is as good as `Close`.
    Control(Option<SttControl>),
    /// In `scratch`.
    Audio {
        ended: bool,
    },
}

/// Nobody wants more of this stream, or nothing more can come.
struct Over;

/// Why a connection is no more.
enum End {
    Over,
    Lost(String),
}

impl Driver {
    pub(super) fn new(
        config: Arc<DeepgramConfig>,
        audio: AudioReceiver,
        control: mpsc::Receiver<SttControl>,
        events: mpsc::Sender<SttEvent>,
    ) -> Self {
        let keep = config.keep_audio.as_millis() as u64 * SAMPLES_PER_MS;
        Self {
            audio,
            control,
            events,
            outbox: VecDeque::new(),
            codec: Codec::default(),
            backoff: config.backoff,
            backlog: Backlog::new(keep as usize),
            next_sample: 0,
            used: 0,
            scratch: Vec::with_capacity(CHUNK),
            finalize: false,
            audio_ended: false,
            deadline: None,
            config,
        }
    }

    pub(super) async fn run(mut self) {
        // Ends by `Over`, whichever way.
        let Err(Over) = self.stay_connected().await;
        self.tell_usage();
        let rest = std::mem::take(&mut self.outbox);
        let deliver = async {
            for event in rest {
                if self.events.send(event).await.is_err() {
                    break;
                }
            }
        };
        if timeout(self.config.close_timeout, deliver).await.is_err() {
            warn!(provider = "deepgram", "the session does not take the last transcripts");
        }
    }

    async fn stay_connected(&mut self) -> Result<std::convert::Infallible, Over> {
        let mut failed = false;
        loop {
            let (error, retry_after) = match self.connect().await? {
                Ok(connection) => {
                    failed = false;
                    self.tell(SttEvent::Connected);
                    let connected = Instant::now();
                    let end = self.talk(connection).await;
                    if connected.elapsed() >= PROVEN {
                        self.backoff.reset();
                    }
                    self.tell_usage();
                    match end {
                        End::Over => return Err(Over),
                        End::Lost(reason) => (SttError::Unreachable(reason), None),
                    }
                }
                Err(error) => (stt_error(&error), error.retry_after()),
            };
            if !error.is_retryable() {
                warn!(provider = "deepgram", %error, "speech recognition is off");
                self.tell(SttEvent::Failed(error));
                return Err(self.wait_for_close().await);
            }
            let delay = if let Some(delay) = self.backoff.next_delay(net::random_fraction()) {
                let delay = delay.max(retry_after.unwrap_or_default());
                warn!(provider = "deepgram", %error, ?delay, "connection lost");
                self.tell(SttEvent::Lost { reason: error.to_string(), retry_in: delay });
                delay
            } else {
                if !std::mem::replace(&mut failed, true) {
                    warn!(provider = "deepgram", %error, "speech recognition has failed");
                    self.tell(SttEvent::Failed(error));
                }
                self.config.probe.max(retry_after.unwrap_or_default())
            };
            self.pause(delay).await?;
        }
    }

    /// Tries once, taking in audio meanwhile.
    async fn connect(&mut self) -> Result<Result<Connection, ConnectError>, Over> {
        let mut url = net::url::socket(&self.config.base_url, &["listen"]);
        self.config.options.write_query(&mut url);
        let key = &self.config.api_key;
        let request = ws::Request::new(url).secret_header("authorization", "Token ", key);
        let mut connecting = pin!(ws::connect(request, self.config.limits));
        loop {
            tokio::select! {
                biased;
                () = at(self.deadline) => return Err(Over),
                result = &mut connecting => return Ok(result),
                going = self.attend() => going?,
            }
            self.leave_if_done()?;
        }
    }

    /// Waits before the next attempt, taking in audio meanwhile.
    async fn pause(&mut self, delay: Duration) -> Result<(), Over> {
        let start = Instant::now();
        loop {
            self.leave_if_done()?;
            let closing = self.deadline.is_some();
            let delay = if closing { delay.min(RETRY_WHILE_CLOSING) } else { delay };
            tokio::select! {
                biased;
                () = at(self.deadline) => return Err(Over),
                () = sleep_until(start + delay) => return Ok(()),
                going = self.attend() => going?,
            }
        }
    }

    /// The provider will not have us: audio is let go.
    async fn wait_for_close(&mut self) -> Over {
        while self.deadline.is_none() {
            if let Err(over) = self.attend().await {
                return over;
            }
            self.backlog.settle(u64::MAX);
        }
        Over
    }

    /// Without a connection, closing is done as soon as no audio is waiting for its words.
    fn leave_if_done(&self) -> Result<(), Over> {
        if self.deadline.is_some() && self.backlog.is_empty() { Err(Over) } else { Ok(()) }
    }

    /// Does one thing that is not the socket's: hands over an event, takes a control or audio.
    /// Cancel-safe.
    async fn attend(&mut self) -> Result<(), Over> {
        let closing = self.deadline.is_some();
        let news = tokio::select! {
            biased;
            permit = self.events.reserve(), if !self.outbox.is_empty() => match permit {
                Ok(permit) => {
                    if let Some(event) = self.outbox.pop_front() {
                        permit.send(event);
                    }
                    return Ok(());
                }
                Err(_) => News::NobodyListens,
            },
            () = self.events.closed() => News::NobodyListens,
            control = self.control.recv(), if !closing => News::Control(control),
            count = self.audio.read(&mut self.scratch, CHUNK), if !self.audio_ended => {
                News::Audio { ended: count == 0 }
            }
        };
        match news {
            News::NobodyListens => return Err(Over),
            News::Control(Some(SttControl::Finalize)) => {
                self.finalize = true;
                self.take_rest().await;
            }
            News::Control(Some(SttControl::Close) | None) | News::Audio { ended: true } => {
                self.begin_close().await;
            }
            News::Audio { ended: false } => {
                self.backlog.push(&self.scratch);
                self.scratch.clear();
            }
        }
        Ok(())
    }

    async fn begin_close(&mut self) {
        self.deadline = Some(Instant::now() + self.config.close_timeout);
        self.take_rest().await;
        self.audio_ended = true;
    }

    /// Takes what is in the queue now, less than a chunk too.
    async fn take_rest(&mut self) {
        let waiting = self.audio.len();
        if waiting > 0 {
            self.audio.read(&mut self.scratch, waiting).await;
            self.backlog.push(&self.scratch);
            self.scratch.clear();
        }
    }

    /// Talks on one connection until it ends.
    async fn talk(&mut self, mut connection: Connection) -> End {
        self.skip_gap();
        self.next_sample = self.backlog.start();
        self.codec.connected(self.next_sample / SAMPLES_PER_MS);
        let keep_alive = self.config.keep_alive;
        let mut last_sent = Instant::now();
        let mut close_sent = false;
        loop {
            let caught_up = self.next_sample >= self.backlog.end();
            if caught_up && !close_sent {
                let message = if self.deadline.is_some() {
                    close_sent = true;
                    Some(proto::CLOSE_STREAM)
                } else {
                    self.finalize.then_some(proto::FINALIZE)
                };
                if let Some(message) = message {
                    self.finalize = false;
                    if let Err(error) = connection.send_text(message.into()).await {
                        return End::Lost(error.to_string());
                    }
                    last_sent = Instant::now();
                }
            }
            tokio::select! {
                biased;
                () = at(self.deadline) => {
                    connection.close().await;
                    return End::Over;
                }
                going = self.attend() => {
                    if matches!(going, Err(Over)) {
                        connection.close().await;
                        return End::Over;
                    }
                }
                frame = connection.next(), if self.outbox.len() < OUTBOX => match frame {
                    Ok(Frame::Text(text)) => {
                        if self.receive(&text) && close_sent {
                            connection.close().await;
                            return End::Over;
                        }
                    }
                    Ok(Frame::Binary(_)) => {}
                    Ok(Frame::Closed { code: 1000 | 1005, .. }) if close_sent => return End::Over,
                    Ok(Frame::Closed { code, reason }) => {
                        return End::Lost(format!("closed with {code} {reason}").trim_end().into());
                    }
                    Err(error) => return End::Lost(error.to_string()),
                },
                () = ready(()), if !caught_up => {
                    if let Err(error) = self.send_chunk(&mut connection).await {
                        return End::Lost(error.to_string());
                    }
                    last_sent = Instant::now();
                }
                () = sleep_until(last_sent + keep_alive), if !close_sent => {
                    if let Err(error) = connection.send_text(proto::KEEP_ALIVE.into()).await {
                        return End::Lost(error.to_string());
                    }
                    last_sent = Instant::now();
                }
            }
        }
    }

    /// Goes on with the oldest audio that is there if what was next is not; returns the gap in ms.
    fn skip_gap(&mut self) -> u64 {
        let gap = self.backlog.start().saturating_sub(self.next_sample);
        self.next_sample += gap;
        let ms = gap / SAMPLES_PER_MS;
        if gap > 0 {
            warn!(provider = "deepgram", ms, "audio goes untranscribed: the outage was too long");
        }
        ms
    }

    async fn send_chunk(&mut self, connection: &mut Connection) -> Result<(), ws::WsError> {
        let skipped = self.skip_gap();
        self.codec.skipped(skipped);
        let bytes = self.backlog.bytes(self.next_sample, CHUNK);
        let samples = bytes.len() as u64 / 2;
        connection.send_binary(bytes.into()).await?;
        self.next_sample += samples;
        self.used += samples;
        if self.used >= USAGE_STEP {
            self.tell_usage();
        }
        Ok(())
    }

    /// Reads one message; true if it was the last of a closing stream.
    fn receive(&mut self, text: &str) -> bool {
        let mut events = Vec::new();
        let received = match self.codec.receive(text, &mut events) {
            Ok(received) => received,
            Err(error) => {
                debug!(provider = "deepgram", %error, "message skipped");
                return false;
            }
        };
        for event in events {
            self.tell(event);
        }
        if let Some(ms) = received.settled_ms {
            // No more can be final than was sent, whatever the server says.
            self.backlog.settle(ms.saturating_mul(SAMPLES_PER_MS).min(self.next_sample));
            self.backoff.reset();
        }
        if let Some(error) = received.error {
            warn!(provider = "deepgram", error, "the provider complains");
        }
        received.metadata
    }

    fn tell(&mut self, event: SttEvent) {
        // An interim that nobody has seen is replaced by the next.
        if matches!(event, SttEvent::Interim(_))
            && let Some(last @ SttEvent::Interim(_)) = self.outbox.back_mut()
        {
            *last = event;
        } else {
            self.outbox.push_back(event);
        }
    }

    fn tell_usage(&mut self) {
        let audio_ms = self.used / SAMPLES_PER_MS;
        if audio_ms > 0 {
            self.used -= audio_ms * SAMPLES_PER_MS;
            self.tell(SttEvent::Usage { audio_ms });
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn stt_error(error: &ConnectError) -> SttError {
    match error {
        ConnectError::Refused { status: status @ (401 | 403), .. } => {
            SttError::Unauthorized { status: *status }
        }
        ConnectError::Refused { status, message, .. } if !error.is_retryable() => {
            SttError::Rejected { status: *status, message: message.clone() }
        }
        ConnectError::Invalid(message) => {
            SttError::Rejected { status: 400, message: message.clone() }
        }
        other => SttError::Unreachable(other.to_string()),
    }
}
