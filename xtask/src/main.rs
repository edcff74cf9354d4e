//! House tasks: `cargo xtask check`, `cargo xtask test`, `cargo xtask fuzz`.

mod command;
mod functions;
mod fuzz;
mod layers;
mod report;
mod setup;
mod sources;
mod suite;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use report::Report;

const USAGE: &str = "\
usage: cargo xtask <task>
  check          layer rule, file and function sizes, unsafe, texts, rustfmt, clippy
  check quick    the same without rustfmt and clippy
  test           set-up, check, and every test; closes with the counts
  fuzz [SECONDS [TARGET...]]
                 fuzz targets (all) for so long each (60), until one fails
  fuzz seeds [TARGET...]
                 choose the inputs that are kept anew; fuzz needs cargo-fuzz and a nightly toolchain";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if everything passed.
fn run() -> Result<bool> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    // Tasks name files from the workspace's root, wherever they are started.
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    std::env::set_current_dir(root).with_context(|| format!("cannot enter {root}"))?;
    match words[..] {
        ["check"] => Ok(check(true)?.print()),
        ["check", "quick"] => Ok(check(false)?.print()),
        ["test"] => suite::run(),
        ["fuzz"] => fuzz::run(60, &[]),
        ["fuzz", "seeds", ref targets @ ..] => fuzz::seeds(targets),
        ["fuzz", seconds, ref targets @ ..] => {
            fuzz::run(seconds.parse().context("SECONDS is a whole number")?, targets)
        }
        _ => bail!("{USAGE}"),
    }
}

/// Every house check; `tools` adds rustfmt and clippy.
fn check(tools: bool) -> Result<Report> {
    let mut report = Report::default();
    layers::check(&mut report)?;
    sources::check(&mut report)?;
    functions::check(&mut report)?;
    if tools {
        report.tool("rustfmt", "cargo fmt", &["fmt", "--all", "--", "--check", "-l"], "run cargo fmt");
        let clippy =
            ["clippy", "--workspace", "--all-targets", "--keep-going", "--quiet", "--", "-D", "warnings"];
        report.tool("clippy", "cargo clippy", &clippy, "mend what it says");
    }
    Ok(report)
}
