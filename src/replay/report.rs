//! What a session did, as data: for `replay --json`, `demo` and benches.

use serde::Serialize;

use crate::{
    session::{
        command::{Metric, Usage},
        ports::Shown,
    },
    telemetry::usage,
    transcript::{
        segment::{Segment, SpeakerKind},
        wire::UsageItem,
    },
};

/// One thing that happened; `at_ms` counts from the start of the session.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct At<T> {
    pub at_ms: u64,
    #[serde(flatten)]
    pub what: T,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    pub state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Said {
    pub id: String,
    pub speaker: SpeakerKind,
    pub text: String,
    pub start_ms: u64,
    pub duration_ms: u64,
    pub confidence: f32,
}

/// The latencies of one answered turn, in ms; what was not measured is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Turn {
    /// When the answer was first heard.
    pub at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpointing_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm_first_token_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tts_first_audio_ms: Option<u64>,
    /// From the end of the user's speech to the agent's first audio at the track.
    pub response_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    pub stt_audio_ms: u64,
    pub llm_input_tokens: u64,
    /// Of the input: read from the provider's cache.
    pub llm_cached_tokens: u64,
    pub llm_output_tokens: u64,
    pub tts_characters: u64,
    /// Of all that has a price; absent where nothing was attributed to a provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_model: Vec<UsageItem>,
}

/// What a session did.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The WAV file, or `demo`.
    pub source: String,
    /// `realtime` or `virtual`.
    pub mode: &'static str,
    pub duration_ms: u64,
    pub states: Vec<At<State>>,
    pub transcripts: Vec<At<Said>>,
    pub turns: Vec<Turn>,
    pub interruptions: u32,
    pub false_interruptions: u32,
    pub apologies: u32,
    pub usage: Totals,
    #[serde(skip)]
    pending: Turn,
}

impl Report {
    pub fn new(source: impl Into<String>, mode: &'static str) -> Self {
        Self { source: source.into(), mode, ..Self::default() }
    }

    /// Takes note of one thing shown.
    pub fn take(&mut self, at_ms: u64, shown: &Shown) {
        self.duration_ms = self.duration_ms.max(at_ms);
        match shown {
            Shown::State(state) => {
                self.states.push(At { at_ms, what: State { state: state.as_str() } });
            }
            Shown::Transcript(segment) if segment.is_final => {
                self.transcripts.push(At { at_ms, what: Said::from(segment) });
            }
            Shown::Transcript(_) | Shown::UserState(_) => {}
            Shown::Metric(metric) => self.measure(at_ms, *metric),
            Shown::Usage(usage) => match *usage {
                Usage::Stt { audio_ms, .. } => self.usage.stt_audio_ms += audio_ms,
                Usage::Llm { input_tokens, cached_tokens, output_tokens, .. } => {
                    self.usage.llm_input_tokens += input_tokens;
                    self.usage.llm_cached_tokens += cached_tokens;
                    self.usage.llm_output_tokens += output_tokens;
                }
                Usage::Tts { characters, .. } => self.usage.tts_characters += characters,
            },
        }
    }

    /// What has been used, by provider and model, and what it costs.
    pub fn price(&mut self, totals: &usage::Totals) {
        self.usage.cost_usd = Some(totals.cost_usd());
        self.usage.by_model = totals.rows().to_vec();
    }

    fn measure(&mut self, at_ms: u64, metric: Metric) {
        match metric {
            Metric::EndpointingDelay { ms } => self.pending.endpointing_ms = Some(ms),
            Metric::Ttft { ms } => self.pending.llm_first_token_ms = Some(ms),
            Metric::Ttfb { ms } => self.pending.tts_first_audio_ms = Some(ms),
            Metric::ResponseLatency { ms } => {
                let turn = Turn { at_ms, response_ms: ms, ..std::mem::take(&mut self.pending) };
                self.turns.push(turn);
            }
            Metric::Interruption => self.interruptions += 1,
            Metric::FalseInterruption => self.false_interruptions += 1,
            Metric::Apology => self.apologies += 1,
        }
    }

    /// The middle of the response latencies, in ms.
    pub fn response_p50(&self) -> Option<u64> {
        let mut responses: Vec<_> = self.turns.iter().map(|turn| turn.response_ms).collect();
        responses.sort_unstable();
        responses.get(responses.len() / 2).copied()
    }
}

impl From<&Segment> for Said {
    fn from(segment: &Segment) -> Self {
        Self {
            id: segment.id.clone(),
            speaker: segment.kind,
            text: segment.text.clone(),
            start_ms: segment.start_ms,
            duration_ms: segment.duration_ms,
            confidence: segment.confidence,
        }
    }
}
