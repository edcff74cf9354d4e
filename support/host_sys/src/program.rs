//! This program's own code in memory.
// UNSAFE: asks the loader where the program is, and advises the kernel on it.
#![allow(unsafe_code, reason = "the home of advice on the program's own mapping")]

use std::ffi::c_void;

use rustix::mm::{Advice, madvise};

/// Let go of the program's code: what is used is mapped again where it is used. Worth
/// its time (some 100 us, mostly of faults later) when what has run is not what will
/// run: start-up is most of what a process with a machine ever touches.
pub fn release_program() {
    let mut text: Option<(usize, usize)> = None;
    // SAFETY: the callback has the type asked for and is given a pointer to `text`, which
    // outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(first_object), (&raw mut text).cast()) };
    if let Some((at, len)) = text {
        // SAFETY: the segment is mapped for the life of the program, from its file, privately,
        // readable and executable and never written (a position-independent program has no
        // relocations in its text), so its pages come back as they were.
        let _ = unsafe { madvise(at as *mut c_void, len, Advice::LinuxDontNeed) };
    }
}

/// The first object that is iterated over is the program: where its code is.
unsafe extern "C" fn first_object(info: *mut libc::dl_phdr_info, _: usize, text: *mut c_void) -> libc::c_int {
    // SAFETY: the loader passes a valid record, whose headers are `dlpi_phnum` in number.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr as usize, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    let is_text = |h: &&libc::Elf64_Phdr| {
        h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_X != 0 && h.p_flags & libc::PF_W == 0
    };
    if let Some(h) = headers.iter().find(is_text) {
        let page = 4096;
        // Whole pages of the file alone.
        let start = (base + h.p_vaddr as usize).next_multiple_of(page);
        let end = (base + h.p_vaddr as usize + h.p_filesz as usize) / page * page;
        if start < end {
            // SAFETY: what `release_program` passed.
            unsafe { *text.cast::<Option<(usize, usize)>>() = Some((start, end - start)) };
        }
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
        assert!(after > 0 && after < before, "{before} KiB before, {after} KiB after");
    }
}
