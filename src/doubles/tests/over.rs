//! What is said over the agent.

use std::time::Instant;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::*;
use crate::{clock, replay::realtime::WavMicrophone, session::ports::Microphone};

/// Notes when it was to come in batches, and when no more, in ms since the start.
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
    // The second question begins while the agent still answers the first.
    let (samples, ends) = caller(2, Duration::from_secs(5));
    let batching = Arc::<Mutex<Vec<(u64, bool)>>>::default();
    let noted = batching.clone();
    let microphone = |inner| -> Box<dyn Microphone> {
        Box::new(Noting { inner, start: clock::now(), batching: noted })
    };
    let mut interrupted = 0;
    let observe = async |at, shown: &Shown| {
        if matches!(shown, Shown::Metric(Metric::Interruption)) {
            interrupted = at;
        }
    };
    realtime::run_through(microphone, Arc::from(samples), config, providers, observe).await;
    doubles.shutdown().await;

    assert!((ends[0]..ends[1]).contains(&interrupted), "{ends:?} {interrupted}");
    let batching = batching.lock();
    let began: Vec<u64> = batching.iter().filter(|(_, on)| *on).map(|(at, _)| *at).collect();
    assert!(began.iter().any(|at| *at < ends[0]), "{batching:?}");
    let over_the_agent = ends[0]..interrupted;
    assert!(!began.iter().any(|at| over_the_agent.contains(at)), "{interrupted}: {batching:?}");
}
