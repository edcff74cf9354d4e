//! QEMU's tests of its x86 translator, with this host's processor as reference.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Recipe, Suite, build, enumeration};
use crate::packages;
use crate::runner::Judge;

/// One program in so many is in a run's sample.
const SAMPLE: usize = 3;

const BITS_64: [&str; 3] = ["x86_64/vsyscall", "x86_64/noexec", "x86_64/cmpxchg"];
const BITS_32: [&str; 18] = [
    "test-i386-bmi2",
    "test-i386-f2xm1",
    "test-i386-fbstp",
    "test-i386-fisttp",
    "test-i386-fldcst",
    "test-i386-fp-exceptions",
    "test-i386-fpatan",
    "test-i386-fprem",
    "test-i386-fscale",
    "test-i386-fxam",
    "test-i386-fxtract",
    "test-i386-fyl2x",
    "test-i386-fyl2xp1",
    "test-i386-pcmpistri",
    "test-i386-pseudo-denormal",
    "test-i386-snan-convert",
    "test-i386-sse-exceptions",
    "hello-i386",
];
/// C programs for every architecture, built at both widths.
const MULTIARCH: [&str; 14] = [
    "float_convd",
    "float_convs",
    "float_madds",
    "munmap-pthread",
    "overflow",
    "sha1",
    "sha512",
    "sigbus",
    "signals",
    "test-mmap",
    "testthread",
    "threadcount",
    "linux/linux-madvise",
    "linux/linux-test",
];

/// Flags of single programs, as the makefiles give them.
const FLAGS: [(&str, &[&str]); 4] = [
    ("test-i386-sse-exceptions", &["-msse4.1", "-mfpmath=sse"]),
    ("test-i386-pcmpistri", &["-msse4.2"]),
    ("test-i386-bmi2", &["-O2"]),
    ("hello-i386", &["-ffreestanding", "-nostdlib", "-static"]),
];

/// Debian's kernels have no 16-bit segments (CONFIG_X86_16BIT), where the program
/// would crash: these leave out its call of `test_code16()`, which becomes
/// `code16_()`, but not the function's definition with `(void)`.
const NO_16_BIT_CALL: [&str; 2] = ["-Dtest_code16(x)=code16_##x(x)", "-Dcode16_()=((void)0)"];

/// Fetch and build.
///
/// # Errors
/// When the sources cannot be had or python3 is missing, which makes some of them.
pub fn suite() -> Result<Suite> {
    let root = packages::source("qemu", &["tests/tcg/i386", "tests/tcg/x86_64", "tests/tcg/multiarch"])?;
    let tcg = root.join("tests/tcg");
    let i386 = tcg.join("i386");
    let start = |name: &str, width: &str| {
        // It prints the time.
        let judge = if name == "vsyscall" { Judge::Status } else { Judge::Native };
        Recipe::new(name, judge).with(&[width, "-O0", "-g", "-fno-strict-aliasing"])
    };
    let mut recipes = Vec::new();
    for test in BITS_64 {
        let name = test.rsplit('/').next().unwrap_or(test);
        recipes.push(start(name, "-m64").file(&tcg.join(format!("{test}.c"))));
    }
    for test in BITS_32 {
        let flags = FLAGS.iter().find(|f| f.0 == test).map_or(&[][..], |f| f.1);
        let recipe = start(test, "-m32").with(flags).file(&i386.join(format!("{test}.c"))).with(&["-lm"]);
        recipes.extend(enumeration::sampled(&recipe, &i386)?);
        recipes.push(recipe);
    }
    recipes.push(start("test-x86_64", "-m64").file(&i386.join("test-i386.c")).with(&["-lm"]));
    recipes.push(
        ["test-i386.c", "test-i386-code16.S", "test-i386-vm86.S"]
            .iter()
            .fold(start("test-i386", "-m32").with(&["-fno-pie", "-no-pie"]).with(&NO_16_BIT_CALL), |r, f| {
                r.file(&i386.join(f))
            })
            .with(&["-lm"]),
    );
    let vector = [
        ("test-mmx", "test-mmx.py", &["MMX", "SSE", "SSE2", "SSE3", "SSSE3"][..], &[][..]),
        ("test-avx", "test-avx.py", &[], &["-mavx"]),
    ];
    for (test, script, sets, flags) in vector {
        generate(&i386, script, test, sets)?;
        let recipe = Recipe::new(test, Judge::Native).with(&["-m64", "-masm=intel", "-O"]).with(flags);
        recipes.push(recipe.with(&[&format!("-I{}", i386.display())]).file(&i386.join(format!("{test}.c"))));
    }
    recipes.push(start("test-i386-ssse3", "-m64").file(&i386.join("test-i386-ssse3.c")));
    recipes.push(
        Recipe::new("sha512-sse", Judge::Native)
            .with(&["-m32", "-msse4.1", "-O3"])
            .file(&tcg.join("multiarch/sha512.c")),
    );
    recipes.extend(multiarch(&tcg));
    build("qemu-tcg", &recipes, SAMPLE)
}

fn multiarch(tcg: &Path) -> Vec<Recipe> {
    let directory = tcg.join("multiarch");
    let mut recipes = Vec::new();
    for (width, suffix) in [("-m64", "64"), ("-m32", "32")] {
        for test in MULTIARCH {
            let name = test.rsplit('/').next().unwrap_or(test);
            let judge = if name == "testthread" { Judge::Status } else { Judge::Native };
            let mut recipe = Recipe::new(format!("{name}-{suffix}"), judge)
                .with(&[width, "-O0", "-g", "-fno-strict-aliasing", "-pthread"])
                .file(&directory.join(format!("{test}.c")));
            if name.starts_with("float_") {
                recipe = recipe.file(&directory.join("libs/float_helpers.c"));
            }
            recipes.push(recipe.with(&["-lm", "-lrt"]));
        }
    }
    recipes
}

/// Make a header of test cases from the suite's table of instructions.
fn generate(directory: &Path, script: &str, test: &str, sets: &[&str]) -> Result<()> {
    let status = Command::new("python3")
        .current_dir(directory)
        .args([script, "x86.csv", &format!("{test}.h")])
        .args(sets)
        .status()
        .context("cannot run python3")?;
    ensure!(status.success(), "{script} fails: {status}");
    Ok(())
}
