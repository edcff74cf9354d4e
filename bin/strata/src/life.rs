//! The commands that take kept machines through their life: start, restart, rm.

use std::io::Write;

use anyhow::Context;
use machine_store::{Kept, MachineStore};
use vm_api::{Found, Registry, State};

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

/// End a machine that runs without a place in a runtime directory; false if that is none.
pub fn end_unreachable(wanted: &str) -> anyhow::Result<bool> {
    let kept = MachineStore::open().and_then(|store| store.find(wanted)).ok().filter(|kept| kept.runs);
    kept.map_or(Ok(false), |kept| Ok(kept.kill().map(|()| true)?))
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
        if let Ok(found) = Found::pick(Registry::all()?, kept.record.id.as_str()) {
            kept::mean_to_stop(name);
            machines::end(&found, args.timeout).with_context(|| format!("cannot stop {name}"))?;
        }
        start_one(&store, kept.record.id.as_str())
    })
}

/// `strata rm`.
pub fn remove(args: &RmArgs) -> anyhow::Result<u8> {
    let store = MachineStore::open()?;
    let status = each(&args.machines, |name| {
        let kept = store.find(name)?;
        if kept.runs && args.force {
            kept::mean_to_stop(name);
            match Found::pick(Registry::all()?, kept.record.id.as_str()) {
                Ok(found) => drop(machines::end(&found, std::time::Duration::ZERO)?),
                Err(_) => kept.kill()?,
            }
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
