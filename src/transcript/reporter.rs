//! Reports what sessions say and do to the control endpoint.
//!
//! A final is on disk (see [`super::outbox`]) when [`SessionReporter::final_segment`] returns, and
//! is sent in order until it is acknowledged, by this process or the next. Interims, states and
//! usage are sent best effort by a bounded queue that drops the oldest. Without a control URL finals
//! stay on disk, up to the cap, for a later start with one.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

use super::{
    delivery::{HttpPost, Post},
    lane::{Lane, Record},
    outbox::{MAX_ADOPTED, Outbox},
    segment::Segment,
    wire::{Item, RecordingItem, Spoken, UsageItem},
};
use crate::telemetry::usage::{Totals, Used};

/// What the outbox may take up on disk by default: more than a million finals.
pub const DEFAULT_OUTBOX_CAP: u64 = 1 << 30;
/// How often the sums of what a session has used are put on disk while it goes on.
const TOTALS_EVERY: Duration = Duration::from_mins(1);
/// How often to look for what a worker that died meanwhile has left.
const ADOPT_EVERY: Duration = Duration::from_mins(1);

#[derive(Debug, Clone)]
pub struct ReporterConfig {
    /// ANTIPHON_STATE_DIR.
    pub state_dir: PathBuf,
    /// ANTIPHON_CONTROL_URL.
    pub control_url: Option<Url>,
    /// ANTIPHON_CONTROL_TOKEN.
    pub token: Option<SecretString>,
    /// In bytes.
    pub outbox_cap: u64,
}

/// Which session of which room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    pub room: String,
    /// Stays the same as long as the room lives and changes when its name is used again: the room's
    /// SID. A worker that takes up a room again after a crash reports to the same session by it.
    pub session_key: String,
    pub agent: String,
    /// The origin of [`Segment::start_ms`], in ms since the Unix epoch.
    pub started_at_unix_ms: i64,
}

/// One for the process; clones are the same reporter. Its tasks end when the last clone and the last
/// session are dropped; what they have not sent is on disk.
#[derive(Debug, Clone)]
pub struct Reporter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    outbox: Outbox,
    post: Option<Arc<dyn Post>>,
    lanes: Mutex<Vec<std::sync::Weak<Lane>>>,
    /// Sees every change of what waits to be sent.
    progress: watch::Sender<()>,
    /// Whether what former processes left has been looked through.
    adopted: watch::Sender<bool>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl Reporter {
    /// Opens the outbox and begins to send what former processes left in it. Runs in a tokio
    /// runtime. An error is about the state directory or the token.
    pub async fn start(config: ReporterConfig) -> io::Result<Self> {
        let post = match &config.control_url {
            Some(url) => {
                let post = HttpPost::new(url, config.token.as_ref()).map_err(io::Error::other)?;
                Some(Arc::new(post) as Arc<dyn Post>)
            }
            None => None,
        };
        Self::start_with(config, post).await
    }

    pub(super) async fn start_with(
        config: ReporterConfig,
        post: Option<Arc<dyn Post>>,
    ) -> io::Result<Self> {
        let outbox = Outbox::open(&config.state_dir, config.outbox_cap).await?;
        let stop = CancellationToken::new();
        let inner = Arc::new(Inner {
            outbox: outbox.clone(),
            post: post.clone(),
            lanes: Mutex::default(),
            progress: watch::Sender::new(()),
            adopted: watch::Sender::new(post.is_none()),
            stop: stop.clone(),
            _stop_on_drop: stop.clone().drop_guard(),
        });
        if let Some(post) = post {
            let adopter = Adopter {
                outbox,
                post,
                progress: inner.progress.clone(),
                adopted: inner.adopted.clone(),
            };
            tokio::spawn(stop.run_until_cancelled_owned(adopter.run()));
        }
        Ok(Self(inner))
    }

    /// Begins to report a session. Runs in a tokio runtime.
    pub fn session(&self, info: SessionInfo) -> SessionReporter {
        let lane = Lane::new(self.0.outbox.create(), self.0.progress.clone());
        if let Some(post) = self.0.post.clone() {
            let mut lanes = self.0.lanes.lock();
            lanes.retain(|lane| lane.strong_count() > 0);
            lanes.push(Arc::downgrade(&lane));
            drop(lanes);
            let (lane, stop) = (lane.clone(), self.0.stop.clone());
            tokio::spawn(stop.run_until_cancelled_owned(async move { lane.run(&*post).await }));
        }
        SessionReporter { info, lane, reporter: self.clone(), usage: Mutex::default() }
    }

    /// Waits until all of it is acknowledged, also what former processes left. `false`: the time was
    /// too short; what is left is on disk. Without a control URL there is nothing to wait for.
    pub async fn flush(&self, timeout: Duration) -> bool {
        tokio::time::timeout(timeout, self.drained()).await.is_ok()
    }

    async fn drained(&self) {
        let mut adopted = self.0.adopted.subscribe();
        // The sender lives as long as `self`.
        let _ = adopted.wait_for(|adopted| *adopted).await;
        let mut progress = self.0.progress.subscribe();
        loop {
            let lanes: Vec<_> =
                self.0.lanes.lock().iter().filter_map(std::sync::Weak::upgrade).collect();
            if lanes.iter().all(|lane| lane.is_idle()) {
                return;
            }
            drop(lanes);
            let _ = progress.changed().await;
        }
    }
}

