//! An agent file made ready to run: its providers, its settings, its reporter.

use std::{path::Path, sync::Arc, time::Duration};

pub use super::providers::{Assembly, double_endpoints, providers};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    audio::{
        smart_turn::SmartTurn,
        vad::{VadConfig, VadEngine, WebrtcMode},
    },
    clock,
    config::{
        Agent, Prices, RoomContext,
        agent::VadKind,
        env::{Config, FlightMode, LiveKitAccess, Providers as Endpoints},
    },
    flight::FlightConfig,
    recording::recorder::RecorderConfig,
    session::{
        driver::{Colleague, DriverConfig, Providers},
        machine::SessionIds,
        settings::{Detection, Settings},
    },
    stt::late::{
        Keeper,
        queue::{DEFAULT_CAP, LateQueue},
        scribe::Scribe,
    },
    transcript::reporter::{Reporter, SessionInfo, SessionReporter},
    tts::cache::disk::Disk,
};

/// Longest flight: many hours of a call.
const MAX_FLIGHT_BYTES: u64 = 8 * 1024 * 1024;

/// What all sessions of one agent share.
#[derive(Debug, Clone)]
pub struct AgentRuntime {
    pub agent: Arc<Agent>,
    pub assembly: Assembly,
    /// To whom the conversation may be handed over.
    pub colleagues: Arc<[(Agent, Assembly)]>,
    pub reporter: Reporter,
    /// The worker's own recorder, when it is to record.
    pub recorder: Option<RecorderConfig>,
    /// Listens to the ends of speech, for an agent whose detection is semantic.
    pub turn_model: Option<Arc<SmartTurn>>,
    /// Where sessions are recorded; none: nowhere.
    pub flight: Option<Arc<FlightConfig>>,
    /// By which callers are transferred; none: they are not.
    pub livekit: Option<Arc<LiveKitAccess>>,
    /// Where audio waits that nobody could hear; none: it is lost.
    pub late: Option<LateQueue>,
}

/// One session, ready to be driven.
#[derive(Debug)]
pub struct NewSession {
    pub config: DriverConfig,
    pub providers: Providers,
    pub reporter: SessionReporter,
    /// Only where the people in the room have agreed to it.
    pub recorder: Option<RecorderConfig>,
}

impl AgentRuntime {
    /// # Errors
    /// What a provider cannot do with its settings.
    pub fn new(agent: Agent, endpoints: Endpoints, reporter: Reporter) -> Result<Self, String> {
        let assembly = Assembly::new(&agent, endpoints)?;
        Ok(Self {
            agent: Arc::new(agent),
            assembly,
            colleagues: Arc::default(),
            reporter,
            recorder: None,
            turn_model: None,
            flight: None,
            livekit: None,
            late: None,
        })
    }

    /// With the agents to whom the conversation may be handed over. Must be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// What one of their providers cannot do with its settings.
    pub fn with_colleagues(self, colleagues: Vec<(Agent, Endpoints)>) -> Result<Self, String> {
        let assembled = colleagues.into_iter().map(|(agent, endpoints)| {
            let assembly = Assembly::new(&agent, endpoints)?;
            Ok((agent, assembly))
        });
        Ok(Self { colleagues: assembled.collect::<Result<_, String>>()?, ..self })
    }

    /// With these prices instead of those compiled in.
    #[must_use]
    pub fn priced(mut self, prices: Prices) -> Self {
        self.assembly = self.assembly.priced(prices);
        self
    }

    /// Keeps what the agent often says where the process's settings say. Must be called inside a
    /// tokio runtime.
    #[must_use]
    pub fn with_phrases(mut self, config: &Config) -> Self {
        if config.voice_cache_mb > 0 {
            let cap = config.voice_cache_mb * 1_000_000;
            let disk = Disk::new(config.state_dir.join("phrases"), cap);
            self.assembly = self.assembly.keeping(disk);
        }
        self
    }

    /// Records each session as the process's settings say.
    #[must_use]
    pub fn recorded(mut self, config: &Config) -> Self {
        self.flight = (config.flight != FlightMode::Off).then(|| {
            Arc::new(FlightConfig {
                dir: config.state_dir.join("flights"),
                redacted: config.flight == FlightMode::Redacted,
                max_bytes: MAX_FLIGHT_BYTES,
            })
        });
        self
    }

    /// Loads the turn model where the agent's detection is semantic. Without one the words and the
    /// silence decide, and that is said.
    #[must_use]
    pub fn with_turn_model(mut self, state_dir: &Path) -> Self {
        if self.agent.turn.detection == Detection::Semantic {
            match SmartTurn::load(&SmartTurn::path_in(state_dir)) {
                Ok(model) => self.turn_model = Some(Arc::new(model)),
                Err(error) => tracing::warn!(
                    %error,
                    "no turn model: words and silence decide; `antiphon models import` brings it"
                ),
            }
        }
        self
    }

