//! Samples of one audio source to Opus packets, one every 20 ms.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::{CodecError, Encoder, FRAME_MS, FRAME_RTP, audio_level};
use crate::opus_format::OpusFormat;

/// Time from one tick to the next.
pub const TICK: Duration = Duration::from_millis(FRAME_MS as u64);

/// Silent packets sent after the last sound, so that no receiver takes the end for a loss.
const TRAILING_SILENCE: u32 = 15;
/// Then one packet in this many ticks (400 ms), as Opus' own DTX does (RFC 7587 §3.1.3). A server
/// shows a track only once packets of it have come.
const IDLE_EVERY: u32 = 20;
/// A writer that has written nothing for longer than so many ticks is at its end, or has none to give:
/// nothing of its is waited for.
const WRITES_EVERY: u32 = 2;
/// What ends in the middle of a sound fades out this long, and what begins there fades in.
const FADE_MS: u32 = 10;
/// Samples up to this are silence: 72 dB below full scale. Opus' own DTX, which leaves out all that
/// changes little, is not used: it takes a lasting tone for noise and drops it.
const FAINT: u16 = 8;

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
    framer: Framer,
    sample_rate: u32,
    channels: u32,
}

impl SendQueue {
    /// `sample_rate` one of [`crate::codec::SAMPLE_RATES`], one or two channels.
    pub fn new(sample_rate: u32, channels: u32) -> Result<Self, CodecError> {
        let encoder = Encoder::new(sample_rate, channels)?;
        Ok(Self { encoder, framer: Framer::new(sample_rate, channels), sample_rate, channels })
    }

    /// Appends interleaved samples.
    pub fn push(&mut self, samples: &[i16]) {
        self.framer.push(samples);
    }

    /// Drops what waits but for 10 ms at most in which the sound fades; gives the interleaved
    /// sample count dropped.
    pub fn clear(&mut self) -> usize {
        self.framer.clear()
    }

    /// Interleaved samples waiting.
    pub fn queued(&self) -> usize {
        self.framer.queue.len()
    }

    /// Interleaved samples of one frame.
    pub fn frame_len(&self) -> usize {
        self.framer.frame.len()
    }

    /// Samples per second and channel count.
    pub fn format(&self) -> (u32, u32) {
        (self.sample_rate, self.channels)
    }

    /// Replaces sound by silence (a muted track) while `silent`.
    pub fn set_silent(&mut self, silent: bool) {
        self.framer.silent = silent;
    }

    /// See [`Encoder::set_bitrate`].
    pub fn set_bitrate(&mut self, bits_per_second: u64) -> Result<(), CodecError> {
        self.encoder.set_bitrate(bits_per_second)
    }

    /// See [`Encoder::set_format`]. Silence thins out if the receiver allows it, and until this is
    /// called.
    pub fn set_receiver(&mut self, format: OpusFormat) -> Result<(), CodecError> {
        self.framer.sparse = format.dtx;
        self.encoder.set_format(format)
    }

    /// Ticks from now to the next packet while only silence goes out, and seldom: the pacer may
    /// rest so long, unless samples come. 0 while there is no rest.
    pub fn rest(&self) -> u32 {
        self.framer.rest()
    }

    /// Says whether the last tick sent no sound.
    pub fn is_quiet(&self) -> bool {
        self.framer.idle_ticks > 0
    }

    /// Lets RTP time go on by so many ticks in which nothing was sent: a pacer's rest, or a pause
    /// of a source without pacing.
    pub fn skip(&mut self, ticks: u32) {
        self.framer.skip(ticks);
    }

    /// Encodes the next frame if it is whole, without silence in between: for sources without
    /// pacing.
    pub fn pop(&mut self) -> Result<Option<EncodedFrame>, CodecError> {
        if self.framer.queue.len() < self.framer.frame.len() {
            return Ok(None);
        }
        let framed = self.framer.take();
        self.encode(framed)
    }

    /// Call every [`TICK`]: gives the packet to send now, if any.
    pub fn tick(&mut self) -> Result<Option<EncodedFrame>, CodecError> {
        let framed = self.framer.tick();
        self.encode(framed)
    }

    fn encode(&mut self, framed: Option<Framed>) -> Result<Option<EncodedFrame>, CodecError> {
        let Some(Framed { timestamp, marker, samples }) = framed else { return Ok(None) };
        let payload = Arc::from(self.encoder.encode(&self.framer.frame)?);
        let level = audio_level(&self.framer.frame);
        Ok(Some(EncodedFrame { payload, timestamp, marker, level, samples }))
    }
}

