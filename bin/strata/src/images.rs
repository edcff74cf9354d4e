//! `strata image`.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use host_sys::TerminationSignals;
use image_build::{Debian, Import};
use image_convert::{ConvertError, Output};
use image_store::{FirstBoot, Image, Store, StoreError, thin_copy};
use machine_store::MachineStore;
use serde_json::json;

use crate::cli::{
    Distribution, Format, ImageBuildArgs, ImageCommand, ImageExportArgs, ImageImportArgs, ImageLsArgs,
    ImageNamesArgs, ImageRmArgs,
};
use crate::failure::InputError;
use crate::progress::Bars;
use crate::{figures, guest, kept};

/// The answer of `verify` to a damaged image.
const DAMAGED: u8 = 6;

/// The user's images.
///
/// # Errors
/// When there is no place for them.
pub fn store() -> anyhow::Result<Store> {
    Ok(Store::open(&guest::cache_dir()?.join("images"))?)
}

/// Do one of the subcommands.
pub fn command(command: ImageCommand) -> anyhow::Result<u8> {
    match command {
        ImageCommand::Build(args) => build(&args),
        ImageCommand::Ls(args) => list(&args),
        ImageCommand::Inspect(args) => crate::convert::inspect(&args),
        ImageCommand::Convert(args) => crate::convert::command(&args),
        ImageCommand::Import(args) => import(args),
        ImageCommand::Export(args) => export(&args),
        ImageCommand::Verify(args) => verify(&args),
        ImageCommand::Rm(args) => remove(&args),
        ImageCommand::Gc(args) => collect(&args),
    }
}

fn build(args: &ImageBuildArgs) -> anyhow::Result<u8> {
    let Distribution::Debian = args.distribution;
    let debian = Debian {
        name: args.name.clone(),
        suite: args.suite.clone(),
        mirror: args.mirror.clone(),
        size: args.size,
        packages: args.package.clone(),
        replace: args.force,
    };
    let image = build_shown(&debian)?;
    writeln!(std::io::stdout(), "{}", image.name)?;
    Ok(0)
}

/// Build a Debian and show how far it is.
///
/// # Errors
/// When it cannot be built.
pub fn build_shown(debian: &Debian) -> anyhow::Result<Image> {
    let start = std::time::Instant::now();
    let image = image_build::build_debian(&store()?, debian, &Bars::new())
        .with_context(|| format!("cannot build image {}", debian.name))?;
    eprintln!(
        "strata: image {} is ready ({}, {} on this host, {:.0?})",
        image.name,
        image.description,
        figures::size(image.disk.stored),
        start.elapsed()
    );
    Ok(image)
}

fn import(args: ImageImportArgs) -> anyhow::Result<u8> {
    let name = args.name.clone();
    let wanted = Import {
        name: args.name,
        disk: args.disk,
        cmdline: if args.kernel.is_some() { args.append } else { String::new() },
        kernel: args.kernel,
        initrd: args.initrd,
        first_boot: FirstBoot::NoCloud,
        replace: args.force,
    };
    let image = image_build::import(&store()?, &wanted, &Bars::new())
        .with_context(|| format!("cannot import image {name}"))?;
    if image.kernel.is_none() {
        eprintln!(
            "strata: {name} has no kernel beside its disk, so a machine starts it by firmware; \
             to start it directly, import it with --kernel and --initrd"
        );
    }
    writeln!(std::io::stdout(), "{}", image.name)?;
    Ok(0)
}

