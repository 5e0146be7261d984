//! Deepgram live transcription: v1 (nova and its like) and Flux, one WebSocket a speaker, kept warm
//! between turns by the shared [`super::driver`].

pub mod flux;
pub mod proto;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use tokio::sync::mpsc;
use url::Url;

use self::proto::{Codec, Options};
use super::{
    Stt, SttEvent, SttStream,
    driver::{self, Holding},
};
use crate::{audio::queue::AudioReceiver, net::dial};

/// How to reach Deepgram and what to ask of it.
#[derive(Debug, Clone)]
pub struct DeepgramConfig {
    pub api_key: SecretString,
    /// Carries the version: `https://api.deepgram.com/v1`. Flux is found beside it, at `/v2`.
    pub base_url: Url,
    /// A model that begins with `flux` is Flux.
    pub options: Options,
    pub holding: Holding,
}

impl DeepgramConfig {
    pub fn new(api_key: SecretString, base_url: Url) -> Self {
        Self { api_key, base_url, options: Options::default(), holding: Holding::default() }
    }
}

/// The provider, shared by all rooms of an agent.
#[derive(Debug, Clone)]
pub struct Deepgram(Arc<DeepgramConfig>);

impl Deepgram {
    pub fn new(config: DeepgramConfig) -> Self {
        Self(Arc::new(config))
    }
}

impl Stt for Deepgram {
    fn provider(&self) -> &'static str {
        "deepgram"
    }

    fn model(&self) -> &str {
        &self.0.options.model
    }

    fn prewarm(&self) -> BoxFuture<'_, ()> {
        Box::pin(dial::prepare(&self.0.base_url))
    }

    fn open(&self, audio: AudioReceiver, events: mpsc::Sender<SttEvent>) -> SttStream {
        let DeepgramConfig { api_key, base_url, options, holding } = &*self.0;
        if options.model.starts_with("flux") {
            let codec = flux::Codec::new(base_url, options);
            return driver::open(codec, api_key.clone(), *holding, audio, events);
        }
        let codec = Codec::new(base_url, options);
        driver::open(codec, api_key.clone(), *holding, audio, events)
    }
}
