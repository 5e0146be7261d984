//! Works the queue off: one utterance at a time, at the pace of speech, as soon as a recogniser may
//! be asked again.

use std::{collections::HashMap, io, path::PathBuf, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::queue::{Claim, LateQueue};
use crate::{
    audio::queue::audio_queue,
    clock,
    config::Prices,
    net::breaker::Severity,
    session::command::Usage,
    stt::{
        Stt, SttControl, SttError, SttEvent, SttStream, Transcript, driver::SAMPLE_RATE,
        relay::Relay,
    },
    telemetry::{metrics as names, usage::Used},
    transcript::{
        reporter::{Reporter, SessionReporter},
        segment::SpeakerKind,
        wire::Spoken,
    },
};

/// How often to look when everybody is down, or nothing is there.
const LOOK: Duration = Duration::from_secs(2);
/// How often to look for what another process left.
const ADOPT: Duration = Duration::from_mins(1);
/// When the disk or the outbox fails.
const TROUBLE: Duration = Duration::from_secs(10);
/// One that was asked for gives up after so many failures in a row.
const FAILURES: u32 = 5;
/// 100 ms are sent at a time.
const PIECE: usize = SAMPLE_RATE as usize / 10;
const PACE: Duration = Duration::from_millis(100);
/// Silence behind the utterance, by which recognisers tell its end.
const AFTER: usize = 10;
/// The last words after the end was asked for.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// For the connection, and for the goodbye.
const PATIENCE: Duration = Duration::from_secs(15);
/// An utterance that fails so often while others are understood is set aside.
const STRIKES: u32 = 3;
const EVENTS: usize = 256;

/// Understands what is in the queue, and reports it.
#[derive(Debug)]
pub struct Scribe {
    queue: LateQueue,
    relay: Relay,
    prices: Prices,
    reporter: Reporter,
    tried: HashMap<PathBuf, Tried>,
    /// Of the session whose utterance was the last.
    session: Option<SessionReporter>,
}

/// What became of earlier tries of an utterance.
#[derive(Debug, Default, Clone, Copy)]
struct Tried {
    times: u32,
    /// Tries that failed although others succeeded since the try before.
    strikes: u32,
    others_succeeded: bool,
    /// A sound recogniser found nothing in it.
    empty: bool,
}

/// What came of one utterance.
enum Outcome {
    Understood,
    /// There is nothing to do now.
    Nothing,
    Failed,
    /// Disk or outbox.
    Trouble(io::Error),
}

impl Scribe {
    /// Begins; ends when the handle is dropped. What is not done then is on disk. Runs in a tokio
    /// runtime.
    pub fn start(
        queue: LateQueue,
        relay: Relay,
        prices: Prices,
        reporter: Reporter,
    ) -> AbortOnDropHandle<()> {
        let scribe = Self { queue, relay, prices, reporter, tried: HashMap::new(), session: None };
        AbortOnDropHandle::new(tokio::spawn(scribe.run()))
    }

    /// Works it off as far as that goes now; how many utterances were understood. Runs in a tokio
    /// runtime.
    pub async fn drain(queue: LateQueue, relay: Relay, prices: Prices, reporter: Reporter) -> u64 {
        let mut scribe =
            Self { queue, relay, prices, reporter, tried: HashMap::new(), session: None };
        let (mut understood, mut failures) = (0, 0);
        while failures < FAILURES {
            match scribe.one().await {
                Outcome::Understood => {
                    understood += 1;
                    failures = 0;
                }
                Outcome::Nothing => break,
                Outcome::Failed => {
                    failures += 1;
                    sleep(LOOK).await;
                }
                Outcome::Trouble(error) => {
                    warn!(%error, "late transcripts have to wait");
                    break;
                }
            }
        }
        understood
    }

    async fn run(mut self) {
        loop {
            match self.one().await {
                Outcome::Understood => {}
                Outcome::Nothing => {
                    self.session = None;
                    self.queue.wait(ADOPT).await;
                }
                Outcome::Failed => sleep(LOOK).await,
                Outcome::Trouble(error) => {
                    warn!(%error, "late transcripts have to wait");
                    sleep(TROUBLE).await;
                }
            }
        }
    }

    async fn one(&mut self) -> Outcome {
        let times = self.tried.iter().map(|(path, tried)| (path.clone(), tried.times)).collect();
        let claim = match self.queue.claim(&times).await {
            Ok(Some(claim)) => claim,
            Ok(None) => {
                self.tried.clear();
                return Outcome::Nothing;
            }
            Err(error) => return Outcome::Trouble(error),
        };
        let before = self.tried.get(claim.path()).copied().unwrap_or_default();
        let Some(at) = self.relay.admitted(None) else { return Outcome::Failed };
        let runner = self.relay.runner(at);
        match hear(&*runner.stt, &claim.samples).await {
            Ok(heard) if heard.text.is_empty() && !before.empty => {
                // A recogniser that is half dead hears nothing either.
                self.tried.entry(claim.path().to_owned()).or_default().empty = true;
                self.note(&claim, false);
                Outcome::Failed
            }
            Ok(heard) => {
                runner.health.succeeded();
                let usage = Usage::Stt { link: 0, audio_ms: heard.audio_ms };
                let (provider, model) = (runner.stt.provider(), runner.stt.model().to_owned());
                let cost = self.prices.cost(provider, &model, usage);
                let used = Used { usage, provider, model: &model, cost };
                self.report(claim, heard, |session| session.usage(used)).await
            }
            Err(error) => {
                let severity =
                    if error.is_retryable() { Severity::Passing } else { Severity::Refused };
                runner.health.failed(severity, clock::now());
                warn!(provider = runner.stt.provider(), %error, "late audio is still not heard");
                self.note(&claim, true);
                let strikes = self.tried.get(claim.path()).map_or(0, |tried| tried.strikes);
                if strikes >= STRIKES {
                    warn!(path = %claim.path().display(), "audio that nobody takes is set aside");
                    self.tried.remove(claim.path());
                    if let Err(error) = claim.set_aside().await {
                        return Outcome::Trouble(error);
                    }
                }
                Outcome::Failed
            }
        }
    }

    fn note(&mut self, claim: &Claim, failed: bool) {
        let tried = self.tried.entry(claim.path().to_owned()).or_default();
        tried.times += 1;
        if failed && std::mem::take(&mut tried.others_succeeded) {
            tried.strikes += 1;
        }
    }

    async fn report(
        &mut self,
        claim: Claim,
        heard: Heard,
        tell_usage: impl FnOnce(&SessionReporter),
    ) -> Outcome {
        let info = &claim.head.session;
        let session = match self.session.take_if(|session| session.info() == info) {
            Some(session) => session,
            None => self.reporter.session(info.clone()),
        };
        if !heard.text.is_empty() {
            let Heard { text, start_ms, duration_ms, confidence, .. } = heard;
            let spoken = Spoken {
                id: claim.id(),
                kind: SpeakerKind::User,
                speaker_id: claim.head.speaker_id.clone(),
                speaker_name: claim.head.speaker_name.clone(),
                content: text,
                spoken_at_unix_ms: claim.head.spoken_at_unix_ms.saturating_add_unsigned(start_ms),
                duration_ms,
                confidence,
                late: true,
            };
            // Under the same id once more, should this process die before the file goes.
            if let Err(error) = session.late(spoken).await {
                return Outcome::Trouble(error);
            }
            let room = &info.room;
            info!(room, "what nobody could hear then is understood now");
        }
        tell_usage(&session);
        self.session = Some(session);
        metrics::counter!(names::STT_LATE_TOTAL, "outcome" => "understood").increment(1);
        self.tried.remove(claim.path());
        for others in self.tried.values_mut() {
            others.others_succeeded = true;
        }
        match claim.remove().await {
            Ok(()) => Outcome::Understood,
            Err(error) => Outcome::Trouble(error),
        }
    }
}

/// What an utterance says, all of it.
#[derive(Debug, Default)]
struct Heard {
    text: String,
    /// Of the words, from the utterance's beginning.
    start_ms: u64,
    duration_ms: u64,
    confidence: f32,
    /// What the provider was sent.
    audio_ms: u64,
}

impl Heard {
    fn add(&mut self, told: &Transcript) {
        let (first, end) = match (told.words.first(), told.words.last()) {
            (Some(first), Some(last)) => (first.start_ms, last.end_ms),
            _ => (told.start_ms, told.start_ms + told.duration_ms),
        };
        if self.text.is_empty() {
            self.start_ms = first;
            self.confidence = told.confidence;
        } else {
            self.text.push(' ');
            self.confidence = self.confidence.min(told.confidence);
        }
        self.text.push_str(told.text.trim());
        self.duration_ms = end.saturating_sub(self.start_ms);
    }
}

/// Lets one recogniser hear one utterance over a stream of its own.
///
/// # Errors
/// The first failure: what was told until then does not count.
async fn hear(stt: &dyn Stt, samples: &[i16]) -> Result<Heard, SttError> {
    let (audio, receiver) = audio_queue(samples.len() + (AFTER + 1) * PIECE);
    let (sender, mut events) = mpsc::channel(EVENTS);
    let SttStream { control, task } = stt.open(receiver, sender);
    let _stream = AbortOnDropHandle::new(task);
    let mut heard = Heard::default();
    let silence = [0; PIECE];
    let pieces = samples.chunks(PIECE).chain(std::iter::repeat_n(&silence[..], AFTER));
    await_connection(&mut events, &mut heard).await?;
    let mut due = Instant::now();
    for piece in pieces {
        audio.push(piece);
        due += PACE;
        while let Ok(event) = timeout_at(due, events.recv()).await {
            take(event, &mut heard)?;
        }
        sleep_until(due).await;
    }
    let _ = control.send(SttControl::Finalize).await;
    due = Instant::now() + LAST_WORDS;
    while let Ok(event) = timeout_at(due, events.recv()).await {
        if take(event, &mut heard)? {
            break;
        }
    }
    let _ = control.send(SttControl::Close).await;
    due = Instant::now() + PATIENCE;
    loop {
        match timeout_at(due, events.recv()).await {
            Ok(Some(event)) => _ = take(Some(event), &mut heard)?,
            Ok(None) => return Ok(heard),
            Err(_) => return Err(SttError::Unreachable("the stream does not end".into())),
        }
    }
}

async fn await_connection(
    events: &mut mpsc::Receiver<SttEvent>,
    heard: &mut Heard,
) -> Result<(), SttError> {
    let due = Instant::now() + PATIENCE;
    loop {
        match timeout_at(due, events.recv()).await {
            Ok(Some(SttEvent::Connected)) => return Ok(()),
            Ok(event) => _ = take(event, heard)?,
            Err(_) => return Err(SttError::Unreachable("no connection in time".into())),
        }
    }
}

/// `true` at the end of a turn.
fn take(event: Option<SttEvent>, heard: &mut Heard) -> Result<bool, SttError> {
    match event {
        None => return Err(SttError::Unreachable("the stream is gone".into())),
        Some(SttEvent::Lost { reason, .. }) => return Err(SttError::Unreachable(reason)),
        Some(SttEvent::Failed(error)) => return Err(error),
        Some(SttEvent::Final(told)) => heard.add(&told),
        Some(SttEvent::Usage { audio_ms, .. }) => heard.audio_ms += audio_ms,
        Some(SttEvent::EndOfTurn) => return Ok(true),
        Some(_) => {}
    }
    Ok(false)
}
