//! Runs of the fuzz targets.

use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command;

/// AddressSanitizer does not work with a static C library.
const HOST: &str = "x86_64-unknown-linux-gnu";
/// What is an error besides a crash (seconds, MiB), and how long inputs grow (bytes).
const LIMITS: [&str; 4] = ["-timeout=25", "-rss_limit_mb=2048", "-max_len=4096", "-print_final_stats=1"];
/// Without what makes runs slow: stacks of allocations, frames on the heap. A failing input
/// can be run again with them.
const SANITIZER: &str = "malloc_context_size=1:detect_stack_use_after_return=0";
/// The longest input that is kept as a seed, in bytes.
const LONGEST_SEED: u64 = 2 << 10;
/// The most seeds of a target.
const MOST_SEEDS: usize = 30;
/// How much of a failed run's output is shown: with AddressSanitizer's report.
const LAST_LINES: usize = 120;
/// Clock ticks of `/proc/PID/stat` in a second: Linux gives this number to all programs.
const TICKS: u64 = 100;

/// What a run of one target came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Run {
    executions: u64,
    /// Edges of the program's control flow that were reached.
    edges: u64,
    elapsed: Duration,
    processor: Duration,
}

/// Run targets (all if none is named) for so many seconds each, in this order, until
/// one fails. They start from the inputs that are kept; what they find goes into
/// `fuzz/corpus`, which is not. True if none has failed.
pub fn run(seconds: u64, names: &[&str]) -> Result<bool> {
    let targets = targets(names)?;
    let mut runs = Vec::new();
    let mut failure = None;
    for target in &targets {
        println!("fuzzing {target} for {seconds} s");
        let (run, clean) = one(target, seconds)?;
        runs.push((target, run));
        if !clean {
            failure = Some(target);
            break;
        }
    }
    println!("\n| target | executions | edges reached | minutes | of a processor |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for (target, Run { executions, edges, elapsed, processor }) in &runs {
        let minutes = |d: &Duration| d.as_secs_f64() / 60.0;
        let (elapsed, processor) = (minutes(elapsed), minutes(processor));
        println!("| `{target}` | {executions} | {edges} | {elapsed:.1} | {processor:.1} |");
    }
    if let Some(target) = failure {
        let binary = program(target);
        println!("\n{target} failed; its last lines are above, the input is in {}", artifacts(target));
        println!("again: {} INPUT", binary.display());
        println!("{} of {} targets were not run", targets.len() - runs.len(), targets.len());
    }
    Ok(failure.is_none())
}

/// Choose the seeds of targets anew, out of those kept and what was found: a few short
/// inputs that together reach most.
pub fn seeds(names: &[&str]) -> Result<bool> {
    for target in targets(names)? {
        let kept = PathBuf::from(format!("fuzz/seeds/{target}"));
        let folder = PathBuf::from(artifacts(&target)).join("merge");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let notes = folder.with_extension("txt");
        let mut measure = Command::new(program(&target));
        measure
            // Edges alone: with how often and with which operands, few inputs reach fewer of them.
            .args(["-merge=1", "-use_counters=0", "-use_cmp=0", &format!("-max_len={LONGEST_SEED}")])
            .arg(format!("-merge_control_file={}", notes.display()))
            .args([&folder, &kept, &PathBuf::from(corpus(&target))])
            .stderr(Stdio::null());
        let clean = measure.status().with_context(|| format!("cannot run {target}"))?.success();
        let text = std::fs::read_to_string(&notes).with_context(|| format!("{target} said nothing"))?;
        std::fs::remove_dir_all(&folder)?;
        std::fs::remove_file(&notes)?;
        if !clean {
            bail!("{target} fails on an input; run it: {} INPUT", program(&target).display());
        }
        let (chosen, reached) = choose(measured(&text));
        let mut inputs = Vec::new();
        for path in &chosen {
            inputs.push(std::fs::read(path).with_context(|| format!("cannot read {path}"))?);
        }
        std::fs::remove_dir_all(&kept)?;
        std::fs::create_dir(&kept)?;
        for (path, input) in chosen.iter().zip(&inputs) {
            std::fs::write(kept.join(Path::new(path).file_name().context("a file's name")?), input)?;
        }
        println!("{target}: {} seeds reach {reached} edges", inputs.len());
    }
    Ok(true)
}

