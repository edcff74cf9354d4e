//! Valgrind's instruction tests, without valgrind: the programs print results
//! that are compared with what its authors recorded.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Recipe, Suite, build, enumeration};
use crate::packages;
use crate::runner::Judge;

/// One program in so many is in a run's sample.
const SAMPLE: usize = 4;

/// Flags of single programs, as the makefiles give them.
const FLAGS: [(&str, &str); 4] = [
    ("amd64locked", "-O"),
    ("x86locked", "-O"),
    ("fb_test_amd64", "-O -fno-strict-aliasing"),
    ("fpu_lazy_eflags", "-O2 -march=pentiumpro"),
];
/// Those that must not be position independent.
const NO_PIE: [&str; 7] = ["cmpxchg", "fcmovnu", "fxtract", "jrcxz", "looper", "sbbmisc", "shrld"];

/// Fetch and build.
///
/// # Errors
/// When the sources cannot be had.
pub fn suite() -> Result<Suite> {
    let root = packages::source("valgrind", &["none/tests", "tests", "include"])?;
    // Written by configure, and of no matter to these programs.
    fs::write(root.join("config.h"), "")?;
    let mut recipes = Vec::new();
    for (width, part) in [("-m64", "amd64"), ("-m32", "x86")] {
        let directory = root.join("none/tests").join(part);
        let mut tests: Vec<PathBuf> = fs::read_dir(&directory)?.flatten().map(|e| e.path()).collect();
        tests.retain(|p| p.extension().is_some_and(|e| e == "vgtest"));
        tests.sort();
        for test in tests {
            let Some(recipe) = recipe(&root, &directory, width, &test)? else { continue };
            recipes.extend(enumeration::sampled(&recipe, &directory)?);
            recipes.push(recipe);
        }
    }
    build("valgrind", &recipes, SAMPLE)
}

/// The value of a line `key: value` of a test's description.
fn field<'a>(description: &'a str, key: &str) -> Option<&'a str> {
    description.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

fn recipe(root: &Path, directory: &Path, width: &str, test: &Path) -> Result<Option<Recipe>> {
    let description = fs::read_to_string(test)?;
    let program = field(&description, "prog").context("a test without a program")?;
    let stem = test.file_stem().and_then(|s| s.to_str()).context("a name that is no text")?;
    let mut expected: Vec<PathBuf> = fs::read_dir(directory)?.flatten().map(|e| e.path()).collect();
    expected.retain(|p| {
        let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let rest = name.strip_prefix(stem).and_then(|n| n.strip_prefix(".stdout.exp"));
        rest.is_some_and(|r| !r.contains("solaris") && !r.contains("freebsd"))
    });
    if expected.is_empty() {
        return Ok(None);
    }
    let filter = field(&description, "stdout_filter").map(|f| directory.join(f));
    let part = if width == "-m64" { "amd64" } else { "x86" };
    let mut recipe = Recipe::new(format!("{part}-{stem}"), Judge::Expected(expected, filter)).with(&[
        width,
        "-D_REENTRANT",
        "-fno-stack-protector",
        &format!("-I{}", root.display()),
        &format!("-I{}", root.join("include").display()),
        &format!("-I{}", directory.display()),
    ]);
    if width == "-m32" {
        recipe = recipe.with(&["-mmmx", "-msse"]);
    }
    if NO_PIE.contains(&program) && width == "-m64" {
        recipe = recipe.with(&["-fno-pie", "-no-pie"]);
    }
    for (_, flags) in FLAGS.iter().filter(|f| f.0 == program) {
        recipe = recipe.with(&flags.split(' ').collect::<Vec<_>>());
    }
    for source in sources(directory, program)? {
        recipe = recipe.file(&source);
    }
    Ok(Some(recipe.with(&["-lm", "-lpthread"])))
}

/// A program's source files; instruction tests are generated from tables.
fn sources(directory: &Path, program: &str) -> Result<Vec<PathBuf>> {
    let table = directory.join(format!("{program}.def"));
    let single = directory.join(format!("{program}.c"));
    if table.exists() {
        let script = directory.join("gen_insn_test.pl");
        let made = Command::new("perl").arg(script).stdin(fs::File::open(table)?).output();
        fs::write(&single, made.context("cannot run perl")?.stdout)?;
    }
    if single.exists() {
        return Ok(vec![single]);
    }
    Ok(["c.c", "s.S"].iter().map(|e| directory.join(format!("{program}_{e}"))).collect())
}
