//! Playout of remote tracks for their listeners.
//!
//! One task pulls from all listeners of the process every 10 ms: a timer and a wake-up for each of
//! them cost more than the samples do.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rtc_audio::codec::CodecError;
use rtc_audio::jitter_buffer::Packet;
use rtc_audio::playout::{PULL, Playout, PlayoutStats, Pulled};
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
                Some(sink) => Sink::insert(&sink, packet.clone()),
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

impl Drop for Sink {
    fn drop(&mut self) {
        let dropped = self.dropped();
        if dropped > 0 {
            log::debug!("{dropped} audio frames were dropped for a slow listener");
        }
    }
}

impl Sink {
    /// Listens to `track`.
    pub(crate) fn attach(
        track: &Arc<RemoteAudio>,
        sample_rate: u32,
        channels: u32,
        queue: Option<usize>,
    ) -> Result<Arc<Self>, CodecError> {
        let sink = Arc::new(Self {
            playout: Mutex::new(Playout::new(sample_rate, channels)?),
            output: Mutex::new(Output::default()),
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
        Ok(sink)
    }

    fn insert(sink: &Arc<Self>, packet: Packet) {
        sink.playout.lock().insert(packet);
        let started = std::mem::replace(&mut sink.output.lock().started, true);
        if !started {
            begin(Arc::clone(sink));
        }
    }

    /// Ends it: what is queued may still be read.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
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

    /// Gives out the next 10 ms.
    fn play(&self, now: Instant) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        let mut frame = AudioFrame::new(self.sample_rate, self.channels, self.sample_rate / 100);
        let samples = frame.data.to_mut();
        let pulled = self.playout.lock().pull(now, samples);
        if pulled == Pulled::Audio {
            self.push(frame);
        }
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

/// Listeners that are pulled from.
#[derive(Default)]
struct Playing {
    sinks: Vec<Arc<Sink>>,
    ticking: bool,
}

static PLAYING: Mutex<Playing> = Mutex::new(Playing { sinks: Vec::new(), ticking: false });

/// Pulls from a listener from now on.
fn begin(sink: Arc<Sink>) {
    let Ok(runtime) = super::runtime() else { return };
    let mut playing = PLAYING.lock();
    playing.sinks.push(sink);
    if !std::mem::replace(&mut playing.ticking, true) {
        runtime.spawn(tick());
    }
}

/// Pulls a frame from each listener every 10 ms until all are closed.
async fn tick() {
    let mut next = clock::now();
    let mut round = Vec::new();
    loop {
        next += PULL;
        sleep_until(next.into()).await;
        let now = clock::now();
        if now > next + GIVE_UP_AFTER {
            next = now;
        }
        std::mem::swap(&mut PLAYING.lock().sinks, &mut round);
        round.retain(|sink| {
            // A fault in one call's audio must not silence all others.
            let played = catch_unwind(AssertUnwindSafe(|| sink.play(now)));
            if played.is_err() {
                log::error!("the playout of a track broke off");
                sink.close();
            }
            !sink.closed.load(Ordering::Acquire)
        });
        let mut playing = PLAYING.lock();
        // Those that began meanwhile go behind.
        round.append(&mut playing.sinks);
        std::mem::swap(&mut playing.sinks, &mut round);
        if playing.sinks.is_empty() {
            *playing = Playing::default();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use rtc_audio::jitter_buffer::Origin;

    use super::*;

    fn packet(sequence: u64) -> Packet {
        Packet {
            ssrc: 1,
            sequence,
            timestamp: sequence * 960,
            duration: 960,
            arrival: clock::now(),
            origin: Origin::Sent,
            // Opus: 20 ms of CELT, whose frame is empty (RFC 6716 §3.1).
            payload: Arc::from([31 << 3].as_slice()),
        }
    }

    fn next_frame(sink: &Sink) -> Option<AudioFrame<'static>> {
        let limit = clock::now() + Duration::from_secs(20);
        loop {
            match sink.poll_next(&Context::from_waker(Waker::noop())) {
                Poll::Ready(frame) => return frame,
                Poll::Pending => assert!(clock::now() < limit, "no frame within 20 s"),
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn every_listener_hears_and_closing_one_leaves_the_others() {
        let track = Arc::new(RemoteAudio::default());
        let listen = |rate, channels| Sink::attach(&track, rate, channels, None).unwrap();
        let (mono, stereo) = (listen(16_000, 1), listen(48_000, 2));
        track.deliver(&packet(0));
        assert_eq!(next_frame(&mono).unwrap().data.len(), 160);
        assert_eq!(next_frame(&stereo).unwrap().data.len(), 960);
        mono.close();
        while next_frame(&mono).is_some() {}
        // Another tick, in which the closed one is let go of.
        for _ in 0..3 {
            assert!(next_frame(&stereo).is_some());
        }
        let limit = clock::now() + Duration::from_secs(20);
        while Arc::strong_count(&mono) > 1 {
            assert!(clock::now() < limit, "a closed listener is kept");
            std::thread::yield_now();
        }
        track.end();
        while next_frame(&stereo).is_some() {}
        // One that comes later is heard, too, though all had ended.
        let later = Arc::new(RemoteAudio::default());
        let sink = Sink::attach(&later, 8_000, 1, None).unwrap();
        later.deliver(&packet(7));
        assert_eq!(next_frame(&sink).unwrap().data.len(), 80);
    }

    #[test]
    fn a_slow_listener_loses_the_oldest_and_is_told() {
        let track = Arc::new(RemoteAudio::default());
        let sink = Sink::attach(&track, 16_000, 1, Some(2)).unwrap();
        track.deliver(&packet(0));
        let limit = clock::now() + Duration::from_secs(20);
        while sink.dropped() == 0 {
            assert!(clock::now() < limit, "nothing was dropped");
            std::thread::yield_now();
        }
        assert!(sink.output.lock().frames.len() <= 2);
        sink.close();
    }
}
