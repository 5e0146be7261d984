//! Which source a setting is taken from, and what is wrong with its value.

use std::{path::Path, time::Duration};

use secrecy::SecretString;
use url::Url;

use crate::config::{
    env::{Provider, Sources},
    error::{ConfigErrors, Fault, Origin},
    file::ProcessFile,
    names::{self, Setting},
};

/// Looks settings up by precedence and gathers the faults.
pub(super) struct Resolver<'a> {
    sources: &'a Sources,
    file: Option<ProcessFile>,
    pub errors: ConfigErrors,
}

/// A value and where it was found.
struct Found {
    text: String,
    place: Place,
}

enum Place {
    Flag(&'static str),
    Env,
    File(std::ops::Range<usize>),
}

impl<'a> Resolver<'a> {
    pub fn new(sources: &'a Sources) -> Self {
        let mut errors = ConfigErrors::default();
        errors.extend(sources.faults.iter().cloned());
        let file = sources.file.clone().map(|source| {
            let (file, faults) = ProcessFile::parse(source);
            errors.extend(faults);
            file
        });
        Self { sources, file, errors }
    }

    /// Where the setting is written, the strongest first.
    fn written(&self, setting: &Setting) -> impl Iterator<Item = Found> {
        let flag = setting.flag.and_then(|flag| {
            let text = self.sources.flags.get(setting.env)?.clone();
            Some(Found { text, place: Place::Flag(flag) })
        });
        let env = self.sources.vars.get(setting.env);
        let env = env.map(|text| Found { text: text.clone(), place: Place::Env });
        let file = setting.file.and_then(|key| {
            let (text, span) = self.file.as_ref()?.get(key)?.clone();
            Some(Found { text, place: Place::File(span) })
        });
        [flag, env, file].into_iter().flatten()
    }

    /// A setting written as nothing counts as not set: `NAME=` is how env files say so.
    fn find(&self, setting: &Setting) -> Option<Found> {
        let found = self.written(setting).find(|found| !found.text.trim().is_empty())?;
        Some(Found { text: found.text.trim().to_owned(), ..found })
    }

    fn wrong(&mut self, setting: &Setting, found: &Found, problem: &str) {
        let fault = match (&found.place, &self.file) {
            (Place::File(span), Some(file)) => {
                Fault::at(&file.source, span.clone(), setting.env, problem)
            }
            (Place::Flag(flag), _) => Fault::new(setting.env, Origin::Flag(flag), problem),
            _ => Fault::new(setting.env, Origin::Env(setting.env.to_owned()), problem),
        };
        self.errors.push(fault);
    }

    /// A setting that is there and, beside others, cannot be; its value is not shown.
    pub fn fault(&mut self, setting: &Setting, problem: &str) {
        if let Some(found) = self.find(setting) {
            self.wrong(setting, &found, problem);
        }
    }

    pub fn text(&self, setting: &Setting) -> Option<String> {
        self.find(setting).map(|found| found.text)
    }

    pub fn secret(&self, setting: &Setting) -> Option<SecretString> {
        self.text(setting).map(SecretString::from)
    }

    /// `want` says in the fault what the value should have been. Not for secrets: the value is
    /// shown.
    pub fn parse<T>(
        &mut self,
        setting: &Setting,
        want: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let found = self.find(setting)?;
        let value = parse(&found.text);
        if value.is_none() {
            let shown: String = found.text.chars().take(40).collect();
            self.wrong(setting, &found, &format!("{shown:?} is not {want}"));
        }
        value
    }

    pub fn port(&mut self, setting: &Setting) -> Option<u16> {
        self.parse(setting, "a port (0 to 65535)", |text| text.parse().ok())
    }

    pub fn ms(&mut self, setting: &Setting) -> Option<Duration> {
        self.parse(setting, "a number of milliseconds (0 to 60000)", |text| {
            text.parse().ok().filter(|ms| *ms <= 60_000).map(Duration::from_millis)
        })
    }

    /// The value is never shown: people put keys into URLs.
    pub fn url(&mut self, setting: &Setting, schemes: &[&str]) -> Option<Url> {
        let found = self.find(setting)?;
        match check_url(&found.text, schemes) {
            Ok(url) => Some(url),
            Err(problem) => {
                self.wrong(setting, &found, &problem);
                None
            }
        }
    }

    pub fn provider(&mut self, key: &Setting, base_url: &Setting) -> Provider {
        Provider {
            api_key: self.secret(key),
            base_url: self.url(base_url, &["http", "https", "ws", "wss"]),
        }
    }

    /// The one setting for which nothing means something: automatic dispatch.
    pub fn agent_name(&self) -> String {
        self.written(&names::AGENT_NAME)
            .next()
            .map_or_else(|| "antiphon".into(), |found| found.text.trim().to_owned())
    }

    pub fn database_url(&mut self, state_dir: &Path) -> SecretString {
        let default = || format!("sqlite:{}", state_dir.join("antiphon.db").display()).into();
        let Some(found) = self.find(&names::DATABASE_URL) else { return default() };
        let problem = match found.text.split_once(':').map(|(scheme, _)| scheme) {
            None | Some("sqlite" | "postgres" | "postgresql") => return found.text.into(),
            Some(_) => {
                "is not a database URL such as sqlite:/var/lib/antiphon/antiphon.db or \
                 postgres://antiphon@host/antiphon"
            }
        };
        self.wrong(&names::DATABASE_URL, &found, problem);
        default()
    }
}

/// A URL of one of these schemes, with a host and without credentials.
pub(crate) fn check_url(text: &str, schemes: &[&str]) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    if !schemes.contains(&url.scheme()) {
        return Err(format!("must begin with one of: {}", schemes.join(", ")));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not carry a user name or password".into());
    }
    Ok(url)
}
