//! How an agent file is read: every key, its type, its bounds, its default.

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    config::{
        agent::{
            Agent, Greeting, LlmSettings, Mode, Streaming, SttSettings, TurnSettings, VadKind,
            VadSettings, VoiceSettings, WebRtcMode,
        },
        agent_tools,
        error::{ConfigErrors, did_you_mean},
        names,
        prompt::Prompt,
        reader::{self, Document, Reader},
        resolver::check_url,
        source::SourceFile,
    },
    context::routing::Routing,
    session::{
        ports::LONGEST_SPEECH_MS,
        settings::{Detection, Interruption, Settings},
    },
    tts::{elevenlabs::MAX_DICTIONARIES, spoken::Pronunciations},
};

/// Providers of one kind, each with what it is asked for unless the file says otherwise.
struct Catalogue {
    built: &'static [Built],
}

struct Built {
    name: &'static str,
    model: &'static str,
    /// Of a voice provider.
    voice: &'static str,
}

const fn built(name: &'static str, model: &'static str, voice: &'static str) -> Built {
    Built { name, model, voice }
}

impl Catalogue {
    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.built.iter().map(|built| built.name)
    }

    fn find(&self, name: &str) -> &'static Built {
        self.built.iter().find(|built| built.name == name).unwrap_or(&self.built[0])
    }
}

const LLM: Catalogue = Catalogue {
    built: &[
        built("anthropic", "claude-sonnet-4-20250514", ""),
        built("openai", "gpt-4o-mini", ""),
        built("google", "gemini-2.5-flash", ""),
    ],
};
const VOICE: Catalogue = Catalogue {
    built: &[
        built("elevenlabs", "eleven_turbo_v2_5", "EXAVITQu4vr4xnSDxMaL"),
        built("openai", "gpt-4o-mini-tts", "alloy"),
    ],
};
const STT: Catalogue = Catalogue {
    built: &[
        built("deepgram", "nova-3", ""),
        built("assemblyai", "universal-streaming-english", ""),
        built("google", "long", ""),
        built("openai", "gpt-4o-transcribe", ""),
        built("openai-realtime", "gpt-4o-transcribe", ""),
    ],
};
/// An apology after this is still heard within 3 s of the question.
const FIRST_TOKEN: Duration = Duration::from_millis(2_500);
/// Words of one voice.
const MAX_PRONUNCIATIONS: usize = 500;
/// Fallbacks of one kind.
const MAX_FALLBACKS: usize = 4;

/// Whether a dotted key is an agent file's.
pub(crate) fn is_agent_key(key: &str) -> bool {
    let top = key.split('.').next().unwrap_or(key);
    [
        "mode",
        "prompt",
        "llm",
        "voice",
        "stt",
        "vad",
        "tools",
        "turn",
        "greeting",
        "farewell",
        "apology",
        "away_prompt",
    ]
    .contains(&top)
        || ["interruptible", "description", "close_on_participant_left"].contains(&top)
        || ["builtin_tools", "knowledge", "mcp", "tool_filler", "transfer_to"].contains(&top)
        || (top.ends_with("_ms") || top == "min_interruption_words")
}

pub(super) fn parse(
    name: &str,
    file: &SourceFile,
    find_prompt: impl FnOnce(&str) -> Result<SourceFile, String>,
) -> Result<Agent, ConfigErrors> {
    let mut errors = ConfigErrors::default();
    let (table, faults) = reader::parse(file);
    // After broken syntax the recovered rest may say anything about keys.
    if !faults.is_empty() {
        errors.extend(faults);
        return Err(errors);
    }
    let document = Document::new(file);
    let root = document.root(table.get_ref());
    let agent = read(name, &document, &root, find_prompt);
    finish(&root);
    drop(root);
    errors.extend(document.into_faults());
    match agent {
        Some(agent) if errors.is_empty() => Ok(agent),
        _ => Err(errors),
    }
}

/// What nobody asked for is a fault, which says so when the key is the process's.
pub(super) fn finish(table: &Reader<'_>) {
    table.finish(|key| {
        names::is_process_key(key).then(|| {
            format!("`{key}` is the process's: it belongs in antiphon.toml or the environment")
        })
    });
}

