//! Logs go to stderr: one line an event, for people on a terminal, as JSON for machines.

use std::{
    io::{self, IsTerminal},
    str::FromStr,
};

use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

/// antiphon's own news; of the libraries below, what should worry an operator.
const DEFAULT_FILTER: &str = "info,livekit=warn,livekit_api=warn,livekit_signaling=warn,\
     livekit_net=warn,libwebrtc=warn,rmcp=warn,rtc_audio=warn,str0m=warn,turn_client_proto=error,\
     stun_proto=error,tungstenite=warn,\
     tokio_tungstenite=warn,hyper=warn,hyper_util=warn,reqwest=warn,rustls=warn,h2=warn,sqlx=warn";

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Human on a terminal, else JSON.
    #[default]
    Auto,
    Human,
    Json,
}

impl FromStr for Format {
    type Err = LoggingError;

    fn from_str(text: &str) -> Result<Self, LoggingError> {
        match text.trim().to_ascii_lowercase().as_str() {
            "" | "auto" => Ok(Self::Auto),
            "human" | "text" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(LoggingError::Format(text.to_owned())),
        }
    }
}

/// What is wrong with the settings of the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoggingError {
    #[error("ANTIPHON_LOG_FORMAT is {0:?}, but must be auto, human or json")]
    Format(String),
    #[error("{name} is no log filter: {reason}")]
    Filter { name: &'static str, reason: String },
    #[error("logging is already set up")]
    AlreadySet,
}

/// How to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub format: Format,
    /// `tracing` directives; `None`: what an operator wants to see.
    pub filter: Option<(&'static str, String)>,
    /// antiphon's own events from debug level on; a filter of the user's wins over it.
    pub verbose: bool,
    /// stderr is a terminal.
    pub terminal: bool,
    /// <https://no-color.org>
    pub no_color: bool,
}

impl Settings {
    /// From ANTIPHON_LOG_FORMAT, NO_COLOR, and ANTIPHON_LOG or else RUST_LOG.
    pub fn from_vars(
        var: impl Fn(&str) -> Option<String>,
        terminal: bool,
    ) -> Result<Self, LoggingError> {
        let set = |name: &'static str| var(name).filter(|value| !value.trim().is_empty());
        let filter = ["ANTIPHON_LOG", "RUST_LOG"]
            .into_iter()
            .find_map(|name| set(name).map(|directives| (name, directives)));
        if let Some((name, directives)) = &filter {
            parse(name, directives)?;
        }
        let format = set("ANTIPHON_LOG_FORMAT").as_deref().unwrap_or_default().parse()?;
        let no_color = set("NO_COLOR").is_some();
        Ok(Self { format, filter, verbose: false, terminal, no_color })
    }

    /// From the process's environment and stderr.
    pub fn from_env() -> Result<Self, LoggingError> {
        Self::from_vars(|name| std::env::var(name).ok(), io::stderr().is_terminal())
    }

    fn json(&self) -> bool {
        match self.format {
            Format::Auto => !self.terminal,
            Format::Human => false,
            Format::Json => true,
        }
    }

    fn env_filter(&self) -> Result<EnvFilter, LoggingError> {
        match &self.filter {
            Some((name, directives)) => parse(name, directives),
            None if self.verbose => {
                parse("the default", &format!("{DEFAULT_FILTER},antiphon=debug"))
            }
            None => parse("the default", DEFAULT_FILTER),
        }
    }

    fn layer<W>(&self, writer: W) -> Result<Box<dyn Layer<Registry> + Send + Sync>, LoggingError>
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        let filter = self.env_filter()?;
        let layer = fmt::layer().with_writer(writer);
        Ok(if self.json() {
            layer.json().flatten_event(true).with_span_list(false).with_filter(filter).boxed()
        } else {
            let colours = self.terminal && !self.no_color;
            layer.with_ansi(colours).with_target(self.verbose).with_filter(filter).boxed()
        })
    }
}

fn parse(name: &'static str, directives: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::builder()
        .parse(directives)
        .map_err(|error| LoggingError::Filter { name, reason: error.to_string() })
}

/// Sets up logging for the whole process, events of the crate `log` included.
pub fn init(settings: &Settings) -> Result<(), LoggingError> {
    tracing_subscriber::registry()
        .with(settings.layer(io::stderr)?)
        .try_init()
        .map_err(|_: TryInitError| LoggingError::AlreadySet)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Arc};

    use parking_lot::Mutex;

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn settings(vars: &[(&str, &str)], terminal: bool) -> Result<Settings, LoggingError> {
        let get = |name: &str| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        Settings::from_vars(get, terminal)
    }

    fn logged(settings: &Settings) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let layer = settings.layer(move || writer.clone()).unwrap();
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(jobs = 3, "registered");
            tracing::debug!("details");
            tracing::info!(target: "str0m::ice", "chatter");
        });
        String::from_utf8(captured.0.lock().clone()).unwrap()
    }

    #[test]
    fn a_terminal_gets_coloured_lines_for_people() {
        let text = logged(&settings(&[], true).unwrap());
        assert!(text.contains("\u{1b}[") && text.contains("registered"), "{text}");
    }

    #[test]
    fn no_color_is_respected() {
        let text = logged(&settings(&[("NO_COLOR", "1")], true).unwrap());
        assert!(!text.contains('\u{1b}') && text.contains("registered jobs=3"), "{text}");
    }

    #[test]
    fn a_pipe_gets_json_and_no_chatter_of_libraries() {
        let text = logged(&settings(&[], false).unwrap());
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["message"], &line["jobs"]), (&"registered".into(), &3.into()));
    }

    #[test]
    fn a_pipe_gets_plain_lines_when_asked() {
        let text = logged(&settings(&[("ANTIPHON_LOG_FORMAT", "human")], false).unwrap());
        assert!(!text.contains('\u{1b}') && !text.starts_with('{'), "{text}");
    }

    #[test]
    fn antiphons_filter_wins_over_rusts() {
        let vars = [("ANTIPHON_LOG", "debug,str0m=off"), ("RUST_LOG", "off")];
        assert!(logged(&settings(&vars, false).unwrap()).contains("details"));
        assert_eq!(logged(&settings(&[("RUST_LOG", "off")], false).unwrap()), "");
    }

    #[test]
    fn verbose_shows_antiphons_own_details() {
        let verbose = Settings { verbose: true, ..settings(&[], false).unwrap() };
        let text = logged(&verbose);
        assert!(text.contains("details") && !text.contains("chatter"), "{text}");
    }

    #[test]
    fn wrong_settings_are_refused_by_name() {
        let error = settings(&[("RUST_LOG", "antiphon=loudly")], true).unwrap_err();
        assert!(error.to_string().starts_with("RUST_LOG is no log filter"), "{error}");
        let error = settings(&[("ANTIPHON_LOG_FORMAT", "xml")], true).unwrap_err();
        assert_eq!(error, LoggingError::Format("xml".into()));
    }
}
