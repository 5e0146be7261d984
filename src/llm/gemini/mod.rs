//! Google's Gemini, by its own API.

pub mod proto;

#[cfg(test)]
mod tests;

use secrecy::SecretString;

use self::proto::Parameters;
use super::{
    config::{ModelConfigError, check},
    streaming::{Streaming, Timing},
};
use crate::net::http::{Endpoint, KeyHeader};

/// Which model to ask, and how.
#[derive(Debug, Clone)]
pub struct GeminiConfig {
    pub api_key: SecretString,
    /// With the version: `https://generativelanguage.googleapis.com/v1beta`.
    pub base_url: String,
    /// Such as `gemini-2.5-flash`.
    pub model: String,
    /// 0..2; `None` leaves it to the model.
    pub temperature: Option<f32>,
    pub max_tokens: u32,
    pub timing: Timing,
}

impl GeminiConfig {
    pub fn new(api_key: SecretString, model: impl Into<String>) -> Self {
        Self {
            api_key,
            base_url: "https://generativelanguage.googleapis.com/v1beta".into(),
            model: model.into(),
            temperature: Some(0.7),
            max_tokens: 1024,
            timing: Timing::default(),
        }
    }
}

/// The provider.
pub type Gemini = Streaming<Parameters>;

impl Gemini {
    pub fn new(config: GeminiConfig) -> Result<Self, ModelConfigError> {
        let header = KeyHeader::Named("x-goog-api-key");
        let endpoint = Endpoint::new(&config.base_url, config.api_key, header)?;
        check(&endpoint, &config.model, config.temperature)?;
        let parameters = Parameters {
            model: config.model,
            temperature: config.temperature,
            max_tokens: config.max_tokens,
        };
        Self::with(parameters, endpoint, config.timing).map_err(ModelConfigError::Client)
    }
}
