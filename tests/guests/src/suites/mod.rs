//! Suites that others wrote: which programs, how they are built, how judged.

mod enumeration;
pub mod qemu_tcg;
mod sample;
pub mod selftests;
pub mod valgrind;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};

use crate::packages;
use crate::runner::{Judge, Program, Run, run_natively};

/// A program still to be built.
struct Recipe {
    name: String,
    judge: Judge,
    /// Arguments of gcc, without `-o`.
    arguments: Vec<String>,
    /// It executes a part of what the program of this name would, see [`enumeration`].
    sampled: bool,
}

impl Recipe {
    fn new(name: impl Into<String>, judge: Judge) -> Self {
        Recipe { name: name.into(), judge, arguments: Vec::new(), sampled: false }
    }

    fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|a| a.to_string()));
        self
    }

    fn file(mut self, path: &Path) -> Self {
        self.arguments.push(path.to_string_lossy().into_owned());
        self
    }
}

/// A suite ready to run.
pub struct Suite {
    /// Its name in reports.
    pub name: &'static str,
    /// The programs that could be built.
    pub programs: Vec<Program>,
    /// Those that this host's compiler refuses.
    pub unbuilt: Vec<String>,
    /// Which they are, for people.
    pub choice: String,
    /// How many there must be, built or not.
    pub chosen: usize,
}

/// Build what is not in the cache yet, on every processor. Of all programs every
/// `step`th is taken, see [`sample`].
fn build(name: &'static str, recipes: &[Recipe], step: usize) -> Result<Suite> {
    let works = Command::new("gcc").args(["-m32", "-print-file-name=libc.so"]).output();
    let libc = works.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string());
    ensure!(
        libc.is_ok_and(|l| l.starts_with('/')),
        "gcc with 32-bit support is missing; install gcc-multilib"
    );
    let directory = packages::place(&format!("bin/{name}"))?;
    let (recipes, choice, chosen) = sample::choose(recipes, step)?;
    let (next, built) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || {
        while let Some(recipe) = recipes.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = compile(&directory, recipe);
            built.lock().unwrap_or_else(PoisonError::into_inner).push((recipe.name.clone(), result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(worker);
        }
    });
    let mut results: Vec<_> = built.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (mut programs, mut unbuilt) = (Vec::new(), Vec::new());
    for recipe in recipes {
        let at = results.iter().position(|r| r.0 == recipe.name).context("a recipe was lost")?;
        match results.swap_remove(at).1? {
            Some(path) => {
                programs.push(Program { name: recipe.name.clone(), path, judge: recipe.judge.clone() })
            }
            None => unbuilt.push(recipe.name.clone()),
        }
    }
    Ok(Suite { name, programs, unbuilt, choice, chosen })
}

/// The built program, or None if the compiler refuses.
fn compile(directory: &Path, recipe: &Recipe) -> Result<Option<PathBuf>> {
    let program = directory.join(&recipe.name);
    if program.exists() {
        return Ok(Some(program));
    }
    let part = directory.join(format!("{}.part", recipe.name));
    let status = Command::new("gcc")
        .args(["-s", "-w", "-o"])
        .arg(&part)
        .args(&recipe.arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run gcc")?;
    if !status.success() {
        return Ok(None);
    }
    fs::rename(&part, &program)?;
    Ok(Some(program))
}

/// What a program does on the host.
pub struct Native {
    /// The first run.
    pub run: Run,
    /// Two runs gave the same output.
    steady: bool,
}

impl Native {
    /// Run it, twice where the output matters.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn of(program: &Program) -> Result<Self> {
        let run = run_natively(program)?;
        let steady = !matches!(program.judge, Judge::Native) || run_natively(program)? == run;
        Ok(Native { run, steady })
    }

    /// Whether the host itself passes; None where the host is the reference.
    ///
    /// # Errors
    /// As [`verdict`].
    pub fn passes(&self, program: &Program) -> Result<bool> {
        Ok(match program.judge {
            // An instruction that this host lacks says nothing about a guest.
            Judge::Native => self.run.status != SIGILL,
            _ => verdict(program, &self.run, self)?.is_ok(),
        })
    }
}

/// A shell's status of a program that died of an undefined instruction.
const SIGILL: i32 = 128 + 4;

