//! Running other programs.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Output of a program that must succeed.
pub fn output(program: &str, args: &[&str]) -> Result<String> {
    let run = Command::new(program).args(args).stderr(Stdio::inherit()).output();
    let run = run.with_context(|| format!("cannot run {program}"))?;
    if !run.status.success() {
        bail!("{program} {} failed: {}", args.join(" "), run.status);
    }
    String::from_utf8(run.stdout).with_context(|| format!("{program} printed something that is not UTF-8"))
}

/// Whether a program exists and answers this probe with success.
pub fn works(program: &str, args: &[&str]) -> bool {
    let quiet = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    quiet.is_ok_and(|s| s.success())
}

/// Run with our own output; true on success.
pub fn show(program: &str, args: &[&str]) -> Result<bool> {
    let status = Command::new(program).args(args).status();
    Ok(status.with_context(|| format!("cannot run {program}"))?.success())
}

/// The cargo that runs us.
pub fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_string())
}
