//! Playout of remote tracks for their listeners, when their connection's driver comes by.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::Mutex;
use rtc_audio::codec::CodecError;
use rtc_audio::jitter_buffer::Packet;
use rtc_audio::playout::{PULL, Playout, PlayoutStats, Pulled};

use super::moments::Rest;
use crate::audio_frame::AudioFrame;

/// What "unbounded" means here: 30 s of frames.
const MOST_FRAMES: usize = 3_000;

/// Those of a connection who hear something, and when they are to be played to.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    sinks: Mutex<Vec<Arc<Sink>>>,
}

impl Listeners {
    pub(super) fn is_empty(&self) -> bool {
        self.sinks.lock().is_empty()
    }

    fn begin(&self, sink: Arc<Sink>) {
        self.sinks.lock().push(sink);
    }

    /// Plays so many pulls, the last of them due now, to each listener; gives how long they may
    /// rest, if anybody is left.
    pub(super) fn play(&self, now: Instant, pulls: u32) -> Option<Rest> {
        // Those who listen do so in `play`, and may come and go.
        let mut sinks = std::mem::take(&mut *self.sinks.lock());
        let mut all = Rest::LONGEST;
        sinks.retain(|sink| {
            if sink.closed.load(Ordering::Acquire) {
                return false;
            }
            // A fault in one track's audio must not silence all others.
            if let Ok(rest) = catch_unwind(AssertUnwindSafe(|| sink.play(now, pulls))) {
                all = all.and(rest);
            } else {
                log::error!("the playout of a track broke off");
                sink.close();
            }
            !sink.closed.load(Ordering::Acquire)
        });
        let mut playing = self.sinks.lock();
        if !playing.is_empty() {
            all = all.cut_short();
        }
        sinks.append(&mut playing);
        *playing = sinks;
        (!playing.is_empty()).then_some(all)
    }
}

/// A remote track as its listeners share it.
#[derive(Debug, Default)]
pub(crate) struct RemoteAudio {
    /// All listeners of the connection that hear something.
    playing: Arc<Listeners>,
    sinks: Mutex<Vec<Weak<Sink>>>,
    ended: AtomicBool,
}

impl RemoteAudio {
    /// A track of the connection that plays to these.
    pub(crate) fn new(playing: Arc<Listeners>) -> Self {
        Self { playing, ..Self::default() }
    }

