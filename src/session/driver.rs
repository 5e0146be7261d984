//! The tasks and channels around one [`Session`](super::machine::Session): it turns what happens in the room and at the
//! providers into inputs, and the machine's commands into calls.
//!
//! Audio takes its own path beside the loop: a [`hear`] task per speaker (microphone → VAD and STT
//! queue) and one [`playout_task`] (TTS audio → voice track).

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinHandle},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    audio::{smart_turn::SmartTurn, vad::VadConfig},
    clock,
    config::Prices,
    flight::{FlightConfig, Recorded},
    llm::{GenerateRequest, Llm, LlmError, LlmEvent},
    room::{
        input::{Heard, hear},
        output::{PlayoutCommand, playout_task},
    },
    session::{
        command::{Command, Usage},
        input::{
            GenerationId, Input, ParticipantEvent, PlayoutEvent, SpeakerId, SttInput, TtsInput,
            VadEvent,
        },
        machine::SessionIds,
        ports::{Microphone, RoomEvent, Shown, Voice},
        settings::Settings,
        state::CloseReason,
    },
    stt::{Stt, SttControl, SttEvent, SttStream},
    telemetry::usage::Used,
    tools::builtin::RoomHandle,
    tts::{SpeechId, Tts, TtsCommand, TtsConnection, TtsError, TtsEvent},
};

/// How long the last words of a speaker who has gone are waited for.
const LAST_WORDS: Duration = Duration::from_millis(1_500);
/// Queues between tasks of one session. All are read by loops that never block on I/O.
const QUEUE: usize = 1_024;

/// The providers of one agent, shared by its rooms.
#[derive(Debug, Clone)]
pub struct Providers {
    pub stt: Arc<dyn Stt>,
    /// Absent in `transcribe` mode.
    pub speaking: Option<(Arc<dyn Llm>, Arc<dyn Tts>)>,
    /// By which tools act on the session; bound by whoever holds its events' sender.
    pub room: RoomHandle,
    pub prices: Prices,
}

impl Providers {
    /// Whose it was that was used, and what it costs.
    pub fn used(&self, usage: Usage) -> Used<'_> {
        let (provider, model) = match (usage, &self.speaking) {
            (Usage::Llm { link, .. }, Some((llm, _))) => llm.name_of(link),
            (Usage::Tts { link, .. }, Some((_, tts))) => tts.name_of(link),
            (Usage::Stt { link, .. }, _) => self.stt.name_of(link),
            (Usage::Llm { .. } | Usage::Tts { .. }, None) => ("", ""),
        };
        Used { usage, provider, model, cost: self.prices.cost(provider, model, usage) }
    }
}

/// One session's particulars.
#[derive(Debug, Clone)]
pub struct DriverConfig {
    pub settings: Settings,
    pub vad: VadConfig,
    pub ids: SessionIds,
    /// Listens to the ends of speech, where the detection is semantic.
    pub turn_model: Option<Arc<SmartTurn>>,
    /// Where the session is recorded; none: nowhere.
    pub flight: Option<Arc<FlightConfig>>,
}

/// Runs one session to its end. `voice` is the agent's track at the TTS provider's sample rate.
///
/// What is to be shown goes to `shown` in order; interims are dropped when it is full, finals wait.
pub async fn run(
    config: DriverConfig,
    providers: Providers,
    room: mpsc::Receiver<RoomEvent>,
    voice: Option<Box<dyn Voice>>,
    shown: mpsc::Sender<Shown>,
) -> CloseReason {
    Driver::new(config, providers, voice, shown).run(room).await
}

#[derive(Debug)]
struct Speaker {
    identity: String,
    /// Its STT stream; `None` before the microphone is heard and after it is gone.
    stream: Option<mpsc::Sender<SttControl>>,
    /// The hearing task: aborted when the microphone goes.
    hearing: Option<AbortHandle>,
    /// The participant has left; told to the machine once the last words are in, or at this time.
    leaving_by: Option<Instant>,
}

