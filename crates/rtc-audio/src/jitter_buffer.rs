//! Puts RTP packets of one stream back in order and says when each is to be played.
//!
//! A packet waits until `target` has passed since the fastest recent packets would have come
//! (RFC 3550 §6.4.1 measures jitter likewise). The target follows what the network does. What is
//! missing when its time comes is recovered from the next packet, else concealed.
//!
//! The buffer never stretches time by itself: a late packet is still played where concealment
//! filled in for it while nothing newer had come, which adds delay; [`Step::Play`] says how much
//! delay is in surplus so that the player can shed it where nobody hears.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::codec::{FRAME_RTP, RTP_CLOCK};

/// Packets held at most: 2.5 s of 20 ms frames. A power of two, to index by sequence number.
const CAPACITY: usize = 128;
/// Delay before anything is known of the network.
const INITIAL_TARGET: Duration = Duration::from_millis(60);
const MIN_TARGET: Duration = Duration::from_millis(40);
const MAX_TARGET: Duration = Duration::from_millis(400);
/// One frame, since a packet comes when its first sample is already 20 ms old.
const TARGET_MARGIN_US: i64 = 20_000;
/// Transit times remembered: 5 s of 20 ms frames.
const TRANSITS: usize = 256;
/// Frames concealed in a row when nothing comes: Opus fades to silence over about as much.
const MAX_CONCEALED: u32 = 5;
/// A hole of more packets than this (500 ms) is not filled but skipped.
const MAX_HOLE: u64 = 25;

/// One RTP packet of audio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Sequence number, extended beyond 16 bits.
    pub sequence: u64,
    /// RTP timestamp in 1/48000 s, extended beyond 32 bits.
    pub timestamp: u64,
    /// Length in 1/48000 s.
    pub duration: u32,
    /// When it came.
    pub arrival: Instant,
    /// The Opus packet.
    pub payload: Arc<[u8]>,
}

/// What the player must do to get its next samples.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing was ever to be played.
    Idle,
    /// Silence, for 10 ms: the sender pauses, or the buffer fills.
    Silence,
    /// Decode this packet. `surplus` is delay beyond the target that could be shed.
    Play {
        /// The packet whose time has come.
        packet: Packet,
        /// Delay beyond the target, steady for the last second.
        surplus: Duration,
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
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that came, duplicates included.
    pub received: u64,
    /// Packets that came twice.
    pub duplicates: u64,
    /// Packets that came after their time was filled in otherwise.
    pub late: u64,
    /// Frames recovered from the packet after them.
    pub recovered: u64,
    /// Frames concealed because they are lost.
    pub concealed: u64,
    /// Frames concealed because nothing came: the sender paused, or its packets are late.
    pub starved: u64,
    /// Packets thrown away because the buffer was full or jumped.
    pub discarded: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first packet.
    New,
    /// Waiting for the delay to build up.
    Filling {
        play_at: Instant,
    },
    Playing,
    /// Ran dry for longer than concealment helps.
    Starved,
}

/// See the [module](self).
#[derive(Debug)]
pub struct JitterBuffer {
    slots: Box<[Option<Packet>]>,
    held: usize,
    state: State,
    next_sequence: u64,
    /// RTP time at which the next packet is expected, when something was played.
    next_timestamp: Option<u64>,
    frame: u32,
    concealed_in_row: u32,
    target: Duration,
    transits: Transits,
    surplus: Surplus,
    counters: Counters,
}

impl Default for JitterBuffer {
    fn default() -> Self {
        Self {
            slots: (0..CAPACITY).map(|_| None).collect(),
            held: 0,
            state: State::New,
            next_sequence: 0,
            next_timestamp: None,
            frame: FRAME_RTP,
            concealed_in_row: 0,
            target: INITIAL_TARGET,
            transits: Transits::default(),
            surplus: Surplus::default(),
            counters: Counters::default(),
        }
    }
}