/// What an input reached: libFuzzer's numbers of edges.
#[derive(Debug, Default, Clone)]
struct Input {
    path: String,
    bytes: u64,
    edges: BTreeSet<u64>,
}

/// Read the notes of a merge: the count of inputs and of those that count for nothing,
/// their paths, then `STARTED number bytes` and `FT number feature...` of each.
fn measured(notes: &str) -> Vec<Input> {
    let count = notes.lines().next().and_then(|l| l.parse().ok()).unwrap_or(0);
    let paths = notes.lines().skip(2).take(count);
    let mut inputs: Vec<_> = paths.map(|p| Input { path: p.to_string(), ..Input::default() }).collect();
    for line in notes.lines().skip(2 + count) {
        let mut words = line.split_whitespace();
        let word = words.next();
        let mut numbers = words.filter_map(|w| w.parse::<u64>().ok());
        let input = numbers.next().and_then(|n| inputs.get_mut(usize::try_from(n).ok()?));
        let Some(input) = input else { continue };
        match word {
            Some("STARTED") => input.bytes = numbers.next().unwrap_or(u64::MAX),
            Some("FT") => input.edges.extend(numbers),
            _ => {}
        }
    }
    inputs
}

/// The inputs that are worth most, one after the other, and how much they reach.
fn choose(inputs: Vec<Input>) -> (Vec<String>, usize) {
    let (mut left, mut chosen) = (inputs, Vec::new());
    left.retain(|input| (1..=LONGEST_SEED).contains(&input.bytes));
    let mut reached = BTreeSet::new();
    while chosen.len() < MOST_SEEDS {
        left.iter_mut().for_each(|input| input.edges.retain(|e| !reached.contains(e)));
        let best = left.iter().enumerate().max_by_key(|(_, i)| (i.edges.len(), Reverse(i.bytes)));
        let Some(best) = best.filter(|(_, i)| !i.edges.is_empty()).map(|(at, _)| at) else { break };
        let input = left.swap_remove(best);
        reached.extend(input.edges);
        chosen.push(input.path);
    }
    (chosen, reached.len())
}

/// Build all, and check the names.
fn targets(names: &[&str]) -> Result<Vec<String>> {
    if !command::works("cargo", &["+nightly", "fuzz", "--version"]) {
        bail!(
            "cargo-fuzz or a nightly toolchain is missing; run: rustup toolchain install nightly && cargo install cargo-fuzz"
        );
    }
    let list = command::output("cargo", &["+nightly", "fuzz", "list"])?;
    let all: Vec<String> = list.lines().map(str::to_string).collect();
    if let Some(name) = names.iter().find(|n| !all.iter().any(|a| a == *n)) {
        bail!("there is no target {name}; there are {}", all.join(", "));
    }
    // Once, before the first run: what is edited meanwhile is of the next.
    let built = folder();
    let build = ["+nightly", "fuzz", "build", "--target", HOST, "--target-dir", &built.to_string_lossy()];
    if !command::show("cargo", &build)? {
        bail!("the targets do not build");
    }
    Ok(if names.is_empty() { all } else { names.iter().map(|n| n.to_string()).collect() })
}

/// Where the programs are built.
fn folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("fuzz/target"), PathBuf::from)
}

fn program(target: &str) -> PathBuf {
    folder().join(HOST).join("release").join(target)
}

fn corpus(target: &str) -> String {
    format!("fuzz/corpus/{target}")
}

/// Where libFuzzer leaves inputs that fail.
fn artifacts(target: &str) -> String {
    format!("fuzz/artifacts/{target}/")
}

