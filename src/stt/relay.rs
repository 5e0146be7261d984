//! Several recognisers in order: when one fails, the next is sent the audio since the last final and
//! goes on with what is said now.
//!
//! Audio is numbered from the first sample of the speaker's stream; each recogniser counts from the
//! first sample it is sent, and its times are moved accordingly.

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use metrics::counter;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::{Instrument, warn};

use super::{
    Stt, SttControl, SttError, SttEvent, SttStream, Transcript, backlog::Backlog,
    driver::SAMPLE_RATE,
};
use crate::{
    audio::queue::{AudioReceiver, AudioSender, audio_queue},
    clock,
    net::breaker::{Health, Severity},
    telemetry::metrics as names,
};

const SAMPLES_PER_MS: u64 = SAMPLE_RATE as u64 / 1_000;
/// 20 ms: what a recogniser is passed at a time.
const CHUNK: usize = 20 * SAMPLES_PER_MS as usize;
/// Audio without a final that is kept for the next recogniser: 30 s.
const KEPT: usize = 30 * SAMPLE_RATE as usize;
/// Loud audio for this long without a word of it: the recogniser is deaf.
const DEAF: Duration = Duration::from_millis(2_500);
/// The same, once the session waits for a final.
const DEAF_ASKED: Duration = Duration::from_secs(1);
/// What is loud and no speech deafens no more than once in this time.
const DEAF_AGAIN: Duration = Duration::from_mins(1);
/// When everybody is down: how often to look for one that may be asked again.
const LOOK: Duration = Duration::from_secs(2);
const CONTROL_QUEUE: usize = 16;
const EVENTS: usize = 256;

/// One recogniser of the relay and how it has been doing.
#[derive(Debug, Clone)]
struct Runner {
    stt: Arc<dyn Stt>,
    health: Arc<Health>,
}

/// Recognisers to be tried in order, shared by all rooms of an agent.
#[derive(Debug, Clone)]
pub struct Relay(Arc<[Runner]>);

impl Relay {
    /// `recognisers`: the preferred one first; at least one.
    pub fn new(recognisers: Vec<Arc<dyn Stt>>) -> Option<Self> {
        let runners = recognisers.into_iter().map(|stt| Runner { stt, health: Arc::default() });
        let runners: Arc<[Runner]> = runners.collect();
        (!runners.is_empty()).then_some(Self(runners))
    }
}

impl Stt for Relay {
    fn provider(&self) -> &'static str {
        self.0.first().map_or("", |runner| runner.stt.provider())
    }

    fn model(&self) -> &str {
        self.0.first().map_or("", |runner| runner.stt.model())
    }

    fn name_of(&self, link: u8) -> (&str, &str) {
        let named = self.0.get(usize::from(link)).or_else(|| self.0.first());
        named.map_or(("", ""), |runner| (runner.stt.provider(), runner.stt.model()))
    }

    fn prewarm(&self) -> BoxFuture<'_, ()> {
        self.0[0].stt.prewarm()
    }

    fn open(&self, audio: AudioReceiver, events: mpsc::Sender<SttEvent>) -> SttStream {
        let (control, commands) = mpsc::channel(CONTROL_QUEUE);
        let driver = Driver {
            relay: self.clone(),
            audio,
            events,
            backlog: Backlog::new(KEPT),
            unheard_since: None,
            deafened: None,
            look_at: None,
            finalize_asked: None,
        };
        SttStream { control, task: tokio::spawn(driver.run(commands).in_current_span()) }
    }
}

/// The recogniser that listens.
struct Line {
    at: usize,
    audio: AudioSender,
    control: mpsc::Sender<SttControl>,
    events: mpsc::Receiver<SttEvent>,
    /// Where its time 0 is, in ms since the stream's first sample.
    offset_ms: u64,
}