/// Reports one session. Dropping it closes it too, but only [`SessionReporter::close`] tells the
/// control endpoint that the agent has left.
#[derive(Debug)]
pub struct SessionReporter {
    info: SessionInfo,
    lane: Arc<Lane>,
    /// Keeps the tasks running.
    reporter: Reporter,
    usage: Mutex<Kept>,
}

/// What a session has used, and when that was last put on disk.
#[derive(Debug, Default)]
struct Kept {
    totals: Totals,
    is_new: bool,
    written: Option<Instant>,
}

impl SessionReporter {
    /// Returns when the final is on disk: show it after that. On an error (the disk is full, or
    /// fails) it is reported best effort, and the error is logged here already.
    pub async fn final_segment(&self, segment: &Segment) -> io::Result<()> {
        let item = Item::Segment(Spoken::new(segment, self.info.started_at_unix_ms));
        let kept = self.append(&item).await;
        if let Err(error) = &kept {
            tracing::error!(
                %error,
                room = self.info.room,
                "a final transcript could not be written to the outbox: it is lost if the control \
                 endpoint does not take it now"
            );
            metrics::counter!("antiphon_outbox_failures_total").increment(1);
            self.live(item);
        }
        self.keep_totals(false).await;
        kept
    }

    /// What somebody said while nobody could hear it. Returns when it is on disk here; an error is
    /// for the caller, who still has the audio.
    pub async fn late(&self, spoken: Spoken) -> io::Result<()> {
        self.append(&Item::Segment(Spoken { late: true, ..spoken })).await
    }

    pub fn interim(&self, segment: &Segment) {
        self.live(Item::Interim(Spoken::new(segment, self.info.started_at_unix_ms)));
    }

    /// The agent's state, by its name.
    pub fn state(&self, state: &str) {
        self.live(Item::State { state: state.to_owned() });
    }

    /// Told live at once; the sums are kept on disk with the finals and at the close.
    pub fn usage(&self, used: Used<'_>) {
        let mut usage = self.usage.lock();
        usage.totals.add(used);
        usage.is_new = true;
        drop(usage);
        self.live(Item::Usage(UsageItem::new(used)));
    }

    /// What the session has used so far.
    pub fn used(&self) -> Totals {
        self.usage.lock().totals.clone()
    }

