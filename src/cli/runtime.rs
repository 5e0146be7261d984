//! An agent file made ready to run: its providers, its settings, its reporter.

use std::{path::Path, sync::Arc, time::Duration};

use secrecy::SecretString;
use url::Url;

use crate::{
    audio::{
        smart_turn::SmartTurn,
        vad::{VadConfig, VadEngine, WebrtcMode},
    },
    clock,
    config::{
        Agent, RoomContext,
        agent::{Streaming, VadKind},
        env::{Config, Endpoint, FlightMode, Providers as Endpoints},
    },
    flight::FlightConfig,
    llm::openai::{OpenAi, OpenAiConfig},
    session::{
        driver::{DriverConfig, Providers},
        machine::SessionIds,
        settings::Detection,
    },
    stt::deepgram::{Deepgram, DeepgramConfig, proto::Options},
    transcript::reporter::{Reporter, SessionInfo, SessionReporter},
    tts::elevenlabs::{ElevenLabs, ElevenLabsConfig, proto::VoiceSettings},
};

/// Longest flight: many hours of a call.
const MAX_FLIGHT_BYTES: u64 = 8 * 1024 * 1024;

/// What all sessions of one agent share.
#[derive(Debug, Clone)]
pub struct AgentRuntime {
    pub agent: Arc<Agent>,
    pub providers: Providers,
    pub reporter: Reporter,
    /// Listens to the ends of speech, for an agent whose detection is semantic.
    pub turn_model: Option<Arc<SmartTurn>>,
    /// Where sessions are recorded; none: nowhere.
    pub flight: Option<Arc<FlightConfig>>,
}

/// One session, ready to be driven.
#[derive(Debug)]
pub struct NewSession {
    pub config: DriverConfig,
    pub providers: Providers,
    pub reporter: SessionReporter,
}

impl AgentRuntime {
    /// # Errors
    /// What a provider cannot do with its settings.
    pub fn new(agent: Agent, endpoints: Endpoints, reporter: Reporter) -> Result<Self, String> {
        let providers = providers(&agent, endpoints)?;
        Ok(Self { agent: Arc::new(agent), providers, reporter, turn_model: None, flight: None })
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

    /// A session in `room` (its `sid` tells it from a later room of the same name; empty: unknown);
    /// its metadata goes into the prompt.
    pub fn session(&self, room: &str, sid: &str, metadata: &str, identity: &str) -> NewSession {
        let mut config = driver_config(&self.agent, metadata, identity);
        config.flight.clone_from(&self.flight);
        config.turn_model.clone_from(&self.turn_model);
        if config.turn_model.is_none() && config.settings.detection == Detection::Semantic {
            config.settings.detection = Detection::Heuristic;
        }
        let reporter = self.reporter.session(SessionInfo {
            room: room.to_owned(),
            session_key: if sid.is_empty() { config.ids.prefix.clone() } else { sid.to_owned() },
            agent: self.agent.name.clone(),
            started_at_unix_ms: clock::unix_ms(),
        });
        NewSession { config, providers: self.providers.clone(), reporter }
    }
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
            agent_name: agent.label.clone(),
        },
        turn_model: None,
        flight: None,
    }
}

/// Endpoints of provider doubles: any key will do.
pub fn double_endpoints(agent: &Agent, base_url: &Url) -> Endpoints {
    let endpoint =
        || Endpoint { base_url: base_url.clone(), api_key: SecretString::from("double") };
    let speaks = !agent.transcribe_only();
    Endpoints { stt: endpoint(), llm: speaks.then(endpoint), tts: speaks.then(endpoint) }
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

/// The agent's providers.
///
/// # Errors
/// What a provider cannot do with its settings.
pub fn providers(agent: &Agent, endpoints: Endpoints) -> Result<Providers, String> {
    let Endpoints { stt, llm, tts } = endpoints;
    let stt = Deepgram::new(DeepgramConfig {
        options: Options {
            model: agent.stt.model.clone(),
            language: agent.stt.language.clone(),
            endpointing_ms: agent.stt.endpointing_ms,
            smart_format: agent.stt.smart_format,
            punctuate: agent.stt.punctuate,
            keyterms: agent.stt.keyterms.clone(),
            ..Options::default()
        },
        ..DeepgramConfig::new(stt.api_key, stt.base_url)
    });
    let speaking = match (llm, tts) {
        (Some(llm), Some(tts)) => {
            let llm = OpenAi::new(OpenAiConfig {
                base_url: llm.base_url.into(),
                temperature: agent.llm.temperature,
                max_tokens: Some(agent.llm.max_tokens),
                ..OpenAiConfig::new(llm.api_key, &agent.llm.model)
            })
            .map_err(|error| error.to_string())?;
            let tts = ElevenLabs::new(ElevenLabsConfig {
                base_url: tts.base_url.into(),
                model: agent.voice.model.clone(),
                output_rate: agent.voice.sample_rate,
                voice: VoiceSettings {
                    stability: agent.voice.stability,
                    similarity_boost: agent.voice.similarity_boost,
                    ..VoiceSettings::default()
                },
                language: agent.voice.language.clone(),
                multi: agent.voice.streaming == Streaming::Multi,
                ..ElevenLabsConfig::new(tts.api_key, &agent.voice.voice_id)
            })
            .map_err(|error| error.to_string())?;
            let speaking: (Arc<dyn crate::llm::Llm>, Arc<dyn crate::tts::Tts>) =
                (Arc::new(llm), Arc::new(tts));
            Some(speaking)
        }
        _ => None,
    };
    Ok(Providers { stt: Arc::new(stt), speaking })
}
