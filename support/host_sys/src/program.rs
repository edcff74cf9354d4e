//! This program's own code and constants in memory.
// UNSAFE: asks the loader where the program is, and advises the kernel on it.
#![allow(unsafe_code, reason = "the home of advice on the program's own mapping")]

use std::ffi::c_void;

use rustix::mm::{Advice, madvise};

/// Let go of the program's code and constants: what is used is mapped again where it is
/// used. Worth its time (some 100 us, mostly of faults later) when what has run is not
/// what will run: start-up is most of what a process with a machine ever touches. Nothing is
/// done under a debugger, whose breakpoints are in those pages.
pub fn release_program() {
    if traced() {
        return;
    }
    let mut segments: Segments = [(0, 0); 4];
    // SAFETY: the callback has the type asked for and is given a pointer to `segments`, which
    // outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(first_object), (&raw mut segments).cast()) };
    for (at, len) in segments {
        if len != 0 {
            // SAFETY: the segment is mapped for the life of the program, from its file, privately,
            // and is never written (what the loader relocates lies in segments that were
            // writable), so its pages come back as they were.
            let _ = unsafe { madvise(at as *mut c_void, len, Advice::LinuxDontNeed) };
        }
    }
}

/// Whether a debugger is attached, as far as can be seen.
fn traced() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|pid| pid.trim() != "0")
}

/// Address and size of segments that are not writable.
type Segments = [(usize, usize); 4];

/// The first object that is iterated over is the program: where its code and constants are.
unsafe extern "C" fn first_object(
    info: *mut libc::dl_phdr_info,
    _: usize,
    segments: *mut c_void,
) -> libc::c_int {
    // SAFETY: the loader passes a valid record, whose headers are `dlpi_phnum` in number.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr as usize, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    // SAFETY: what `release_program` passed.
    let segments = unsafe { &mut *segments.cast::<Segments>() };
    let fixed = headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0);
    for (h, segment) in fixed.zip(segments) {
        let page = 4096;
        // Whole pages of the file alone.
        let start = (base + h.p_vaddr as usize).next_multiple_of(page);
        let end = (base + h.p_vaddr as usize + h.p_filesz as usize) / page * page;
        *segment = (start, end.saturating_sub(start));
    }
    1
}

#[cfg(test)]
mod tests {
    /// Resident pages of the executable mapping of this program.
    fn resident() -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("Linux");
        let exe = std::fs::read_link("/proc/self/exe").expect("Linux");
        let exe = exe.to_string_lossy();
        let mut ours = false;
        let mut kib = 0;
        for line in maps.lines() {
            if line.contains(" r-xp ") || line.contains(" r--p ") || line.contains(" rw-p ") {
                ours = line.contains(" r-xp ") && line.ends_with(&*exe);
            }
            if let Some(rest) = line.strip_prefix("Rss:").filter(|_| ours) {
                kib += rest.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
            }
        }
        kib
    }

    #[test]
    fn a_released_program_goes_on_with_less_of_itself() {
        let before = resident();
        super::release_program();
        let after = resident();
        let released = after > 0 && after < before;
        assert_eq!(released, !super::traced(), "{before} KiB before, {after} KiB after");
    }
}
