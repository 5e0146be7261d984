//! LiveKit's SDKs of other languages, for the interop tests: from their registries, in pinned
//! versions.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    step::{Failure, Step},
    tools::{find_program, is_installed, make_folder, stamp},
    workspace::Workspace,
};

/// Where the tests find the other side.
pub struct Peers {
    /// A Python that has LiveKit's SDK.
    pub python: PathBuf,
    /// The script for Node, beside LiveKit's SDK.
    pub node_script: PathBuf,
}

/// Installs both SDKs, once for each change of their versions.
pub fn peers(workspace: &Workspace) -> Result<Peers, Failure> {
    Ok(Peers { python: python(workspace)?, node_script: node(workspace)? })
}

fn sources() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/it/interop"))
}

fn python(workspace: &Workspace) -> Result<PathBuf, Failure> {
    let requirements = sources().join("requirements.txt");
    let wanted = read(&requirements)?;
    let folder = workspace.tools().join("interop-python");
    let python = folder.join("bin").join("python");
    if is_installed(&python, &wanted) {
        return Ok(python);
    }
    let Some(system) = find_program("python3") else {
        return Err(Failure::new(
            "the interop tests need Python 3 with venv: install python3-venv",
        ));
    };
    Step::new("a Python of the tests' own", system)
        .args(["-m", "venv", "--clear"])
        .args([&folder])
        .run()?;
    Step::new("LiveKit's SDK for Python", &python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
        .args([&requirements])
        .run()?;
    write(&stamp(&python), &wanted)?;
    Ok(python)
}

fn node(workspace: &Workspace) -> Result<PathBuf, Failure> {
    let source = sources().join("js");
    let folder = workspace.tools().join("interop-node");
    make_folder(&folder)?;
    let script = folder.join("peer.mjs");
    let wanted = read(&source.join("package-lock.json"))?;
    let installed = is_installed(&script, &wanted);
    // Modules are looked for beside the script.
    for name in ["peer.mjs", "package.json", "package-lock.json"] {
        write(&folder.join(name), &read(&source.join(name))?)?;
    }
    if installed {
        return Ok(script);
    }
    let (Some(npm), Some(_)) = (find_program("npm"), find_program("node")) else {
        return Err(Failure::new("the interop tests need Node 20 or later, with npm: install it"));
    };
    Step::new("LiveKit's SDK for Node", npm)
        .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"])
        .args([&folder])
        .run()?;
    write(&stamp(&script), &wanted)?;
    Ok(script)
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}