fn read(
    name: &str,
    document: &Document<'_>,
    root: &Reader<'_>,
    find_prompt: impl FnOnce(&str) -> Result<SourceFile, String>,
) -> Option<Agent> {
    let defaults = Settings::default();
    let description = root.text("description");
    let mode = root
        .choice("mode", &[("converse", Mode::Converse), ("transcribe", Mode::Transcribe)])
        .unwrap_or_default();
    let converses = mode == Mode::Converse;
    let llm = read_llm(&root.table("llm"), converses);
    let voice = read_voice(&root.table("voice"), &defaults);
    let stt = read_stt(&root.table("stt"));
    let vad = read_vad(&root.table("vad"));
    let tools = agent_tools::read(root);
    let turn = read_turn(&root.table("turn"), &defaults);
    let prompt = read_prompt(name, root, find_prompt);
    let greeting = read_greeting(root);
    let silence_threshold =
        ms(root, "silence_threshold_ms", 0..=10_000, defaults.silence_threshold);
    let max_endpointing = read_max_endpointing(root, silence_threshold, &defaults);
    let agent = Agent {
        name: name.to_owned(),
        label: document.file.label().to_owned(),
        description,
        mode,
        llm,
        voice,
        stt,
        vad,
        tools: tools.http,
        mcp: tools.mcp,
        knowledge: tools.knowledge,
        transfer_to: tools.transfer_to,
        builtin_tools: tools.builtins,
        tool_filler: root
            .string("tool_filler")
            .map_or_else(|| "One moment, please.".into(), |found| found.value),
        greeting,
        farewell: root.text("farewell"),
        away_prompt: root.text("away_prompt"),
        apology: root.string("apology").map_or(defaults.apology, |found| found.value),
        interruptible: root.boolean("interruptible").unwrap_or(defaults.interruptible),
        turn,
        silence_threshold,
        max_endpointing,
        min_interruption: ms(root, "min_interruption_ms", 0..=10_000, defaults.min_interruption),
        min_interruption_words: root
            .integer("min_interruption_words", 0..=100)
            .map_or(defaults.min_interruption_words, |words| words as usize),
        false_interruption: ms(
            root,
            "false_interruption_ms",
            100..=60_000,
            defaults.false_interruption,
        ),
        transcript_timeout: ms(
            root,
            "transcript_timeout_ms",
            100..=60_000,
            defaults.transcript_timeout,
        ),
        max_speak: ms(root, "max_speak_ms", 1_000..=LONGEST_SPEECH_MS, defaults.max_speak),
        user_away: ms(root, "user_away_ms", 0..=3_600_000, defaults.user_away),
        close_on_participant_left: root.boolean("close_on_participant_left").unwrap_or(true),
        prompt: prompt?,
    };
    if agent.turn.preemptive_generation && agent.has_tools() {
        let problem = "an answer that is begun before the turn has ended would call tools for it";
        let fault = root.table("turn").fault("preemptive_generation", 0..0, problem);
        root.push(fault.help("an agent with tools leaves this off"));
    }
    Some(agent)
}

fn read_llm(table: &Reader<'_>, used: bool) -> LlmSettings {
    let mut settings = read_model(table, used, None);
    for fallback in table.tables("fallback", MAX_FALLBACKS) {
        let behind = read_model(&fallback, used, Some(&settings));
        finish(&fallback);
        settings.fallback.push(behind);
    }
    if table.is_table("small") {
        let small = table.table("small");
        settings.small = Some(Box::new(read_model(&small, used, Some(&settings))));
        finish(&small);
    }
    settings.routing = table
        .choice("routing", &[("auto", Routing::Auto), ("always_large", Routing::AlwaysLarge)])
        .unwrap_or_default();
    finish(table);
    settings
}

