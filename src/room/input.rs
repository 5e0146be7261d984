//! One speaker's way in: microphone → voice activity and the STT queue, 10 ms at a time.

use tokio::{sync::mpsc, task::JoinHandle};
use tracing::debug;

use crate::{
    audio::{
        queue::{AudioReceiver, audio_queue},
        vad::{VadConfig, VadError, VoiceDetector},
    },
    session::{
        input::{SpeakerId, VadEvent},
        ports::Microphone,
    },
};

/// What STT may lag behind before the oldest audio goes: 30 s at 16 kHz.
const STT_QUEUE: usize = 30 * 16_000;

/// What a hearing task tells the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The first sample of the stream is here.
    First,
    Vad(VadEvent),
}

/// A running [`hear`] task and the audio it passes on.
#[derive(Debug)]
pub struct Hearing {
    /// All audio of the microphone, mono s16 at 16 kHz; it ends when the task does.
    pub audio: AudioReceiver,
    pub task: JoinHandle<()>,
}

/// Starts to listen to one microphone. Samples go to the STT queue first, then to the detector:
/// nothing here waits for a reader.
pub fn hear(
    speaker: SpeakerId,
    mut microphone: Box<dyn Microphone>,
    vad: VadConfig,
    events: mpsc::Sender<(SpeakerId, Heard)>,
) -> Result<Hearing, VadError> {
    let mut detector = VoiceDetector::new(vad)?;
    let (sender, audio) = audio_queue(STT_QUEUE);
    let task = tokio::spawn(async move {
        let mut samples = Vec::with_capacity(1_600);
        let mut first = true;
        while microphone.read(&mut samples).await {
            if std::mem::take(&mut first) {
                let _ = events.try_send((speaker, Heard::First));
            }
            sender.push(&samples);
            detector.push(&samples, |event, _stream_ms| {
                if events.try_send((speaker, Heard::Vad(event))).is_err() {
                    debug!("a voice activity event was dropped");
                }
            });
            samples.clear();
        }
    });
    Ok(Hearing { audio, task })
}
