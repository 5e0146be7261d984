//! `antiphon replay`: a WAV file through the whole conversation, without any server.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{
    audio::{resample, vad, wav},
    cli::{
        Exit, fail,
        runtime::{double_endpoints, driver_config, providers, vad as vad_config},
        terminal::{self, Live},
    },
    config::{RoomContext, Setup},
    doubles::{self, Script},
    flight,
    replay::{realtime, report::Report, simulated},
    session::ports::Shown,
    telemetry::usage::Totals,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  antiphon replay question.wav                   in virtual time, with scripted providers
  antiphon replay question.wav --realtime        in real time, with provider doubles on loopback
  antiphon replay question.wav --real            in real time, with the agent's own providers
  antiphon replay question.wav --json            the report as JSON
  antiphon replay --flight FILE.flight           what a recorded session did, and whether it does so again
  antiphon replay --flight FILE.flight --until 12500 --json
  antiphon replay --flight FILE.flight --diff other.json    beside what another version did

What is said in the WAV is taken from FILE.expected.json when it is there:
  {\"utterances\":[{\"startMs\":400,\"endMs\":1200,\"text\":\"book a table\"}]}")]
pub struct ReplayArgs {
    /// A WAV: 8 to 48 kHz, integer or float, 1 to 8 channels
    #[arg(required_unless_present = "flight")]
    file: Option<PathBuf>,
    /// Fly a recorded session again (ANTIPHON_FLIGHT records them)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["file", "realtime", "real"])]
    flight: Option<PathBuf>,
    /// Only the flight's first milliseconds
    #[arg(long, value_name = "MS", requires = "flight")]
    until: Option<u64>,
    /// Where the flight differs from the JSON that `--json` printed, by another version perhaps
    #[arg(long, value_name = "FILE", requires = "flight")]
    diff: Option<PathBuf>,
    /// In real time, through sockets, with provider doubles
    #[arg(long)]
    realtime: bool,
    /// With the agent's real providers (implies --realtime)
    #[arg(long)]
    pub real: bool,
    /// Where the agent's voice goes
    #[arg(long, default_value = "reply.wav", value_name = "FILE")]
    out: PathBuf,
    /// Print a JSON report instead of the live view
    #[arg(long)]
    json: bool,
}

pub async fn run(mut setup: Setup, args: ReplayArgs) -> Exit {
    if let Some(flight) = &args.flight {
        return fly(flight, &args).unwrap_or_else(|problem| {
            fail(&problem);
            Exit::Usage
        });
    }
    let file = args.file.clone().unwrap_or_default();
    match replay(&mut setup, &file, &args).await {
        Ok(()) => Exit::Done,
        Err(problem) => {
            fail(&problem);
            Exit::Usage
        }
    }
}

/// A flight again: its time line, or how it differs. Exits with 4 when the machine now does
/// something else than was recorded, or than the other version did.
fn fly(path: &Path, args: &ReplayArgs) -> Result<Exit, String> {
    let until = args.until.map(Duration::from_millis);
    let flown = flight::replay::fly(path, until).map_err(|error| error.to_string())?;
    let lines: Vec<String> = flown
        .commands
        .iter()
        .map(|(at, command)| format!("{:>10.3} {command:?}", at.as_secs_f64()))
        .collect();
    let mut live = Live::new(args.json);
    let mut exit = Exit::Done;
    if let Some(other) = &args.diff {
        let text = std::fs::read_to_string(other)
            .map_err(|error| format!("{}: {error}", other.display()))?;
        let other: Timeline =
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", other.display()))?;
        let differences = flight::replay::diff(&other.commands, &lines);
        if other.commands != lines {
            exit = Exit::Faults;
        }
        for line in &differences {
            live.line(line);
        }
    } else if args.json {
        terminal::json(&Timeline {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commands: lines,
        });
    } else {
        for (at, command) in &flown.commands {
            if let Some(shown) = simulated::shown(command) {
                live.show(at.as_millis() as u64, &shown);
            }
        }
        live.line(&format!(
            "{} steps, {} commands, recorded by {}{}",
            flown.steps,
            flown.commands.len(),
            flown.header.version,
            if flown.end.is_none() && until.is_none() { "; the recording breaks off" } else { "" },
        ));
    }
    if let Some(diverged) = flown.diverged {
        exit = Exit::Faults;
        fail(&format!(
            "the machine does something else than was recorded before step {} at {:.3} s",
            diverged.step,
            diverged.at.as_secs_f64()
        ));
    }
    Ok(exit)
}

