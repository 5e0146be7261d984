//! One speaker's way in: microphone → voice activity and the STT queue, 10 ms at a time.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{runtime::Handle, sync::mpsc, task::JoinHandle};
use tracing::debug;

use crate::{
    audio::{
        in_place::InPlace,
        queue::{AudioReceiver, audio_queue},
        smart_turn::{SmartTurn, WINDOW},
        vad::{VadConfig, VadError, VoiceDetector},
    },
    session::{
        input::{SpeakerId, VadEvent},
        ports::Microphone,
    },
};

/// What STT may lag behind before the oldest audio goes: 30 s at 16 kHz.
const STT_QUEUE: usize = 30 * 16_000;

/// In the middle of speech STT is woken for no fewer samples than these, 100 ms: more at a time is less
/// work, and no answer begins before speech ends. Over the agent's turn it has all at once: its words
/// tell whether the agent is to stop.
const MID_SPEECH_BATCH: usize = 1_600;
/// Where speech may have ended, an answer waits for its final: for 600 ms STT has all at once. After
/// that, and where speech may begin, it is woken for 50 ms ...
const HURRY: usize = 9_600;
const QUIET_BATCH: usize = 800;
/// ... and after 2 s for 200 ms.
const LONG_SILENCE: usize = 32_000;
const SILENT_BATCH: usize = 3_200;

/// What a hearing task tells the driver.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Heard {
    /// The first sample of the stream is here.
    First,
    Vad(VadEvent),
    /// How probable it is (0..1), by the sound alone, that the turn has ended with what was heard
    /// when [`Hearing::ask_turn_model`] was called.
    TurnEnd(f32),
}

/// How much audio STT is given at a time.
#[derive(Debug, Default)]
struct Pace {
    batch: usize,
    /// Samples since there was speech.
    quiet: usize,
}

impl Pace {
    /// What to give at a time from now on, if that is another amount: the detector has heard so many
    /// samples more, maybe over the agent's turn.
    fn after(
        &mut self,
        samples: usize,
        detector: &VoiceDetector,
        agent_turn: bool,
    ) -> Option<usize> {
        self.quiet = if detector.is_speech() { 0 } else { self.quiet.saturating_add(samples) };
        let batch = match self.quiet {
            _ if detector.is_mid_speech() && !agent_turn => MID_SPEECH_BATCH,
            quiet if quiet <= HURRY => 0,
            quiet if quiet <= LONG_SILENCE || !detector.is_quiet() => QUIET_BATCH,
            _ => SILENT_BATCH,
        };
        let changed = batch != std::mem::replace(&mut self.batch, batch);
        changed.then_some(batch)
    }
}

/// A running [`hear`] task; it ends when this is dropped.
#[derive(Debug)]
pub struct Hearing {
    _task: Task,
    wanted: Arc<AtomicBool>,
}

/// Ends when it is dropped.
#[derive(Debug)]
enum Task {
    InPlace { _task: InPlace },
    Spawned(JoinHandle<()>),
}

impl Hearing {
    /// The turn model is asked with the next frame about what was heard so far.
    pub fn ask_turn_model(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Self::Spawned(task) = self {
            task.abort();
        }
    }
}

/// Keeps the last of what was heard, as much as the turn model takes.
fn remember(past: &mut Vec<i16>, samples: &[i16]) {
    // Moved once in a while, not with every frame.
    if past.len() + samples.len() > 2 * WINDOW {
        past.drain(..past.len().saturating_sub(WINDOW));
    }
    past.extend_from_slice(samples);
}

/// Asks the turn model beside the way of the audio.
async fn ask(
    model: Arc<SmartTurn>,
    speaker: SpeakerId,
    past: Vec<i16>,
    events: mpsc::Sender<(SpeakerId, Heard)>,
) {
    if let Some(probability) = model.ask(past).await
        && events.try_send((speaker, Heard::TurnEnd(probability))).is_err()
    {
        debug!("the turn model's answer was dropped");
    }
}

