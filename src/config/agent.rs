//! agents/NAME.toml: who the agent is, how it listens, thinks, speaks and takes turns.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use url::Url;

use crate::{
    config::{
        agent_file,
        env::AgentOverrides,
        error::ConfigErrors,
        prompt::{Prompt, RenderError, RoomContext},
        source::SourceFile,
    },
    context::routing::Routing,
    session::settings::{Detection, Interruption, Settings},
    tools::telephone::Destination,
    tts::spoken::Pronunciations,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    #[default]
    Converse,
    /// Subscribes only, never generates, never publishes.
    Transcribe,
}

/// `[llm]`
#[derive(Debug, Clone, PartialEq)]
pub struct LlmSettings {
    pub provider: String,
    pub model: String,
    /// None: the model's own; some take no other.
    pub temperature: Option<f32>,
    pub max_tokens: u32,
    /// Of an OpenAI-compatible server, with its version; OPENAI_BASE_URL overrides it.
    pub base_url: Option<Url>,
    /// The first token must come within this time.
    pub first_token_timeout: Duration,
    /// Asked in this order when it fails; have none themselves.
    pub fallback: Vec<LlmSettings>,
    /// Asked for simple turns.
    pub small: Option<Box<LlmSettings>>,
    pub routing: Routing,
}

/// `[voice]`
#[derive(Debug, Clone, PartialEq)]
pub struct VoiceSettings {
    pub provider: String,
    pub voice_id: String,
    pub model: String,
    /// Such as `en`; None: the provider tells by the text.
    pub language: Option<String>,
    /// 0..=1
    pub stability: f32,
    /// 0..=1
    pub similarity_boost: f32,
    /// Of the PCM asked for, in Hz; one that Opus takes.
    pub sample_rate: u32,
    /// The provider begins on every piece of text at once.
    pub auto_mode: bool,
    /// ElevenLabs: one socket for many speeches (`multi`), or one a speech (`single`).
    pub streaming: Streaming,
    /// The first audio must come within this time.
    pub first_audio_timeout: Duration,
    /// How to speak, in words, where the model takes that (`gpt-4o-mini-tts`).
    pub instructions: Option<String>,
    /// How words are said that a voice gets wrong; the first voice's hold for all.
    pub pronunciations: Pronunciations,
    /// ElevenLabs: id and version of dictionaries in the account.
    pub dictionaries: Vec<(String, Option<String>)>,
    /// Speak in this order when it fails; have none themselves.
    pub fallback: Vec<VoiceSettings>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Streaming {
    #[default]
    Multi,
    Single,
}

/// `[stt]`
#[derive(Debug, Clone, PartialEq)]
pub struct SttSettings {
    pub provider: String,
    pub model: String,
    /// Such as `en-US` or `multi`; None: the provider's default.
    pub language: Option<String>,
    /// Silence after which the provider closes an utterance, in ms; 0: never.
    pub endpointing_ms: u32,
    /// Gap between words after which the provider closes an utterance, in ms; 0: never.
    pub utterance_end_ms: u32,
    /// Numbers, dates and the like written as people write them.
    pub smart_format: bool,
    pub punctuate: bool,
    /// Words to expect, at most 100.
    pub keyterms: Vec<String>,
    /// Keep the audio out of the provider's training, where it offers that.
    pub opt_out_of_training: bool,
    /// Listen in this order when it fails; have none themselves.
    pub fallback: Vec<SttSettings>,
}

impl LlmSettings {
    /// It and those that stand behind it.
    pub fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.fallback)
    }
}

impl VoiceSettings {
    /// It and those that stand behind it.
    pub fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.fallback)
    }
}

impl SttSettings {
    /// It and those that stand behind it.
    pub fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.fallback)
    }
}

/// `[[tools]]`: an HTTP call that the model may ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSettings {
    pub name: String,
    pub description: String,
    pub method: String,
    /// With places for arguments, `{city}`.
    pub url: String,
    /// `${TOOL_…}` in a value is that variable of the environment.
    pub headers: Vec<(String, String)>,
    /// JSON Schema of the arguments.
    pub parameters: serde_json::Value,
    /// Sends the arguments as a JSON body.
    pub sends_body: bool,
    pub timeout: Duration,
    pub max_bytes: usize,
    pub allow_private: bool,
    pub outlives_interruption: bool,
}

