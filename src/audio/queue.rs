//! A bounded queue of mono s16 samples between the audio path and a slower reader.
//!
//! The writer never waits: when the queue is full the oldest samples go, and are counted.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Debug)]
struct Shared {
    samples: Mutex<VecDeque<i16>>,
    capacity: usize,
    dropped: AtomicU64,
    closed: AtomicBool,
    wake: Notify,
}

/// The writing half; dropping it ends the queue once it is drained.
#[derive(Debug)]
pub struct AudioSender(Arc<Shared>);

/// The reading half.
#[derive(Debug)]
pub struct AudioReceiver(Arc<Shared>);

/// A queue of at most `capacity` samples, all of it allocated now.
pub fn audio_queue(capacity: usize) -> (AudioSender, AudioReceiver) {
    let shared = Arc::new(Shared {
        samples: Mutex::new(VecDeque::with_capacity(capacity)),
        capacity,
        dropped: AtomicU64::new(0),
        closed: AtomicBool::new(false),
        wake: Notify::new(),
    });
    (AudioSender(shared.clone()), AudioReceiver(shared))
}

impl AudioSender {
    /// Appends samples, dropping the oldest that do not fit. Never waits, never allocates.
    pub fn push(&self, samples: &[i16]) {
        let shared = &*self.0;
        let fresh = &samples[samples.len().saturating_sub(shared.capacity)..];
        let mut queue = shared.samples.lock();
        let surplus = (queue.len() + fresh.len()).saturating_sub(shared.capacity);
        queue.drain(..surplus);
        queue.extend(fresh);
        drop(queue);
        let lost = surplus + (samples.len() - fresh.len());
        if lost > 0 {
            shared.dropped.fetch_add(lost as u64, Ordering::Relaxed);
        }
        shared.wake.notify_one();
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
        loop {
            let closed = self.0.closed.load(Ordering::Acquire);
            {
                let mut queue = self.0.samples.lock();
                if queue.len() >= chunk || closed {
                    let count = queue.len().min(chunk);
                    into.extend(queue.drain(..count));
                    return count;
                }
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
    async fn the_rest_is_read_after_the_writer_has_gone() {
        let (sender, receiver) = audio_queue(10);
        sender.push(&[1, 2, 3]);
        drop(sender);
        let mut got = Vec::new();
        assert_eq!(receiver.read(&mut got, 10).await, 3);
        assert_eq!(receiver.read(&mut got, 10).await, 0);
    }
}
