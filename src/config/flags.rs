//! The flags that every command with a configuration takes, and the edge where flags, environment
//! and antiphon.toml are gathered.

use std::path::{Path, PathBuf};

use crate::config::{
    env::Sources,
    error::{Fault, Origin},
    names,
    source::SourceFile,
};

/// Flags of the process's settings; each overrides the environment. Keys and tokens have none:
/// anybody on the machine can read a command line.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct ProcessArgs {
    /// The process's settings (ANTIPHON_CONFIG; default: ./antiphon.toml if it is there)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of agent files (ANTIPHON_AGENTS_DIR; default: ./agents, else the built-in ones)
    #[arg(long, value_name = "DIR")]
    pub agents_dir: Option<String>,
    /// The agent file to run (ANTIPHON_AGENT; default: assistant)
    #[arg(long, value_name = "NAME")]
    pub agent: Option<String>,
    /// Name registered with LiveKit; "" is automatic dispatch (ANTIPHON_AGENT_NAME)
    #[arg(long, value_name = "NAME")]
    pub agent_name: Option<String>,
    /// LiveKit server (LIVEKIT_URL)
    #[arg(long, value_name = "URL")]
    pub livekit_url: Option<String>,
    /// Address to listen on (ANTIPHON_BIND; default: 127.0.0.1)
    #[arg(long, value_name = "IP")]
    pub bind: Option<String>,
    /// The worker's health and metrics (ANTIPHON_HTTP_PORT; default: 8081)
    #[arg(long, value_name = "PORT")]
    pub http_port: Option<String>,
    /// The control endpoint (ANTIPHON_CONTROL_PORT; default: 8080)
    #[arg(long, value_name = "PORT")]
    pub control_port: Option<String>,
    /// Where the worker reports transcripts to (ANTIPHON_CONTROL_URL)
    #[arg(long, value_name = "URL")]
    pub control_url: Option<String>,
    /// Outbox and database (ANTIPHON_STATE_DIR)
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<String>,
    /// Log filter, such as debug or antiphon=debug (ANTIPHON_LOG; default: info)
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// auto, human or json (ANTIPHON_LOG_FORMAT; default: auto)
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl ProcessArgs {
    /// These flags, the process's environment, and antiphon.toml.
    pub fn sources(&self) -> Sources {
        let vars = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        self.sources_with(vars, Path::new("antiphon.toml"))
    }

    /// As [`ProcessArgs::sources`], with this environment and default file.
    pub fn sources_with(
        &self,
        vars: impl IntoIterator<Item = (String, String)>,
        default_file: &Path,
    ) -> Sources {
        let mut sources = Sources { vars: vars.into_iter().collect(), ..Sources::default() };
        for (setting, flag) in [
            (&names::AGENTS_DIR, &self.agents_dir),
            (&names::AGENT, &self.agent),
            (&names::AGENT_NAME, &self.agent_name),
            (&names::LIVEKIT_URL, &self.livekit_url),
            (&names::BIND, &self.bind),
            (&names::HTTP_PORT, &self.http_port),
            (&names::CONTROL_PORT, &self.control_port),
            (&names::CONTROL_URL, &self.control_url),
            (&names::STATE_DIR, &self.state_dir),
            (&names::LOG, &self.log),
            (&names::LOG_FORMAT, &self.log_format),
        ] {
            if let Some(text) = flag {
                sources.flags.insert(setting.env, text.clone());
            }
        }
        let from_env = sources.vars.get(names::CONFIG.env).filter(|path| !path.trim().is_empty());
        let asked = self.config.clone().or_else(|| from_env.map(PathBuf::from));
        let path = asked.clone().or_else(|| Some(default_file.to_owned()).filter(|it| it.exists()));
        if let Some(path) = path {
            match SourceFile::read(&path) {
                Ok(file) => sources.file = Some(file),
                Err(problem) => {
                    let origin = Origin::Path(path.display().to_string());
                    sources.faults.push(Fault::new(names::CONFIG.env, origin, problem));
                }
            }
        }
        sources
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::env::Config;

    #[test]
    fn a_flag_overrides_the_environment_which_overrides_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("antiphon.toml");
        fs::write(&file, "http_port = 1\nbind = \"::1\"\n[control]\nport = 2\n").unwrap();
        let args = ProcessArgs { http_port: Some("3".into()), ..ProcessArgs::default() };
        let vars = [("ANTIPHON_HTTP_PORT", "4"), ("ANTIPHON_CONTROL_PORT", "5")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = Config::load(&args.sources_with(vars, &file)).unwrap();
        assert_eq!((config.http_port, config.control_port), (3, 5));
        assert_eq!(config.bind.to_string(), "::1");
    }

    #[test]
    fn a_file_that_is_asked_for_must_be_there() {
        let args = ProcessArgs { config: Some("/nowhere.toml".into()), ..ProcessArgs::default() };
        let sources = args.sources_with([], Path::new("/nowhere-either.toml"));
        let errors = Config::load(&sources).unwrap_err();
        assert_eq!(errors.keys(), ["ANTIPHON_CONFIG"]);
        assert!(errors.to_string().contains("/nowhere.toml): cannot be read"), "{errors}");
    }
}
