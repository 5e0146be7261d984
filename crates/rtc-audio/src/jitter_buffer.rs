//! Puts RTP packets of one stream back in order and says when each is to be played.
//!
//! The *delay* of a sample is the time from when the fastest recent packets would have brought it
//! to when it is played. The buffer names the delay that is to be aimed at, the *target*; the
//! player keeps to it by stretching time (`samples.rs`), which takes up the drift of the
//! two clocks as well: it shows as a delay that changes.
//!
//! What is missing when its time comes is recovered from the packet after it, else concealed.
//! While nothing newer has come, the player makes sound up and the stream waits: a late packet is
//! played, later, with the decoder's state intact.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::codec::{FRAME_RTP, RTP_CLOCK, carries_copy};
use crate::transits::{RESYNC_US, Transits};

/// Above what a sequence number or timestamp, extended, becomes in 100 years, and far below where sums of
/// them overflow. What is extended below zero, after a step back before a stream's first packet, comes
/// out near the type's limit.
pub(crate) const MAX_EXTENDED: u64 = (1 << 48) - 1;
/// Packets held at most: 2.5 s of 20 ms frames. A power of two, to index by sequence number.
const CAPACITY: usize = 128;
/// Delay before anything is known of the network: more than a machine's own unsteadiness, less
/// than a network's. If it is too little, the player makes sound up while the delay grows.
const INITIAL_TARGET: Duration = Duration::from_millis(30);
const MIN_TARGET: Duration = Duration::from_millis(20);
const MAX_TARGET: Duration = Duration::from_millis(200);
/// A pull takes 10 ms of samples at once, so the last of them are needed so much earlier.
const PULL_US: i64 = 10_000;
/// After a pause sound goes on with the pull that is nearest to the target, before or after it.
const NEAREST_US: i64 = PULL_US / 2;
/// While packets are lost, the one after a lost one must be there in time: it carries the copy.
const REPAIR_US: i64 = 20_000;
/// How fast the target falls, in microseconds a packet: 20 ms a second.
const FALL_US: i64 = 400;
/// How many packets after a loss another is expected: 5 s of 20 ms frames.
const LOSSY_FOR: u32 = 250;
/// So long may a stream stay away before it counts as broken off, in RTP time: the player's
/// concealment is silent by then.
const STARVED: u32 = RTP_CLOCK / 5;
/// A hole of more packets than this (500 ms) is not filled but skipped.
const MAX_HOLE: u64 = 25;
/// What has piled up beyond the target while the network stood still is played fast, up to this.
const MAX_SURPLUS: Duration = Duration::from_millis(500);
/// Of a stream that stayed away, so many packets may be lost (a minute of 20 ms frames): more, and it
/// is another one.
const LONGEST_OUTAGE: i64 = 3_000;
/// Strays of the SSRC before the current one are dropped for so long.
const STRAYS: Duration = Duration::from_secs(2);
/// Opus packets of up to so many bytes say that the encoder falls silent (DTX, RFC 7587 §3.1.3).
const DTX_BYTES: usize = 2;

/// How a packet reached us.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Origin {
    /// Sent once, as usual.
    #[default]
    Sent,
    /// Sent again because we asked (NACK, RFC 4585 §6.2.1): says nothing of the network's jitter.
    Resent,
    /// Carried by a later packet (RED, RFC 2198): says nothing of the network's jitter.
    Redundant,
}

/// One RTP packet of audio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// SSRC of the stream. With another one, sequence and timestamp start afresh.
    pub ssrc: u32,
    /// Sequence number, extended beyond 16 bits.
    pub sequence: u64,
    /// RTP timestamp in 1/48000 s, extended beyond 32 bits.
    pub timestamp: u64,
    /// Length in 1/48000 s.
    pub duration: u32,
    /// When it came.
    pub arrival: Instant,
    /// How it came.
    pub origin: Origin,
    /// The Opus packet.
    pub payload: Arc<[u8]>,
}

