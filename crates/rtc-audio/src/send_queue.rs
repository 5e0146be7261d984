//! Samples of one audio source to Opus packets, one every 20 ms.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::{CodecError, Encoder, FRAME_MS, FRAME_RTP, audio_level};

/// Time from one tick to the next.
pub const TICK: Duration = Duration::from_millis(FRAME_MS as u64);

/// Silent packets sent after the last sound, so that no receiver takes the end for a loss.
const TRAILING_SILENCE: u32 = 15;
/// Then one packet in this many ticks (400 ms), as Opus' own DTX does (RFC 7587 §3.1.3). A server
/// shows a track only once packets of it have come.
const IDLE_EVERY: u32 = 20;

/// One Opus packet, ready for RTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedFrame {
    /// The RTP payload.
    pub payload: Arc<[u8]>,
    /// In 1/48000 s.
    pub timestamp: u32,
    /// First packet after a pause (RFC 3551 §4.1).
    pub marker: bool,
    /// Level in dBov, 0 to -127 (RFC 6464 §3).
    pub level: i8,
    /// Interleaved samples of the source in it; 0 for silence of our own making.
    pub samples: usize,
}

/// See the [module](self).
#[derive(Debug)]
pub struct SendQueue {
    encoder: Encoder,
    queue: VecDeque<i16>,
    frame: Vec<i16>,
    sample_rate: u32,
    channels: u32,
    timestamp: u32,
    idle_ticks: u32,
    /// A partial frame was left waiting once already.
    held_back: bool,
    silent: bool,
}

impl SendQueue {
    /// `sample_rate` one of [`crate::codec::SAMPLE_RATES`], one or two channels.
    pub fn new(sample_rate: u32, channels: u32) -> Result<Self, CodecError> {
        let encoder = Encoder::new(sample_rate, channels)?;
        let frame = vec![0; (sample_rate / 1000 * FRAME_MS * channels) as usize];
        Ok(Self {
            encoder,
            queue: VecDeque::with_capacity(frame.len() * 4),
            frame,
            sample_rate,
            channels,
            timestamp: 0,
            idle_ticks: 0,
            held_back: false,
            silent: false,
        })
    }

    /// Appends interleaved samples.
    pub fn push(&mut self, samples: &[i16]) {
        self.queue.extend(samples);
        self.held_back = false;
    }

    /// Drops what waits; gives the interleaved sample count.
    pub fn clear(&mut self) -> usize {
        let dropped = self.queue.len();
        self.queue.clear();
        self.held_back = false;
        dropped
    }

    /// Interleaved samples waiting.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Interleaved samples of one frame.
    pub fn frame_len(&self) -> usize {
        self.frame.len()
    }

    /// Samples per second and channel count.
    pub fn format(&self) -> (u32, u32) {
        (self.sample_rate, self.channels)
    }

    /// Replaces sound by silence (a muted track) while `silent`.
    pub fn set_silent(&mut self, silent: bool) {
        self.silent = silent;
    }

    /// See [`Encoder::set_bitrate`].
    pub fn set_bitrate(&mut self, bits_per_second: u64) -> Result<(), CodecError> {
        self.encoder.set_bitrate(bits_per_second)
    }

    /// Says whether only silence goes out, and seldom: the pacer may then sleep longer.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.idle_ticks > TRAILING_SILENCE
    }

    /// Lets RTP time go on by so many ticks in which nothing was sent: for sources without pacing.
    pub fn skip(&mut self, ticks: u32) {
        self.timestamp = self.timestamp.wrapping_add(FRAME_RTP.wrapping_mul(ticks));
        self.idle_ticks = self.idle_ticks.saturating_add(ticks);
    }

    /// Encodes the next frame if it is whole, without silence in between: for sources without
    /// pacing.
    pub fn pop(&mut self) -> Result<Option<EncodedFrame>, CodecError> {
        if self.queue.len() < self.frame.len() {
            return Ok(None);
        }
        self.take_frame().map(Some)
    }

    /// Call every [`TICK`]: gives the packet to send now, if any.
    pub fn tick(&mut self) -> Result<Option<EncodedFrame>, CodecError> {
        if self.queue.len() >= self.frame.len() {
            return self.take_frame().map(Some);
        }
        if !self.queue.is_empty() {
            // The rest of the frame may be on its way: one tick late is better than a click.
            if !self.held_back {
                self.held_back = true;
                return Ok(None);
            }
            return self.take_frame().map(Some);
        }
        self.idle_ticks = self.idle_ticks.saturating_add(1);
        if self.idle_ticks > TRAILING_SILENCE && !self.idle_ticks.is_multiple_of(IDLE_EVERY) {
            self.timestamp = self.timestamp.wrapping_add(FRAME_RTP);
            return Ok(None);
        }
        self.frame.fill(0);
        self.encode(0).map(Some)
    }

    fn take_frame(&mut self) -> Result<EncodedFrame, CodecError> {
        let available = self.queue.len().min(self.frame.len());
        for (to, from) in self.frame.iter_mut().zip(self.queue.drain(..available)) {
            *to = from;
        }
        self.frame[available..].fill(0);
        self.held_back = false;
        if self.silent {
            self.frame.fill(0);
        }
        self.encode(available)
    }

    fn encode(&mut self, samples: usize) -> Result<EncodedFrame, CodecError> {
        let level = audio_level(&self.frame);
        let marker = samples > 0 && self.idle_ticks > TRAILING_SILENCE;
        if samples > 0 {
            self.idle_ticks = 0;
        }
        let timestamp = self.timestamp;
        self.timestamp = timestamp.wrapping_add(FRAME_RTP);
        let payload = Arc::from(self.encoder.encode(&self.frame)?);
        Ok(EncodedFrame { payload, timestamp, marker, level, samples })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> SendQueue {
        SendQueue::new(24_000, 1).unwrap()
    }

    #[test]
    fn a_frame_a_tick_in_steady_time() {
        let mut queue = queue();
        queue.push(&vec![1_000; 480 * 3]);
        for expected in [0, 960, 1_920] {
            let frame = queue.tick().unwrap().unwrap();
            assert_eq!((frame.timestamp, frame.samples), (expected, 480));
        }
        assert_eq!(queue.queued(), 0);
    }

    #[test]
    fn a_partial_frame_waits_one_tick_and_no_more() {
        let mut queue = queue();
        queue.push(&[1_000; 240]);
        assert_eq!(queue.tick().unwrap(), None);
        let frame = queue.tick().unwrap().unwrap();
        assert_eq!((frame.samples, frame.timestamp), (240, 0));
    }

    #[test]
    fn silence_thins_out_and_time_goes_on() {
        let mut queue = queue();
        let sent: Vec<_> = (0..100).filter_map(|_| queue.tick().unwrap()).collect();
        assert!((15..=22).contains(&sent.len()), "{}", sent.len());
        assert!(queue.is_idle());
        queue.push(&[1_000; 480]);
        let frame = queue.tick().unwrap().unwrap();
        assert_eq!(frame.timestamp, 100 * FRAME_RTP);
        assert!(frame.marker, "the first packet after a pause says so");
    }

    #[test]
    fn a_muted_source_sends_silence() {
        let mut queue = queue();
        queue.set_silent(true);
        queue.push(&[i16::MAX; 480]);
        assert_eq!(queue.tick().unwrap().unwrap().level, -127);
    }
}
