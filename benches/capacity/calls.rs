//! The whole worker in calls, against provider doubles: what a call costs, how soon it is answered,
//! and whether any of its answers has a gap.
//!
//! The callers take less than a hundredth of a core each, so that the machine is not full of them: what
//! is late is the worker, or what it shares the machine with.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ::antiphon::{audio::level::dbfs, clock, doubles::Script};
use ::livekit::{
    prelude::{RemoteAudioTrack, RemoteTrack, Room, RoomEvent, RoomOptions},
    webrtc::{
        audio_frame::AudioFrame,
        audio_source::{AudioSourceOptions, native::NativeAudioSource},
        audio_stream::native::NativeAudioStream,
        stats::RtcStats,
    },
};
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    delay::rank,
    member,
    process::{Child, Usage},
    support::{antiphon::Worker, caller::fixture, livekit::LiveKit, stage::Stage},
};

const RATE: u32 = 16_000;
/// What a microphone gives at a time: 20 ms.
const FRAME: usize = RATE as usize / 50;
const FRAME_TIME: Duration = Duration::from_millis(20);
/// The agent's voice is louder than this, and what is made up for a lost packet fades below.
const AUDIBLE: f32 = -50.0;
/// Silence of this length ends an answer; shorter is a gap in it.
const HANG: Duration = Duration::from_millis(600);
/// From an answer's end to the next question.
const PAUSE: Duration = Duration::from_secs(1);
/// The calls' questions begin so much apart, so that they overlap in every way, in so many groups.
const APART: Duration = Duration::from_millis(370);
const PHASES: u32 = 13;
/// An answer that has not come by then does not count, and the call goes on.
const PATIENCE: Duration = Duration::from_secs(10);
/// What recognition makes of every question; the fixture's own words.
const QUESTION: &str = "What time do you open on Saturday?";
/// Spoken without a pause, four seconds long.
const ANSWER: &str = "Certainly, we have a table for four at eight on Saturday evening.";

/// What the callers of a level have seen.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Seen {
    /// From the end of a question to the first sound of the answer, in ms.
    responses: Vec<f64>,
    /// Questions without an answer, and those that were answered before their end.
    unanswered: usize,
    early: usize,
    /// Silences of 10 ms or more within an answer.
    gaps: usize,
    /// Samples made up for packets that were late or lost while the agent spoke, in ms of 48 kHz.
    concealed_ms: f64,
    /// The latest that a caller's own microphone was.
    late_ms: f64,
}

#[derive(Debug, Serialize)]
pub struct Level {
    rooms: usize,
    questions: usize,
    answers: usize,
    response_p50_ms: f64,
    response_p95_ms: f64,
    /// Of one core, from the first question to the end of the last call.
    cpu_percent: f64,
    cpu_percent_per_room: f64,
    pss_mb_per_room: f64,
    seen: Seen,
}

impl Level {
    pub fn all_answered(&self) -> bool {
        self.answers == self.questions
    }
}

/// One level after another, each with a worker, callers and a server of its own.
pub async fn measure(levels: &[usize], turns: usize) -> Vec<Level> {
    println!(
        "| calls | answers | response p50 / p95, ms | CPU, % of a core | a call | PSS, MB, a call \
         | gaps | concealed, ms | callers late by, ms |\n|---|---|---|---|---|---|---|---|---|"
    );
    let mut measured = Vec::new();
    for &rooms in levels {
        let level = Box::pin(level(rooms, turns)).await;
        println!(
            "| {} | {} of {} | {:.0} / {:.0} | {:.1} | {:.2} | {:.2} | {} | {:.1} | {:.0} |",
            level.rooms,
            level.answers,
            level.questions,
            level.response_p50_ms,
            level.response_p95_ms,
            level.cpu_percent,
            level.cpu_percent_per_room,
            level.pss_mb_per_room,
            level.seen.gaps,
            level.seen.concealed_ms,
            level.seen.late_ms,
        );
        if !level.all_answered() {
            let Seen { unanswered, early, .. } = level.seen;
            eprintln!("{unanswered} had no answer, {early} had theirs before they ended");
        }
        measured.push(level);
    }
    measured
}

