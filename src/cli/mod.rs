//! One file a command.
//!
//! Exit codes: 0 done, 2 wrong use or configuration, 3 the server refused or can't be reached, 4 a
//! check found faults, 130 interrupted.

pub mod check;
pub mod connect;
pub mod control;
pub mod demo;
pub mod dev;
pub mod eval;
pub mod live;
pub mod memory;
pub mod migrate;
pub mod models;
pub mod providers;
pub mod replay;
pub mod runtime;
pub mod start;
pub mod tenant;
pub mod terminal;
pub mod token;
pub mod transcribe_queue;
pub mod voices;

use std::{
    fmt::Display,
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

use crate::{
    config::{ConfigErrors, Needs, ProcessArgs, Setup, env::LogFormat},
    net,
    telemetry::{logging, metrics},
};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    /// Wrong use or configuration.
    Usage = 2,
    /// The server refused or can't be reached.
    Server = 3,
    /// A check found faults.
    Faults = 4,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A real-time voice agent worker for LiveKit.
#[derive(Debug, Parser)]
#[command(name = "antiphon", version, about, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  antiphon demo                        a call without keys and without a server
  antiphon replay question.wav         a WAV file through the whole conversation
  antiphon start --agent assistant     register with LIVEKIT_URL and take jobs
  antiphon eval fixtures               how well it takes turns, as numbers
  antiphon connect --room test         join one room directly
  antiphon check                       everything wrong with the settings, at once

Exit codes: 0 done, 2 wrong use or configuration, 3 the server refused or can't be reached,
4 a check found faults, 130 interrupted.";

/// A command's own flags, and those of the process's settings.
#[derive(Debug, Args)]
struct With<A: Args> {
    #[command(flatten)]
    own: A,
    #[command(flatten)]
    settings: ProcessArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register with the LiveKit server and take jobs until told to stop
    Start(ProcessArgs),
    /// Worker and control endpoint in one process, with debug logs
    Dev(ProcessArgs),
    /// A whole call without keys and without a server
    Demo(With<demo::DemoArgs>),
    /// Join one room directly, without dispatch
    Connect(With<connect::ConnectArgs>),
    /// Play a WAV file to an agent, without any server
    Replay(With<replay::ReplayArgs>),
    /// Judge how the agent takes turns, on labelled dialogues
    Eval(With<eval::EvalArgs>),
    /// Bring in the models that are not compiled in
    Models(With<models::ModelsArgs>),
    /// The companion HTTP endpoint: sessions, tokens, transcripts
    Control(ProcessArgs),
    /// List everything wrong with settings, agents and prompts
    Check(With<check::CheckArgs>),
    /// List the voices that an agent file can name
    Voices(With<voices::VoicesArgs>),
    /// Make a token to join a room with
    Token(token::TokenArgs),
    /// Understand what waits on disk since no recogniser could hear it
    TranscribeQueue(ProcessArgs),
    /// Bring the database to this version's schema
    Migrate(With<migrate::MigrateArgs>),
    /// Tenants of the control endpoint: create, list, revoke
    Tenant(With<tenant::TenantArgs>),
    /// API keys of the control endpoint: create, list, revoke
    Key(With<tenant::KeyArgs>),
}

/// Parses the command line and runs the command to its end.
pub fn main() -> ExitCode {
    memory::keep_little();
    let cli = Cli::parse();
    net::install_crypto();
    let exit = match cli.command {
        Command::Check(With { own, settings }) => {
            let colours = terminal::colours(&io::stdout());
            return written(check::run(&own, &settings.sources(), colours, &mut io::stdout()));
        }
        Command::Token(args) => {
            let sources = ProcessArgs::default().sources();
            let (mut out, mut err) = (io::stdout(), io::stderr());
            return written(token::run(&args, &sources, &mut out, &mut err));
        }
        Command::Start(args) => with_setup(&args, Needs::WORKER, Verbosity::Usual, start::run),
        Command::Dev(args) => with_setup(&args, Needs::DEV, Verbosity::Debug, dev::run),
        Command::TranscribeQueue(args) => {
            with_setup(&args, Needs::REPLAY, Verbosity::Quiet, transcribe_queue::run)
        }
        Command::Control(args) => with_setup(&args, Needs::CONTROL, Verbosity::Usual, control::run),
        Command::Migrate(With { own, settings }) => {
            with_setup(&settings, Needs::default(), Verbosity::Quiet, |setup| {
                migrate::run(setup, own)
            })
        }
        Command::Tenant(With { own, settings }) => {
            with_setup(&settings, Needs::default(), Verbosity::Quiet, |setup| {
                tenant::run_tenant(setup, own)
            })
        }
        Command::Key(With { own, settings }) => {
            with_setup(&settings, Needs::default(), Verbosity::Quiet, |setup| {
                tenant::run_key(setup, own)
            })
        }
        Command::Connect(With { own, settings }) => {
            with_setup(&settings, Needs::WORKER, Verbosity::Usual, |setup| connect::run(setup, own))
        }
        Command::Demo(With { own, settings }) => {
            with_setup(&settings, Needs::DOUBLES, Verbosity::Quiet, |setup| demo::run(setup, own))
        }
        Command::Voices(With { own, settings }) => {
            let needs = Needs::default();
            with_setup(&settings, needs, Verbosity::Quiet, |setup| voices::run(setup, own))
        }
        Command::Eval(With { own, settings }) => {
            with_setup(&settings, Needs::DOUBLES, Verbosity::Quiet, |setup| eval::run(setup, own))
        }
        Command::Models(With { own, settings }) => {
            with_setup(&settings, Needs::DOUBLES, Verbosity::Quiet, |setup| models::run(setup, own))
        }
        Command::Replay(With { own, settings }) => {
            let needs = if own.real { Needs::REPLAY } else { Needs::DOUBLES };
            with_setup(&settings, needs, Verbosity::Quiet, |setup| replay::run(setup, own))
        }
    };
    exit.into()
}

/// The exit code of a command that only prints.
fn written(outcome: io::Result<u8>) -> ExitCode {
    outcome.map_or_else(
        |error| {
            fail(&format!("cannot write: {error}"));
            Exit::Usage.into()
        },
        ExitCode::from,
    )
}

/// How much a command logs unless told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verbosity {
    /// Warnings: the terminal shows something else.
    Quiet,
    Usual,
    Debug,
}

