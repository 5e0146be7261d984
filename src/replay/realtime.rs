//! A WAV as the caller's microphone, in real time (or as fast as a paused tokio runtime's clock
//! goes), through the same driver as in a room.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{
    audio::fade::fade_out,
    clock,
    session::{
        driver::{self, DriverConfig, Providers},
        ports::{Microphone, RoomEvent, Shown, Voice},
        state::{AgentState, CloseReason},
    },
};

/// Samples of 10 ms at 16 kHz.
const FRAME: usize = 160;
/// The agent has nothing more to say when it has been idle for this long after the WAV's end.
const SETTLE: Duration = Duration::from_millis(2_500);
/// However long the agent talks, the replay ends this long after the WAV.
const LONGEST_TAIL: Duration = Duration::from_mins(2);

/// Samples as a microphone, paced by the clock, with silence after their end.
#[derive(Debug)]
pub struct WavMicrophone {
    samples: Arc<[i16]>,
    at: usize,
    due: Instant,
}

impl WavMicrophone {
    /// `samples`: mono s16 at 16 kHz.
    pub fn new(samples: Arc<[i16]>, start: Instant) -> Self {
        Self { samples, at: 0, due: start }
    }
}

#[async_trait]
impl Microphone for WavMicrophone {
    async fn read(&mut self, into: &mut Vec<i16>) -> bool {
        self.due += Duration::from_millis(10);
        tokio::time::sleep_until(self.due.into()).await;
        let rest = self.samples.get(self.at..).unwrap_or_default();
        let frame = &rest[..rest.len().min(FRAME)];
        into.extend_from_slice(frame);
        into.resize(into.len() + FRAME - frame.len(), 0);
        self.at += FRAME;
        true
    }
}

/// The agent's voice as it would have been heard: mono s16 on one time line.
#[derive(Debug, Clone)]
pub struct Recording {
    rate: u32,
    start: Instant,
    samples: Arc<Mutex<Vec<i16>>>,
}

impl Recording {
    pub fn new(rate: u32, start: Instant) -> Self {
        Self { rate, start, samples: Arc::default() }
    }

    /// What has been recorded, from the start on.
    pub fn samples(&self) -> Vec<i16> {
        self.samples.lock().clone()
    }

    fn now(&self) -> usize {
        let since = clock::now().saturating_duration_since(self.start);
        usize::try_from(since.as_micros() * u128::from(self.rate) / 1_000_000).unwrap_or(usize::MAX)
    }
}

#[async_trait]
impl Voice for Recording {
    async fn write(&mut self, frame: &[i16]) {
        let now = self.now();
        let mut samples = self.samples.lock();
        // Frames follow each other without a seam unless there was a pause.
        if samples.len() < now {
            samples.resize(now, 0);
        }
        samples.extend_from_slice(frame);
    }

    fn clear(&mut self) {
        let now = self.now();
        let mut samples = self.samples.lock();
        samples.truncate(now + self.rate as usize / 100);
        let from = now.min(samples.len());
        fade_out(&mut samples[from..]);
    }
}

/// What came of a replay.
#[derive(Debug)]
pub struct Replayed {
    pub reason: CloseReason,
    /// The agent's voice, mono s16.
    pub reply: Vec<i16>,
    pub reply_rate: u32,
}

/// Plays `samples` (mono s16 at 16 kHz) to an agent and lets it answer to the end. `observe` sees
/// everything shown, with ms since the start.
pub async fn run(
    samples: Arc<[i16]>,
    config: DriverConfig,
    providers: Providers,
    observe: impl AsyncFnMut(u64, &Shown),
) -> Replayed {
    run_through(|microphone| Box::new(microphone), samples, config, providers, observe).await
}

/// The same, with the microphone that is made of the one that plays the samples.
pub async fn run_through(
    microphone: impl FnOnce(WavMicrophone) -> Box<dyn Microphone>,
    samples: Arc<[i16]>,
    config: DriverConfig,
    providers: Providers,
    observe: impl AsyncFnMut(u64, &Shown),
) -> Replayed {
    let start = clock::now();
    let rate = providers.speaking.as_ref().map_or(16_000, |(_, tts)| tts.sample_rate());
    let recording = Recording::new(rate, start);
    let length = Duration::from_millis(samples.len() as u64 / 16);
    let (room, room_events) = mpsc::channel(64);
    providers.room.bind(&room);
    let (shown_sender, shown) = mpsc::channel(1_024);
    let voice = Box::new(recording.clone());
    let session =
        tokio::spawn(driver::run(config, providers, room_events, Some(voice), shown_sender));
    let microphone = microphone(WavMicrophone::new(samples, start));
    let spoken = tokio::time::sleep_until((start + length).into());
    conduct(&room, shown, microphone, start, spoken, observe).await;
    let reason = session.await.unwrap_or(CloseReason::Failed);
    Replayed { reason, reply: recording.samples(), reply_rate: rate }
}

/// One caller's call: joins, is heard, and leaves when what was said until `spoken` has been
/// answered.
pub async fn conduct(
    room: &mpsc::Sender<RoomEvent>,
    mut shown: mpsc::Receiver<Shown>,
    microphone: Box<dyn Microphone>,
    start: Instant,
    spoken: impl Future<Output = ()>,
    mut observe: impl AsyncFnMut(u64, &Shown),
) {
    let identity = "caller".to_owned();
    let opening = [
        RoomEvent::Ready,
        RoomEvent::ParticipantJoined { identity: identity.clone(), name: "Caller".into() },
        RoomEvent::Audible { identity, track: "microphone".into(), microphone },
    ];
    for event in opening {
        let _ = room.send(event).await;
    }
    let since_start = || clock::now().saturating_duration_since(start).as_millis() as u64;
    let (mut idle, mut quiet_since) = (true, start);
    let mut speech_end: Option<Instant> = None;
    tokio::pin!(spoken);
    loop {
        let end = speech_end.map(|end| {
            let settled = if idle { quiet_since.max(end) + SETTLE } else { end + LONGEST_TAIL };
            settled.min(end + LONGEST_TAIL)
        });
        tokio::select! {
            biased;
            event = shown.recv() => {
                let Some(event) = event else { return };
                if let Shown::State(state) = &event {
                    idle = *state == AgentState::Idle;
                }
                if !matches!(event, Shown::Usage(_) | Shown::UserState(_)) {
                    quiet_since = clock::now();
                }
                observe(since_start(), &event).await;
            }
            () = &mut spoken, if speech_end.is_none() => speech_end = Some(clock::now()),
            () = clock::at(end) => break,
        }
    }
    let _ = room.send(RoomEvent::Closed { reason: CloseReason::InputEnded }).await;
    while let Some(event) = shown.recv().await {
        observe(since_start(), &event).await;
    }
}