#[derive(Debug)]
struct Generation {
    id: GenerationId,
    events: mpsc::Receiver<LlmEvent>,
    cancel: CancellationToken,
}

#[derive(Debug)]
struct Speaking {
    llm: Arc<dyn Llm>,
    voice: Arc<dyn Tts>,
    tts: mpsc::Sender<TtsCommand>,
    tts_rate: u32,
    /// `None` once the connection's task is gone.
    tts_events: Option<mpsc::Receiver<TtsEvent>>,
    playout: mpsc::Sender<PlayoutCommand>,
    playout_events: mpsc::Receiver<(SpeechId, PlayoutEvent)>,
    tasks: [JoinHandle<()>; 2],
}

struct Driver {
    session: Recorded,
    vad: VadConfig,
    turn_model: Option<Arc<SmartTurn>>,
    stt: Arc<dyn Stt>,
    speaking: Option<Speaking>,
    generation: Option<Generation>,
    speakers: HashMap<SpeakerId, Speaker>,
    next_speaker: u32,
    heard: mpsc::Receiver<(SpeakerId, Heard)>,
    heard_sender: mpsc::Sender<(SpeakerId, Heard)>,
    stt_events: mpsc::Receiver<(SpeakerId, Option<SttEvent>)>,
    stt_sender: mpsc::Sender<(SpeakerId, Option<SttEvent>)>,
    shown: mpsc::Sender<Shown>,
    dropped_shown: u64,
}

/// What woke the loop.
enum Wake {
    Room(Option<RoomEvent>),
    Heard(SpeakerId, Heard),
    /// `None`: the stream has ended.
    Stt(SpeakerId, Option<SttEvent>),
    Llm(GenerationId, Option<LlmEvent>),
    Tts(Option<TtsEvent>),
    Playout(SpeechId, PlayoutEvent),
    Timer,
}

impl Driver {
    fn new(
        config: DriverConfig,
        providers: Providers,
        voice: Option<Box<dyn Voice>>,
        shown: mpsc::Sender<Shown>,
    ) -> Self {
        let (heard_sender, heard) = mpsc::channel(QUEUE);
        let (stt_sender, stt_events) = mpsc::channel(QUEUE);
        let speaking = providers.speaking.zip(voice).map(|((llm, tts), voice)| {
            let (tts_sender, tts_events) = mpsc::channel(QUEUE);
            let TtsConnection { commands, task } = tts.connect(tts_sender);
            let (playout, playout_commands) = mpsc::channel(QUEUE);
            let (playout_sender, playout_events) = mpsc::channel(QUEUE);
            let rate = tts.sample_rate();
            let pump = tokio::spawn(playout_task(rate, voice, playout_commands, playout_sender));
            let warm = llm.clone();
            tokio::spawn(async move { warm.prewarm().await });
            Speaking {
                llm,
                voice: tts,
                tts: commands,
                tts_rate: rate,
                tts_events: Some(tts_events),
                playout,
                playout_events,
                tasks: [task, pump],
            }
        });
        Self {
            session: Recorded::new(
                config.settings,
                config.ids,
                config.flight.as_ref(),
                clock::now(),
            ),
            vad: config.vad,
            turn_model: config.turn_model,
            stt: providers.stt,
            speaking,
            generation: None,
            speakers: HashMap::new(),
            next_speaker: 0,
            heard,
            heard_sender,
            stt_events,
            stt_sender,
            shown,
            dropped_shown: 0,
        }
    }

    async fn run(mut self, mut room: mpsc::Receiver<RoomEvent>) -> CloseReason {
        let reason = loop {
            if let Some(reason) = self.obey().await {
                break reason;
            }
            let deadline = self.deadline();
            let wake = self.next(&mut room, deadline).await;
            self.take(wake);
        };
        self.end();
        reason
    }

