//! Plays one remote track: packets in as they come, 10 ms of samples out whenever asked.
//!
//! A person needs them at a steady pace, and so each packet waits for its time, so that the next is
//! there when it has been played. A machine that listens does not: an [unpaced](Playout::unpaced)
//! playout gives what has come in order at once, and keeps to its schedule only to know when
//! something has been missing for too long.

use std::time::{Duration, Instant};

use crate::codec::{CodecError, Decoder, MAX_PACKET_MS, RTP_CLOCK};
use crate::jitter_buffer::{Counters, JitterBuffer, Join, Packet, Step, rtp_us};
use crate::samples::{ALIKE, Samples};

/// Length of what one pull gives.
pub const PULL: Duration = Duration::from_millis(10);

/// Delay above the target that is worth a jump, in microseconds.
const TOO_MUCH_US: i64 = 10_000;
/// Delay below the target that is worth one: it costs sound, so less of it is borne.
const TOO_LITTLE_US: i64 = 5_000;
/// How far above the target a jump back may go, since periods are as long as they are.
const OVERSHOOT_US: i64 = 7_500;
/// Above this a conversation suffers more from the delay than from haste.
const URGENT_US: i64 = 100_000;
/// Pulls over which delay must be too much before some is taken away: half a second.
const CALM_PULLS: u32 = 50;
/// Pulls between jumps otherwise: at 15 ms at most every 50 ms, speech stays speech.
const PULLS: u32 = 5;
/// Pulls to wait for a better place, where none was found.
const RETRY_PULLS: u32 = 10;
/// RTP time decoded ahead at most: a period and what comes over it.
const MOST_QUEUED: u32 = RTP_CLOCK / 20;
/// RTP time of a pull.
const PULL_RTP: u32 = RTP_CLOCK / 100;
/// Pulls given ahead at most: what a network that stood still brings at once, and no more of what a
/// sender sends faster than it sounds. What is given ahead is not made up for when it runs out: a lost
/// packet, or the end of what is said, is heard of so much later.
const MOST_AHEAD: u32 = 50;
/// After so much sound was made up, nothing is about to come.
const DRY_MS: u64 = 60;
/// How much less alike two places may be each time none was found, down to the least.
const ALIKE_STEP: f64 = 0.05;
const LEAST_ALIKE: f64 = 0.4;

/// What a pull gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulled {
    /// Nothing: no packet's time has come since the start, or the sound was given
    /// [ahead](Playout::pull_ahead).
    Nothing,
    /// Samples were written.
    Audio,
}

/// Figures of one playout since its start. Samples are counted per channel, at the playout's rate.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlayoutStats {
    /// Counts of the jitter buffer: packets received, late, discarded, recovered by FEC, by RED,
    /// by NACK, concealed.
    pub buffer: Counters,
    /// The delay it aims at.
    pub target: Duration,
    /// How much faster than ours the sender's clock runs, in parts per million; 0 until measured.
    pub drift_ppm: f64,
    /// Samples given out (`totalSamplesReceived` of webrtc-stats).
    pub samples: u64,
    /// Samples that came out of packets or their copies (`jitterBufferEmittedCount`).
    pub emitted_samples: u64,
    /// Over all of those, the time from a packet's arrival to its playout (`jitterBufferDelay`).
    pub delay_sum: Duration,
    /// Over all of those, the target at that time (`jitterBufferTargetDelay`).
    pub target_sum: Duration,
    /// Samples made up for what was lost or late, silence included (`concealedSamples`). A
    /// sender's pauses do not count.
    pub concealed_samples: u64,
    /// Those of them that were silent (`silentConcealedSamples`).
    pub silent_concealed_samples: u64,
    /// Times that samples were made up, however many in a row (`concealmentEvents`).
    pub concealment_events: u64,
    /// Times that a period was left out, to shorten the delay.
    pub accelerations: u64,
    /// Samples left out by that (`removedSamplesForAcceleration`).
    pub removed_samples: u64,
    /// Times that a period was played again, to lengthen the delay.
    pub decelerations: u64,
    /// Samples put in by that (`insertedSamplesForDeceleration`).
    pub inserted_samples: u64,
    /// Packets that were no valid Opus.
    pub undecodable: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Playout {
    buffer: JitterBuffer,
    decoder: Decoder,
    samples: Samples,
    scratch: Vec<i16>,
    sample_rate: u32,
    channels: usize,
    pace: Pace,
    /// Samples made up while waiting, and the silent ones of them: whether they are concealment
    /// or a pause of the sender, the next packet says.
    waited: u64,
    waited_silent: u64,
    concealing: bool,
    /// Packets are decoded as soon as they are in order.
    unpaced: bool,
    /// What so many of the next pulls would give was given ahead.
    ahead: u32,
    stats: PlayoutStats,
}