async fn level(rooms: usize, turns: usize) -> Level {
    let script = Script::new(vec![QUESTION; rooms * turns], vec![ANSWER; rooms * turns]);
    let stage = Stage::set(script).await;
    let mut options = stage.worker_options("lab");
    options.more.push(("ANTIPHON_SILENCE_THRESHOLD_MS", "250".into()));
    let worker = Worker::start(&options).await;
    let usage = || Usage::of(worker.process.id().expect("a running worker"));
    let mut callers = Child::start("talkers", &stage.livekit.url);
    callers.ask(&format!("turns {turns}")).await;
    // What a worker warms up at its start takes a moment.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle = usage();
    for room in 0..rooms {
        let room = format!("calls-{rooms}-{room}");
        callers.ask(&format!("join {room}")).await;
        stage.livekit.dispatch("test-agent", &room).await;
    }
    while callers.ask("greeted").await != rooms.to_string() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let before = usage();
    let mut most_mb = before.pss_mb;
    callers.ask("go").await;
    while callers.ask("talking").await != "0" {
        tokio::time::sleep(Duration::from_secs(1)).await;
        most_mb = most_mb.max(usage().pss_mb);
    }
    let cpu_percent = Usage::cpu_percent(&before, &usage());
    let mut seen: Seen = serde_json::from_str(&callers.ask("seen").await).expect("what was seen");
    callers.end().await;
    seen.responses.sort_by(f64::total_cmp);
    Level {
        rooms,
        questions: rooms * turns,
        answers: seen.responses.len(),
        response_p50_ms: rank(&seen.responses, 0.5),
        response_p95_ms: rank(&seen.responses, 0.95),
        cpu_percent,
        cpu_percent_per_room: cpu_percent / rooms as f64,
        pss_mb_per_room: (most_mb - idle.pss_mb) / rooms as f64,
        seen,
    }
}

/// The callers' process: obeys the lines that come in until they end.
pub async fn serve(url: &str) {
    ::antiphon::room::warm_up::warm_up().await;
    ::antiphon::room::signal::install();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (mut calls, mut joined, mut turns) = (JoinSet::new(), 0, 0);
    let question: Arc<[i16]> = question().into();
    let go = watch::Sender::new(false);
    let greeted = Arc::new(AtomicUsize::new(0));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("turns", count) => {
                turns = count.parse().expect("a count");
                println!("ready");
            }
            ("join", name) => {
                let token = LiveKit::token(name, "caller");
                let options = RoomOptions::default();
                let (room, events) = Room::connect(url, &token, options).await.expect("a room");
                let mut call = Call {
                    room,
                    turns,
                    question: question.clone(),
                    first: APART * (joined % PHASES),
                    go: go.subscribe(),
                    greeted: greeted.clone(),
                    seen: seen.clone(),
                };
                calls.spawn(async move { call.run(events).await });
                joined += 1;
                println!("joined");
            }
            ("greeted", _) => println!("{}", greeted.load(Ordering::Relaxed)),
            ("go", _) => {
                go.send_replace(true);
                println!("gone");
            }
            ("talking", _) => {
                while calls.try_join_next().is_some() {}
                println!("{}", calls.len());
            }
            _ => println!("{}", serde_json::to_string(&*seen.lock()).expect("JSON")),
        }
    }
}

/// What the ear tells the mouth: the agent's voice as it begins and ends.
#[derive(Debug, Default)]
struct Ear {
    began: Option<Instant>,
    last: Option<Instant>,
    /// Silent frames since the last audible one.
    silent: usize,
    gaps: usize,
}

impl Ear {
    fn hear(&mut self, samples: &[i16], now: Instant) {
        if dbfs(samples) < AUDIBLE {
            self.silent += 1;
            return;
        }
        let silent = std::mem::take(&mut self.silent);
        match self.last {
            Some(last) if now - last < HANG => self.gaps += usize::from(silent > 0),
            _ => self.began = Some(now),
        }
        self.last = Some(now);
    }

    /// The voice that began after then, if any.
    fn began_after(&self, then: Instant) -> Option<Instant> {
        self.began.filter(|began| *began > then)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now - last >= HANG)
    }
}

/// One call: hears the greeting out, waits for the others, asks its questions, and leaves.
struct Call {
    room: Room,
    turns: usize,
    question: Arc<[i16]>,
    /// How long after all have been greeted it begins.
    first: Duration,
    go: watch::Receiver<bool>,
    greeted: Arc<AtomicUsize>,
    seen: Arc<Mutex<Seen>>,
}

