//! The task behind one speaker's stream over a WebSocket or gRPC, whatever is spoken on it.
//!
//! Audio is sent as it comes, and is kept until a final covers it. When the connection breaks, the
//! next one is sent what is kept, so that no word is lost and none comes twice; times go on as if
//! nothing had happened.
//!
//! Failures: `Lost` with the wait before each retry, `Failed` when the key or the request is refused
//! (then nothing more is tried) or when all retries are spent (then a slow probe goes on, and
//! `Connected` tells that it is back).

use std::{collections::VecDeque, future::ready, time::Duration};

use secrecy::SecretString;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tracing::{Instrument, debug, warn};

use crate::{
    audio::queue::AudioReceiver,
    clock,
    net::{
        self,
        backoff::Backoff,
        ws::{self, ConnectError},
    },
    stt::{
        SttControl, SttError, SttEvent, SttStream,
        backlog::Backlog,
        dialect::{Dialect, Outgoing, Received},
        link::{Incoming, Link},
    },
};

/// Of the mono s16 audio that is sent, in Hz.
pub const SAMPLE_RATE: u32 = 16_000;
/// Controls wait here while the driver is busy.
const CONTROL_QUEUE: usize = 16;
const SAMPLES_PER_MS: u64 = SAMPLE_RATE as u64 / 1_000;
/// What waits goes out in messages of at most so many samples (200 ms), where providers take them as
/// they come: in a long silence that much comes at once.
const MOST_AT_ONCE: usize = SAMPLE_RATE as usize / 5;
/// Usage is told after this much audio, in samples (10 s).
const USAGE_STEP: u64 = 10 * SAMPLE_RATE as u64;
/// Events that the session has not taken yet; beyond this the socket is not read.
const OUTBOX: usize = 64;
/// A connection that lived this long has proved itself even if nobody spoke.
const PROVEN: Duration = Duration::from_secs(10);
/// While closing there is no time for the usual wait before a retry.
const RETRY_WHILE_CLOSING: Duration = Duration::from_millis(100);
/// For the close frame.
const GOODBYE: Duration = Duration::from_millis(200);
/// What has arrived is read without waiting for more.
const ARRIVED: Duration = Duration::from_millis(10);

/// How a stream's connections are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    pub backoff: Backoff,
    pub limits: ws::Limits,
    /// After this long without audio the connection is kept alive.
    pub keep_alive: Duration,
    /// How long `Close` waits for the last finals.
    pub close_timeout: Duration,
    /// When all retries are spent: how often to look whether the provider is back.
    pub probe: Duration,
    /// Most audio kept for a new connection.
    pub keep_audio: Duration,
}

impl Default for Holding {
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            limits: ws::Limits { max_message: 1 << 20, ..ws::Limits::default() },
            keep_alive: Duration::from_secs(4),
            close_timeout: Duration::from_secs(2),
            probe: Duration::from_secs(30),
            keep_audio: Duration::from_secs(30),
        }
    }
}

/// Opens a stream that speaks `dialect`. Must be called inside a tokio runtime.
pub fn open<D: Dialect>(
    dialect: D,
    api_key: SecretString,
    holding: Holding,
    audio: AudioReceiver,
    events: mpsc::Sender<SttEvent>,
) -> SttStream {
    let (control, commands) = mpsc::channel(CONTROL_QUEUE);
    let driver = Driver::new(dialect, api_key, holding, audio, commands, events);
    let task = tokio::spawn(driver.run().in_current_span());
    SttStream { control, task }
}

struct Driver<D> {
    codec: D,
    api_key: SecretString,
    config: Holding,
    /// Samples of one message.
    chunk: usize,
    audio: AudioReceiver,
    control: mpsc::Receiver<SttControl>,
    events: mpsc::Sender<SttEvent>,
    outbox: VecDeque<SttEvent>,
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
    /// It has lived long enough.
    Replaced,
    Lost(String),
    /// The provider will not have us.
    Refused(SttError),
}

impl<D: Dialect> Driver<D> {
    fn new(
        codec: D,
        api_key: SecretString,
        config: Holding,
        audio: AudioReceiver,
        control: mpsc::Receiver<SttControl>,
        events: mpsc::Sender<SttEvent>,
    ) -> Self {
        let keep = config.keep_audio.as_millis() as u64 * SAMPLES_PER_MS;
        let chunk = (codec.chunk_ms() * SAMPLES_PER_MS) as usize;
        Self {
            audio,
            control,
            events,
            outbox: VecDeque::new(),
            codec,
            api_key,
            chunk,
            backoff: config.backoff,
            backlog: Backlog::new(keep as usize),
            next_sample: 0,
            used: 0,
            scratch: Vec::with_capacity(MOST_AT_ONCE),
            finalize: false,
            audio_ended: false,
            deadline: None,
            config,
        }
    }

