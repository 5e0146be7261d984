//! Pacing of a local audio source: one Opus packet every 20 ms to every connection it is sent on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rtc_audio::codec::CodecError;
use rtc_audio::send_queue::{EncodedFrame, SendQueue, TICK};
use rtc_audio::transceiver::TransceiverId;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use super::clock;
use super::connection::Connection;
use crate::audio_frame::AudioFrame;
use crate::{RtcError, RtcErrorType};

/// A pacer that is so late (a suspended host) starts anew instead of sending a burst.
const GIVE_UP_AFTER: Duration = Duration::from_millis(200);
/// A gap so long in a source without pacing is a pause, not jitter.
const PAUSE: Duration = Duration::from_millis(60);

/// A source of samples.
#[derive(Debug)]
pub(crate) struct Source {
    queue: Mutex<Option<SendQueue>>,
    fault: Option<String>,
    /// Interleaved samples that may wait; 0 encodes in the caller.
    limit: usize,
    sample_rate: u32,
    channels: u32,
    space: Notify,
    data: Arc<Notify>,
    /// Grows with every `clear`, so that a capture that waits gives up its rest.
    cleared: AtomicU64,
    tracks: Mutex<Vec<Weak<LocalAudio>>>,
    last_inline: Mutex<Option<Instant>>,
}

/// A local track of a source.
#[derive(Debug)]
pub(crate) struct LocalAudio {
    source: Option<Arc<Source>>,
    enabled: AtomicBool,
    senders: Mutex<Vec<Outlet>>,
}

#[derive(Debug, Clone)]
struct Outlet {
    connection: Weak<Connection>,
    transceiver: TransceiverId,
}

impl LocalAudio {
    pub(crate) fn new(source: Option<Arc<Source>>) -> Arc<Self> {
        let track = Arc::new(Self {
            source,
            enabled: AtomicBool::new(true),
            senders: Mutex::new(Vec::new()),
        });
        if let Some(source) = &track.source {
            source.tracks.lock().push(Arc::downgrade(&track));
        }
        track
    }

    /// Says whether samples can come at all: a device track has no source here.
    pub(crate) fn has_source(&self) -> bool {
        self.source.is_some()
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Release);
    }

    pub(crate) fn attach(&self, connection: &Arc<Connection>, transceiver: TransceiverId) {
        self.senders.lock().push(Outlet { connection: Arc::downgrade(connection), transceiver });
    }

    pub(crate) fn detach(&self, transceiver: TransceiverId, connection: &Connection) {
        self.senders.lock().retain(|outlet| {
            outlet.transceiver != transceiver
                || !std::ptr::eq(outlet.connection.as_ptr(), connection)
        });
    }

    pub(crate) fn set_bitrate(&self, bits_per_second: u64) {
        let Some(source) = &self.source else { return };
        if let Some(queue) = source.queue.lock().as_mut()
            && let Err(error) = queue.set_bitrate(bits_per_second)
        {
            log::warn!("bitrate {bits_per_second}: {error}");
        }
    }

    fn send(&self, frame: &EncodedFrame) {
        let outlets = self.senders.lock().clone();
        let mut gone = false;
        for outlet in outlets {
            match outlet.connection.upgrade() {
                Some(connection) => connection.send_audio(outlet.transceiver, frame),
                None => gone = true,
            }
        }
        if gone {
            self.senders.lock().retain(|outlet| outlet.connection.strong_count() > 0);
        }
    }
}

impl Source {
    pub(crate) fn new(sample_rate: u32, channels: u32, queue_ms: u32) -> Arc<Self> {
        let (queue, fault) = match SendQueue::new(sample_rate, channels) {
            Ok(queue) => (Some(queue), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let samples = u64::from(queue_ms) * u64::from(sample_rate) * u64::from(channels) / 1000;
        let least = queue.as_ref().map_or(0, SendQueue::frame_len);
        let limit = if queue_ms == 0 { 0 } else { (samples as usize).max(least) };
        let source = Arc::new(Self {
            queue: Mutex::new(queue),
            fault,
            limit,
            sample_rate,
            channels,
            space: Notify::new(),
            data: Arc::new(Notify::new()),
            cleared: AtomicU64::new(0),
            tracks: Mutex::new(Vec::new()),
            last_inline: Mutex::new(None),
        });
        if limit > 0 && source.fault.is_none() {
            match super::runtime() {
                Ok(runtime) => {
                    runtime.spawn(pace(Arc::downgrade(&source), Arc::clone(&source.data)));
                }
                Err(error) => log::error!("{error}"),
            }
        }
        source
    }

    pub(crate) fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    pub(crate) fn channels(&self) -> u32 {
        self.channels
    }

    /// Drops all that waits, and the rest of a capture that waits for room.
    pub(crate) fn clear(&self) {
        self.cleared.fetch_add(1, Ordering::AcqRel);
        if let Some(queue) = self.queue.lock().as_mut() {
            queue.clear();
        }
        self.space.notify_waiters();
    }

    pub(crate) async fn capture(&self, frame: &AudioFrame<'_>) -> Result<(), RtcError> {
        if let Some(fault) = &self.fault {
            return Err(RtcError::state(fault.clone()));
        }
        if frame.sample_rate != self.sample_rate || frame.num_channels != self.channels {
            return Err(RtcError::state(format!(
                "the source takes {} Hz with {} channels, the frame has {} Hz with {}",
                self.sample_rate, self.channels, frame.sample_rate, frame.num_channels
            )));
        }
        if !frame.data.len().is_multiple_of(self.channels.max(1) as usize) {
            return Err(RtcError::state("frame.data length not divisible by channel count"));
        }
        if self.limit == 0 {
            return self.capture_inline(&frame.data);
        }
        let cleared = self.cleared.load(Ordering::Acquire);
        let mut rest: &[i16] = &frame.data;
        loop {
            let mut room = std::pin::pin!(self.space.notified());
            room.as_mut().enable();
            rest = self.push_some(rest);
            self.data.notify_one();
            if rest.is_empty() || self.cleared.load(Ordering::Acquire) != cleared {
                return Ok(());
            }
            room.await;
            if self.cleared.load(Ordering::Acquire) != cleared {
                return Ok(());
            }
        }
    }

    /// Queues what there is room for; gives the rest.
    fn push_some<'a>(&self, samples: &'a [i16]) -> &'a [i16] {
        let mut queue = self.queue.lock();
        let Some(queue) = queue.as_mut() else { return &[] };
        let channels = self.channels.max(1) as usize;
        let room = self.limit.saturating_sub(queue.queued()) / channels * channels;
        let (now, later) = samples.split_at(samples.len().min(room));
        queue.push(now);
        later
    }