    fn deadline(&self) -> Option<Instant> {
        let leaving = self.speakers.values().filter_map(|speaker| speaker.leaving_by).min();
        self.session.poll_timeout().into_iter().chain(leaving).min()
    }

    /// Waits for the next thing to happen. What steers the conversation comes before what feeds it:
    /// deadlines and the user's voice before the providers' output.
    async fn next(
        &mut self,
        room: &mut mpsc::Receiver<RoomEvent>,
        deadline: Option<Instant>,
    ) -> Wake {
        let timer = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let generation = &mut self.generation;
        let llm = async {
            match generation {
                Some(generation) => (generation.id, generation.events.recv().await),
                None => std::future::pending().await,
            }
        };
        let (tts_events, playout_events) = match &mut self.speaking {
            Some(speaking) => (speaking.tts_events.as_mut(), Some(&mut speaking.playout_events)),
            None => (None, None),
        };
        tokio::select! {
            biased;
            () = timer => Wake::Timer,
            Some((speaker, heard)) = self.heard.recv() => Wake::Heard(speaker, heard),
            event = room.recv() => Wake::Room(event),
            Some((id, event)) = recv(playout_events) => Wake::Playout(id, event),
            Some((speaker, event)) = self.stt_events.recv() => Wake::Stt(speaker, event),
            event = recv(tts_events) => Wake::Tts(event),
            (id, event) = llm => Wake::Llm(id, event),
        }
    }

    fn take(&mut self, wake: Wake) {
        let now = clock::now();
        match wake {
            Wake::Timer => {
                self.session.handle_timeout(now);
                let gone: Vec<_> = self
                    .speakers
                    .iter()
                    .filter(|(_, speaker)| speaker.leaving_by.is_some_and(|by| by <= now))
                    .map(|(id, _)| *id)
                    .collect();
                for id in gone {
                    self.depart(id, now);
                }
            }
            Wake::Heard(speaker, heard) => {
                if matches!(heard, Heard::Vad(VadEvent::Started { .. })) {
                    self.stay_warm();
                }
                let input = match heard {
                    Heard::Vad(event) => Input::Vad { speaker, event },
                    Heard::TurnEnd(probability) => Input::TurnEnd { speaker, probability },
                    Heard::First => Input::Stt { speaker, event: SttInput::Started },
                };
                self.session.handle_input(input, now);
            }
            Wake::Room(event) => self.on_room(
                event.unwrap_or(RoomEvent::Closed { reason: CloseReason::RoomClosed }),
                now,
            ),
            Wake::Stt(speaker, event) => self.on_stt(speaker, event, now),
            Wake::Llm(id, event) => {
                // A provider that ends without a word about it has broken off.
                let event = event.unwrap_or_else(|| {
                    LlmEvent::Error(LlmError::Interrupted("the generation ended early".into()))
                });
                if matches!(event, LlmEvent::End | LlmEvent::Error(_)) {
                    self.generation = None;
                }
                self.session.handle_input(Input::Llm { id, event }, now);
            }
            Wake::Tts(event) => self.on_tts(event, now),
            Wake::Playout(id, event) => {
                self.session.handle_input(Input::Playout { id, event }, now);
            }
        }
    }

