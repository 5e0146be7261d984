//! The machine's commands, carried out.

use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Driver, Generation, QUEUE, Speaking};
use crate::{
    clock,
    llm::GenerateRequest,
    room::output::PlayoutCommand,
    session::{
        command::{Command, Usage},
        input::{GenerationId, Input, TtsInput},
        ports::Shown,
        state::{AgentState, CloseReason},
    },
    stt::SttControl,
    tts::{SpeechId, TtsCommand, TtsError},
};

impl Driver {
    /// Carries out what the machine asks; `Some` when it has left.
    pub(super) async fn obey(&mut self) -> Option<CloseReason> {
        while let Some(command) = self.session.poll_command() {
            match command {
                Command::SetState(state) => {
                    debug!(state = state.as_str(), "agent state");
                    let agent_turn = matches!(state, AgentState::Thinking | AgentState::Speaking);
                    self.agent_turn.store(agent_turn, Ordering::Relaxed);
                    self.show(Shown::State(state)).await;
                }
                Command::SetUserState(state) => self.show(Shown::UserState(state)).await,
                Command::Transcript(segment) => self.show(Shown::Transcript(segment)).await,
                Command::Metric(metric) => self.show(Shown::Metric(metric)).await,
                Command::Usage(usage) => {
                    let speaking = self.speaking.as_ref();
                    let usage = speaking.map_or(usage, |speaking| speaking.owned(usage));
                    self.show(Shown::Usage(usage)).await;
                }
                Command::Generate { id, request } => self.generate(id, request),
                Command::CancelGeneration { id } => {
                    if self.generation.as_ref().is_some_and(|current| current.id == id)
                        && let Some(generation) = self.generation.take()
                    {
                        self.cut_short(generation);
                    }
                }
                Command::FinalizeStt { speaker } => {
                    let stream =
                        self.speakers.get(&speaker).and_then(|known| known.stream.as_ref());
                    if let Some(stream) = stream {
                        let _ = stream.control.try_send(SttControl::Finalize);
                    }
                }
                Command::AskTurnModel { speaker } => {
                    let known = self.speakers.get(&speaker);
                    if let Some(hearing) = known.and_then(|known| known.hearing.as_ref()) {
                        hearing.ask_turn_model();
                    }
                }
                Command::Speak { id, text } => self.say(id, TtsCommand::Speak { id, text }),
                Command::FinishSpeech { id } => self.say(id, TtsCommand::Finish { id }),
                Command::CancelSpeech { id } => {
                    self.say(id, TtsCommand::Cancel { id });
                    self.play(PlayoutCommand::Cancel { id });
                }
                Command::Play { id } => self.play(PlayoutCommand::Play { id }),
                Command::PlayApology { id } => {
                    if let Some(ms) = self.play_apology(id) {
                        let now = clock::now();
                        self.session
                            .handle_input(Input::Tts { id, event: TtsInput::Audio { ms } }, now);
                        self.session.handle_input(Input::Tts { id, event: TtsInput::End }, now);
                    }
                }
                Command::ClearPlayout { id } => self.play(PlayoutCommand::Clear { id }),
                Command::Resume { id, from_ms } => {
                    self.play(PlayoutCommand::Resume { id, from_ms });
                }
                Command::CloseStt => self.close_stt(clock::now()),
                Command::Leave { reason } => return Some(reason),
            }
        }
        None
    }

    async fn show(&mut self, shown: Shown) {
        let must_arrive = match &shown {
            Shown::Transcript(segment) => segment.is_final,
            Shown::State(_) => true,
            _ => false,
        };
        if must_arrive {
            let _ = self.shown.send(shown).await;
        } else if self.shown.try_send(shown).is_err() {
            self.dropped_shown += 1;
        }
    }

    /// While the user speaks there is time for what the answer must not wait for.
    pub(super) fn stay_warm(&self) {
        if let Some(Speaking { llm, voice, .. }) = &self.speaking {
            let (llm, voice) = (llm.clone(), voice.clone());
            tokio::spawn(async move {
                futures_util::join!(llm.prewarm(), voice.stay_warm());
            });
        }
    }

    fn generate(&mut self, id: GenerationId, request: GenerateRequest) {
        let Some(speaking) = &self.speaking else { return };
        let (sender, events) = mpsc::channel(QUEUE);
        let cancel = CancellationToken::new();
        let (llm, token) = (speaking.llm.clone(), cancel.clone());
        let first_link = speaking.llm_link;
        tokio::spawn(async move { llm.generate(request, sender, token).await });
        let generation = Generation { id, events, cancel, first_link };
        if let Some(earlier) = self.generation.replace(generation) {
            self.cut_short(earlier);
        }
    }

    /// Cancels an answer. What it has used is told all the same, at the latest after its end.
    pub(super) fn cut_short(&self, mut generation: Generation) {
        generation.cancel.cancel();
        let shown = self.shown.clone();
        tokio::spawn(async move {
            while let Some(event) = generation.events.recv().await {
                if let Some(usage) = Usage::of(&event) {
                    let usage = usage.counted_from(generation.first_link);
                    let _ = shown.send(Shown::Usage(usage)).await;
                }
            }
        });
    }

    fn say(&mut self, id: SpeechId, command: TtsCommand) {
        let Some(speaking) = &self.speaking else { return };
        if speaking.tts.try_send(command).is_err() {
            let error = TtsError::Interrupted("the connection takes no more text".into());
            let event = TtsInput::Error(error);
            self.session.handle_input(Input::Tts { id, event }, clock::now());
        }
    }

    fn play(&self, command: PlayoutCommand) {
        if let Some(speaking) = &self.speaking {
            send(&speaking.playout, command);
        }
    }

    /// Queues the bundled apology; its length in ms.
    fn play_apology(&self, id: SpeechId) -> Option<u32> {
        let speaking = self.speaking.as_ref()?;
        let samples = match crate::audio::assets::apology_at(speaking.tts_rate) {
            Ok(samples) => samples,
            Err(error) => {
                warn!(%error, "the bundled apology cannot be played");
                return None;
            }
        };
        let ms = (samples.len() as u64 * 1_000 / u64::from(speaking.tts_rate)) as u32;
        send(&speaking.playout, PlayoutCommand::Push { id, samples });
        send(&speaking.playout, PlayoutCommand::Finish { id });
        send(&speaking.playout, PlayoutCommand::Play { id });
        Some(ms)
    }
}

/// The queue is larger than all that a session can have in flight; losing a steering command would
/// desynchronise playout and machine, so it is said aloud.
pub(super) fn send(playout: &mpsc::Sender<PlayoutCommand>, command: PlayoutCommand) {
    if playout.try_send(command).is_err() {
        warn!("the playout queue is full or gone");
    }
}
