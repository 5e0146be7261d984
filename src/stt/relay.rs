//! Several recognisers in order: when one fails, the next is sent the audio since the last final and
//! goes on with what is said now.
//!
//! When nobody hears, the audio waits for a recogniser that is back, and is heard then as if nothing
//! had happened. What has waited for too long to be answered goes to the [`Keeper`], utterance by
//! utterance, and is never heard by this stream.
//!
//! Audio is numbered from the first sample of the speaker's stream; each recogniser counts from the
//! first sample it is sent, and its times are moved accordingly.

#[cfg(test)]
mod tests;

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use metrics::counter;
use tokio::{sync::mpsc, time::Instant};
use tracing::{Instrument, warn};

use super::{
    Stt, SttControl, SttError, SttEvent, SttStream, Transcript,
    backlog::Backlog,
    cutting::{Cut, Cutter, Utterance},
    driver::SAMPLE_RATE,
    late::Keeper,
};
use crate::{
    audio::queue::{AudioReceiver, AudioSender, audio_queue},
    clock,
    net::breaker::{Health, Severity},
    telemetry::metrics as names,
};

const SAMPLES_PER_MS: u64 = SAMPLE_RATE as u64 / 1_000;
/// What is passed on at a time: at least what the recogniser lacks for its next message, so that
/// nobody is woken for less, within 20 ms and 100 ms.
const CHUNK: RangeInclusive<usize> = 20 * SAMPLES_PER_MS as usize..=100 * SAMPLES_PER_MS as usize;
/// Audio without a final that is kept for the next recogniser: 30 s.
const KEPT: usize = 30 * SAMPLE_RATE as usize;
/// When nobody hears: with so much audio waiting, what has been said of it goes to the keeper. More
/// than 10 s stay for whoever is still speaking.
const TOO_LATE: u64 = 20 * SAMPLE_RATE as u64;
/// How often to look whether somebody who spoke on and on has ended: 1 s.
const AGAIN: u64 = SAMPLE_RATE as u64;
/// Loud audio for this long without a word of it: the recogniser is deaf.
const DEAF: Duration = Duration::from_millis(2_500);
/// The same, once the session waits for a final.
const DEAF_ASKED: Duration = Duration::from_secs(1);
/// What is loud and no speech deafens no more than once in this time.
const DEAF_AGAIN: Duration = Duration::from_mins(1);
/// When everybody is down: how often to look for one that may be asked again.
const LOOK: Duration = Duration::from_secs(2);
/// By how much an interim's words, where it gives no times for them, are behind the audio: 1 s. What is
/// told twice is better than what is not told.
const BEHIND: u64 = 1_000;
const CONTROL_QUEUE: usize = 16;
const EVENTS: usize = 256;

/// One recogniser of the relay and how it has been doing.
#[derive(Debug, Clone)]
pub(super) struct Runner {
    pub stt: Arc<dyn Stt>,
    pub health: Arc<Health>,
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

    /// The best recogniser to ask now, other than this one. Who is given must report to its health.
    pub(super) fn admitted(&self, other_than: Option<usize>) -> Option<usize> {
        let mut healths = self.0.iter().enumerate().filter(|(at, _)| Some(*at) != other_than);
        healths.find(|(_, runner)| runner.health.admits(clock::now())).map(|(at, _)| at)
    }

    pub(super) fn runner(&self, at: usize) -> &Runner {
        &self.0[at]
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
        self.open_kept(audio, events, None)
    }

