//! The engine's threads: how the connections of a process are spread over them.
//!
//! Each thread runs what was placed on it and nothing else: nothing is stolen. A thread that takes
//! its work from another has to be woken for it and finds its caches cold, which costs more than
//! the work, and a call's packets, playout and pacing wait for the same moments. So the first
//! thread is filled before the second is begun.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use tokio::runtime::{Builder, Handle};

use super::alarm::Alarm;
use crate::{RtcError, native};

/// Threads of all peer connections of the process together.
const MAX_THREADS: usize = 4;
/// Connections and sources on a thread before the next one gets some: the connection and the voice of
/// 32 rooms, which take a quarter of a core.
const FULL: usize = 64;

/// One thread of the engine.
#[derive(Debug)]
struct Shard {
    handle: Handle,
    alarm: Arc<Alarm>,
    placed: AtomicUsize,
}

/// A place on one of the engine's threads, kept while something lives there.
#[derive(Debug)]
pub(crate) struct Place(&'static Shard);

impl Place {
    /// The runtime of its thread.
    pub(crate) fn handle(&self) -> &'static Handle {
        &self.0.handle
    }

    /// The alarm clock of its thread.
    pub(crate) fn alarm(&self) -> &'static Alarm {
        &self.0.alarm
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.placed.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Finds a place for a connection or a source.
pub(crate) fn place() -> Result<Place, RtcError> {
    let shards = shards()?;
    let loads: Vec<usize> = shards.iter().map(|s| s.placed.load(Ordering::Relaxed)).collect();
    let shard = shards.get(choose(&loads)).ok_or_else(|| failure("none"))?;
    shard.placed.fetch_add(1, Ordering::Relaxed);
    Ok(Place(shard))
}

/// The engine's own runtime, for what belongs to no connection: an application whose workers are
/// blocked makes no gap in the audio.
pub(crate) fn runtime() -> Result<&'static Handle, RtcError> {
    shards()?.first().map(|shard| &shard.handle).ok_or_else(|| failure("none"))
}

/// The first thread that is not full, else the one with the least.
fn choose(loads: &[usize]) -> usize {
    let free = loads.iter().position(|load| *load < FULL);
    let least = || (0..loads.len()).min_by_key(|at| loads[*at]);
    free.or_else(least).unwrap_or_default()
}

fn shards() -> Result<&'static [Shard], RtcError> {
    static SHARDS: OnceLock<Result<Vec<Shard>, String>> = OnceLock::new();
    let shards = SHARDS.get_or_init(|| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        (0..cores.clamp(2, MAX_THREADS))
            .map(|_| start().map_err(|error| error.to_string()))
            .collect()
    });
    shards.as_deref().map_err(|error| failure(error))
}

fn start() -> std::io::Result<Shard> {
    let runtime = Builder::new_current_thread().thread_name("rtc-engine").enable_all().build()?;
    let handle = runtime.handle().clone();
    let alarm = {
        let _guard = handle.enter();
        Arc::new(Alarm::new()?)
    };
    let rings = Arc::clone(&alarm);
    let run = move || {
        if let Err(error) = native::ask_for_short_slices() {
            log::debug!("the system grants the engine no short time slices: {error}");
        }
        runtime.block_on(rings.ring());
    };
    thread::Builder::new().name("rtc-engine".into()).spawn(run)?;
    Ok(Shard { handle, alarm, placed: AtomicUsize::new(0) })
}

fn failure(error: &str) -> RtcError {
    RtcError {
        error_type: crate::RtcErrorType::Internal,
        message: format!("the engine's threads cannot start: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_filled_before_the_next_and_the_emptiest_takes_what_is_too_much() {
        assert_eq!(choose(&[0, 0]), 0);
        assert_eq!(choose(&[FULL - 1, 0]), 0);
        assert_eq!(choose(&[FULL, 0]), 1);
        assert_eq!(choose(&[FULL - 1, FULL]), 0, "room again");
        assert_eq!(choose(&[FULL + 1, FULL, FULL]), 1);
    }

    #[test]
    fn a_place_is_free_again_when_what_lived_there_is_gone() {
        let place = place().unwrap();
        let shard = place.0;
        let placed = shard.placed.load(Ordering::Relaxed);
        drop(place);
        assert!(shard.placed.load(Ordering::Relaxed) < placed);
    }
}
