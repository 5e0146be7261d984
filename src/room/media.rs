//! The engine's audio ends as the session knows them: a subscribed track as a [`Microphone`], a
//! published source as a [`Voice`].

use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use libwebrtc::{
    audio_frame::AudioFrame,
    audio_source::{AudioSourceOptions, native::NativeAudioSource},
    audio_stream::native::NativeAudioStream,
    prelude::RtcAudioTrack,
};
use tracing::warn;

use crate::session::ports::{LEAD_MS, Microphone, Voice};

/// What the source may hold before it makes its writer wait, in ms. More than the playout ever
/// queues, so that the playout's own pace decides.
const SOURCE_QUEUE_MS: u32 = LEAD_MS + 60;

/// Less than the 300 ms of silence that the engine sends after a sound before it thins it out.
const KNOCK_EVERY: Duration = Duration::from_millis(250);
const KNOCKS: u32 = 12;

/// A remote audio track, decoded to mono s16 at 16 kHz as its packets come.
#[derive(Debug)]
pub struct TrackMicrophone(NativeAudioStream);

impl TrackMicrophone {
    pub fn new(track: RtcAudioTrack) -> Self {
        Self(NativeAudioStream::unpaced(track, 16_000, 1))
    }
}

#[async_trait]
impl Microphone for TrackMicrophone {
    async fn read(&mut self, into: &mut Vec<i16>) -> bool {
        match self.0.next().await {
            Some(frame) => {
                into.extend_from_slice(&frame.data);
                true
            }
            None => false,
        }
    }

    fn set_batching(&mut self, batching: bool) {
        self.0.set_batching(batching);
    }

    fn may_be_heard_in_place(&self) -> bool {
        true
    }
}

/// A local audio source: mono s16 at its own rate.
#[derive(Debug)]
pub struct SourceVoice(NativeAudioSource);

/// A source for the agent's voice at `rate` Hz (one that Opus takes), mono.
pub fn voice_source(rate: u32) -> NativeAudioSource {
    NativeAudioSource::new(AudioSourceOptions::default(), rate, 1, SOURCE_QUEUE_MS)
}

impl SourceVoice {
    pub fn new(source: NativeAudioSource) -> Self {
        Self(source)
    }
}

/// Sound that nobody can hear, now and then, for 3 s: a server shows a track only once packets of it
/// have come, and in silence the engine sends them seldom.
pub async fn knock(source: NativeAudioSource) {
    let frame: Vec<i16> =
        (0..source.sample_rate() / 100).map(|at| if at % 2 == 0 { 9 } else { -9 }).collect();
    let mut voice = SourceVoice::new(source);
    for _ in 0..KNOCKS {
        voice.write(&frame).await;
        voice.write(&frame).await;
        tokio::time::sleep(KNOCK_EVERY).await;
    }
}

#[async_trait]
impl Voice for SourceVoice {
    async fn write(&mut self, frame: &[i16]) {
        let frame = AudioFrame {
            data: frame.into(),
            sample_rate: self.0.sample_rate(),
            num_channels: 1,
            samples_per_channel: frame.len() as u32,
        };
        if let Err(error) = self.0.capture_frame(&frame).await {
            warn!(%error, "a frame of the agent's voice was refused");
        }
    }

    fn clear(&mut self) {
        self.0.clear_buffer();
    }
}