/// Gathers the settings, starts the log and a runtime, runs the command.
fn with_setup<F: Future<Output = Exit>>(
    args: &ProcessArgs,
    needs: Needs,
    verbosity: Verbosity,
    command: impl FnOnce(Setup) -> F,
) -> Exit {
    let sources = args.sources();
    let setup = match Setup::gather(&sources, needs) {
        Ok(setup) => setup,
        Err(errors) => {
            refuse(&errors);
            return Exit::Usage;
        }
    };
    let terminal = io::stderr();
    let log = logging::Settings {
        format: match setup.config.log_format {
            LogFormat::Auto => logging::Format::Auto,
            LogFormat::Human => logging::Format::Human,
            LogFormat::Json => logging::Format::Json,
        },
        filter: setup
            .config
            .log
            .clone()
            .or_else(|| (verbosity == Verbosity::Quiet).then(|| "warn".to_owned()))
            .map(|filter| ("ANTIPHON_LOG", filter)),
        verbose: verbosity == Verbosity::Debug,
        terminal: terminal.is_terminal(),
        no_color: !terminal::colours(&terminal),
    };
    if let Err(error) = logging::init(&log) {
        fail(&error);
        return Exit::Usage;
    }
    if let Err(error) = metrics::install() {
        tracing::warn!(%error, "no metrics");
    }
    for warning in &setup.config.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads())
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let exit = runtime.block_on(command(setup));
            // A blocked thread (a disk, a resolver) does not hold the process back.
            runtime.shutdown_timeout(std::time::Duration::from_secs(2));
            exit
        }
        Err(error) => {
            fail(&format!("cannot start: {error}"));
            Exit::Usage
        }
    }
}

/// Sessions are light: more threads than this only cost memory.
fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8)
}

#[allow(clippy::print_stderr, reason = "this is the terminal's error stream")]
fn refuse(errors: &ConfigErrors) {
    eprint!("{}", errors.render(terminal::colours(&io::stderr())));
}

/// What a command is asked for, on the output.
#[allow(clippy::print_stdout, reason = "this is the terminal's output stream")]
pub(crate) fn say(message: &dyn Display) {
    println!("{message}");
}

/// Tells the user why a command ended.
#[allow(clippy::print_stderr, reason = "this is the terminal's error stream")]
pub(crate) fn fail(message: &dyn Display) {
    eprintln!("antiphon: {message}");
}