fn list(args: &ImageLsArgs) -> anyhow::Result<u8> {
    let list = store()?.list()?;
    let mut out = std::io::stdout().lock();
    if args.format == Format::Json {
        let value: Vec<_> = list
            .iter()
            .map(|(name, image)| match image {
                Ok(image) => json!(image),
                Err(e) => json!({ "name": name, "error": e.to_string() }),
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string(&value)?)?;
        return Ok(0);
    }
    let mut rows = vec![["NAME", "DISK", "STORED", "CREATED", "WHAT"].map(str::to_string)];
    for (name, image) in &list {
        rows.push(match image {
            Ok(image) => [
                name.to_string(),
                figures::size(image.disk.virtual_size),
                figures::size(image.disk.stored),
                format!("{} ago", age(image.created)),
                image.description.clone(),
            ],
            Err(_) => [name.to_string(), "-".into(), "-".into(), "-".into(), "damaged; remove it".into()],
        });
    }
    figures::table(&mut out, &rows)?;
    Ok(0)
}

/// Time since a moment in seconds since 1970, for people.
fn age(created: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    figures::duration(now.saturating_sub(Duration::from_secs(created)))
}

fn export(args: &ImageExportArgs) -> anyhow::Result<u8> {
    let store = store()?;
    let image = store.find(&args.name)?;
    let blob = store.verified(&image.disk.blob)?;
    let file = args.file.display();
    write_new(&blob, &args.file).map_err(|error| match error {
        ConvertError::Exists(_) => {
            InputError(format!("{file} is there already; give a file that is not there yet")).into()
        }
        other => anyhow::Error::new(other),
    })?;
    eprintln!("strata: {file} is a {} disk", image.disk.format.word());
    Ok(0)
}

/// Copy a blob to a new file, which has its name when it is whole and on the medium.
fn write_new(blob: &Path, file: &Path) -> Result<(), ConvertError> {
    let fail = |what, source| ConvertError::Write { what, path: file.to_path_buf(), source };
    let output = Output::begin(blob, file, false)?;
    remove_when_interrupted(output.path()).map_err(|e| fail("watch for signals while writing", e))?;
    thin_copy(blob, output.path(), None).map_err(|e| fail("write", e))?;
    output.finish(false)
}

/// From now on a signal that asks for an end removes the file first.
fn remove_when_interrupted(path: &Path) -> std::io::Result<()> {
    let signals = TerminationSignals::block()?;
    let path = path.to_path_buf();
    // Ends with the process.
    let thread = std::thread::Builder::new().name("signals".to_string()).spawn(move || {
        let signal = signals.wait();
        let _ = std::fs::remove_file(path);
        std::process::exit(128 + signal);
    });
    thread.map(drop)
}

fn verify(args: &ImageNamesArgs) -> anyhow::Result<u8> {
    let store = store()?;
    let list = if args.names.is_empty() {
        store.list()?
    } else {
        args.names.iter().map(|n| (n.clone(), store.find(n))).collect()
    };
    let mut worst = 0;
    for (name, image) in list {
        let checked = image.and_then(|image| image.blobs().try_for_each(|blob| store.check(blob)));
        match checked {
            Ok(()) => writeln!(std::io::stdout(), "{name}: right")?,
            Err(error) => {
                let damaged = matches!(
                    error,
                    StoreError::Damaged { .. } | StoreError::Missing { .. } | StoreError::Manifest { .. }
                );
                let status = crate::failure::print(&anyhow::Error::new(error).context(name.to_string()));
                worst = worst.max(if damaged { DAMAGED } else { status });
            }
        }
    }
    Ok(worst)
}

fn remove(args: &ImageRmArgs) -> anyhow::Result<u8> {
    let store = store()?;
    let mut worst = 0;
    for name in &args.names {
        match store.remove(name) {
            Ok(()) => writeln!(std::io::stdout(), "{name}")?,
            Err(error) => worst = worst.max(crate::failure::print(&error.into())),
        }
    }
    if let Err(error) = store.collect() {
        // It is removed, for all that.
        eprintln!(
            "strata: what was removed keeps its room until `strata image gc` can give it back: {error}"
        );
    }
    kept::collect_bases();
    Ok(worst)
}

fn collect(args: &ImageLsArgs) -> anyhow::Result<u8> {
    let mut collected = store()?.collect()?;
    collected.bytes += MachineStore::open()?.bases().collect()?;
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Json => {
            let value =
                json!({ "blobs": collected.blobs, "works": collected.works, "bytes": collected.bytes });
            writeln!(out, "{value}")?;
        }
        Format::Text => writeln!(
            out,
            "{} parts and {} abandoned works removed, {} given back",
            collected.blobs,
            collected.works,
            figures::size(collected.bytes)
        )?,
    }
    Ok(0)
}