    fn open_kept(
        &self,
        audio: AudioReceiver,
        events: mpsc::Sender<SttEvent>,
        keeper: Option<Keeper>,
    ) -> SttStream {
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
            keeper,
            began_unix_ms: None,
            hand_over_at: 0,
            cut_short: false,
            told_until: 0,
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
    /// It says that it is connected before it has talked to anybody.
    must_prove: bool,
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
    keeper: Option<Keeper>,
    /// When the stream's first sample was heard.
    began_unix_ms: Option<i64>,
    /// When nobody hears: not before this sample is looked for what is too late.
    hand_over_at: u64,
    /// The recogniser failed while the last words were waited for.
    cut_short: bool,
    /// Up to this sample the last interim tells what was said: the session makes a row of it, whatever
    /// comes.
    told_until: u64,
}

/// Nobody wants more of this stream, or nothing more can come.
struct Over;

impl Driver {
    async fn run(mut self, mut control: mpsc::Receiver<SttControl>) {
        let Over = self.listen(&mut control).await;
        if self.look_at.is_some() || self.cut_short {
            let waiting = self.audio.len();
            let mut rest = Vec::with_capacity(waiting);
            if waiting > 0 {
                self.audio.read(&mut rest, waiting).await;
                self.take(None, &rest);
            }
            self.hand_over(true);
        }
    }

    async fn listen(&mut self, control: &mut mpsc::Receiver<SttControl>) -> Over {
        let first = self.relay.admitted(None).unwrap_or(0);
        let mut line = Some(self.open(first));
        let mut scratch = Vec::with_capacity(*CHUNK.end());
        let mut closing = false;
        loop {
            let deaf_at = line.as_ref().and_then(|line| self.deaf_at(line));
            let look_at = self.look_at;
            let lacking = line.as_ref().map_or(0, |line| line.audio.lacking());
            let least = lacking.clamp(*CHUNK.start(), *CHUNK.end());
            tokio::select! {
                biased;
                event = next_event(&mut line), if line.is_some() => {
                    let Some(event) = event else {
                        if closing {
                            return Over;
                        }
                        let error = SttError::Unreachable("the stream is gone".into());
                        if self.failed(&mut line, SttEvent::Failed(error)).await.is_err() {
                            return Over;
                        }
                        continue;
                    };
                    if self.on_event(&mut line, event, closing).await.is_err() {
                        return Over;
                    }
                }
                () = self.events.closed() => return Over,
                command = control.recv(), if !closing => match command {
                    Some(SttControl::Finalize) => {
                        self.pass_rest(line.as_ref(), &mut scratch).await;
                        self.finalize_asked.get_or_insert_with(Instant::now);
                        tell_line(line.as_ref(), SttControl::Finalize);
                    }
                    Some(SttControl::Close) | None => {
                        closing = true;
                        self.pass_rest(line.as_ref(), &mut scratch).await;
                        tell_line(line.as_ref(), SttControl::Close);
                    }
                },
                count = self.audio.read_between(&mut scratch, least, *CHUNK.end()), if !closing => {
                    if count == 0 {
                        closing = true;
                        tell_line(line.as_ref(), SttControl::Close);
                    } else {
                        self.take(line.as_ref(), &scratch);
                        scratch.clear();
                        if self.is_too_late() {
                            line = self.give_up();
                        }
                    }
                }
                () = clock::at(deaf_at), if deaf_at.is_some() && !closing => self.deaf(&mut line),
                () = clock::at(look_at), if look_at.is_some() && !closing => {
                    self.look_at = Some(Instant::now() + LOOK);
                    let listens = line.as_ref().map(|line| line.at);
                    if let Some(next) = self.relay.admitted(listens) {
                        line = Some(self.open(next));
                    }
                }
            }
            if closing && line.is_none() {
                return Over;
            }
        }
    }

    fn deaf_at(&self, line: &Line) -> Option<Instant> {
        // Who says nothing before the end cannot be told from who hears nothing.
        let since = self.unheard_since.filter(|_| self.relay.0[line.at].stt.gives_interims())?;
        let asked = self.finalize_asked.map(|at| at.max(since) + DEAF_ASKED);
        Some(asked.map_or(since + DEAF, |at| at.min(since + DEAF)))
    }

