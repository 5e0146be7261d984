//! Google Cloud Speech to Text, v2: gRPC streams over one connection a speaker, by the shared
//! [`driver`].

pub mod codec;
pub mod credentials;
pub mod proto;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use secrecy::SecretString;
use tokio::sync::mpsc;
use url::Url;

use self::{
    codec::{Codec, Options},
    credentials::{Credentials, CredentialsError},
};
use super::{
    Stt, SttEvent, SttStream,
    driver::{self, Holding},
};
use crate::audio::queue::AudioReceiver;

/// How to reach Google and what to ask of it.
#[derive(Debug, Clone)]
pub struct GoogleSpeechConfig {
    /// An API key, or the JSON of a service account.
    pub key: SecretString,
    /// Host, and where the recognizer is:
    /// `https://eu-speech.googleapis.com/projects/NAME/locations/eu`. Without a path it is the service
    /// account's project, `global`.
    pub base_url: Url,
    pub options: Options,
    pub holding: Holding,
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GoogleSpeechConfigError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(
        "an API key does not tell the project: name it in GOOGLE_SPEECH_BASE_URL, as in \
         https://speech.googleapis.com/projects/NAME/locations/global"
    )]
    Project,
    #[error("the path of the base URL is not /projects/NAME/locations/PLACE")]
    Path,
}

#[derive(Debug)]
struct Shared {
    credentials: Arc<Credentials>,
    recognizer: String,
    config: GoogleSpeechConfig,
}

/// The provider, shared by all rooms of an agent.
#[derive(Debug, Clone)]
pub struct GoogleSpeech(Arc<Shared>);

impl GoogleSpeech {
    pub fn new(config: GoogleSpeechConfig) -> Result<Self, GoogleSpeechConfigError> {
        let credentials = Credentials::new(&config.key)?;
        let path = config.base_url.path().trim_matches('/');
        let parts: Vec<&str> = path.split('/').collect();
        let recognizer = match (&parts[..], credentials.project()) {
            (["projects", project, "locations", place], _)
                if !project.is_empty() && !place.is_empty() =>
            {
                format!("{path}/recognizers/_")
            }
            // A version says nothing here.
            (["" | "v2"], Some(project)) => {
                format!("projects/{project}/locations/global/recognizers/_")
            }
            (["" | "v2"], None) => return Err(GoogleSpeechConfigError::Project),
            _ => return Err(GoogleSpeechConfigError::Path),
        };
        Ok(Self(Arc::new(Shared { credentials: Arc::new(credentials), recognizer, config })))
    }
}

impl Stt for GoogleSpeech {
    fn provider(&self) -> &'static str {
        "google"
    }

    fn model(&self) -> &str {
        &self.0.config.options.model
    }

    fn open(&self, audio: AudioReceiver, events: mpsc::Sender<SttEvent>) -> SttStream {
        let Shared { credentials, recognizer, config } = &*self.0;
        let mut base = config.base_url.clone();
        base.set_path("/");
        let codec = Codec::new(base, recognizer.clone(), credentials.clone(), &config.options);
        driver::open(codec, SecretString::default(), config.holding, audio, events)
    }
}