/// What the player must do to get its next samples.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing was ever to be played.
    Idle,
    /// Nothing is there: make sound up, fading to silence, and tell it by
    /// [`JitterBuffer::waited`].
    Wait,
    /// Decode this packet.
    Play {
        /// The packet whose time has come.
        packet: Packet,
        /// How it goes on from what was played before.
        join: Join,
    },
    /// The frame before this payload is lost: decode the copy that it carries.
    Recover {
        /// Payload of the packet after the lost one.
        payload: Arc<[u8]>,
        /// Length of the lost frame in 1/48000 s.
        duration: u32,
    },
    /// A frame is lost for good: conceal it.
    Conceal {
        /// Length of the lost frame in 1/48000 s.
        duration: u32,
    },
    /// A frame is lost whose time was already made up for while waiting: the decoder must hear of
    /// it, nobody else.
    Skip {
        /// Length of the lost frame in 1/48000 s.
        duration: u32,
    },
}

/// How a packet goes on from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// It follows in time, even if it is late or some before it are lost.
    Next,
    /// The sender paused before it: nothing was lost in between.
    Pause,
    /// It belongs to another stream than before: the decoder starts afresh.
    Fresh,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that came, duplicates included; those that came inside others not.
    pub received: u64,
    /// Packets that came twice.
    pub duplicates: u64,
    /// Packets that came after their time was filled in otherwise.
    pub late: u64,
    /// Frames recovered by Opus' in-band FEC from the packet after them.
    pub recovered: u64,
    /// Frames that came inside a later packet (RED) and were played.
    pub redundant: u64,
    /// Frames that were sent again at our request and played.
    pub resent: u64,
    /// Frames concealed, or skipped, because they are lost.
    pub concealed: u64,
    /// Times the buffer ran dry in the middle of a stream.
    pub starved: u64,
    /// Packets thrown away because the buffer was full or jumped.
    pub discarded: u64,
    /// Streams taken up after the first: SSRC changes and restarts.
    pub restarts: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first packet.
    New,
    /// Waiting for the delay to build up.
    Filling,
    Playing,
    /// Nothing came for longer than sound can be made up.
    Starved,
}

/// See the [module](self).
#[derive(Debug)]
pub struct JitterBuffer {
    slots: Box<[Option<Packet>]>,
    held: usize,
    state: State,
    ssrc: u32,
    /// The SSRC before, and when it ended.
    previous: Option<(u32, Instant)>,
    next_sequence: u64,
    /// RTP time at which the next packet is expected, when something was played.
    next_timestamp: Option<u64>,
    /// What is played next belongs to another stream than what was played.
    fresh: bool,
    /// The last packet said that the encoder falls silent.
    silent: bool,
    frame: u32,
    /// RTP time made up since something real was played.
    waited: u32,
    target: i64,
    lossy: u32,
    /// What has piled up is all wanted.
    keeps_all: bool,
    transits: Transits,
    counters: Counters,
}

impl Default for JitterBuffer {
    fn default() -> Self {
        Self {
            slots: (0..CAPACITY).map(|_| None).collect(),
            held: 0,
            state: State::New,
            ssrc: 0,
            previous: None,
            next_sequence: 0,
            next_timestamp: None,
            fresh: false,
            silent: false,
            frame: FRAME_RTP,
            waited: 0,
            target: INITIAL_TARGET.as_micros() as i64,
            lossy: 0,
            keeps_all: false,
            transits: Transits::default(),
            counters: Counters::default(),
        }
    }
}

impl JitterBuffer {
    /// One for a player that would rather be late for a while than miss a word.
    pub fn keeping_all() -> Self {
        Self { keeps_all: true, ..Self::default() }
    }

    /// Takes a packet from the network, in any order.
    pub fn insert(&mut self, packet: Packet) {
        if packet.origin != Origin::Redundant {
            self.counters.received += 1;
        }
        if packet.sequence.max(packet.timestamp) > MAX_EXTENDED {
            self.counters.discarded += 1;
            return;
        }
        if !self.take_up(&packet) {
            return;
        }
        let ahead = packet.sequence.wrapping_sub(self.next_sequence) as i64;
        if ahead < 0 {
            if packet.origin != Origin::Redundant {
                self.counters.late += 1;
                self.measure(&packet);
            }
            return;
        }
        if self.state == State::Starved {
            self.state = State::Filling;
            if self.transits.relative(packet.timestamp, packet.arrival).abs() > RESYNC_US / 5 {
                // Whatever the pause was, the sender's clock moved against ours in it.
                self.transits.clear();
            }
            if self.held == 0 && ahead > MAX_HOLE as i64 {
                self.leap(&packet, ahead as u64);
            }
        }
        self.measure(&packet);
        let slot = &mut self.slots[index(packet.sequence)];
        match slot {
            Some(held) if held.sequence == packet.sequence => {
                if packet.origin == Origin::Redundant {
                    return;
                }
                if held.origin != Origin::Redundant {
                    self.counters.duplicates += 1;
                    return;
                }
            }
            Some(_) => self.counters.discarded += 1,
            None => self.held += 1,
        }
        *slot = Some(packet);
    }