/// Judge a run: good, or what is wrong.
///
/// # Errors
/// When a reference file cannot be read.
pub fn verdict(program: &Program, run: &Run, native: &Native) -> Result<std::result::Result<(), String>> {
    match &program.judge {
        Judge::Selftest => {
            let text = String::from_utf8_lossy(&run.output).into_owned();
            let failed: Vec<&str> = text.lines().filter(|l| l.contains("[FAIL]")).collect();
            if run.status == 0 && failed.is_empty() {
                return Ok(Ok(()));
            }
            let last = text.lines().next_back().unwrap_or("");
            Ok(Err(format!("status {}: {}", run.status, failed.first().unwrap_or(&last))))
        }
        Judge::Expected(files, filter) => {
            let actual = filtered(&run.output, filter.as_deref())?;
            let mut difference = String::new();
            for file in files {
                let expected = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
                difference = first_difference(&expected, &actual);
                if difference.is_empty() {
                    return Ok(Ok(()));
                }
            }
            Ok(Err(format!("status {}: {difference}", run.status)))
        }
        Judge::Status if run.status == 0 => Ok(Ok(())),
        Judge::Status => Ok(Err(format!("status {}", run.status))),
        Judge::Native => {
            if run.status != native.run.status {
                return Ok(Err(format!("status {}, natively {}", run.status, native.run.status)));
            }
            if !native.steady || run.output == native.run.output {
                return Ok(Ok(()));
            }
            Ok(Err(first_difference(&native.run.output, &run.output)))
        }
    }
}

fn filtered(output: &[u8], filter: Option<&Path>) -> Result<Vec<u8>> {
    let Some(filter) = filter else { return Ok(output.to_vec()) };
    let mut file = std::env::temp_dir();
    file.push(format!("strata-filter-{}", std::process::id()));
    fs::write(&file, output)?;
    let run = Command::new(filter).stdin(fs::File::open(&file)?).output().context("cannot run a filter")?;
    fs::remove_file(&file)?;
    Ok(run.stdout)
}

/// How many lines differ, and the first one; empty if none.
fn first_difference(expected: &[u8], actual: &[u8]) -> String {
    let (want, have) = (String::from_utf8_lossy(expected), String::from_utf8_lossy(actual));
    let (mut want, mut have) = (want.lines(), have.lines());
    let (mut count, mut first) = (0, String::new());
    loop {
        let pair = (want.next(), have.next());
        if pair == (None, None) {
            break;
        }
        if pair.0 != pair.1 {
            count += 1;
            if count == 1 {
                let show = |l: Option<&str>| l.map_or("nothing".to_string(), |l| format!("\"{l}\""));
                first = format!("expected {}, found {}", show(pair.0), show(pair.1));
            }
        }
    }
    if count == 0 { String::new() } else { format!("{count} lines differ: {first}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(judge: &Judge, run: (i32, &str), native: (i32, &str), steady: bool) -> bool {
        let program = Program { name: "p".into(), path: "p".into(), judge: judge.clone() };
        let made = |r: (i32, &str)| Run { status: r.0, output: r.1.as_bytes().to_vec() };
        verdict(&program, &made(run), &Native { run: made(native), steady }).unwrap().is_ok()
    }

    #[test]
    fn verdicts() {
        let native = (0, "a\nb\n");
        for (run, steady, expected) in [
            (native, true, true),
            ((0, "a\nc\n"), true, false),
            ((0, "a\nc\n"), false, true),
            ((1, "a\nb\n"), false, false),
            ((0, "a\n"), true, false),
        ] {
            assert_eq!(good(&Judge::Native, run, native, steady), expected, "{run:?}");
        }
        for (run, expected) in
            [((0, "[OK]\n"), true), ((0, "[OK]\n[FAIL] x\n"), false), ((1, "[OK]\n"), false)]
        {
            assert_eq!(good(&Judge::Selftest, run, native, true), expected, "{run:?}");
        }
    }

    #[test]
    fn the_first_difference_is_shown_and_all_are_counted() {
        assert_eq!(first_difference(b"a\nb\n", b"a\nb\n"), "");
        let text = first_difference(b"a\nb\nc\n", b"a\nx\n");
        assert_eq!(text, "2 lines differ: expected \"b\", found \"x\"");
    }
}