impl Call {
    async fn run(&mut self, mut events: mpsc::UnboundedReceiver<RoomEvent>) {
        let source = NativeAudioSource::new(AudioSourceOptions::default(), RATE, 1, 100);
        member::publish(&self.room, source.clone()).await;
        let track = loop {
            let event = events.recv().await.expect("the caller stays");
            if let RoomEvent::TrackSubscribed { track: RemoteTrack::Audio(track), .. } = event {
                break track;
            }
        };
        let ear = Arc::new(Mutex::new(Ear::default()));
        let stream = NativeAudioStream::new(track.rtc_track(), RATE as i32, 1);
        tokio::spawn(listen(stream, ear.clone()));
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        let mut microphone = Microphone::new(source);
        microphone.silence_until(|now| ear.lock().is_over(now)).await;
        self.greeted.fetch_add(1, Ordering::Relaxed);
        microphone.silence_until(|_| *self.go.borrow_and_update()).await;
        microphone.rest(self.first).await;
        for _ in 0..self.turns {
            microphone.rest(PAUSE).await;
            let asked = clock::now();
            let end = microphone.say(&self.question).await;
            let is_over = |now| {
                let ear = ear.lock();
                now - end > PATIENCE || (ear.began_after(asked).is_some() && ear.is_over(now))
            };
            microphone.silence_until(is_over).await;
            let began = ear.lock().began_after(asked);
            let mut seen = self.seen.lock();
            match began {
                None => seen.unanswered += 1,
                Some(began) if began < end => seen.early += 1,
                Some(began) => seen.responses.push((began - end).as_secs_f64() * 1_000.0),
            }
        }
        let concealed = concealed(&track).await;
        {
            let mut seen = self.seen.lock();
            seen.concealed_ms += concealed;
            seen.gaps += ear.lock().gaps;
            seen.late_ms = seen.late_ms.max(microphone.late.as_secs_f64() * 1_000.0);
        }
        let _ = self.room.close().await;
    }
}

async fn listen(mut stream: NativeAudioStream, ear: Arc<Mutex<Ear>>) {
    while let Some(frame) = stream.next().await {
        ear.lock().hear(&frame.data, clock::now());
    }
}

/// What was made up for the agent's packets so far, in ms. Its pauses do not count.
async fn concealed(track: &RemoteAudioTrack) -> f64 {
    let stats = track.get_stats().await.expect("statistics");
    let inbound = stats.into_iter().find_map(|stats| match stats {
        RtcStats::InboundRtp(stats) => Some(stats.inbound),
        _ => None,
    });
    let inbound = inbound.expect("what came in");
    let seconds = inbound.total_samples_duration / inbound.total_samples_received as f64;
    inbound.concealed_samples as f64 * seconds * 1_000.0
}

/// The utterance of a fixture, from its first sample to its last.
fn question() -> Vec<i16> {
    let samples = fixture("en-us-question.wav");
    let at = |ms: usize| (ms * RATE as usize / 1_000).min(samples.len());
    // As its `.expected.json` says.
    samples[at(500)..at(2_509)].to_vec()
}

/// A microphone that is always on: faint noise when nothing is said.
struct Microphone {
    source: NativeAudioSource,
    due: Instant,
    noise: u32,
    late: Duration,
}

impl Microphone {
    fn new(source: NativeAudioSource) -> Self {
        Self { source, due: clock::now(), noise: 1, late: Duration::ZERO }
    }

    /// Gives a frame when it is due; the time then.
    async fn capture(&mut self, samples: &[i16]) -> Instant {
        self.due += FRAME_TIME;
        tokio::time::sleep_until(self.due.into()).await;
        let now = clock::now();
        self.late = self.late.max(now - self.due);
        let frame = AudioFrame {
            data: samples.into(),
            sample_rate: RATE,
            num_channels: 1,
            samples_per_channel: samples.len() as u32,
        };
        self.source.capture_frame(&frame).await.expect("a captured frame");
        now
    }

    async fn silence(&mut self) -> Instant {
        let mut frame = [0; FRAME];
        for sample in &mut frame {
            self.noise = self.noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *sample = (self.noise >> 26) as i16 - 32;
        }
        self.capture(&frame).await
    }

    async fn silence_until(&mut self, mut done: impl FnMut(Instant) -> bool) {
        while !done(self.silence().await) {}
    }

    async fn rest(&mut self, time: Duration) {
        let until = clock::now() + time;
        self.silence_until(|now| now >= until).await;
    }

    /// Says all of it; the time of its last sample.
    async fn say(&mut self, samples: &[i16]) -> Instant {
        let mut end = clock::now();
        for frame in samples.chunks(FRAME) {
            end = self.capture(frame).await;
        }
        end
    }
}