    pub(crate) fn deliver(&self, packet: &Packet) {
        let mut gone = false;
        let mut sinks = self.sinks.lock();
        for sink in sinks.iter() {
            match sink.upgrade() {
                Some(sink) => Sink::insert(&sink, packet.clone(), &self.playing),
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
        let stats = sink.player.lock().playout.stats();
        Some(stats)
    }
}

/// One listener.
pub(crate) struct Sink {
    player: Mutex<Player>,
    output: Mutex<Output>,
    closed: AtomicBool,
    dropped: AtomicU64,
    sample_rate: u32,
    channels: u32,
    capacity: usize,
    unpaced: bool,
    batching: AtomicBool,
}

struct Player {
    playout: Playout,
    /// A frame, before it is known whether there is one.
    scratch: Box<[i16]>,
}

/// What a listener hears.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listening {
    /// In Hz.
    pub(crate) sample_rate: u32,
    pub(crate) channels: u32,
    /// Frames that may wait for it; `None` for the most there is.
    pub(crate) queue: Option<usize>,
    /// It takes what there is, as soon as it is there.
    pub(crate) unpaced: bool,
}

#[derive(Default)]
struct Output {
    frames: VecDeque<AudioFrame<'static>>,
    waker: Option<Waker>,
    started: bool,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("closed", &self.closed).finish_non_exhaustive()
    }
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
        listening: Listening,
    ) -> Result<Arc<Self>, CodecError> {
        let Listening { sample_rate, channels, queue, unpaced } = listening;
        let playout = if unpaced { Playout::unpaced } else { Playout::new };
        let playout = playout(sample_rate, channels)?;
        let scratch = vec![0; playout.pull_len()].into();
        let sink = Arc::new(Self {
            player: Mutex::new(Player { playout, scratch }),
            output: Mutex::new(Output::default()),
            closed: AtomicBool::new(track.is_ended()),
            dropped: AtomicU64::new(0),
            sample_rate,
            channels,
            capacity: queue.unwrap_or(MOST_FRAMES).clamp(1, MOST_FRAMES),
            unpaced,
            batching: AtomicBool::new(false),
        });
        track.sinks.lock().push(Arc::downgrade(&sink));
        // Ended between the two lines above: nobody else would say so.
        if track.is_ended() {
            sink.close();
        }
        Ok(sink)
    }

    fn insert(sink: &Arc<Self>, packet: Packet, playing: &Listeners) {
        sink.player.lock().playout.insert(packet);
        let started = std::mem::replace(&mut sink.output.lock().started, true);
        if !started {
            playing.begin(Arc::clone(sink));
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

    /// Whether frames come later, and more of them at once.
    pub(crate) fn set_batching(&self, batching: bool) {
        self.batching.store(batching, Ordering::Relaxed);
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

    /// Plays what is due, and what can be had ahead: nobody who listens here needs a steady pace,
    /// and is woken once for all of it.
    fn play(&self, now: Instant, pulls: u32) -> Rest {
        let mut player = self.player.lock();
        let Player { playout, scratch } = &mut *player;
        let mut given = 0;
        for behind in (0..pulls).rev() {
            let at = now.checked_sub(PULL * behind).unwrap_or(now);
            given += usize::from(self.give(playout.pull(at, scratch), scratch));
        }
        // More would push out what was given first.
        while given < self.capacity && self.give(playout.pull_ahead(now, scratch), scratch) {
            given += 1;
        }
        let (dry, ahead) = (playout.is_dry(), playout.pulls_ahead());
        drop(player);
        let waker = if given > 0 { self.output.lock().waker.take() } else { None };
        if let Some(waker) = waker {
            waker.wake();
        }
        // Who listened just now may have said how it goes on.
        if self.unpaced {
            Rest::unpaced(dry, self.batching.load(Ordering::Relaxed))
        } else {
            Rest::paced(ahead)
        }
    }

    /// Queues a frame if that was pulled; gives whether it was.
    fn give(&self, pulled: Pulled, samples: &[i16]) -> bool {
        if pulled != Pulled::Audio {
            return false;
        }
        let frame = AudioFrame {
            data: samples.to_vec().into(),
            sample_rate: self.sample_rate,
            num_channels: self.channels,
            samples_per_channel: self.sample_rate / 100,
        };
        let mut output = self.output.lock();
        if output.frames.len() >= self.capacity {
            output.frames.pop_front();
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        output.frames.push_back(frame);
        true
    }
}

#[cfg(test)]
mod tests {
    use rtc_audio::jitter_buffer::Origin;

    use std::time::Duration;

    use super::super::clock;
    use super::super::moments::{Moments, moment_after};
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A track, and the moments of its connection.
    struct Stage {
        start: Instant,
        playing: Arc<Listeners>,
        track: Arc<RemoteAudio>,
        moments: Moments,
        /// When it was played, in ms.
        played: Vec<u64>,
    }

    impl Stage {
        fn new() -> Self {
            let playing = Arc::new(Listeners::default());
            let track = Arc::new(RemoteAudio::new(Arc::clone(&playing)));
            let (moments, played) = (Moments::default(), Vec::new());
            Self { start: moment_after(clock::now(), PULL * 12), playing, track, moments, played }
        }

        fn listen(&self, sample_rate: u32, channels: u32, queue: Option<usize>) -> Arc<Sink> {
            let listening = Listening { sample_rate, channels, queue, unpaced: false };
            Sink::attach(&self.track, listening).unwrap()
        }

        fn listen_unpaced(&self) -> Arc<Sink> {
            let listening =
                Listening { sample_rate: 16_000, channels: 1, queue: None, unpaced: true };
            Sink::attach(&self.track, listening).unwrap()
        }

        fn deliver(&self, sequence: u64) {
            self.track.deliver(&Packet {
                ssrc: 1,
                sequence,
                timestamp: sequence * 960,
                duration: 960,
                arrival: self.start + ms(sequence * 20),
                origin: Origin::Sent,
                // Opus: 20 ms of CELT, whose frame is empty (RFC 6716 §3.1).
                payload: Arc::from([31 << 3].as_slice()),
            });
        }

        /// Lets a millisecond after another pass, and plays when it is time.
        fn run(&mut self, from: u64, to: u64) {
            for at in from..to {
                let now = self.start + ms(at);
                if self.moments.next(&self.playing, now).is_some_and(|next| next <= now) {
                    self.moments.play(&self.playing, now);
                    self.played.push(at);
                }
            }
        }
    }

    fn frame(sink: &Sink) -> Poll<Option<AudioFrame<'static>>> {
        sink.poll_next(&Context::from_waker(Waker::noop()))
    }

    fn frames(sink: &Sink) -> Vec<usize> {
        let next = || match frame(sink) {
            Poll::Ready(Some(frame)) => Some(frame.data.len()),
            _ => None,
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn every_listener_hears_and_closing_one_leaves_the_others() {
        let mut stage = Stage::new();
        let (mono, stereo) = (stage.listen(16_000, 1, None), stage.listen(48_000, 2, None));
        stage.deliver(0);
        stage.run(0, 50);
        assert_eq!(frames(&mono), [160; 2]);
        assert_eq!(frames(&stereo), [960; 2]);
        mono.close();
        stage.deliver(1);
        stage.run(60, 100);
        assert!(matches!(frame(&mono), Poll::Ready(None)));
        assert!(!frames(&stereo).is_empty());
        assert_eq!(Arc::strong_count(&mono), 1, "a closed listener is let go of");
        stage.track.end();
        stage.run(100, 120);
        assert!(matches!(frame(&stereo), Poll::Ready(None)));
        assert_eq!(stage.moments.next(&stage.playing, stage.start), None, "nobody listens");
        // One that comes later is heard, too, though all had ended.
        let mut later = Stage::new();
        let sink = later.listen(8_000, 1, None);
        later.deliver(7);
        later.run(140, 200);
        assert_eq!(frames(&sink)[..2], [80; 2]);
    }

    #[test]
    fn a_packet_is_played_at_once_and_the_driver_rests_until_the_next() {
        let mut stage = Stage::new();
        let sink = stage.listen(16_000, 1, None);
        for sequence in 0..50 {
            stage.deliver(sequence);
            stage.run(sequence * 20, sequence * 20 + 20);
        }
        let steady = &stage.played[stage.played.len() - 40..];
        assert!(steady.windows(2).all(|pair| pair[1] - pair[0] == 20), "{steady:?}");
        let heard = frames(&sink).len();
        assert!((94..=98).contains(&heard), "{heard} frames of a second's 100, less the delay");
    }

    #[test]
    fn an_unpaced_listener_has_packets_as_they_come_and_rests_in_step_with_others() {
        // Connections whose packets come at different times.
        for phase in [0, 5, 10] {
            let mut stage = Stage::new();
            let sink = stage.listen_unpaced();
            let mut heard = 0;
            for sequence in 0..50 {
                stage.run(sequence * 20, sequence * 20 + phase);
                stage.deliver(sequence);
                stage.run(sequence * 20 + phase, sequence * 20 + 20);
                heard += frames(&sink).len();
            }
            assert!((96..=100).contains(&heard), "{heard} frames of a second's 100");
            let steady = &stage.played[stage.played.len() - 40..];
            assert!(steady.iter().all(|at| at % 20 == 0), "{steady:?}");
            stage.run(1_000, 2_000);
            heard += frames(&sink).len();
            assert!((192..=200).contains(&heard), "{heard}: silence is heard, too");
            let rests = &stage.played[stage.played.len() - 20..];
            assert!(rests.windows(2).all(|pair| pair[1] - pair[0] == 20), "{rests:?}");
            assert!(rests.iter().all(|at| at % 20 == 0), "{rests:?}");
            assert_eq!(sink.dropped(), 0);
        }
    }

    #[test]
    fn batches_are_three_packets_at_once() {
        let mut stage = Stage::new();
        let sink = stage.listen_unpaced();
        let mut heard = Vec::new();
        for sequence in 0..50 {
            sink.set_batching((10..30).contains(&sequence));
            stage.deliver(sequence);
            stage.run(sequence * 20, sequence * 20 + 20);
            heard.push(frames(&sink).len());
        }
        let three = |three: &[usize]| three.iter().sum::<usize>() == 6 && three.contains(&6);
        assert!(heard[13..28].chunks(3).all(three), "{heard:?}");
        assert!(heard[31..].iter().all(|frames| *frames == 2), "{heard:?}");
        assert_eq!(sink.dropped(), 0);
    }

    #[test]
    fn who_keeps_only_the_newest_frame_is_given_one_at_a_time() {
        let mut stage = Stage::new();
        let sink = stage.listen(16_000, 1, Some(1));
        let mut heard = 0;
        for sequence in 0..20 {
            stage.deliver(sequence);
            for half in 0..2 {
                stage.run(sequence * 20 + half * 10, sequence * 20 + half * 10 + 10);
                heard += frames(&sink).len();
            }
        }
        assert_eq!((heard, sink.dropped()), (37, 0), "all but the delay of 30 ms");
    }

    #[test]
    fn after_a_long_suspension_nothing_is_caught_up_with() {
        let mut stage = Stage::new();
        let sink = stage.listen(16_000, 1, None);
        for sequence in 0..5 {
            stage.deliver(sequence);
        }
        stage.run(0, 100);
        assert!(!frames(&sink).is_empty());
        stage.played.clear();
        stage.run(5_000, 5_100);
        assert!(stage.played.len() <= 11, "{:?}", stage.played);
    }

    #[test]
    fn a_slow_listener_loses_the_oldest_and_is_told() {
        let mut stage = Stage::new();
        let sink = stage.listen(16_000, 1, Some(2));
        stage.deliver(0);
        stage.run(0, 100);
        assert!(sink.dropped() > 0);
        assert_eq!(frames(&sink).len(), 2);
    }
}
