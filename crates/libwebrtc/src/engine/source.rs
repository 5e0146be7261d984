//! Pacing of a local audio source: one Opus packet every 20 ms to every connection it is sent on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rtc_audio::codec::CodecError;
use rtc_audio::opus_format::OpusFormat;
use rtc_audio::pacer::Pacer;
use rtc_audio::send_queue::{EncodedFrame, SendQueue, TICK};
use rtc_audio::transceiver::TransceiverId;
use tokio::sync::Notify;

use super::alarm::Alarm;
use super::clock;
use super::connection::Connection;
use super::moments::moment_after;
use crate::audio_frame::AudioFrame;
use crate::{RtcError, RtcErrorType};

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
    tracks: Mutex<Arc<[Weak<LocalAudio>]>>,
    last_inline: Mutex<Option<Instant>>,
}

/// A local track of a source.
#[derive(Debug)]
pub(crate) struct LocalAudio {
    source: Option<Arc<Source>>,
    enabled: AtomicBool,
    /// Replaced as a whole, so that a packet holds no lock on its way, nor copies the list.
    senders: Mutex<Arc<[Outlet]>>,
}

#[derive(Debug, Clone)]
struct Outlet {
    connection: Weak<Connection>,
    transceiver: TransceiverId,
}

impl LocalAudio {
    pub(crate) fn new(source: Option<Arc<Source>>) -> Arc<Self> {
        let track =
            Arc::new(Self { source, enabled: AtomicBool::new(true), senders: Mutex::default() });
        if let Some(source) = &track.source {
            let mut tracks = source.tracks.lock();
            let living = tracks.iter().filter(|track| track.strong_count() > 0);
            *tracks = living.cloned().chain([Arc::downgrade(&track)]).collect();
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
        let new = Outlet { connection: Arc::downgrade(connection), transceiver };
        let mut senders = self.senders.lock();
        let living = senders.iter().filter(|outlet| outlet.connection.strong_count() > 0);
        *senders = living.cloned().chain([new]).collect();
    }

    pub(crate) fn detach(&self, transceiver: TransceiverId, connection: &Connection) {
        let mut senders = self.senders.lock();
        let others = senders.iter().filter(|outlet| {
            outlet.transceiver != transceiver
                || !std::ptr::eq(outlet.connection.as_ptr(), connection)
        });
        *senders = others.cloned().collect();
    }

    pub(crate) fn set_bitrate(&self, bits_per_second: u64) {
        let Some(source) = &self.source else { return };
        if let Some(queue) = source.queue.lock().as_mut()
            && let Err(error) = queue.set_bitrate(bits_per_second)
        {
            log::warn!("bitrate {bits_per_second}: {error}");
        }
    }

    /// What the receivers ask of the encoder, `None` while there are none.
    fn receivers(&self) -> Option<OpusFormat> {
        let senders = Arc::clone(&self.senders.lock());
        let formats = senders.iter().filter_map(|outlet| {
            let connection = outlet.connection.upgrade()?;
            connection.read(|state| state.peer.transceiver(outlet.transceiver)?.opus_format())
        });
        formats.reduce(OpusFormat::merge)
    }

    fn send(&self, frame: &EncodedFrame) {
        let senders = Arc::clone(&self.senders.lock());
        for outlet in senders.iter() {
            if let Some(connection) = outlet.connection.upgrade() {
                connection.send_audio(outlet.transceiver, frame);
            }
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
            tracks: Mutex::default(),
            last_inline: Mutex::new(None),
        });
        if limit > 0 && source.fault.is_none() {
            match super::place() {
                Ok(place) => {
                    let paced =
                        pace(Arc::downgrade(&source), Arc::clone(&source.data), place.alarm());
                    place.handle().spawn(async move {
                        paced.await;
                        drop(place);
                    });
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
        let (muted, receivers) = (self.is_muted(), self.receivers());
        let encoded = {
            let mut queue = self.queue.lock();
            let Some(queue) = queue.as_mut() else { return Ok(()) };
            if paused > PAUSE {
                queue.skip((paused.as_millis() / TICK.as_millis()) as u32);
            }
            queue.set_silent(muted);
            if let Some(format) = receivers {
                queue.set_receiver(format).map_err(|error| encode_error(&error))?;
            }
            queue.push(samples);
            queue.pop()
        };
        if let Some(frame) = encoded.map_err(|error| encode_error(&error))? {
            self.send(&frame);
        }
        Ok(())
    }

    fn tracks(&self) -> Arc<[Weak<LocalAudio>]> {
        Arc::clone(&self.tracks.lock())
    }

    /// Says whether there are tracks and all of them are muted.
    fn is_muted(&self) -> bool {
        let tracks = self.tracks();
        let mut living = tracks.iter().filter_map(Weak::upgrade).peekable();
        living.peek().is_some() && living.all(|track| !track.is_enabled())
    }

    fn receivers(&self) -> Option<OpusFormat> {
        let tracks = self.tracks();
        let living = tracks.iter().filter_map(Weak::upgrade);
        living.filter_map(|track| track.receivers()).reduce(OpusFormat::merge)
    }

    fn send(&self, frame: &EncodedFrame) {
        // With all of them muted the frame is silence: it keeps the stream alive.
        let all = self.is_muted();
        for track in self.tracks().iter().filter_map(Weak::upgrade) {
            if all || track.is_enabled() {
                track.send(frame);
            }
        }
    }

    /// One tick of the pacer; says whether it was quiet and how many ticks it may rest.
    fn tick(&self) -> (bool, u32) {
        let (muted, receivers) = (self.is_muted(), self.receivers());
        let (encoded, quiet, rest) = {
            let mut queue = self.queue.lock();
            let Some(queue) = queue.as_mut() else { return (true, 1) };
            queue.set_silent(muted);
            let applied = receivers.map_or(Ok(()), |format| queue.set_receiver(format));
            let encoded = applied.and_then(|()| queue.tick());
            (encoded, queue.is_quiet(), queue.rest())
        };
        self.space.notify_waiters();
        match encoded {
            Ok(Some(frame)) => self.send(&frame),
            Ok(None) => {}
            Err(error) => log::warn!("a frame was not encoded: {error}"),
        }
        (quiet, rest)
    }

    /// Lets time go by in which nothing was sent.
    fn skip(&self, ticks: u32) {
        if let Some(queue) = self.queue.lock().as_mut() {
            queue.skip(ticks);
        }
    }

    fn has_frame(&self) -> bool {
        self.queue.lock().as_ref().is_some_and(|queue| queue.queued() >= queue.frame_len())
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // The pacer may be resting.
        self.data.notify_one();
    }
}

fn encode_error(error: &CodecError) -> RtcError {
    RtcError { error_type: RtcErrorType::Internal, message: error.to_string() }
}

/// Ticks every 20 ms while the source lives. In silence it rests from one packet to the next; out
/// of rest the first frame goes at once.
async fn pace(source: Weak<Source>, data: Arc<Notify>, alarm: &'static Alarm) {
    let mut pacer = Pacer::new(moment_after(clock::now(), TICK));
    loop {
        let rest = {
            let Some(source) = source.upgrade() else { return };
            let (quiet, rest) = source.tick();
            let lost = pacer.ticked(clock::now(), quiet);
            if lost > 0 {
                log::debug!("the pacer was {lost} ticks late");
                source.skip(lost);
            }
            rest
        };
        if rest == 0 {
            alarm.sleep_until(pacer.deadline()).await;
            continue;
        }
        let until = pacer.rest_until(rest);
        let passed = loop {
            tokio::select! {
                () = alarm.sleep_until(until) => break pacer.rested(clock::now()),
                () = data.notified() => {
                    let Some(source) = source.upgrade() else { return };
                    if source.has_frame() {
                        break pacer.woken(clock::now());
                    }
                }
            }
        };
        let Some(source) = source.upgrade() else { return };
        source.skip(passed);
    }
}
