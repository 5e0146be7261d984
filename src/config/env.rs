//! The process's settings: a flag overrides the environment, which overrides antiphon.toml, which
//! overrides the default.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use secrecy::SecretString;
use url::Url;

use crate::config::{
    agent::Agent,
    control::ControlSettings,
    error::{ConfigErrors, Fault, Origin, did_you_mean},
    names::{self, Setting},
    resolver::Resolver,
    source::SourceFile,
};

pub const DEEPGRAM_BASE_URL: &str = "https://api.deepgram.com/v1";
pub const OPENAI_BASE_URL: &str = "https://api.openai.com/v1";
pub const ANTHROPIC_BASE_URL: &str = "https://api.anthropic.com/v1";
pub const GOOGLE_BASE_URL: &str = "https://generativelanguage.googleapis.com/v1beta";
pub const GOOGLE_SPEECH_BASE_URL: &str = "https://speech.googleapis.com";
pub const ASSEMBLYAI_BASE_URL: &str = "https://streaming.assemblyai.com/v3";
pub const ELEVENLABS_BASE_URL: &str = "https://api.elevenlabs.io/v1";

/// What processes that antiphon starts have of its environment: where programs are found and how
/// they work, and no key.
const INHERITED: [&str; 12] = [
    "HOME",
    "LANG",
    "LC_ALL",
    "LOGNAME",
    "PATH",
    "SHELL",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
];

/// Everything a configuration is made from. Nothing else is read: the same sources give the same
/// configuration.
#[derive(Debug, Default, Clone)]
pub struct Sources {
    /// Given flags, by the setting's environment name.
    pub flags: BTreeMap<&'static str, String>,
    pub vars: BTreeMap<String, String>,
    /// antiphon.toml, if there is one.
    pub file: Option<SourceFile>,
    /// A file that was asked for and cannot be used.
    pub faults: Vec<Fault>,
}

/// Access to a LiveKit server, complete.
#[derive(Debug, Clone)]
pub struct LiveKitAccess {
    /// ws, wss, http or https; the libraries take the one they need.
    pub url: Url,
    pub api_key: String,
    pub api_secret: SecretString,
}

impl LiveKitAccess {
    /// For signalling and the worker's connection: ws(s), without a slash at the end.
    pub fn ws_url(&self) -> String {
        with_scheme(&self.url, "ws", "wss")
    }

    /// For the server API: http(s), without a slash at the end.
    pub fn http_url(&self) -> String {
        with_scheme(&self.url, "http", "https")
    }
}

fn with_scheme(url: &Url, plain: &str, secure: &str) -> String {
    let scheme = if matches!(url.scheme(), "https" | "wss") { secure } else { plain };
    let rest = url.as_str().split_once(':').map_or("", |(_, rest)| rest);
    format!("{scheme}:{}", rest.trim_end_matches('/'))
}

/// What of LiveKit is set; [`Config::require_livekit`] makes it whole.
#[derive(Debug, Clone, Default)]
pub struct LiveKit {
    pub url: Option<Url>,
    pub api_key: Option<String>,
    pub api_secret: Option<SecretString>,
}

/// What of a provider is set.
#[derive(Debug, Clone, Default)]
pub struct Provider {
    pub api_key: Option<SecretString>,
    /// Carries the API's version; None: the provider's own.
    pub base_url: Option<Url>,
}

/// Where to reach a provider and with which key.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub base_url: Url,
    /// Empty where an OpenAI-compatible server of one's own needs none.
    pub api_key: SecretString,
}

/// The providers that an agent uses: of each kind the preferred one first, then its fallbacks.
#[derive(Debug, Clone, Default)]
pub struct Providers {
    pub stt: Vec<Endpoint>,
    /// Empty for an agent that only transcribes.
    pub llm: Vec<Endpoint>,
    /// The one for simple turns.
    pub llm_small: Option<Endpoint>,
    /// Empty for an agent that only transcribes.
    pub tts: Vec<Endpoint>,
    /// What `${TOOL_…}` in the headers and environments of tools stands for.
    pub tool_secrets: BTreeMap<String, SecretString>,
    /// What MCP servers' processes have of this one's environment.
    pub inherited: Vec<(String, String)>,
}

