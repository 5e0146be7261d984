//! What sessions measure, into the metrics.

use metrics::{counter, histogram};

use super::{metrics as names, usage::Used};
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

/// Counts what was used, and what it costs.
pub fn usage(used: Used<'_>) {
    let (provider, model) = (used.provider.to_owned(), used.model.to_owned());
    if let Some(cost) = used.cost {
        // Billionths, because a counter holds whole numbers and a use may cost less than a millionth.
        counter!(
            names::COST_NANO_USD_TOTAL, "provider" => provider.clone(), "model" => model.clone()
        )
        .increment(cost);
    }
    let labels = [("provider", provider), ("model", model)];
    match used.usage {
        Usage::Stt { audio_ms, .. } => {
            // Whole seconds are what a counter holds; the rest would be lost each time.
            counter!(names::STT_AUDIO_SECONDS_TOTAL, &labels).increment(audio_ms.div_ceil(1_000));
        }
        Usage::Llm { input_tokens, cached_tokens, output_tokens, .. } => {
            for (kind, tokens) in
                [("input", input_tokens), ("cached", cached_tokens), ("output", output_tokens)]
            {
                let [(_, provider), (_, model)] = labels.clone();
                counter!(
                    names::LLM_TOKENS_TOTAL, "provider" => provider, "model" => model, "kind" => kind
                )
                .increment(tokens);
            }
        }
        Usage::Tts { characters, .. } => {
            counter!(names::TTS_CHARACTERS_TOTAL, &labels).increment(characters);
        }
    }
}
