//! What cargo knows about this workspace.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::step::Failure;

#[derive(Debug)]
pub struct Workspace {
    pub root: PathBuf,
    /// Where cargo builds; absolute.
    pub target: PathBuf,
    pub packages: Vec<Package>,
}

#[derive(Debug)]
pub struct Package {
    pub name: String,
    /// Its folder.
    pub root: PathBuf,
    pub dependencies: Vec<Dependency>,
}

#[derive(Debug)]
pub struct Dependency {
    /// As the source names it: `livekit_api`.
    pub ident: String,
    /// As Cargo.toml names it: `livekit-api`.
    pub name: String,
}

impl Workspace {
    pub fn find() -> Result<Self, Failure> {
        Self::read(&metadata(&["--no-deps"])?)
            .ok_or_else(|| Failure::new("cargo metadata: a field is missing"))
    }

    /// Where cargo keeps the source of a dependency, and its version.
    pub fn source_of(name: &str) -> Result<(PathBuf, String), Failure> {
        let metadata = metadata(&["--locked"])?;
        let find = || {
            let mut packages = metadata["packages"].as_array()?.iter();
            let package = packages.find(|package| package["name"] == name)?;
            let manifest = Path::new(package["manifest_path"].as_str()?);
            Some((manifest.parent()?.to_owned(), package["version"].as_str()?.to_owned()))
        };
        find().ok_or_else(|| Failure::new(format!("cargo metadata: no package {name}")))
    }

    fn read(metadata: &Value) -> Option<Self> {
        let packages = metadata["packages"].as_array()?.iter().map(Package::read);
        Some(Self {
            root: PathBuf::from(metadata["workspace_root"].as_str()?),
            target: PathBuf::from(metadata["target_directory"].as_str()?),
            packages: packages.collect::<Option<_>>()?,
        })
    }

    /// Where installed tools are kept; absolute.
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }
}

fn metadata(arguments: &[&str]) -> Result<Value, Failure> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1"])
        .args(arguments)
        .output()
        .map_err(|error| Failure::new(format!("cargo metadata: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::new(format!("cargo metadata: {}", said.trim())));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| Failure::new(format!("cargo metadata: {error}")))
}

impl Package {
    fn read(package: &Value) -> Option<Self> {
        let manifest = Path::new(package["manifest_path"].as_str()?);
        let dependencies = package["dependencies"].as_array()?.iter().map(|dependency| {
            let name = dependency["rename"].as_str().or(dependency["name"].as_str())?;
            Some(Dependency { ident: name.replace('-', "_"), name: name.to_owned() })
        });
        Some(Self {
            name: package["name"].as_str()?.to_owned(),
            root: manifest.parent()?.to_owned(),
            dependencies: dependencies.collect::<Option<_>>()?,
        })
    }
}
