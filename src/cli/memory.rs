//! What the allocator keeps of calls that are over.

/// From this size on a block is given back to the system when it is freed. Speech, utterances and
/// pictures are larger; what the audio path allocates for each packet is smaller.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BLOCK: libc::c_int = 64 << 10;

/// Keeps large blocks out of glibc's arenas. By itself it raises the limit to the largest block freed
/// so far, up to 32 MB (mallopt(3), `M_MMAP_THRESHOLD`), and what calls leave behind there stays with
/// the process. Call it before there are threads.
pub fn give_back_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code, reason = "the one way to glibc's setting other than its environment")]
    // SAFETY: mallopt takes two integers and touches the allocator's own state alone; there are no
    // other threads yet. A refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK);
    }
}
