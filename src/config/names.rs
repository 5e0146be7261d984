//! The process's settings by name: the one list that the environment, antiphon.toml, the flags and
//! `.env.example` agree on.

/// One setting of the process, and the names that users type for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// In the environment.
    pub env: &'static str,
    /// In antiphon.toml, with its table: `livekit.url`. None: it is not the file's.
    pub file: Option<&'static str>,
    pub flag: Option<&'static str>,
}

const fn both(env: &'static str, file: &'static str) -> Setting {
    Setting { env, file: Some(file), flag: None }
}

const fn all(env: &'static str, file: &'static str, flag: &'static str) -> Setting {
    Setting { env, file: Some(file), flag: Some(flag) }
}

const fn env_only(env: &'static str) -> Setting {
    Setting { env, file: None, flag: None }
}

pub const CONFIG: Setting = Setting { env: "ANTIPHON_CONFIG", file: None, flag: Some("--config") };
pub const AGENTS_DIR: Setting = all("ANTIPHON_AGENTS_DIR", "agents_dir", "--agents-dir");
pub const AGENT: Setting = all("ANTIPHON_AGENT", "agent", "--agent");
pub const AGENT_NAME: Setting = all("ANTIPHON_AGENT_NAME", "agent_name", "--agent-name");

pub const LIVEKIT_URL: Setting = all("LIVEKIT_URL", "livekit.url", "--livekit-url");
pub const LIVEKIT_API_KEY: Setting = both("LIVEKIT_API_KEY", "livekit.api_key");
pub const LIVEKIT_API_SECRET: Setting = both("LIVEKIT_API_SECRET", "livekit.api_secret");

pub const DEEPGRAM_API_KEY: Setting = both("DEEPGRAM_API_KEY", "deepgram.api_key");
pub const DEEPGRAM_BASE_URL: Setting = both("DEEPGRAM_BASE_URL", "deepgram.base_url");
pub const OPENAI_API_KEY: Setting = both("OPENAI_API_KEY", "openai.api_key");
pub const OPENAI_BASE_URL: Setting = both("OPENAI_BASE_URL", "openai.base_url");
pub const ANTHROPIC_API_KEY: Setting = both("ANTHROPIC_API_KEY", "anthropic.api_key");
pub const ANTHROPIC_BASE_URL: Setting = both("ANTHROPIC_BASE_URL", "anthropic.base_url");
pub const GOOGLE_API_KEY: Setting = both("GOOGLE_API_KEY", "google.api_key");
pub const GOOGLE_BASE_URL: Setting = both("GOOGLE_BASE_URL", "google.base_url");
pub const GOOGLE_SPEECH_KEY: Setting = both("GOOGLE_SPEECH_KEY", "google.speech_key");
pub const GOOGLE_SPEECH_BASE_URL: Setting =
    both("GOOGLE_SPEECH_BASE_URL", "google.speech_base_url");
pub const ASSEMBLYAI_API_KEY: Setting = both("ASSEMBLYAI_API_KEY", "assemblyai.api_key");
pub const ASSEMBLYAI_BASE_URL: Setting = both("ASSEMBLYAI_BASE_URL", "assemblyai.base_url");
pub const ELEVENLABS_API_KEY: Setting = both("ELEVENLABS_API_KEY", "elevenlabs.api_key");
pub const ELEVENLABS_BASE_URL: Setting = both("ELEVENLABS_BASE_URL", "elevenlabs.base_url");

pub const ELEVENLABS_VOICE_ID: Setting = env_only("ELEVENLABS_VOICE_ID");
pub const ELEVENLABS_MODEL_ID: Setting = env_only("ELEVENLABS_MODEL_ID");
pub const GREETING: Setting = env_only("ANTIPHON_GREETING");
pub const SILENCE_THRESHOLD_MS: Setting = env_only("ANTIPHON_SILENCE_THRESHOLD_MS");
pub const MIN_INTERRUPTION_MS: Setting = env_only("ANTIPHON_MIN_INTERRUPTION_MS");
pub const PREEMPTIVE: Setting = env_only("ANTIPHON_PREEMPTIVE_GENERATION");

pub const BIND: Setting = all("ANTIPHON_BIND", "bind", "--bind");
pub const HTTP_PORT: Setting = all("ANTIPHON_HTTP_PORT", "http_port", "--http-port");
pub const CONTROL_PORT: Setting = all("ANTIPHON_CONTROL_PORT", "control.port", "--control-port");
pub const CONTROL_URL: Setting = all("ANTIPHON_CONTROL_URL", "control.url", "--control-url");
pub const CONTROL_TOKEN: Setting = both("ANTIPHON_CONTROL_TOKEN", "control.token");
pub const DATABASE_URL: Setting = both("ANTIPHON_DATABASE_URL", "database_url");
pub const STATE_DIR: Setting = all("ANTIPHON_STATE_DIR", "state_dir", "--state-dir");

