//! What every model's settings are checked for.

use crate::net::http::{Endpoint, EndpointError};

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
