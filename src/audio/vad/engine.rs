//! What gives a frame its speech probability.

use std::{
    io,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use webrtc_vad::{SampleRate, Vad, VadMode};

use crate::audio::{level::is_silent, vad::detector::Lag};

/// Which detector judges the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VadEngine {
    /// earshot's small neural network, compiled in: 16 ms frames.
    #[default]
    Earshot,
    /// WebRTC's Gaussian mixture model: 10 ms frames, a probability of 0 or 1. Less sure in noise,
    /// and for all its cheap arithmetic no cheaper: it needs a thread of its own.
    Webrtc { mode: WebrtcMode },
}

/// How readily WebRTC's detector takes a frame for silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WebrtcMode {
    Quality,
    LowBitrate,
    Aggressive,
    #[default]
    VeryAggressive,
}

impl VadEngine {
    /// Whether it judges on the thread that asks, and waits for no other.
    pub fn judges_in_place(self) -> bool {
        self == Self::Earshot
    }

    /// How late this engine shows that speech has begun or ended, measured on the fixtures.
    pub(super) fn lag(self) -> Lag {
        match self {
            // A 48 ms window over three frames of context, then the network's own memory.
            Self::Earshot => Lag { start_ms: 48, end_ms: 60 },
            // WebRTC holds on to speech for 14 or 9 frames.
            Self::Webrtc { mode: WebrtcMode::Quality | WebrtcMode::LowBitrate } => {
                Lag { start_ms: 0, end_ms: 150 }
            }
            Self::Webrtc { mode: WebrtcMode::Aggressive | WebrtcMode::VeryAggressive } => {
                Lag { start_ms: 0, end_ms: 100 }
            }
        }
    }
}

pub(super) enum Engine {
    Earshot(Earshot),
    Webrtc(Webrtc),
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Earshot(_) => "Earshot",
            Self::Webrtc(_) => "Webrtc",
        })
    }
}

impl Engine {
    pub(super) fn new(engine: VadEngine) -> io::Result<Self> {
        Ok(match engine {
            VadEngine::Earshot => Self::Earshot(Earshot::new()),
            VadEngine::Webrtc { mode } => Self::Webrtc(Webrtc::new(mode)?),
        })
    }

    /// Samples that [`Self::probability`] takes.
    pub(super) fn frame_len(&self) -> usize {
        match self {
            Self::Earshot(_) => EARSHOT_FRAME,
            Self::Webrtc(_) => WEBRTC_FRAME,
        }
    }

    /// Of speech, in 0..1, in the next frame of [`Self::frame_len`] samples at 16 kHz.
    pub(super) fn probability(&mut self, frame: &[i16]) -> f32 {
        match self {
            Self::Earshot(detector) => detector.probability(frame),
            Self::Webrtc(detector) => f32::from(u8::from(detector.is_speech(frame))),
        }
    }

    /// The next frame does not follow on the last one.
    pub(super) fn reset(&mut self) {
        match self {
            Self::Earshot(detector) => *detector = Earshot::new(),
            // What it has learnt of the room's noise still holds.
            Self::Webrtc(_) => {}
        }
    }
}

/// earshot's detector, which is not asked while there is nothing to hear: a pause takes nearly all of
/// a call, and made of silence the answer is known.
pub(super) struct Earshot {
    detector: Box<earshot::Detector>,
    /// Frames without sound so far.
    silent: u32,
    last: f32,
}

impl Earshot {
    fn new() -> Self {
        Self { detector: earshot::Detector::default_boxed(), silent: 0, last: 0.0 }
    }

    fn probability(&mut self, frame: &[i16]) -> f32 {
        if frame.len() != EARSHOT_FRAME {
            return 0.0;
        }
        self.silent = if is_silent(frame) { self.silent.saturating_add(1) } else { 0 };
        if self.silent <= SETTLED {
            self.last = self.detector.predict_i16(frame).clamp(0.0, 1.0);
        }
        self.last
    }
}

const EARSHOT_FRAME: usize = 256;
/// Silent frames after which the network has forgotten what was before: half a second.
const SETTLED: u32 = 31;
/// The shortest that it takes: a single frame taken wrongly is then held for the shortest time.
const WEBRTC_FRAME: usize = 160;

/// Frames that WebRTC's detector takes for speech while it learns the room's noise: a quarter of a
/// second.
const WEBRTC_LEARNING: u32 = 25;

/// WebRTC's detector holds a C pointer that may not change threads, while ours moves with its tokio
/// task: so it lives on a small thread of its own, which answers one frame at a time, in some tens
/// of microseconds. The thread ends when this is dropped.
pub(super) struct Webrtc {
    frames: SyncSender<[i16; WEBRTC_FRAME]>,
    answers: Receiver<bool>,
    learning: u32,
}

impl Webrtc {
    fn new(mode: WebrtcMode) -> io::Result<Self> {
        let (frames, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        thread::Builder::new()
            .name("webrtc-vad".into())
            .stack_size(128 * 1024)
            .spawn(move || serve(mode, &asked, &answer))?;
        Ok(Self { frames, answers, learning: WEBRTC_LEARNING })
    }

    fn is_speech(&mut self, frame: &[i16]) -> bool {
        let Ok(frame) = frame.try_into() else { return false };
        let speech = self.frames.send(frame).is_ok() && self.answers.recv().unwrap_or(false);
        let learning = self.learning > 0;
        self.learning = self.learning.saturating_sub(1);
        speech && !learning
    }
}

fn serve(mode: WebrtcMode, frames: &Receiver<[i16; WEBRTC_FRAME]>, answers: &SyncSender<bool>) {
    let mode = match mode {
        WebrtcMode::Quality => VadMode::Quality,
        WebrtcMode::LowBitrate => VadMode::LowBitrate,
        WebrtcMode::Aggressive => VadMode::Aggressive,
        WebrtcMode::VeryAggressive => VadMode::VeryAggressive,
    };
    let mut vad = Vad::new_with_rate_and_mode(SampleRate::Rate16kHz, mode);
    while let Ok(frame) = frames.recv() {
        if answers.send(vad.is_voice_segment(&frame).unwrap_or(false)).is_err() {
            return;
        }
    }
}
