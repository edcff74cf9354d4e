//! Linux's own x86 selftests: signals, LDT, virtual-8086 mode, single steps,
//! system-call corners. Built as their Makefile builds them.

use anyhow::Result;

use super::{Recipe, Suite, build};
use crate::packages;
use crate::runner::Judge;

/// One program in so many is in a run's sample.
const SAMPLE: usize = 3;

const BOTH: [&str; 16] = [
    "single_step_syscall",
    "sysret_ss_attrs",
    "syscall_nt",
    "test_mremap_vdso",
    "check_initial_reg_state",
    "sigreturn",
    "iopl",
    "ioperm",
    "test_vsyscall",
    "mov_ss_trap",
    "sigtrap_loop",
    "syscall_arg_fault",
    "fsgsbase_restore",
    "sigaltstack",
    "ldt_gdt",
    "ptrace_syscall",
];
const ONLY_32: [&str; 7] = [
    "entry_from_vm86",
    "test_syscall_vdso",
    "unwind_vdso",
    "test_FCMOV",
    "test_FCOMI",
    "test_FISTTP",
    "vdso_restorer",
];
const ONLY_64: [&str; 5] = ["fsgsbase", "sysret_rip", "syscall_numbering", "corrupt_xstate_header", "amx"];

/// Second source files: (program, file).
const HELPERS: [(&str, &str); 3] = [
    ("sysret_ss_attrs_64", "thunks.S"),
    ("ptrace_syscall_32", "raw_syscall_helper_32.S"),
    ("test_syscall_vdso_32", "thunks_32.S"),
];

/// Fetch and build.
///
/// # Errors
/// When the sources cannot be had.
pub fn suite() -> Result<Suite> {
    let wanted =
        ["tools/testing/selftests/x86", "tools/testing/selftests/*.h", "arch/x86/include/asm/desc_defs.h"];
    let directory =
        packages::source_in_binary("linux-source-6.1", &wanted)?.join("tools/testing/selftests/x86");
    let names = |width| match width {
        "32" => BOTH.iter().chain(&ONLY_32),
        _ => BOTH.iter().chain(&ONLY_64),
    };
    let mut recipes = Vec::new();
    for width in ["64", "32"] {
        for test in names(width) {
            let name = format!("{test}_{width}");
            let mut recipe = Recipe::new(&name, Judge::Selftest)
                .with(&[&format!("-m{width}"), "-O2", "-g", "-std=gnu99", "-pthread", "-no-pie"])
                .with(&["-DCAN_BUILD_32", "-DCAN_BUILD_64"])
                .file(&directory.join(format!("{test}.c")));
            for (_, helper) in HELPERS.iter().filter(|h| h.0 == name) {
                recipe = recipe.file(&directory.join(helper));
            }
            if *test == "check_initial_reg_state" {
                recipe = recipe.with(&["-Wl,-ereal_start", "-static"]);
            }
            recipes.push(recipe.with(&["-lrt", "-ldl", "-lm"]));
        }
    }
    build("selftests", &recipes, SAMPLE)
}
