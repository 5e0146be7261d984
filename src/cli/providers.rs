//! An agent's providers, made of its settings and the process's keys: each kind a chain.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::{
    config::{
        Agent, Prices,
        agent::{
            LlmSettings, McpReach, McpSettings, Streaming, SttSettings, ToolSettings, VoiceSettings,
        },
        env::{Endpoint, Providers as Endpoints, references},
    },
    context::routing::Routing,
    llm::{
        Llm,
        anthropic::{Anthropic, AnthropicConfig},
        chain::{Chain, Haste},
        gemini::{Gemini, GeminiConfig},
        model::{Model, ToolSpec},
        openai::{OpenAi, OpenAiConfig},
    },
    session::driver::Providers,
    stt::{
        Stt,
        assemblyai::{AssemblyAi, AssemblyAiConfig, proto::Options as AssemblyAiOptions},
        deepgram::{Deepgram, DeepgramConfig, proto::Options},
        driver::Holding,
        google::{GoogleSpeech, GoogleSpeechConfig, codec::Options as GoogleOptions},
        openai::{
            OpenAiStt, OpenAiSttConfig,
            proto::Options as OpenAiSttOptions,
            realtime::{Realtime, RealtimeConfig},
        },
        relay::Relay as SttRelay,
    },
    tools::{
        Tool, Toolbox,
        answering::Handy,
        builtin::{Builtins, RoomHandle},
        http::{HttpTool, HttpToolConfig},
        knowledge::Index,
        mcp::{McpConfig, McpServer, Reach},
    },
    tts::{
        Tts,
        cache::{Cached, Phrases, disk::Disk},
        elevenlabs::{
            ElevenLabs, ElevenLabsConfig,
            proto::{DictionaryLocator, VoiceSettings as ElevenLabsVoiceSettings},
        },
        openai::{OpenAiTts, OpenAiTtsConfig},
        relay::Relay,
    },
};

/// A voice that others stand behind is waited for so long: connection, first audio.
const VOICE_HASTE: Duration = Duration::from_secs(1);

/// What all sessions of an agent share.
#[derive(Debug, Clone)]
pub struct Assembly {
    stt: SttRelay,
    speaking: Option<(Chain, Arc<dyn Tts>)>,
    tools: Vec<Tool>,
    builtins: Builtins,
    servers: Arc<[McpServer]>,
    filler: String,
    prices: Prices,
    often: Option<Often>,
}

/// What the agent says again and again, and the voice that says it.
#[derive(Debug, Clone)]
struct Often {
    voice: Arc<dyn Tts>,
    /// Names the voice and all its settings.
    key: String,
    texts: Vec<String>,
}

impl Assembly {
    /// Begins to connect to the agent's MCP servers; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// What a provider or a tool cannot do with its settings.
    pub fn new(agent: &Agent, endpoints: Endpoints) -> Result<Self, String> {
        let (secrets, inherited) = (endpoints.tool_secrets, endpoints.inherited);
        let stt = recogniser(agent, endpoints.stt)?;
        let (speaking, often) = if agent.transcribe_only() {
            (None, None)
        } else {
            let chain = models(agent, endpoints.llm, endpoints.llm_small)?;
            let (voice, often) = voices(agent, endpoints.tts)?;
            (Some((chain, voice)), Some(often))
        };
        let tools = agent.tools.iter().map(|settings| tool(settings, &secrets));
        let knowledge = agent.knowledge.as_deref().map(Index::read).transpose();
        let knowledge = knowledge.map_err(|error| format!("the knowledge folder: {error}"))?;
        // An agent that only transcribes calls nothing.
        let servers = if speaking.is_some() { agent.mcp.as_slice() } else { &[] };
        Ok(Self {
            stt,
            speaking,
            tools: tools.collect::<Result<_, _>>()?,
            builtins: Builtins {
                names: agent.builtin_tools.clone(),
                destinations: Arc::new(agent.transfer_to.clone()),
                knowledge: knowledge.map(Arc::new),
            },
            servers: servers
                .iter()
                .map(|settings| McpServer::start(server(settings, &secrets, &inherited)))
                .collect(),
            filler: agent.tool_filler.clone(),
            prices: Prices::default(),
            often,
        })
    }

    pub const fn recognisers(&self) -> &SttRelay {
        &self.stt
    }

    /// Keeps what the agent often says on `disk`, ready to be heard. Must be called inside a tokio
    /// runtime.
    #[must_use]
    pub fn keeping(mut self, disk: Disk) -> Self {
        if let (Some((_, voice)), Some(often)) = (&mut self.speaking, self.often.take()) {
            let Often { voice: first, key, texts } = often;
            let phrases = Phrases::new(first, key, texts, Some(disk));
            phrases.fetch();
            *voice = Arc::new(Cached::new(voice.clone(), phrases));
        }
        self
    }

