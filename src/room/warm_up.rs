//! A call of the process with itself, at its start.

use std::time::Duration;

use libwebrtc::prelude::PeerConnectionFactory;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::{
    audio::vad::{VadConfig, VoiceDetector},
    room::{
        loopback::{LoopbackError, OneWay},
        media::{SourceVoice, TrackMicrophone, voice_source},
    },
    session::ports::{Microphone, Voice},
};

const RATE: u32 = 24_000;
/// What is heard of it.
const LENGTH_MS: usize = 200;
/// It is given up after that; calls do without.
const PATIENCE: Duration = Duration::from_secs(10);

/// Has a short call with itself over loopback, so that the first caller does not wait for what only
/// a first call has to do: to start the engine's threads, to ready its cryptography (40 ms), to read
/// the code of the audio path from disk.
pub async fn warm_up() {
    match timeout(PATIENCE, call()).await {
        Ok(Ok(())) => debug!("the engine is warm"),
        Ok(Err(error)) => warn!(%error, "no call over loopback: the first call will start slowly"),
        Err(_) => warn!("a call over loopback takes long: the first call will start slowly"),
    }
}

async fn call() -> Result<(), LoopbackError> {
    let source = voice_source(RATE);
    let call =
        OneWay::connect(&PeerConnectionFactory::default(), "warm-up", source.clone()).await?;
    let mut microphone = TrackMicrophone::new(call.track.clone());
    let mut voice = SourceVoice::new(source);
    let speak = async move {
        let frame: Vec<i16> =
            (0..RATE / 100).map(|at| if at / 40 % 2 == 0 { 2_000 } else { -2_000 }).collect();
        loop {
            // Waits while the source has enough.
            voice.write(&frame).await;
        }
    };
    let hear = async move {
        let mut detector = VoiceDetector::new(VadConfig::default()).ok();
        let mut heard = Vec::new();
        while heard.len() < LENGTH_MS * 16 && microphone.read(&mut heard).await {}
        if let Some(detector) = &mut detector {
            detector.push(&heard, |_, _| ());
        }
    };
    tokio::select! {
        () = hear => {}
        () = speak => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_process_hears_itself() {
        timeout(PATIENCE, call()).await.unwrap().unwrap();
    }
}
