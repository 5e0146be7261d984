//! The alarm clock of one of the engine's threads.
//!
//! A runtime's timers are made for many that lie anywhere; ours are few and lie on the same moments.
//! Tokio's wake their thread every 64 ms besides, to sort those that are due later, and once more
//! whenever another one is the first. One timer of the kernel for all that sleep on a thread
//! (timerfd_create(2)) does neither, and is not rounded up to a millisecond.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::Mutex;

use super::clock;
use system::Timer;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: Timer,
    sleepers: Mutex<Sleepers>,
}

/// Few: a thread's connections and sources.
#[derive(Debug, Default)]
struct Sleepers {
    waiting: Vec<Sleeper>,
    /// When the timer goes off; not later than the first of those who wait.
    set_to: Option<Instant>,
    next_id: u64,
}

#[derive(Debug)]
struct Sleeper {
    id: u64,
    until: Instant,
    waker: Waker,
}

/// Sleeps until then.
#[derive(Debug)]
pub(crate) struct Sleep<'a> {
    alarm: &'a Alarm,
    until: Instant,
    id: Option<u64>,
}

impl Alarm {
    /// Call it within the thread's runtime, and have that run [`Self::ring`].
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { timer: Timer::new()?, sleepers: Mutex::default() })
    }

    pub(crate) fn sleep_until(&self, until: Instant) -> Sleep<'_> {
        Sleep { alarm: self, until, id: None }
    }

    /// Wakes those whose time has come, for ever.
    pub(super) async fn ring(&self) {
        let mut due = Vec::new();
        loop {
            self.timer.rung().await;
            {
                let mut sleepers = self.sleepers.lock();
                if let Some(next) = sleepers.take_due(clock::now(), &mut due) {
                    self.timer.set(next);
                }
            }
            for waker in due.drain(..) {
                waker.wake();
            }
        }
    }
}

impl Sleepers {
    /// Gives its id, and what the timer is to be set to if that is sooner than before.
    fn add(&mut self, until: Instant, waker: &Waker) -> (u64, Option<Instant>) {
        self.next_id += 1;
        let id = self.next_id;
        self.waiting.push(Sleeper { id, until, waker: waker.clone() });
        let sooner = self.set_to.is_none_or(|at| until < at);
        (id, sooner.then(|| *self.set_to.insert(until)))
    }

    /// The timer has gone off; gives what it is to be set to next.
    fn take_due(&mut self, now: Instant, due: &mut Vec<Waker>) -> Option<Instant> {
        let gone = self.waiting.extract_if(.., |sleeper| sleeper.until <= now);
        due.extend(gone.map(|sleeper| sleeper.waker));
        self.set_to = self.waiting.iter().map(|sleeper| sleeper.until).min();
        self.set_to
    }

    fn find(&mut self, id: u64) -> Option<&mut Sleeper> {
        self.waiting.iter_mut().find(|sleeper| sleeper.id == id)
    }

    fn remove(&mut self, id: u64) {
        if let Some(at) = self.waiting.iter().position(|sleeper| sleeper.id == id) {
            self.waiting.swap_remove(at);
        }
    }
}