    /// Says what comes next. Call it whenever the player has less than it needs; `queued` is the
    /// RTP time of what it has.
    pub fn next(&mut self, now: Instant, queued: u32) -> Step {
        match self.state {
            State::New => return Step::Idle,
            State::Starved => return Step::Wait,
            State::Filling if !self.is_filled(now) => {
                return if self.next_timestamp.is_some() { Step::Wait } else { Step::Idle };
            }
            State::Filling => self.start(now),
            State::Playing => self.trim(now),
        }
        if self.held == 0 {
            return Step::Wait;
        }
        let Some(due) = self.slots[index(self.next_sequence)].as_ref() else {
            return self.skip_lost(now, queued);
        };
        let paused = self.is_pause(due.timestamp);
        if paused && !self.is_due_after_pause(due.timestamp, now) {
            return Step::Wait;
        }
        self.play(paused)
    }

    /// Says whether the packet that follows is there, so that it can be decoded ahead of time.
    pub fn has_next(&self) -> bool {
        self.state == State::Playing
            && self.slots[index(self.next_sequence)]
                .as_ref()
                .is_some_and(|packet| !self.is_pause(packet.timestamp) && !self.fresh)
    }

    /// Tells the buffer that the player made up so much RTP time after a [`Step::Wait`].
    pub fn waited(&mut self, duration: u32) {
        if self.state == State::Playing && self.waited == 0 && !self.silent {
            self.counters.starved += 1;
        }
        self.waited = self.waited.saturating_add(duration);
        if self.state == State::Playing && self.held == 0 && self.waited >= STARVED {
            self.state = State::Starved;
        }
    }

    /// By how much the delay of what is played now is above the target, in microseconds. `queued`
    /// is the RTP time that the player holds. `None` while nothing is playing.
    pub fn surplus(&self, now: Instant, queued: u32) -> Option<i64> {
        if self.state != State::Playing || self.waited > 0 || self.fresh {
            return None;
        }
        Some(self.delay(now, queued)? - self.target)
    }

    /// The delay that is aimed at now.
    pub fn target(&self) -> Duration {
        Duration::from_micros(self.target.max(0) as u64)
    }

    /// How much faster than ours the sender's clock runs, in parts per million; 0 until that has
    /// been measured for half a minute.
    pub fn drift_ppm(&self) -> f64 {
        self.transits.drift_ppm()
    }

    /// Packets waiting.
    pub fn len(&self) -> usize {
        self.held
    }

    /// Says whether no packet waits.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    // --------------------------------------------------------------- inserting

    /// Finds the packet's place against what is played; `false` if it has none.
    fn take_up(&mut self, packet: &Packet) -> bool {
        if self.state == State::New {
            self.ssrc = packet.ssrc;
            self.next_sequence = packet.sequence;
            self.state = State::Filling;
            return true;
        }
        if packet.ssrc != self.ssrc {
            let stray = |(ssrc, at): (u32, Instant)| {
                ssrc == packet.ssrc && packet.arrival.saturating_duration_since(at) < STRAYS
            };
            if self.previous.is_some_and(stray) {
                self.counters.late += 1;
                return false;
            }
            self.previous = Some((self.ssrc, packet.arrival));
            self.restart(packet);
            return true;
        }
        let ahead = packet.sequence.wrapping_sub(self.next_sequence) as i64;
        let capacity = CAPACITY as i64;
        // Where nothing is held, an outage may be longer than what could be held.
        let is_empty = self.state == State::Starved && self.held == 0;
        let longest = if is_empty { LONGEST_OUTAGE } else { capacity };
        if ahead >= longest || ahead <= -capacity {
            if packet.origin == Origin::Redundant {
                return false;
            }
            if self.held > 0 && (capacity..2 * capacity).contains(&ahead) {
                self.make_room(packet.sequence - (CAPACITY as u64 - 1));
            } else {
                self.restart(packet);
            }
        } else if ahead < 0 && self.state == State::Filling && self.is_new_stream() {
            // The first packets came in disorder, and nothing of the stream was played.
            self.next_sequence = packet.sequence;
        }
        true
    }

