//! Playout of a remote track for one listener.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use rtc_audio::codec::CodecError;
use rtc_audio::jitter_buffer::Packet;
use rtc_audio::playout::{PULL, Playout, PlayoutStats, Pulled};
use tokio::sync::Notify;
use tokio::time::sleep_until;

use super::clock;
use crate::audio_frame::AudioFrame;

/// What "unbounded" means here: 30 s of frames.
const MOST_FRAMES: usize = 3_000;
/// A playout that is so late (a suspended host) does not catch up frame by frame.
const GIVE_UP_AFTER: Duration = Duration::from_millis(500);

/// A remote track as its listeners share it.
#[derive(Debug, Default)]
pub(crate) struct RemoteAudio {
    sinks: Mutex<Vec<Weak<Sink>>>,
    ended: AtomicBool,
}

impl RemoteAudio {
    pub(crate) fn deliver(&self, packet: &Packet) {
        let mut gone = false;
        let mut sinks = self.sinks.lock();
        for sink in sinks.iter() {
            match sink.upgrade() {
                Some(sink) => sink.insert(packet.clone()),
                None => gone = true,
            }
        }
        if gone {
            sinks.retain(|sink| sink.strong_count() > 0);
        }
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        for sink in self.sinks.lock().drain(..).filter_map(|sink| sink.upgrade()) {
            sink.close();
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Figures of the listener that has been there longest.
    pub(crate) fn stats(&self) -> Option<PlayoutStats> {
        let sink = self.sinks.lock().iter().find_map(Weak::upgrade)?;
        let stats = sink.playout.lock().stats();
        Some(stats)
    }
}

/// One listener.
pub(crate) struct Sink {
    playout: Mutex<Playout>,
    output: Mutex<Output>,
    wake: Notify,
    closed: AtomicBool,
    dropped: AtomicU64,
    sample_rate: u32,
    channels: u32,
    capacity: usize,
}

#[derive(Default)]
struct Output {
    frames: VecDeque<AudioFrame<'static>>,
    waker: Option<Waker>,
    started: bool,
}

impl Sink {
    /// Listens to `track`. Call it within the engine's runtime.
    pub(crate) fn attach(
        track: &Arc<RemoteAudio>,
        sample_rate: u32,
        channels: u32,
        queue: Option<usize>,
    ) -> Result<Arc<Self>, CodecError> {
        let sink = Arc::new(Self {
            playout: Mutex::new(Playout::new(sample_rate, channels)?),
            output: Mutex::new(Output::default()),
            wake: Notify::new(),
            closed: AtomicBool::new(track.is_ended()),
            dropped: AtomicU64::new(0),
            sample_rate,
            channels,
            capacity: queue.unwrap_or(MOST_FRAMES).clamp(1, MOST_FRAMES),
        });
        track.sinks.lock().push(Arc::downgrade(&sink));
        // Ended between the two lines above: nobody else would say so.
        if track.is_ended() {
            sink.close();
        }
        tokio::spawn(play(Arc::clone(&sink)));
        Ok(sink)
    }

    fn insert(&self, packet: Packet) {
        self.playout.lock().insert(packet);
        let first = !std::mem::replace(&mut self.output.lock().started, true);
        if first {
            self.wake.notify_one();
        }
    }

    /// Ends it: what is queued may still be read.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
        let waker = self.output.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Frames dropped because the listener was too slow.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn poll_next(&self, context: &Context<'_>) -> Poll<Option<AudioFrame<'static>>> {
        let mut output = self.output.lock();
        if let Some(frame) = output.frames.pop_front() {
            return Poll::Ready(Some(frame));
        }
        if self.closed.load(Ordering::Acquire) {
            return Poll::Ready(None);
        }
        output.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn push(&self, frame: AudioFrame<'static>) {
        let waker = {
            let mut output = self.output.lock();
            if output.frames.len() >= self.capacity {
                output.frames.pop_front();
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
            output.frames.push_back(frame);
            output.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Gives out a frame every 10 ms from the first packet's time on, until it is closed.
async fn play(sink: Arc<Sink>) {
    sink.wake.notified().await;
    let per_channel = sink.sample_rate / 100;
    let mut next = clock::now();
    while !sink.closed.load(Ordering::Acquire) {
        next += PULL;
        sleep_until(next.into()).await;
        let now = clock::now();
        if now > next + GIVE_UP_AFTER {
            next = now;
        }
        let mut frame = AudioFrame::new(sink.sample_rate, sink.channels, per_channel);
        let samples = frame.data.to_mut();
        let pulled = sink.playout.lock().pull(now, samples);
        if pulled == Pulled::Audio {
            sink.push(frame);
        }
    }
    if sink.dropped() > 0 {
        log::debug!("{} audio frames were dropped for a slow listener", sink.dropped());
    }
}
