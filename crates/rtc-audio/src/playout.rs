//! Plays one remote track: packets in as they come, 10 ms of samples out whenever asked.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::codec::{CodecError, Decoder, MAX_PACKET_MS, RTP_CLOCK, audio_level};
use crate::jitter_buffer::{Counters, JitterBuffer, Packet, Step};

/// Length of what one pull gives.
pub const PULL: Duration = Duration::from_millis(10);

/// Below this level nobody misses a frame (dBov).
const QUIET: i8 = -50;
/// Surplus that is shed in quiet places.
const SHED_QUIET: Duration = Duration::from_millis(20);
/// Surplus that is shed wherever it is: it hurts a conversation more than a skipped frame.
const SHED_ANYWHERE: Duration = Duration::from_millis(160);

/// What a pull gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulled {
    /// Nothing yet: no packet's time has come since the start.
    Nothing,
    /// Samples were written.
    Audio,
}

/// Counts of one playout.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlayoutStats {
    /// Counts of the jitter buffer.
    pub buffer: Counters,
    /// The delay it aims at.
    pub target: Duration,
    /// Samples per channel given out.
    pub samples: u64,
    /// Samples per channel that were made up.
    pub concealed_samples: u64,
    /// Frames dropped to shorten the delay.
    pub shed_frames: u64,
    /// Packets that were no valid Opus.
    pub undecodable: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Playout {
    buffer: JitterBuffer,
    decoder: Decoder,
    samples: VecDeque<i16>,
    scratch: Vec<i16>,
    sample_rate: u32,
    channels: usize,
    stats: PlayoutStats,
}

impl Playout {
    /// `sample_rate` one of [`crate::codec::SAMPLE_RATES`], one or two channels.
    pub fn new(sample_rate: u32, channels: u32) -> Result<Self, CodecError> {
        let decoder = Decoder::new(sample_rate, channels)?;
        let longest = (sample_rate * MAX_PACKET_MS / 1000 * channels) as usize;
        Ok(Self {
            buffer: JitterBuffer::default(),
            decoder,
            samples: VecDeque::with_capacity(longest * 2),
            scratch: vec![0; longest],
            sample_rate,
            channels: channels as usize,
            stats: PlayoutStats::default(),
        })
    }

    /// Samples of one pull, all channels.
    pub fn pull_len(&self) -> usize {
        self.sample_rate as usize / 100 * self.channels
    }

    /// Takes a packet from the network.
    pub fn insert(&mut self, packet: Packet) {
        self.buffer.insert(packet);
    }

    /// Writes the next 10 ms to `out`, which holds [`Self::pull_len`] interleaved samples. Call it
    /// every 10 ms.
    pub fn pull(&mut self, now: Instant, out: &mut [i16]) -> Pulled {
        while self.samples.len() < out.len() {
            match self.buffer.next(now) {
                Step::Idle => return Pulled::Nothing,
                Step::Silence => {
                    let missing = out.len() - self.samples.len();
                    self.samples.extend(std::iter::repeat_n(0, missing));
                }
                Step::Play { packet, surplus } => self.play(&packet, surplus),
                Step::Recover { payload, duration } => {
                    let len = self.frame_len(duration);
                    let done = self.decoder.recover(&payload, &mut self.scratch[..len]);
                    self.push_made_up(done.unwrap_or_default(), len);
                }
                Step::Conceal { duration } => self.conceal(duration),
            }
        }
        let wanted = out.len();
        for (to, from) in out.iter_mut().zip(self.samples.drain(..wanted)) {
            *to = from;
        }
        self.stats.samples += (out.len() / self.channels) as u64;
        Pulled::Audio
    }

    /// Counts since the start.
    pub fn stats(&self) -> PlayoutStats {
        PlayoutStats { buffer: self.buffer.counters(), target: self.buffer.target(), ..self.stats }
    }

    fn play(&mut self, packet: &Packet, surplus: Duration) {
        let Ok(len) = self.decoder.decode(&packet.payload, &mut self.scratch) else {
            self.stats.undecodable += 1;
            self.conceal(packet.duration);
            return;
        };
        let decoded = &self.scratch[..len];
        let shed =
            surplus >= SHED_ANYWHERE || (surplus >= SHED_QUIET && audio_level(decoded) < QUIET);
        if shed {
            self.stats.shed_frames += 1;
            self.buffer.shed();
        } else {
            self.samples.extend(decoded);
        }
    }

    fn conceal(&mut self, duration: u32) {
        let len = self.frame_len(duration);
        let done = self.decoder.conceal(&mut self.scratch[..len]);
        self.push_made_up(done.unwrap_or_default(), len);
    }

    /// Takes what Opus made up, filled with silence where it made less than the frame.
    fn push_made_up(&mut self, done: usize, len: usize) {
        self.stats.concealed_samples += (len / self.channels) as u64;
        let done = done.min(len);
        self.samples.extend(&self.scratch[..done]);
        self.samples.extend(std::iter::repeat_n(0, len - done));
    }

    /// Interleaved samples of a frame of this RTP length. Opus conceals in steps of 2.5 ms.
    fn frame_len(&self, duration: u32) -> usize {
        let step = RTP_CLOCK / 400;
        let duration = (duration / step).max(1) * step;
        let per_channel = (duration / (RTP_CLOCK / self.sample_rate)) as usize;
        (per_channel * self.channels).min(self.scratch.len())
    }
}

#[cfg(test)]
#[path = "playout_tests.rs"]
mod tests;