/// What the environment changes about whichever agent runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentOverrides {
    pub greeting: Option<String>,
    pub silence_threshold: Option<Duration>,
    pub min_interruption: Option<Duration>,
    /// An agent with tools begins no answer early, whatever this says.
    pub preemptive_generation: Option<bool>,
    pub elevenlabs_voice_id: Option<String>,
    pub elevenlabs_model: Option<String>,
}

/// Whether sessions are recorded for [`flight`](crate::flight) replays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlightMode {
    #[default]
    Off,
    /// Without the words.
    Redacted,
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Human on a terminal, else JSON.
    #[default]
    Auto,
    Human,
    Json,
}

/// The process's settings, typed and checked. What only some commands need is optional here, and
/// required by `require_*`.
#[derive(Debug, Clone)]
pub struct Config {
    pub livekit: LiveKit,
    pub deepgram: Provider,
    pub openai: Provider,
    pub anthropic: Provider,
    pub google: Provider,
    pub google_speech: Provider,
    pub assemblyai: Provider,
    pub elevenlabs: Provider,
    /// The agent file: `assistant` is agents/assistant.toml.
    pub agent: String,
    /// As registered with LiveKit; empty: automatic dispatch.
    pub agent_name: String,
    pub agents_dir: Option<PathBuf>,
    pub overrides: AgentOverrides,
    /// Every variable that begins with `TOOL_`: for the headers and environments of tools.
    pub tool_secrets: BTreeMap<String, SecretString>,
    /// What MCP servers' processes have of this one's environment.
    pub inherited: Vec<(String, String)>,
    pub bind: IpAddr,
    /// The worker's health and metrics; 0: any free port.
    pub http_port: u16,
    /// The control endpoint; 0: any free port.
    pub control_port: u16,
    /// Where the worker reports to; None: transcripts wait in the outbox.
    pub control_url: Option<Url>,
    /// The service token that worker and control endpoint share.
    pub control_token: Option<SecretString>,
    pub control: ControlSettings,
    /// A secret, because a server's URL may carry a password.
    pub database_url: SecretString,
    /// Outbox and database live here.
    pub state_dir: PathBuf,
    /// Fixes the reported load, 0..=1.
    pub load: Option<f32>,
    /// Jobs at the same time, if the load allows that many.
    pub max_jobs: usize,
    pub flight: FlightMode,
    /// A file of prices of one's own.
    pub prices: Option<PathBuf>,
    /// What an agent often says is kept on disk, up to this; 0: nothing is.
    pub voice_cache_mb: u64,
    /// How long a drain lets calls go on.
    pub drain_timeout: Duration,
    /// A tracing filter, such as `info` or `antiphon=debug`; None: what an operator wants to see.
    pub log: Option<String>,
    pub log_format: LogFormat,
    /// Worth saying, not worth stopping for.
    pub warnings: Vec<Fault>,
}

impl Config {
    /// A configuration from environment variables alone.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn from_vars<K: Into<String>, V: Into<String>>(
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigErrors> {
        let vars = vars.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Self::load(&Sources { vars, ..Sources::default() })
    }

    /// # Errors
    /// Every fault at once.
    pub fn load(sources: &Sources) -> Result<Self, ConfigErrors> {
        let (config, faults) = Self::resolve(sources);
        faults.or(config)
    }

