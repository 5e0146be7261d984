//! OpenAI chat completions, and every server that imitates them, by base URL.

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
pub struct OpenAiConfig {
    /// Empty: none is sent.
    pub api_key: SecretString,
    /// With the version: `https://api.openai.com/v1`.
    pub base_url: String,
    pub model: String,
    /// 0..2; `None` leaves it to the model (some take no other than their own).
    pub temperature: Option<f32>,
    pub max_tokens: Option<u32>,
    pub timing: Timing,
}

impl OpenAiConfig {
    pub fn new(api_key: SecretString, model: impl Into<String>) -> Self {
        Self {
            api_key,
            base_url: "https://api.openai.com/v1".into(),
            model: model.into(),
            temperature: Some(0.7),
            max_tokens: Some(1024),
            timing: Timing::default(),
        }
    }
}

/// The provider.
pub type OpenAi = Streaming<Parameters>;

impl OpenAi {
    pub fn new(config: OpenAiConfig) -> Result<Self, ModelConfigError> {
        let endpoint = Endpoint::new(&config.base_url, config.api_key, KeyHeader::Bearer)?;
        check(&endpoint, &config.model, config.temperature)?;
        let parameters = Parameters {
            model: config.model,
            temperature: config.temperature,
            max_tokens: config.max_tokens,
            new_token_limit: endpoint.base().host_str() == Some("api.openai.com"),
        };
        Self::with(parameters, endpoint, config.timing).map_err(ModelConfigError::Client)
    }
}
