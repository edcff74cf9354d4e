//! The commands that take kept machines through their life: start, restart, rm.

use std::io::Write;

use std::time::Duration;

use anyhow::Context;
use machine_store::{Kept, MachineStore};
use vm_api::State;

use crate::cli::{MachinesArgs, RmArgs, StopArgs};
use crate::{kept, machines};

/// The word for a machine whose process is not there, or not to be found.
pub fn ended_word(kept: &Kept) -> String {
    match &kept.end {
        _ if kept.runs => UNREACHABLE.to_string(),
        _ if kept.damaged => "damaged; remove it".to_string(),
        Some(end) => format!("{} ({})", end.outcome, end.status),
        None => "lost".to_string(),
    }
}

/// A machine whose process lives, and has no place in a runtime directory any more, or
/// none yet.
const UNREACHABLE: &str = "unreachable";

/// The state of a machine that no process answers for.
pub fn ended_state(kept: &Kept) -> &'static str {
    if kept.runs { UNREACHABLE } else { State::Stopped.word() }
}

/// End a kept machine, if it runs, wherever it is found.
fn end(kept: &Kept, grace: Duration) -> anyhow::Result<()> {
    if kept.runs {
        kept::mean_to_stop(kept);
        machines::Running::of(kept)?.end(grace)?;
    }
    Ok(())
}

fn each(wanted: &[String], mut act: impl FnMut(&str) -> anyhow::Result<u8>) -> anyhow::Result<u8> {
    let mut worst = 0;
    for name in wanted {
        worst = worst.max(act(name).unwrap_or_else(|e| crate::failure::print(&e)));
    }
    Ok(worst)
}

/// `strata start`.
pub fn start(args: &MachinesArgs) -> anyhow::Result<u8> {
    let store = MachineStore::open()?;
    each(&args.machines, |name| start_one(&store, name))
}

fn start_one(store: &MachineStore, name: &str) -> anyhow::Result<u8> {
    let held = store.find(name)?.hold()?;
    match kept::start(held).with_context(|| format!("cannot start {name}"))? {
        Ok(_) => writeln!(std::io::stdout(), "{name}: running").map(|()| 0).map_err(Into::into),
        Err(status) => Ok(status),
    }
}

/// `strata restart`.
pub fn restart(args: &StopArgs) -> anyhow::Result<u8> {
    let store = MachineStore::open()?;
    each(&args.machines, |name| {
        // Known before it is stopped: one that is not kept would not come back.
        let kept = store.find(name)?;
        anyhow::ensure!(
            !kept.record.remove_at_end,
            "{name} goes when it ends (--rm); stop it, and run it anew"
        );
        end(&kept, args.timeout).with_context(|| format!("cannot stop {name}"))?;
        start_one(&store, kept.record.id.as_str())
    })
}

/// `strata rm`.
pub fn remove(args: &RmArgs) -> anyhow::Result<u8> {
    let store = MachineStore::open()?;
    let status = each(&args.machines, |name| {
        let kept = store.find(name)?;
        if args.force {
            end(&kept, Duration::ZERO)?;
        }
        // One that goes when it ends has gone.
        if store.find(kept.record.id.as_str()).is_ok() {
            store.remove(&kept)?;
        }
        writeln!(std::io::stdout(), "{name}")?;
        Ok(0)
    });
    kept::collect_bases();
    status
}