    /// As far as it goes: the faulty settings have their defaults, so that the rest of the
    /// configuration can be looked at too.
    pub(crate) fn resolve(sources: &Sources) -> (Self, ConfigErrors) {
        let mut resolver = Resolver::new(sources);
        let r = &mut resolver;
        let state_dir = r
            .text(&names::STATE_DIR)
            .map_or_else(|| default_state_dir(&sources.vars), PathBuf::from);
        let config = Self {
            livekit: LiveKit {
                url: r.url(&names::LIVEKIT_URL, &["ws", "wss", "http", "https"]),
                api_key: r.text(&names::LIVEKIT_API_KEY),
                api_secret: r.secret(&names::LIVEKIT_API_SECRET),
            },
            deepgram: r.provider(&names::DEEPGRAM_API_KEY, &names::DEEPGRAM_BASE_URL),
            openai: r.provider(&names::OPENAI_API_KEY, &names::OPENAI_BASE_URL),
            anthropic: r.provider(&names::ANTHROPIC_API_KEY, &names::ANTHROPIC_BASE_URL),
            google: r.provider(&names::GOOGLE_API_KEY, &names::GOOGLE_BASE_URL),
            google_speech: r.provider(&names::GOOGLE_SPEECH_KEY, &names::GOOGLE_SPEECH_BASE_URL),
            assemblyai: r.provider(&names::ASSEMBLYAI_API_KEY, &names::ASSEMBLYAI_BASE_URL),
            elevenlabs: r.provider(&names::ELEVENLABS_API_KEY, &names::ELEVENLABS_BASE_URL),
            agent: r
                .parse(&names::AGENT, "an agent's name: letters, digits, - and _", |text| {
                    Agent::is_name(text).then(|| text.to_owned())
                })
                .unwrap_or_else(|| "assistant".into()),
            agent_name: r.agent_name(),
            agents_dir: r.text(&names::AGENTS_DIR).map(PathBuf::from),
            overrides: AgentOverrides {
                greeting: r.text(&names::GREETING),
                silence_threshold: r.ms(&names::SILENCE_THRESHOLD_MS),
                min_interruption: r.ms(&names::MIN_INTERRUPTION_MS),
                preemptive_generation: r
                    .parse(&names::PREEMPTIVE, "true or false", |text| text.parse().ok()),
                elevenlabs_voice_id: r.text(&names::ELEVENLABS_VOICE_ID),
                elevenlabs_model: r.text(&names::ELEVENLABS_MODEL_ID),
            },
            tool_secrets: sources
                .vars
                .iter()
                .filter(|(name, value)| name.starts_with("TOOL_") && !value.is_empty())
                .map(|(name, value)| (name.clone(), SecretString::from(value.clone())))
                .collect(),
            inherited: INHERITED
                .iter()
                .filter_map(|name| sources.vars.get_key_value(*name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            bind: r
                .parse(&names::BIND, "an IP address", |text| text.parse().ok())
                .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            http_port: r.port(&names::HTTP_PORT).unwrap_or(8081),
            control_port: r.port(&names::CONTROL_PORT).unwrap_or(8080),
            control_url: r.url(&names::CONTROL_URL, &["http", "https"]),
            control_token: r.secret(&names::CONTROL_TOKEN),
            control: ControlSettings::resolve(r, &state_dir),
            database_url: r.database_url(&state_dir),
            load: r.parse(&names::LOAD, "a number from 0 to 1", |text| {
                text.parse().ok().filter(|load| (0.0..=1.0).contains(load))
            }),
            max_jobs: r
                .parse(&names::MAX_JOBS, "a whole number from 1 to 10000", |text| {
                    text.parse().ok().filter(|jobs| (1..=10_000).contains(jobs))
                })
                .unwrap_or(100),
            drain_timeout: r
                .parse(&names::DRAIN_TIMEOUT_S, "seconds, from 0 to 86400", |text| {
                    text.parse().ok().filter(|seconds| *seconds <= 86_400)
                })
                .map_or(Duration::from_mins(10), Duration::from_secs),
            log: r.text(&names::LOG),
            log_format: r
                .parse(&names::LOG_FORMAT, "auto, human or json", |text| match text {
                    "auto" => Some(LogFormat::Auto),
                    "human" => Some(LogFormat::Human),
                    "json" => Some(LogFormat::Json),
                    _ => None,
                })
                .unwrap_or_default(),
            flight: r
                .parse(&names::FLIGHT, "off, redacted or full", |text| match text {
                    "off" => Some(FlightMode::Off),
                    "redacted" => Some(FlightMode::Redacted),
                    "full" => Some(FlightMode::Full),
                    _ => None,
                })
                .unwrap_or_default(),
            prices: r.text(&names::PRICES).map(PathBuf::from),
            voice_cache_mb: r
                .parse(&names::VOICE_CACHE_MB, "megabytes, from 0 to 100000", |text| {
                    text.parse().ok().filter(|megabytes| *megabytes <= 100_000)
                })
                .unwrap_or(64),
            state_dir,
            warnings: unknown_variables(&sources.vars),
        };
        if config.control_url.is_some() && config.control_token.is_none() {
            resolver.errors.push(required(&names::CONTROL_TOKEN, "to report to the control URL"));
        }
        (config, resolver.errors)
    }

    /// # Errors
    /// Each of the three that is not set.
    pub fn require_livekit(&self) -> Result<LiveKitAccess, ConfigErrors> {
        let LiveKit { url, api_key, api_secret } = &self.livekit;
        let mut errors = ConfigErrors::default();
        for (setting, missing) in [
            (&names::LIVEKIT_URL, url.is_none()),
            (&names::LIVEKIT_API_KEY, api_key.is_none()),
            (&names::LIVEKIT_API_SECRET, api_secret.is_none()),
        ] {
            if missing {
                errors.push(required(setting, "to reach the LiveKit server"));
            }
        }
        match (url, api_key, api_secret) {
            (Some(url), Some(api_key), Some(api_secret)) => Ok(LiveKitAccess {
                url: url.clone(),
                api_key: api_key.clone(),
                api_secret: api_secret.clone(),
            }),
            _ => Err(errors),
        }
    }

    /// The keys and addresses of the providers that this agent uses.
    ///
    /// # Errors
    /// Each key that is not set.
    pub fn require_providers(&self, agent: &Agent) -> Result<Providers, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        let mut missing = Vec::new();
        let mut endpoint = |name: &str, own: Option<&Url>, keyless: bool| {
            let (provider, key, default) = self.known(name);
            let base_url = provider.base_url.as_ref().or(own);
            let is_missing = provider.api_key.is_none() && !(keyless && base_url.is_some());
            if is_missing && !missing.contains(&key.env) {
                missing.push(key.env);
                errors.push(required(key, &format!("by the agent `{}`", agent.name)));
            }
            Some(Endpoint {
                base_url: base_url.cloned().or_else(|| Url::parse(default).ok())?,
                api_key: provider.api_key.clone().unwrap_or_default(),
            })
        };
        let stt = agent.stt.chain();
        let stt = stt.filter_map(|it| endpoint(recogniser(&it.provider), None, false)).collect();
        let (mut llm, mut llm_small, mut tts) = (Vec::new(), None, Vec::new());
        if !agent.transcribe_only() {
            llm = agent
                .llm
                .chain()
                .filter_map(|it| endpoint(&it.provider, it.base_url.as_ref(), true))
                .collect();
            llm_small = agent
                .llm
                .small
                .as_ref()
                .and_then(|it| endpoint(&it.provider, it.base_url.as_ref(), true));
            tts =
                agent.voice.chain().filter_map(|it| endpoint(&it.provider, None, false)).collect();
        }
        let tools = agent.tools.iter().map(|tool| (&tool.name, tool.headers.as_slice()));
        let servers = agent.mcp.iter().map(|server| (&server.name, server.reach.values()));
        for (owner, values) in tools.chain(servers) {
            for name in values.iter().flat_map(|(_, value)| references(value)) {
                if !self.tool_secrets.contains_key(name) {
                    let problem = format!("is required by the tool `{owner}`");
                    let fault = Fault::new(name, Origin::Unset, problem);
                    errors.push(fault.help("a variable of the environment; it begins with TOOL_"));
                }
            }
        }
        let (tool_secrets, inherited) = (self.tool_secrets.clone(), self.inherited.clone());
        errors.or(Providers { stt, llm, llm_small, tts, tool_secrets, inherited })
    }

    /// Where a provider is reached and with which key; None without one. `own` is an address that
    /// the agent file names, where a key may be left out.
    pub fn endpoint(&self, provider: &str, own: Option<&Url>) -> Option<Endpoint> {
        let (set, _, default) = self.known(provider);
        let base_url = set.base_url.as_ref().or(own);
        if set.api_key.is_none() && !(own.is_some() || provider == "openai" && base_url.is_some()) {
            return None;
        }
        Some(Endpoint {
            base_url: base_url.cloned().or_else(|| Url::parse(default).ok())?,
            api_key: set.api_key.clone().unwrap_or_default(),
        })
    }

    /// What is set for a provider, the name of its key, and where it is found by default.
    fn known(&self, provider: &str) -> (&Provider, &'static Setting, &'static str) {
        match provider {
            "deepgram" => (&self.deepgram, &names::DEEPGRAM_API_KEY, DEEPGRAM_BASE_URL),
            "anthropic" => (&self.anthropic, &names::ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL),
            "google" => (&self.google, &names::GOOGLE_API_KEY, GOOGLE_BASE_URL),
            "google-speech" => {
                (&self.google_speech, &names::GOOGLE_SPEECH_KEY, GOOGLE_SPEECH_BASE_URL)
            }
            "assemblyai" => (&self.assemblyai, &names::ASSEMBLYAI_API_KEY, ASSEMBLYAI_BASE_URL),
            "elevenlabs" => (&self.elevenlabs, &names::ELEVENLABS_API_KEY, ELEVENLABS_BASE_URL),
            _ => (&self.openai, &names::OPENAI_API_KEY, OPENAI_BASE_URL),
        }
    }

    /// # Errors
    /// When the service token is not set.
    pub fn require_control_token(&self) -> Result<SecretString, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        if self.control_token.is_none() {
            errors.push(required(&names::CONTROL_TOKEN, "to let workers report"));
        }
        errors.or(self.control_token.clone().unwrap_or_default())
    }
}

