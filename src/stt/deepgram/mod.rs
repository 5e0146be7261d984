//! Deepgram live transcription, v1: one WebSocket a speaker, kept warm between turns.
//!
//! Audio is sent in messages of 50 ms as it comes, and is kept until a final covers it. When the
//! connection breaks, the next one is sent what is kept, so that no word is lost and none comes
//! twice; times go on as if nothing had happened. While no audio flows, `KeepAlive` holds the
//! connection open. What the server says is read by [`proto`].
//!
//! Failures: `Lost` with the wait before each retry, `Failed` when the key or the request is refused
//! (then nothing more is tried) or when all retries are spent (then a slow probe goes on, and
//! `Connected` tells that it is back).

pub mod proto;

mod driver;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;
use tokio::sync::mpsc;
use tracing::Instrument;
use url::Url;

use self::{driver::Driver, proto::Options};
use super::{Stt, SttEvent, SttStream};
use crate::{
    audio::queue::AudioReceiver,
    net::{backoff::Backoff, ws},
};

/// Controls wait here while the driver is busy.
const CONTROL_QUEUE: usize = 16;

/// How to reach Deepgram and what to ask of it.
#[derive(Debug, Clone)]
pub struct DeepgramConfig {
    pub api_key: SecretString,
    /// Carries the version: `https://api.deepgram.com/v1`.
    pub base_url: Url,
    pub options: Options,
    pub backoff: Backoff,
    pub limits: ws::Limits,
    /// After this long without audio `KeepAlive` is sent; the server waits 10 s.
    pub keep_alive: Duration,
    /// How long `Close` waits for the last finals.
    pub close_timeout: Duration,
    /// When all retries are spent: how often to look whether the provider is back.
    pub probe: Duration,
    /// Most audio kept for a new connection.
    pub keep_audio: Duration,
}

impl DeepgramConfig {
    pub fn new(api_key: SecretString, base_url: Url) -> Self {
        Self {
            api_key,
            base_url,
            options: Options::default(),
            backoff: Backoff::default(),
            limits: ws::Limits { max_message: 1 << 20, ..ws::Limits::default() },
            keep_alive: Duration::from_secs(4),
            close_timeout: Duration::from_secs(2),
            probe: Duration::from_secs(30),
            keep_audio: Duration::from_secs(30),
        }
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

    fn open(&self, audio: AudioReceiver, events: mpsc::Sender<SttEvent>) -> SttStream {
        let (control, commands) = mpsc::channel(CONTROL_QUEUE);
        let driver = Driver::new(self.0.clone(), audio, commands, events);
        let task = tokio::spawn(driver.run().in_current_span());
        SttStream { control, task }
    }
}
