//! Checks of files as text.

use std::fs;

use anyhow::{Context, Result};

use crate::command;
use crate::report::Report;

/// Longest Rust file, in lines before its tests.
const MAX_LINES: usize = 900;

/// Texts that have no place in the repository, with what to do instead.
const FORBIDDEN: [(&str, &str); 8] = [
    ("todo!(", "write it, or return an error that says what is missing"),
    ("unimplemented!(", "write it, or return an error that says what is missing"),
    ("dbg!(", "remove it"),
    ("TODO", "do it, or open an issue"),
    ("FIXME", "mend it, or open an issue"),
    ("XXX", "mend it, or open an issue"),
    ("/home/", "absolute paths of one machine mean nothing on another"),
    ("/work/", "absolute paths of one machine mean nothing on another"),
];

/// This file must name what it forbids.
const SELF: &str = "xtask/src/sources.rs";

/// Files that others generate.
const GENERATED: [&str; 2] = ["Cargo.lock", "LICENSE-APACHE"];

/// Check sizes, forbidden texts, white space and reasons of unsafe code.
pub fn check(report: &mut Report) -> Result<()> {
    let (mut sizes, mut texts, mut unsafety) = (Vec::new(), Vec::new(), Vec::new());
    for (path, text) in files()? {
        if GENERATED.contains(&path.as_str()) || path.contains("/generated/") {
            continue;
        }
        texts.extend(text_findings(&path, &text));
        if path.ends_with(".rs") {
            let lines = lines_before_tests(&text);
            if lines > MAX_LINES {
                sizes.push(format!(
                    "{path} has {lines} lines before its tests, at most {MAX_LINES} are allowed; split it"
                ));
            }
            unsafety.extend(unsafe_findings(&path, &text));
        }
    }
    report.add("file sizes", sizes);
    report.add("texts", texts);
    report.add("unsafe", unsafety);
    Ok(())
}

/// Every text file that is or would be committed.
pub fn files() -> Result<Vec<(String, String)>> {
    let list = command::output("git", &["ls-files", "--cached", "--others", "--exclude-standard"])?;
    let mut files = Vec::new();
    for path in list.lines() {
        match fs::read(path) {
            // What is not text is not ours to judge here.
            Ok(bytes) => files.extend(String::from_utf8(bytes).ok().map(|text| (path.to_string(), text))),
            // Deleted but not committed yet, or a link.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("cannot read {path}")),
        }
    }
    Ok(files)
}

/// Lines up to the unit tests that close a file.
pub fn lines_before_tests(text: &str) -> usize {
    let is_tests = |l: &&str| l.starts_with("#[cfg(test)]") || l.starts_with("#[cfg(all(test");
    text.lines().take_while(|l| !is_tests(l)).count()
}

fn text_findings(path: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let code = path.ends_with(".rs") || path.ends_with(".sh") || path.ends_with(".toml");
    for (number, line) in text.lines().enumerate() {
        let place = format!("{path}:{}", number + 1);
        if path != SELF {
            let found = FORBIDDEN.iter().filter(|f| line.contains(f.0));
            findings.extend(found.map(|f| format!("{place} contains {:?}; {}", f.0, f.1)));
        }
        if code && line.ends_with([' ', '\t']) {
            findings.push(format!("{place} ends with white space; remove it"));
        }
    }
    findings
}

/// Where unsafe code is allowed, a reason stands, and a comment before its use.
fn unsafe_findings(path: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let allows: Vec<(usize, &str)> = text
        .lines()
        .enumerate()
        .filter(|(_, l)| l.contains("allow(unsafe_code") && !l.trim_start().starts_with("//"))
        .collect();
    for (number, line) in &allows {
        if !line.contains("reason") && path != SELF {
            findings.push(format!(
                "{path}:{} allows unsafe code without a reason; add reason = \"...\"",
                number + 1
            ));
        }
    }
    let used = text.lines().any(|l| l.contains("unsafe {") && !l.trim_start().starts_with("//"));
    if used && !text.contains("SAFETY:") && path != SELF {
        findings.push(format!(
            "{path} has unsafe blocks without SAFETY comments; name the invariant each relies on"
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_do_not_count_as_lines() {
        assert_eq!(lines_before_tests("a\nb\n#[cfg(test)]\nmod tests {}\n"), 2);
        assert_eq!(lines_before_tests("a\n    #[cfg(test)]\nb\n"), 3);
    }

    #[test]
    fn forbidden_texts_and_unsafe_without_reason_are_found() {
        assert_eq!(text_findings("a.rs", "fn f() { todo!() }\nlet a = 1; \n").len(), 2);
        assert_eq!(text_findings("a.md", "two spaces  \n").len(), 0);
        let bare = ["#![allow(", "unsafe_code)]\nfn f() { unsafe { g() } }\n"].concat();
        assert_eq!(unsafe_findings("a.rs", &bare).len(), 2);
        let good = "#![allow(unsafe_code, reason = \"r\")]\n// SAFETY: it is.\nfn f() { unsafe { g() } }\n";
        assert_eq!(unsafe_findings("a.rs", good).len(), 0);
    }
}