/// `[[mcp]]`: a server whose tools the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct McpSettings {
    pub name: String,
    pub reach: McpReach,
    /// Its tools that are offered; empty: all.
    pub tools: Vec<String>,
    /// Of one call.
    pub timeout: Duration,
    /// Tools whose calls go on when the user interrupts.
    pub outlive_interruption: Vec<String>,
}

/// Where an MCP server is. `${TOOL_…}` in a value is that variable of the environment.
#[derive(Debug, Clone, PartialEq)]
pub enum McpReach {
    Process { command: String, args: Vec<String>, env: Vec<(String, String)> },
    Http { url: Url, headers: Vec<(String, String)> },
}

impl McpReach {
    /// What may refer to secrets.
    pub fn values(&self) -> &[(String, String)] {
        match self {
            Self::Process { env: values, .. } | Self::Http { headers: values, .. } => values,
        }
    }
}

/// `[vad]`
#[derive(Debug, Clone, PartialEq)]
pub struct VadSettings {
    pub kind: VadKind,
    /// How readily WebRTC's detector takes a frame for silence.
    pub webrtc_mode: WebRtcMode,
    /// Probability from which a frame is speech, 0..=1; earshot's alone.
    pub threshold: f32,
    /// Once in speech: the probability below which a frame is silence; at most `threshold`.
    pub exit_threshold: f32,
    /// Speech that begins an utterance, in ms.
    pub min_speech_ms: u32,
    /// Silence that ends an utterance, in ms.
    pub min_silence_ms: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VadKind {
    #[default]
    Earshot,
    WebRtc,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WebRtcMode {
    Quality,
    LowBitrate,
    Aggressive,
    #[default]
    VeryAggressive,
}

/// `[turn]`: how turns are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnSettings {
    pub detection: Detection,
    /// Silence after which a turn that is surely finished is taken.
    pub confident: Duration,
    /// Learn the pauses that the user makes inside a turn.
    pub dynamic: bool,
    pub interruption: Interruption,
    /// For so long after the agent was first heard, only words interrupt.
    pub echo_warm_up: Duration,
    /// Ask the model before the turn is taken.
    pub preemptive_generation: bool,
}

/// Spoken once somebody hears the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    pub text: String,
    /// May the user cut it short.
    pub interruptible: bool,
}

/// An agent file, typed and checked.
#[derive(Debug, Clone)]
pub struct Agent {
    /// The file's name without `.toml`.
    pub name: String,
    /// The path, or `built-in …`.
    pub label: String,
    /// For people that choose between agents.
    pub description: Option<String>,
    pub mode: Mode,
    pub llm: LlmSettings,
    pub voice: VoiceSettings,
    pub stt: SttSettings,
    pub vad: VadSettings,
    pub tools: Vec<ToolSettings>,
    pub mcp: Vec<McpSettings>,
    /// `[knowledge]`: the folder that `search_knowledge` searches.
    pub knowledge: Option<PathBuf>,
    /// Where `transfer` may transfer to, by names for the model.
    pub transfer_to: BTreeMap<String, Destination>,
    /// Of [`crate::tools::builtin::NAMES`].
    pub builtin_tools: Vec<String>,
    /// Said when tools take their time; empty: nothing.
    pub tool_filler: String,
    pub prompt: Prompt,
    pub greeting: Option<Greeting>,
    pub farewell: Option<String>,
    /// Said to a user who counts as away.
    pub away_prompt: Option<String>,
    pub apology: String,
    pub interruptible: bool,
    pub turn: TurnSettings,
    pub silence_threshold: Duration,
    pub max_endpointing: Duration,
    pub min_interruption: Duration,
    pub min_interruption_words: usize,
    pub false_interruption: Duration,
    pub transcript_timeout: Duration,
    pub max_speak: Duration,
    /// Zero: never.
    pub user_away: Duration,
    /// Leave the room when the linked participant has left.
    pub close_on_participant_left: bool,
}

impl Agent {
    /// Names are also file names: letters, digits, `-` and `_`, at most 64.
    pub fn is_name(name: &str) -> bool {
        (1..=64).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    }

