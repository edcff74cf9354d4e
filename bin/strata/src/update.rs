//! `strata update`: more or fewer vCPUs, memory, disks and network cards, larger disks.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use board::bytes_text;
use serde_json::json;
use vm_api::{Action, Client, Found, Reply};

use crate::cli::{Format, UpdateArgs};
use crate::machines;

/// How often a guest that has to let go is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Plug in what is to come; the names it got.
fn plug_in(found: &Found, args: &UpdateArgs) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut add = |action, files: &[std::fs::File]| -> anyhow::Result<()> {
        let mut client = Client::connect(&found.socket())
            .with_context(|| format!("{} does not answer; see `strata ps`", machines::label(found)))?;
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let reply = client.call_with(action, &files, machines::PATIENCE);
        match reply.with_context(|| machines::label(found))? {
            Reply::Added { id } => names.push(id),
            other => anyhow::bail!("{}: an answer to something else: {other:?}", machines::label(found)),
        }
        Ok(())
    };
    for disk in &args.add_disk {
        // The machine's process may open nothing: it gets the open files.
        let files = disk.open_files().map_err(board::BoardError::from)?;
        add(Action::AddDisk { spec: serde_json::to_value(disk)? }, &files)?;
    }
    for net in &args.add_net {
        add(Action::AddNet { spec: serde_json::to_value(net)? }, &[])?;
    }
    Ok(names)
}

/// Whether a machine has a device of this name.
fn has(found: &Found, id: &str) -> anyhow::Result<bool> {
    let reply = machines::call(found, Action::Inspect, machines::PATIENCE)?;
    let Reply::Inspect(value) = reply else { anyhow::bail!("an answer to something else: {reply:?}") };
    Ok(value["devices"].as_array().is_some_and(|all| all.iter().any(|d| d["id"] == id)))
}

/// Ask for what is to go, and wait for it.
fn take_out(found: &Found, args: &UpdateArgs) -> anyhow::Result<()> {
    for id in &args.remove {
        let asked = machines::call(found, Action::RemoveDevice { id: id.clone() }, machines::PATIENCE);
        asked.with_context(|| machines::label(found))?;
    }
    let began = Instant::now();
    for id in &args.remove {
        while has(found, id)? {
            anyhow::ensure!(
                began.elapsed() < args.wait,
                "the guest has not let go of {id} within {:.0?}; it may still do so (is it in use? has the \
                 guest a driver for hot-plug?)",
                args.wait
            );
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

pub fn update(args: &UpdateArgs) -> anyhow::Result<u8> {
    let found = machines::find(&args.machine)?;
    let added = plug_in(&found, args)?;
    take_out(&found, args)?;
    let ask = |cpus, memory| -> anyhow::Result<(u32, u64)> {
        let reply = machines::call(&found, Action::Update { cpus, memory }, machines::PATIENCE)
            .with_context(|| machines::label(&found))?;
        let Reply::Resources { cpus, memory } = reply else {
            anyhow::bail!("{}: an answer to something else: {reply:?}", machines::label(&found));
        };
        Ok((cpus, memory))
    };
    for &(disk, size) in &args.disk {
        machines::call(&found, Action::ResizeDisk { disk, size }, machines::PATIENCE)
            .with_context(|| machines::label(&found))?;
    }
    let began = Instant::now();
    let mut now = ask(args.cpus, args.memory)?;
    let wanted =
        |(cpus, memory)| args.cpus.is_none_or(|c| c == cpus) && args.memory.is_none_or(|m| m == memory);
    while !wanted(now) && began.elapsed() < args.wait {
        std::thread::sleep(LOOK);
        now = ask(None, None)?;
    }
    let (done, (cpus, memory)) = (wanted(now), now);
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Json => {
            let value = json!({ "id": found.id, "cpus": cpus, "memory": memory, "done": done,
                "added": added, "removed": args.remove });
            writeln!(out, "{value}")?
        }
        Format::Text => {
            let s = if cpus == 1 { "" } else { "s" };
            let disks: String = args
                .disk
                .iter()
                .map(|(disk, size)| format!(", disk {disk} of {}", bytes_text(*size)))
                .collect();
            let devices: String = added.iter().map(|id| format!(", {id}")).collect();
            let (label, memory) = (machines::label(&found), bytes_text(memory));
            writeln!(out, "{label} has {cpus} vCPU{s}, {memory}{disks}{devices}")?;
        }
    }
    anyhow::ensure!(
        done,
        "the guest has not let go within {:.0?}; it keeps what it has, and may still let go later (does it \
         use the memory? is the processor its only one?)",
        args.wait
    );
    Ok(0)
}