    /// Nobody hears, and some of what waits can no longer be answered.
    fn is_too_late(&self) -> bool {
        self.look_at.is_some()
            && self.keeper.is_some()
            && self.backlog.len() as u64 >= TOO_LATE
            && self.backlog.end() >= self.hand_over_at
    }

    /// Hands over what is too late. Who might still hear it must not: another line begins behind it.
    fn give_up(&mut self) -> Option<Line> {
        self.hand_over(false);
        self.relay.admitted(None).map(|at| self.open(at))
    }

    /// Gives the keeper what has been said and nothing has told; `everything`: also what is still being
    /// said.
    fn hand_over(&mut self, everything: bool) {
        let Some(keeper) = &self.keeper else { return };
        let (start, samples) = self.backlog.since(self.told_until);
        let began = self.began_unix_ms.unwrap_or_else(clock::unix_ms);
        let mut cutter = Cutter::default();
        let mut cuts = cutter.push(&samples);
        if everything {
            cuts.extend(cutter.finalize());
        }
        let mut until = start;
        for cut in cuts {
            let Cut::Utterance(Utterance { start_ms, samples }) = cut else { continue };
            let from = start + start_ms * SAMPLES_PER_MS;
            until = from + samples.len() as u64;
            keeper.keep(began.saturating_add_unsigned(from / SAMPLES_PER_MS), samples);
        }
        self.backlog.settle(until);
        self.hand_over_at = self.backlog.end() + AGAIN;
    }

    /// Begins with what no final covers.
    fn open(&mut self, at: usize) -> Line {
        let (audio, receiver) = audio_queue(2 * KEPT);
        let (sender, events) = mpsc::channel(EVENTS);
        let SttStream { control, .. } = self.relay.0[at].stt.open(receiver, sender);
        let start = self.backlog.start();
        audio.push(&self.backlog.to_vec());
        if self.finalize_asked.is_some() {
            let _ = control.try_send(SttControl::Finalize);
        }
        self.unheard_since = None;
        // The session has been told that nobody hears: only the truth may take that back.
        let must_prove = self.look_at.is_some() && !self.relay.0[at].stt.gives_interims();
        Line { at, audio, control, events, offset_ms: start / SAMPLES_PER_MS, must_prove }
    }

    fn take(&mut self, line: Option<&Line>, samples: &[i16]) {
        self.began_unix_ms.get_or_insert_with(|| {
            clock::unix_ms().saturating_sub_unsigned(samples.len() as u64 / SAMPLES_PER_MS)
        });
        if let Some(line) = line {
            line.audio.push(samples);
        }
        if self.backlog.push(samples) {
            self.unheard_since.get_or_insert_with(Instant::now);
        } else if let Some(until) = self.backlog.quiet_until() {
            self.backlog.settle(until);
            self.unheard_since = None;
            self.finalize_asked = None;
        }
    }

    async fn pass_rest(&mut self, line: Option<&Line>, scratch: &mut Vec<i16>) {
        let waiting = self.audio.len();
        if waiting > 0 {
            self.audio.read(scratch, waiting).await;
            self.take(line, scratch);
            scratch.clear();
        }
    }

