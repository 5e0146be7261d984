//! `antiphon check`: everything that is wrong with the configuration, at once, before it matters.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::cli::live::{self, Found};
use crate::config::{ConfigErrors, Fault, Library, Sources, env::Config, error::Origin, setup};

/// Checks settings, agent files and prompts, and lists every fault at once.
///
/// Exits with 0 when all is well, with 2 when something is wrong.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = "Examples:\n  \
    antiphon check                     all that `antiphon start` needs\n  \
    antiphon check --files             antiphon.toml, agents and prompts only, no keys\n  \
    antiphon check --files lab         one agent\n  \
    antiphon check --live              one cheap call to each provider of the agent\n  \
    antiphon check --json | jq .faults")]
pub struct CheckArgs {
    /// Agents to check [default: all]
    #[arg(value_name = "AGENT")]
    pub agents: Vec<String>,
    /// Check the files alone: no LiveKit settings and no provider keys are asked for
    #[arg(long)]
    pub files: bool,
    /// Make one cheap call to each provider that the agent names and has a key for
    #[arg(long, conflicts_with = "files")]
    pub live: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub faults: ConfigErrors,
    pub warnings: ConfigErrors,
    /// The agents that were looked at.
    pub agents: Vec<String>,
}

/// Looks at everything; reads files, binds and sends nothing.
pub fn check(args: &CheckArgs, sources: &Sources) -> Report {
    let (config, mut faults) = Config::resolve(sources);
    let mut warnings = ConfigErrors::default();
    warnings.extend(config.warnings.iter().cloned());
    if !args.files {
        faults.extend(config.require_livekit().err().into_iter().flatten());
    }
    let mut agents = Vec::new();
    match Library::open(config.agents_dir.as_deref()) {
        Err(fault) => faults.push(*fault),
        Ok(library) => {
            agents = if args.agents.is_empty() { library.names() } else { args.agents.clone() };
            if !args.files && !agents.contains(&config.agent) {
                agents.push(config.agent.clone());
            }
            for name in &agents {
                let loaded = library.load(name).and_then(|agent| {
                    setup::colleagues(&library, &agent)?;
                    let runs = !args.files && *name == config.agent;
                    if runs { config.require_providers(&agent).map(|_| ()) } else { Ok(()) }
                });
                faults.extend(loaded.err().into_iter().flatten());
            }
        }
    }
    Report { faults, warnings, agents }
}

/// Prints the report; returns the exit code.
///
/// # Errors
/// When `out` cannot be written.
pub fn run(
    args: &CheckArgs,
    sources: &Sources,
    color: bool,
    out: &mut dyn Write,
) -> io::Result<u8> {
    let report = check(args, sources);
    let live = if args.live { ask_providers(sources)? } else { Vec::new() };
    if args.json {
        let mut value = as_json(&report);
        if args.live {
            value["live"] = serde_json::to_value(&live)?;
        }
        writeln!(out, "{value:#}")?;
    } else {
        print(&report, color, out)?;
        for Found { kind, provider, model, ok, found } in &live {
            let mark = match ok {
                Some(true) => "ok    ",
                Some(false) => "FAILED",
                None => "-     ",
            };
            writeln!(out, "{mark} {kind} {provider} {model}: {found}")?;
        }
    }
    if live.iter().any(|found| found.ok == Some(false)) {
        return Ok(4);
    }
    Ok(if report.faults.is_empty() { 0 } else { 2 })
}

/// Asks the providers of the chosen agent, as far as its file can be read.
fn ask_providers(sources: &Sources) -> io::Result<Vec<Found>> {
    let (config, _) = Config::resolve(sources);
    let library = Library::open(config.agents_dir.as_deref()).ok();
    let Some(agent) = library.and_then(|library| library.load(&config.agent).ok()) else {
        return Ok(Vec::new());
    };
    let agent = agent.with_overrides(&config.overrides);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(live::ask_all(&config, &agent)))
}

fn print(report: &Report, color: bool, out: &mut dyn Write) -> io::Result<()> {
    for warning in report.warnings.faults() {
        match &warning.help {
            Some(help) => writeln!(out, "warning: {warning} ({help})")?,
            None => writeln!(out, "warning: {warning}")?,
        }
    }
    out.write_all(report.faults.render(color).as_bytes())?;
    match report.faults.len() {
        0 => writeln!(out, "all is well; agents: {}", report.agents.join(", ")),
        1 => writeln!(out, "1 fault"),
        count => writeln!(out, "{count} faults"),
    }
}

