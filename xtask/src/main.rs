//! `cargo xtask lint|test|livekit-e2e|tools`: the whole gate, the same for everybody.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what it has to say, it prints")]

mod e2e;
mod interop;
mod step;
mod tools;
mod unused;
mod workspace;

use std::{env, process::ExitCode};

use step::{Failure, Step};
use workspace::Workspace;

const HELP: &str = "\
The gate of antiphon.

Usage: cargo xtask <COMMAND>

Commands:
  lint         fmt, clippy, docs, licences and bans, unused dependencies
  test [ARGS]  everything `cargo test --workspace` knows, with a real livekit-server beside it;
               without ARGS then livekit-e2e; ARGS go to cargo test, such as
               `cargo xtask test --test it drain`
  livekit-e2e [--file NAME]
               livekit's own end-to-end tests over this engine, against a real livekit-server;
               NAME is a file of livekit's tests folder, such as `room_test`
  soak [N]     kill -9 worker and control endpoint N times (1000): no final is lost or doubled
  tools        install what lint and test need, and nothing that is there already
  help         this text

Tools go to target/tools (or $CARGO_TARGET_DIR/tools). Debian packages are installed when run as
root; otherwise the command says which are missing.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("", arguments.as_slice()),
    };
    if rest.iter().any(|argument| argument == "--help") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let result = match command {
        "lint" if rest.is_empty() => lint(),
        "test" => test(rest),
        "livekit-e2e" => livekit_e2e(rest),
        "soak" => soak(rest),
        "tools" if rest.is_empty() => all_tools(),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\nxtask {command} failed: {}", failure.what);
            ExitCode::from(failure.code)
        }
    }
}

fn lint() -> Result<(), Failure> {
    let workspace = Workspace::find()?;
    tools::system_packages()?;
    Step::cargo("format", ["fmt", "--all", "--check"]).run()?;
    unused::check(&workspace)?;
    Step::cargo("clippy", ["clippy", "--locked", "--workspace", "--all-targets"])
        .args(["--", "-D", "warnings"])
        .run()?;
    Step::cargo("docs", ["doc", "--locked", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()?;
    let cargo_deny = tools::cargo_deny(&workspace)?;
    // What other platforms need is judged too, and no build here has fetched it.
    Step::cargo("fetch", ["fetch", "--locked"]).run()?;
    Step::new("licences and bans", cargo_deny)
        .args(["--offline", "--locked", "--workspace", "check"])
        .args(["bans", "licenses", "sources"])
        .run()?;
    println!("\nxtask lint: all is well");
    Ok(())
}

fn test(arguments: &[String]) -> Result<(), Failure> {
    let workspace = Workspace::find()?;
    tools::system_packages()?;
    let server = tools::livekit_server(&workspace)?;
    let peers = interop::peers(&workspace)?;
    let schemathesis = tools::schemathesis(&workspace)?;
    let workspace_wide = ["test", "--locked", "--workspace"];
    Step::cargo("build the tests", workspace_wide).args(["--no-run"]).args(arguments).run()?;
    Step::cargo("tests", workspace_wide)
        .args(arguments)
        .env("ANTIPHON_TEST_LIVEKIT_SERVER", &server)
        .env("ANTIPHON_TEST_PYTHON", peers.python)
        .env("ANTIPHON_TEST_NODE_PEER", peers.node_script)
        .env("ANTIPHON_TEST_SCHEMATHESIS", schemathesis)
        .run()?;
    if arguments.is_empty() {
        e2e::run(&workspace, &server, None)?;
    }
    println!("\nxtask test: all is well");
    Ok(())
}

fn livekit_e2e(arguments: &[String]) -> Result<(), Failure> {
    let file = match arguments {
        [] => None,
        [flag, name] if flag == "--file" => Some(name.as_str()),
        _ => return Err(Failure::new("the only argument is --file NAME")),
    };
    let workspace = Workspace::find()?;
    tools::system_packages()?;
    let server = match env::var_os("ANTIPHON_TEST_LIVEKIT_SERVER") {
        Some(server) => server.into(),
        None => tools::livekit_server(&workspace)?,
    };
    e2e::run(&workspace, &server, file)
}

fn soak(arguments: &[String]) -> Result<(), Failure> {
    let workspace = Workspace::find()?;
    let server = tools::livekit_server(&workspace)?;
    let kills = arguments.first().map_or("1000", String::as_str);
    Step::cargo("soak", ["test", "--locked", "--test", "it", "--", "kill_9", "--nocapture"])
        .env("ANTIPHON_TEST_LIVEKIT_SERVER", server)
        .env("ANTIPHON_TEST_KILLS", kills)
        .run()?;
    println!("\nxtask soak: all is well");
    Ok(())
}

fn all_tools() -> Result<(), Failure> {
    let workspace = Workspace::find()?;
    tools::system_packages()?;
    tools::livekit_server(&workspace)?;
    interop::peers(&workspace)?;
    tools::cargo_deny(&workspace)?;
    tools::schemathesis(&workspace)?;
    println!("\nxtask tools: all is there, in {}", workspace.tools().display());
    Ok(())
}