    pub const fn prices(&self) -> &Prices {
        &self.prices
    }

    /// With these prices instead of those compiled in.
    #[must_use]
    pub fn priced(self, prices: Prices) -> Self {
        Self { prices, ..self }
    }

    /// Opens connections ahead of a session that is about to begin.
    pub async fn prewarm(&self) {
        let speaking = async {
            if let Some((chain, voice)) = &self.speaking {
                futures_util::join!(chain.prewarm(), voice.prewarm());
            }
        };
        futures_util::join!(self.stt.prewarm(), speaking);
    }

    /// The providers of one session, with its own tools and its own memory of their results.
    pub fn session(&self) -> Providers {
        let room = RoomHandle::default();
        Providers {
            stt: Arc::new(self.stt.clone()),
            speaking: self.speaking(&room),
            colleagues: Arc::default(),
            room,
            prices: self.prices.clone(),
        }
    }

    /// The model with its tools, which act on `room`, and the voice; none: it only transcribes.
    pub fn speaking(&self, room: &RoomHandle) -> Option<(Arc<dyn Llm>, Arc<dyn Tts>)> {
        let tools = self.tools.iter().cloned().chain(self.builtins.tools(room));
        let tools = Toolbox::new(tools.collect()).with_servers(self.servers.clone());
        self.speaking.clone().map(|(chain, voice)| {
            let llm: Arc<dyn Llm> = if tools.is_empty() {
                Arc::new(chain)
            } else {
                Arc::new(Handy::new(chain, tools, &self.filler))
            };
            (llm, voice)
        })
    }
}

/// The providers of one session.
///
/// # Errors
/// What a provider or a tool cannot do with its settings.
pub fn providers(agent: &Agent, endpoints: Endpoints) -> Result<Providers, String> {
    Ok(Assembly::new(agent, endpoints)?.session())
}

/// Puts secrets in the places of values that refer to them.
fn fill(
    pairs: &[(String, String)],
    secrets: &BTreeMap<String, SecretString>,
) -> Vec<(String, SecretString)> {
    let fill = |value: &str| {
        references(value).fold(value.to_owned(), |value, name| {
            let secret = secrets.get(name).map_or("", |secret| secret.expose_secret());
            value.replace(&format!("${{{name}}}"), secret)
        })
    };
    pairs.iter().map(|(name, value)| (name.clone(), fill(value).into())).collect()
}

fn server(
    settings: &McpSettings,
    secrets: &BTreeMap<String, SecretString>,
    inherited: &[(String, String)],
) -> McpConfig {
    let reach = match &settings.reach {
        McpReach::Process { command, args, env } => Reach::Process {
            command: command.clone(),
            args: args.clone(),
            env: fill(env, secrets),
            inherited: inherited.to_vec(),
        },
        McpReach::Http { url, headers } => {
            Reach::Http { url: url.clone(), headers: fill(headers, secrets) }
        }
    };
    McpConfig {
        name: settings.name.clone(),
        reach,
        only: settings.tools.clone(),
        timeout: settings.timeout,
        outlive_interruption: settings.outlive_interruption.clone(),
    }
}

fn tool(settings: &ToolSettings, secrets: &BTreeMap<String, SecretString>) -> Result<Tool, String> {
    let method = settings.method.parse().map_err(|_| "no HTTP method".to_owned())?;
    let tool = HttpTool::new(HttpToolConfig {
        method,
        url: settings.url.clone(),
        headers: fill(&settings.headers, secrets),
        sends_body: settings.sends_body,
        max_bytes: settings.max_bytes,
        allow_private: settings.allow_private,
    });
    Ok(Tool {
        spec: ToolSpec {
            name: settings.name.clone(),
            description: settings.description.clone(),
            parameters: settings.parameters.clone(),
        },
        run: Arc::new(tool.map_err(|error| format!("the tool {}: {error}", settings.name))?),
        timeout: settings.timeout,
        outlives_interruption: settings.outlives_interruption,
        waits_for_speech: false,
    })
}

/// The chain of language models.
///
/// # Errors
/// What a provider cannot do with its settings.
pub fn models(
    agent: &Agent,
    endpoints: Vec<Endpoint>,
    small: Option<Endpoint>,
) -> Result<Chain, String> {
    let models = agent.llm.chain().zip(endpoints).map(|(settings, at)| model(settings, at));
    // The rest of the session's wait is for those behind.
    let longest = agent.llm.first_token_timeout.mul_f64(0.7);
    let haste = Haste::default();
    let haste = Haste { first_token: haste.first_token.min(longest), ..haste };
    let chain = Chain::new(models.collect::<Result<_, _>>()?, haste).ok_or_else(none)?;
    Ok(match (&agent.llm.small, small) {
        (Some(settings), Some(at)) if agent.llm.routing == Routing::Auto => {
            let small = Chain::new(vec![model(settings, at)?], haste).ok_or_else(none)?;
            chain.with_small(small)
        }
        _ => chain,
    })
}

