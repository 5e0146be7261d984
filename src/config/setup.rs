//! All that a command needs, or all that is wrong with it, before anything binds.

use secrecy::SecretString;

use crate::config::{
    agent::Agent,
    env::{Config, LiveKitAccess, Providers, Sources},
    error::{ConfigErrors, Fault, Origin},
    library::Library,
    prices::Prices,
};

/// What a command cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// LIVEKIT_URL, LIVEKIT_API_KEY, LIVEKIT_API_SECRET.
    pub livekit: bool,
    /// The chosen agent's file.
    pub agent: bool,
    /// The keys of the providers that the chosen agent uses.
    pub providers: bool,
    /// The service token between worker and control endpoint.
    pub control_token: bool,
}

impl Needs {
    /// `start`, `connect`
    pub const WORKER: Self =
        Self { livekit: true, agent: true, providers: true, control_token: false };
    /// `control`
    pub const CONTROL: Self =
        Self { livekit: true, agent: false, providers: false, control_token: true };
    /// `dev`: its service token is made at start if none is set.
    pub const DEV: Self = Self::WORKER;
    /// `replay` and `demo` with provider doubles.
    pub const DOUBLES: Self =
        Self { livekit: false, agent: true, providers: false, control_token: false };
    /// `replay` with real providers.
    pub const REPLAY: Self =
        Self { livekit: false, agent: true, providers: true, control_token: false };
}

/// A command's settings; what its [`Needs`] ask for is there.
#[derive(Debug, Clone)]
pub struct Setup {
    pub config: Config,
    pub livekit: Option<LiveKitAccess>,
    /// With the environment's overrides.
    pub agent: Option<Agent>,
    pub providers: Option<Providers>,
    /// All to whom the agent, or one of these, may hand over.
    pub colleagues: Vec<(Agent, Providers)>,
    pub control_token: Option<SecretString>,
    pub prices: Prices,
}