    /// Puts the sums on disk where they have changed, at most every [`TOTALS_EVERY`].
    async fn keep_totals(&self, is_last: bool) {
        let item = {
            let mut usage = self.usage.lock();
            let now = crate::clock::now();
            let is_due = is_last || usage.written.is_none_or(|at| now >= at + TOTALS_EVERY);
            if !usage.is_new || !is_due {
                return;
            }
            usage.is_new = false;
            usage.written = Some(now);
            Item::Totals { usage: usage.totals.rows().to_vec() }
        };
        if let Err(error) = self.append(&item).await {
            tracing::error!(%error, "what a session has used could not be written to the outbox");
            self.live(item);
        }
    }

    /// Anything else that a live listener may want to know, a fault for example.
    pub fn event(&self, name: &str, data: Value) {
        self.live(Item::Event { name: name.to_owned(), data });
    }

    pub fn info(&self) -> &SessionInfo {
        &self.info
    }

    /// Another one for the same session, for what may come after this one's close.
    pub fn sibling(&self) -> Self {
        self.reporter.session(self.info.clone())
    }

    /// A recording of this session is where it belongs. Returns when that is on disk here.
    pub async fn recording(&self, recording: &RecordingItem) -> io::Result<()> {
        let told = self.append(&Item::Recording(recording.clone())).await;
        if let Err(error) = &told {
            tracing::error!(%error, "a recording could not be written to the outbox");
        }
        told
    }

    /// The agent has left the room.
    pub async fn close(self) {
        self.keep_totals(true).await;
        let item = Item::Closed { at_unix_ms: crate::clock::unix_ms() };
        if let Err(error) = self.append(&item).await {
            tracing::error!(%error, "the end of a session could not be written to the outbox");
            self.live(item);
        }
    }

    async fn append(&self, item: &Item) -> io::Result<()> {
        let record = Record { session: self.info.clone(), item: item.clone() };
        let bytes = serde_json::to_vec(&record)?;
        let begun = crate::clock::now();
        self.lane.file.append(&bytes).await?;
        metrics::histogram!("antiphon_outbox_append_seconds")
            .record(crate::clock::now().saturating_duration_since(begun));
        self.lane.appended();
        Ok(())
    }

    fn live(&self, item: Item) {
        if self.reporter.0.post.is_some() {
            self.lane.push_live(&self.info, item);
        }
    }
}

impl Drop for SessionReporter {
    fn drop(&mut self) {
        self.lane.close();
    }
}

/// Sends what dead processes left, one file after the other.
struct Adopter {
    outbox: Outbox,
    post: Arc<dyn Post>,
    progress: watch::Sender<()>,
    adopted: watch::Sender<bool>,
}