/// When to stretch time.
#[derive(Debug)]
struct Pace {
    /// The least surplus of delay since the last jump, in microseconds.
    least: i64,
    pulls: u32,
    alike: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { least: i64::MAX, pulls: 0, alike: ALIKE }
    }
}

impl Playout {
    /// `sample_rate` one of [`crate::codec::SAMPLE_RATES`], one or two channels.
    pub fn new(sample_rate: u32, channels: u32) -> Result<Self, CodecError> {
        let decoder = Decoder::new(sample_rate, channels)?;
        let longest = (sample_rate * MAX_PACKET_MS / 1000) as usize;
        let channels = channels as usize;
        Ok(Self {
            buffer: JitterBuffer::default(),
            decoder,
            samples: Samples::new(sample_rate, channels, longest),
            scratch: vec![0; longest * channels],
            sample_rate,
            channels,
            pace: Pace::default(),
            waited: 0,
            waited_silent: 0,
            concealing: false,
            unpaced: false,
            ahead: 0,
            stats: PlayoutStats::default(),
        })
    }

    /// As [`Self::new`], for a listener that takes what there is by [`Self::pull_ahead`].
    pub fn unpaced(sample_rate: u32, channels: u32) -> Result<Self, CodecError> {
        let buffer = JitterBuffer::keeping_all();
        Ok(Self { unpaced: true, buffer, ..Self::new(sample_rate, channels)? })
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
    /// once for every 10 ms.
    pub fn pull(&mut self, now: Instant, out: &mut [i16]) -> Pulled {
        self.pace.pulls += 1;
        if let Some(ahead) = self.ahead.checked_sub(1) {
            self.ahead = ahead;
            return Pulled::Nothing;
        }
        self.keep_to_target(now);
        let wanted = out.len() / self.channels;
        while self.samples.len() < wanted {
            match self.buffer.next(now, self.queued()) {
                Step::Idle => return Pulled::Nothing,
                Step::Wait => self.wait(wanted - self.samples.len()),
                step => self.take(step, now),
            }
        }
        self.give(out);
        Pulled::Audio
    }

    /// Writes what the next pull would, before its time; that pull then gives nothing. So much can
    /// be had ahead: of a packet's 20 ms the second half with the first, and of an
    /// [unpaced](Self::unpaced) playout all that has come in order. Call it after [`Self::pull`],
    /// until it gives nothing.
    pub fn pull_ahead(&mut self, now: Instant, out: &mut [i16]) -> Pulled {
        let most = if self.unpaced { MOST_AHEAD } else { 1 };
        if self.ahead >= most {
            return Pulled::Nothing;
        }
        let wanted = out.len() / self.channels;
        while self.samples.len() < wanted {
            if !self.unpaced || !self.buffer.has_next() {
                return Pulled::Nothing;
            }
            let step = self.buffer.next(now, self.queued());
            self.take(step, now);
            // What is due now has been given: what is left is due from the next pull on.
            self.keep_to_target(now + PULL);
        }
        self.ahead += 1;
        self.give(out);
        Pulled::Audio
    }

    /// Pulls whose sound was given ahead: so many times 10 ms may pass before the next.
    pub fn pulls_ahead(&self) -> u32 {
        self.ahead
    }

    /// Says whether nothing has come for a while: the sender pauses, or the network stands still.
    pub fn is_dry(&self) -> bool {
        self.waited >= u64::from(self.sample_rate) / 1_000 * DRY_MS
    }

    fn give(&mut self, out: &mut [i16]) {
        self.samples.pull(out);
        self.stats.samples += (out.len() / self.channels) as u64;
    }

    /// Figures since the start.
    pub fn stats(&self) -> PlayoutStats {
        PlayoutStats {
            buffer: self.buffer.counters(),
            target: self.buffer.target(),
            drift_ppm: self.buffer.drift_ppm(),
            // What is decoded, and waits or was left out, was not given out.
            emitted_samples: self.stats.emitted_samples.min(self.stats.samples),
            ..self.stats
        }
    }

    fn take(&mut self, step: Step, now: Instant) {
        match step {
            Step::Idle | Step::Wait => {}
            Step::Play { packet, join } => self.play(&packet, join, now),
            Step::Recover { payload, duration } => {
                let len = self.frame_len(duration);
                match self.decoder.recover(&payload, &mut self.scratch[..len]) {
                    Ok(done) => {
                        self.scratch[done.min(len)..len].fill(0);
                        self.samples.push(&self.scratch[..len]);
                        self.stats.emitted_samples += (len / self.channels) as u64;
                    }
                    Err(_) => self.conceal(duration),
                }
            }
            Step::Conceal { duration } => self.conceal(duration),
            Step::Skip { duration } => {
                let len = self.frame_len(duration);
                // Only for what the decoder remembers.
                let _ = self.decoder.conceal(&mut self.scratch[..len]);
            }
        }
    }

    fn play(&mut self, packet: &Packet, join: Join, now: Instant) {
        let (waited, silent) =
            (std::mem::take(&mut self.waited), std::mem::take(&mut self.waited_silent));
        match join {
            Join::Next if waited > 0 => {
                self.stats.concealed_samples += waited;
                self.stats.silent_concealed_samples += silent;
                self.begin_concealment();
            }
            Join::Next | Join::Pause => {}
            // Cannot fail: the decoder exists.
            Join::Fresh => self.decoder.reset().unwrap_or_default(),
        }
        let queued = Duration::from_micros(rtp_us(self.queued()) as u64);
        let Ok(len) = self.decoder.decode(&packet.payload, &mut self.scratch) else {
            self.stats.undecodable += 1;
            self.conceal(packet.duration);
            return;
        };
        self.concealing = false;
        self.samples.push(&self.scratch[..len]);
        let frames = (len / self.channels) as u32;
        self.stats.emitted_samples += u64::from(frames);
        self.stats.delay_sum +=
            (now.saturating_duration_since(packet.arrival) + queued).saturating_mul(frames);
        self.stats.target_sum += self.buffer.target() * frames;
    }

    /// Makes up for a frame by periods of what was there. Opus' own concealment, which the decoder
    /// needs for its memory, keeps less of a voice's pitch: it adds noise from the first frame on.
    fn conceal(&mut self, duration: u32) {
        let len = self.frame_len(duration);
        let _ = self.decoder.conceal(&mut self.scratch[..len]);
        let frames = len / self.channels;
        let audible = self.samples.make_up(frames);
        self.stats.concealed_samples += frames as u64;
        self.stats.silent_concealed_samples += (frames - audible) as u64;
        self.begin_concealment();
    }

    fn begin_concealment(&mut self) {
        if !std::mem::replace(&mut self.concealing, true) {
            self.stats.concealment_events += 1;
        }
    }

    fn wait(&mut self, frames: usize) {
        let audible = self.samples.make_up(frames);
        self.waited += frames as u64;
        self.waited_silent += (frames - audible) as u64;
        self.buffer.waited(frames as u32 * (RTP_CLOCK / self.sample_rate));
    }

    /// Stretches time a little where it goes unnoticed, so that the delay is what it should be:
    /// the network changes, and no two clocks run alike.
    fn keep_to_target(&mut self, now: Instant) {
        let unplayed = self.queued() + self.ahead * PULL_RTP;
        let Some(surplus) = self.buffer.surplus(now, unplayed) else {
            self.pace = Pace::default();
            return;
        };
        // A pull that comes late sees too much, never too little.
        self.pace.least = self.pace.least.min(surplus);
        if self.pace.pulls < PULLS {
            return;
        }
        let (least, alike) = (self.pace.least, self.pace.alike);
        let calm = self.pace.pulls >= CALM_PULLS || least >= URGENT_US;
        let jumped = if least <= -TOO_LITTLE_US {
            self.decode_ahead(0, now);
            let jumped = self.samples.repeat(self.frames_of(OVERSHOOT_US - least), alike);
            self.stats.decelerations += u64::from(jumped.is_some());
            self.stats.inserted_samples += jumped.unwrap_or_default() as u64;
            jumped
        } else if least >= TOO_MUCH_US && calm {
            let most = self.frames_of(least);
            self.decode_ahead(most, now);
            let jumped = self.samples.leave_out(most, alike);
            self.stats.accelerations += u64::from(jumped.is_some());
            self.stats.removed_samples += jumped.unwrap_or_default() as u64;
            jumped
        } else {
            if self.pace.pulls >= CALM_PULLS {
                self.pace = Pace::default();
            }
            return;
        };
        if jumped.is_some() {
            self.pace = Pace::default();
        } else {
            let alike = (alike - ALIKE_STEP).max(LEAST_ALIKE);
            let pulls = self.pace.pulls.saturating_sub(RETRY_PULLS);
            self.pace = Pace { pulls, alike, ..Pace::default() };
        }
    }

    /// Decodes what is there early, so that `most` frames can be left out.
    fn decode_ahead(&mut self, most: usize, now: Instant) {
        while self.samples.len() < self.samples.needed_to_leave_out(most)
            && self.queued() < MOST_QUEUED
            && self.buffer.has_next()
        {
            let step = self.buffer.next(now, self.queued());
            self.take(step, now);
        }
    }

    /// RTP time of what is decoded and not played.
    fn queued(&self) -> u32 {
        self.samples.len() as u32 * (RTP_CLOCK / self.sample_rate)
    }

    fn frames_of(&self, micros: i64) -> usize {
        (micros.max(0) as u64 * u64::from(self.sample_rate) / 1_000_000) as usize
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
mod tests;