/// Starts to listen to one microphone. Samples go to the STT queue first, then to the detector:
/// nothing here waits for a reader. The audio is all of the microphone's, mono s16 at 16 kHz; it
/// ends when the task does. `agent_turn` tells whether what is heard is said over the agent's turn.
pub fn hear(
    speaker: SpeakerId,
    mut microphone: Box<dyn Microphone>,
    vad: VadConfig,
    turn_model: Option<Arc<SmartTurn>>,
    agent_turn: Arc<AtomicBool>,
    events: mpsc::Sender<(SpeakerId, Heard)>,
) -> Result<(Hearing, AudioReceiver), VadError> {
    let mut detector = VoiceDetector::new(vad)?;
    let (sender, audio) = audio_queue(STT_QUEUE);
    let wanted = Arc::new(AtomicBool::new(false));
    let asked = wanted.clone();
    let in_place = vad.engine.judges_in_place() && microphone.may_be_heard_in_place();
    let runtime = Handle::current();
    let models = runtime.clone();
    let listen = async move {
        let mut samples = Vec::with_capacity(1_600);
        let mut first = true;
        let mut pace = Pace::default();
        // What the turn model is to hear: nothing, where there is none.
        let mut past = Vec::with_capacity(turn_model.as_ref().map_or(0, |_| 2 * WINDOW));
        while microphone.read(&mut samples).await {
            if std::mem::take(&mut first) {
                let _ = events.try_send((speaker, Heard::First));
            }
            sender.push(&samples);
            if turn_model.is_some() {
                remember(&mut past, &samples);
            }
            detector.push(&samples, |event, _stream_ms| {
                if events.try_send((speaker, Heard::Vad(event))).is_err() {
                    debug!("a voice activity event was dropped");
                }
            });
            let agent_turn = agent_turn.load(Ordering::Relaxed);
            if let Some(batch) = pace.after(samples.len(), &detector, agent_turn) {
                sender.set_low_watermark(batch);
                microphone.set_batching(batch == MID_SPEECH_BATCH);
            }
            if let Some(model) = &turn_model
                && asked.swap(false, Ordering::Relaxed)
            {
                let window = past[past.len().saturating_sub(WINDOW)..].to_vec();
                models.spawn(ask(model.clone(), speaker, window, events.clone()));
            }
            samples.clear();
        }
    };
    let task = if in_place {
        Task::InPlace { _task: InPlace::run(listen) }
    } else {
        Task::Spawned(runtime.spawn(listen))
    };
    Ok((Hearing { _task: task, wanted }, audio))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use async_trait::async_trait;
    use parking_lot::Mutex;

    use super::*;
    use crate::{audio::wav, replay::simulated::Expected};

    /// A frame of 10 ms.
    const FRAME: usize = 160;

    /// The batches of recognition, frame by frame.
    #[derive(Debug)]
    struct Batches {
        detector: VoiceDetector,
        pace: Pace,
        agent_turn: bool,
        batch: usize,
    }

    impl Batches {
        fn new(agent_turn: bool) -> Self {
            let detector = VoiceDetector::new(VadConfig::default()).unwrap();
            Self { detector, pace: Pace::default(), agent_turn, batch: 0 }
        }

        fn hear(&mut self, samples: &[i16]) -> Vec<usize> {
            let batches = samples.chunks(FRAME).map(|frame| {
                self.detector.push(frame, |_, _| ());
                let changed = self.pace.after(frame.len(), &self.detector, self.agent_turn);
                self.batch = changed.unwrap_or(self.batch);
                self.batch
            });
            batches.collect()
        }
    }

    fn question() -> Vec<i16> {
        let fixture =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/audio/en-us-question.wav");
        wav::read(&fixture).unwrap().samples
    }

    fn count(batches: &[usize], of: usize) -> usize {
        batches.iter().filter(|batch| **batch == of).count()
    }

    #[test]
    fn recognition_has_little_at_a_time_only_while_its_final_is_waited_for() {
        let (mut batches, said) = (Batches::new(false), question());
        let faint =
            |ms: usize| (0..ms * 16).map(|at| (at * at % 61) as i16 - 30).collect::<Vec<_>>();
        // Its utterance ends at 2,509 ms.
        let speaking = batches.hear(&said[..2_500 * 16]);
        assert!(count(&speaking, MID_SPEECH_BATCH) > 120, "{speaking:?}");
        // The detector itself takes 180 ms to be sure of silence.
        let after = batches.hear(&faint(1_000));
        assert!((60..=85).contains(&count(&after, 0)), "{after:?}");
        assert_eq!(after.last(), Some(&QUIET_BATCH));
        let later = batches.hear(&faint(3_000));
        assert_eq!(later.last(), Some(&SILENT_BATCH), "noise is as good as silence");
        let onset = batches.hear(&said[500 * 16..800 * 16]);
        assert!(onset.contains(&QUIET_BATCH) && onset.contains(&MID_SPEECH_BATCH), "{onset:?}");
    }

    #[test]
    fn recognition_has_all_at_once_over_the_turn_of_the_agent() {
        let speaking = Batches::new(true).hear(&question()[..2_500 * 16]);
        assert_eq!(count(&speaking, MID_SPEECH_BATCH), 0, "{speaking:?}");
        assert!(count(&speaking, 0) > 120, "{speaking:?}");
    }

    /// Plays samples at once; notes for each frame whether it was to come in a batch.
    #[derive(Debug)]
    struct Speaker {
        samples: Vec<i16>,
        at: usize,
        batching: bool,
        noted: Arc<Mutex<Vec<bool>>>,
    }

    #[async_trait]
    impl Microphone for Speaker {
        async fn read(&mut self, into: &mut Vec<i16>) -> bool {
            let Some(frame) = self.samples.get(self.at..self.at + FRAME) else { return false };
            into.extend_from_slice(frame);
            self.at += FRAME;
            self.noted.lock().push(self.batching);
            true
        }

        fn set_batching(&mut self, batching: bool) {
            self.batching = batching;
        }

        fn may_be_heard_in_place(&self) -> bool {
            true
        }
    }

    /// An utterance after another, and what was noted while they were heard.
    fn heard(agent_turn: bool) -> (Expected, Vec<bool>) {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/audio/two-turns");
        let samples = wav::read(&fixture.with_extension("wav")).unwrap().samples;
        let json = std::fs::read_to_string(fixture.with_extension("expected.json")).unwrap();
        let noted = Arc::<Mutex<Vec<bool>>>::default();
        let speaker = Speaker { samples, at: 0, batching: false, noted: noted.clone() };
        let (events, _told) = mpsc::channel(1_000);
        let agent_turn = Arc::new(AtomicBool::new(agent_turn));
        let vad = VadConfig::default();
        let hearing = hear(SpeakerId(0), Box::new(speaker), vad, None, agent_turn, events).unwrap();
        drop(hearing);
        let noted = noted.lock().clone();
        (serde_json::from_str(&json).unwrap(), noted)
    }

    #[tokio::test]
    async fn samples_come_in_batches_in_the_middle_of_speech_and_nowhere_else() {
        let (said, noted) = heard(false);
        let frames = |from_ms: u64, to_ms: u64| {
            let frame = |ms: u64| (ms as usize / 10).min(noted.len());
            &noted[frame(from_ms)..frame(to_ms)]
        };
        let mut silent_since = 0;
        for utterance in said.utterances {
            let (start, end) = (utterance.start_ms, utterance.end_ms);
            assert!(!frames(silent_since, start).contains(&true), "before {start}");
            let middle = frames(start, end);
            let share = middle.iter().filter(|batched| **batched).count() * 100 / middle.len();
            assert!(share >= 60, "{share} % of the utterance at {start}");
            // So long may the detector take to see its end.
            silent_since = end + 150;
        }
        assert!(!frames(silent_since, u64::MAX).contains(&true), "at the end");
    }

    #[tokio::test]
    async fn nothing_comes_in_batches_over_the_turn_of_the_agent() {
        let (_, noted) = heard(true);
        assert!(noted.len() > 100 && !noted.contains(&true), "{noted:?}");
    }
}
