//! The names of all metrics, in one table, and their rendering as Prometheus text.
//!
//! Whoever measures uses the macros of the crate `metrics` with the names given here; without
//! [`install`] they cost next to nothing and go nowhere.

use std::{sync::OnceLock, time::Duration};

use metrics::Unit;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// How often [`upkeep`] wants to be called.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

pub const WORKER_REGISTERED: &str = "antiphon_worker_registered";
pub const WORKER_LOAD: &str = "antiphon_worker_load";
pub const WORKER_CONNECTIONS_LOST_TOTAL: &str = "antiphon_worker_connections_lost_total";
pub const JOBS_ACTIVE: &str = "antiphon_jobs_active";
/// Label `status`: success, failed.
pub const JOBS_TOTAL: &str = "antiphon_jobs_total";
pub const JOB_SECONDS: &str = "antiphon_job_seconds";
pub const ROOM_JOIN_SECONDS: &str = "antiphon_room_join_seconds";
pub const TURN_RESPONSE_SECONDS: &str = "antiphon_turn_response_seconds";
pub const TURN_ENDPOINTING_SECONDS: &str = "antiphon_turn_endpointing_seconds";
pub const INTERRUPTIONS_TOTAL: &str = "antiphon_interruptions_total";
pub const FALSE_INTERRUPTIONS_TOTAL: &str = "antiphon_false_interruptions_total";
pub const APOLOGIES_TOTAL: &str = "antiphon_apologies_total";
/// Labels `provider` and `model`, as in all metrics of what was used.
pub const STT_AUDIO_SECONDS_TOTAL: &str = "antiphon_stt_audio_seconds_total";
pub const STT_FINALS_TOTAL: &str = "antiphon_stt_finals_total";
pub const STT_RECONNECTS_TOTAL: &str = "antiphon_stt_reconnects_total";
/// Label `outcome`: queued, understood, dropped.
pub const STT_LATE_TOTAL: &str = "antiphon_stt_late_total";
pub const STT_LATE_BYTES: &str = "antiphon_stt_late_bytes";
pub const LLM_FIRST_TOKEN_SECONDS: &str = "antiphon_llm_first_token_seconds";
/// And label `kind`: input, cached, output.
pub const LLM_TOKENS_TOTAL: &str = "antiphon_llm_tokens_total";
/// Label `size`: small, large.
pub const LLM_ROUTED_TOTAL: &str = "antiphon_llm_routed_total";
pub const TTS_FIRST_AUDIO_SECONDS: &str = "antiphon_tts_first_audio_seconds";
pub const TTS_CHARACTERS_TOTAL: &str = "antiphon_tts_characters_total";
pub const TTS_CACHED_TOTAL: &str = "antiphon_tts_cached_total";
/// Labels `provider` and `model`.
pub const COST_NANO_USD_TOTAL: &str = "antiphon_cost_nano_usd_total";
/// Labels `part` (stt, llm, tts) and `provider`.
pub const PROVIDER_ERRORS_TOTAL: &str = "antiphon_provider_errors_total";
pub const AUDIO_DROPPED_FRAMES_TOTAL: &str = "antiphon_audio_dropped_frames_total";
/// What the engine measures, all rooms together; `room::figures` asks it every few seconds.
pub const MEDIA_ROUND_TRIP_SECONDS: &str = "antiphon_media_round_trip_seconds";
pub const MEDIA_JITTER_SECONDS: &str = "antiphon_media_jitter_seconds";
pub const MEDIA_JITTER_BUFFER_SECONDS: &str = "antiphon_media_jitter_buffer_seconds";
pub const MEDIA_PACKETS_RECEIVED_TOTAL: &str = "antiphon_media_packets_received_total";
pub const MEDIA_PACKETS_LOST_TOTAL: &str = "antiphon_media_packets_lost_total";
pub const MEDIA_PACKETS_RECOVERED_TOTAL: &str = "antiphon_media_packets_recovered_total";
pub const MEDIA_PACKETS_SENT_TOTAL: &str = "antiphon_media_packets_sent_total";
pub const MEDIA_PACKETS_SENT_LOST_TOTAL: &str = "antiphon_media_packets_sent_lost_total";
pub const MEDIA_BYTES_RECEIVED_TOTAL: &str = "antiphon_media_bytes_received_total";
pub const MEDIA_BYTES_SENT_TOTAL: &str = "antiphon_media_bytes_sent_total";
pub const MEDIA_SAMPLES_TOTAL: &str = "antiphon_media_samples_total";
pub const MEDIA_SAMPLES_CONCEALED_TOTAL: &str = "antiphon_media_samples_concealed_total";
pub const OUTBOX_PENDING: &str = "antiphon_outbox_pending";

