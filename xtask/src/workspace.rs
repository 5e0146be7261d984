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
    target: PathBuf,
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
        let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .output()
            .map_err(|error| Failure::new(format!("cargo metadata: {error}")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::new(format!("cargo metadata: {}", said.trim())));
        }
        let metadata = serde_json::from_slice(&output.stdout)
            .map_err(|error| Failure::new(format!("cargo metadata: {error}")))?;
        Self::read(&metadata).ok_or_else(|| Failure::new("cargo metadata: a field is missing"))
    }

    fn read(metadata: &Value) -> Option<Self> {
        let packages = metadata["packages"].as_array()?.iter().map(Package::read);
        Some(Self {
            target: PathBuf::from(metadata["target_directory"].as_str()?),
            packages: packages.collect::<Option<_>>()?,
        })
    }

    /// Where installed tools are kept; absolute.
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }
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
