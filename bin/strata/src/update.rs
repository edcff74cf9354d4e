//! `strata update`: more or fewer vCPUs, more or less memory, larger disks.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Context;
use board::bytes_text;
use serde_json::json;
use vm_api::{Action, Reply};

use crate::cli::{Format, UpdateArgs};
use crate::machines;

/// How often a guest that has to let go is looked at.
const LOOK: Duration = Duration::from_millis(50);

pub fn update(args: &UpdateArgs) -> anyhow::Result<u8> {
    let found = machines::find(&args.machine)?;
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
            writeln!(out, "{}", json!({ "id": found.id, "cpus": cpus, "memory": memory, "done": done }))?
        }
        Format::Text => {
            let s = if cpus == 1 { "" } else { "s" };
            let disks: String = args
                .disk
                .iter()
                .map(|(disk, size)| format!(", disk {disk} of {}", bytes_text(*size)))
                .collect();
            let label = machines::label(&found);
            writeln!(out, "{label} has {cpus} vCPU{s}, {}{disks}", bytes_text(memory))?;
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
