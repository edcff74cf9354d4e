//! `strata cp`: files and folders into a guest and out of it.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;
use clap::Args;
use guest_client::{Copied, Guest, tree_size};
use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::InputError;
use crate::{exec, machines};

const TEMPLATE: &str = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
/// Where the whole is not known before the end.
const OPEN_TEMPLATE: &str = "{msg} {bytes} {bytes_per_sec}";

pub const HELP: &str = "Examples:
  strata cp site web:/srv/
  strata cp web:/var/log/syslog .

A path of a guest is MACHINE:PATH. Folders are copied with all that is in them, links as links;
modes and times are kept, set-user-ID is not, and what is copied into a guest is root's. In a
folder of the host it is called by the last name of PATH, or as the machine where PATH has none
(/, ..); a guest that sends something of another name is refused. Several sources need a folder
that is there.

Exit status:
  0  done
  1  Strata or the host failed, or no agent answers in the guest
  2  wrong command line, or no such machine or file";

#[derive(Args)]
pub struct CopyArgs {
    /// What to copy, and last where to: one of both sides is a guest's
    #[arg(value_name = "PATH", required = true, num_args = 2..)]
    pub paths: Vec<OsString>,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// A path of the command line.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Host(&'a Path),
    Guest(&'a str, &'a [u8]),
}

/// `MACHINE:PATH`, where a path with a slash before the colon is the host's.
fn place(text: &OsStr) -> Place<'_> {
    let bytes = text.as_bytes();
    let colon = bytes.iter().position(|b| *b == b':');
    let guest = colon.and_then(|at| {
        let (machine, path) = bytes.split_at(at);
        let machine = std::str::from_utf8(machine).ok().filter(|m| !m.is_empty() && !m.contains('/'))?;
        Some(Place::Guest(machine, &path[1..]))
    });
    guest.unwrap_or(Place::Host(Path::new(text)))
}

/// Shows how far a copy is.
struct Shown(Option<ProgressBar>);

impl Shown {
    fn new(quiet: bool, what: &OsStr, total: Option<u64>) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let bar = shown.then(|| {
            let bar = ProgressBar::no_length();
            bar.set_message(what.to_string_lossy().into_owned());
            bar
        });
        let shown = Shown(bar);
        shown.set(0, total);
        shown
    }

    fn set(&self, done: u64, total: Option<u64>) {
        let Some(bar) = &self.0 else { return };
        if total != bar.length() || done == 0 {
            let template = if total.is_some() { TEMPLATE } else { OPEN_TEMPLATE };
            bar.set_style(ProgressStyle::with_template(template).expect("both templates are valid"));
            total.into_iter().for_each(|t| bar.set_length(t));
        }
        bar.set_position(done);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Where several sources go: into a folder, for under one name each would take the
/// place of the last.
fn folder(to: &OsStr) -> anyhow::Result<OsString> {
    let mut to = to.to_os_string();
    match place(&to) {
        Place::Guest(_, b"") => {}
        // A slash behind it tells the guest that a folder is meant.
        Place::Guest(..) => to.push("/"),
        Place::Host(path) if !path.is_dir() => {
            let path = path.display();
            let text = format!("{path} is no folder, where several sources would go into; create it first");
            return Err(InputError(text).into());
        }
        Place::Host(_) => {}
    }
    Ok(to)
}

/// Copy.
pub fn command(args: &CopyArgs) -> anyhow::Result<u8> {
    let Some((to, from)) = args.paths.split_last() else { return Ok(0) };
    let to = if from.len() > 1 { folder(to)? } else { to.clone() };
    let to = place(&to);
    for source in from {
        let copied = match (place(source), &to) {
            (Place::Host(path), Place::Guest(machine, target)) => into(args, path, machine, target)?,
            (Place::Guest(machine, path), Place::Host(target)) => out_of(args, machine, path, target)?,
            (Place::Host(_), Place::Host(_)) => {
                return Err(InputError("neither path is a guest's; write one as MACHINE:PATH".into()).into());
            }
            (Place::Guest(..), Place::Guest(..)) => {
                return Err(InputError("both paths are guests'; copy to the host in between".into()).into());
            }
        };
        if copied.skipped > 0 && !args.quiet {
            eprintln!("strata: left out {} devices, pipes and sockets", copied.skipped);
        }
    }
    Ok(0)
}

fn into(args: &CopyArgs, from: &Path, machine: &str, to: &[u8]) -> anyhow::Result<Copied> {
    let found = machines::find(machine)?;
    std::fs::symlink_metadata(from)
        .with_context(|| InputError(format!("cannot read {}; check its name", from.display())))?;
    let total = tree_size(from);
    let shown = Shown::new(args.quiet, from.as_os_str(), Some(total));
    let to = if to.is_empty() { b"." } else { to };
    Guest::new(&found.vsock(), exec::PATIENCE)
        .copy_in(from, to, &mut |done| shown.set(done, Some(total)))
        .with_context(|| machines::label(&found))
}

fn out_of(args: &CopyArgs, machine: &str, from: &[u8], to: &Path) -> anyhow::Result<Copied> {
    let found = machines::find(machine)?;
    let shown = Shown::new(args.quiet, OsStr::from_bytes(from), None);
    Guest::new(&found.vsock(), exec::PATIENCE)
        .copy_out(from, to, OsStr::new(&machines::label(&found)), &mut |done, total| shown.set(done, total))
        .with_context(|| machines::label(&found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_sources_go_into_a_folder() {
        // Where to, and where each source goes; `None` where that is refused.
        let cases = [
            ("web:/srv/new", Some("web:/srv/new/")),
            ("web:/srv/", Some("web:/srv//")),
            ("web:", Some("web:")),
            (".", Some(".")),
            ("./none", None),
            ("/dev/null", None),
        ];
        for (to, expect) in cases {
            let folder = folder(OsStr::new(to));
            assert_eq!(folder.as_ref().ok().map(|f| f.to_str().unwrap()), expect, "{to}");
            let told = folder.map_or_else(|e| e.to_string(), |_| "; create it first".to_string());
            assert!(told.contains("; create it first"), "{to}: {told}");
        }
    }

    #[test]
    fn a_guests_path_begins_with_its_machine() {
        let cases: [(&str, Place<'_>); 6] = [
            ("web:/x", Place::Guest("web", b"/x")),
            ("web:", Place::Guest("web", b"")),
            ("web:a:b", Place::Guest("web", b"a:b")),
            ("./web:x", Place::Host(Path::new("./web:x"))),
            (":x", Place::Host(Path::new(":x"))),
            ("x", Place::Host(Path::new("x"))),
        ];
        for (text, expect) in cases {
            assert_eq!(place(OsStr::new(text)), expect, "{text}");
        }
    }
}