impl Sleep<'_> {
    fn leave(&mut self) {
        if let Some(id) = self.id.take() {
            self.alarm.sleepers.lock().remove(id);
        }
    }
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.until <= clock::now() {
            self.leave();
            return Poll::Ready(());
        }
        let mut sleepers = self.alarm.sleepers.lock();
        if let Some(own) = self.id.and_then(|id| sleepers.find(id)) {
            own.waker.clone_from(context.waker());
            return Poll::Pending;
        }
        let (id, sooner) = sleepers.add(self.until, context.waker());
        if let Some(at) = sooner {
            self.alarm.timer.set(at);
        }
        drop(sleepers);
        self.id = Some(id);
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::os::fd::{AsFd, AsRawFd, RawFd};
    use std::time::Duration;

    use nix::sys::time::TimeSpec;
    use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    use super::{Instant, clock, io};

    #[derive(Debug)]
    struct Fd(TimerFd);

    impl AsRawFd for Fd {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_fd().as_raw_fd()
        }
    }

    /// A timer that goes off once.
    #[derive(Debug)]
    pub(super) struct Timer(AsyncFd<Fd>);

    impl Timer {
        pub(super) fn new() -> io::Result<Self> {
            let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
            let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
            #[allow(unsafe_code, reason = "tokio has no safe way to watch a descriptor")]
            // SAFETY: `Fd` owns the timer, gives no other descriptor, and is never taken out.
            let timer = unsafe { AsyncFd::register_with_interest(Fd(timer), Interest::READABLE) };
            Ok(Self(timer?))
        }

        pub(super) fn set(&self, at: Instant) {
            // No time at all would stop it.
            let after = at.saturating_duration_since(clock::now()).max(Duration::from_nanos(1));
            let once = Expiration::OneShot(TimeSpec::from_duration(after));
            // It refuses only what is no timer or no time (timerfd_settime(2)).
            if let Err(error) = self.0.get_ref().0.set(once, TimerSetTimeFlags::empty()) {
                log::error!("the engine's timer cannot be set: {error}");
            }
        }

        /// Waits until it goes off. It is not read: to be set anew makes it unreadable, too, and each
        /// time that it goes off is told.
        pub(super) async fn rung(&self) {
            match self.0.readable().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => log::error!("the engine's timer is lost: {error}"),
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use tokio::sync::Notify;
    use tokio::time::sleep_until;

    use super::{Instant, Mutex, io};

    /// A timer that goes off once.
    #[derive(Debug, Default)]
    pub(super) struct Timer {
        at: Mutex<Option<Instant>>,
        changed: Notify,
    }

    impl Timer {
        #[allow(clippy::unnecessary_wraps, reason = "elsewhere it can fail")]
        pub(super) fn new() -> io::Result<Self> {
            Ok(Self::default())
        }

        pub(super) fn set(&self, at: Instant) {
            *self.at.lock() = Some(at);
            self.changed.notify_one();
        }

        /// Waits until it goes off.
        pub(super) async fn rung(&self) {
            loop {
                let at = *self.at.lock();
                let Some(at) = at else {
                    self.changed.notified().await;
                    continue;
                };
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(at.into()) => {
                        *self.at.lock() = None;
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn alarm() -> Arc<Alarm> {
        let alarm = Arc::new(Alarm::new().unwrap());
        let rings = Arc::clone(&alarm);
        tokio::spawn(async move { rings.ring().await });
        alarm
    }

    #[test]
    fn the_timer_is_set_to_the_first_of_all_and_anew_for_a_sooner_one_alone() {
        let start = clock::now();
        let mut sleepers = Sleepers::default();
        let mut add = |after: u64| sleepers.add(start + ms(after), Waker::noop()).1;
        assert_eq!(add(40), Some(start + ms(40)));
        assert_eq!(add(60), None);
        assert_eq!(add(40), None);
        assert_eq!(add(20), Some(start + ms(20)));
    }

    #[test]
    fn those_whose_time_has_come_are_taken_and_the_timer_is_set_to_the_next() {
        let start = clock::now();
        let mut sleepers = Sleepers::default();
        for after in [30, 10, 70, 20, 10] {
            sleepers.add(start + ms(after), Waker::noop());
        }
        let mut take = |after: u64| {
            let mut due = Vec::new();
            let next = sleepers.take_due(start + ms(after), &mut due);
            (due.len(), next.map(|next| (next - start).as_millis()))
        };
        assert_eq!(take(9), (0, Some(10)), "it went off for one that had given up");
        assert_eq!(take(10), (2, Some(20)));
        assert_eq!(take(35), (2, Some(70)));
        assert_eq!(take(70), (1, None));
    }

    #[tokio::test]
    async fn sleepers_are_woken_and_never_early() {
        let alarm = alarm();
        let start = clock::now();
        let sleepers = [30, 10, 20, 10, 0].map(|after| {
            let alarm = Arc::clone(&alarm);
            tokio::spawn(async move {
                alarm.sleep_until(start + ms(after)).await;
                assert!(clock::now() >= start + ms(after));
            })
        });
        for sleeper in sleepers {
            sleeper.await.unwrap();
        }
        assert!(alarm.sleepers.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn a_sleep_that_is_given_up_leaves_nothing_behind() {
        let alarm = alarm();
        let hour = alarm.sleep_until(clock::now() + Duration::from_hours(1));
        tokio::select! {
            () = hour => panic!("an hour has not passed"),
            () = alarm.sleep_until(clock::now() + ms(1)) => {}
        }
        assert!(alarm.sleepers.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn whoever_polled_a_sleep_last_is_woken() {
        let alarm = alarm();
        let mut sleep = Box::pin(alarm.sleep_until(clock::now() + ms(10)));
        assert!(sleep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        sleep.await;
    }
}
