//! Runs a task on whichever thread wakes it.
//!
//! A room hears a hundred frames a second. To have a runtime's thread woken for each costs more than
//! to judge it, so what reads a microphone goes on where the frame was decoded. That is for small
//! steps that never block alone: whoever woke it waits for them.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;
use tracing::error;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task that runs in place; it ends when this is dropped.
pub struct InPlace(Arc<Shared>);

struct Shared {
    task: Mutex<Option<Task>>,
    /// Wake-ups since somebody began to run it.
    wakes: AtomicUsize,
    stopped: AtomicBool,
}

impl InPlace {
    /// Runs `task` as far as it goes, here, and from then on wherever it is woken.
    pub fn run(task: impl Future<Output = ()> + Send + 'static) -> Self {
        let shared = Arc::new(Shared {
            task: Mutex::new(Some(Box::pin(task))),
            wakes: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        shared.clone().wake();
        Self(shared)
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        // First, since what the task lets go of may wake it.
        self.0.stopped.store(true, Ordering::Release);
        let task = self.0.task.lock().take();
        drop(task);
    }
}

impl fmt::Debug for InPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InPlace").field("stopped", &self.0.stopped).finish_non_exhaustive()
    }
}

impl Shared {
    fn poll(&self, context: &mut Context<'_>) {
        let mut slot = self.task.lock();
        let Some(task) = slot.as_mut() else { return };
        let polled = catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context)));
        if polled.is_err() {
            error!("what listens to a microphone broke off");
        }
        if !matches!(polled, Ok(Poll::Pending)) {
            self.stopped.store(true, Ordering::Release);
            let task = slot.take();
            drop(slot);
            drop(task);
        }
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        // Whoever runs it, this thread further up perhaps, will see that it was woken again.
        if self.stopped.load(Ordering::Acquire) || self.wakes.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let waker = Waker::from(self.clone());
        let mut context = Context::from_waker(&waker);
        let mut seen = 1;
        while !self.stopped.load(Ordering::Acquire) {
            self.poll(&mut context);
            match self.wakes.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(more) => seen = more,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use tokio::sync::Notify;

    use super::*;

    /// A task that tells on which thread it went on, each time that it was notified.
    fn telling(told: mpsc::SyncSender<thread::ThreadId>) -> (InPlace, Arc<Notify>) {
        let notify = Arc::new(Notify::new());
        let notified = notify.clone();
        let task = InPlace::run(async move {
            loop {
                notified.notified().await;
                let _ = told.send(thread::current().id());
            }
        });
        (task, notify)
    }

    #[test]
    fn it_goes_on_where_it_is_woken_and_before_whoever_woke_it() {
        let (told, tells) = mpsc::sync_channel(8_000);
        let (task, notify) = telling(told);
        notify.notify_one();
        assert_eq!(tells.try_recv().unwrap(), thread::current().id());
        let there = thread::spawn({
            let notify = notify.clone();
            move || {
                notify.notify_one();
                thread::current().id()
            }
        });
        assert_eq!(tells.recv().unwrap(), there.join().unwrap());
        drop(task);
        notify.notify_one();
        assert!(tells.recv().is_err(), "it is gone with its handle");
    }

    #[test]
    fn a_wake_up_while_it_runs_is_not_lost() {
        let (told, tells) = mpsc::sync_channel(8_000);
        let mut left = 3;
        let task = InPlace::run(std::future::poll_fn(move |context| {
            let _ = told.send(left);
            left -= 1;
            if left == 0 {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        }));
        assert_eq!(tells.iter().collect::<Vec<_>>(), [3, 2, 1], "and it is let go of at its end");
        drop(task);
    }

    #[test]
    fn no_wake_up_of_many_threads_is_lost() {
        let (told, tells) = mpsc::sync_channel(8_000);
        let queue = Arc::new(Queue::default());
        let read = queue.clone();
        let task = InPlace::run(std::future::poll_fn(move |context| {
            *read.waker.lock() = Some(context.waker().clone());
            for item in read.items.lock().drain(..) {
                let _ = told.send(item);
            }
            Poll::Pending
        }));
        thread::scope(|scope| {
            for from in 0..4 {
                let queue = &queue;
                scope.spawn(move || {
                    for item in 0..1_000 {
                        queue.items.lock().push(from * 1_000 + item);
                        let waker = queue.waker.lock().clone();
                        waker.unwrap().wake();
                    }
                });
            }
        });
        let mut items: Vec<i32> = tells.try_iter().collect();
        items.sort_unstable();
        assert_eq!(items, (0..4_000).collect::<Vec<_>>());
        drop(task);
    }

    #[derive(Default)]
    struct Queue {
        items: Mutex<Vec<i32>>,
        waker: Mutex<Option<Waker>>,
    }

    #[test]
    fn a_panic_ends_the_task_alone() {
        let notify = Arc::new(Notify::new());
        let (notified, (told, tells)) = (notify.clone(), mpsc::sync_channel::<()>(1));
        let task = InPlace::run(async move {
            let _told = told;
            notified.notified().await;
            panic!("as a test");
        });
        notify.notify_one();
        assert!(tells.recv().is_err(), "what it held is let go of");
        drop(task);
    }
}
