//! What is said over the agent.

use std::time::Instant;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::*;
use crate::{
    clock,
    replay::realtime::{Recording, WavMicrophone, conduct},
    session::{driver, ports::Microphone},
};

/// Notes when it was to come in batches, in ms since the start.
#[derive(Debug)]
struct Noting {
    inner: WavMicrophone,
    start: Instant,
    batching: Arc<Mutex<Vec<(u64, bool)>>>,
}

#[async_trait]
impl Microphone for Noting {
    async fn read(&mut self, into: &mut Vec<i16>) -> bool {
        self.inner.read(into).await
    }

    fn set_batching(&mut self, batching: bool) {
        let since = clock::now().saturating_duration_since(self.start);
        self.batching.lock().push((since.as_millis() as u64, batching));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_said_over_the_agent_comes_as_it_is_said() {
    let agent = agent(ALONE);
    let doubles = serve(Script::new([QUESTION, NEXT_QUESTION], [ANSWER])).await.unwrap();
    let base = Url::parse(&doubles.base_url()).unwrap();
    let providers = providers(&agent, double_endpoints(&agent, &base)).unwrap();
    let config = driver_config(&agent, "", "agent");
    // The second question begins 2.5 s after the first, and the agent answers that until then.
    let (samples, ends) = caller(2, Duration::from_secs(5));
    let start = clock::now();
    let length = Duration::from_millis(samples.len() as u64 / 16);
    let (room, room_events) = mpsc::channel(64);
    let (shown_sender, shown) = mpsc::channel(1_024);
    let voice = Box::new(Recording::new(16_000, start));
    let run = driver::run(config, providers, room_events, Some(voice), shown_sender);
    let session = tokio::spawn(run);
    let batching = Arc::<Mutex<Vec<(u64, bool)>>>::default();
    let inner = WavMicrophone::new(Arc::from(samples), start);
    let microphone = Box::new(Noting { inner, start, batching: batching.clone() });
    let spoken = tokio::time::sleep_until((start + length).into());
    let mut interrupted = 0;
    conduct(&room, shown, microphone, start, spoken, async |at, shown| {
        if matches!(shown, Shown::Metric(Metric::Interruption)) {
            interrupted = at;
        }
    })
    .await;
    session.await.unwrap();
    doubles.shutdown().await;

    let second = ends[1] - 2_509;
    assert!((second..ends[1]).contains(&interrupted), "{second} {interrupted}");
    let batching = batching.lock();
    let batched: Vec<u64> = batching.iter().filter(|(_, on)| *on).map(|(at, _)| *at).collect();
    assert!(batched.iter().any(|at| *at < ends[0]), "{batching:?}");
    let until = |at: &u64| (ends[0] + 500..interrupted).contains(at);
    assert!(!batched.iter().any(until), "interrupted at {interrupted}: {batching:?}");
}