pub const JWT_SECRET: Setting = both("ANTIPHON_JWT_SECRET", "control.jwt_secret");
pub const JWKS_URL: Setting = both("ANTIPHON_JWKS_URL", "control.jwks_url");
pub const JWT_ISSUER: Setting = both("ANTIPHON_JWT_ISSUER", "control.jwt_issuer");
pub const JWT_AUDIENCE: Setting = both("ANTIPHON_JWT_AUDIENCE", "control.jwt_audience");
pub const CORS_ORIGINS: Setting = both("ANTIPHON_CORS_ORIGINS", "control.cors_origins");
pub const RATE_LIMIT: Setting = both("ANTIPHON_RATE_LIMIT", "control.rate_limit");
pub const PUBLIC_URL: Setting = both("ANTIPHON_PUBLIC_URL", "control.public_url");
pub const VOICE_PREFIX: Setting = both("ANTIPHON_VOICE_PREFIX", "control.voice_prefix");
pub const VOICE_AGENTS: Setting = both("ANTIPHON_VOICE_AGENTS", "control.voice_agents");
pub const RETENTION_DAYS: Setting = both("ANTIPHON_RETENTION_DAYS", "control.retention_days");
pub const RECORDINGS_DIR: Setting = both("ANTIPHON_RECORDINGS_DIR", "recordings.dir");
pub const RECORDING_KEY: Setting = both("ANTIPHON_RECORDING_KEY", "recordings.key");
pub const RECORD: Setting = both("ANTIPHON_RECORD", "recordings.record");
pub const S3_BUCKET: Setting = both("S3_BUCKET", "s3.bucket");
pub const S3_ACCESS_KEY: Setting = both("S3_ACCESS_KEY", "s3.access_key");
pub const S3_SECRET_KEY: Setting = both("S3_SECRET_KEY", "s3.secret_key");
pub const S3_REGION: Setting = both("S3_REGION", "s3.region");
pub const S3_ENDPOINT: Setting = both("S3_ENDPOINT", "s3.endpoint");

pub const LOAD: Setting = both("ANTIPHON_LOAD", "load");
pub const MAX_JOBS: Setting = both("ANTIPHON_MAX_JOBS", "max_jobs");
pub const DRAIN_TIMEOUT_S: Setting = both("ANTIPHON_DRAIN_TIMEOUT_S", "drain_timeout_s");
pub const FLIGHT: Setting = both("ANTIPHON_FLIGHT", "flight");
pub const PRICES: Setting = both("ANTIPHON_PRICES", "prices");
pub const VOICE_CACHE_MB: Setting = both("ANTIPHON_VOICE_CACHE_MB", "voice_cache_mb");
pub const LOG: Setting = all("ANTIPHON_LOG", "log", "--log");
pub const LOG_FORMAT: Setting = all("ANTIPHON_LOG_FORMAT", "log_format", "--log-format");

/// Every setting of the process.
pub const ALL: [&Setting; 60] = [
    &CONFIG,
    &AGENTS_DIR,
    &AGENT,
    &AGENT_NAME,
    &LIVEKIT_URL,
    &LIVEKIT_API_KEY,
    &LIVEKIT_API_SECRET,
    &DEEPGRAM_API_KEY,
    &DEEPGRAM_BASE_URL,
    &OPENAI_API_KEY,
    &OPENAI_BASE_URL,
    &ANTHROPIC_API_KEY,
    &ANTHROPIC_BASE_URL,
    &GOOGLE_API_KEY,
    &GOOGLE_BASE_URL,
    &GOOGLE_SPEECH_KEY,
    &GOOGLE_SPEECH_BASE_URL,
    &ASSEMBLYAI_API_KEY,
    &ASSEMBLYAI_BASE_URL,
    &ELEVENLABS_API_KEY,
    &ELEVENLABS_BASE_URL,
    &ELEVENLABS_VOICE_ID,
    &ELEVENLABS_MODEL_ID,
    &GREETING,
    &SILENCE_THRESHOLD_MS,
    &MIN_INTERRUPTION_MS,
    &PREEMPTIVE,
    &BIND,
    &HTTP_PORT,
    &CONTROL_PORT,
    &CONTROL_URL,
    &CONTROL_TOKEN,
    &DATABASE_URL,
    &STATE_DIR,
    &JWT_SECRET,
    &JWKS_URL,
    &JWT_ISSUER,
    &JWT_AUDIENCE,
    &CORS_ORIGINS,
    &RATE_LIMIT,
    &PUBLIC_URL,
    &VOICE_PREFIX,
    &VOICE_AGENTS,
    &RETENTION_DAYS,
    &RECORDINGS_DIR,
    &RECORDING_KEY,
    &RECORD,
    &S3_BUCKET,
    &S3_ACCESS_KEY,
    &S3_SECRET_KEY,
    &S3_REGION,
    &S3_ENDPOINT,
    &LOAD,
    &MAX_JOBS,
    &DRAIN_TIMEOUT_S,
    &FLIGHT,
    &PRICES,
    &VOICE_CACHE_MB,
    &LOG,
    &LOG_FORMAT,
];

/// Whether a dotted key is antiphon.toml's.
pub(crate) fn is_process_key(key: &str) -> bool {
    ALL.iter()
        .filter_map(|setting| setting.file)
        .any(|file| file == key || file.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}