struct Driver {
    relay: Relay,
    audio: AudioReceiver,
    events: mpsc::Sender<SttEvent>,
    backlog: Backlog,
    /// Since when something loud has been sent of which nothing was told.
    unheard_since: Option<Instant>,
    deafened: Option<Instant>,
    /// The session has been told that recognition is down: when to look for a way out.
    look_at: Option<Instant>,
    /// Since when the session waits for a final of what the backlog holds.
    finalize_asked: Option<Instant>,
}

/// Nobody wants more of this stream, or nothing more can come.
struct Over;

impl Driver {
    async fn run(mut self, mut control: mpsc::Receiver<SttControl>) {
        let mut line = self.open(self.next(None).unwrap_or(0));
        let mut scratch = Vec::with_capacity(CHUNK);
        let mut closing = false;
        loop {
            // Who says nothing before the end cannot be told from who hears nothing.
            let is_silent = !self.relay.0[line.at].stt.gives_interims();
            let deaf_at = self.unheard_since.filter(|_| !is_silent).map(|since| {
                let asked = self.finalize_asked.map(|at| at.max(since) + DEAF_ASKED);
                asked.map_or(since + DEAF, |at| at.min(since + DEAF))
            });
            let look_at = self.look_at;
            tokio::select! {
                biased;
                event = line.events.recv() => {
                    let Some(event) = event else {
                        if closing {
                            return;
                        }
                        let error = SttError::Unreachable("the stream is gone".into());
                        if self.failed(&mut line, SttEvent::Failed(error)).await.is_err() {
                            return;
                        }
                        continue;
                    };
                    if self.on_event(&mut line, event, closing).await.is_err() {
                        return;
                    }
                }
                () = self.events.closed() => return,
                command = control.recv(), if !closing => match command {
                    Some(SttControl::Finalize) => {
                        self.finalize_asked.get_or_insert_with(Instant::now);
                        let _ = line.control.try_send(SttControl::Finalize);
                    }
                    Some(SttControl::Close) | None => {
                        closing = true;
                        self.pass_rest(&line, &mut scratch).await;
                        let _ = line.control.try_send(SttControl::Close);
                    }
                },
                count = self.audio.read(&mut scratch, CHUNK), if !closing => {
                    if count == 0 {
                        closing = true;
                        let _ = line.control.try_send(SttControl::Close);
                        continue;
                    }
                    self.take(&line, &scratch);
                    scratch.clear();
                }
                () = at(deaf_at), if deaf_at.is_some() && !closing => self.deaf(&mut line),
                () = at(look_at), if look_at.is_some() && !closing => {
                    self.look_at = Some(Instant::now() + LOOK);
                    if let Some(next) = self.next(Some(line.at)) {
                        line = self.open(next);
                    }
                }
            }
        }
    }

    /// The best recogniser to ask now, other than this one.
    fn next(&self, other_than: Option<usize>) -> Option<usize> {
        let healths = self.relay.0.iter().enumerate();
        healths
            .filter(|(at, _)| Some(*at) != other_than)
            .find(|(_, runner)| runner.health.admits(clock::now()))
            .map(|(at, _)| at)
    }

    /// Begins with what no final covers.
    fn open(&mut self, at: usize) -> Line {
        let (audio, receiver) = audio_queue(2 * KEPT);
        let (sender, events) = mpsc::channel(EVENTS);
        let SttStream { control, .. } = self.relay.0[at].stt.open(receiver, sender);
        let start = self.backlog.start();
        let kept = self.backlog.bytes(start, KEPT);
        let samples: Vec<i16> =
            kept.as_chunks::<2>().0.iter().map(|pair| i16::from_le_bytes(*pair)).collect();
        audio.push(&samples);
        if self.finalize_asked.is_some() {
            let _ = control.try_send(SttControl::Finalize);
        }
        self.unheard_since = None;
        Line { at, audio, control, events, offset_ms: start / SAMPLES_PER_MS }
    }