    /// Reads an agent file. `find_prompt` is given the prompt's path as written there.
    ///
    /// # Errors
    /// Every fault of the file and of its prompt at once.
    pub fn parse(
        name: &str,
        file: &SourceFile,
        find_prompt: impl FnOnce(&str) -> Result<SourceFile, String>,
    ) -> Result<Self, ConfigErrors> {
        agent_file::parse(name, file, find_prompt)
    }

    pub fn transcribe_only(&self) -> bool {
        self.mode == Mode::Transcribe
    }

    /// Takes over what the environment says.
    #[must_use]
    pub fn with_overrides(mut self, overrides: &AgentOverrides) -> Self {
        if let Some(text) = &overrides.greeting {
            let interruptible =
                self.greeting.as_ref().is_none_or(|greeting| greeting.interruptible);
            self.greeting = Some(Greeting { text: text.clone(), interruptible });
        }
        if let Some(threshold) = overrides.silence_threshold {
            self.silence_threshold = threshold;
            self.max_endpointing = self.max_endpointing.max(threshold);
        }
        if let Some(minimum) = overrides.min_interruption {
            self.min_interruption = minimum;
        }
        if let Some(early) = overrides.preemptive_generation {
            self.turn.preemptive_generation = early && !self.has_tools();
        }
        if self.voice.provider == "elevenlabs" {
            if let Some(voice_id) = &overrides.elevenlabs_voice_id {
                self.voice.voice_id.clone_from(voice_id);
            }
            if let Some(model) = &overrides.elevenlabs_model {
                self.voice.model.clone_from(model);
            }
        }
        self
    }

    /// Until the first token of whichever model answers: where others stand behind the first there
    /// is some time more for them.
    fn longest_first_token(&self) -> Duration {
        let limit = self.llm.first_token_timeout;
        if self.llm.fallback.is_empty() { limit } else { limit.mul_f64(1.2) }
    }

    /// What the session machine needs. `system_prompt` is rendered by [`Prompt::render`].
    pub fn settings(&self, system_prompt: String) -> Settings {
        Settings {
            system_prompt,
            greeting: self.greeting.as_ref().map(|greeting| greeting.text.clone()),
            farewell: self.farewell.clone(),
            greeting_interruptible: self.greeting.as_ref().is_none_or(|it| it.interruptible),
            interruptible: self.interruptible,
            detection: self.turn.detection,
            silence_threshold: self.silence_threshold,
            confident_endpointing: self.turn.confident,
            dynamic_endpointing: self.turn.dynamic,
            language: self.stt.language.clone(),
            interruption: self.turn.interruption,
            echo_warm_up: self.turn.echo_warm_up,
            preemptive_generation: self.turn.preemptive_generation,
            away_prompt: self.away_prompt.clone(),
            max_endpointing: self.max_endpointing,
            max_speak: self.max_speak,
            min_interruption: self.min_interruption,
            min_interruption_words: self.min_interruption_words,
            false_interruption: self.false_interruption,
            transcript_timeout: self.transcript_timeout,
            llm_first_token: self.longest_first_token(),
            tts_first_audio: self.voice.first_audio_timeout,
            user_away: self.user_away,
            close_on_participant_left: self.close_on_participant_left,
            apology: self.apology.clone(),
            transcribe_only: self.transcribe_only(),
        }
    }

    /// Whether its model may call anything.
    pub fn has_tools(&self) -> bool {
        !(self.tools.is_empty()
            && self.mcp.is_empty()
            && self.builtin_tools.is_empty()
            && self.knowledge.is_none())
    }

    /// The agents to whom this one may hand over.
    pub fn colleagues(&self) -> impl Iterator<Item = &str> {
        self.transfer_to.values().filter_map(|place| match place {
            Destination::Agent { name, .. } => Some(name.as_str()),
            Destination::Address(_) => None,
        })
    }

    /// The settings for a room, with its metadata in the system prompt. A template that this
    /// metadata breaks is rendered without it, and the error is given beside.
    pub fn settings_for(&self, context: &RoomContext) -> (Settings, Option<RenderError>) {
        match self.prompt.render(context) {
            Ok(text) => (self.settings(text), None),
            Err(error) => {
                let bare = self.prompt.render(&RoomContext::default()).unwrap_or_default();
                (self.settings(bare), Some(error))
            }
        }
    }
}
