//! The whole test run.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{command, setup};

/// Optimised, and built without link-time optimisation: one build serves every
/// test, and whole guests boot in it.
const PROFILE: &str = "testing";

/// What no test may take on two processors of its own. Told, not judged: the host
/// may be busy.
const LONGEST: Duration = Duration::from_secs(60);

/// Tests counted by outcome.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Set up, check, test, and close with the counts. True if nothing failed.
pub fn run() -> Result<bool> {
    let start = Instant::now();
    setup::tools()?;
    let report = crate::check(true)?;
    report.print();
    let (clean, dirty) = report.counts();
    let mut total = Counts { passed: clean as u64, failed: dirty as u64, skipped: 0 };

    let test = ["test", "--workspace", "--profile", PROFILE, "--no-fail-fast"];
    let plain = cargo_test(&test, &[])?;
    total.add(Counts { skipped: 0, ..plain });

    // Tests that boot guests are marked #[ignore], so that a plain `cargo test`
    // is quick and needs no network.
    match setup::guest() {
        Ok(guest) => {
            let path = |p: &std::path::Path| p.to_string_lossy().into_owned();
            let variables = [
                ("STRATA_TEST_KERNEL", path(&guest.kernel)),
                ("STRATA_TEST_INITRD", path(&guest.initrd)),
                ("STRATA_TEST_BUSYBOX", path(&guest.busybox)),
            ];
            let ignored = [&test[..], &["--", "--ignored", ONE_AT_A_TIME]].concat();
            total.add(cargo_test(&ignored, &variables)?);
        }
        Err(reason) => {
            println!("whole-guest tests are skipped: {reason}");
            total.skipped += plain.skipped;
        }
    }
    println!("took {} s", start.elapsed().as_secs());
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    Ok(total.failed == 0 && total.passed > 0)
}

/// Run cargo test, show its output, and count. A build that fails is a failure.
fn cargo_test(args: &[&str], variables: &[(&str, String)]) -> Result<Counts> {
    println!("cargo {}", args.join(" "));
    let mut watch = args.contains(&ONE_AT_A_TIME).then(Watch::new);
    let mut child = Command::new(command::cargo())
        .args(args)
        .envs(variables.iter().map(|(k, v)| (k, v)))
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo's output is not there")?;
    let mut counts = Counts::default();
    for line in BufReader::new(output).lines() {
        // A test's output may be anything; what cargo prints is text.
        let Ok(line) = line else { continue };
        println!("{line}");
        if let Some(watch) = &mut watch {
            watch.line(&line, Instant::now());
        }
        if let Some(c) = result_line(&line) {
            counts.add(c);
        }
    }
    for (test, took) in watch.iter().flat_map(|w| &w.slow) {
        println!("slower than {} s: {test}, {} s", LONGEST.as_secs(), took.as_secs());
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() && counts.failed == 0 {
        counts.failed = 1;
    }
    Ok(counts)
}

/// With it, a test lasts from one line of libtest's output to the next.
const ONE_AT_A_TIME: &str = "--test-threads=1";

/// Finds slow tests in the output of a run one at a time.
struct Watch {
    since: Instant,
    slow: Vec<(String, Duration)>,
}

impl Watch {
    fn new() -> Self {
        Watch { since: Instant::now(), slow: Vec::new() }
    }

    fn line(&mut self, line: &str, now: Instant) {
        let test = line.strip_prefix("test ").and_then(|l| l.split_once(" ... "));
        if let Some((name, _)) = test {
            let took = now.duration_since(self.since);
            if took > LONGEST {
                self.slow.push((name.to_string(), took));
            }
        }
        if test.is_some() || line.starts_with("running ") {
            self.since = now;
        }
    }
}

/// The counts of `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn result_line(line: &str) -> Option<Counts> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        let part = rest.split("; ").find(|p| p.trim_end().ends_with(word))?;
        part.split_whitespace().next()?.parse().ok()
    };
    Some(Counts { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_tests_are_told() {
        let (mut watch, start) = (Watch::new(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        for (line, at) in [
            ("   Compiling strata", 0),
            ("running 2 tests", 300),
            ("test a::quick ... ok", 359),
            ("test a::slow ... FAILED", 420),
            ("test result: FAILED. 1 passed; 1 failed;", 900),
        ] {
            watch.line(line, after(at));
        }
        assert_eq!(watch.slow, [("a::slow".to_string(), Duration::from_secs(61))]);
    }

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 6 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.19s";
        assert_eq!(result_line(line), Some(Counts { passed: 6, failed: 1, skipped: 2 }));
        assert_eq!(result_line("test a ... ok"), None);
    }
}
