//! Anthropic's Claude, by its own Messages API.

pub mod proto;

#[cfg(test)]
mod tests;

use secrecy::SecretString;

use self::proto::{Parameters, VERSION};
use super::{
    config::{ModelConfigError, check},
    streaming::{Streaming, Timing},
};
use crate::net::http::{Endpoint, KeyHeader};

/// Which model to ask, and how.
#[derive(Debug, Clone)]
pub struct AnthropicConfig {
    pub api_key: SecretString,
    /// With the version: `https://api.anthropic.com/v1`.
    pub base_url: String,
    pub model: String,
    /// 0..1; `None` leaves it to the model.
    pub temperature: Option<f32>,
    pub max_tokens: u32,
    pub timing: Timing,
}

impl AnthropicConfig {
    pub fn new(api_key: SecretString, model: impl Into<String>) -> Self {
        Self {
            api_key,
            base_url: "https://api.anthropic.com/v1".into(),
            model: model.into(),
            temperature: Some(0.7),
            max_tokens: 1024,
            timing: Timing::default(),
        }
    }
}

/// The provider.
pub type Anthropic = Streaming<Parameters>;

impl Anthropic {
    pub fn new(config: AnthropicConfig) -> Result<Self, ModelConfigError> {
        let header = KeyHeader::Named("x-api-key");
        let endpoint = Endpoint::new(&config.base_url, config.api_key, header)?;
        let endpoint = endpoint.with_header("anthropic-version", VERSION);
        check(&endpoint, &config.model, config.temperature)?;
        let parameters = Parameters {
            model: config.model,
            temperature: config.temperature,
            max_tokens: config.max_tokens,
        };
        Self::with(parameters, endpoint, config.timing).map_err(ModelConfigError::Client)
    }
}