impl JitterBuffer {
    /// Takes a packet from the network, in any order.
    pub fn insert(&mut self, packet: Packet) {
        self.counters.received += 1;
        match self.state {
            State::New => self.start_filling(&packet),
            State::Filling { .. } => {
                let behind = self.next_sequence.saturating_sub(packet.sequence);
                if behind > 0 && self.next_timestamp.is_none() && behind < CAPACITY as u64 / 2 {
                    self.next_sequence = packet.sequence;
                }
            }
            State::Playing | State::Starved => {}
        }
        let ahead = packet.sequence.wrapping_sub(self.next_sequence) as i64;
        if ahead < 0 {
            if ahead > -(CAPACITY as i64) {
                self.counters.late += 1;
                return;
            }
            self.jump_to(&packet);
        } else if ahead >= CAPACITY as i64 {
            self.jump_to(&packet);
        }
        if self.state == State::Starved {
            // Whatever the pause was, the sender's clock may have moved against ours in it.
            self.transits.clear();
            self.start_filling(&packet);
        }
        if let Some(target) = self.transits.add(&packet) {
            self.target = target.clamp(MIN_TARGET, MAX_TARGET);
        }
        let slot = &mut self.slots[index(packet.sequence)];
        if slot.as_ref().is_some_and(|held| held.sequence == packet.sequence) {
            self.counters.duplicates += 1;
            return;
        }
        if slot.is_none() {
            self.held += 1;
        } else {
            self.counters.discarded += 1;
        }
        *slot = Some(packet);
    }

    /// Says what comes next. Call it whenever the player has less than it needs.
    pub fn next(&mut self, now: Instant) -> Step {
        match self.state {
            State::New => return Step::Idle,
            State::Starved => return Step::Silence,
            State::Filling { play_at } if now < play_at && self.held < CAPACITY / 2 => {
                return if self.next_timestamp.is_some() { Step::Silence } else { Step::Idle };
            }
            State::Filling { .. } => self.state = State::Playing,
            State::Playing => {}
        }
        if let Some(due) = self.slots[index(self.next_sequence)].as_ref() {
            return self.play_or_wait(now, due.timestamp, due.arrival);
        }
        if self.held > 0 { self.skip_lost() } else { self.run_dry() }
    }

    /// Tells the buffer that the player shed delay, so that it measures the surplus anew.
    pub fn shed(&mut self) {
        self.surplus = Surplus::default();
    }

    /// The delay that is aimed at now.
    pub fn target(&self) -> Duration {
        self.target
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

    fn start_filling(&mut self, packet: &Packet) {
        self.state = State::Filling { play_at: packet.arrival + self.target };
        if self.held == 0 {
            self.next_sequence = packet.sequence;
        }
        self.concealed_in_row = 0;
        self.surplus = Surplus::default();
    }

    /// The stream broke off and goes on elsewhere: what is held belongs to the past.
    fn jump_to(&mut self, packet: &Packet) {
        self.counters.discarded += self.held as u64;
        self.slots.iter_mut().for_each(|slot| *slot = None);
        self.held = 0;
        self.transits.clear();
        self.next_sequence = packet.sequence;
        self.start_filling(packet);
    }

    fn play_or_wait(&mut self, now: Instant, timestamp: u64, arrival: Instant) -> Step {
        // In sequence but later in time: the sender paused (DTX, RFC 7587 §3.1.3).
        let paused = self
            .next_timestamp
            .is_some_and(|expected| timestamp > expected + u64::from(self.frame / 2));
        if paused && now < arrival + self.target {
            return Step::Silence;
        }
        let Some(packet) = self.slots[index(self.next_sequence)].take() else {
            return Step::Silence;
        };
        self.held -= 1;
        self.next_sequence += 1;
        self.next_timestamp = Some(packet.timestamp + u64::from(packet.duration));
        self.frame = packet.duration;
        self.concealed_in_row = 0;
        let delay = self.transits.delay(&packet, now);
        let surplus = self.surplus.add(delay, self.target);
        Step::Play { packet, surplus }
    }

    fn skip_lost(&mut self) -> Step {
        let first = (1..CAPACITY as u64)
            .find(|ahead| self.slots[index(self.next_sequence + ahead)].is_some())
            .unwrap_or(1);
        if first > MAX_HOLE {
            self.next_sequence += first;
            return Step::Silence;
        }
        self.next_sequence += 1;
        self.next_timestamp = self.next_timestamp.map(|t| t + u64::from(self.frame));
        let duration = self.frame;
        if let (1, Some(next)) = (first, self.slots[index(self.next_sequence)].as_ref()) {
            self.counters.recovered += 1;
            return Step::Recover { payload: next.payload.clone(), duration };
        }
        self.counters.concealed += 1;
        Step::Conceal { duration }
    }

    fn run_dry(&mut self) -> Step {
        if self.concealed_in_row >= MAX_CONCEALED {
            self.state = State::Starved;
            return Step::Silence;
        }
        self.concealed_in_row += 1;
        self.counters.starved += 1;
        Step::Conceal { duration: self.frame }
    }
}

fn index(sequence: u64) -> usize {
    (sequence % CAPACITY as u64) as usize
}

/// How long packets took, against the fastest of the last seconds.
#[derive(Debug)]
struct Transits {
    /// Arrival less RTP time, in microseconds, both counted from the first packet.
    recent: [i64; TRANSITS],
    len: usize,
    at: usize,
    origin: Option<(Instant, u64)>,
    fastest: i64,
}

impl Default for Transits {
    fn default() -> Self {
        Self { recent: [0; TRANSITS], len: 0, at: 0, origin: None, fastest: 0 }
    }
}

impl Transits {
    fn clear(&mut self) {
        *self = Self::default();
    }

