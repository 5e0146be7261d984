//! AssemblyAI's universal streaming, v3: one WebSocket a speaker, kept warm between turns by the
//! shared [`super::driver`].

pub mod proto;

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

/// How to reach AssemblyAI and what to ask of it.
#[derive(Debug, Clone)]
pub struct AssemblyAiConfig {
    pub api_key: SecretString,
    /// Carries the version: `https://streaming.assemblyai.com/v3`.
    pub base_url: Url,
    pub options: Options,
    pub holding: Holding,
}

/// The provider, shared by all rooms of an agent.
#[derive(Debug, Clone)]
pub struct AssemblyAi(Arc<AssemblyAiConfig>);

impl AssemblyAi {
    pub fn new(config: AssemblyAiConfig) -> Self {
        Self(Arc::new(config))
    }
}

impl Stt for AssemblyAi {
    fn provider(&self) -> &'static str {
        "assemblyai"
    }

    fn model(&self) -> &str {
        &self.0.options.model
    }

    fn prewarm(&self) -> BoxFuture<'_, ()> {
        Box::pin(dial::prepare(&self.0.base_url))
    }

    fn open(&self, audio: AudioReceiver, events: mpsc::Sender<SttEvent>) -> SttStream {
        let AssemblyAiConfig { api_key, base_url, options, holding } = &*self.0;
        let codec = Codec::new(base_url, options);
        driver::open(codec, api_key.clone(), *holding, audio, events)
    }
}
