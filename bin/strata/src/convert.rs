//! `strata image convert`, and `strata image inspect` of files.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use disk::ImageFormat;
use disk_qcow2::Backing;
use guest_image::Progress;
use host_sys::TerminationSignals;
use image_convert::{Conversion, ConvertError, Source, Target};
use image_store::ImageName;
use serde_json::{Value, json};

use crate::progress::Bars;
use crate::{figures, images};

/// Closes the command's help.
pub const HELP: &str = "Examples:
  strata image convert appliance.vmdk appliance.qcow2
  strata image convert server.vhdx server.img --format raw
  strata image convert machine.qcow2 before.raw --snapshot before-upgrade

Exit status:
  0  done
  1  the host failed
  2  wrong command line or input, or the new file is there already
  128 and a signal's number, if it was broken off; nothing is left of the new file then";

/// How often a bar moves.
const TICK: Duration = Duration::from_millis(100);

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TargetFormat {
    /// The disk's bytes, holes where it has zeroes
    Raw,
    /// QEMU's format
    Qcow2,
}

#[derive(Args)]
pub struct ConvertArgs {
    /// Image to read
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// Image to make
    #[arg(value_name = "DST")]
    pub target: PathBuf,
    /// What is made [default: qcow2 if DST is called *.qcow2, else raw]
    #[arg(long, value_enum)]
    pub format: Option<TargetFormat>,
    /// SRC is a raw disk, whatever its first bytes look like
    #[arg(long)]
    pub raw_source: bool,
    /// Open the files that SRC says it stands on
    #[arg(long)]
    pub backing: bool,
    /// The internal snapshot of SRC to read, by identifier or name
    #[arg(long, value_name = "NAME")]
    pub snapshot: Option<String>,
    /// Replace DST
    #[arg(long)]
    pub force: bool,
}

/// Takes the signals that ask for an end, so that what there is of the new image is
/// removed first: 0, or the first one's number. The second ends the process at once.
fn watch_signals() -> anyhow::Result<Arc<AtomicU8>> {
    let signals = TerminationSignals::block().context("cannot block signals")?;
    let asked = Arc::new(AtomicU8::new(0));
    let seen = asked.clone();
    // Ends with the process.
    let thread = std::thread::Builder::new().name("signals".to_string()).spawn(move || {
        seen.store(signals.wait() as u8, Ordering::Relaxed);
        let second = signals.wait();
        std::process::exit(128 + second);
    });
    thread.context("cannot start the signal thread")?;
    Ok(asked)
}

/// `strata image convert`.
pub fn command(args: &ConvertArgs) -> anyhow::Result<u8> {
    let target = match args.format {
        Some(TargetFormat::Raw) => Target::Raw,
        Some(TargetFormat::Qcow2) => Target::Qcow2,
        None => Target::of_name(&args.target),
    };
    let from = Source {
        path: args.source.clone(),
        format: args.raw_source.then_some(ImageFormat::Raw),
        backing: if args.backing { Backing::Allow } else { Backing::Deny },
        snapshot: args.snapshot.clone(),
    };
    let conversion = Conversion { from, to: args.target.clone(), target, replace: args.force };
    let start = Instant::now();
    let asked = watch_signals()?;
    let made = {
        let (bars, mut next) = (Bars::new(), start);
        image_convert::convert(&conversion, |done, total| {
            // On a terminal alone: in a file bars are noise.
            if std::io::stderr().is_terminal() && Instant::now() >= next {
                bars.bytes(done, total);
                next = Instant::now() + TICK;
            }
            match asked.load(Ordering::Relaxed) {
                0 => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        })
    };
    if let (Err(ConvertError::Interrupted), signal) = (&made, asked.load(Ordering::Relaxed)) {
        return Ok(128 + signal);
    }
    let size = made.with_context(|| format!("cannot convert {}", args.source.display()))?;
    eprintln!(
        "strata: {} is a {} image of {} ({:.1?})",
        args.target.display(),
        target.word(),
        figures::size(size),
        start.elapsed()
    );
    Ok(0)
}

#[derive(Args)]
pub struct InspectArgs {
    /// An image's name, or the path of a disk image's file, with a slash in it
    #[arg(value_name = "NAME[:TAG]|PATH", value_parser = subject)]
    pub subject: Subject,
}

/// What is inspected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// An image of the store.
    Image(ImageName),
    /// A file.
    File(PathBuf),
}

fn subject(text: &str) -> Result<Subject, String> {
    if text.contains('/') {
        return Ok(Subject::File(text.into()));
    }
    text.parse().map(Subject::Image).map_err(|e| format!("{e}; a file's path has a slash, as ./{text}"))
}

/// `strata image inspect`.
pub fn inspect(args: &InspectArgs) -> anyhow::Result<u8> {
    let value = match &args.subject {
        Subject::Image(name) => serde_json::to_value(images::store()?.find(name)?)?,
        Subject::File(path) => file(path).with_context(|| format!("cannot inspect {}", path.display()))?,
    };
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&value)?)?;
    Ok(0)
}

/// What a disk image's file says of itself. The files it stands on are named, not opened.
fn file(path: &Path) -> Result<Value, image_convert::ConvertError> {
    use std::os::unix::fs::MetadataExt;
    let format = disk::probe_file(path)?;
    let held = std::fs::metadata(path).map_err(|e| disk::OpenError::open(path, e))?.blocks() * 512;
    let mut value = json!({ "path": path, "format": format, "stored": held });
    if format == ImageFormat::Qcow2 {
        let header = disk_qcow2::header(path)?;
        let snapshots: Vec<_> = disk_qcow2::snapshots(path)?
            .iter()
            .map(|s| {
                json!({ "id": s.id, "name": s.name, "created": s.created, "virtual_size": s.disk_size,
                        "vm_state": s.vm_state })
            })
            .collect();
        value["virtual_size"] = header.size.into();
        value["version"] = header.version.into();
        value["cluster"] = header.layout.cluster().into();
        value["only_read"] = header.only_read().into();
        value["backing"] = header.backing.map(|(name, _)| name).into();
        value["snapshots"] = snapshots.into();
    } else {
        let source =
            Source { path: path.into(), format: Some(format), backing: Backing::Deny, snapshot: None };
        value["virtual_size"] = image_convert::open(&source)?.geometry().size.into();
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_tells_a_file_from_a_name() {
        assert_eq!(subject("./debian"), Ok(Subject::File("./debian".into())));
        assert!(matches!(subject("debian:13"), Ok(Subject::Image(_))));
        assert!(subject("Disk.QCOW2").is_err_and(|e| e.contains("./Disk.QCOW2")));
    }
}
