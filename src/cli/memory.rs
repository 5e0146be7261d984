//! What the allocator keeps of calls that are over.

/// From this size on a block is given back to the system when it is freed. Speech, utterances and
/// pictures are larger; what the audio path allocates for each packet is smaller.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BLOCK: libc::c_int = 64 << 10;

/// Cores that share an arena. What calls free goes to their thread's own lists first, so that few
/// arenas cost little time, and each one keeps what its busiest moment took.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const CORES_AN_ARENA: usize = 4;

/// Keeps glibc's allocator small (mallopt(3)). By itself it has eight arenas for each core, and
/// raises the limit for large blocks to the largest one freed so far, up to 32 MB: what calls leave
/// behind in either stays with the process. Call it before there are threads.
pub fn keep_little() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let arenas = libc::c_int::try_from(cores.div_ceil(CORES_AN_ARENA)).unwrap_or(1);
        #[allow(unsafe_code, reason = "the one way to glibc's setting other than its environment")]
        // SAFETY: mallopt takes two integers and touches the allocator's own state alone; there are
        // no other threads yet. A refusal changes nothing.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK);
            libc::mallopt(libc::M_ARENA_MAX, arenas);
        }
    }
}