#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    /// Seconds, with [`LATENCY_BUCKETS`].
    Latency,
    /// Seconds, with [`LENGTH_BUCKETS`].
    Length,
    /// Seconds, with [`NETWORK_BUCKETS`].
    Network,
}

use Kind::{Counter, Gauge, Latency, Length, Network};

const TABLE: &[(Kind, &str, Unit, &str)] = &[
    (Gauge, WORKER_REGISTERED, Unit::Count, "1 while the worker is registered with its server"),
    (Gauge, WORKER_LOAD, Unit::Percent, "Load as reported to the server, 0 to 1"),
    (Counter, WORKER_CONNECTIONS_LOST_TOTAL, Unit::Count, "Connections to the server that failed"),
    (Gauge, JOBS_ACTIVE, Unit::Count, "Jobs that run now"),
    (Counter, JOBS_TOTAL, Unit::Count, "Jobs that have ended, by status"),
    (Length, JOB_SECONDS, Unit::Seconds, "How long jobs ran"),
    (Latency, ROOM_JOIN_SECONDS, Unit::Seconds, "From the assignment to the live voice track"),
    (
        Latency,
        TURN_RESPONSE_SECONDS,
        Unit::Seconds,
        "From the end of the user's speech to the agent's first audio",
    ),
    (
        Latency,
        TURN_ENDPOINTING_SECONDS,
        Unit::Seconds,
        "From the end of the user's speech to the commit of the turn",
    ),
    (Counter, INTERRUPTIONS_TOTAL, Unit::Count, "Times that a user cut the agent short"),
    (
        Counter,
        FALSE_INTERRUPTIONS_TOTAL,
        Unit::Count,
        "Times that the agent went on after an interruption without words",
    ),
    (Counter, APOLOGIES_TOTAL, Unit::Count, "Apologies that were spoken"),
    (Counter, STT_AUDIO_SECONDS_TOTAL, Unit::Seconds, "Audio sent to speech recognition"),
    (Counter, STT_FINALS_TOTAL, Unit::Count, "Final transcripts"),
    (Counter, STT_RECONNECTS_TOTAL, Unit::Count, "Lost connections to speech recognition"),
    (
        Counter,
        STT_LATE_TOTAL,
        Unit::Count,
        "Utterances that no recogniser could hear in time, by what became of them",
    ),
    (Gauge, STT_LATE_BYTES, Unit::Bytes, "Audio on disk that waits for recognition"),
    (
        Latency,
        LLM_FIRST_TOKEN_SECONDS,
        Unit::Seconds,
        "From the start of a generation to its first text",
    ),
    (Counter, LLM_TOKENS_TOTAL, Unit::Count, "Tokens, by kind"),
    (Counter, LLM_ROUTED_TOTAL, Unit::Count, "Turns, by the size of the model that they need"),
    (
        Latency,
        TTS_FIRST_AUDIO_SECONDS,
        Unit::Seconds,
        "From the first text sent to speech synthesis to its first audio",
    ),
    (Counter, TTS_CHARACTERS_TOTAL, Unit::Count, "Characters sent to speech synthesis"),
    (Counter, TTS_CACHED_TOTAL, Unit::Count, "Speeches that began with a phrase spoken before"),
    (
        Counter,
        COST_NANO_USD_TOTAL,
        Unit::Count,
        "What providers ask for what was used, in billionths of a US dollar",
    ),
    (Counter, PROVIDER_ERRORS_TOTAL, Unit::Count, "Failed requests to providers"),
    (Counter, AUDIO_DROPPED_FRAMES_TOTAL, Unit::Count, "Audio frames dropped from full queues"),
    (Network, MEDIA_ROUND_TRIP_SECONDS, Unit::Seconds, "Round trips of connectivity checks"),
    (Network, MEDIA_JITTER_SECONDS, Unit::Seconds, "Interarrival jitter of received audio"),
    (
        Network,
        MEDIA_JITTER_BUFFER_SECONDS,
        Unit::Seconds,
        "Mean delay of received audio in the jitter buffer",
    ),
    (Counter, MEDIA_PACKETS_RECEIVED_TOTAL, Unit::Count, "RTP packets received"),
    (Counter, MEDIA_PACKETS_LOST_TOTAL, Unit::Count, "RTP packets that did not come"),
    (Counter, MEDIA_PACKETS_RECOVERED_TOTAL, Unit::Count, "Lost packets recovered by FEC or RED"),
    (Counter, MEDIA_PACKETS_SENT_TOTAL, Unit::Count, "RTP packets sent"),
    (Counter, MEDIA_PACKETS_SENT_LOST_TOTAL, Unit::Count, "RTP packets that the server misses"),
    (Counter, MEDIA_BYTES_RECEIVED_TOTAL, Unit::Bytes, "RTP payload received"),
    (Counter, MEDIA_BYTES_SENT_TOTAL, Unit::Bytes, "RTP payload sent"),
    (Counter, MEDIA_SAMPLES_TOTAL, Unit::Count, "Samples of received audio that were played"),
    (
        Counter,
        MEDIA_SAMPLES_CONCEALED_TOTAL,
        Unit::Count,
        "Those of them that were made up for lost or late packets",
    ),
    (Gauge, OUTBOX_PENDING, Unit::Count, "Transcript segments that are not acknowledged yet"),
];

