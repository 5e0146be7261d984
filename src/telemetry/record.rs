//! What sessions measure, into the metrics.

use metrics::{counter, histogram};

use super::metrics as names;
use crate::session::command::{Metric, Usage};

/// Counts one measured fact.
pub fn metric(metric: Metric) {
    let seconds = |ms: u64| ms as f64 / 1_000.0;
    match metric {
        Metric::EndpointingDelay { ms } => {
            histogram!(names::TURN_ENDPOINTING_SECONDS).record(seconds(ms));
        }
        Metric::Ttft { ms } => histogram!(names::LLM_FIRST_TOKEN_SECONDS).record(seconds(ms)),
        Metric::Ttfb { ms } => histogram!(names::TTS_FIRST_AUDIO_SECONDS).record(seconds(ms)),
        Metric::ResponseLatency { ms } => {
            histogram!(names::TURN_RESPONSE_SECONDS).record(seconds(ms));
        }
        Metric::Interruption => counter!(names::INTERRUPTIONS_TOTAL).increment(1),
        Metric::FalseInterruption => counter!(names::FALSE_INTERRUPTIONS_TOTAL).increment(1),
        Metric::Apology => counter!(names::APOLOGIES_TOTAL).increment(1),
    }
}

/// Counts what was used.
pub fn usage(usage: Usage) {
    match usage {
        Usage::Stt { audio_ms } => {
            // Whole seconds are what a counter holds; the rest would be lost each time.
            counter!(names::STT_AUDIO_SECONDS_TOTAL).increment(audio_ms.div_ceil(1_000));
        }
        Usage::Llm { input_tokens, cached_tokens, output_tokens } => {
            for (kind, tokens) in
                [("input", input_tokens), ("cached", cached_tokens), ("output", output_tokens)]
            {
                counter!(names::LLM_TOKENS_TOTAL, "kind" => kind).increment(tokens);
            }
        }
        Usage::Tts { characters } => counter!(names::TTS_CHARACTERS_TOTAL).increment(characters),
    }
}