impl Adopter {
    async fn run(self) {
        loop {
            let files = self.outbox.adopt().await.unwrap_or_else(|error| {
                tracing::error!(%error, "the outbox cannot be looked through for leftovers");
                Vec::new()
            });
            let found = files.len();
            if found > 0 {
                tracing::info!(files = found, "sending transcripts that a former worker left");
            }
            for file in files {
                let lane = Lane::new(file, self.progress.clone());
                lane.close();
                lane.run(&*self.post).await;
            }
            if found < MAX_ADOPTED {
                self.adopted.send_replace(true);
                tokio::time::sleep(ADOPT_EVERY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, path::Path};

    use crate::session::command::Usage;

    use async_trait::async_trait;

    use super::*;
    use crate::transcript::{
        delivery::Answer, outbox::OutboxFile, segment::SpeakerKind, wire::IngestRequest,
    };

    /// A control endpoint that answers as it is told, then accepts all but poison.
    #[derive(Debug, Default)]
    struct Control {
        answers: Mutex<VecDeque<Answer>>,
        accepted: Mutex<Vec<Item>>,
        posts: Mutex<u32>,
    }

    #[async_trait]
    impl Post for Control {
        async fn post(&self, request: &IngestRequest) -> Answer {
            *self.posts.lock() += 1;
            if let Some(answer) = self.answers.lock().pop_front() {
                return answer;
            }
            let poisoned = |item: &Item| matches!(item, Item::Segment(s) if s.content == "poison");
            if request.items.iter().any(poisoned) {
                return Answer::Refused { status: 400 };
            }
            self.accepted.lock().extend(request.items.clone());
            Answer::Accepted
        }
    }

    impl Control {
        fn answering(answers: impl IntoIterator<Item = Answer>) -> Arc<Self> {
            Arc::new(Self { answers: Mutex::new(answers.into_iter().collect()), ..Self::default() })
        }

        /// The accepted items in short: finals by id, interims by ~id, others by name.
        fn got(&self) -> Vec<String> {
            let short = |item: &Item| match item {
                Item::Segment(spoken) => spoken.id.clone(),
                Item::Interim(spoken) => format!("~{}:{}", spoken.id, spoken.content),
                Item::State { state } => state.clone(),
                Item::Usage(usage) => format!("usage {}", usage.service),
                Item::Totals { usage } => format!("totals of {}", usage.len()),
                Item::Event { name, .. } => format!("event {name}"),
                Item::Recording(recording) => format!("recording {}", recording.id),
                Item::Closed { .. } => "closed".into(),
                Item::Unknown => "unknown".into(),
            };
            self.accepted.lock().iter().map(short).collect()
        }
    }

    fn away() -> Answer {
        Answer::Failed { why: "connection refused".into() }
    }

    async fn reporter(directory: &Path, control: Option<Arc<Control>>) -> Reporter {
        let config = ReporterConfig {
            state_dir: directory.to_owned(),
            control_url: None,
            token: None,
            outbox_cap: DEFAULT_OUTBOX_CAP,
        };
        let post = control.map(|control| control as Arc<dyn Post>);
        Reporter::start_with(config, post).await.unwrap()
    }

    fn info() -> SessionInfo {
        SessionInfo {
            room: "room".into(),
            session_key: "RM_1".into(),
            agent: "assistant".into(),
            started_at_unix_ms: 1_000_000,
        }
    }

    fn segment(id: &str, text: &str) -> Segment {
        Segment {
            id: id.into(),
            kind: SpeakerKind::User,
            speaker_id: "ann".into(),
            speaker_name: "Ann".into(),
            text: text.into(),
            start_ms: 100,
            duration_ms: 200,
            confidence: 0.9,
            is_final: true,
        }
    }

    fn left_in(directory: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory.join("outbox")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Lets go of every file, as a killed process does.
    async fn kill(reporter: Reporter, session: SessionReporter, directory: &Path) {
        drop((session, reporter));
        let free = |path: &PathBuf| std::fs::File::open(path).unwrap().try_lock().is_ok();
        while !left_in(directory).iter().all(free) {
            tokio::task::yield_now().await;
        }
    }

    fn spoken(characters: u64) -> Used<'static> {
        let usage = Usage::Tts { link: 0, characters };
        Used { usage, provider: "elevenlabs", model: "flash", cost: Some(characters * 50_000) }
    }

    #[tokio::test(start_paused = true)]
    async fn the_sums_of_what_was_used_are_on_disk_with_the_finals_and_at_the_close() {
        let directory = tempfile::tempdir().unwrap();
        let control = Control::answering([]);
        // Nothing is sent live: what arrives was on disk.
        let before = reporter(directory.path(), None).await;
        let session = before.session(info());
        session.usage(spoken(10));
        session.final_segment(&segment("one", "hello")).await.unwrap();
        session.usage(spoken(20));
        session.final_segment(&segment("two", "hello")).await.unwrap();
        tokio::time::advance(TOTALS_EVERY).await;
        session.final_segment(&segment("three", "hello")).await.unwrap();
        session.usage(spoken(30));
        session.close().await;
        drop(before);
        let after = reporter(directory.path(), Some(control.clone())).await;
        assert!(after.flush(LONG).await);
        let items = ["one", "totals of 1", "two", "three", "totals of 1", "totals of 1", "closed"];
        assert_eq!(control.got(), items);
        let accepted = control.accepted.lock();
        let characters = accepted.iter().filter_map(|item| match item {
            Item::Totals { usage } => usage[0].characters,
            _ => None,
        });
        assert_eq!(characters.collect::<Vec<_>>(), [10, 30, 60], "each holds all before it");
    }

    const LONG: Duration = Duration::from_mins(10);

    #[tokio::test(start_paused = true)]
    async fn what_was_said_while_the_control_endpoint_was_away_arrives_once_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let control = Control::answering((0..8).map(|_| away()));
        let reporter = reporter(directory.path(), Some(control.clone())).await;
        let session = reporter.session(info());
        let ids: Vec<String> = (0..250).map(|number| format!("{number:03}")).collect();
        for id in &ids {
            session.final_segment(&segment(id, "hello")).await.unwrap();
        }
        assert!(reporter.flush(LONG).await);
        assert_eq!(control.got(), ids);

        session.close().await;
        assert!(reporter.flush(LONG).await);
        assert_eq!(control.got().last().unwrap(), "closed");
    }

    #[tokio::test(start_paused = true)]
    async fn the_file_goes_when_the_session_is_closed_and_all_is_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let control = Control::answering([]);
        let reporter = reporter(directory.path(), Some(control.clone())).await;
        let session = reporter.session(info());
        session.final_segment(&segment("one", "hello")).await.unwrap();
        assert_eq!(left_in(directory.path()).len(), 1);
        session.close().await;
        while !left_in(directory.path()).is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(control.got(), ["one", "closed"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_waits_between_attempts_grow_to_half_a_minute() {
        let directory = tempfile::tempdir().unwrap();
        let control = Control::answering((0..1000).map(|_| away()));
        let reporter = reporter(directory.path(), Some(control.clone())).await;
        let session = reporter.session(info());
        session.final_segment(&segment("one", "hello")).await.unwrap();
        assert!(!reporter.flush(Duration::from_hours(1)).await, "it is still away");
        let posts = *control.posts.lock();
        assert!((115..200).contains(&posts), "{posts} attempts in an hour");
    }

    #[tokio::test(start_paused = true)]
    async fn a_poisoned_record_is_put_aside_and_blocks_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let control = Control::answering([away()]);
        let reporter = reporter(directory.path(), Some(control.clone())).await;
        let session = reporter.session(info());
        for (id, text) in [("a", "x"), ("b", "x"), ("c", "poison"), ("d", "x"), ("e", "poison")] {
            session.final_segment(&segment(id, text)).await.unwrap();
        }
        session.final_segment(&segment("f", "x")).await.unwrap();
        assert!(reporter.flush(LONG).await);
        assert_eq!(control.got(), ["a", "b", "d", "f"]);

        let rejected = left_in(directory.path())
            .into_iter()
            .find(|path| path.extension().is_some_and(|found| found == "rejected"))
            .unwrap();
        let kept = std::fs::read_to_string(rejected).unwrap();
        assert_eq!(kept.lines().count(), 2);
        assert!(kept.contains(r#""id":"c""#) && kept.contains(r#""id":"e""#));
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_denied_tries_again_slowly() {
        let directory = tempfile::tempdir().unwrap();
        let control = Control::answering((0..3).map(|_| Answer::Denied { status: 401 }));
        let reporter = reporter(directory.path(), Some(control.clone())).await;
        let session = reporter.session(info());
        let begun = tokio::time::Instant::now();
        session.final_segment(&segment("one", "hello")).await.unwrap();
        assert!(reporter.flush(LONG).await);
        assert_eq!(control.got(), ["one"]);
        assert!(begun.elapsed() >= 3 * Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn live_items_keep_their_places_between_the_finals() {
        let directory = tempfile::tempdir().unwrap();
        let control = Control::answering([away(), away()]);
        let reporter = reporter(directory.path(), Some(control.clone())).await;
        let session = reporter.session(info());
        // The first attempts fail, and take with them what is not worth keeping.
        session.state("idle");
        while control.answers.lock().len() == 2 {
            tokio::task::yield_now().await;
        }
        session.interim(&segment("one", "h"));
        session.interim(&segment("one", "hello"));
        session.final_segment(&segment("one", "hello you")).await.unwrap();
        session.state("thinking");
        session.usage(spoken(3));
        control.answers.lock().clear();
        assert!(reporter.flush(LONG).await);
        assert_eq!(control.got(), ["~one:hello", "one", "thinking", "usage tts"]);
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_live_items_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let control = Control::answering([away()]);
        let reporter = reporter(directory.path(), Some(control.clone())).await;
        let session = reporter.session(info());
        session.state("first");
        while !control.answers.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        for number in 0..1000 {
            session.state(&number.to_string());
        }
        assert!(reporter.flush(LONG).await);
        let got = control.got();
        assert_eq!((got.len(), got[0].as_str(), got[255].as_str()), (256, "744", "999"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_killed_worker_left_is_sent_by_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let former = reporter(directory.path(), None).await;
        let session = former.session(info());
        session.final_segment(&segment("one", "hello")).await.unwrap();
        session.final_segment(&segment("two", "hello")).await.unwrap();
        kill(former, session, directory.path()).await;

        let control = Control::answering([away()]);
        let next = reporter(directory.path(), Some(control.clone())).await;
        assert!(next.flush(LONG).await);
        assert_eq!(control.got(), ["one", "two"]);
        assert!(left_in(directory.path()).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn two_workers_on_one_directory_leave_each_others_finals_alone() {
        let directory = tempfile::tempdir().unwrap();
        let living = reporter(directory.path(), None).await;
        let session = living.session(info());
        session.final_segment(&segment("mine", "hello")).await.unwrap();
        let control = Control::answering([]);
        let other = reporter(directory.path(), Some(control.clone())).await;
        assert!(other.flush(LONG).await);
        assert_eq!(control.got(), [""; 0]);
        assert_eq!(left_in(directory.path()).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_of_a_newer_version_is_kept_for_a_person() {
        let directory = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(directory.path(), DEFAULT_OUTBOX_CAP).await.unwrap();
        let file: OutboxFile = outbox.create();
        let record = Record { session: info(), item: Item::State { state: "x".into() } };
        let text = serde_json::to_string(&record).unwrap();
        file.append(text.replace("state", "hologram").as_bytes()).await.unwrap();
        file.append(text.as_bytes()).await.unwrap();
        drop(file);
        while std::fs::File::open(&left_in(directory.path())[0]).unwrap().try_lock().is_err() {
            tokio::task::yield_now().await;
        }

        let control = Control::answering([]);
        let reporter = reporter(directory.path(), Some(control.clone())).await;
        assert!(reporter.flush(LONG).await);
        assert_eq!(control.got(), ["x"]);
        let left = std::fs::read_to_string(&left_in(directory.path())[0]).unwrap();
        assert!(left.contains("hologram"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_final_that_the_disk_does_not_take_is_still_reported() {
        let directory = tempfile::tempdir().unwrap();
        let control = Control::answering([]);
        let config = ReporterConfig {
            state_dir: directory.path().to_owned(),
            control_url: None,
            token: None,
            outbox_cap: 10,
        };
        let reporter = Reporter::start_with(config, Some(control.clone())).await.unwrap();
        let session = reporter.session(info());
        let error = session.final_segment(&segment("one", "hello")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(reporter.flush(LONG).await);
        assert_eq!(control.got(), ["one"]);
    }
}