    fn capture_inline(&self, samples: &[i16]) -> Result<(), RtcError> {
        let per_channel = samples.len() / self.channels.max(1) as usize;
        if per_channel != self.sample_rate as usize / 100 {
            return Err(RtcError::state(format!(
                "direct capture requires 10ms frames: got {per_channel} frames, expected {}",
                self.sample_rate / 100
            )));
        }
        let now = clock::now();
        let paused = self.last_inline.lock().replace(now).map_or(Duration::ZERO, |last| now - last);
        let encoded = {
            let mut queue = self.queue.lock();
            let Some(queue) = queue.as_mut() else { return Ok(()) };
            if paused > PAUSE {
                queue.skip((paused.as_millis() / TICK.as_millis()) as u32);
            }
            queue.set_silent(self.is_muted());
            queue.push(samples);
            queue.pop()
        };
        if let Some(frame) = encoded.map_err(|error| encode_error(&error))? {
            self.send(&frame);
        }
        Ok(())
    }

    fn is_muted(&self) -> bool {
        let tracks = self.tracks.lock();
        let mut any = false;
        for track in tracks.iter().filter_map(Weak::upgrade) {
            if track.is_enabled() {
                return false;
            }
            any = true;
        }
        any
    }

    fn send(&self, frame: &EncodedFrame) {
        let tracks: Vec<Arc<LocalAudio>> = {
            let mut tracks = self.tracks.lock();
            tracks.retain(|track| track.strong_count() > 0);
            tracks.iter().filter_map(Weak::upgrade).collect()
        };
        // With all of them muted the frame is silence: it keeps the stream alive.
        let all = tracks.iter().all(|track| !track.is_enabled());
        for track in tracks.iter().filter(|track| all || track.is_enabled()) {
            track.send(frame);
        }
    }

    /// One tick of the pacer; says whether it may rest.
    fn tick(&self) -> bool {
        let muted = self.is_muted();
        let (encoded, idle) = {
            let mut queue = self.queue.lock();
            let Some(queue) = queue.as_mut() else { return true };
            queue.set_silent(muted);
            (queue.tick(), queue.is_idle())
        };
        self.space.notify_waiters();
        match encoded {
            Ok(Some(frame)) => self.send(&frame),
            Ok(None) => {}
            Err(error) => log::warn!("a frame was not encoded: {error}"),
        }
        idle
    }

    fn has_frame(&self) -> bool {
        self.queue.lock().as_ref().is_some_and(|queue| queue.queued() >= queue.frame_len())
    }
}

fn encode_error(error: &CodecError) -> RtcError {
    RtcError { error_type: RtcErrorType::Internal, message: error.to_string() }
}

/// Ticks every 20 ms without drift while the source lives. Out of rest the first frame goes at
/// once.
async fn pace(source: Weak<Source>, data: Arc<Notify>) {
    let mut next = clock::now();
    loop {
        let resting = match source.upgrade() {
            Some(source) => source.tick(),
            None => return,
        };
        next += TICK;
        let now = clock::now();
        if now > next + GIVE_UP_AFTER {
            next = now;
        }
        if !resting {
            sleep_until(next.into()).await;
            continue;
        }
        loop {
            tokio::select! {
                () = sleep_until(next.into()) => break,
                () = data.notified() => {
                    let Some(source) = source.upgrade() else { return };
                    if source.has_frame() {
                        next = clock::now();
                        break;
                    }
                }
            }
        }
    }
}