/// By what name a recogniser's settings go: Google's has others than its models.
pub fn recogniser(provider: &str) -> &str {
    if provider == "google" { "google-speech" } else { provider }
}

/// The names in `${…}`.
pub fn references(text: &str) -> impl Iterator<Item = &str> {
    text.split("${").skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name)
}

fn required(setting: &Setting, purpose: &str) -> Fault {
    let fault = Fault::new(setting.env, Origin::Unset, format!("is required {purpose}"));
    match setting.file {
        Some(file) => fault
            .help(format!("set {} in the environment, or `{file}` in antiphon.toml", setting.env)),
        None => fault.help(format!("set {} in the environment", setting.env)),
    }
}

/// `$XDG_STATE_HOME/antiphon`, else `~/.local/state/antiphon`, else `./antiphon-state`.
fn default_state_dir(vars: &BTreeMap<String, String>) -> PathBuf {
    let absolute =
        |name: &str| vars.get(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map_or_else(|| PathBuf::from("antiphon-state"), |state| state.join("antiphon"))
}

/// A variable with our prefix that nothing reads is most likely a slip. It is no fault: an
/// orchestrator may set some of its own (`ANTIPHON_SERVICE_HOST` in Kubernetes).
fn unknown_variables(vars: &BTreeMap<String, String>) -> Vec<Fault> {
    let known = || names::ALL.iter().map(|setting| setting.env);
    vars.keys()
        .filter(|name| name.starts_with("ANTIPHON_") && !name.starts_with("ANTIPHON_TEST_"))
        .filter(|name| !known().any(|known| known == name.as_str()))
        .map(|name| {
            let fault = Fault::new(name, Origin::Env(name.clone()), "is read by nothing");
            match did_you_mean(name, known()) {
                Some(near) => fault.help(format!("did you mean {near}?")),
                None => fault,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use secrecy::ExposeSecret;

    use super::*;
    use crate::config::{file::ProcessFile, resolver::check_url};

    fn with_file(text: &str) -> Sources {
        Sources { file: Some(SourceFile::new("antiphon.toml", text)), ..Sources::default() }
    }

    #[test]
    fn without_any_source_there_are_defaults() {
        let config = Config::from_vars::<&str, &str>([]).unwrap();
        assert_eq!((config.agent.as_str(), config.agent_name.as_str()), ("assistant", "antiphon"));
        assert_eq!((config.http_port, config.control_port), (8081, 8080));
        assert!(config.bind.is_loopback());
        assert_eq!(config.state_dir, Path::new("antiphon-state"));
        assert_eq!(config.database_url.expose_secret(), "sqlite:antiphon-state/antiphon.db");
    }

    #[test]
    fn all_faults_are_listed_at_once_with_their_origins() {
        let mut sources = with_file("load = 1.5\nhtpp_port = 1\n[livekit]\nurl = \"ftp://h\"\n");
        sources.vars.insert("ANTIPHON_HTTP_PORT".into(), "eighty".into());
        sources.flags.insert("ANTIPHON_BIND", "everywhere".into());
        let errors = Config::load(&sources).unwrap_err();
        let listed: Vec<String> =
            errors.faults().iter().map(|it| format!("{} {}", it.key, it.origin)).collect();
        assert_eq!(
            listed,
            [
                "htpp_port antiphon.toml:2",
                "LIVEKIT_URL antiphon.toml:4",
                "ANTIPHON_BIND --bind",
                "ANTIPHON_HTTP_PORT environment",
                "ANTIPHON_LOAD antiphon.toml:1",
            ]
        );
        let text = errors.render(false);
        assert!(text.contains("did you mean `http_port`?"), "{text}");
        assert!(text.contains("\"eighty\" is not a port"), "{text}");
    }

    #[test]
    fn keys_name_the_settings_at_fault() {
        let errors = Config::from_vars([("ANTIPHON_HTTP_PORT", "eighty")]).unwrap_err();
        assert_eq!(errors.keys(), ["ANTIPHON_HTTP_PORT"]);
    }

    #[test]
    fn a_broken_file_shows_the_line() {
        let errors = Config::load(&with_file("load = 0.5\nagent = \n")).unwrap_err();
        let text = errors.render(false);
        assert!(text.contains("antiphon.toml:2"), "{text}");
        assert!(text.contains("agent = "), "{text}");
    }

    #[test]
    fn an_agents_setting_in_the_processs_file_says_where_it_belongs() {
        let errors = Config::load(&with_file("max_speak_ms = 1\n[stt]\nmodel = \"x\"\n"));
        let errors = errors.unwrap_err();
        assert_eq!(errors.keys(), ["max_speak_ms", "stt"]);
        let text = errors.render(false);
        assert_eq!(text.matches("belongs in agents/NAME.toml").count(), 2, "{text}");
    }

    #[test]
    fn nothing_in_a_variable_is_not_set() {
        let mut sources = with_file("http_port = 7\n");
        sources.vars.insert("ANTIPHON_HTTP_PORT".into(), " ".into());
        sources.vars.insert("ANTIPHON_GREETING".into(), String::new());
        let config = Config::load(&sources).unwrap();
        assert_eq!((config.http_port, config.overrides.greeting), (7, None));
    }

    #[test]
    fn no_agent_name_is_automatic_dispatch() {
        let mut sources = with_file("agent_name = \"front-desk\"\n");
        assert_eq!(Config::load(&sources).unwrap().agent_name, "front-desk");
        sources.vars.insert("ANTIPHON_AGENT_NAME".into(), String::new());
        assert_eq!(Config::load(&sources).unwrap().agent_name, "");
    }

    #[test]
    fn livekit_is_required_whole() {
        let config = Config::from_vars([("LIVEKIT_API_KEY", "k")]).unwrap();
        let errors = config.require_livekit().unwrap_err();
        assert_eq!(errors.keys(), ["LIVEKIT_URL", "LIVEKIT_API_SECRET"]);
    }

    #[test]
    fn the_livekit_url_is_given_in_both_schemes() {
        let vars = [
            ("LIVEKIT_URL", "wss://h.example:7880/"),
            ("LIVEKIT_API_KEY", "k"),
            ("LIVEKIT_API_SECRET", "s"),
        ];
        let access = Config::from_vars(vars).unwrap().require_livekit().unwrap();
        assert_eq!(access.ws_url(), "wss://h.example:7880");
        assert_eq!(access.http_url(), "https://h.example:7880");
    }

    #[test]
    fn a_control_url_needs_its_token() {
        let errors = Config::from_vars([("ANTIPHON_CONTROL_URL", "http://h:1")]).unwrap_err();
        assert_eq!(errors.keys(), ["ANTIPHON_CONTROL_TOKEN"]);
    }

    #[test]
    fn a_database_of_another_kind_is_refused_without_its_password() {
        let vars = [("ANTIPHON_DATABASE_URL", "postgres://u:sesame@h/db")];
        assert!(Config::from_vars(vars).is_ok());
        let vars = [("ANTIPHON_DATABASE_URL", "mysql://u:sesame@h/db")];
        let errors = Config::from_vars(vars).unwrap_err();
        assert!(errors.to_string().contains("postgres://antiphon@host"), "{errors}");
        assert!(!errors.render(false).contains("sesame"));
    }

    #[test]
    fn the_values_of_secrets_and_urls_are_never_shown() {
        let mut sources =
            with_file("[livekit]\napi_secret = \"sesame\"\nurl = \"http//sesame\"\nx = 1\n");
        sources.vars.insert("OPENAI_API_KEY".into(), "sesame".into());
        sources.vars.insert("OPENAI_BASE_URL".into(), "http://u:sesame@h".into());
        let (config, errors) = Config::resolve(&sources);
        assert_eq!(errors.keys(), ["livekit.x", "LIVEKIT_URL", "OPENAI_BASE_URL"]);
        assert!(!format!("{errors} {config:?}").contains("sesame"));
        let shown = errors.render(false).replace("url = \"http//sesame\"", "");
        assert!(!shown.contains("sesame"), "{shown}");
    }

    #[test]
    fn a_variable_that_nothing_reads_is_a_warning() {
        let vars = [("ANTIPHON_HTPP_PORT", "1"), ("ANTIPHON_SERVICE_HOST", "10.0.0.1")];
        let config = Config::from_vars(vars).unwrap();
        let keys: Vec<&str> = config.warnings.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(keys, ["ANTIPHON_HTPP_PORT", "ANTIPHON_SERVICE_HOST"]);
        assert_eq!(config.warnings[0].help.as_deref(), Some("did you mean ANTIPHON_HTTP_PORT?"));
    }

    #[test]
    fn the_state_lies_where_the_system_keeps_state() {
        let dir = |vars: &[(&str, &str)]| {
            Config::from_vars(vars.iter().copied()).unwrap().state_dir.display().to_string()
        };
        assert_eq!(dir(&[("HOME", "/h")]), "/h/.local/state/antiphon");
        assert_eq!(dir(&[("HOME", "/h"), ("XDG_STATE_HOME", "/s")]), "/s/antiphon");
        assert_eq!(dir(&[("HOME", "/h"), ("ANTIPHON_STATE_DIR", "/a")]), "/a");
    }

    #[test]
    fn the_providers_own_addresses_are_urls() {
        for base in [
            DEEPGRAM_BASE_URL,
            OPENAI_BASE_URL,
            ANTHROPIC_BASE_URL,
            GOOGLE_BASE_URL,
            ASSEMBLYAI_BASE_URL,
            ELEVENLABS_BASE_URL,
        ] {
            assert_eq!(check_url(base, &["https"]).unwrap().as_str(), base);
        }
    }

    #[test]
    fn the_example_environment_lists_every_variable_once() {
        let example = include_str!("../../.env.example");
        let mut listed: Vec<&str> = example
            .lines()
            .map(|line| line.trim_start_matches("# ").trim_start_matches('#'))
            .filter_map(|line| line.split_once('=').map(|(name, _)| name))
            .filter(|name| {
                let fits =
                    |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
                name.bytes().all(fits)
            })
            .collect();
        let mut known: Vec<&str> = names::ALL.iter().map(|setting| setting.env).collect();
        listed.sort_unstable();
        known.sort_unstable();
        assert_eq!(listed, known);
    }

    #[test]
    fn the_readme_names_every_variable() {
        let readme = include_str!("../../README.md");
        for setting in names::ALL {
            assert!(readme.contains(&format!("`{}`", setting.env)), "{}", setting.env);
        }
    }

    #[test]
    fn the_example_file_has_every_setting_of_the_file() {
        // Uncommented, it must parse; and nothing in it may be unknown.
        let text: String = include_str!("../../antiphon.toml.example")
            .lines()
            .map(|line| line.strip_prefix("#:").unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        let (file, faults) = ProcessFile::parse(SourceFile::new("antiphon.toml.example", text));
        assert!(faults.is_empty(), "{faults:?}");
        for key in names::ALL.iter().filter_map(|setting| setting.file) {
            assert!(file.get(key).is_some(), "{key} is missing");
        }
    }
}
