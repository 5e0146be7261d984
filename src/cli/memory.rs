//! What the allocator keeps of calls that are over, and when the program itself is read.

use std::io;

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

/// Reads and maps the program's code (madvise(2), `MADV_POPULATE_READ`), which is otherwise read
/// from disk page by page as it is first run: by the first callers, in the middle of a word. Blocks
/// while the disk does. Linux before 5.14 cannot.
pub fn read_code() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let program = std::env::current_exe()?;
        for code in maps.lines().filter_map(|line| code_of(line, &program)) {
            let start = std::ptr::with_exposed_provenance_mut(code.start);
            #[allow(unsafe_code, reason = "the one way to say so to the kernel")]
            // SAFETY: the range is a mapping of this program's own code, which is never unmapped;
            // mapping its pages changes none of them.
            let refused =
                unsafe { libc::madvise(start, code.len(), libc::MADV_POPULATE_READ) } != 0;
            if refused {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// The range of a line of /proc/self/maps (proc_pid_maps(5)), if it is code of `program`.
#[cfg(target_os = "linux")]
fn code_of(line: &str, program: &std::path::Path) -> Option<std::ops::Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()?.contains('x');
    let path = line.get(line.find('/')?..)?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    (is_code && std::path::Path::new(path) == program).then_some(address(start)?..address(end)?)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn code_of_the_program_is_told_from_other_mappings() {
        let program = Path::new("/opt/anti phon/antiphon");
        let code = |line| code_of(line, program);
        let line = "55d0c0a00000-55d0c2600000 r-xp 00a00000 fe:00 1 /opt/anti phon/antiphon";
        assert_eq!(code(line), Some(0x55d0_c0a0_0000..0x55d0_c260_0000));
        for other in [
            "55d0c0000000-55d0c0a00000 r--p 00000000 fe:00 1 /opt/anti phon/antiphon",
            "7f0000000000-7f0000001000 r-xp 00000000 fe:00 2 /lib/libc.so.6",
            "7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0 [vdso]",
            "7f0000000000-7f0000001000 rw-p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
    }

    #[test]
    fn the_code_of_this_program_is_found_and_read() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let program = std::env::current_exe().unwrap();
        assert!(maps.lines().any(|line| code_of(line, &program).is_some()));
        read_code().unwrap();
    }
}
