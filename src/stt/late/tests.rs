//! Recognisers that are all down and come back, over loopback in virtual time.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{
    queue::{DEFAULT_CAP, LateQueue},
    scribe::Scribe,
    *,
};
use crate::{
    audio::queue::{AudioReceiver, AudioSender, audio_queue},
    config::Prices,
    doubles::{Doubles, Script, faults::Faulty, serve},
    net::{backoff::Backoff, url::parse_base},
    stt::{
        Stt, SttControl, SttEvent, SttStream,
        deepgram::{Deepgram, DeepgramConfig},
        driver::Holding,
        relay::Relay,
    },
    transcript::reporter::{Reporter, ReporterConfig},
};

/// Deepgram behind a network that can be cut.
#[derive(Debug)]
struct Service {
    is_up: AtomicBool,
    sound: Deepgram,
    broken: Deepgram,
}

impl Stt for Service {
    fn provider(&self) -> &'static str {
        "deepgram"
    }

    fn model(&self) -> &str {
        self.sound.model()
    }

    fn open(&self, audio: AudioReceiver, events: mpsc::Sender<SttEvent>) -> SttStream {
        let is_up = self.is_up.load(Ordering::Relaxed);
        if is_up { &self.sound } else { &self.broken }.open(audio, events)
    }
}

struct World {
    directory: TempDir,
    _doubles: [Doubles; 2],
    services: [Arc<Service>; 2],
    relay: Relay,
}

impl World {
    async fn new() -> Self {
        Self::with(Script::default()).await
    }

    /// Whose recognisers, when they are up, follow this script.
    async fn with(sound: Script) -> Self {
        let mut script = Script::default();
        script.stt = script.stt.refuse_always(503);
        let doubles = [serve(sound).await.unwrap(), serve(script).await.unwrap()];
        let ms = Duration::from_millis;
        let holding = Holding { backoff: Backoff::new(ms(50), ms(50), 2), ..Holding::default() };
        let deepgram = |doubles: &Doubles| {
            let base = parse_base(&doubles.base_url()).unwrap();
            Deepgram::new(DeepgramConfig { holding, ..DeepgramConfig::new("key".into(), base) })
        };
        let services = [(); 2].map(|()| {
            Arc::new(Service {
                is_up: AtomicBool::new(false),
                sound: deepgram(&doubles[0]),
                broken: deepgram(&doubles[1]),
            })
        });
        let all = services.iter().map(|service| service.clone() as Arc<dyn Stt>).collect();
        let relay = Relay::new(all).unwrap();
        Self { directory: tempfile::tempdir().unwrap(), _doubles: doubles, services, relay }
    }

    fn mend(&self) {
        self.services[1].is_up.store(true, Ordering::Relaxed);
    }

    async fn queue(&self) -> LateQueue {
        LateQueue::open(self.directory.path(), DEFAULT_CAP).await.unwrap()
    }

    async fn reporter(&self) -> Reporter {
        Reporter::start(ReporterConfig {
            state_dir: self.directory.path().to_owned(),
            control_url: None,
            token: None,
            outbox_cap: 1 << 20,
        })
        .await
        .unwrap()
    }

    fn call(&self, queue: &LateQueue) -> Call {
        let info = SessionInfo {
            room: "r".into(),
            session_key: "k".into(),
            agent: "a".into(),
            started_at_unix_ms: 0,
        };
        let keeper = Keeper::new(queue.clone(), info).of("ann", "Ann");
        let (audio, receiver) = audio_queue(60 * 16_000);
        let (sender, events) = mpsc::channel(256);
        let stream = self.relay.open_kept(receiver, sender, Some(keeper));
        Call { audio, stream, events, heard: Vec::new() }
    }