    fn transit(&self, timestamp: u64, at: Instant) -> Option<i64> {
        let (start, first) = self.origin?;
        let elapsed = at
            .checked_duration_since(start)
            .map(|d| d.as_micros() as i64)
            .or_else(|| start.checked_duration_since(at).map(|d| -(d.as_micros() as i64)))?;
        let ticks = i128::from(timestamp) - i128::from(first);
        let media = ticks.checked_mul(1_000_000)? / i128::from(RTP_CLOCK);
        Some(elapsed.saturating_sub(i64::try_from(media).ok()?))
    }

    /// Adds one and, every few packets, gives the delay that would have had nearly all in time.
    fn add(&mut self, packet: &Packet) -> Option<Duration> {
        if self.origin.is_none() {
            self.origin = Some((packet.arrival, packet.timestamp));
        }
        let transit = self.transit(packet.timestamp, packet.arrival)?;
        self.recent[self.at] = transit;
        self.at = (self.at + 1) % TRANSITS;
        self.len = (self.len + 1).min(TRANSITS);
        self.fastest = self.recent[..self.len].iter().copied().min().unwrap_or(transit);
        // Few samples say little about the tail: until then, only growth is believed.
        if self.len < 50 {
            let slowest = self.recent[..self.len].iter().copied().max().unwrap_or(transit);
            let seen = micros(slowest - self.fastest + TARGET_MARGIN_US);
            return (seen > INITIAL_TARGET).then_some(seen);
        }
        if !self.at.is_multiple_of(16) {
            return None;
        }
        let mut sorted = self.recent;
        let rank = (self.len * 98 / 100).min(self.len - 1);
        let (_, tail, _) = sorted[..self.len].select_nth_unstable(rank);
        Some(micros(*tail - self.fastest + TARGET_MARGIN_US))
    }

    /// How long after its fastest possible arrival a packet is played.
    fn delay(&self, packet: &Packet, now: Instant) -> Duration {
        self.transit(packet.timestamp, now)
            .map_or(Duration::ZERO, |transit| micros(transit.saturating_sub(self.fastest)))
    }
}

fn micros(value: i64) -> Duration {
    Duration::from_micros(value.max(0) as u64)
}

/// The least delay beyond the target over about a second: what would not have been needed.
#[derive(Debug, Default)]
struct Surplus {
    least: Option<Duration>,
    count: u32,
    steady: Duration,
}

impl Surplus {
    fn add(&mut self, delay: Duration, target: Duration) -> Duration {
        let over = delay.saturating_sub(target);
        self.least = Some(self.least.map_or(over, |least| least.min(over)));
        self.count += 1;
        if self.count >= 50 {
            self.steady = self.least.take().unwrap_or_default();
            self.count = 0;
        }
        self.steady.min(over)
    }
}

#[cfg(test)]
#[path = "jitter_buffer_tests.rs"]
mod tests;
