//! What lint and test need beside Rust. Nothing is skipped for want of a tool: it is installed, or
//! the gate fails with a sentence that says what to install.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    step::{Failure, Step},
    workspace::Workspace,
};

/// Programs that the build and the tests need, and the Debian packages that have them.
const PACKAGES: [(&str, &str); 7] = [
    ("cc", "gcc"),
    ("c++", "g++"),
    ("make", "make"),
    ("cmake", "cmake"),
    // The TURN server that relayed calls are tested against.
    ("turnserver", "coturn"),
    // The store's tests start a server of their own.
    ("initdb", "postgresql"),
    ("python3", "python3"),
];

/// The server that the integration tests run against. Later versions have replace directives in
/// their go.mod, which `go install` refuses.
const LIVEKIT_SERVER: &str = "github.com/livekit/livekit-server/cmd/server@v1.13.5";

const CARGO_DENY: &str = "0.20.2";

/// Holds the control endpoint to its OpenAPI document.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";

/// Compilers, cmake and servers, by apt-get where that is there and we may.
pub fn system_packages() -> Result<(), Failure> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if find_program("apt-get").is_none() || !is_root() {
        return Err(Failure::new(format!(
            "packages are missing; on Debian or Ubuntu run `sudo apt-get install {0}`, elsewhere \
             install what these are called there: {0}",
            missing.join(" ")
        )));
    }
    apt_get("package lists").args(["update"]).run()?;
    apt_get("packages").args(["install", "-y", "--no-install-recommends"]).args(missing).run()
}

fn apt_get(name: &'static str) -> Step {
    Step::new(name, "apt-get").args(["-q"]).env("DEBIAN_FRONTEND", "noninteractive")
}

/// The pinned livekit-server, built by Go once; returns its path.
pub fn livekit_server(workspace: &Workspace) -> Result<PathBuf, Failure> {
    let tools = workspace.tools();
    let server = tools.join("livekit-server");
    if is_installed(&server, LIVEKIT_SERVER) {
        return Ok(server);
    }
    let Some(go) = find_program("go") else {
        return Err(Failure::new(
            "the tests need a real livekit-server, which is built by Go, and Go is not installed: \
             install it from https://go.dev/dl/ (or put `go` into PATH) and run this again",
        ));
    };
    let bin = tools.join("go-bin");
    make_folder(&bin)?;
    Step::new("livekit-server", go)
        .args(["install", LIVEKIT_SERVER])
        .env("GOBIN", &bin)
        .env("CGO_ENABLED", "0")
        .run()?;
    keep(&bin.join("server"), &server, LIVEKIT_SERVER)?;
    Ok(server)
}

/// The pinned cargo-deny, built by cargo once; returns its path.
pub fn cargo_deny(workspace: &Workspace) -> Result<PathBuf, Failure> {
    let tools = workspace.tools();
    let cargo_deny = tools.join("cargo-deny");
    if is_installed(&cargo_deny, CARGO_DENY) {
        return Ok(cargo_deny);
    }
    let root = tools.join("cargo-root");
    make_folder(&root)?;
    // Its own dependencies are built in a folder of their own, which cargo removes again.
    Step::cargo("cargo-deny", ["install", "--locked", "--force", "--version", CARGO_DENY])
        .args(["cargo-deny", "--root"])
        .args([&root])
        .without_env("CARGO_TARGET_DIR")
        .run()?;
    keep(&root.join("bin").join("cargo-deny"), &cargo_deny, CARGO_DENY)?;
    Ok(cargo_deny)
}

/// The pinned schemathesis, in a Python environment of its own; returns its program.
pub fn schemathesis(workspace: &Workspace) -> Result<PathBuf, Failure> {
    let environment = workspace.tools().join("schemathesis");
    let program = environment.join("bin").join("schemathesis");
    if is_installed(&program, SCHEMATHESIS) {
        return Ok(program);
    }
    let Some(python) = find_program("python3") else {
        return Err(Failure::new(
            "the tests hold the API to its document by schemathesis, which needs Python: install \
             python3 and python3-venv and run this again",
        ));
    };
    let made = Step::new("Python environment", python).args(["-m", "venv"]).args([&environment]);
    made.run().map_err(|failure| {
        Failure::new(format!("{} (on Debian: apt-get install python3-venv)", failure.what))
    })?;
    Step::new("schemathesis", environment.join("bin").join("pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", SCHEMATHESIS])
        .run()?;
    fs::write(stamp(&program), SCHEMATHESIS)
        .map_err(|error| Failure::new(format!("{}: {error}", program.display())))?;
    Ok(program)
}

/// Where a tool's version is written down once it is whole.
pub fn stamp(tool: &Path) -> PathBuf {
    tool.with_extension("version")
}

pub fn is_installed(tool: &Path, version: &str) -> bool {
    tool.is_file() && fs::read_to_string(stamp(tool)).is_ok_and(|written| written == version)
}

/// Moves a built tool to its place; a run that was cut short leaves no half of it there.
fn keep(built: &Path, tool: &Path, version: &str) -> Result<(), Failure> {
    fs::rename(built, tool)
        .and_then(|()| fs::write(stamp(tool), version))
        .map_err(|error| Failure::new(format!("{}: {error}", tool.display())))
}

pub fn make_folder(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder)
        .map_err(|error| Failure::new(format!("{}: {error}", folder.display())))
}

/// In PATH; for Go where its installer puts it, for Postgres's server programs where Debian does.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual: Vec<PathBuf> = match program {
        "go" => vec![PathBuf::from("/usr/local/go/bin")],
        "initdb" => fs::read_dir("/usr/lib/postgresql")
            .map(|versions| versions.flatten().map(|it| it.path().join("bin")).collect())
            .unwrap_or_default(),
        _ => Vec::new(),
    };
    env::split_paths(&path).chain(usual).map(|folder| folder.join(program)).find(|it| it.is_file())
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").stderr(Stdio::null()).output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_of_another_version_is_not_the_one() {
        let folder = env::temp_dir().join(format!("xtask-tools-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (built, tool) = (folder.join("server"), folder.join("livekit-server"));
        fs::write(&built, "binary").unwrap();
        assert!(!is_installed(&tool, "1"));
        keep(&built, &tool, "1").unwrap();
        assert!(is_installed(&tool, "1"));
        assert!(!is_installed(&tool, "2"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_program_that_is_nowhere_is_not_found() {
        assert!(find_program("no-such-program-anywhere").is_none());
        assert!(find_program("sh").is_some());
    }
}