    /// Goes on with this packet after a long hole: where its time tells that so many before it are
    /// lost, and not that the sender paused, they count as such.
    fn leap(&mut self, packet: &Packet, ahead: u64) {
        self.next_sequence = packet.sequence;
        let lost = ahead * u64::from(self.frame) + u64::from(self.frame / 2);
        let expected = self.next_timestamp.filter(|_| !self.fresh);
        if expected.is_some_and(|at| at < packet.timestamp && packet.timestamp - at <= lost) {
            self.counters.concealed += ahead;
            self.next_timestamp = Some(packet.timestamp);
        }
    }

    /// Drops the oldest: what was said last matters more.
    fn make_room(&mut self, first: u64) {
        while self.next_sequence < first {
            self.drop_next();
        }
    }

    /// Drops what would be played next, if that is there.
    fn drop_next(&mut self) {
        if let Some(packet) = self.slots[index(self.next_sequence)].take() {
            self.held -= 1;
            self.counters.discarded += 1;
            let after = packet.timestamp + u64::from(packet.duration);
            self.next_timestamp = self.next_timestamp.map(|_| after);
        }
        self.next_sequence += 1;
    }

    /// The stream broke off and goes on elsewhere: what is held belongs to the past.
    fn restart(&mut self, packet: &Packet) {
        self.counters.discarded += self.held as u64;
        self.counters.restarts += 1;
        self.slots.iter_mut().for_each(|slot| *slot = None);
        self.held = 0;
        self.ssrc = packet.ssrc;
        self.transits.clear();
        self.next_sequence = packet.sequence;
        self.fresh = self.next_timestamp.is_some();
        self.state = State::Filling;
    }

    /// Learns from a packet how unsteady the network is. The target rises at once and falls slowly.
    fn measure(&mut self, packet: &Packet) {
        if packet.origin != Origin::Sent {
            return;
        }
        self.lossy = self.lossy.saturating_sub(1);
        let Some(tail) = self.transits.add(packet.timestamp, packet.arrival) else { return };
        let repair = if self.lossy > 0 { REPAIR_US } else { 0 };
        let least = if self.transits.is_settled() { MIN_TARGET } else { INITIAL_TARGET };
        let wanted = (tail + repair + PULL_US)
            .clamp(least.as_micros() as i64, MAX_TARGET.as_micros() as i64);
        self.target = wanted.max(self.target - FALL_US);
    }

    // ----------------------------------------------------------------- playing

    fn delay(&self, now: Instant, queued: u32) -> Option<i64> {
        let playing = self.next_timestamp?.saturating_sub(u64::from(queued));
        Some(self.transits.relative(playing, now))
    }

    /// In sequence but later in time: the sender paused (DTX, RFC 7587 §3.1.3).
    fn is_pause(&self, timestamp: u64) -> bool {
        let expected = self.next_timestamp.filter(|_| !self.fresh);
        expected.is_some_and(|expected| timestamp > expected + u64::from(self.frame / 2))
    }

    fn first_ahead(&self) -> Option<u64> {
        let packet = |ahead: &u64| self.slots[index(self.next_sequence + ahead)].is_some();
        (0..CAPACITY as u64).find(packet)
    }

    fn is_filled(&self, now: Instant) -> bool {
        let Some(ahead) = self.first_ahead() else { return false };
        let Some(first) = &self.slots[index(self.next_sequence + ahead)] else { return false };
        let filled = if self.is_new_stream() {
            // What jitter is seen meanwhile does not put off the very first start.
            self.transits.relative(first.timestamp, now) >= INITIAL_TARGET.as_micros() as i64
        } else {
            self.is_due_after_pause(first.timestamp, now)
        };
        filled || self.held >= CAPACITY / 2
    }

