//! What the checks found.

use crate::command;

/// Findings of all checks so far.
#[derive(Default)]
pub struct Report {
    checks: Vec<(&'static str, usize)>,
    findings: Vec<String>,
}

impl Report {
    /// A check is done, with these findings: each names a place and a remedy.
    pub fn add(&mut self, check: &'static str, findings: Vec<String>) {
        self.checks.push((check, findings.len()));
        self.findings.extend(findings.into_iter().map(|f| format!("{check}: {f}")));
    }

    /// Run a cargo command as a check.
    pub fn tool(&mut self, check: &'static str, name: &str, args: &[&str], remedy: &str) {
        let passed = command::show(&command::cargo(), args).unwrap_or(false);
        let findings = if passed { Vec::new() } else { vec![format!("{name} does not pass; {remedy}")] };
        self.add(check, findings);
    }

    /// Checks that found nothing, and those that did.
    pub fn counts(&self) -> (usize, usize) {
        let passed = self.checks.iter().filter(|c| c.1 == 0).count();
        (passed, self.checks.len() - passed)
    }

    /// Print everything; true if there is nothing to mend.
    pub fn print(&self) -> bool {
        for f in &self.findings {
            println!("{f}");
        }
        let (passed, failed) = self.counts();
        let names: Vec<&str> = self.checks.iter().map(|c| c.0).collect();
        println!("checks ({}): {passed} clean, {failed} with findings", names.join(", "));
        failed == 0
    }
}
