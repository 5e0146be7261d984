//! `antiphon transcribe-queue`: understands now what waits on disk since no recogniser could hear it.

use std::time::Duration;

use crate::{
    cli::{Exit, fail, providers::Assembly, say, start},
    config::Setup,
    stt::late::{
        queue::{DEFAULT_CAP, LateQueue},
        scribe::Scribe,
    },
};

/// How long the rows may take to reach the control endpoint; what is left stays on disk.
const FLUSH: Duration = Duration::from_secs(10);

pub async fn run(setup: Setup) -> Exit {
    let Setup { config, agent: Some(agent), providers: Some(providers), prices, .. } = setup else {
        return Exit::Usage;
    };
    let assembly = match Assembly::new(&agent, providers) {
        Ok(assembly) => assembly,
        Err(problem) => {
            fail(&problem);
            return Exit::Usage;
        }
    };
    let queue = match LateQueue::open(&config.state_dir, DEFAULT_CAP).await {
        Ok(queue) => queue,
        Err(error) => {
            fail(&format!("the queue in {} cannot be used: {error}", config.state_dir.display()));
            return Exit::Usage;
        }
    };
    let reporter = match start::reporter(&config).await {
        Ok(reporter) => reporter,
        Err(exit) => return exit,
    };
    let done =
        Scribe::drain(queue.clone(), assembly.recognisers().clone(), prices, reporter.clone())
            .await;
    reporter.flush(FLUSH).await;
    let left = queue.waiting().await.map_or(0, |(count, _)| count);
    say(&format!("{done} utterances understood, {left} left"));
    if left == 0 { Exit::Done } else { Exit::Server }
}