fn none() -> String {
    "there is no provider".into()
}

pub(super) fn model(settings: &LlmSettings, at: Endpoint) -> Result<Arc<dyn Model>, String> {
    let Endpoint { base_url, api_key } = at;
    let (base_url, model) = (base_url.to_string(), &settings.model);
    let LlmSettings { temperature, max_tokens, .. } = *settings;
    let made: Result<Arc<dyn Model>, _> = match settings.provider.as_str() {
        "anthropic" => Anthropic::new(AnthropicConfig {
            base_url,
            temperature,
            max_tokens,
            ..AnthropicConfig::new(api_key, model)
        })
        .map(|it| Arc::new(it) as _),
        "google" => Gemini::new(GeminiConfig {
            base_url,
            temperature,
            max_tokens,
            ..GeminiConfig::new(api_key, model)
        })
        .map(|it| Arc::new(it) as _),
        _ => OpenAi::new(OpenAiConfig {
            base_url,
            temperature,
            max_tokens: Some(max_tokens),
            ..OpenAiConfig::new(api_key, model)
        })
        .map(|it| Arc::new(it) as _),
    };
    made.map_err(|error| format!("{}: {error}", settings.provider))
}

fn voices(agent: &Agent, endpoints: Vec<Endpoint>) -> Result<(Arc<dyn Tts>, Often), String> {
    let last = agent.voice.fallback.len();
    let limit = agent.voice.first_audio_timeout;
    let voices = agent
        .voice
        .chain()
        .zip(endpoints)
        .enumerate()
        .map(|(nth, (settings, at))| voice(settings, at, nth == last, limit));
    let voices: Vec<Arc<dyn Tts>> = voices.collect::<Result<_, _>>()?;
    let relay = |voices| {
        let relay = Relay::new(voices).ok_or_else(none)?;
        Ok::<_, String>(relay.with_pronunciations(agent.voice.pronunciations.clone()))
    };
    let first: Vec<Arc<dyn Tts>> = voices.first().cloned().into_iter().collect();
    let alone = VoiceSettings { fallback: Vec::new(), ..agent.voice.clone() };
    let greeting = agent.greeting.as_ref().map(|greeting| greeting.text.clone());
    let others = [agent.farewell.clone(), agent.away_prompt.clone()];
    let always = [agent.apology.clone(), agent.tool_filler.clone()];
    let often = Often {
        voice: Arc::new(relay(first)?.for_keeps()),
        // Another form in another version is only spoken anew.
        key: format!("{alone:?}"),
        texts: greeting.into_iter().chain(others.into_iter().flatten()).chain(always).collect(),
    };
    Ok((Arc::new(relay(voices)?), often))
}

/// Two tries of the last voice, or one of a voice before it, must fit into the session's limit for
/// the first audio.
pub(super) fn voice(
    settings: &VoiceSettings,
    at: Endpoint,
    is_last: bool,
    limit: Duration,
) -> Result<Arc<dyn Tts>, String> {
    let base_url = at.base_url.to_string();
    let audio_timeout = if is_last {
        (limit.saturating_sub(Duration::from_millis(200)) / 2).min(Duration::from_millis(2_500))
    } else {
        VOICE_HASTE.min(limit / 3)
    };
    if settings.provider == "openai" {
        let made = OpenAiTts::new(OpenAiTtsConfig {
            base_url,
            model: settings.model.clone(),
            instructions: settings.instructions.clone(),
            audio_timeout,
            retries: u32::from(is_last),
            ..OpenAiTtsConfig::new(at.api_key, &settings.voice_id)
        });
        return made.map(|it| Arc::new(it) as _).map_err(|error| format!("openai: {error}"));
    }
    let config = ElevenLabsConfig::new(at.api_key, &settings.voice_id);
    let made = ElevenLabs::new(ElevenLabsConfig {
        base_url,
        model: settings.model.clone(),
        output_rate: settings.sample_rate,
        voice: ElevenLabsVoiceSettings {
            stability: settings.stability,
            similarity_boost: settings.similarity_boost,
            ..ElevenLabsVoiceSettings::default()
        },
        dictionaries: settings
            .dictionaries
            .iter()
            .map(|(id, version)| DictionaryLocator {
                pronunciation_dictionary_id: id.clone(),
                version_id: version.clone(),
            })
            .collect(),
        language: settings.language.clone(),
        multi: settings.streaming == Streaming::Multi,
        auto_mode: settings.auto_mode,
        audio_timeout,
        connect_budget: if is_last { config.connect_budget } else { audio_timeout },
        resends: if is_last { config.resends } else { 0 },
        ..config
    });
    made.map(|it| Arc::new(it) as _).map_err(|error| format!("elevenlabs: {error}"))
}

