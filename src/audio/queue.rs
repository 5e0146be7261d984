//! A bounded queue of mono s16 samples between the audio path and a slower reader.
//!
//! The writer never waits: when the queue is full the oldest samples go, and are counted. The reader is
//! woken when all it waits for is there; less often while the writer says that nothing hangs on it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Debug)]
struct Shared {
    samples: Mutex<Samples>,
    capacity: usize,
    dropped: AtomicU64,
    closed: AtomicBool,
    wake: Notify,
}

/// Room for this many samples from the beginning, and a step's growth: a quarter of a second at
/// 16 kHz. Readers take a tenth at a time.
const STEP: usize = 4_000;
/// What waits, at the low end of its memory: a ring would go round through all of it and keep in
/// use what only a stuck reader needs, a megabyte for 30 s at 16 kHz.
#[derive(Debug)]
struct Samples {
    buffer: Vec<i16>,
    /// How many at the front are gone.
    gone: usize,
    /// How many the reader waits for: for less it is not woken.
    wanted: usize,
    /// For less the reader is not woken, whatever it waits for.
    low_watermark: usize,
    /// Twice the queue's capacity, so that at the end there is always as much gone as is moved: a
    /// sample is moved once at the most, whatever the queue's length.
    limit: usize,
}

impl Samples {
    fn with_capacity(capacity: usize) -> Self {
        let limit = 2 * capacity;
        Self {
            buffer: Vec::with_capacity(limit.min(STEP)),
            gone: 0,
            wanted: 1,
            low_watermark: 0,
            limit,
        }
    }

    fn len(&self) -> usize {
        self.buffer.len() - self.gone
    }

    fn push(&mut self, fresh: &[i16]) {
        let needed = self.buffer.len() + fresh.len();
        if self.gone >= self.len() || needed > self.limit {
            let waiting = self.len();
            self.buffer.copy_within(self.gone.., 0);
            self.buffer.truncate(waiting);
            self.gone = 0;
        }
        // Only for a reader that is slow.
        if self.buffer.capacity() - self.buffer.len() < fresh.len() {
            self.buffer.reserve_exact(fresh.len().max(STEP));
        }
        self.buffer.extend_from_slice(fresh);
    }

    fn is_enough(&self) -> bool {
        // A queue that is full by then is enough, whatever its capacity.
        self.len() >= self.wanted.max(self.low_watermark.min(self.limit / 2))
    }

    fn waiting(&self) -> &[i16] {
        &self.buffer[self.gone..]
    }

    fn skip(&mut self, count: usize) {
        self.gone += count.min(self.len());
        // What an outage took is given back.
        if self.len() == 0 && self.buffer.capacity() > 4 * STEP {
            let Self { low_watermark, limit, .. } = *self;
            *self = Self { low_watermark, ..Self::with_capacity(limit / 2) };
        }
    }
}

/// The writing half; dropping it ends the queue once it is drained.
#[derive(Debug)]
pub struct AudioSender(Arc<Shared>);

/// The reading half.
#[derive(Debug)]
pub struct AudioReceiver(Arc<Shared>);

/// A queue of at most `capacity` samples. A reader that keeps up costs a quarter of a second's memory, all
/// of it allocated now.
pub fn audio_queue(capacity: usize) -> (AudioSender, AudioReceiver) {
    let shared = Arc::new(Shared {
        samples: Mutex::new(Samples::with_capacity(capacity)),
        capacity,
        dropped: AtomicU64::new(0),
        closed: AtomicBool::new(false),
        wake: Notify::new(),
    });
    (AudioSender(shared.clone()), AudioReceiver(shared))
}

impl AudioSender {
    /// Appends samples, dropping the oldest that do not fit. Never waits; allocates, a step at a
    /// time, only while the reader is slow.
    pub fn push(&self, samples: &[i16]) {
        let shared = &*self.0;
        let fresh = &samples[samples.len().saturating_sub(shared.capacity)..];
        let mut queue = shared.samples.lock();
        let surplus = (queue.len() + fresh.len()).saturating_sub(shared.capacity);
        queue.skip(surplus);
        queue.push(fresh);
        let is_enough = queue.is_enough();
        drop(queue);
        let lost = surplus + (samples.len() - fresh.len());
        if lost > 0 {
            shared.dropped.fetch_add(lost as u64, Ordering::Relaxed);
        }
        if is_enough {
            shared.wake.notify_one();
        }
    }

    /// From now on the reader is not woken for less than so many samples, whatever it waits for; for
    /// what waits already at once, if that is enough now.
    pub fn set_low_watermark(&self, samples: usize) {
        let is_enough = {
            let mut queue = self.0.samples.lock();
            queue.low_watermark = samples;
            queue.is_enough()
        };
        if is_enough {
            self.0.wake.notify_one();
        }
    }

    /// How many more samples it takes until the reader has all that it waits for next.
    pub fn lacking(&self) -> usize {
        let queue = self.0.samples.lock();
        let wanted = queue.wanted.max(1);
        wanted - queue.len() % wanted
    }

    /// Samples dropped so far because the reader was too slow.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for AudioSender {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.wake.notify_one();
    }
}

impl AudioReceiver {
    /// Waits until `chunk` samples are there, or the writer has gone, and moves up to `chunk` of
    /// them to the end of `into`. Returns how many; 0 means the end. Cancel-safe.
    pub async fn read(&self, into: &mut Vec<i16>, chunk: usize) -> usize {
        self.read_between(into, chunk, chunk).await
    }