    /// Says whether what comes after a pause is due with a pull at this time. What is dated into a
    /// distant future is due at once: the sender's clock jumped, and the packets after it wait.
    fn is_due_after_pause(&self, timestamp: u64, now: Instant) -> bool {
        let relative = self.transits.relative(timestamp, now);
        relative + NEAREST_US >= self.target || relative < -RESYNC_US
    }

    /// Says whether nothing of the current stream was played yet.
    fn is_new_stream(&self) -> bool {
        self.next_timestamp.is_none() || self.fresh
    }

    /// Begins to play what is held, without most of what piled up. What is lost before it was made
    /// up for while waiting.
    fn start(&mut self, now: Instant) {
        self.state = State::Playing;
        loop {
            self.trim(now);
            if self.held == 0 || self.slots[index(self.next_sequence)].is_some() {
                return;
            }
            self.next_sequence += 1;
            self.counters.concealed += 1;
            self.lossy = LOSSY_FOR;
            let after = self.slots[index(self.next_sequence)].as_ref().map(|p| p.timestamp);
            self.next_timestamp = after.or(self.next_timestamp);
        }
    }

    /// Drops what piled up beyond what can be played fast.
    fn trim(&mut self, now: Instant) {
        if self.keeps_all {
            return;
        }
        let limit = self.target + MAX_SURPLUS.as_micros() as i64;
        // A path that has become longer looks late for a while, but nothing piles up on it.
        while self.held > 1 && self.held as i64 * rtp_us(self.frame) > limit {
            let next = self.slots[index(self.next_sequence)].as_ref();
            if next.is_none_or(|next| self.transits.relative(next.timestamp, now) <= limit) {
                return;
            }
            self.drop_next();
        }
    }

    fn play(&mut self, paused: bool) -> Step {
        let Some(packet) = self.slots[index(self.next_sequence)].take() else { return Step::Wait };
        self.held -= 1;
        self.next_sequence += 1;
        self.next_timestamp = Some(packet.timestamp + u64::from(packet.duration));
        self.frame = packet.duration;
        self.waited = 0;
        self.silent = packet.payload.len() <= DTX_BYTES;
        match packet.origin {
            Origin::Sent => {}
            Origin::Resent => self.counters.resent += 1,
            Origin::Redundant => {
                self.counters.redundant += 1;
                self.lossy = LOSSY_FOR;
            }
        }
        let join = match (std::mem::take(&mut self.fresh), paused) {
            (true, _) => Join::Fresh,
            (false, true) => Join::Pause,
            (false, false) => Join::Next,
        };
        Step::Play { packet, join }
    }

    fn skip_lost(&mut self, now: Instant, queued: u32) -> Step {
        let first = self.first_ahead().unwrap_or(1);
        if first > MAX_HOLE {
            self.counters.concealed += first;
            self.next_sequence += first;
            let after = self.slots[index(self.next_sequence)].as_ref().map(|p| p.timestamp);
            self.next_timestamp = after.or(self.next_timestamp);
            return Step::Skip { duration: self.frame };
        }
        let duration = self.frame;
        let surplus = self.delay(now, queued).unwrap_or_default() - self.target;
        self.lossy = LOSSY_FOR;
        self.next_sequence += 1;
        self.next_timestamp = self.next_timestamp.map(|t| t + u64::from(duration));
        if self.waited >= duration && surplus >= rtp_us(duration) / 2 {
            self.waited -= duration;
            self.counters.concealed += 1;
            return Step::Skip { duration };
        }
        let next = self.slots[index(self.next_sequence)].as_ref();
        if let (1, Some(next)) = (first, next.filter(|next| carries_copy(&next.payload))) {
            self.counters.recovered += 1;
            return Step::Recover { payload: next.payload.clone(), duration };
        }
        self.counters.concealed += 1;
        Step::Conceal { duration }
    }
}

fn index(sequence: u64) -> usize {
    (sequence % CAPACITY as u64) as usize
}

/// RTP time in microseconds.
pub(crate) fn rtp_us(duration: u32) -> i64 {
    i64::from(duration) * 1_000_000 / i64::from(RTP_CLOCK)
}

#[cfg(test)]
mod tests;