/// A fallback has of the model before it what it does not say itself.
fn read_model(table: &Reader<'_>, used: bool, first: Option<&LlmSettings>) -> LlmSettings {
    let provider = provider(table, &LLM, "anthropic", used, first.is_some());
    let base_url = table.string("base_url").and_then(|found| {
        let checked = check_url(&found.value, &["http", "https"]);
        checked.map_err(|problem| table.push(table.fault("base_url", found.span, problem))).ok()
    });
    let model = table.text("model").unwrap_or_else(|| LLM.find(&provider).model.into());
    let temperature = read_temperature(table, first);
    let first_token = first.map_or(FIRST_TOKEN, |it| it.first_token_timeout);
    LlmSettings {
        provider,
        model,
        temperature,
        max_tokens: table
            .integer("max_tokens", 1..=100_000)
            .map_or_else(|| first.map_or(1024, |it| it.max_tokens), |tokens| tokens as u32),
        base_url,
        first_token_timeout: ms(table, "first_token_timeout_ms", 100..=60_000, first_token),
        fallback: Vec::new(),
        small: None,
        routing: Routing::default(),
    }
}

/// A number, or `"model"` for the model's own.
fn read_temperature(table: &Reader<'_>, first: Option<&LlmSettings>) -> Option<f32> {
    let inherited = first.map_or(Some(0.7), |it| it.temperature);
    if table.is_string("temperature") {
        return table.choice("temperature", &[("model", None)]).unwrap_or(inherited);
    }
    table.float("temperature", 0.0..=2.0).or(inherited)
}

fn read_voice(table: &Reader<'_>, defaults: &Settings) -> VoiceSettings {
    let mut settings = read_one_voice(table, defaults, None);
    for fallback in table.tables("fallback", MAX_FALLBACKS) {
        let behind = read_one_voice(&fallback, defaults, Some(&settings));
        finish(&fallback);
        settings.fallback.push(behind);
    }
    finish(table);
    settings
}

fn read_one_voice(
    table: &Reader<'_>,
    defaults: &Settings,
    first: Option<&VoiceSettings>,
) -> VoiceSettings {
    let provider = provider(table, &VOICE, "elevenlabs", true, first.is_some());
    let built = VOICE.find(&provider);
    VoiceSettings {
        provider,
        voice_id: table.text("voice_id").unwrap_or_else(|| built.voice.into()),
        model: table.text("model").unwrap_or_else(|| built.model.into()),
        language: table.text("language").or_else(|| first.and_then(|it| it.language.clone())),
        stability: table.float("stability", 0.0..=1.0).unwrap_or(0.5),
        similarity_boost: table.float("similarity_boost", 0.0..=1.0).unwrap_or(0.75),
        sample_rate: read_sample_rate(table).or(first.map(|it| it.sample_rate)).unwrap_or(24_000),
        auto_mode: table.boolean("auto_mode").unwrap_or(true),
        streaming: table
            .choice("streaming", &[("multi", Streaming::Multi), ("single", Streaming::Single)])
            .unwrap_or_default(),
        first_audio_timeout: ms(
            table,
            "first_audio_timeout_ms",
            100..=60_000,
            defaults.tts_first_audio,
        ),
        instructions: table.text("instructions"),
        pronunciations: read_pronunciations(table),
        dictionaries: read_dictionaries(table),
        fallback: Vec::new(),
    }
}

fn read_pronunciations(table: &Reader<'_>) -> Pronunciations {
    let words = table.pairs("pronunciations", MAX_PRONUNCIATIONS).into_iter();
    let words = words.filter_map(|(word, said)| {
        let problem = if word.is_empty() || word.contains(char::is_whitespace) {
            format!("{word:?} is not one word")
        } else if said.value.trim().is_empty() {
            format!("how {word:?} is said is empty")
        } else {
            return Some((word, said.value));
        };
        table.push(table.fault("pronunciations", said.span, problem));
        None
    });
    words.collect()
}

fn read_dictionaries(table: &Reader<'_>) -> Vec<(String, Option<String>)> {
    let dictionaries = table.tables("pronunciation_dictionaries", MAX_DICTIONARIES).into_iter();
    let dictionaries = dictionaries.filter_map(|one| {
        let (id, version) = (one.text("id"), one.text("version"));
        if id.is_none() {
            one.push(one.fault("id", 0..0, "is missing: the dictionary's id"));
        }
        finish(&one);
        Some((id?, version))
    });
    dictionaries.collect()
}