/// What a flight did, for another version to be compared with.
#[derive(Debug, Serialize, Deserialize)]
struct Timeline {
    version: String,
    commands: Vec<String>,
}

async fn replay(setup: &mut Setup, file: &Path, args: &ReplayArgs) -> Result<(), String> {
    let agent = setup.agent.take().ok_or("no agent")?;
    let samples = load(file)?;
    let said = expected(file)?;
    let source = file.display().to_string();
    let mut live = Live::new(args.json);
    let (report, reply, rate) = if args.realtime || args.real {
        let doubles = doubles::serve(script(&said))
            .await
            .map_err(|error| format!("the provider doubles cannot start: {error}"))?;
        let base_url = Url::parse(&doubles.base_url()).map_err(|error| error.to_string())?;
        let endpoints = match setup.providers.take() {
            Some(real) if args.real => real,
            _ => double_endpoints(&agent, &base_url),
        };
        let mut report = Report::new(source, "realtime");
        let providers = providers(&agent, endpoints)?;
        let (priced, mut totals) = (providers.clone(), Totals::default());
        let replayed = realtime::run(
            samples.into(),
            driver_config(&agent, "", "agent-replay"),
            providers,
            async |at, shown| {
                if let Shown::Usage(usage) = shown {
                    totals.add(priced.used(*usage));
                }
                report.take(at, shown);
                live.show(at, shown);
            },
        )
        .await;
        report.price(&totals);
        (report, replayed.reply, replayed.reply_rate)
    } else {
        let (settings, _) = agent.settings_for(&RoomContext::default());
        let done =
            simulated::run(&source, &samples, settings, vad_config(&agent), &said, |at, shown| {
                live.show(at, shown);
            })
            .map_err(|error| error.to_string())?;
        (done.report, done.reply, simulated::REPLY_RATE)
    };
    write(&args.out, rate, &reply).map_err(|error| error.to_string())?;
    live.summary(&report);
    live.line(&format!("reply: {} ({rate} Hz)", args.out.display()));
    if args.json {
        terminal::json(&report);
    }
    Ok(())
}

/// The WAV as the caller's microphone gives it: mono s16 at 16 kHz.
fn load(path: &Path) -> Result<Vec<i16>, String> {
    let wav = wav::read(path).map_err(|error| error.to_string())?;
    resample::resample(&wav.samples, wav.sample_rate, vad::SAMPLE_RATE)
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// What is said in it, from the file beside it, if there is one.
fn expected(path: &Path) -> Result<Vec<simulated::Utterance>, String> {
    let beside = path.with_extension("expected.json");
    match std::fs::read(&beside) {
        Ok(bytes) => serde_json::from_slice::<simulated::Expected>(&bytes)
            .map(|expected| expected.utterances)
            .map_err(|error| format!("{}: {error}", beside.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("{}: {error}", beside.display())),
    }
}

fn script(said: &[simulated::Utterance]) -> Script {
    Script::new(said.iter().map(|said| said.text.as_str()), [])
}

fn write(path: &Path, rate: u32, samples: &[i16]) -> Result<(), wav::WavError> {
    let mut writer = wav::MonoWriter::create(path, rate)?;
    writer.write(samples)?;
    writer.finish()
}
