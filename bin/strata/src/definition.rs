//! Machines defined in a file: `strata run -f vm.toml`.
//!
//! Each key is a flag of `strata run` without its dashes, so a file can say all
//! that the command line can, and each new flag is a key at once. What the
//! command line says besides goes before the file.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use toml::{Table, Value};

use crate::cli::{Cli, Command, RunArgs};
use crate::failure::InputError;

/// The key of the image, which has no flag.
const IMAGE: &str = "image";
/// The key of the command, which stands behind `--`.
const COMMAND: &str = "command";
/// Flags that say how to run, not what.
const NO_KEYS: [&str; 7] = ["spec", "detach", "kept", "supervise", "turn", "help", "version"];

/// The arguments of `strata run`, with those of a file before them; and as words
/// that mean the same without that file.
///
/// # Errors
/// When the file cannot be read, or says what no flag does.
pub fn complete(args: RunArgs) -> anyhow::Result<(RunArgs, Vec<String>)> {
    let given = std::env::args_os().skip_while(|w| w != "run").skip(1);
    let given: Vec<String> = given.map(text).collect::<Result<_, _>>()?;
    let Some(path) = &args.spec else { return Ok((args, given)) };
    let content = std::fs::read_to_string(path).with_context(|| {
        InputError(format!("cannot read {}; give a file of TOML that is there", path.display()))
    })?;
    let told = |e: String| InputError(format!("{}: {e}", path.display()));
    let read = arguments(&content).map_err(told)?;
    let mut words = read.flags;
    words.extend(read.image.filter(|_| args.image.is_none()));
    let (own, command) = split(given);
    words.extend(own);
    let command = if args.command.is_empty() { read.command } else { command };
    if !command.is_empty() {
        words.push("--".to_string());
        words.extend(command);
    }
    Ok((parse(&words).map_err(|e| told(first_line(&e)))?, words))
}

/// Read arguments of `strata run`.
///
/// # Errors
/// When they are none.
pub fn parse(words: &[String]) -> Result<RunArgs, clap::Error> {
    let line = ["strata", "run"].into_iter().chain(words.iter().map(String::as_str));
    match Cli::try_parse_from(line)?.command {
        Command::Run(args) => Ok(*args),
        _ => Err(clap::Error::new(clap::error::ErrorKind::InvalidSubcommand)),
    }
}

fn text(word: OsString) -> anyhow::Result<String> {
    word.into_string().map_err(|w| {
        InputError(format!("\"{}\" is not UTF-8; use names that are", w.to_string_lossy())).into()
    })
}

/// What stands before `--`, and what behind.
fn split(mut words: Vec<String>) -> (Vec<String>, Vec<String>) {
    match words.iter().position(|w| w == "--") {
        Some(at) => {
            let command = words.split_off(at + 1);
            words.pop();
            (words, command)
        }
        None => (words, Vec::new()),
    }
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    format!("{}; see `strata run --help`", line.trim_start_matches("error: "))
}

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    flags: Vec<String>,
    image: Option<String>,
    command: Vec<String>,
}

fn arguments(content: &str) -> Result<Read, String> {
    let table: Table = content.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(0, |s| content[..s.start.min(content.len())].matches('\n').count() + 1);
        format!("line {line}: {}; write KEY = VALUE, texts in quotes", e.message())
    })?;
    let cli = Cli::command();
    let run = cli.find_subcommand("run").ok_or("there is no run")?;
    let known = |key: &str| run.get_arguments().any(|a| a.get_long() == Some(key));
    let mut read = Read::default();
    for (key, value) in &table {
        match key.as_str() {
            IMAGE => read.image = Some(word(key, value)?),
            // One text is a whole command line for a shell, as behind `--`.
            COMMAND => read.command = words(key, value)?,
            _ if NO_KEYS.contains(&key.as_str()) || !known(key) => {
                return Err(format!(
                    "\"{key}\" is no key; the keys are {IMAGE}, {COMMAND} and the long flags of `strata run`"
                ));
            }
            _ => read.flags.extend(flag(key, value)?),
        }
    }
    Ok(read)
}

fn flag(key: &str, value: &Value) -> Result<Vec<String>, String> {
    Ok(match value {
        Value::Boolean(true) => vec![format!("--{key}")],
        Value::Boolean(false) => Vec::new(),
        other => words(key, other)?.into_iter().map(|w| format!("--{key}={w}")).collect(),
    })
}

fn words(key: &str, value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::Array(list) => list.iter().map(|v| word(key, v)).collect(),
        other => Ok(vec![word(key, other)?]),
    }
}

fn word(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        other => {
            Err(format!("\"{key}\" has a value of type {}; write a text, a number or true", other.type_str()))
        }
    }
}

/// The directory that relative paths begin in.
///
/// # Errors
/// When it is gone.
pub fn directory() -> anyhow::Result<String> {
    let directory = std::env::current_dir().context("the working directory is gone; go to another")?;
    text(directory.into_os_string())
}

/// Go to where a machine's relative paths begin.
///
/// # Errors
/// When it is gone.
pub fn enter(directory: &str) -> anyhow::Result<()> {
    std::env::set_current_dir(Path::new(directory)).with_context(|| {
        format!("cannot go to {directory}, where the machine was made; make that directory again")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_flags() {
        let read = arguments(
            "image = 'debian:13'\ncommand = ['uname', '-a']\nmemory = '2G'\ncpus = 2\nrng = true\nno-reboot = false\n\
             serial = ['stdio', 'null']\n",
        )
        .unwrap();
        assert_eq!(read.image.as_deref(), Some("debian:13"));
        assert_eq!(read.command, ["uname", "-a"]);
        let mut flags = read.flags.clone();
        flags.sort();
        assert_eq!(flags, ["--cpus=2", "--memory=2G", "--rng", "--serial=null", "--serial=stdio"]);
        let args = parse(&read.flags).unwrap();
        assert_eq!((args.machine.memory, args.machine.cpus, args.serial.len()), (2 << 30, 2, 2));
    }

    #[test]
    fn what_comes_later_wins() {
        let args = parse(&["--memory=2G", "--name=a", "--memory", "1G"].map(String::from)).unwrap();
        assert_eq!((args.machine.memory, args.name.unwrap().as_str()), (1 << 30, "a"));
    }

    #[test]
    fn mistakes_are_told_with_a_remedy() {
        for (content, seen) in [
            ("memory = ", "line 1"),
            ("cpus = 1\nmemory 2", "line 2"),
            ("colour = 'red'", "\"colour\" is no key"),
            ("detach = true", "\"detach\" is no key"),
            ("[disk]\npath = 'x'", "\"disk\""),
            ("memory = 2026-01-01", "\"memory\""),
            ("image = true", "\"image\""),
        ] {
            let e = arguments(content).unwrap_err();
            assert!(e.contains(seen) && e.contains("; "), "{content}: {e}");
        }
        let e = first_line(&parse(&["--memory=lots".to_string()]).err().unwrap());
        assert!(e.contains("--memory") && e.contains("strata run --help"), "{e}");
    }

    #[test]
    fn a_command_keeps_its_own_dashes() {
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(split(words(&["a", "--", "b", "--", "c"])), (words(&["a"]), words(&["b", "--", "c"])));
        assert_eq!(split(words(&["a"])), (words(&["a"]), Vec::new()));
    }
}
