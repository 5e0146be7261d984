//! Dependencies that no source file of their package names.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    step::Failure,
    workspace::{Package, Workspace},
};

/// Needed although no source names them, each with why.
const NEEDED_UNNAMED: [(&str, &str); 0] = [];

/// Looks at every package of the workspace.
pub fn check(workspace: &Workspace) -> Result<(), Failure> {
    println!("\n==> unused dependencies");
    let mut unused = Vec::new();
    for package in &workspace.packages {
        let found = unused_of(package, &workspace.packages)
            .map_err(|error| Failure::new(format!("unused dependencies: {error}")))?;
        unused.extend(found.into_iter().map(|name| format!("{name} (in {})", package.name)));
    }
    if unused.is_empty() {
        println!("<== unused dependencies: none");
        return Ok(());
    }
    Err(Failure::new(format!("unused dependencies: {}", unused.join(", "))))
}

fn unused_of(package: &Package, all: &[Package]) -> io::Result<Vec<String>> {
    // A package within this one's folder has its own sources.
    let nested: Vec<&Path> = all
        .iter()
        .map(|other| other.root.as_path())
        .filter(|root| *root != package.root && root.starts_with(&package.root))
        .collect();
    let build = fs::read_to_string(package.root.join("build.rs")).unwrap_or_default();
    let mut sources = without_comments(&build);
    for folder in ["src", "tests", "benches", "examples"] {
        for file in rust_files(&package.root.join(folder), &nested)? {
            sources.push_str(&without_comments(&fs::read_to_string(file)?));
        }
    }
    let unused = package.dependencies.iter().filter(|dependency| {
        let needed = NEEDED_UNNAMED.iter().any(|(name, _)| *name == dependency.name);
        !needed && !names(&sources, &dependency.ident)
    });
    let mut unused: Vec<String> = unused.map(|dependency| dependency.name.clone()).collect();
    unused.sort();
    unused.dedup();
    Ok(unused)
}

fn rust_files(folder: &Path, except: &[&Path]) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if !folder.is_dir() || except.contains(&folder) {
        return Ok(files);
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path, except)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

fn without_comments(source: &str) -> String {
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| [line, "\n"]).collect()
}

/// Whether the identifier stands somewhere as a word of its own.
fn names(source: &str, ident: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    source.match_indices(ident).any(|(at, _)| {
        !source[..at].chars().next_back().is_some_and(is_part)
            && !source[at + ident.len()..].chars().next().is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_is_used_where_its_name_is_a_word() {
        assert!(names("use serde::Serialize;", "serde"));
        assert!(names("#[async_trait::async_trait]", "async_trait"));
        assert!(!names("use serde_json::Value;", "serde"));
        assert!(!names(&without_comments("// serde is not used\n"), "serde"));
    }
}