    async fn on_event(
        &mut self,
        current: &mut Option<Line>,
        event: SttEvent,
        closing: bool,
    ) -> Result<(), Over> {
        let Some(line) = current else { return Ok(()) };
        let event = match event {
            SttEvent::Lost { .. } | SttEvent::Failed(_) if !closing => {
                return self.failed(current, event).await;
            }
            SttEvent::Lost { .. } | SttEvent::Failed(_) => {
                self.cut_short = true;
                event
            }
            SttEvent::Interim(transcript) => {
                self.unheard_since = None;
                let told = told_until_ms(&transcript).map(|ms| ms.saturating_add(line.offset_ms));
                self.told_until = told.unwrap_or(0).saturating_mul(SAMPLES_PER_MS);
                SttEvent::Interim(moved(transcript, line.offset_ms))
            }
            SttEvent::Final(transcript) => {
                self.unheard_since = None;
                self.finalize_asked = None;
                self.told_until = 0;
                let transcript = moved(transcript, line.offset_ms);
                let until = transcript.start_ms + transcript.duration_ms;
                self.backlog.settle(until.saturating_mul(SAMPLES_PER_MS));
                self.relay.0[line.at].health.succeeded();
                self.look_at = None;
                SttEvent::Final(transcript)
            }
            SttEvent::SpeechStarted => {
                self.unheard_since = None;
                event
            }
            SttEvent::Connected if std::mem::take(&mut line.must_prove) => return Ok(()),
            SttEvent::Connected => {
                self.look_at = None;
                event
            }
            SttEvent::Usage { audio_ms, .. } => {
                SttEvent::Usage { link: u8::try_from(line.at).unwrap_or(u8::MAX), audio_ms }
            }
            SttEvent::EndOfTurn => SttEvent::EndOfTurn,
        };
        self.tell(event).await
    }

    /// The recogniser is lost: the next one listens, or the session is told.
    async fn failed(&mut self, line: &mut Option<Line>, event: SttEvent) -> Result<(), Over> {
        let Some(at) = line.as_ref().map(|line| line.at) else { return Ok(()) };
        let is_over = matches!(&event, SttEvent::Failed(error) if !error.is_retryable());
        let severity = if is_over { Severity::Refused } else { Severity::Passing };
        let runner = &self.relay.0[at];
        runner.health.failed(severity, clock::now());
        let provider = runner.stt.provider();
        counter!(names::PROVIDER_ERRORS_TOTAL, "part" => "stt", "provider" => provider)
            .increment(1);
        if let Some(next) = self.relay.admitted(Some(at)) {
            let (from, to) = (runner.stt.provider(), self.relay.0[next].stt.provider());
            warn!(from, to, "another recogniser listens from here on");
            *line = Some(self.open(next));
            return Ok(());
        }
        if is_over {
            // It tries no more by itself; in time its health admits a new one.
            *line = None;
        }
        self.look_at = Some(Instant::now() + LOOK);
        self.tell(event).await
    }

    /// Somebody speaks and the recogniser says nothing of it.
    fn deaf(&mut self, line: &mut Option<Line>) {
        self.unheard_since = None;
        let Some(at) = line.as_ref().map(|line| line.at) else { return };
        if self.deafened.is_some_and(|at| at.elapsed() < DEAF_AGAIN) {
            return;
        }
        // One alone may hear again over another connection.
        let next = self.relay.admitted(Some(at)).unwrap_or(at);
        let runner = &self.relay.0[at];
        let (from, to) = (runner.stt.provider(), self.relay.0[next].stt.provider());
        warn!(from, to, "a recogniser hears nothing: another listens from here on");
        runner.health.failed(Severity::Passing, clock::now());
        self.deafened = Some(Instant::now());
        *line = Some(self.open(next));
    }

    async fn tell(&self, event: SttEvent) -> Result<(), Over> {
        self.events.send(event).await.map_err(|_| Over)
    }
}

async fn next_event(line: &mut Option<Line>) -> Option<SttEvent> {
    match line {
        Some(line) => line.events.recv().await,
        None => std::future::pending().await,
    }
}

fn tell_line(line: Option<&Line>, control: SttControl) {
    if let Some(line) = line {
        let _ = line.control.try_send(control);
    }
}

/// How far into the stream an interim tells what was said, in ms: to the end of its last word, or to a
/// little before the audio that had come, for its text is behind that.
fn told_until_ms(told: &Transcript) -> Option<u64> {
    if told.text.trim().is_empty() {
        return None;
    }
    let heard = told.start_ms.saturating_add(told.duration_ms);
    let by_words = told.words.last().map(|word| word.end_ms).filter(|end_ms| *end_ms > 0);
    by_words.or_else(|| heard.checked_sub(BEHIND))
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