/// What is known of the frame before it is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Framed {
    timestamp: u32,
    marker: bool,
    samples: usize,
}

/// Cuts samples into frames and decides which of them go out.
#[derive(Debug)]
struct Framer {
    queue: VecDeque<i16>,
    /// The frame last cut.
    frame: Vec<i16>,
    channels: usize,
    /// Interleaved samples of a fade.
    fade: usize,
    timestamp: u32,
    /// Ticks since the last sound.
    idle_ticks: u32,
    /// The last frame held sound.
    sounding: bool,
    /// The rest of a sound was waited for once already.
    held_back: bool,
    /// Ticks so waited for, to be left out of the next silence.
    owed: u32,
    /// Ticks since samples came.
    since_push: u32,
    /// What is queued is all of it: nothing to wait for.
    ended: bool,
    /// The last samples were followed by silence of our own making.
    broke_off: bool,
    silent: bool,
    was_silent: bool,
    sparse: bool,
    /// Something was left out since the last packet with sound.
    pause: bool,
}

impl Framer {
    fn new(sample_rate: u32, channels: u32) -> Self {
        let per_ms = sample_rate / 1000 * channels;
        let frame = vec![0; (per_ms * FRAME_MS) as usize];
        Self {
            queue: VecDeque::with_capacity(frame.len() * 4),
            frame,
            channels: channels as usize,
            fade: (per_ms * FADE_MS) as usize,
            timestamp: 0,
            idle_ticks: 0,
            sounding: false,
            held_back: false,
            owed: 0,
            since_push: 0,
            ended: false,
            broke_off: false,
            silent: false,
            was_silent: false,
            sparse: true,
            pause: false,
        }
    }

    fn push(&mut self, samples: &[i16]) {
        self.queue.extend(samples);
        self.since_push = 0;
        // What was cleared goes out with the next frame.
        self.ended &= self.queue.len() < self.frame.len();
    }

    fn clear(&mut self) -> usize {
        let before = self.queue.len();
        let kept = if self.sounding { before.min(self.fade) } else { 0 };
        self.queue.truncate(kept);
        ramp(self.queue.make_contiguous(), self.channels, Ramp::Down);
        self.ended = kept > 0;
        before - kept
    }

    fn rest(&self) -> u32 {
        let idle = self.queue.is_empty()
            && (self.sparse || self.silent)
            && self.idle_ticks > TRAILING_SILENCE;
        if idle { IDLE_EVERY - self.idle_ticks % IDLE_EVERY } else { 0 }
    }

    fn skip(&mut self, ticks: u32) {
        self.timestamp = self.timestamp.wrapping_add(FRAME_RTP.wrapping_mul(ticks));
        self.idle_ticks = self.idle_ticks.saturating_add(ticks);
        self.pause |= ticks > 0;
    }

    fn tick(&mut self) -> Option<Framed> {
        let whole = self.queue.len() >= self.frame.len();
        let more = self.sounding || !self.queue.is_empty();
        self.since_push = self.since_push.saturating_add(1);
        let writes = self.since_push <= WRITES_EVERY;
        if !whole && more && writes && !self.ended && !self.held_back {
            // The rest may be on its way: one tick late is better than a hole in the sound.
            self.held_back = true;
            self.owed += 1;
            return None;
        }
        self.take()
    }

    /// Cuts the next frame, silence where there are no samples; gives it unless it is left out.
    fn take(&mut self) -> Option<Framed> {
        let samples = self.fill();
        // What was cleared is over: there is nothing more to wait for.
        self.held_back = self.ended && self.queue.is_empty();
        self.ended &= !self.held_back;
        self.sounding = self.frame.iter().any(|sample| sample.unsigned_abs() > FAINT);
        if !self.sounding {
            // RTP time stays with the clock, or each answer would seem later than the one before.
            let owed = FRAME_RTP.wrapping_mul(std::mem::take(&mut self.owed));
            self.timestamp = self.timestamp.wrapping_add(owed);
        }
        let timestamp = self.timestamp;
        self.timestamp = timestamp.wrapping_add(FRAME_RTP);
        if self.sounding {
            self.idle_ticks = 0;
            let marker = std::mem::take(&mut self.pause);
            return Some(Framed { timestamp, marker, samples });
        }
        self.idle_ticks = self.idle_ticks.saturating_add(1);
        let thin = (self.sparse || self.silent) && self.idle_ticks > TRAILING_SILENCE;
        if thin && !self.idle_ticks.is_multiple_of(IDLE_EVERY) {
            self.pause = true;
            return None;
        }
        Some(Framed { timestamp, marker: false, samples })
    }

