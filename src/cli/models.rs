//! `antiphon models`: the models that are not compiled in.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use crate::{
    audio::smart_turn::{FILE, ModelError, SmartTurn, wheel},
    cli::{Exit, fail, terminal::Live},
    config::Setup,
};

/// Longest wheel that is read, in bytes.
const MAX_WHEEL: u64 = 512 * 1024 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pip download --no-deps pipecat-ai
  antiphon models import pipecat_ai-*.whl    take Smart Turn v3 out of it, check it, keep it
  antiphon models check                      is it there, and does it answer as it should

An agent uses it with `detection = \"semantic\"` under [turn].")]
pub struct ModelsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Take the turn model out of a pipecat-ai wheel (or an ONNX file as it is) into the state folder
    Import { file: PathBuf },
    /// Load the turn model and run its self-test
    Check,
}

pub async fn run(setup: Setup, args: ModelsArgs) -> Exit {
    let path = SmartTurn::path_in(&setup.config.state_dir);
    let done = tokio::task::spawn_blocking(move || match args.what {
        What::Import { file } => import(&file, &path).map(|()| path),
        What::Check => SmartTurn::load(&path).map(|_| path),
    });
    match done.await {
        Ok(Ok(path)) => {
            Live::new(false)
                .line(&format!("{}: checked, and answers as it should", path.display()));
            Exit::Done
        }
        Ok(Err(error)) => {
            fail(&error);
            Exit::Faults
        }
        Err(error) => {
            fail(&error);
            Exit::Faults
        }
    }
}

fn import(file: &Path, to: &Path) -> Result<(), ModelError> {
    let io = |path: &Path, error| ModelError::Io(path.to_owned(), error);
    let length = fs::metadata(file).map_err(|error| io(file, error))?.len();
    if length > MAX_WHEEL {
        return Err(ModelError::Wheel(file.to_owned(), "it is too long".into()));
    }
    let bytes = fs::read(file).map_err(|error| io(file, error))?;
    let model = if file.extension().is_some_and(|extension| extension == "onnx") {
        bytes
    } else {
        wheel::file(&bytes, FILE).map_err(|problem| ModelError::Wheel(file.to_owned(), problem))?
    };
    SmartTurn::checked(file, &model)?;
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).map_err(|error| io(dir, error))?;
    }
    // Whole or not at all: a worker may be starting.
    let partial = to.with_extension("partial");
    let written = fs::File::create(&partial).and_then(|mut out| {
        out.write_all(&model)?;
        out.sync_all()
    });
    written.and_then(|()| fs::rename(&partial, to)).map_err(|error| io(to, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_known_model_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (file, to) = (dir.path().join("x.onnx"), dir.path().join("models").join(FILE));
        fs::write(&file, b"abc").unwrap();
        assert!(matches!(import(&file, &to), Err(ModelError::Unknown(..))));
        let wheel = dir.path().join("x.whl");
        fs::write(&wheel, b"abc").unwrap();
        assert!(matches!(import(&wheel, &to), Err(ModelError::Wheel(..))));
        assert!(!to.exists());
    }
}