fn recogniser(agent: &Agent, endpoints: Vec<Endpoint>) -> Result<SttRelay, String> {
    let made = agent.stt.chain().zip(endpoints).map(|(settings, at)| ears(settings, at));
    let made: Vec<Arc<dyn Stt>> = made.collect::<Result<_, _>>()?;
    SttRelay::new(made).ok_or_else(none)
}

pub(super) fn ears(settings: &SttSettings, at: Endpoint) -> Result<Arc<dyn Stt>, String> {
    if settings.provider == "assemblyai" {
        return Ok(Arc::new(AssemblyAi::new(AssemblyAiConfig {
            api_key: at.api_key,
            base_url: at.base_url,
            options: AssemblyAiOptions {
                model: settings.model.clone(),
                format_turns: settings.punctuate,
                keyterms: settings.keyterms.clone(),
            },
            holding: Holding::default(),
        })));
    }
    if settings.provider == "google" {
        let made = GoogleSpeech::new(GoogleSpeechConfig {
            key: google_key(at.api_key)?,
            base_url: at.base_url,
            options: GoogleOptions {
                model: settings.model.clone(),
                language: settings.language.clone(),
                punctuate: settings.punctuate,
                keyterms: settings.keyterms.clone(),
            },
            holding: Holding::default(),
        });
        return made.map(|it| Arc::new(it) as _).map_err(|error| format!("google: {error}"));
    }
    if settings.provider == "openai-realtime" {
        return Ok(Arc::new(Realtime::new(RealtimeConfig {
            api_key: at.api_key,
            base_url: at.base_url,
            options: OpenAiSttOptions {
                model: settings.model.clone(),
                language: settings.language.clone(),
                keyterms: settings.keyterms.clone(),
            },
            holding: Holding::default(),
        })));
    }
    if settings.provider == "openai" {
        let made = OpenAiStt::new(OpenAiSttConfig {
            base_url: at.base_url.to_string(),
            options: OpenAiSttOptions {
                model: settings.model.clone(),
                language: settings.language.clone(),
                keyterms: settings.keyterms.clone(),
            },
            ..OpenAiSttConfig::new(at.api_key, &settings.model)
        });
        return made.map(|it| Arc::new(it) as _).map_err(|error| format!("openai: {error}"));
    }
    Ok(Arc::new(Deepgram::new(DeepgramConfig {
        options: Options {
            model: settings.model.clone(),
            language: settings.language.clone(),
            endpointing_ms: settings.endpointing_ms,
            utterance_end_ms: settings.utterance_end_ms,
            smart_format: settings.smart_format,
            punctuate: settings.punctuate,
            keyterms: settings.keyterms.clone(),
            opt_out_of_training: settings.opt_out_of_training,
        },
        ..DeepgramConfig::new(at.api_key, at.base_url)
    })))
}

/// The service account's file, where the key is the path of one.
fn google_key(key: SecretString) -> Result<SecretString, String> {
    let text = key.expose_secret().trim();
    if text.starts_with('{') || Path::new(text).extension().is_none_or(|it| it != "json") {
        return Ok(key);
    }
    std::fs::read_to_string(text)
        .map(SecretString::from)
        .map_err(|error| format!("google: GOOGLE_SPEECH_KEY names {text}, but: {error}"))
}

/// Endpoints of provider doubles behind `base_url` (with `/v1`): any key will do.
pub fn double_endpoints(agent: &Agent, base_url: &Url) -> Endpoints {
    let endpoint = |provider: &str, is_llm: bool| {
        let version = match provider {
            "google" if is_llm => "v1beta",
            "assemblyai" => "v3",
            _ => "v1",
        };
        Endpoint {
            base_url: crate::net::url::with_version(base_url, version),
            api_key: SecretString::from("double"),
        }
    };
    let stt = agent.stt.chain().map(|it| match it.provider.as_str() {
        "google" => {
            let mut google = endpoint("google", false);
            google.base_url.set_path("/projects/double/locations/global");
            google
        }
        provider => endpoint(provider, false),
    });
    let stt = stt.collect();
    if agent.transcribe_only() {
        return Endpoints { stt, ..Endpoints::default() };
    }
    Endpoints {
        stt,
        llm: agent.llm.chain().map(|it| endpoint(&it.provider, true)).collect(),
        llm_small: agent.llm.small.as_ref().map(|it| endpoint(&it.provider, true)),
        tts: agent.voice.chain().map(|it| endpoint(&it.provider, false)).collect(),
        ..Endpoints::default()
    }
}
