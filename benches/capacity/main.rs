//! What a room costs: many rooms in one process, against a real livekit-server.
//!
//! The process that is measured does for every room what a worker's audio path does: it joins,
//! publishes a voice that never pauses, subscribes to its caller's microphone, decodes it to 16 kHz
//! and looks for voice activity. Callers and server are processes of their own, so that their costs
//! do not count. What is heard is looked at 10 ms at a time, on both sides: a frame without sound is
//! a gap.
//!
//! `cargo bench --bench capacity` measures the levels; see `--help` for more.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr, reason = "a bench")]

mod calls;
mod delay;
mod joins;
mod member;
mod process;
#[allow(dead_code, reason = "the integration tests' servers and worker; not all is used here")]
#[path = "../../tests/it/support/mod.rs"]
mod support;
mod voice;

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use serde::Serialize;

use process::{Child, Usage};
use support::livekit::LiveKit;

/// Rooms in one process: what each costs, and whether all is heard.
#[derive(Debug, Parser)]
struct Arguments {
    /// Rooms to measure with, each level in processes of its own.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 50])]
    levels: Vec<usize>,
    /// How long each level is measured, in seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Instead: joins and leaves in one process, and what memory they leave behind.
    #[arg(long, value_name = "COUNT")]
    joins: Option<usize>,
    /// Instead: the time from a captured frame to a listener's frame, over this many bursts.
    #[arg(long, value_name = "BURSTS")]
    delay: Option<usize>,
    /// Instead: the levels with the whole worker in calls of so many questions, answered by
    /// provider doubles.
    #[arg(long, value_name = "QUESTIONS")]
    calls: Option<usize>,
    /// The figures as JSON, too.
    #[arg(long, value_name = "FILE")]
    out: Option<std::path::PathBuf>,
    /// What cargo tells every bench.
    #[arg(long, hide = true)]
    bench: bool,
    /// The part this process plays.
    #[arg(long, hide = true)]
    role: Option<Role>,
    #[arg(long, hide = true, default_value = "")]
    url: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// Measured.
    Rooms,
    Callers,
    /// Callers that ask and listen.
    Talkers,
    Joiner,
}

#[derive(Debug, Serialize)]
struct Level {
    rooms: usize,
    /// Of one core.
    cpu_percent: f64,
    cpu_percent_per_room: f64,
    pss_mb: f64,
    /// Beyond the same process before its first room.
    pss_mb_per_room: f64,
    threads: usize,
    heard_by_rooms: member::Heard,
    heard_by_callers: member::Heard,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let threads = if arguments.role.is_some() { 2 } else { 1 };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> ExitCode {
    ::antiphon::net::install_crypto();
    match arguments.role {
        Some(Role::Rooms) => member::serve(&arguments.url, member::Side::Agent).await,
        Some(Role::Callers) => member::serve(&arguments.url, member::Side::Caller).await,
        Some(Role::Talkers) => calls::serve(&arguments.url).await,
        Some(Role::Joiner) => joins::serve(&arguments.url).await,
        None => return measure(&arguments).await,
    }
    ExitCode::SUCCESS
}

async fn measure(arguments: &Arguments) -> ExitCode {
    let (report, sound) = if let Some(questions) = arguments.calls {
        let levels = calls::measure(&arguments.levels, questions).await;
        let all_answered = levels.iter().all(calls::Level::all_answered);
        (serde_json::to_value(levels), all_answered)
    } else {
        engine(arguments, &LiveKit::start().await).await
    };
    let report = report.expect("figures are JSON");
    if let Some(path) = &arguments.out {
        std::fs::write(path, format!("{report:#}\n")).expect("the report");
    }
    if sound {
        ExitCode::SUCCESS
    } else {
        eprintln!("somebody heard nothing at all");
        ExitCode::FAILURE
    }
}

/// What the engine costs by itself, and whether everybody was heard.
async fn engine(
    arguments: &Arguments,
    server: &LiveKit,
) -> (serde_json::Result<serde_json::Value>, bool) {
    if let Some(count) = arguments.joins {
        let report = joins::measure(server, count).await;
        (serde_json::to_value(report), true)
    } else if let Some(bursts) = arguments.delay {
        let report = delay::measure(server, bursts).await;
        (serde_json::to_value(report), true)
    } else {
        let mut levels = Vec::new();
        println!(
            "| rooms | CPU, % of a core | a room | PSS, MB | a room | threads | gaps: rooms / callers |\n\
             |---|---|---|---|---|---|---|"
        );
        for &rooms in &arguments.levels {
            let level = level(server, rooms, Duration::from_secs(arguments.seconds)).await;
            println!(
                "| {} | {:.1} | {:.2} | {:.1} | {:.2} | {} | {} of {} / {} of {} |",
                level.rooms,
                level.cpu_percent,
                level.cpu_percent_per_room,
                level.pss_mb,
                level.pss_mb_per_room,
                level.threads,
                level.heard_by_rooms.gaps,
                level.heard_by_rooms.frames,
                level.heard_by_callers.gaps,
                level.heard_by_callers.frames,
            );
            levels.push(level);
        }
        let all_heard = levels.iter().all(|level| {
            level.heard_by_rooms.silent_rooms + level.heard_by_callers.silent_rooms == 0
        });
        (serde_json::to_value(levels), all_heard)
    }
}

async fn level(server: &LiveKit, rooms: usize, time: Duration) -> Level {
    let mut measured = Child::start("rooms", &server.url);
    let mut callers = Child::start("callers", &server.url);
    measured.ask("warm").await;
    let empty = measured.usage();
    // In turns, so that neither side waits long for the other.
    for room in 0..rooms {
        let line = format!("join capacity-{rooms}-{room}");
        callers.ask(&line).await;
        measured.ask(&line).await;
    }
    for side in [&mut measured, &mut callers] {
        side.ask("wait").await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for side in [&mut measured, &mut callers] {
        side.ask("reset").await;
    }
    let before = measured.usage();
    tokio::time::sleep(time).await;
    let after = measured.usage();
    let heard_by_rooms = member::Heard::read(&measured.ask("heard").await);
    let heard_by_callers = member::Heard::read(&callers.ask("heard").await);
    measured.end().await;
    callers.end().await;
    let cpu_percent = Usage::cpu_percent(&before, &after);
    Level {
        rooms,
        cpu_percent,
        cpu_percent_per_room: cpu_percent / rooms as f64,
        pss_mb: after.pss_mb,
        pss_mb_per_room: (after.pss_mb - empty.pss_mb) / rooms as f64,
        threads: after.threads,
        heard_by_rooms,
        heard_by_callers,
    }
}
