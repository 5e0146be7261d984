//! The tasks and channels around one [`Session`](super::machine::Session): it turns what happens
//! in the room and at the providers into inputs, and the machine's commands into calls.
//!
//! Audio takes its own path beside the loop: a [`hear`](crate::room::input::hear) task per speaker (microphone → VAD and STT
//! queue) and one [`playout_task`] (TTS audio → voice track).

mod commands;
mod events;
mod handover;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    audio::{smart_turn::SmartTurn, vad::VadConfig},
    clock,
    config::Prices,
    flight::{FlightConfig, Recorded},
    llm::{Llm, LlmError, LlmEvent},
    room::{
        input::{Heard, Hearing},
        output::{PlayoutCommand, playout_task},
    },
    session::{
        command::Usage,
        input::{GenerationId, Input, PlayoutEvent, SpeakerId, SttInput, VadEvent},
        machine::SessionIds,
        ports::{RoomEvent, Shown, Voice},
        settings::Settings,
        state::CloseReason,
    },
    stt::{Stt, SttControl, SttEvent, late::Keeper},
    telemetry::usage::Used,
    tools::builtin::RoomHandle,
    tts::{SpeechId, Tts, TtsCommand, TtsConnection, TtsEvent},
};

/// Queues between tasks of one session. All are read by loops that never block on I/O.
const QUEUE: usize = 1_024;

/// The providers of one agent, shared by its rooms.
#[derive(Debug, Clone)]
pub struct Providers {
    pub stt: Arc<dyn Stt>,
    /// Absent in `transcribe` mode.
    pub speaking: Option<(Arc<dyn Llm>, Arc<dyn Tts>)>,
    /// To whom the conversation may be handed over.
    pub colleagues: Arc<[Colleague]>,
    /// By which tools act on the session; bound by whoever holds its events' sender.
    pub room: RoomHandle,
    pub prices: Prices,
}

/// Another agent of the session.
#[derive(Debug, Clone)]
pub struct Colleague {
    pub name: String,
    pub settings: Settings,
    pub llm: Arc<dyn Llm>,
    pub tts: Arc<dyn Tts>,
}

/// Links of one agent's chain of providers; those of the next agent count on from there.
const LINKS: u8 = 16;

impl Providers {
    /// Whose it was that was used, and what it costs.
    pub fn used(&self, usage: Usage) -> Used<'_> {
        let colleague = |link: u8| usize::from(link / LINKS).checked_sub(1);
        let colleague = |link: u8| colleague(link).and_then(|n| self.colleagues.get(n));
        let (provider, model) = match usage {
            Usage::Stt { link, .. } => self.stt.name_of(link),
            Usage::Llm { link, .. } => match (colleague(link), &self.speaking) {
                (Some(colleague), _) => colleague.llm.name_of(link % LINKS),
                (None, Some((llm, _))) => llm.name_of(link),
                (None, None) => ("", ""),
            },
            Usage::Tts { link, .. } => match (colleague(link), &self.speaking) {
                (Some(colleague), _) => colleague.tts.name_of(link % LINKS),
                (None, Some((_, tts))) => tts.name_of(link),
                (None, None) => ("", ""),
            },
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
    /// Keeps what nobody could hear; none: it is lost.
    pub keeper: Option<Keeper>,
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
    /// As shown to people.
    name: String,
    /// Its STT stream; `None` before the microphone is heard and after it is gone.
    stream: Option<Stream>,
    /// The track that is heard.
    track: String,
    hearing: Option<Hearing>,
    leaving: Option<Leaving>,
}

/// What is waited for before the machine is told that a participant who left has left.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    /// Until then, for the participant to be there again.
    Return(Instant),
    /// For the connection to the room, which is being made anew: who was there seems to leave.
    Reconnection,
}

impl Leaving {
    fn until(self) -> Option<Instant> {
        match self {
            Self::Return(until) => Some(until),
            Self::Reconnection => None,
        }
    }
}

/// One of a speaker's STT streams, of which the one before may still have something to say.
#[derive(Debug)]
struct Stream {
    serial: u64,
    control: mpsc::Sender<SttControl>,
}

