//! `antiphon replay`: a WAV file through the whole conversation, without any server.

use std::path::{Path, PathBuf};

use clap::Args;
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
    replay::{realtime, report::Report, simulated},
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  antiphon replay question.wav                   in virtual time, with scripted providers
  antiphon replay question.wav --realtime        in real time, with provider doubles on loopback
  antiphon replay question.wav --real            in real time, with the agent's own providers
  antiphon replay question.wav --json            the report as JSON

What is said in the WAV is taken from FILE.expected.json when it is there:
  {\"utterances\":[{\"startMs\":400,\"endMs\":1200,\"text\":\"book a table\"}]}")]
pub struct ReplayArgs {
    /// 8 to 48 kHz, integer or float, 1 to 8 channels
    file: PathBuf,
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
    match replay(&mut setup, &args).await {
        Ok(()) => Exit::Done,
        Err(problem) => {
            fail(&problem);
            Exit::Usage
        }
    }
}

async fn replay(setup: &mut Setup, args: &ReplayArgs) -> Result<(), String> {
    let agent = setup.agent.take().ok_or("no agent")?;
    let samples = load(&args.file)?;
    let said = expected(&args.file)?;
    let source = args.file.display().to_string();
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
        let replayed = realtime::run(
            samples.into(),
            driver_config(&agent, "", "agent-replay"),
            providers(&agent, endpoints)?,
            async |at, shown| {
                report.take(at, shown);
                live.show(at, shown);
            },
        )
        .await;
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