fn read_sample_rate(table: &Reader<'_>) -> Option<u32> {
    let rates: [(&'static str, u32); 4] =
        [("pcm_8000", 8_000), ("pcm_16000", 16_000), ("pcm_24000", 24_000), ("pcm_48000", 48_000)];
    table.choice("output_format", &rates)
}

fn read_stt(table: &Reader<'_>) -> SttSettings {
    let mut settings = read_recogniser(table, None);
    for fallback in table.tables("fallback", MAX_FALLBACKS) {
        let behind = read_recogniser(&fallback, Some(&settings));
        finish(&fallback);
        settings.fallback.push(behind);
    }
    finish(table);
    settings
}

/// A fallback has of the recogniser before it what it does not say itself.
fn read_recogniser(table: &Reader<'_>, first: Option<&SttSettings>) -> SttSettings {
    let provider = provider(table, &STT, "deepgram", true, first.is_some());
    let model = table.text("model").unwrap_or_else(|| STT.find(&provider).model.into());
    SttSettings {
        provider,
        model,
        language: table.text("language").or_else(|| first.and_then(|it| it.language.clone())),
        endpointing_ms: table.integer("endpointing_ms", 0..=5_000).unwrap_or(150) as u32,
        utterance_end_ms: table.integer("utterance_end_ms", 0..=5_000).unwrap_or(1_000) as u32,
        smart_format: table
            .boolean("smart_format")
            .unwrap_or_else(|| first.is_some_and(|it| it.smart_format)),
        punctuate: table
            .boolean("punctuate")
            .unwrap_or_else(|| first.is_none_or(|it| it.punctuate)),
        keyterms: table
            .strings("keyterms", 100)
            .unwrap_or_else(|| first.map_or_else(Vec::new, |it| it.keyterms.clone())),
        opt_out_of_training: table
            .boolean("opt_out_of_training")
            .unwrap_or_else(|| first.is_none_or(|it| it.opt_out_of_training)),
        fallback: Vec::new(),
    }
}

fn read_vad(table: &Reader<'_>) -> VadSettings {
    let threshold = table.float("threshold", 0.05..=1.0).unwrap_or(0.7);
    let modes = [
        ("quality", WebRtcMode::Quality),
        ("low_bitrate", WebRtcMode::LowBitrate),
        ("aggressive", WebRtcMode::Aggressive),
        ("very_aggressive", WebRtcMode::VeryAggressive),
    ];
    let settings = VadSettings {
        kind: table
            .choice("kind", &[("earshot", VadKind::Earshot), ("webrtc", VadKind::WebRtc)])
            .unwrap_or_default(),
        webrtc_mode: table.choice("webrtc_mode", &modes).unwrap_or_default(),
        threshold,
        exit_threshold: table
            .float("exit_threshold", 0.01..=threshold)
            .unwrap_or(((threshold * 100.0).round() - 10.0).max(1.0) / 100.0),
        min_speech_ms: table.integer("min_speech_ms", 0..=5_000).unwrap_or(100) as u32,
        min_silence_ms: table.integer("min_silence_ms", 0..=5_000).unwrap_or(180) as u32,
    };
    finish(table);
    settings
}

fn read_turn(table: &Reader<'_>, defaults: &Settings) -> TurnSettings {
    let detections = [
        ("silence", Detection::Silence),
        ("stt", Detection::Stt),
        ("heuristic", Detection::Heuristic),
        ("semantic", Detection::Semantic),
    ];
    let interruptions = [("speech", Interruption::Speech), ("adaptive", Interruption::Adaptive)];
    let settings = TurnSettings {
        detection: table.choice("detection", &detections).unwrap_or_default(),
        confident: ms(table, "confident_ms", 0..=10_000, defaults.confident_endpointing),
        dynamic: table.boolean("dynamic").unwrap_or(defaults.dynamic_endpointing),
        interruption: table.choice("interruption", &interruptions).unwrap_or_default(),
        echo_warm_up: ms(table, "echo_warm_up_ms", 0..=60_000, defaults.echo_warm_up),
        preemptive_generation: table
            .boolean("preemptive_generation")
            .unwrap_or(defaults.preemptive_generation),
    };
    finish(table);
    settings
}

/// `greeting = "…"`, or a table with `text` and `interruptible`.
fn read_greeting(root: &Reader<'_>) -> Option<Greeting> {
    if !root.is_table("greeting") {
        return root.text("greeting").map(|text| Greeting { text, interruptible: true });
    }
    let table = root.table("greeting");
    let text = table.text("text");
    let interruptible = table.boolean("interruptible").unwrap_or(true);
    finish(&table);
    Some(Greeting { text: text?, interruptible })
}

fn read_prompt(
    name: &str,
    root: &Reader<'_>,
    find_prompt: impl FnOnce(&str) -> Result<SourceFile, String>,
) -> Option<Prompt> {
    let written = root.string("prompt");
    let (path, span) = match written {
        Some(found) => (found.value, found.span),
        None => (format!("prompts/{name}.md"), 0..0),
    };
    match find_prompt(&path) {
        Ok(file) => Prompt::new(file).map_err(|fault| root.push(*fault)).ok(),
        Err(problem) => {
            root.push(root.fault("prompt", span, format!("{path} {problem}")));
            None
        }
    }
}

/// The default gives way to a longer silence threshold; a value written in the file does not.
fn read_max_endpointing(
    root: &Reader<'_>,
    silence_threshold: Duration,
    defaults: &Settings,
) -> Duration {
    let least = silence_threshold.as_millis() as u64;
    let default = defaults.max_endpointing.max(silence_threshold);
    ms(root, "max_endpointing_ms", least..=60_000, default)
}

pub(super) fn ms(
    table: &Reader<'_>,
    key: &'static str,
    range: RangeInclusive<u64>,
    default: Duration,
) -> Duration {
    table.integer(key, range).map_or(default, Duration::from_millis)
}

/// The provider's name; one that is not built, or unknown, is a fault where the agent uses it.
fn provider(
    table: &Reader<'_>,
    list: &Catalogue,
    default: &str,
    used: bool,
    is_required: bool,
) -> String {
    let found = table.string("provider");
    let name = found.as_ref().map_or(default, |found| found.value.as_str()).to_owned();
    if found.is_none() && is_required {
        table.push(table.fault("provider", 0..0, "a fallback names its provider"));
        return name;
    }
    if list.names().any(|built| built == name) || (found.is_none() && !used) {
        return name;
    }
    let built = list.names().collect::<Vec<_>>().join(", ");
    let span = found.as_ref().map_or(0..0, |found| found.span.clone());
    let help = match did_you_mean(&name, list.names()) {
        Some(near) => format!("did you mean {near:?}? there are: {built}"),
        None => format!("there are: {built}"),
    };
    let fault =
        table.fault("provider", span, format!("the provider {name:?} is unknown")).help(help);
    table.push(fault);
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::env::AgentOverrides;

    const BASE: &str = "[llm]\nprovider = \"openai\"\nmodel = \"m\"\n";

    fn parse(text: &str) -> Result<Agent, ConfigErrors> {
        let file = SourceFile::new("agents/a.toml", text);
        super::parse("a", &file, |path| Ok(SourceFile::new(path, "Prompt.")))
    }

    #[test]
    fn what_is_not_written_has_its_default() {
        let agent = parse(BASE).unwrap();
        let expected = Settings {
            system_prompt: "S".into(),
            llm_first_token: FIRST_TOKEN,
            ..Settings::default()
        };
        assert_eq!(agent.settings("S".into()), expected);
        assert_eq!(agent.prompt.label(), "prompts/a.md");
        assert_eq!((agent.llm.temperature, agent.llm.max_tokens), (Some(0.7), 1024));
        assert_eq!(agent.voice.voice_id, "EXAVITQu4vr4xnSDxMaL");
        assert_eq!((agent.stt.provider.as_str(), agent.stt.model.as_str()), ("deepgram", "nova-3"));
        assert_eq!(agent.vad.kind, VadKind::Earshot);
        assert!(agent.close_on_participant_left);
    }

    #[test]
    fn what_is_written_reaches_the_session() {
        let text = "silence_threshold_ms = 250\nfarewell = \"Bye\"\napology = \"\"\n\
                    interruptible = false\n[greeting]\ntext = \"Hi\"\ninterruptible = false\n";
        let settings = parse(&format!("{text}{BASE}")).unwrap().settings(String::new());
        assert_eq!(settings.silence_threshold, Duration::from_millis(250));
        assert_eq!(settings.greeting.as_deref(), Some("Hi"));
        assert_eq!(settings.farewell.as_deref(), Some("Bye"));
        assert!(!settings.greeting_interruptible && !settings.interruptible);
        assert_eq!(settings.apology, "");
    }

    #[test]
    fn the_documentation_lists_every_setting_with_its_default() {
        let page = include_str!("../../docs/agents.md");
        let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
        let documented = parse(example.unwrap()).unwrap();
        let mut written = parse(&BASE.replace("\"m\"", "\"gpt-4o-mini\"")).unwrap();
        written.prompt = documented.prompt.clone();
        assert_eq!(format!("{documented:?}"), format!("{written:?}"));
        // What has no default is there as a comment, and right when uncommented.
        let whole: String = example
            .unwrap()
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|it| is_setting(it)).unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        let whole = parse(&whole).unwrap_or_else(|errors| panic!("{}", errors.render(false)));
        assert!(whole.description.is_some() && whole.greeting.is_some());
        assert!(whole.farewell.is_some() && whole.llm.base_url.is_some());
        assert!(whole.stt.language.is_some() && whole.voice.language.is_some());
    }

    fn is_setting(line: &str) -> bool {
        line == "[greeting]" || line.split_once(" = ").is_some_and(|(key, _)| is_key(key))
    }

    fn is_key(text: &str) -> bool {
        text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    }

    #[test]
    fn all_faults_of_a_file_are_listed_at_once() {
        let text = "moode = \"converse\"\nmax_speak_ms = \"long\"\nuser_away_ms = -1\n\
                    [llm]\nprovider = \"openai\"\ntemperature = 3\nbase_url = \"h\"\n\
                    [vad]\nkind = \"eershot\"\n";
        let errors = parse(text).unwrap_err();
        let mut keys = errors.keys();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "llm.base_url",
                "llm.temperature",
                "max_speak_ms",
                "moode",
                "user_away_ms",
                "vad.kind"
            ]
        );
        let text = errors.render(false);
        for part in [
            "did you mean `mode`?",
            "did you mean \"earshot\"?",
            "must be a whole number, is a string",
            "-1 is not between 0 and 3600000",
            "agents/a.toml:2:16",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn a_small_model_may_stand_beside() {
        let text =
            format!("{BASE}routing = \"always_large\"\n[llm.small]\nprovider = \"google\"\n");
        let agent = parse(&text).unwrap();
        assert_eq!(agent.llm.small.as_ref().unwrap().model, "gemini-2.5-flash");
        assert_eq!(agent.llm.routing, Routing::AlwaysLarge);
    }

    #[test]
    fn an_unknown_key_in_a_table_is_a_fault_with_a_hint() {
        let errors = parse(&format!("{BASE}max_token = 5\n")).unwrap_err();
        assert_eq!(errors.keys(), ["llm.max_token"]);
        assert!(errors.render(false).contains("did you mean `max_tokens`?"));
    }

    #[test]
    fn broken_toml_shows_the_line() {
        let errors = parse("mode = \"converse\"\nfarewell = \"Bye\n").unwrap_err();
        let text = errors.render(false);
        assert!(text.contains("agents/a.toml:2"), "{text}");
        assert!(text.contains("farewell = \"Bye"), "{text}");
    }

    #[test]
    fn the_processs_settings_say_where_they_belong() {
        let text = format!("http_port = 1\n[livekit]\napi_secret = \"sesame\"\n{BASE}");
        let errors = parse(&text).unwrap_err();
        assert_eq!(errors.keys(), ["http_port", "livekit"]);
        let shown = errors.render(false);
        assert_eq!(shown.matches("belongs in antiphon.toml").count(), 2, "{shown}");
        assert!(!shown.contains("sesame"), "{shown}");
    }

    #[test]
    fn each_provider_has_its_own_defaults() {
        let agent = parse("").unwrap();
        assert_eq!(agent.llm.provider, "anthropic");
        assert_eq!(agent.llm.model, "claude-sonnet-4-20250514");
        let agent =
            parse("[llm]\nprovider = \"google\"\n[voice]\nprovider = \"openai\"\n").unwrap();
        assert_eq!(agent.llm.model, "gemini-2.5-flash");
        assert_eq!(
            (agent.voice.voice_id.as_str(), agent.voice.model.as_str()),
            ("alloy", "gpt-4o-mini-tts")
        );
        let errors = parse(&format!("{BASE}[stt]\nprovider = \"depgram\"\n")).unwrap_err();
        assert!(errors.render(false).contains("did you mean \"deepgram\"?"));
    }

    #[test]
    fn fallbacks_are_read_in_order_and_inherit() {
        let text = "[llm]\ntemperature = 0.2\nmax_tokens = 300\n\
                    [[llm.fallback]]\nprovider = \"openai\"\n\
                    [[llm.fallback]]\nprovider = \"google\"\nmax_tokens = 50\n\
                    [voice]\noutput_format = \"pcm_48000\"\n\
                    [[voice.fallback]]\nprovider = \"openai\"\nvoice_id = \"nova\"\n";
        let agent = parse(text).unwrap();
        let chain: Vec<_> =
            agent.llm.chain().map(|it| (it.provider.as_str(), it.max_tokens)).collect();
        assert_eq!(chain, [("anthropic", 300), ("openai", 300), ("google", 50)]);
        assert!(agent.llm.chain().all(|it| it.temperature == Some(0.2)));
        let voice = &agent.voice.fallback[0];
        assert_eq!((voice.voice_id.as_str(), voice.sample_rate), ("nova", 48_000));
        let errors = parse("[[llm.fallback]]\nmodel = \"m\"\nprovidr = \"x\"\n").unwrap_err();
        assert_eq!(errors.keys(), ["llm.fallback.provider", "llm.fallback.providr"]);
    }

    #[test]
    fn a_transcriber_needs_no_language_model() {
        let agent = parse("mode = \"transcribe\"\n").unwrap();
        assert!(agent.settings(String::new()).transcribe_only);
    }

    #[test]
    fn the_temperature_can_be_left_to_the_model() {
        let agent = parse(&format!("{BASE}temperature = \"model\"\n")).unwrap();
        assert_eq!(agent.llm.temperature, None);
        let errors = parse(&format!("{BASE}temperature = \"hot\"\n")).unwrap_err();
        assert_eq!(errors.keys(), ["llm.temperature"]);
    }

    #[test]
    fn the_longest_wait_is_not_shorter_than_the_shortest() {
        let text = format!("silence_threshold_ms = 900\nmax_endpointing_ms = 800\n{BASE}");
        assert_eq!(parse(&text).unwrap_err().keys(), ["max_endpointing_ms"]);
        let agent = parse(&format!("silence_threshold_ms = 9000\n{BASE}")).unwrap();
        assert_eq!(agent.max_endpointing, Duration::from_secs(9));
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let overrides = AgentOverrides {
            greeting: Some("Hello".into()),
            silence_threshold: Some(Duration::from_millis(3_500)),
            min_interruption: Some(Duration::from_millis(200)),
            preemptive_generation: Some(true),
            elevenlabs_voice_id: Some("V".into()),
            elevenlabs_model: None,
        };
        let agent = parse(BASE).unwrap().with_overrides(&overrides);
        assert_eq!(agent.voice.voice_id, "V");
        let settings = agent.settings(String::new());
        assert_eq!(settings.greeting.as_deref(), Some("Hello"));
        assert_eq!(settings.silence_threshold, Duration::from_millis(3_500));
        assert_eq!(settings.max_endpointing, Duration::from_millis(3_500));
        assert_eq!(settings.min_interruption, Duration::from_millis(200));
        assert!(settings.preemptive_generation);
        let with_tools = parse(&format!("builtin_tools = [\"end_call\"]\n{BASE}")).unwrap();
        let with_tools = with_tools.with_overrides(&overrides).settings(String::new());
        assert!(!with_tools.preemptive_generation, "tools would be called for words taken back");
    }
}