impl Setup {
    /// # Errors
    /// Every fault of the settings, the agent file and its prompt at once.
    pub fn gather(sources: &Sources, needs: Needs) -> Result<Self, ConfigErrors> {
        let (config, mut errors) = Config::resolve(sources);
        let livekit = needs.livekit.then(|| keep(config.require_livekit(), &mut errors)).flatten();
        let library = (needs.agent || needs.providers)
            .then(|| Library::open(config.agents_dir.as_deref()))
            .and_then(|opened| opened.map_err(|fault| errors.push(*fault)).ok());
        let agent = library
            .as_ref()
            .and_then(|library| keep(library.load(&config.agent), &mut errors))
            .map(|agent| agent.with_overrides(&config.overrides));
        let colleagues = match (&library, &agent) {
            (Some(library), Some(agent)) if needs.providers => {
                keep(colleagues(library, agent), &mut errors).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        let colleagues = colleagues
            .into_iter()
            .filter_map(|agent| {
                let providers = keep(config.require_providers(&agent), &mut errors)?;
                Some((agent, providers))
            })
            .collect();
        let providers = agent
            .as_ref()
            .filter(|_| needs.providers)
            .and_then(|agent| keep(config.require_providers(agent), &mut errors));
        // A missing token may have been named already, beside the control URL.
        let control_token = if needs.control_token && config.control_url.is_none() {
            keep(config.require_control_token(), &mut errors)
        } else {
            config.control_token.clone()
        };
        let prices = keep(Prices::load(config.prices.as_deref()), &mut errors).unwrap_or_default();
        errors.or(Self { config, livekit, agent, providers, colleagues, control_token, prices })
    }
}

/// To how many agents one may hand over, they and theirs included.
const MAX_COLLEAGUES: usize = 15;

/// All agents to whom `agent`, or one of them, may hand over; itself, where one hands back.
///
/// # Errors
/// Every fault of their files.
pub fn colleagues(library: &Library, agent: &Agent) -> Result<Vec<Agent>, ConfigErrors> {
    let mut errors = ConfigErrors::default();
    let mut found: Vec<Agent> = Vec::new();
    let mut names: Vec<String> = agent.colleagues().map(str::to_owned).collect();
    let mut next = 0;
    while let Some(name) = names.get(next).cloned() {
        next += 1;
        if names[..next - 1].contains(&name) {
            continue;
        }
        let Some(colleague) = keep(library.load(&name), &mut errors) else { continue };
        names.extend(colleague.colleagues().map(str::to_owned));
        let origin = Origin::Path(colleague.label.clone());
        if colleague.transcribe_only() {
            let problem = format!("`{name}` only transcribes: nobody can be handed over to it");
            errors.push(Fault::new("transfer_to", origin, problem));
        } else if found.len() >= MAX_COLLEAGUES {
            let problem = format!("hands over to more than {MAX_COLLEAGUES} agents");
            errors.push(Fault::new("transfer_to", origin, problem));
            break;
        }
        found.push(colleague);
    }
    errors.or(found)
}

fn keep<T>(result: Result<T, ConfigErrors>, errors: &mut ConfigErrors) -> Option<T> {
    result.map_err(|faults| errors.extend(faults)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(vars: &[(&str, &str)]) -> Sources {
        let vars = vars.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Sources { vars, ..Sources::default() }
    }

    #[test]
    fn everything_a_worker_lacks_is_listed_at_once() {
        let sources = sources(&[("ANTIPHON_HTTP_PORT", "x"), ("LIVEKIT_URL", "ws://h")]);
        let errors = Setup::gather(&sources, Needs::WORKER).unwrap_err();
        assert_eq!(
            errors.keys(),
            [
                "ANTIPHON_HTTP_PORT",
                "LIVEKIT_API_KEY",
                "LIVEKIT_API_SECRET",
                "DEEPGRAM_API_KEY",
                "OPENAI_API_KEY",
                "ELEVENLABS_API_KEY",
            ]
        );
    }

    #[test]
    fn doubles_need_no_keys() {
        let setup = Setup::gather(&sources(&[]), Needs::DOUBLES).unwrap();
        assert_eq!(setup.agent.unwrap().name, "assistant");
        assert!(setup.providers.is_none() && setup.livekit.is_none());
    }

    #[test]
    fn a_transcriber_needs_the_recognisers_key_alone() {
        let sources = sources(&[("ANTIPHON_AGENT", "transcriber"), ("DEEPGRAM_API_KEY", "k")]);
        let providers = Setup::gather(&sources, Needs::REPLAY).unwrap().providers.unwrap();
        assert_eq!(providers.stt[0].base_url.as_str(), "https://api.deepgram.com/v1");
        assert!(providers.llm.is_empty() && providers.tts.is_empty());
    }

    #[test]
    fn an_openai_compatible_server_of_ones_own_needs_no_key() {
        let sources = sources(&[
            ("DEEPGRAM_API_KEY", "k"),
            ("ELEVENLABS_API_KEY", "k"),
            ("OPENAI_BASE_URL", "http://127.0.0.1:11434/v1"),
        ]);
        let providers = Setup::gather(&sources, Needs::REPLAY).unwrap().providers.unwrap();
        assert_eq!(providers.llm[0].base_url.as_str(), "http://127.0.0.1:11434/v1");
    }

    #[test]
    fn a_missing_control_token_is_named_once() {
        let livekit = [
            ("LIVEKIT_URL", "ws://h"),
            ("LIVEKIT_API_KEY", "k"),
            ("LIVEKIT_API_SECRET", "s"),
            ("ANTIPHON_CONTROL_URL", "http://h"),
        ];
        let errors = Setup::gather(&sources(&livekit), Needs::CONTROL).unwrap_err();
        assert_eq!(errors.keys(), ["ANTIPHON_CONTROL_TOKEN"]);
        let errors = Setup::gather(&sources(&livekit[..3]), Needs::CONTROL).unwrap_err();
        assert_eq!(errors.keys(), ["ANTIPHON_CONTROL_TOKEN"]);
    }
}
