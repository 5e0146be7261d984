//! OpenAI's realtime transcription: one WebSocket a speaker, kept warm between turns by the shared
//! [`driver`]. Only speech is sent, and each utterance is closed by us.

pub mod proto;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use secrecy::SecretString;
use tokio::sync::mpsc;
use url::Url;

use self::proto::Codec;
use super::proto::Options;
use crate::{
    audio::queue::AudioReceiver,
    stt::{
        Stt, SttEvent, SttStream,
        driver::{self, Holding},
    },
};

/// How to reach OpenAI and what to ask of it.
#[derive(Debug, Clone)]
pub struct RealtimeConfig {
    pub api_key: SecretString,
    /// Carries the version: `https://api.openai.com/v1`.
    pub base_url: Url,
    pub options: Options,
    pub holding: Holding,
}

/// The provider, shared by all rooms of an agent.
#[derive(Debug, Clone)]
pub struct Realtime(Arc<RealtimeConfig>);

impl Realtime {
    pub fn new(config: RealtimeConfig) -> Self {
        Self(Arc::new(config))
    }
}

impl Stt for Realtime {
    fn provider(&self) -> &'static str {
        "openai-realtime"
    }

    fn model(&self) -> &str {
        &self.0.options.model
    }

    /// The models made for files tell nothing before the end of an utterance.
    fn gives_interims(&self) -> bool {
        proto::streams(&self.0.options.model)
    }

    fn open(&self, audio: AudioReceiver, events: mpsc::Sender<SttEvent>) -> SttStream {
        let RealtimeConfig { api_key, base_url, options, holding } = &*self.0;
        let codec = Codec::new(base_url, options);
        driver::open(codec, api_key.clone(), *holding, audio, events)
    }
}
