//! One session's ordered way to the control endpoint: finals from its outbox file, and between them,
//! where they belong, what is only worth telling while it is fresh.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::{
    delivery::{Answer, Post},
    outbox::{Batch, OutboxFile},
    reporter::SessionInfo,
    wire::{IngestRequest, Item},
};

/// Records in one request.
const MAX_BATCH: usize = 100;
/// Items that wait for their turn; beyond this the oldest goes.
const MAX_LIVE: usize = 256;
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// A line of the outbox; complete, so that whoever finds it can send it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    #[serde(flatten)]
    pub session: SessionInfo,
    pub item: Item,
}

#[derive(Debug)]
pub struct Lane {
    pub file: OutboxFile,
    state: Mutex<State>,
    wake: Notify,
    /// Told whenever something has been sent or given up.
    progress: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Each with the number of finals that came before it.
    live: VecDeque<(u64, SessionInfo, Item)>,
    /// Finals put into the file so far.
    appended: u64,
    /// Finals that have left it.
    sent: u64,
    sending: bool,
    closed: bool,
}

impl Lane {
    pub fn new(file: OutboxFile, progress: watch::Sender<()>) -> Arc<Self> {
        Arc::new(Self { file, state: Mutex::default(), wake: Notify::new(), progress })
    }

    /// A final is in the file.
    pub fn appended(&self) {
        self.state.lock().appended += 1;
        self.wake.notify_one();
    }

    /// Sends it best effort, after the finals that are in the file now.
    pub fn push_live(&self, session: &SessionInfo, item: Item) {
        let mut state = self.state.lock();
        if let Item::Interim(spoken) = &item {
            // An interim replaces the one before it.
            let same = |(_, _, old): &(u64, SessionInfo, Item)| matches!(old, Item::Interim(old) if old.id == spoken.id);
            if let Some(old) = state.live.iter().position(same) {
                state.live.remove(old);
            }
        }
        if state.live.len() == MAX_LIVE
            && let Some((_, _, lost)) = state.live.pop_front()
        {
            log_lost(&lost);
        }
        let after = state.appended;
        state.live.push_back((after, session.clone(), item));
        drop(state);
        self.wake.notify_one();
    }

    /// Nothing more will come.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }

    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        !state.sending && state.live.is_empty() && !self.file.has_unacknowledged()
    }

    /// Sends until the lane is closed and empty, then removes the file. Cancel-safe: what is not
    /// acknowledged is in the file.
    pub async fn run(&self, post: &dyn Post) {
        let mut limit = MAX_BATCH;
        let mut trouble = Trouble::default();
        loop {
            self.state.lock().sending = true;
            let step = self.step(post, &mut limit, &mut trouble).await;
            self.state.lock().sending = false;
            self.progress.send_replace(());
            match step {
                Step::Again => {}
                Step::Wait(delay) => tokio::time::sleep(delay).await,
                Step::Idle if self.state.lock().closed && self.is_idle() => break,
                Step::Idle => self.wake.notified().await,
            }
        }
        if let Err(error) = self.file.remove().await {
            tracing::error!(%error, "an outbox file that is done with cannot be removed");
        }
    }

    async fn step(&self, post: &dyn Post, limit: &mut usize, trouble: &mut Trouble) -> Step {
        let batch = match self.file.unacknowledged(*limit).await {
            Ok(batch) => batch,
            Err(error) => {
                tracing::error!(%error, "the outbox cannot be read");
                return Step::Wait(trouble.next_delay());
            }
        };
        let (finals, mut bad) = parse(&batch);
        let count = batch.records.len() as u64;
        let (request, live) = self.request(&finals, count);
        let Some(request) = request else {
            if batch.is_empty() {
                return Step::Idle;
            }
            return self.done(&batch, bad, count, trouble).await;
        };
        match post.post(&request).await {
            Answer::Accepted => {
                trouble.over(&request.room);
                *limit = (*limit * 2).min(MAX_BATCH);
                self.done(&batch, bad, count, trouble).await
            }
            // The best-effort items have been dropped; the finals may be good.
            Answer::Refused { status } if live > 0 => {
                tracing::warn!(status, room = request.room, "a report was refused");
                Step::Again
            }
            Answer::Refused { .. } if batch.records.len() > 1 => {
                *limit = batch.records.len() / 2;
                Step::Again
            }
            Answer::Refused { status } => {
                tracing::error!(
                    status,
                    room = request.room,
                    "the control endpoint refuses a transcript: it is kept beside the outbox in a \
                     .rejected file"
                );
                metrics::counter!("antiphon_outbox_rejected_total").increment(1);
                bad.extend(batch.records.iter().cloned());
                *limit = MAX_BATCH;
                self.done(&batch, bad, count, trouble).await
            }
            Answer::Denied { status } => {
                trouble.denied(status);
                Step::Wait(LONGEST_DELAY)
            }
            Answer::Failed { why } => {
                let delay = trouble.next_delay();
                trouble.failed(&why);
                Step::Wait(delay)
            }
        }
    }

    /// The batch's finals with the live items that belong before, between and right after them; how
    /// many of the latter. `None` when there is nothing to send.
    fn request(&self, finals: &[Option<Record>], count: u64) -> (Option<IngestRequest>, usize) {
        let mut state = self.state.lock();
        let mut items = Vec::new();
        let mut session = None;
        let mut live = 0;
        for position in 0..=count {
            let reached = state.sent + position;
            while state.live.front().is_some_and(|(after, _, _)| *after <= reached)
                && let Some((_, info, item)) = state.live.pop_front()
            {
                session.get_or_insert(info);
                items.push(item);
                live += 1;
            }
            if let Some(Some(record)) = finals.get(position as usize) {
                session.get_or_insert_with(|| record.session.clone());
                items.push(record.item.clone());
            }
        }
        let request = session.map(|info| IngestRequest {
            room: info.room,
            session_key: info.session_key,
            agent: info.agent,
            started_at_unix_ms: info.started_at_unix_ms,
            items,
        });
        (request, live)
    }

    async fn done(
        &self,
        batch: &Batch,
        bad: Vec<Vec<u8>>,
        count: u64,
        trouble: &mut Trouble,
    ) -> Step {
        if !bad.is_empty()
            && let Err(error) = self.file.reject(bad).await
        {
            tracing::error!(%error, "a rejected transcript cannot be kept");
            return Step::Wait(trouble.next_delay());
        }
        if let Err(error) = self.file.acknowledge(batch).await {
            tracing::error!(%error, "an outbox file cannot be emptied");
        }
        self.state.lock().sent += count;
        Step::Again
    }
}

