//! The settings of the control endpoint beyond its port, token and database.

use std::{collections::BTreeMap, path::PathBuf};

use secrecy::SecretString;
use url::Url;

use super::{names, resolver::Resolver};

/// Requests a second and tenant.
const RATE_LIMIT: u32 = 100;

/// How users' bearer tokens are checked. The operator chooses, never a token's header.
#[derive(Debug, Clone)]
pub enum JwtKeys {
    /// ANTIPHON_JWT_SECRET
    Hs256(SecretString),
    /// ANTIPHON_JWKS_URL
    Rs256(Url),
}

/// S3_*: where recordings are kept instead of on disk.
#[derive(Debug, Clone)]
pub struct S3 {
    pub bucket: String,
    pub access_key: Option<String>,
    pub secret_key: Option<SecretString>,
    pub region: String,
    /// None: Amazon's own.
    pub endpoint: Option<Url>,
}

#[derive(Debug, Clone)]
pub struct ControlSettings {
    /// None: users have no tokens of their own; API keys and the service token remain.
    pub jwt: Option<JwtKeys>,
    pub jwt_issuer: Option<String>,
    pub jwt_audience: Option<String>,
    /// Origins of web pages that may call the API; `*`: any.
    pub cors_origins: Vec<String>,
    /// Requests a second and tenant; 0: no limit.
    pub rate_limit: u32,
    /// How others reach the endpoint; None: what is signed is given as a path.
    pub public_url: Option<Url>,
    /// Of voice sessions' rooms.
    pub voice_prefix: String,
    /// A voice session's agent type → the agent's registered name.
    pub voice_agents: BTreeMap<String, String>,
    /// 30, 90 or 365, for tenants that have no row of their own.
    pub retention_days: u32,
    /// Where recordings are kept, unless S3 is set.
    pub recordings_dir: PathBuf,
    pub s3: Option<S3>,
    /// 32 bytes in hex: recordings of our own are encrypted at rest.
    pub recording_key: Option<SecretString>,
    /// Whether the worker records its sessions itself.
    pub record: bool,
}

impl ControlSettings {
    pub(super) fn resolve(r: &mut Resolver<'_>, state_dir: &std::path::Path) -> Self {
        let secret = r.secret(&names::JWT_SECRET);
        let jwks = r.url(&names::JWKS_URL, &["http", "https"]);
        if secret.is_some() && jwks.is_some() {
            r.fault(&names::JWKS_URL, "is set beside ANTIPHON_JWT_SECRET: set one of the two");
        }
        let jwt = secret.map(JwtKeys::Hs256).or(jwks.map(JwtKeys::Rs256));
        let recording_key = r.secret(&names::RECORDING_KEY);
        if recording_key.as_ref().is_some_and(|key| crate::recording::parse_key(key).is_none()) {
            r.fault(&names::RECORDING_KEY, "is not 32 bytes in hex (`openssl rand -hex 32`)");
        }
        let s3 = r.text(&names::S3_BUCKET).map(|bucket| S3 {
            bucket,
            access_key: r.text(&names::S3_ACCESS_KEY),
            secret_key: r.secret(&names::S3_SECRET_KEY),
            region: r.text(&names::S3_REGION).unwrap_or_else(|| "us-east-1".into()),
            endpoint: r.url(&names::S3_ENDPOINT, &["http", "https"]),
        });
        Self {
            jwt,
            jwt_issuer: r.text(&names::JWT_ISSUER),
            jwt_audience: r.text(&names::JWT_AUDIENCE),
            cors_origins: r
                .parse(
                    &names::CORS_ORIGINS,
                    "a list such as https://a.example,https://b.example",
                    |text| text.split(',').map(str::trim).map(origin).collect(),
                )
                .unwrap_or_default(),
            rate_limit: r
                .parse(&names::RATE_LIMIT, "requests a second, from 0 to 1000000", |text| {
                    text.parse().ok().filter(|limit| *limit <= 1_000_000)
                })
                .unwrap_or(RATE_LIMIT),
            public_url: r.url(&names::PUBLIC_URL, &["http", "https"]),
            voice_prefix: r
                .parse(&names::VOICE_PREFIX, "letters, digits and -", |text| {
                    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
                    (text.len() <= 64 && text.chars().all(fits)).then(|| text.to_owned())
                })
                .unwrap_or_else(|| "voice".into()),
            voice_agents: r
                .parse(&names::VOICE_AGENTS, "a list such as workout=coach,diet=cook", |text| {
                    text.split(',')
                        .map(|pair| {
                            let (kind, agent) = pair.split_once('=')?;
                            Some((kind.trim().to_owned(), agent.trim().to_owned()))
                        })
                        .collect()
                })
                .unwrap_or_default(),
            retention_days: r
                .parse(&names::RETENTION_DAYS, "30, 90 or 365", |text| {
                    text.parse().ok().filter(|days| [30, 90, 365].contains(days))
                })
                .unwrap_or(90),
            recordings_dir: r
                .text(&names::RECORDINGS_DIR)
                .map_or_else(|| state_dir.join("recordings"), PathBuf::from),
            s3,
            recording_key,
            record: r
                .parse(&names::RECORD, "true or false", |text| text.parse().ok())
                .unwrap_or(false),
        }
    }
}

/// `*`, or a scheme and a host, without a path.
fn origin(text: &str) -> Option<String> {
    if text == "*" {
        return Some(text.to_owned());
    }
    let url = Url::parse(text).ok()?;
    let bare =
        matches!(url.scheme(), "http" | "https") && url.path() == "/" && !text.ends_with('/');
    bare.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn every_fault_of_the_control_endpoint_is_listed_at_once() {
        let errors = Config::from_vars([
            ("ANTIPHON_JWT_SECRET", "sesame"),
            ("ANTIPHON_JWKS_URL", "https://id.example/jwks"),
            ("ANTIPHON_CORS_ORIGINS", "https://a.example/path"),
            ("ANTIPHON_RATE_LIMIT", "many"),
            ("ANTIPHON_VOICE_AGENTS", "workout"),
            ("ANTIPHON_RETENTION_DAYS", "60"),
            ("ANTIPHON_RECORDING_KEY", "sesame"),
        ])
        .unwrap_err();
        let mut keys = errors.keys();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "ANTIPHON_CORS_ORIGINS",
                "ANTIPHON_JWKS_URL",
                "ANTIPHON_RATE_LIMIT",
                "ANTIPHON_RECORDING_KEY",
                "ANTIPHON_RETENTION_DAYS",
                "ANTIPHON_VOICE_AGENTS",
            ]
        );
        assert!(!errors.render(false).contains("sesame"));
    }

    #[test]
    fn agent_types_and_origins_are_lists() {
        let config = Config::from_vars([
            ("ANTIPHON_VOICE_AGENTS", "workout=coach, diet=cook"),
            ("ANTIPHON_CORS_ORIGINS", "https://a.example, http://localhost:3000"),
        ])
        .unwrap();
        assert_eq!(config.control.voice_agents["diet"], "cook");
        assert_eq!(config.control.cors_origins, ["https://a.example", "http://localhost:3000"]);
        assert_eq!((config.control.rate_limit, config.control.retention_days), (100, 90));
    }
}
