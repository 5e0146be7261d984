//! The threads that sessions live on, each on one of them from its beginning to its end.
//!
//! A call is a chain of small steps, each of which wakes the next. A runtime that spreads work over its
//! threads wakes a second one for nearly every step, which finds nothing left to do; a thread that keeps
//! to itself does not, and its caches know the call.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    task::JoinError,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::clock;

/// Sessions are light: more threads than this only cost memory.
const MOST: usize = 8;
/// A session that was announced and has not come by then will not: a server that has chosen assigns the
/// job within 7.5 s.
const ANNOUNCED: Duration = Duration::from_secs(10);

/// A few threads with a runtime each. They end with this, at the latest when what they do just then is
/// done.
#[derive(Debug)]
pub struct Threads {
    threads: Vec<Thread>,
    /// Where the sessions that are about to begin will run, in the order of their coming.
    announced: Mutex<VecDeque<(Instant, usize)>>,
}

#[derive(Debug)]
struct Thread {
    handle: Handle,
    sessions: Arc<AtomicUsize>,
    /// Dropped, it ends the thread.
    _stop: oneshot::Sender<()>,
}

/// Counts a session for as long as it lives.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn new(sessions: &Arc<AtomicUsize>) -> Self {
        sessions.fetch_add(1, Ordering::Relaxed);
        Self(sessions.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Threads {
    /// One for each core, at least two: one that is late must not hold up every call.
    pub fn start() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(2, usize::from);
        Self::of(cores.clamp(2, MOST))
    }

    fn of(count: usize) -> io::Result<Self> {
        let threads = (0..count).map(|_| Thread::start()).collect::<io::Result<_>>()?;
        Ok(Self { threads, announced: Mutex::default() })
    }

    /// The one that has the fewest sessions, those announced included.
    fn emptiest(&self, announced: &VecDeque<(Instant, usize)>) -> usize {
        let load = |at: &usize| {
            let coming = announced.iter().filter(|(_, place)| place == at).count();
            self.threads.get(*at).map_or(usize::MAX, Thread::sessions).saturating_add(coming)
        };
        (0..self.threads.len()).min_by_key(load).unwrap_or_default()
    }

    fn handle(&self, at: usize) -> Handle {
        self.threads.get(at).map_or_else(Handle::current, |thread| thread.handle.clone())
    }

    /// The runtime of the emptiest thread.
    pub fn any(&self) -> Handle {
        self.handle(self.emptiest(&self.announced.lock()))
    }

    /// A session is about to begin: the runtime on which it will run, to prepare it there.
    pub fn announce(&self) -> Handle {
        let mut announced = self.announced.lock();
        forget_old(&mut announced);
        let at = self.emptiest(&announced);
        announced.push_back((clock::now(), at));
        self.handle(at)
    }

    /// Runs a session where it was announced, or on the thread that has the fewest. Dropped, it ends
    /// the session.
    pub async fn run<T: Send + 'static>(
        &self,
        session: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        let at = {
            let mut announced = self.announced.lock();
            forget_old(&mut announced);
            let place = announced.pop_front().map(|(_, place)| place);
            place.unwrap_or_else(|| self.emptiest(&announced))
        };
        let Some(thread) = self.threads.get(at) else { return Ok(session.await) };
        let place = Place::new(&thread.sessions);
        let placed = async move {
            let _place = place;
            session.await
        };
        AbortOnDropHandle::new(thread.handle.spawn(placed)).await
    }
}

fn forget_old(announced: &mut VecDeque<(Instant, usize)>) {
    let now = clock::now();
    announced.retain(|(at, _)| now.saturating_duration_since(*at) < ANNOUNCED);
}

impl Thread {
    fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            if let Err(error) = libwebrtc::native::ask_for_short_slices() {
                debug!(%error, "the system grants sessions no short time slices");
            }
            let _ = runtime.block_on(stopped);
        };
        thread::Builder::new().name("session".into()).spawn(run)?;
        Ok(Self { handle, sessions: Arc::default(), _stop: stop })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, future::pending};

    use tokio::sync::mpsc;

    use super::*;

    fn counts(threads: &Threads) -> Vec<usize> {
        threads.threads.iter().map(Thread::sessions).collect()
    }

    #[tokio::test]
    async fn sessions_are_spread_and_what_they_spawn_stays_with_them() {
        let threads = Arc::new(Threads::of(2).unwrap());
        let (told, mut tells) = mpsc::channel(8);
        let sessions: Vec<_> = (0..4)
            .map(|_| {
                let (threads, told) = (threads.clone(), told.clone());
                AbortOnDropHandle::new(tokio::spawn(async move {
                    let session = async move {
                        let here = thread::current().id();
                        let there = tokio::spawn(async { thread::current().id() }).await.unwrap();
                        assert_eq!(here, there);
                        told.send(here).await.unwrap();
                        pending::<()>().await;
                    };
                    threads.run(session).await
                }))
            })
            .collect();
        let mut ids = HashSet::new();
        for _ in 0..4 {
            ids.insert(tells.recv().await.unwrap());
        }
        assert_eq!((ids.len(), counts(&threads)), (2, vec![2, 2]));
        drop((sessions, told));
        // Every session's sender is gone: so they are, and with them their places, dropped before.
        assert!(tells.recv().await.is_none());
        while counts(&threads) != [0, 0] {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_runs_where_it_was_announced_if_it_comes() {
        let threads = Threads::of(2).unwrap();
        let here = |handle: Handle| handle.spawn(async { thread::current().id() });
        let first = here(threads.announce()).await.unwrap();
        let second = here(threads.announce()).await.unwrap();
        assert_ne!(first, second, "those that come together are spread");
        let run = || threads.run(async { thread::current().id() });
        assert_eq!([run().await.unwrap(), run().await.unwrap()], [first, second]);
        threads.announce();
        threads.announce();
        tokio::time::advance(ANNOUNCED).await;
        run().await.unwrap();
        assert!(threads.announced.lock().is_empty(), "they did not come");
    }

    #[tokio::test]
    async fn a_panic_is_passed_on_and_the_thread_lives() {
        let threads = Threads::of(1).unwrap();
        let broken = threads.run(async { panic!("as a test") }).await;
        assert!(broken.is_err_and(|error| error.is_panic()));
        assert_eq!(threads.run(async { 7 }).await.unwrap(), 7);
        assert_eq!(counts(&threads), [0]);
    }

    #[tokio::test]
    async fn the_threads_end_with_their_owner() {
        let threads = Threads::of(1).unwrap();
        let (alive, mut dead) = mpsc::channel::<()>(1);
        threads.any().spawn(async move {
            let _alive = alive;
            pending::<()>().await;
        });
        drop(threads);
        assert!(dead.recv().await.is_none());
    }
}