    fn fill(&mut self) -> usize {
        let available = self.queue.len().min(self.frame.len());
        for (to, from) in self.frame.iter_mut().zip(self.queue.drain(..available)) {
            *to = from;
        }
        let (head, rest) = self.frame.split_at_mut(available);
        rest.fill(0);
        let fade = self.fade.min(available);
        if available > 0 && std::mem::take(&mut self.broke_off) {
            ramp(&mut head[..fade], self.channels, Ramp::Up);
        }
        if available > 0 && !rest.is_empty() && !self.ended {
            ramp(&mut head[available - fade..], self.channels, Ramp::Down);
        }
        self.broke_off |= !rest.is_empty() && (available > 0 || self.sounding);
        match (self.was_silent, self.silent) {
            (false, true) if self.sounding => {
                let (head, tail) = self.frame.split_at_mut(self.fade);
                ramp(head, self.channels, Ramp::Down);
                tail.fill(0);
            }
            (_, true) => self.frame.fill(0),
            (true, false) => {
                let (head, _) = self.frame.split_at_mut(self.fade);
                ramp(head, self.channels, Ramp::Up);
            }
            (false, false) => {}
        }
        self.was_silent = self.silent;
        available
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ramp {
    Up,
    Down,
}

/// Fades all of the interleaved samples in or out.
fn ramp(samples: &mut [i16], channels: usize, direction: Ramp) {
    let count = (samples.len() / channels).max(1) as i32;
    for (at, sample) in samples.iter_mut().enumerate() {
        let step = (at / channels) as i32;
        let gain = if direction == Ramp::Up { step } else { count - 1 - step };
        *sample = (i32::from(*sample) * gain / count) as i16;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::pacer::Pacer;

    const FRAME: usize = 480;

    fn queue() -> SendQueue {
        SendQueue::new(24_000, 1).unwrap()
    }

    /// Ticks; gives the samples of the frame that was cut, whether or not it was sent.
    fn heard(queue: &mut SendQueue) -> &[i16] {
        queue.tick().unwrap();
        &queue.framer.frame
    }

    #[test]
    fn a_frame_a_tick_in_steady_time() {
        let mut queue = queue();
        queue.push(&[1_000; FRAME * 3]);
        for expected in [0, 960, 1_920] {
            let frame = queue.tick().unwrap().unwrap();
            assert_eq!((frame.timestamp, frame.samples), (expected, FRAME));
        }
        assert_eq!(queue.queued(), 0);
    }

    #[test]
    fn a_partial_frame_waits_one_tick_and_no_more() {
        let mut queue = queue();
        queue.push(&[1_000; 240]);
        assert_eq!(queue.tick().unwrap(), None);
        queue.push(&[1_000; 10]);
        let frame = queue.tick().unwrap().unwrap();
        assert_eq!((frame.samples, frame.timestamp), (250, 0));
    }

    #[test]
    fn samples_that_come_just_after_the_tick_leave_no_hole() {
        let mut queue = queue();
        queue.push(&[1_000; FRAME]);
        assert_eq!(queue.tick().unwrap().unwrap().timestamp, 0);
        assert_eq!(queue.tick().unwrap(), None, "the rest may be on its way");
        queue.push(&[1_000; FRAME]);
        let frame = queue.tick().unwrap().unwrap();
        assert_eq!((frame.timestamp, frame.samples), (960, FRAME));
    }

    #[test]
    fn nothing_is_waited_for_at_the_end_of_what_was_written_well_ahead() {
        let mut queue = queue();
        queue.push(&[1_000; FRAME * 5 + 240]);
        let sent: Vec<_> = (0..9).map(|_| queue.tick().unwrap().map(|f| f.samples)).collect();
        let full = Some(FRAME);
        assert_eq!(sent[..6], [full, full, full, full, full, Some(240)], "no hole before its end");
        assert_eq!(sent[6..], [Some(0); 3]);
    }

    #[test]
    fn a_tick_that_was_waited_is_left_out_of_the_next_silence() {
        let mut queue = queue();
        for round in 0..10 {
            queue.push(&[1_000; 240]);
            assert_eq!(queue.tick().unwrap(), None, "the rest may come");
            let partial = queue.tick().unwrap().unwrap();
            assert_eq!(partial.timestamp, round * 3 * FRAME_RTP);
            let silent = queue.tick().unwrap().unwrap();
            assert_eq!(silent.timestamp, (round * 3 + 2) * FRAME_RTP, "with the clock again");
        }
    }

    #[test]
    fn silence_thins_out_and_time_goes_on() {
        let mut queue = queue();
        let sent: Vec<_> = (0..100).filter_map(|_| queue.tick().unwrap()).collect();
        assert!((15..=22).contains(&sent.len()), "{}", sent.len());
        assert_eq!(queue.rest(), 20);
        queue.push(&[1_000; FRAME]);
        let frame = queue.tick().unwrap().unwrap();
        assert_eq!(frame.timestamp, 100 * FRAME_RTP);
        assert!(frame.marker, "the first packet after a pause says so");
    }

    #[test]
    fn a_rest_leads_to_the_tick_that_sends() {
        let mut queue = queue();
        while queue.rest() == 0 {
            queue.tick().unwrap();
        }
        let (rest, timestamp) = (queue.rest(), queue.framer.timestamp);
        queue.skip(rest - 1);
        let frame = queue.tick().unwrap().unwrap();
        assert_eq!(frame.timestamp, timestamp + (rest - 1) * FRAME_RTP);
    }

    #[test]
    fn silence_is_sent_whole_to_a_receiver_without_dtx() {
        let mut queue = queue();
        queue.set_receiver(OpusFormat::default()).unwrap();
        assert_eq!((0..100).filter_map(|_| queue.tick().unwrap()).count(), 100);
        assert_eq!(queue.rest(), 0);
        queue.set_silent(true);
        queue.push(&[1_000; FRAME].repeat(100));
        let sent = (0..100).filter_map(|_| queue.tick().unwrap()).count();
        assert!(sent <= 6, "{sent} packets of a muted track");
    }

    #[test]
    fn faint_noise_thins_out_and_a_lasting_tone_does_not() {
        let mut queue = queue();
        queue.set_receiver(OpusFormat { dtx: true, ..OpusFormat::default() }).unwrap();
        let mut sent = |samples: [i16; 2]| {
            let packets = (0..200).filter_map(|_| {
                queue.push(&samples.repeat(FRAME / 2));
                queue.tick().unwrap()
            });
            packets.count()
        };
        assert!(sent([8, -7]) < 40);
        assert_eq!(sent([60, -60]), 200);
        assert_eq!(queue.framer.timestamp, 400 * FRAME_RTP, "time goes on");
    }

    #[test]
    fn what_is_cleared_fades_within_ten_milliseconds() {
        let mut queue = queue();
        queue.push(&[8_000; FRAME * 4]);
        queue.tick().unwrap();
        assert_eq!(queue.clear(), FRAME * 3 - 240);
        let last = heard(&mut queue).to_vec();
        assert!(last.windows(2).all(|pair| pair[0] >= pair[1]), "no click");
        assert!(last[0] > 7_000 && last[239] == 0 && last[240..].iter().all(|s| *s == 0));
        assert!((3_900..4_100).contains(&last[120]), "once: {}", last[120]);
        for _ in 0..5 {
            assert!(heard(&mut queue).iter().all(|sample| *sample == 0));
        }
    }

    #[test]
    fn what_was_not_heard_yet_is_cleared_whole() {
        let mut queue = queue();
        queue.push(&[8_000; FRAME * 4]);
        assert_eq!(queue.clear(), FRAME * 4);
        assert_eq!(queue.queued(), 0);
    }

    #[test]
    fn sound_goes_on_after_a_clear_without_a_gap() {
        let mut queue = queue();
        queue.push(&[8_000; FRAME * 4]);
        queue.tick().unwrap();
        queue.clear();
        queue.push(&[500; FRAME]);
        assert_eq!(heard(&mut queue)[240..], [500; 240]);
    }

    #[test]
    fn what_comes_just_after_a_clear_is_waited_for_like_any_sound() {
        let mut queue = queue();
        queue.push(&[8_000; FRAME * 4]);
        queue.tick().unwrap();
        queue.clear();
        queue.push(&[500; FRAME * 2]);
        for _ in 0..2 {
            assert_eq!(queue.tick().unwrap().unwrap().samples, FRAME);
        }
        queue.push(&[500; 10]);
        assert_eq!(queue.tick().unwrap(), None, "the rest may be on its way");
    }

    #[test]
    fn sound_that_runs_dry_fades_and_fades_in_when_it_goes_on() {
        let mut queue = queue();
        queue.push(&[8_000; FRAME + 300]);
        queue.tick().unwrap();
        assert_eq!(queue.tick().unwrap(), None, "the rest may be on its way");
        let last = heard(&mut queue);
        assert_eq!(last[..60], [8_000; 60]);
        assert!(last.is_sorted_by(|a, b| a >= b) && last[299] == 0 && last[60] > 7_900);
        assert!(heard(&mut queue).iter().all(|sample| *sample == 0));
        queue.push(&[8_000; FRAME * 2]);
        let again = heard(&mut queue);
        assert!(again[0] == 0 && again.is_sorted());
        assert_eq!(again[240..], [8_000; 240]);
        assert_eq!(heard(&mut queue)[..], [8_000; FRAME]);
    }

    #[test]
    fn sound_that_runs_dry_at_the_end_of_a_frame_fades_in_when_it_goes_on() {
        let mut queue = queue();
        queue.push(&[8_000; FRAME]);
        queue.tick().unwrap();
        assert_eq!(queue.tick().unwrap(), None, "the rest may be on its way");
        assert!(heard(&mut queue).iter().all(|sample| *sample == 0));
        queue.push(&[8_000; FRAME]);
        let again = heard(&mut queue);
        assert!(again[0] == 0 && again.is_sorted() && again[240..] == [8_000; 240]);
    }

    #[test]
    fn a_muted_source_sends_silence() {
        let mut queue = queue();
        queue.set_silent(true);
        queue.push(&[i16::MAX; FRAME]);
        assert_eq!(queue.tick().unwrap().unwrap().level, -127);
    }

    #[test]
    fn muting_and_unmuting_fade() {
        let mut queue = queue();
        queue.push(&[8_000; FRAME * 5]);
        queue.tick().unwrap();
        queue.set_silent(true);
        let muted = heard(&mut queue);
        assert!(muted[0] > 7_000 && muted[239..].iter().all(|s| *s == 0));
        assert!(heard(&mut queue).iter().all(|s| *s == 0));
        queue.set_silent(false);
        let loud = heard(&mut queue);
        assert!(loud[0] == 0 && loud.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(loud[240..], [8_000; 240]);
    }

    #[test]
    fn the_pacer_can_rest_only_when_nothing_is_queued() {
        let mut queue = queue();
        for _ in 0..100 {
            queue.push(&[0; FRAME]);
            queue.tick().unwrap();
        }
        assert!(queue.rest() > 0, "digital silence is silence");
        queue.push(&[0; 10]);
        assert_eq!(queue.rest(), 0);
    }

    /// An hour of an application whose 10 ms last as long as told, with 100 ms of queue, against a
    /// pacer woken 0 to 9 ms late; gives the most samples that waited and the samples sent.
    fn an_hour_with(ten_ms: Duration) -> (usize, usize) {
        #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
        let start = Instant::now();
        // One sample a millisecond is enough to tell holes by.
        let mut framer = Framer::new(1_000, 1);
        let mut pacer = Pacer::new(start + Duration::from_millis(25));
        let mut capture = start;
        let (mut pushed, mut sent, mut most) = (0_usize, 0_usize, 0_usize);
        let sample = |at: usize| (at % 30_000) as i16 + 1;
        let mut last = 0;
        for tick in 0..180_000_u32 {
            let late = u64::from(tick.wrapping_mul(2_654_435_761) >> 16) % 10;
            let now = pacer.deadline() + Duration::from_millis(late);
            while capture <= now && framer.queue.len() + 10 <= 100 {
                framer.push(&(pushed..pushed + 10).map(sample).collect::<Vec<_>>());
                pushed += 10;
                capture += ten_ms;
            }
            // A capture that found no room goes on once there is some.
            capture = capture.max(now);
            most = most.max(framer.queue.len());
            if let Some(framed) = framer.tick() {
                assert_eq!(framed.samples, framer.frame.len(), "a hole at {tick}");
                assert_eq!(framed.timestamp, sent as u32 * 48);
                for heard in &framer.frame {
                    assert_eq!(*heard, sample(sent), "at {tick}");
                    sent += 1;
                }
                last = tick;
            }
            assert!(tick - last <= 1, "two ticks without a packet at {tick}");
            assert_eq!(pacer.ticked(now, framer.idle_ticks > 0), 0);
        }
        (most, sent)
    }

    #[test]
    fn a_slow_application_leaves_no_hole_in_an_hour() {
        let (most, sent) = an_hour_with(Duration::from_micros(10_001));
        assert!(most <= 60, "{most} ms waited");
        let behind = 3_600_000 - sent as i64;
        assert!((200..=500).contains(&behind), "{behind} ms behind our clock");
    }

    #[test]
    fn a_fast_application_waits_and_leaves_no_hole_in_an_hour() {
        let (most, sent) = an_hour_with(Duration::from_micros(9_999));
        assert!(most <= 100, "{most} ms waited");
        assert!((3_599_900..=3_600_000).contains(&sent), "{sent} ms");
    }
}