    /// Keeps what no recogniser could hear, and lets it be understood later, as long as the handle
    /// is held. Without a disk for it that is said, and calls go on.
    pub async fn keeping_late(mut self, state_dir: &Path) -> (Self, Option<AbortOnDropHandle<()>>) {
        match LateQueue::open(state_dir, DEFAULT_CAP).await {
            Ok(queue) => {
                let relay = self.assembly.recognisers().clone();
                let prices = self.assembly.prices().clone();
                let scribe = Scribe::start(queue.clone(), relay, prices, self.reporter.clone());
                self.late = Some(queue);
                (self, Some(scribe))
            }
            Err(error) => {
                tracing::warn!(%error, "what is said while nobody can hear it will be lost");
                (self, None)
            }
        }
    }

    /// A session in `room` (its `sid` tells it from a later room of the same name; empty: unknown);
    /// its metadata goes into the prompt.
    pub fn session(&self, room: &str, sid: &str, metadata: &str, identity: &str) -> NewSession {
        let mut config = driver_config(&self.agent, metadata, identity);
        config.flight.clone_from(&self.flight);
        config.turn_model.clone_from(&self.turn_model);
        config.settings = self.detecting(config.settings);
        let reporter = self.reporter.session(SessionInfo {
            room: room.to_owned(),
            session_key: if sid.is_empty() { config.ids.prefix.clone() } else { sid.to_owned() },
            agent: self.agent.name.clone(),
            started_at_unix_ms: clock::unix_ms(),
        });
        let late = self.late.clone().filter(|_| may_transcribe(metadata));
        config.keeper = late.map(|queue| Keeper::new(queue, reporter.info().clone()));
        let recorder = self.recorder.clone().filter(|_| may_record(metadata));
        let mut providers = self.assembly.session();
        let colleagues = self.colleagues.iter().filter_map(|(agent, assembly)| {
            let (llm, tts) = assembly.speaking(&providers.room)?;
            let settings = self.detecting(driver_config(agent, metadata, identity).settings);
            Some(Colleague { name: agent.name.clone(), settings, llm, tts })
        });
        providers.colleagues = colleagues.collect();
        NewSession { config, providers, reporter, recorder }
    }

    /// Without the turn model words and silence decide.
    fn detecting(&self, mut settings: Settings) -> Settings {
        if self.turn_model.is_none() && settings.detection == Detection::Semantic {
            settings.detection = Detection::Heuristic;
        }
        settings
    }
}

/// Whether the room's metadata say that its people have agreed to a recording, as
/// `POST /api/sessions/{id}/start` writes them.
fn may_record(metadata: &str) -> bool {
    let metadata: serde_json::Value = serde_json::from_str(metadata).unwrap_or_default();
    metadata["consent"]["recording"] == true
}

/// Whether audio may wait for its transcript: unless its people have refused to be transcribed.
fn may_transcribe(metadata: &str) -> bool {
    let metadata: serde_json::Value = serde_json::from_str(metadata).unwrap_or_default();
    metadata["consent"]["transcription"] != false
}

/// A session of this agent under a name of its own; the room's metadata goes into the prompt.
pub fn driver_config(agent: &Agent, metadata: &str, identity: &str) -> DriverConfig {
    let context = RoomContext::from_metadata(metadata).unwrap_or_else(|error| {
        tracing::warn!(%error, "the room's metadata is left out of the prompt");
        RoomContext::default()
    });
    let (settings, problem) = agent.settings_for(&context);
    if let Some(problem) = problem {
        tracing::warn!(%problem, "the prompt is rendered without the room's metadata");
    }
    DriverConfig {
        settings,
        vad: vad(agent),
        ids: SessionIds {
            prefix: uuid::Uuid::new_v4().simple().to_string(),
            agent_identity: identity.to_owned(),
            agent_name: agent.name.clone(),
        },
        turn_model: None,
        flight: None,
        keeper: None,
    }
}

/// Once in speech, a frame below this share of the threshold is silence.
const EXIT_SHARE: f32 = 0.85;

/// How the agent's file tells speech from silence.
pub fn vad(agent: &Agent) -> VadConfig {
    let vad = &agent.vad;
    VadConfig {
        engine: match vad.kind {
            VadKind::Earshot => VadEngine::Earshot,
            VadKind::WebRtc => VadEngine::Webrtc { mode: WebrtcMode::default() },
        },
        threshold: vad.threshold,
        exit_threshold: vad.threshold * EXIT_SHARE,
        min_speech: Duration::from_millis(vad.min_speech_ms.into()),
        min_silence: Duration::from_millis(vad.min_silence_ms.into()),
    }
}