enum Step {
    Again,
    Idle,
    Wait(Duration),
}

/// The records in their places, `None` for one that cannot be read; those, and the corrupt lines,
/// once more for the `.rejected` file.
fn parse(batch: &Batch) -> (Vec<Option<Record>>, Vec<Vec<u8>>) {
    let mut bad = batch.corrupt.clone();
    let records = batch
        .records
        .iter()
        .map(|bytes| {
            let record = serde_json::from_slice::<Record>(bytes)
                .ok()
                .filter(|record| record.item != Item::Unknown);
            if record.is_none() {
                bad.push(bytes.clone());
            }
            record
        })
        .collect();
    if !bad.is_empty() {
        let lines = bad.len();
        tracing::error!(
            lines,
            "the outbox holds lines that cannot be read: they are kept beside it in a .rejected \
             file"
        );
    }
    (records, bad)
}

fn log_lost(item: &Item) {
    metrics::counter!("antiphon_reports_dropped_total").increment(1);
    if matches!(item, Item::Segment(_)) {
        tracing::error!("a final that the disk would not take is lost: nobody listens");
    }
}

/// Consecutive failures: when to try again, and what to log about it (once).
#[derive(Debug, Default)]
struct Trouble {
    failures: u32,
    denied: bool,
}

impl Trouble {
    fn next_delay(&mut self) -> Duration {
        let delay = FIRST_DELAY.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        // Up to a quarter shorter, so that many sessions do not come back at once.
        let random = f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX);
        delay.min(LONGEST_DELAY).mul_f64(1.0 - random / 4.0)
    }

    fn failed(&self, why: &str) {
        if self.failures == 1 {
            tracing::warn!(
                why,
                "the control endpoint does not take reports: transcripts stay on disk and are sent \
                 when it is back"
            );
        } else {
            tracing::debug!(why, failures = self.failures, "the control endpoint is still away");
        }
    }

    fn denied(&mut self, status: u16) {
        if !std::mem::replace(&mut self.denied, true) {
            tracing::error!(
                status,
                "the control endpoint refuses this worker's reports: check ANTIPHON_CONTROL_URL and \
                 ANTIPHON_CONTROL_TOKEN; transcripts stay on disk"
            );
        }
    }

    fn over(&mut self, room: &str) {
        if self.failures > 0 || self.denied {
            tracing::info!(room, "the control endpoint takes reports again");
        }
        *self = Self::default();
    }
}