/// Run one target; whether it has found no fault.
fn one(target: &str, seconds: u64) -> Result<(Run, bool)> {
    for folder in [corpus(target), artifacts(target)] {
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {folder}"))?;
    }
    let start = Instant::now();
    let mut child = Command::new(program(target))
        .args([corpus(target), format!("fuzz/seeds/{target}")])
        .args([format!("-max_total_time={seconds}"), format!("-artifact_prefix={}", artifacts(target))])
        .args(LIMITS)
        .env("ASAN_OPTIONS", std::env::var("ASAN_OPTIONS").unwrap_or_else(|_| SANITIZER.to_string()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {target}"))?;
    let output = child.stderr.take().context("its output is not there")?;
    let (mut run, mut last) = (Run::default(), VecDeque::new());
    let stat = format!("/proc/{}/stat", child.id());
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read its output")?;
        let line = String::from_utf8_lossy(&line);
        run.line(&line);
        if is_progress(&line) {
            println!("{line}");
        }
        last.push_back(line.into_owned());
        if last.len() > LAST_LINES {
            last.pop_front();
        }
        // Its last lines come when it is done.
        if let Ok(stat) = std::fs::read_to_string(&stat) {
            run.processor = processor_time(&stat).unwrap_or(run.processor);
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for {target}"))?;
    run.elapsed = start.elapsed();
    if !status.success() {
        last.iter().for_each(|line| println!("{line}"));
    }
    Ok((run, status.success()))
}

impl Run {
    /// Take what a line of libFuzzer's says: `#6843 NEW cov: 961 ft: 2411 corp: ...`,
    /// `stat::number_of_executed_units: 6843`.
    fn line(&mut self, line: &str) {
        if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            self.executions = count.trim().parse().unwrap_or(self.executions);
        } else if let Some((count, rest)) = line.strip_prefix('#').and_then(|l| l.split_once('\t')) {
            self.executions = count.parse().unwrap_or(self.executions);
            let mut words = rest.split_whitespace().skip_while(|w| *w != "cov:");
            let edges = words.nth(1).and_then(|n| n.parse().ok());
            self.edges = edges.unwrap_or(self.edges);
        }
    }
}

/// How a run goes: not what each input has reached, nor what the product says.
fn is_progress(line: &str) -> bool {
    line.starts_with('#') && ["INITED", "pulse", "DONE"].iter().any(|w| line.contains(w))
}

/// Of all its threads: fields 14 and 15 of `/proc/PID/stat`, counted behind the name.
fn processor_time(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis((ticks()? + ticks()?) * (1000 / TICKS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_run_are_counted() {
        let mut run = Run::default();
        for (line, executions, edges, progress) in [
            ("INFO: Seed: 1", 0, 0, false),
            ("#2\tINITED cov: 900 ft: 901 corp: 1/1b exec/s: 0 rss: 40Mb", 2, 900, true),
            (
                "#6843\tNEW    cov: 961 ft: 2411 corp: 3/4Kb lim: 4096 exec/s: 1368 rss: 60Mb",
                6843,
                961,
                false,
            ),
            ("    #3 0x55d0 in frame", 6843, 961, false),
            ("virtio-net: pulse", 6843, 961, false),
            ("#8192\tpulse  cov: 970 ft: 2411 corp: 3/4Kb", 8192, 970, true),
            ("stat::number_of_executed_units: 9000", 9000, 970, false),
        ] {
            run.line(line);
            assert_eq!(
                (run.executions, run.edges, is_progress(line)),
                (executions, edges, progress),
                "{line}"
            );
        }
    }

    #[test]
    fn the_inputs_worth_most_are_chosen() {
        let notes = "4\n0\na\nb\nc\nlong\nSTARTED 0 9\nFT 0 1 2\nCOV 0 7\nSTARTED 1 5\nFT 1 1 2\n\
                     STARTED 2 9\nFT 2 2 3 4\nSTARTED 3 4096\nFT 3 1 2 3 4 5 6\n";
        // C reaches three, then B one more and is shorter than A; A adds nothing.
        assert_eq!(choose(measured(notes)), (vec!["c".to_string(), "b".to_string()], 4));
    }

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "12 (a) R (b) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20";
        assert_eq!(processor_time(stat), Some(Duration::from_millis(1750)));
        assert_eq!(processor_time("12 (a"), None);
    }
}
