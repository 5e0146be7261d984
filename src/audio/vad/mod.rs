//! Voice activity detection on 16 kHz mono s16.

pub mod detector;
mod engine;
mod loudness;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use engine::{VadEngine, WebrtcMode};

use crate::{
    audio::vad::{
        detector::{Detector, Thresholds},
        engine::Engine,
        loudness::Loudness,
    },
    session::input::VadEvent,
};

/// The one sample rate that is taken, in Hz.
pub const SAMPLE_RATE: u32 = 16_000;

/// How speech is told from silence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VadConfig {
    pub engine: VadEngine,
    /// A frame at or above this probability (0..1) is speech. The WebRTC engine knows only 0 and 1.
    pub threshold: f32,
    /// Once in speech, only a frame below this probability is silence; at most `threshold`.
    pub exit_threshold: f32,
    /// Speech shorter than this, from its true start, is not told.
    pub min_speech: Duration,
    /// Silence shorter than this, from the true end of speech, does not end it. The session counts
    /// its own thresholds from the true end too, so this is best kept below them.
    pub min_silence: Duration,
}

impl Default for VadConfig {
    fn default() -> Self {
        Self {
            engine: VadEngine::default(),
            threshold: 0.7,
            exit_threshold: 0.6,
            min_speech: Duration::from_millis(100),
            min_silence: Duration::from_millis(180),
        }
    }
}

/// Why there is no detector: what is wrong with a [`VadConfig`], or with the machine.
#[derive(Debug, thiserror::Error)]
pub enum VadError {
    #[error("the VAD's threshold must lie between 0 and 1, not {0}")]
    Threshold(f32),
    #[error("the VAD's exit threshold must lie between 0 and its threshold, not {0}")]
    ExitThreshold(f32),
    #[error("the VAD's minimum of speech or silence must be at most 5 s, not {0:?}")]
    Duration(Duration),
    #[error("the VAD's thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

const MAX_MINIMUM: Duration = Duration::from_secs(5);

impl VadConfig {
    /// Everything that is wrong with it.
    pub fn faults(&self) -> Vec<VadError> {
        let mut faults = Vec::new();
        let threshold_holds = self.threshold > 0.0 && self.threshold <= 1.0;
        if !threshold_holds {
            faults.push(VadError::Threshold(self.threshold));
        }
        let exit = self.exit_threshold;
        if !(exit > 0.0 && exit <= self.threshold.clamp(0.0, 1.0)) && threshold_holds {
            faults.push(VadError::ExitThreshold(exit));
        }
        for minimum in [self.min_speech, self.min_silence] {
            if minimum > MAX_MINIMUM {
                faults.push(VadError::Duration(minimum));
            }
        }
        faults
    }
}

/// Finds the starts and ends of speech in one speaker's stream.
#[derive(Debug)]
pub struct VoiceDetector {
    engine: Engine,
    detector: Detector,
    loudness: Loudness,
    /// The beginning of a frame.
    frame: Vec<i16>,
    /// Samples of whole frames so far.
    samples: u64,
    probability: f32,
}

impl VoiceDetector {
    /// Fails on the first of the configuration's faults.
    pub fn new(config: VadConfig) -> Result<Self, VadError> {
        if let Some(fault) = config.faults().into_iter().next() {
            return Err(fault);
        }
        let engine = Engine::new(config.engine)?;
        let detector = Detector::new(Thresholds {
            enter: config.threshold,
            exit: config.exit_threshold,
            min_speech: config.min_speech,
            min_silence: config.min_silence,
            lag: config.engine.lag(),
        });
        let frame = Vec::with_capacity(engine.frame_len());
        let loudness = Loudness::default();
        Ok(Self { engine, detector, loudness, frame, samples: 0, probability: 0.0 })
    }

    /// Takes 16 kHz mono s16 of any length. Each event comes with the time in the stream, in ms, at
    /// which it is told: `Started { speech_ms }` at `at` means that speech began at
    /// `at - speech_ms`, and likewise `Ended` and silence.
    pub fn push(&mut self, mut samples: &[i16], mut on_event: impl FnMut(VadEvent, u64)) {
        let length = self.engine.frame_len();
        while !samples.is_empty() {
            let (now, later) = samples.split_at((length - self.frame.len()).min(samples.len()));
            self.frame.extend_from_slice(now);
            samples = later;
            if self.frame.len() == length {
                self.probability = self.engine.probability(&self.frame);
                let event = self.detector.push(self.probability, length as u32);
                let faint = self.loudness.push(&self.frame, self.detector.is_speech());
                self.frame.clear();
                self.samples += length as u64;
                let at = self.stream_ms();
                for event in event.into_iter().chain(faint.then_some(VadEvent::Faint)) {
                    on_event(within_stream(event, at), at);
                }
            }
        }
    }

    /// The stream has ended or is interrupted (the track is muted or gone): speech that is going on
    /// ends. The next samples begin a new stretch on the same clock.
    pub fn end(&mut self, mut on_event: impl FnMut(VadEvent, u64)) {
        self.samples += self.frame.len() as u64;
        self.frame.clear();
        self.engine.reset();
        self.probability = 0.0;
        if let Some(event) = self.detector.end() {
            let at = self.stream_ms();
            on_event(within_stream(event, at), at);
        }
    }

    /// Of the last whole frame, 0..1.
    pub fn probability(&self) -> f32 {
        self.probability
    }

    /// Whether speech is going on, as told by the events.
    pub fn is_speech(&self) -> bool {
        self.detector.is_speech()
    }

    /// Whether speech is going on and nothing says yet that it ends: the middle of speech, in which
    /// nothing is decided.
    pub fn is_mid_speech(&self) -> bool {
        self.detector.is_mid_speech()
    }

    /// Whether there is no speech and nothing says yet that it begins.
    pub fn is_quiet(&self) -> bool {
        self.detector.is_quiet()
    }

    /// Audio that has been judged, in ms.
    pub fn stream_ms(&self) -> u64 {
        self.samples * 1000 / u64::from(SAMPLE_RATE)
    }
}

/// Nothing began before the stream did, whatever the engine's lag says.
fn within_stream(event: VadEvent, at: u64) -> VadEvent {
    let at = u32::try_from(at).unwrap_or(u32::MAX);
    match event {
        VadEvent::Started { speech_ms } => VadEvent::Started { speech_ms: speech_ms.min(at) },
        VadEvent::Ended { silence_ms } => VadEvent::Ended { silence_ms: silence_ms.min(at) },
        VadEvent::Faint => event,
    }
}
