//! What the engine measures of a room's connections, into the metrics of the whole worker.

use std::{collections::HashMap, sync::Arc, time::Duration};

use libwebrtc::stats::{InboundRtpStats, RemoteInboundRtpStats, RtcStats};
use livekit::prelude::Room;
use metrics::{counter, histogram};
use tracing::debug;

use crate::telemetry::metrics as names;

/// How often a room's engine is asked. It keeps its figures a second at most.
const INTERVAL: Duration = Duration::from_secs(5);

/// Asks the room's engine until it is dropped.
pub async fn watch(room: Arc<Room>) {
    let (mut publisher, mut subscriber) = (Counted::default(), Counted::default());
    loop {
        tokio::time::sleep(INTERVAL).await;
        match room.get_stats().await {
            Ok(stats) => {
                publisher.take(&stats.publisher_stats);
                subscriber.take(&stats.subscriber_stats);
            }
            // A room that reconnects has no connection to ask.
            Err(error) => debug!(%error, "the engine gives no figures"),
        }
    }
}

/// Totals of one entry of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Totals {
    packets: u64,
    lost: u64,
    recovered: u64,
    samples: u64,
    concealed: u64,
    /// Samples that [`Self::delay`] is about.
    emitted: u64,
    /// Seconds that those samples were in the jitter buffer, together.
    delay: f64,
    bytes: u64,
}

impl Totals {
    fn inbound(entry: &InboundRtpStats) -> Self {
        Self {
            packets: entry.received.packets_received,
            lost: u64::try_from(entry.received.packets_lost).unwrap_or_default(),
            recovered: entry.inbound.fec_packets_received,
            samples: entry.inbound.total_samples_received,
            concealed: entry.inbound.concealed_samples,
            emitted: entry.inbound.jitter_buffer_emitted_count,
            delay: entry.inbound.jitter_buffer_delay,
            bytes: entry.inbound.bytes_received,
        }
    }

    fn remote(entry: &RemoteInboundRtpStats) -> Self {
        let lost = u64::try_from(entry.received.packets_lost).unwrap_or_default();
        Self { lost, ..Self::default() }
    }

    /// What came since. Totals that shrank are those of another connection, which began at zero.
    fn since(self, before: Self) -> Self {
        let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        let restarted = self.emitted < before.emitted;
        Self {
            packets: since(self.packets, before.packets),
            // A packet that was late is not lost any more: no new loss.
            lost: self.lost.saturating_sub(before.lost),
            recovered: since(self.recovered, before.recovered),
            samples: since(self.samples, before.samples),
            concealed: since(self.concealed, before.concealed),
            emitted: since(self.emitted, before.emitted),
            delay: if restarted { self.delay } else { (self.delay - before.delay).max(0.0) },
            bytes: since(self.bytes, before.bytes),
        }
    }
}

/// What was counted of one connection already, by the id of the entry: one a stream, of which a
/// connection has as many as sections.
#[derive(Debug, Default)]
struct Counted(HashMap<String, Totals>);

impl Counted {
    fn count(&mut self, id: &str, now: Totals) -> Totals {
        if let Some(before) = self.0.get_mut(id) {
            return now.since(std::mem::replace(before, now));
        }
        self.0.insert(id.to_owned(), now);
        now
    }

    fn take(&mut self, stats: &[RtcStats]) {
        for entry in stats {
            match entry {
                RtcStats::InboundRtp(entry) => {
                    let new = self.count(&entry.rtc.id, Totals::inbound(entry));
                    counter!(names::MEDIA_PACKETS_RECEIVED_TOTAL).increment(new.packets);
                    counter!(names::MEDIA_PACKETS_LOST_TOTAL).increment(new.lost);
                    counter!(names::MEDIA_PACKETS_RECOVERED_TOTAL).increment(new.recovered);
                    counter!(names::MEDIA_SAMPLES_TOTAL).increment(new.samples);
                    counter!(names::MEDIA_SAMPLES_CONCEALED_TOTAL).increment(new.concealed);
                    counter!(names::MEDIA_BYTES_RECEIVED_TOTAL).increment(new.bytes);
                    // A stream that pauses has no jitter and no delay to tell.
                    if new.packets > 0 {
                        histogram!(names::MEDIA_JITTER_SECONDS).record(entry.received.jitter);
                    }
                    if new.emitted > 0 {
                        histogram!(names::MEDIA_JITTER_BUFFER_SECONDS)
                            .record(new.delay / new.emitted as f64);
                    }
                }
                RtcStats::OutboundRtp(entry) => {
                    let sent = Totals {
                        packets: entry.sent.packets_sent,
                        bytes: entry.sent.bytes_sent,
                        ..Totals::default()
                    };
                    let new = self.count(&entry.rtc.id, sent);
                    counter!(names::MEDIA_PACKETS_SENT_TOTAL).increment(new.packets);
                    counter!(names::MEDIA_BYTES_SENT_TOTAL).increment(new.bytes);
                }
                RtcStats::RemoteInboundRtp(entry) => {
                    let new = self.count(&entry.rtc.id, Totals::remote(entry));
                    counter!(names::MEDIA_PACKETS_SENT_LOST_TOTAL).increment(new.lost);
                }
                RtcStats::CandidatePair(entry) => {
                    let round_trip = entry.candidate_pair.current_round_trip_time;
                    if round_trip > 0.0 {
                        histogram!(names::MEDIA_ROUND_TRIP_SECONDS).record(round_trip);
                    }
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbound(packets: u64, lost: i64, delay: f64, emitted: u64) -> Totals {
        let mut entry = InboundRtpStats::default();
        entry.received.packets_received = packets;
        entry.received.packets_lost = lost;
        entry.inbound.jitter_buffer_delay = delay;
        entry.inbound.jitter_buffer_emitted_count = emitted;
        Totals::inbound(&entry)
    }

    #[test]
    fn totals_are_counted_once() {
        let mut counted = Counted::default();
        assert_eq!(counted.count("a", inbound(10, 1, 1.0, 100)).packets, 10);
        let new = counted.count("a", inbound(15, 3, 1.5, 150));
        assert_eq!((new.packets, new.lost, new.emitted, new.delay), (5, 2, 50, 0.5));
        assert_eq!(counted.count("b", inbound(4, 0, 0.0, 0)).packets, 4);
    }

    #[test]
    fn a_connection_that_began_anew_is_counted_from_its_beginning() {
        let mut counted = Counted::default();
        counted.count("a", inbound(1_000, 9, 60.0, 50_000));
        let new = counted.count("a", inbound(30, 1, 0.5, 40));
        assert_eq!((new.packets, new.emitted, new.delay), (30, 40, 0.5));
    }

    #[test]
    fn packets_that_were_only_late_take_no_loss_back() {
        let mut counted = Counted::default();
        counted.count("a", inbound(10, 3, 0.0, 0));
        assert_eq!(counted.count("a", inbound(13, 0, 0.0, 0)).lost, 0);
        assert_eq!(counted.count("a", inbound(14, -1, 0.0, 0)).lost, 0);
    }
}