    /// What was reported as late, once there are so many rows of it.
    async fn late(&self, count: usize) -> Vec<String> {
        for _ in 0..1_000 {
            let rows = late_rows(self.directory.path());
            if rows.len() >= count {
                return rows;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("only {:?}", late_rows(self.directory.path()));
    }
}

fn late_rows(state: &Path) -> Vec<String> {
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(state.join("outbox")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in text.lines() {
            let row: serde_json::Value = serde_json::from_str(&line[9..]).unwrap();
            assert_eq!(row["item"]["late"], true, "{row}");
            assert_eq!(row["item"]["speakerName"], "Ann", "{row}");
            rows.push(row["item"]["content"].as_str().unwrap().to_owned());
        }
    }
    rows
}

struct Call {
    audio: AudioSender,
    stream: SttStream,
    events: mpsc::Receiver<SttEvent>,
    heard: Vec<String>,
}

impl Call {
    /// A second of speech and a second of silence, as they come.
    async fn says(&mut self, times: usize) {
        for half in 0..20 * 2 * times {
            let level = if half % 40 < 20 { 3_000 } else { 0 };
            let samples: Vec<i16> =
                (0..800).map(|n| if n % 20 < 10 { level } else { -level }).collect();
            self.audio.push(&samples);
            tokio::time::sleep(Duration::from_millis(50)).await;
            while let Ok(event) = self.events.try_recv() {
                self.take(event);
            }
        }
    }

    fn take(&mut self, event: SttEvent) {
        if let SttEvent::Final(transcript) = event
            && !transcript.text.is_empty()
        {
            self.heard.push(transcript.text);
        }
    }

    async fn ends(mut self) -> Vec<String> {
        self.stream.control.send(SttControl::Close).await.unwrap();
        while let Some(event) = self.events.recv().await {
            self.take(event);
        }
        self.stream.task.await.unwrap();
        self.heard
    }
}

/// Each utterance once, whoever told it.
fn assert_all(count: usize, told: &[String]) {
    let expected: BTreeSet<String> = (1..=count).map(|n| format!("utterance {n}")).collect();
    assert_eq!(told.len(), count, "{told:?}");
    assert_eq!(told.iter().cloned().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn what_a_recogniser_that_has_fallen_silent_did_not_tell_before_the_end_is_heard_later() {
    // Silent from the beginning, and after it has told all of the utterance, but not for good.
    for (stall, kept) in [(0, 1), (1_050, 0)] {
        let mut script = Script::new(["One two three four five six"], [""; 0]);
        script.stt = script.stt.stall_after(Duration::from_millis(stall));
        let world = World::with(script).await;
        world.services[0].is_up.store(true, Ordering::Relaxed);
        let queue = world.queue().await;
        let mut call = world.call(&queue);
        call.says(1).await;
        assert!(call.ends().await.is_empty());
        assert!(queue.flush(Duration::from_secs(20)).await);
        assert_eq!(queue.waiting().await.unwrap().0, kept, "{stall}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waited_too_long_is_a_late_row_and_the_rest_is_heard_as_ever() {
    let world = World::new().await;
    let queue = world.queue().await;
    let mut call = world.call(&queue);
    call.says(14).await;
    assert!(call.heard.is_empty());
    assert!(queue.flush(Duration::from_secs(20)).await);
    let (queued, _) = queue.waiting().await.unwrap();
    assert!((9..14).contains(&queued), "{queued}");

    world.mend();
    let _scribe =
        Scribe::start(queue, world.relay.clone(), Prices::default(), world.reporter().await);
    call.says(60).await;
    let late = world.late(queued).await;
    let heard = call.ends().await;
    assert!(heard.len() > 10, "{heard:?}");
    assert_all(74, &[late, heard].concat());
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_makes_no_late_rows() {
    let world = World::new().await;
    let queue = world.queue().await;
    let mut call = world.call(&queue);
    call.says(4).await;
    assert!(call.heard.is_empty());
    world.mend();
    call.says(6).await;
    assert_all(10, &call.ends().await);
    assert_eq!(queue.waiting().await.unwrap().0, 0);
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_unheard_is_understood_by_the_next_process() {
    let world = World::new().await;
    let queue = world.queue().await;
    let mut call = world.call(&queue);
    call.says(3).await;
    assert!(call.ends().await.is_empty());
    assert!(queue.flush(Duration::from_secs(20)).await);
    drop(queue);

    world.mend();
    let queue = world.queue().await;
    // As `antiphon transcribe-queue` does; the worker's does the same until it is stopped.
    let understood = Scribe::drain(
        queue.clone(),
        world.relay.clone(),
        Prices::default(),
        world.reporter().await,
    )
    .await;
    assert_eq!((understood, queue.waiting().await.unwrap().0), (3, 0));
    assert_all(3, &world.late(3).await);
}