    fn take(&mut self, line: &Line, samples: &[i16]) {
        line.audio.push(samples);
        if self.backlog.push(samples) {
            self.unheard_since.get_or_insert_with(Instant::now);
        } else if let Some(until) = self.backlog.quiet_until() {
            self.backlog.settle(until);
            self.unheard_since = None;
            self.finalize_asked = None;
        }
    }

    async fn pass_rest(&mut self, line: &Line, scratch: &mut Vec<i16>) {
        let waiting = self.audio.len();
        if waiting > 0 {
            self.audio.read(scratch, waiting).await;
            self.take(line, scratch);
            scratch.clear();
        }
    }

    async fn on_event(
        &mut self,
        line: &mut Line,
        event: SttEvent,
        closing: bool,
    ) -> Result<(), Over> {
        let event = match event {
            SttEvent::Lost { .. } | SttEvent::Failed(_) if !closing => {
                return self.failed(line, event).await;
            }
            SttEvent::Interim(transcript) => {
                self.unheard_since = None;
                SttEvent::Interim(moved(transcript, line.offset_ms))
            }
            SttEvent::Final(transcript) => {
                self.unheard_since = None;
                self.finalize_asked = None;
                let transcript = moved(transcript, line.offset_ms);
                let until = transcript.start_ms + transcript.duration_ms;
                self.backlog.settle(until.saturating_mul(SAMPLES_PER_MS));
                self.relay.0[line.at].health.succeeded();
                SttEvent::Final(transcript)
            }
            SttEvent::SpeechStarted => {
                self.unheard_since = None;
                event
            }
            SttEvent::Connected => {
                self.look_at = None;
                event
            }
            SttEvent::Usage { audio_ms, .. } => {
                SttEvent::Usage { link: u8::try_from(line.at).unwrap_or(u8::MAX), audio_ms }
            }
            other => other,
        };
        self.tell(event).await
    }

    /// The recogniser is lost: the next one listens, or the session is told.
    async fn failed(&mut self, line: &mut Line, event: SttEvent) -> Result<(), Over> {
        let severity = match &event {
            SttEvent::Failed(error) if !error.is_retryable() => Severity::Refused,
            _ => Severity::Passing,
        };
        let runner = &self.relay.0[line.at];
        runner.health.failed(severity, clock::now());
        let provider = runner.stt.provider();
        counter!(names::PROVIDER_ERRORS_TOTAL, "part" => "stt", "provider" => provider)
            .increment(1);
        if let Some(next) = self.next(Some(line.at)) {
            let (from, to) = (runner.stt.provider(), self.relay.0[next].stt.provider());
            warn!(from, to, "another recogniser listens from here on");
            *line = self.open(next);
            return Ok(());
        }
        self.look_at = Some(Instant::now() + LOOK);
        self.tell(event).await
    }

    /// Somebody speaks and the recogniser says nothing of it.
    fn deaf(&mut self, line: &mut Line) {
        self.unheard_since = None;
        if self.deafened.is_some_and(|at| at.elapsed() < DEAF_AGAIN) {
            return;
        }
        // One alone may hear again over another connection.
        let next = self.next(Some(line.at)).unwrap_or(line.at);
        let runner = &self.relay.0[line.at];
        let (from, to) = (runner.stt.provider(), self.relay.0[next].stt.provider());
        warn!(from, to, "a recogniser hears nothing: another listens from here on");
        runner.health.failed(Severity::Passing, clock::now());
        self.deafened = Some(Instant::now());
        *line = self.open(next);
    }

    async fn tell(&self, event: SttEvent) -> Result<(), Over> {
        self.events.send(event).await.map_err(|_| Over)
    }
}

/// Times of a recogniser's stream as times of the speaker's.
fn moved(mut transcript: Transcript, offset_ms: u64) -> Transcript {
    transcript.start_ms += offset_ms;
    for word in &mut transcript.words {
        word.start_ms += offset_ms;
        word.end_ms += offset_ms;
    }
    transcript
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