/// What a stream told; `None`: it has ended.
type Told = (SpeakerId, u64, Option<SttEvent>);

#[derive(Debug)]
struct Generation {
    id: GenerationId,
    events: mpsc::Receiver<LlmEvent>,
    cancel: CancellationToken,
    /// The first link of the agent who answers.
    first_link: u8,
}

#[derive(Debug)]
struct Speaking {
    llm: Arc<dyn Llm>,
    /// The first link of whose model it is: 0, or that of a colleague.
    llm_link: u8,
    voice: Arc<dyn Tts>,
    /// The same of the voice.
    tts_link: u8,
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
    keeper: Option<Keeper>,
    speaking: Option<Speaking>,
    colleagues: Arc<[Colleague]>,
    generation: Option<Generation>,
    speakers: HashMap<SpeakerId, Speaker>,
    next_speaker: u32,
    /// The agent has the turn: it thinks or speaks.
    agent_turn: Arc<AtomicBool>,
    heard: mpsc::Receiver<(SpeakerId, Heard)>,
    heard_sender: mpsc::Sender<(SpeakerId, Heard)>,
    stt_events: mpsc::Receiver<Told>,
    stt_sender: mpsc::Sender<Told>,
    last_stream: u64,
    /// Streams that have not ended, whoever's they are.
    open_streams: u32,
    /// The connection to the room is being made anew.
    reconnecting: bool,
    /// The call is over: only last words are waited for.
    closing: bool,
    shown: mpsc::Sender<Shown>,
    dropped_shown: u64,
}

/// What woke the loop.
enum Wake {
    Room(Option<RoomEvent>),
    Heard(SpeakerId, Heard),
    Stt(Told),
    Llm(GenerationId, Option<LlmEvent>),
    Tts(Option<TtsEvent>),
    Playout(SpeechId, PlayoutEvent),
    Timer,
}

impl Speaking {
    /// Usage as that of the agents whose providers these are.
    const fn owned(&self, usage: Usage) -> Usage {
        match usage {
            Usage::Llm { .. } => usage.counted_from(self.llm_link),
            Usage::Tts { .. } => usage.counted_from(self.tts_link),
            Usage::Stt { .. } => usage,
        }
    }
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
                llm_link: 0,
                voice: tts,
                tts_link: 0,
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
            keeper: config.keeper,
            speaking,
            colleagues: providers.colleagues,
            generation: None,
            speakers: HashMap::new(),
            next_speaker: 0,
            agent_turn: Arc::default(),
            heard,
            heard_sender,
            stt_events,
            stt_sender,
            last_stream: 0,
            open_streams: 0,
            reconnecting: false,
            closing: false,
            shown,
            dropped_shown: 0,
        }
    }

    async fn run(mut self, room: mpsc::Receiver<RoomEvent>) -> CloseReason {
        let mut room = Some(room);
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
        let leaving = self.speakers.values().filter_map(|speaker| speaker.leaving?.until()).min();
        self.session.poll_timeout().into_iter().chain(leaving).min()
    }

    /// Waits for the next thing to happen. What steers the conversation comes before what feeds it:
    /// deadlines and the user's voice before the providers' output.
    async fn next(
        &mut self,
        room: &mut Option<mpsc::Receiver<RoomEvent>>,
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
            event = recv(room.as_mut()) => {
                if event.is_none() {
                    *room = None;
                }
                Wake::Room(event)
            }
            Some((id, event)) = recv(playout_events) => Wake::Playout(id, event),
            Some(told) = self.stt_events.recv() => Wake::Stt(told),
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
                    .filter(|(_, speaker)| {
                        speaker.leaving.and_then(Leaving::until).is_some_and(|until| until <= now)
                    })
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
            Wake::Stt(told) => self.on_stt(told, now),
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

    fn end(mut self) {
        self.session.end(clock::now());
        if let Some(generation) = self.generation.take() {
            self.cut_short(generation);
        }
        for speaker in self.speakers.into_values() {
            if let Some(stream) = speaker.stream {
                let _ = stream.control.try_send(SttControl::Close);
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

async fn recv<T>(receiver: Option<&mut mpsc::Receiver<T>>) -> Option<T> {
    match receiver {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}
