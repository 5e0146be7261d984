//! `antiphon eval`: how well the agent takes turns, on labelled dialogues.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use clap::Args;

use crate::{
    audio::smart_turn::SmartTurn,
    cli::{
        Exit, fail,
        runtime::vad,
        terminal::{self, Live, Progress},
    },
    config::{RoomContext, Setup},
    eval::{
        self,
        dialogue::Set,
        html,
        report::{Report, Thresholds},
    },
    session::settings::Detection,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  antiphon eval fixtures                        make the dialogues (python3, espeak-ng), judge them
  antiphon eval fixtures --json report.json     keep the report
  antiphon eval fixtures --compare report.json  beside an older one
  antiphon eval fixtures --html report.html     with a time line of every dialogue
  antiphon eval fixtures --thresholds my.json   other limits than the shipped ones

Runs in virtual time: the dialogues' sound goes through the real voice activity detector, their
words come from the labels. Exits with 4 when a figure is worse than its threshold, with 2 when
there are no turns, or fewer than the dialogues declare.")]
pub struct EvalArgs {
    /// A folder with a dialogues.json, or with the dialogues.py that makes one
    dir: PathBuf,
    /// Write the report as JSON; `-`: print it instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as an HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Show the figures of an older JSON report beside
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// A JSON file of thresholds [default: the shipped ones]
    #[arg(long, value_name = "FILE")]
    thresholds: Option<PathBuf>,
    /// Make the dialogues anew, though they are there
    #[arg(long)]
    remake: bool,
}

pub async fn run(mut setup: Setup, args: EvalArgs) -> Exit {
    match judge(&mut setup, &args).await {
        Ok(faults) if faults.is_empty() => Exit::Done,
        Ok(faults) => {
            for problem in faults {
                fail(&problem);
            }
            Exit::Faults
        }
        Err(problem) => {
            fail(&problem);
            Exit::Usage
        }
    }
}

async fn judge(setup: &mut Setup, args: &EvalArgs) -> Result<Vec<String>, String> {
    let agent = setup.agent.take().ok_or("no agent")?;
    let thresholds = match &args.thresholds {
        Some(path) => {
            let text = read(path)?;
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?
        }
        None => Thresholds::default(),
    };
    let old: Option<Report> = match &args.compare {
        Some(path) => Some(
            serde_json::from_str(&read(path)?)
                .map_err(|error| format!("{}: {error}", path.display()))?,
        ),
        None => None,
    };
    let dir = made(&args.dir, args.remake).await?;
    let set = Set::open(&dir).map_err(|error| error.to_string())?;
    let (settings, _) = agent.settings_for(&RoomContext::default());
    let config = vad(&agent);
    let detection = settings.detection.as_str();
    let model = match settings.detection {
        Detection::Semantic => {
            let path = SmartTurn::path_in(&setup.config.state_dir);
            Some(SmartTurn::load(&path).map_err(|error| {
                format!("{error} (`antiphon models import` brings the turn model)")
            })?)
        }
        _ => None,
    };
    let evaluated = tokio::task::spawn_blocking(move || {
        let progress = Progress::on_stderr();
        let all = set.names.len();
        eval::evaluate(&set, &settings, config, model.as_ref(), &|played| {
            progress.show(&format!("{played} of {all} dialogues"));
        })
    })
    .await
    .map_err(|error| error.to_string())?
    .map_err(|error| error.to_string())?;
    let report = Report::new(&evaluated, detection);
    if let Some(path) = &args.html {
        write(path, &html::page(&report, &evaluated.dialogues))?;
    }
    let printed = args.json.as_deref() == Some(Path::new("-"));
    if printed {
        terminal::json(&report);
    } else {
        if let Some(path) = &args.json {
            let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
            write(path, &text)?;
        }
        Live::new(false).line(report.table(old.as_ref()).trim_end());
    }
    Ok(report.faults(&thresholds))
}

/// Where the dialogues are: in `dir` itself, or in `dir/dialogues` as `dir/dialogues.py` makes them.
async fn made(dir: &Path, remake: bool) -> Result<PathBuf, String> {
    let script = dir.join("dialogues.py");
    if !script.is_file() {
        return Ok(dir.to_owned());
    }
    let out = dir.join("dialogues");
    if out.join("dialogues.json").is_file() && !remake && is_newer(&out, &script) {
        return Ok(out);
    }
    let mut python = std::process::Command::new("python3");
    python.arg(&script).arg(&out).stdin(Stdio::null()).stdout(Stdio::null());
    let status = tokio::task::spawn_blocking(move || python.status())
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("python3 cannot be run to make the dialogues: {error}"))?;
    if status.success() {
        Ok(out)
    } else {
        Err(format!("{} failed; it needs espeak-ng and its library", script.display()))
    }
}

/// Whether the dialogues were made after the script was last changed.
fn is_newer(out: &Path, script: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    changed(&out.join("dialogues.json")) >= changed(script)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
