//! Other programs, run to their end, their messages watched.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::error::BuildError;

/// Lines of a failed program's messages that an error carries.
const SAID: usize = 6;

/// Run a program without input, whose every line of messages `told` sees.
pub(crate) fn run(
    command: &mut Command,
    remedy: &'static str,
    mut told: impl FnMut(&str),
) -> Result<(), BuildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let none = |source| BuildError::NoProgram { program: program.clone(), source };
    let mut child = command
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(none)?;
    let mut said = VecDeque::new();
    if let Some(messages) = child.stderr.take() {
        for line in BufReader::new(messages).split(b'\n') {
            // A program that closes its end early is judged by its status.
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).trim().to_string();
            told(&line);
            if !line.is_empty() {
                said.push_back(line);
            }
            if said.len() > SAID {
                said.pop_front();
            }
        }
    }
    let status = child.wait().map_err(none)?;
    if status.success() {
        return Ok(());
    }
    said.push_back(status.to_string());
    // A semicolon separates what went wrong from the remedy.
    let said = Vec::from(said).join(" / ").replace(';', ",");
    Err(BuildError::Program { program, said, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_seen_and_the_last_ones_told_on_failure() {
        let mut seen = Vec::new();
        let script = "for i in 1 2 3 4 5 6 7 8; do echo step $i >&2; done; exit 3";
        let e = run(Command::new("sh").args(["-c", script]), "try again", |l| seen.push(l.to_string()));
        assert_eq!((seen.len(), seen[0].as_str()), (8, "step 1"));
        let text = e.unwrap_err().to_string();
        assert!(
            text.contains("step 8") && !text.contains("step 2") && text.ends_with("; try again"),
            "{text}"
        );
        assert!(text.contains("exit status: 3"), "{text}");
        run(&mut Command::new("true"), "", |_| {}).unwrap();
        let e = run(&mut Command::new("strata-no-such-program"), "", |_| {}).unwrap_err();
        assert!(matches!(e, BuildError::NoProgram { .. }), "{e}");
    }
}