    /// The same, but takes up to `most`, if there are more than the `least` that it waits for.
    pub async fn read_between(&self, into: &mut Vec<i16>, least: usize, most: usize) -> usize {
        loop {
            let closed = self.0.closed.load(Ordering::Acquire);
            {
                let mut queue = self.0.samples.lock();
                if queue.len() >= least || closed {
                    let count = queue.len().min(most);
                    into.extend_from_slice(&queue.waiting()[..count]);
                    queue.skip(count);
                    return count;
                }
                queue.wanted = least;
            }
            self.0.wake.notified().await;
        }
    }

    /// How many samples wait.
    pub fn len(&self) -> usize {
        self.0.samples.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Wake, Waker},
    };

    use super::*;

    #[tokio::test]
    async fn the_oldest_samples_go_when_the_reader_is_too_slow() {
        let (sender, receiver) = audio_queue(4);
        sender.push(&[1, 2, 3]);
        sender.push(&[4, 5, 6]);
        let mut got = Vec::new();
        assert_eq!(receiver.read(&mut got, 4).await, 4);
        assert_eq!(got, [3, 4, 5, 6]);
        assert_eq!(sender.dropped(), 2);
    }

    #[tokio::test]
    async fn samples_keep_their_order_and_stay_in_the_low_end_of_memory() {
        let (sender, receiver) = audio_queue(1_000);
        let (mut next, mut got) = (0_i16, Vec::new());
        for _ in 0..1_000 {
            let fresh: Vec<i16> = (next..next + 16).collect();
            next += 16;
            sender.push(&fresh);
            // Never in step, so that something always waits.
            if receiver.len() > 30 {
                receiver.read(&mut got, 30).await;
            }
            assert!(sender.0.samples.lock().buffer.len() < 120);
        }
        assert_eq!(sender.dropped(), 0);
        assert!(got.iter().copied().eq(0..got.len() as i16));
    }

    #[tokio::test]
    async fn a_reader_that_is_stuck_finds_the_last_samples() {
        let (sender, receiver) = audio_queue(100);
        for first in (0..3_000_i16).step_by(30) {
            sender.push(&(first..first + 30).collect::<Vec<_>>());
        }
        let mut got = Vec::new();
        assert_eq!(receiver.read(&mut got, 100).await, 100);
        assert!(got.into_iter().eq(2_900..3_000));
        assert!(sender.0.samples.lock().buffer.len() <= 200);
    }

    #[tokio::test]
    async fn memory_follows_a_slow_reader_and_is_given_back() {
        let (sender, receiver) = audio_queue(30 * STEP);
        let capacity = || sender.0.samples.lock().buffer.capacity();
        assert_eq!(capacity(), STEP);
        for _ in 0..40 {
            sender.push(&vec![7; STEP]);
        }
        assert!(capacity() <= 60 * STEP);
        assert_eq!(receiver.len(), 30 * STEP);
        receiver.read(&mut Vec::new(), 30 * STEP).await;
        assert_eq!(capacity(), STEP);
    }

    #[derive(Default)]
    struct Woken(AtomicU64);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Woken {
        fn count(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn a_reader_is_woken_when_all_it_waits_for_is_there() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        let (sender, receiver) = audio_queue(100);
        let mut got = Vec::new();
        let mut read = pin!(receiver.read(&mut got, 50));
        assert!(read.as_mut().poll(&mut context).is_pending());
        for _ in 0..4 {
            sender.push(&[70; 10]);
        }
        assert_eq!(woken.count(), 0);
        sender.push(&[70; 10]);
        assert_eq!(woken.count(), 1);
        assert_eq!(read.as_mut().poll(&mut context), Poll::Ready(50));
    }

    #[test]
    fn a_reader_waits_for_as_long_as_the_writer_lets_it() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        let (sender, receiver) = audio_queue(150);
        let mut got = Vec::new();
        let mut read = pin!(receiver.read(&mut got, 50));
        assert!(read.as_mut().poll(&mut context).is_pending());
        sender.set_low_watermark(100);
        sender.push(&[70; 90]);
        assert_eq!(woken.count(), 0);
        sender.push(&[70; 10]);
        assert_eq!(woken.count(), 1);
        assert_eq!(read.as_mut().poll(&mut context), Poll::Ready(50));
        let mut got = Vec::new();
        let mut read = pin!(receiver.read(&mut got, 60));
        assert!(read.as_mut().poll(&mut context).is_pending());
        sender.push(&[70; 20]);
        sender.set_low_watermark(0);
        assert_eq!(woken.count(), 2, "in a hurry it has what there is at once");
        assert_eq!(read.as_mut().poll(&mut context), Poll::Ready(60));
        sender.set_low_watermark(1_000);
        let mut got = Vec::new();
        let mut read = pin!(receiver.read(&mut got, 60));
        assert!(read.as_mut().poll(&mut context).is_pending());
        sender.push(&[70; 140]);
        assert_eq!(woken.count(), 3, "a full queue is enough");
    }

    #[tokio::test]
    async fn a_writer_can_see_what_its_reader_lacks() {
        let (sender, receiver) = audio_queue(1_000);
        assert_eq!(sender.lacking(), 1, "nobody reads yet");
        sender.push(&[7; 30]);
        let mut got = Vec::new();
        let read = receiver.read(&mut got, 50);
        tokio::pin!(read);
        assert!(futures_util::poll!(&mut read).is_pending());
        assert_eq!(sender.lacking(), 20);
        sender.push(&[7; 20]);
        assert_eq!(sender.lacking(), 50, "it will take these and wait again");
        assert_eq!(read.await, 50);
        assert_eq!(sender.lacking(), 50);
    }

    #[tokio::test]
    async fn the_rest_is_read_after_the_writer_has_gone() {
        let (sender, receiver) = audio_queue(10);
        sender.push(&[1, 2, 3]);
        drop(sender);
        let mut got = Vec::new();
        assert_eq!(receiver.read(&mut got, 10).await, 3);
        assert_eq!(receiver.read(&mut got, 10).await, 0);
    }
}