    async fn run(mut self) {
        // Ends by `Over`, whichever way.
        let Err(Over) = self.stay_connected().await;
        let late = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        if late && self.backlog.quiet_until().is_none() {
            let reason = "the last words did not come in time".into();
            self.tell(SttEvent::Lost { reason, retry_in: Duration::ZERO });
        }
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
            warn!(
                provider = self.codec.provider(),
                "the session does not take the last transcripts"
            );
        }
    }

    async fn stay_connected(&mut self) -> Result<std::convert::Infallible, Over> {
        let mut failed = false;
        loop {
            let (error, retry_after) = match self.connect().await? {
                Ok(mut connection) => {
                    failed = false;
                    self.tell(SttEvent::Connected);
                    let connected = Instant::now();
                    let end = self.talk(&mut connection).await;
                    if matches!(end, End::Lost(_) | End::Refused(_)) {
                        self.take_arrived(&mut connection).await;
                    } else {
                        // A peer that does not even take this is left alone.
                        let _ = timeout(GOODBYE, connection.close()).await;
                    }
                    if connected.elapsed() >= PROVEN {
                        self.backoff.reset();
                    }
                    self.tell_usage();
                    match end {
                        End::Over => return Err(Over),
                        End::Replaced => continue,
                        End::Lost(reason) => (SttError::Unreachable(reason), None),
                        End::Refused(error) => (error, None),
                    }
                }
                Err(error) => (stt_error(&error), error.retry_after()),
            };
            if !error.is_retryable() {
                warn!(provider = self.codec.provider(), %error, "speech recognition is off");
                self.tell(SttEvent::Failed(error));
                return Err(self.wait_for_close().await);
            }
            let delay = if let Some(delay) = self.backoff.next_delay(net::random_fraction()) {
                let delay = delay.max(retry_after.unwrap_or_default());
                warn!(provider = self.codec.provider(), %error, ?delay, "connection lost");
                self.tell(SttEvent::Lost { reason: error.to_string(), retry_in: delay });
                delay
            } else {
                if !std::mem::replace(&mut failed, true) {
                    warn!(provider = self.codec.provider(), %error, "speech recognition has failed");
                    self.tell(SttEvent::Failed(error));
                }
                self.config.probe.max(retry_after.unwrap_or_default())
            };
            self.pause(delay).await?;
        }
    }

    /// Tries once, taking in audio meanwhile.
    async fn connect(&mut self) -> Result<Result<Link, ConnectError>, Over> {
        let limits = self.config.limits;
        let mut connecting = if let Some(target) = self.codec.streams() {
            Link::call(target, limits)
        } else {
            let (header, prefix) = self.codec.key_header();
            let request = ws::Request::new(self.codec.url());
            Link::socket(request.secret_header(header, prefix, &self.api_key), limits)
        };
        loop {
            tokio::select! {
                biased;
                () = clock::at(self.deadline) => return Err(Over),
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
                () = clock::at(self.deadline) => return Err(Over),
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
            count = self.audio.read_between(&mut self.scratch, self.chunk, MOST_AT_ONCE),
                if !self.audio_ended =>
            {
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
                self.keep();
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
            self.keep();
        }
    }

    /// Keeps what was read for this connection and the next. Silence that has been sent is let go.
    fn keep(&mut self) {
        self.backlog.push(&self.scratch);
        self.scratch.clear();
        if let Some(until) = self.backlog.quiet_until() {
            self.backlog.settle(until.min(self.next_sample));
        }
    }

    /// Talks on one connection until it ends.
    async fn talk(&mut self, connection: &mut Link) -> End {
        self.skip_gap();
        self.next_sample = self.backlog.start();
        self.codec.connected(self.next_sample / SAMPLES_PER_MS);
        let keep_alive = self.config.keep_alive;
        let mut last_sent = Instant::now();
        let mut close_sent = false;
        let replace_at = self.codec.lifetime().map(|lifetime| Instant::now() + lifetime);
        if let Some(greeting) = self.codec.greeting()
            && let Err(error) = connection.send(Outgoing::Text(greeting)).await
        {
            return End::Lost(error);
        }
        loop {
            let waiting = self.backlog.end().saturating_sub(self.next_sample);
            let may_wait = self.codec.whole_chunks() && self.deadline.is_none();
            let least = if may_wait { self.chunk as u64 } else { 1 };
            let caught_up = waiting < least;
            if caught_up && !close_sent {
                let messages = if self.deadline.is_some() {
                    close_sent = true;
                    self.codec.close()
                } else if std::mem::take(&mut self.finalize) {
                    self.codec.finalize()
                } else {
                    Vec::new()
                };
                for message in messages {
                    if let Err(error) = connection.send(message).await {
                        return End::Lost(error);
                    }
                    last_sent = Instant::now();
                }
            }
            if caught_up && self.codec.is_settled() {
                if close_sent {
                    return End::Over;
                }
                if replace_at.is_some_and(|at| Instant::now() >= at) {
                    return End::Replaced;
                }
            }
            tokio::select! {
                biased;
                () = clock::at(self.deadline) => return End::Over,
                going = self.attend() => {
                    if matches!(going, Err(Over)) {
                        return End::Over;
                    }
                }
                incoming = connection.next(), if self.outbox.len() < OUTBOX => {
                    let received = match incoming {
                        Ok(Incoming::Closed { code: 1000 | 1005, .. }) if close_sent => {
                            return End::Over;
                        }
                        Ok(Incoming::Closed { code, reason }) => {
                            if let Some(error) = self.codec.refusal(code, &reason) {
                                return End::Refused(error);
                            }
                            let reason = format!("closed with {code} {reason}");
                            return End::Lost(reason.trim_end().into());
                        }
                        Ok(incoming) => self.receive(incoming),
                        Err(error) => return End::Lost(error),
                    };
                    if let Some(error) = received.refused {
                        return End::Refused(error);
                    }
                    if let Some(reason) = received.lost {
                        return End::Lost(reason);
                    }
                    if received.is_last && close_sent {
                        return End::Over;
                    }
                }
                () = ready(()), if !caught_up => {
                    if let Err(error) = self.send_chunk(connection).await {
                        return End::Lost(error);
                    }
                    last_sent = Instant::now();
                }
                () = sleep_until(last_sent + keep_alive), if !close_sent => {
                    if let Some(message) = self.codec.keep_alive()
                        && let Err(error) = connection.send(message).await
                    {
                        return End::Lost(error);
                    }
                    last_sent = Instant::now();
                }
            }
        }
    }

    /// A connection that takes nothing more may still hold results: their audio is not sent again.
    async fn take_arrived(&mut self, connection: &mut Link) {
        while self.outbox.len() < OUTBOX
            && let Ok(Ok(incoming)) = timeout(ARRIVED, connection.next()).await
        {
            if matches!(incoming, Incoming::Closed { .. } | Incoming::Ended { .. }) {
                break;
            }
            self.receive(incoming);
        }
    }

    /// Goes on with the oldest audio that is there if what was next is not; returns the gap in ms.
    fn skip_gap(&mut self) -> u64 {
        let gap = self.backlog.start().saturating_sub(self.next_sample);
        self.next_sample += gap;
        let ms = gap / SAMPLES_PER_MS;
        if gap > 0 {
            warn!(
                provider = self.codec.provider(),
                ms, "audio goes untranscribed: the outage was too long"
            );
        }
        ms
    }

    async fn send_chunk(&mut self, connection: &mut Link) -> Result<(), String> {
        let skipped = self.skip_gap();
        self.codec.skipped(skipped);
        let whole = self.codec.whole_chunks();
        let chunks = if whole { 1 } else { (MOST_AT_ONCE / self.chunk).max(1) };
        let mut bytes = self.backlog.bytes(self.next_sample, chunks * self.chunk);
        let samples = bytes.len() as u64 / 2;
        if whole {
            bytes.resize(self.chunk * 2, 0);
        }
        let messages = self.codec.audio(bytes);
        self.next_sample += samples;
        if !messages.is_empty() {
            self.used += samples;
        }
        for message in messages {
            connection.send(message).await?;
        }
        if self.used >= USAGE_STEP {
            self.tell_usage();
        }
        Ok(())
    }

    /// Reads one message.
    fn receive(&mut self, incoming: Incoming) -> Received {
        let mut events = Vec::new();
        let received = match incoming {
            Incoming::Text(text) => self.codec.receive(&text, &mut events),
            Incoming::Message { stream, bytes } => {
                self.codec.receive_message(stream, &bytes, &mut events)
            }
            Incoming::Ended { stream, status, was_asked } => {
                Ok(self.codec.ended(stream, &status, was_asked, &mut events))
            }
            Incoming::Nothing | Incoming::Closed { .. } => return Received::default(),
        };
        let received = match received {
            Ok(received) => received,
            Err(error) => {
                debug!(provider = self.codec.provider(), %error, "message skipped");
                return Received::default();
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
        if let Some(error) = &received.error {
            warn!(provider = self.codec.provider(), error, "the provider complains");
        }
        received
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
            self.tell(SttEvent::Usage { link: 0, audio_ms });
        }
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
