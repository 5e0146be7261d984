//! How well the conversation takes turns, measured on labelled dialogues in virtual time.
//!
//! [`dialogue`] reads them, [`run`] plays one to the machine through the real detector, [`judge`]
//! compares what happened with the labels, [`report`] adds it up, [`html`] draws it.

pub mod dialogue;
pub mod html;
pub mod judge;
pub mod report;
pub mod run;

use std::{
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use crate::{
    audio::{
        smart_turn::SmartTurn,
        vad::{VadConfig, VadError},
    },
    eval::{
        dialogue::{Dialogue, Set},
        judge::Judged,
    },
    session::settings::Settings,
};

/// Why dialogues cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error("{0}")]
    Vad(#[from] VadError),
    #[error("{0}: {1}")]
    File(String, String),
    #[error("{dir}: {found} turns, where {declared} are declared")]
    TooFew { dir: String, found: usize, declared: usize },
    #[error("{0}: no turns to judge")]
    Empty(String),
}

/// What all dialogues of a set came to.
#[derive(Debug)]
pub struct Evaluated {
    pub dialogues: Vec<Judged>,
    /// Virtual time.
    pub played: Duration,
    /// Real time, the reading of the files included.
    pub took: Duration,
}

/// Plays every dialogue of the set to a session with these settings, on all cores. `played` is told
/// how many are done, by whichever core has done one.
///
/// # Errors
/// A file that cannot be read, or fewer turns than the set declares.
pub fn evaluate(
    set: &Set,
    settings: &Settings,
    vad: VadConfig,
    model: Option<&SmartTurn>,
    played: &(dyn Fn(usize) + Sync),
) -> Result<Evaluated, EvalError> {
    let began = crate::clock::now();
    let (next, done) = (&AtomicUsize::new(0), &AtomicUsize::new(0));
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    // Each thread takes the next dialogue that none has: they differ in length.
    let work = || {
        let mut mine = Vec::new();
        while let Some((number, name)) = numbered(set, next.fetch_add(1, Ordering::Relaxed)) {
            mine.push((number, one(set, name, settings, vad, model)?));
            played(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
        Ok(mine)
    };
    let mut judged = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::with_capacity(set.names.len());
        for worker in workers {
            all.append(&mut worker.join().unwrap_or_else(|_| {
                Err(EvalError::File(set.dir.display().to_string(), "a worker died".into()))
            })?);
        }
        Ok::<_, EvalError>(all)
    })?;
    judged.sort_by_key(|(number, _)| *number);
    let dialogues: Vec<Judged> = judged.into_iter().map(|(_, judged)| judged).collect();
    let found: usize = dialogues.iter().map(|judged| judged.turns.len()).sum();
    let dir = set.dir.display().to_string();
    if found == 0 {
        return Err(EvalError::Empty(dir));
    }
    if found < set.turns {
        return Err(EvalError::TooFew { dir, found, declared: set.turns });
    }
    let played = dialogues.iter().map(|judged| Duration::from_millis(judged.duration_ms)).sum();
    let took = crate::clock::now().saturating_duration_since(began);
    Ok(Evaluated { dialogues, played, took })
}

fn numbered(set: &Set, number: usize) -> Option<(usize, &str)> {
    set.names.get(number).map(|name| (number, name.as_str()))
}

fn one(
    set: &Set,
    name: &str,
    settings: &Settings,
    vad: VadConfig,
    model: Option<&SmartTurn>,
) -> Result<Judged, EvalError> {
    let dialogue = Dialogue::read(&set.dir, name)?;
    let lived = run::run(&dialogue, &set.agent_voice, settings.clone(), vad, model)?;
    Ok(judge::judge(&dialogue, lived, settings.min_interruption))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_without_turns_is_no_success() {
        let set = Set {
            dir: "nowhere".into(),
            names: Vec::new(),
            turns: 0,
            agent_voice: Vec::new().into(),
        };
        let outcome = evaluate(&set, &Settings::default(), VadConfig::default(), None, &|_| {});
        assert!(matches!(outcome, Err(EvalError::Empty(_))));
    }

    #[test]
    fn a_dialogue_that_cannot_be_read_is_named() {
        let set = Set {
            dir: "nowhere".into(),
            names: vec!["missing".into()],
            turns: 1,
            agent_voice: Vec::new().into(),
        };
        let outcome = evaluate(&set, &Settings::default(), VadConfig::default(), None, &|_| {});
        assert!(matches!(outcome, Err(EvalError::File(file, _)) if file.contains("missing")));
    }
}