fn as_json(report: &Report) -> Value {
    let list = |faults: &ConfigErrors| faults.faults().iter().map(fault_json).collect::<Vec<_>>();
    json!({
        "ok": report.faults.is_empty(),
        "agents": report.agents,
        "faults": list(&report.faults),
        "warnings": list(&report.warnings),
    })
}

fn fault_json(fault: &Fault) -> Value {
    let (file, line) = match &fault.origin {
        Origin::File { path, line } => (Some(path.as_str()), Some(*line)),
        Origin::Path(path) => (Some(path.as_str()), None),
        Origin::Flag(_) | Origin::Env(_) | Origin::Unset => (None, None),
    };
    json!({
        "key": fault.key,
        "origin": fault.origin.to_string(),
        "file": file,
        "line": line,
        "problem": fault.problem,
        "help": fault.help,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const KEYS: [(&str, &str); 6] = [
        ("LIVEKIT_URL", "ws://127.0.0.1:7880"),
        ("LIVEKIT_API_KEY", "key"),
        ("LIVEKIT_API_SECRET", "sesame"),
        ("DEEPGRAM_API_KEY", "sesame"),
        ("OPENAI_API_KEY", "sesame"),
        ("ELEVENLABS_API_KEY", "sesame"),
    ];

    fn sources(vars: &[(&str, &str)]) -> Sources {
        let vars = vars.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Sources { vars, ..Sources::default() }
    }

    fn printed(args: &CheckArgs, sources: &Sources) -> (u8, String) {
        let mut out = Vec::new();
        let code = run(args, sources, false, &mut out).unwrap();
        (code, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_whole_configuration_is_well() {
        let (code, text) = printed(&CheckArgs::default(), &sources(&KEYS));
        assert_eq!(code, 0, "{text}");
        assert_eq!(text, "all is well; agents: assistant, lab, transcriber\n");
    }

    #[test]
    fn faults_of_settings_agents_and_prompts_are_listed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let agent = "prompt = \"broken.md\"\nmoode = 1\n[llm]\nprovider = \"openai\"\n";
        fs::write(dir.path().join("mine.toml"), agent).unwrap();
        fs::write(dir.path().join("broken.md"), "{% if %}").unwrap();
        let mut sources = sources(&KEYS[1..]);
        let path = dir.path().display().to_string();
        sources.vars.insert("ANTIPHON_AGENTS_DIR".into(), path);
        sources.vars.insert("ANTIPHON_LOAD".into(), "much".into());
        let report = check(&CheckArgs::default(), &sources);
        assert_eq!(report.faults.keys(), ["ANTIPHON_LOAD", "LIVEKIT_URL", "prompt", "moode"]);
        let (code, text) = printed(&CheckArgs::default(), &sources);
        assert_eq!(code, 2);
        assert!(text.ends_with("4 faults\n"), "{text}");
    }

    #[test]
    fn files_alone_need_no_keys() {
        let args = CheckArgs { files: true, ..CheckArgs::default() };
        assert_eq!(printed(&args, &sources(&[])).0, 0);
    }

    #[test]
    fn the_chosen_agents_keys_are_asked_for() {
        let mut sources = sources(&KEYS[..3]);
        let keys = check(&CheckArgs::default(), &sources);
        assert_eq!(
            keys.faults.keys(),
            ["DEEPGRAM_API_KEY", "OPENAI_API_KEY", "ELEVENLABS_API_KEY"]
        );
        sources.vars.insert("ANTIPHON_AGENT".into(), "transcriber".into());
        let keys = check(&CheckArgs::default(), &sources);
        assert_eq!(keys.faults.keys(), ["DEEPGRAM_API_KEY"]);
    }

    #[test]
    fn a_script_reads_one_json_object() {
        let args =
            CheckArgs { json: true, agents: vec!["asistant".into()], files: true, live: false };
        let (code, text) = printed(&args, &sources(&[("ANTIPHON_LOGG", "x")]));
        assert_eq!(code, 2);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["ok"], false);
        assert_eq!(value["faults"][0]["key"], "ANTIPHON_AGENT");
        assert_eq!(value["faults"][0]["help"], "did you mean `assistant`?");
        assert_eq!(value["warnings"][0]["key"], "ANTIPHON_LOGG");
        assert!(!text.contains("sesame"));
    }
}
