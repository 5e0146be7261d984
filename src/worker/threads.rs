//! The threads that sessions live on, each on one of them from its beginning to its end.
//!
//! A call is a chain of small steps, each of which wakes the next. A runtime that spreads work over its
//! threads wakes a second one for nearly every step, which finds nothing left to do; a thread that keeps
//! to itself does not, and its caches know the call.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    task::JoinError,
};
use tokio_util::task::AbortOnDropHandle;

/// Sessions are light: more threads than this only cost memory.
const MOST: usize = 8;

/// A few threads with a runtime each. They end with this, at the latest when what they do just then is
/// done.
#[derive(Debug)]
pub struct Threads(Vec<Thread>);

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
        (0..cores.clamp(2, MOST)).map(|_| Thread::start()).collect::<io::Result<_>>().map(Self)
    }

    fn emptiest(&self) -> Option<&Thread> {
        self.0.iter().min_by_key(|thread| thread.sessions.load(Ordering::Relaxed))
    }

    /// The runtime on which the next session will run, most of the time.
    pub fn next(&self) -> Handle {
        self.emptiest().map_or_else(Handle::current, |thread| thread.handle.clone())
    }

    /// Runs a session on the thread that has the fewest. Dropped, it ends the session.
    pub async fn run<T: Send + 'static>(
        &self,
        session: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        let Some(thread) = self.emptiest() else { return Ok(session.await) };
        let place = Place::new(&thread.sessions);
        let placed = async move {
            let _place = place;
            session.await
        };
        AbortOnDropHandle::new(thread.handle.spawn(placed)).await
    }
}

impl Thread {
    fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
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
        threads.0.iter().map(|thread| thread.sessions.load(Ordering::Relaxed)).collect()
    }

    #[tokio::test]
    async fn sessions_are_spread_and_what_they_spawn_stays_with_them() {
        let threads = Arc::new(Threads(vec![Thread::start().unwrap(), Thread::start().unwrap()]));
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

    #[tokio::test]
    async fn a_panic_is_passed_on_and_the_thread_lives() {
        let threads = Threads(vec![Thread::start().unwrap()]);
        let broken = threads.run(async { panic!("as a test") }).await;
        assert!(broken.is_err_and(|error| error.is_panic()));
        assert_eq!(threads.run(async { 7 }).await.unwrap(), 7);
        assert_eq!(counts(&threads), [0]);
    }

    #[tokio::test]
    async fn the_threads_end_with_their_owner() {
        let threads = Threads(vec![Thread::start().unwrap()]);
        let (alive, mut dead) = mpsc::channel::<()>(1);
        threads.next().spawn(async move {
            let _alive = alive;
            pending::<()>().await;
        });
        drop(threads);
        assert!(dead.recv().await.is_none());
    }
}