/// Seconds; close together where a conversation feels the difference.
const LATENCY_BUCKETS: &[f64] =
    &[0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0];
/// Seconds; from a local network to what makes a conversation hard.
const NETWORK_BUCKETS: &[f64] =
    &[0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0];
/// Seconds; calls.
const LENGTH_BUCKETS: &[f64] =
    &[1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0];

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
#[error("the metrics recorder cannot be installed: {0}")]
pub struct InstallError(#[from] BuildError);

/// Begins to record, for the whole process. Doing so again changes nothing.
pub fn install() -> Result<(), InstallError> {
    static INSTALLING: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let _one_at_a_time = INSTALLING.lock();
    if HANDLE.get().is_some() {
        return Ok(());
    }
    let mut builder = PrometheusBuilder::new();
    for (kind, name, _, _) in TABLE {
        let buckets = match kind {
            Latency => LATENCY_BUCKETS,
            Length => LENGTH_BUCKETS,
            Network => NETWORK_BUCKETS,
            Counter | Gauge => continue,
        };
        builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)?;
    }
    let handle = builder.install_recorder()?;
    for (kind, name, unit, description) in TABLE {
        match kind {
            Counter => metrics::describe_counter!(*name, *unit, *description),
            Gauge => metrics::describe_gauge!(*name, *unit, *description),
            Latency | Length | Network => metrics::describe_histogram!(*name, *unit, *description),
        }
    }
    // Only this function sets it, under the lock.
    let _ = HANDLE.set(handle);
    Ok(())
}

/// All metrics as Prometheus text; empty before [`install`].
pub fn render() -> String {
    HANDLE.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// Keeps histograms from growing between two renderings; the worker calls it every
/// [`UPKEEP_INTERVAL`].
pub fn upkeep() {
    if let Some(handle) = HANDLE.get() {
        handle.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_follow_one_style() {
        let names: BTreeSet<&str> = TABLE.iter().map(|(_, name, _, _)| *name).collect();
        assert_eq!(names.len(), TABLE.len());
        for (kind, name, _, description) in TABLE {
            assert!(name.starts_with("antiphon_"), "{name}");
            assert_eq!(name.ends_with("_total"), matches!(kind, Counter), "{name}");
            if matches!(kind, Latency | Length | Network) {
                assert!(name.ends_with("_seconds"), "{name}");
            }
            assert!(!description.is_empty() && !description.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn a_latency_is_rendered_as_a_histogram_with_its_buckets() {
        install().unwrap();
        install().unwrap();
        metrics::histogram!(TURN_RESPONSE_SECONDS).record(0.42);
        upkeep();
        let text = render();
        assert!(text.contains("# TYPE antiphon_turn_response_seconds histogram"), "{text}");
        assert!(text.contains("antiphon_turn_response_seconds_bucket{le=\"0.5\"} 1"), "{text}");
        assert!(text.contains("# HELP antiphon_turn_response_seconds From the end"), "{text}");
    }
}