    fn on_room(&mut self, event: RoomEvent, now: Instant) {
        match event {
            RoomEvent::Ready => self.session.handle_input(Input::Ready, now),
            RoomEvent::ParticipantJoined { identity, name } => {
                let speaker = self.speaker(&identity);
                if let Some(known) = self.speakers.get_mut(&speaker) {
                    known.leaving_by = None;
                }
                let event = ParticipantEvent::Joined { identity, name };
                self.session.handle_input(Input::Participant { speaker, event }, now);
            }
            RoomEvent::ParticipantLeft { identity } => {
                let speaker = self.speaker(&identity);
                self.deafen(speaker);
                match self.speakers.get_mut(&speaker) {
                    Some(known) if known.stream.is_some() => {
                        known.leaving_by = Some(now + LAST_WORDS);
                    }
                    _ => self.depart(speaker, now),
                }
            }
            RoomEvent::Audible { identity, microphone } => self.listen(&identity, microphone),
            RoomEvent::Inaudible { identity } => {
                let speaker = self.speaker(&identity);
                self.deafen(speaker);
            }
            RoomEvent::Chat { identity, text } => {
                let speaker = self.speaker(&identity);
                self.session.handle_input(Input::Chat { speaker, text }, now);
            }
            RoomEvent::Say { text, interruptible } => {
                self.session.handle_input(Input::Say { text, interruptible }, now);
            }
            RoomEvent::Drain => self.session.handle_input(Input::Drain, now),
            RoomEvent::Closed { reason } => {
                self.session.handle_input(Input::Close { reason }, now);
            }
        }
    }

    fn on_stt(&mut self, speaker: SpeakerId, event: Option<SttEvent>, now: Instant) {
        let Some(event) = event else {
            let left = self.speakers.get_mut(&speaker).is_some_and(|known| {
                known.stream = None;
                known.leaving_by.is_some()
            });
            if left {
                self.depart(speaker, now);
            }
            return;
        };
        let event = match event {
            SttEvent::Connected => SttInput::Restored,
            SttEvent::SpeechStarted => SttInput::SpeechStarted,
            SttEvent::Interim(transcript) => SttInput::Interim(transcript),
            SttEvent::Final(transcript) => SttInput::Final(transcript),
            SttEvent::EndOfTurn => SttInput::EndOfTurn,
            SttEvent::Usage { link, audio_ms } => SttInput::Usage { link, audio_ms },
            SttEvent::Lost { reason, retry_in } => {
                warn!(reason, retry_in_ms = retry_in.as_millis() as u64, "speech recognition lost");
                SttInput::Lost
            }
            SttEvent::Failed(error) => {
                warn!(%error, "speech recognition failed");
                SttInput::Failed(error)
            }
        };
        self.session.handle_input(Input::Stt { speaker, event }, now);
    }

    fn on_tts(&mut self, event: Option<TtsEvent>, now: Instant) {
        let Some(speaking) = &mut self.speaking else { return };
        let Some(event) = event else {
            // The connection's task is gone: the machine hears of it at the next thing it says.
            warn!("speech synthesis has stopped");
            speaking.tts_events = None;
            return;
        };
        let (id, event) = match event {
            TtsEvent::Audio { id, samples } => {
                let ms = (samples.len() as u64 * 1_000 / u64::from(speaking.tts_rate)) as u32;
                send(&speaking.playout, PlayoutCommand::Push { id, samples });
                (id, TtsInput::Audio { ms })
            }
            TtsEvent::Alignment { id, words } => (id, TtsInput::Alignment(words)),
            TtsEvent::End { id } => {
                send(&speaking.playout, PlayoutCommand::Finish { id });
                (id, TtsInput::End)
            }
            TtsEvent::Error { id, error } => {
                warn!(%error, "speech synthesis failed");
                send(&speaking.playout, PlayoutCommand::Finish { id });
                (id, TtsInput::Error(error))
            }
            TtsEvent::Usage { link, characters } => {
                (SpeechId(0), TtsInput::Usage { link, characters })
            }
        };
        self.session.handle_input(Input::Tts { id, event }, now);
    }

    fn speaker(&mut self, identity: &str) -> SpeakerId {
        let known = self.speakers.iter().find(|(_, speaker)| speaker.identity == identity);
        if let Some((id, _)) = known {
            return *id;
        }
        let id = SpeakerId(self.next_speaker);
        self.next_speaker += 1;
        let speaker = Speaker {
            identity: identity.to_owned(),
            stream: None,
            hearing: None,
            leaving_by: None,
        };
        self.speakers.insert(id, speaker);
        id
    }

