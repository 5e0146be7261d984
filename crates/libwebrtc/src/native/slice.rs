//! How long the system lets a thread run at a time.

#![allow(unsafe_code, reason = "no crate has a safe sched_setattr(2)")]

use std::io;

use nix::errno::Errno;
use nix::libc::{
    SCHED_FLAG_RESET_ON_FORK, SYS_sched_getattr, SYS_sched_setattr, sched_attr, syscall,
};

/// The shortest that Linux grants.
const SHORTEST_NS: u64 = 100_000;
const ATTR_SIZE: u32 = size_of::<sched_attr>() as u32;

/// Asks for the shortest time slices (0.1 ms, sched(7)) for the calling thread: it gets no more of the
/// processor than before, but sooner after it was woken, where others have much to do. That takes
/// no privilege. Linux before 6.12 takes no notice; nor does it where the thread's scheduling is
/// none of the usual (`SCHED_OTHER`, `SCHED_BATCH`).
/// Threads that it starts do not inherit it.
///
/// The engine's own threads have it; it is worthwhile for those that do little and often, for audio.
///
/// # Errors
///
/// What sched_setattr(2) or a sandbox refuses. Everything works without it.
pub fn ask_for_short_slices() -> io::Result<()> {
    let mut attr = own()?;
    let usual = [nix::libc::SCHED_OTHER, nix::libc::SCHED_BATCH];
    if !usual.iter().any(|policy| u32::try_from(*policy) == Ok(attr.sched_policy)) {
        return Ok(());
    }
    attr.sched_runtime = SHORTEST_NS;
    attr.sched_flags |= SCHED_FLAG_RESET_ON_FORK as u64;
    // SAFETY: thread 0 is the calling one, the kernel reads `size` bytes of what is alive, and keeps none.
    let done = unsafe { syscall(SYS_sched_setattr, 0, &raw const attr, 0) };
    Errno::result(done)?;
    Ok(())
}

/// What the calling thread has.
fn own() -> io::Result<sched_attr> {
    let mut attr = sched_attr {
        size: ATTR_SIZE,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: thread 0 is the calling one, and the kernel writes `ATTR_SIZE` bytes at the most.
    let done = unsafe { syscall(SYS_sched_getattr, 0, &raw mut attr, ATTR_SIZE, 0) };
    Errno::result(done)?;
    Ok(attr)
}

#[cfg(test)]
mod tests {
    use nix::libc::{PRIO_PROCESS, setpriority};

    use super::*;

    #[test]
    fn a_thread_gets_short_slices_keeps_its_nice_value_and_passes_nothing_on() {
        let had = std::thread::spawn(|| {
            // SAFETY: no memory is involved; on Linux it is the calling thread's alone.
            assert_eq!(unsafe { setpriority(PRIO_PROCESS, 0, 5) }, 0);
            let before = own().unwrap().sched_runtime;
            ask_for_short_slices().unwrap();
            let after = own().unwrap();
            let child = std::thread::spawn(|| own().unwrap().sched_runtime).join().unwrap();
            assert_eq!((after.sched_nice, child), (5, before));
            (before, after.sched_runtime)
        });
        let (before, after) = had.join().unwrap();
        // Before 6.12 a usual thread has none that it could be told.
        assert!(before == 0 || after == SHORTEST_NS, "{before} ns, then {after} ns");
    }
}
