//! The wire of OpenAI's speech endpoint: a JSON request, a body of raw PCM.
//!
//! Source: platform.openai.com/docs/api-reference/audio/createSpeech. `pcm` is mono s16
//! little-endian at 24 kHz without a header. There is no alignment.

use serde_json::{Value, json};

/// Of the PCM, in Hz.
pub const SAMPLE_RATE: u32 = 24_000;
/// Longest input of one request, in characters.
pub const MAX_INPUT: usize = 4_096;

/// What of the settings goes into each request.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// Such as `gpt-4o-mini-tts` or `tts-1`.
    pub model: String,
    /// Such as `alloy`.
    pub voice: String,
    /// How to speak; the models before `gpt-4o-mini-tts` take none.
    pub instructions: Option<String>,
    /// 0.25..4
    pub speed: Option<f32>,
}

impl Parameters {
    pub fn body(&self, text: &str) -> Value {
        let text: String = text.chars().take(MAX_INPUT).collect();
        let mut body = json!({
            "model": self.model, "voice": self.voice, "input": text, "response_format": "pcm",
        });
        if let Some(instructions) = &self.instructions {
            body["instructions"] = instructions.as_str().into();
        }
        if let Some(speed) = self.speed {
            body["speed"] = crate::llm::openai::proto::rounded(speed);
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_asks_for_pcm() {
        let parameters = Parameters {
            model: "gpt-4o-mini-tts".into(),
            voice: "alloy".into(),
            instructions: Some("Calmly.".into()),
            speed: Some(1.1),
        };
        assert_eq!(
            parameters.body("Hello."),
            json!({
                "model": "gpt-4o-mini-tts", "voice": "alloy", "input": "Hello.",
                "response_format": "pcm", "instructions": "Calmly.", "speed": 1.1,
            })
        );
    }
}