    /// Opens recognition for a speaker and lets the microphone flow into it.
    fn listen(&mut self, identity: &str, microphone: Box<dyn Microphone>) {
        let id = self.speaker(identity);
        self.deafen(id);
        let model = self.turn_model.clone();
        let hearing = match hear(id, microphone, self.vad, model, self.heard_sender.clone()) {
            Ok(hearing) => hearing,
            Err(error) => {
                warn!(%error, "voice activity detection cannot start");
                return;
            }
        };
        let (events_sender, mut events) = mpsc::channel(QUEUE);
        let SttStream { control, task: _ } = self.stt.open(hearing.audio, events_sender);
        let forward = self.stt_sender.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if forward.send((id, Some(event))).await.is_err() {
                    return;
                }
            }
            let _ = forward.send((id, None)).await;
        });
        if let Some(speaker) = self.speakers.get_mut(&id) {
            speaker.stream = Some(control);
            speaker.hearing = Some(hearing.task.abort_handle());
        }
    }

    /// The microphone is gone: recognition is asked for what it still has.
    fn deafen(&mut self, id: SpeakerId) {
        if let Some(speaker) = self.speakers.get_mut(&id) {
            if let Some(hearing) = speaker.hearing.take() {
                hearing.abort();
            }
            if let Some(stream) = &speaker.stream {
                let _ = stream.try_send(SttControl::Close);
            }
        }
    }

    fn depart(&mut self, speaker: SpeakerId, now: Instant) {
        self.speakers.remove(&speaker);
        let event = ParticipantEvent::Left;
        self.session.handle_input(Input::Participant { speaker, event }, now);
    }

    /// Carries out what the machine asks; `Some` when it has left.
    async fn obey(&mut self) -> Option<CloseReason> {
        while let Some(command) = self.session.poll_command() {
            match command {
                Command::SetState(state) => {
                    debug!(state = state.as_str(), "agent state");
                    self.show(Shown::State(state)).await;
                }
                Command::SetUserState(state) => self.show(Shown::UserState(state)).await,
                Command::Transcript(segment) => self.show(Shown::Transcript(segment)).await,
                Command::Metric(metric) => self.show(Shown::Metric(metric)).await,
                Command::Usage(usage) => self.show(Shown::Usage(usage)).await,
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
                        let _ = stream.try_send(SttControl::Finalize);
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
    fn stay_warm(&self) {
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
        tokio::spawn(async move { llm.generate(request, sender, token).await });
        if let Some(earlier) = self.generation.replace(Generation { id, events, cancel }) {
            self.cut_short(earlier);
        }
    }

    /// Cancels an answer. What it has used is told all the same, at the latest after its end.
    fn cut_short(&self, mut generation: Generation) {
        generation.cancel.cancel();
        let shown = self.shown.clone();
        tokio::spawn(async move {
            while let Some(event) = generation.events.recv().await {
                if let Some(usage) = Usage::of(&event) {
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

    fn end(mut self) {
        self.session.end(clock::now());
        if let Some(generation) = self.generation.take() {
            self.cut_short(generation);
        }
        for speaker in self.speakers.into_values() {
            if let Some(hearing) = speaker.hearing {
                hearing.abort();
            }
            if let Some(stream) = speaker.stream {
                let _ = stream.try_send(SttControl::Close);
            }
        }
        if let Some(speaking) = self.speaking {
            let [_tts, playout] = speaking.tasks;
            playout.abort();
        }
        if self.dropped_shown > 0 {
            info!(dropped = self.dropped_shown, "interims were dropped: the room was too slow");
        }
    }
}

/// The queue is larger than all that a session can have in flight; losing a steering command would
/// desynchronise playout and machine, so it is said aloud.
fn send(playout: &mpsc::Sender<PlayoutCommand>, command: PlayoutCommand) {
    if playout.try_send(command).is_err() {
        warn!("the playout queue is full or gone");
    }
}

async fn recv<T>(receiver: Option<&mut mpsc::Receiver<T>>) -> Option<T> {
    match receiver {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}
