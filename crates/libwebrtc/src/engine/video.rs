//! Key frames of a remote video for those who watch it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rtc_audio::keyframe::KeyFrame;
use rtc_audio::transceiver::TransceiverId;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::clock;
use super::connection::Connection;

/// A video whose first packet did not come yet cannot be asked.
const NOT_YET: Duration = Duration::from_millis(50);
/// Asked again after this much, then twice as much, and so on to the most: the request or a packet
/// was lost, or the track is muted.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_MOST: Duration = Duration::from_secs(8);

/// A remote video as its watchers share it.
pub(crate) struct RemoteVideo {
    connection: Weak<Connection>,
    transceiver: TransceiverId,
    watchers: Mutex<Vec<Weak<Watcher>>>,
    ended: AtomicBool,
}

impl RemoteVideo {
    pub(crate) fn new(connection: Weak<Connection>, transceiver: TransceiverId) -> Arc<Self> {
        let ended = AtomicBool::new(false);
        Arc::new(Self { connection, transceiver, watchers: Mutex::default(), ended })
    }

    pub(crate) fn deliver(&self, frame: &KeyFrame) {
        for watcher in self.watchers.lock().iter().filter_map(Weak::upgrade) {
            watcher.take(frame);
        }
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        for watcher in self.watchers.lock().drain(..).filter_map(|watcher| watcher.upgrade()) {
            watcher.close();
        }
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.watchers.lock().iter().any(|watcher| watcher.strong_count() > 0)
    }

    /// Asks for a key frame; says whether it could be asked, and nothing when all is over.
    fn ask(&self) -> Option<bool> {
        let connection = self.connection.upgrade().filter(|connection| !connection.is_closed())?;
        let now = clock::now();
        Some(connection.with(|state| state.peer.request_key_frame(now, self.transceiver)))
    }

    /// Lets the peer put key frames together while somebody watches what the section carries now.
    fn update(&self) {
        let Some(connection) = self.connection.upgrade() else { return };
        connection.with(|state| {
            let watched = state.transceiver(self.transceiver).is_some_and(|t| t.is_watched());
            state.peer.watch_key_frames(self.transceiver, watched);
        });
    }
}

impl fmt::Debug for RemoteVideo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteVideo").field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// One who watches.
pub(crate) struct Watcher {
    video: Arc<RemoteVideo>,
    interval: Duration,
    slot: Mutex<Slot>,
    changed: Notify,
    closed: AtomicBool,
}

#[derive(Default)]
struct Slot {
    /// The newest that was not taken.
    frame: Option<KeyFrame>,
    /// Before this no other is wanted.
    due: Option<Instant>,
    waker: Option<Waker>,
}

impl Watcher {
    /// Watches `video` from now on. Call it within the engine's runtime.
    pub(crate) fn attach(video: &Arc<RemoteVideo>, interval: Duration) -> Arc<Self> {
        let watcher = Arc::new(Self {
            video: Arc::clone(video),
            interval,
            slot: Mutex::default(),
            changed: Notify::new(),
            closed: AtomicBool::new(false),
        });
        video.watchers.lock().push(Arc::downgrade(&watcher));
        // Ended before the line above: nobody else would say so.
        if video.ended.load(Ordering::Acquire) {
            watcher.close();
        }
        video.update();
        tokio::spawn(ask(Arc::clone(&watcher)));
        watcher
    }

    fn take(&self, frame: &KeyFrame) {
        let waker = {
            let mut slot = self.slot.lock();
            if slot.due.is_some_and(|due| frame.arrival < due) {
                return;
            }
            slot.due = Some(frame.arrival + self.interval);
            slot.frame = Some(frame.clone());
            slot.waker.take()
        };
        self.changed.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<Option<KeyFrame>> {
        let mut slot = self.slot.lock();
        if let Some(frame) = slot.frame.take() {
            return Poll::Ready(Some(frame));
        }
        if self.is_closed() {
            return Poll::Ready(None);
        }
        slot.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// Time until the next frame is due; none when it is, or nothing more will come.
    fn rest(&self) -> Option<Duration> {
        let rest = self.slot.lock().due?.checked_duration_since(clock::now())?;
        (!self.is_closed() && !rest.is_zero()).then_some(rest)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn close(&self) {
        let waker = {
            let mut slot = self.slot.lock();
            self.closed.store(true, Ordering::Release);
            slot.waker.take()
        };
        self.changed.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Stops watching.
    pub(crate) fn detach(self: &Arc<Self>) {
        self.close();
        let this = Arc::as_ptr(self);
        self.video.watchers.lock().retain(|watcher| !std::ptr::eq(watcher.as_ptr(), this));
        self.video.update();
    }
}

/// Asks for a key frame whenever the next one is due.
async fn ask(watcher: Arc<Watcher>) {
    let mut again = ASK_AGAIN;
    while !watcher.is_closed() {
        let Some(asked) = watcher.video.ask() else { return watcher.close() };
        let wait = if asked { again } else { NOT_YET };
        if timeout(wait, watcher.changed.notified()).await.is_err() {
            if asked {
                again = (again * 2).min(ASK_AGAIN_MOST);
            }
            continue;
        }
        again = ASK_AGAIN;
        // Others may have asked too, so that one comes at any time: then the wait begins anew.
        while let Some(rest) = watcher.rest() {
            let _ = timeout(rest, watcher.changed.notified()).await;
        }
    }
}
