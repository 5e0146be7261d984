//! OpenAI chat completions, and every server that imitates them, by base URL.

pub mod proto;

#[cfg(test)]
mod tests;

use secrecy::SecretString;

use self::proto::Parameters;
use super::streaming::{Streaming, Timing};
use crate::net::http::{Endpoint, EndpointError, KeyHeader};

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

/// A setting of a model that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelConfigError {
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("the base URL must begin with http or https")]
    Scheme,
    #[error("the model is empty")]
    Model,
    #[error("the temperature must lie in 0..2")]
    Temperature,
    #[error("no HTTP client: {0}")]
    Client(String),
}

/// What every model's settings are checked for.
pub(super) fn check(
    endpoint: &Endpoint,
    model: &str,
    temperature: Option<f32>,
) -> Result<(), ModelConfigError> {
    if !matches!(endpoint.base().scheme(), "http" | "https") {
        return Err(ModelConfigError::Scheme);
    }
    if model.trim().is_empty() {
        return Err(ModelConfigError::Model);
    }
    if temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
        return Err(ModelConfigError::Temperature);
    }
    Ok(())
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
