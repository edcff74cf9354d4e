//! The commands that speak to running machines.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use board::bytes_text;
use machine_store::{Kept, MachineStore};
use serde_json::json;
use vm_api::{
    Action, CallError, Client, Ending, Found, MachineInfo, Registry, RegistryError, Reply, RuntimeDir, State,
};

use crate::cli::{EngineArgs, Format, InspectArgs, MachinesArgs, PsArgs, StatsArgs, StopArgs};
use crate::terminal_text::escaped_json;
use crate::{figures, kept, life};

/// How long a machine may take to say who it is before the list goes on without it.
const GREETING: Duration = Duration::from_secs(2);
/// How long a machine may take to do what it is asked; longer than the server's own limit.
pub(crate) const PATIENCE: Duration = Duration::from_secs(70);

/// A machine, asked.
pub(crate) fn call(found: &Found, action: Action, limit: Duration) -> Result<Reply, CallError> {
    let lost = |e: std::io::Error| CallError::Lost(e.to_string());
    Client::connect(&found.socket()).map_err(lost)?.call(action, limit)
}

/// All machines that can be asked, and kept ones that run and cannot.
fn running() -> Result<(Vec<Found>, Vec<Kept>), RegistryError> {
    let mut list = Registry::all()?;
    // Without a place for kept machines there are none.
    let mut kept = MachineStore::open().and_then(|store| store.list()).unwrap_or_default();
    kept.retain(|kept| kept.runs && !list.iter().any(|found| found.id == kept.record.id));
    // Started where the environment names another runtime directory.
    let mut elsewhere: Vec<_> = kept.iter().filter_map(Kept::place).collect();
    elsewhere.sort();
    elsewhere.dedup();
    for place in elsewhere.iter().filter_map(|place| RuntimeDir::at(place).ok()) {
        let mut there = Registry::new(place).list()?;
        there.retain(|found| kept.iter().any(|kept| kept.record.id == found.id));
        list.extend(there);
    }
    kept.retain(|kept| !list.iter().any(|found| found.id == kept.record.id));
    list.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
    Ok((list, kept))
}

/// The machine a person means, of those that can be asked.
pub(crate) fn find(wanted: &str) -> Result<Found, RegistryError> {
    match Found::pick(Registry::all()?, wanted) {
        Err(RegistryError::Unknown(_)) => Found::pick(running()?.0, wanted),
        picked => picked,
    }
}

/// A machine that runs.
pub(crate) enum Running {
    /// It can be asked.
    Reached(Found),
    /// Its place in a runtime directory is gone, or it has none yet.
    Unreachable(Kept),
}

impl Running {
    /// The machine a person means.
    fn find(wanted: &str) -> Result<Running, RegistryError> {
        let (found, kept) = running()?;
        let found = found.into_iter().map(Running::Reached);
        let all = found.chain(kept.into_iter().map(Running::Unreachable)).collect();
        vm_api::pick(all, wanted, |one| match one {
            Running::Reached(found) => (&found.id, found.name.as_ref()),
            Running::Unreachable(kept) => (&kept.record.id, kept.record.name.as_ref()),
        })
    }

    /// A kept machine that runs.
    pub fn of(kept: &Kept) -> Result<Running, RegistryError> {
        let found = running()?.0.into_iter().find(|found| found.id == kept.record.id);
        Ok(found.map_or_else(|| Running::Unreachable(kept.clone()), Running::Reached))
    }

    /// End it: by its power button if it is given time and can be asked.
    ///
    /// # Errors
    /// When its process survives everything.
    pub fn end(&self, grace: Duration) -> anyhow::Result<String> {
        let (label, ending, asked) = match self {
            Running::Reached(found) => (label(found), found.end(grace).with_context(|| label(found))?, true),
            Running::Unreachable(kept) => (kept.label(), kept.end_process()?, false),
        };
        // What a process that was killed leaves behind.
        Registry::all()?;
        let how = match (ending, asked) {
            (Ending::PoweredOff, _) => "powered off",
            (Ending::Ended, true) => "ended",
            (Ending::Killed, true) => "its process did not answer and was killed",
            (Ending::Ended, false) => "could not be reached and was ended",
            (Ending::Killed, false) => "could not be reached, did not end and was killed",
        };
        Ok(format!("{label}: {how}"))
    }
}

/// The name people know it by.
pub(crate) fn label(found: &Found) -> String {
    found.name.as_ref().map_or_else(|| found.id.to_string(), ToString::to_string)
}

/// What is known of a machine that does not answer.
fn silent(found: &Found) -> MachineInfo {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    MachineInfo {
        id: found.id.clone(),
        name: found.name.clone(),
        state: State::Unresponsive,
        waits_for: None,
        engine: String::new(),
        engine_reason: String::new(),
        vcpus: 0,
        memory: 0,
        cpu: String::new(),
        uptime_ms: now.saturating_sub(Duration::from_secs(found.started)).as_millis() as u64,
        pid: found.pid,
    }
}

/// `strata ps`.
pub fn ps(args: &PsArgs) -> anyhow::Result<u8> {
    let mut list = Vec::new();
    for found in running()?.0 {
        match call(&found, Action::Info, GREETING) {
            Ok(Reply::Info(info)) => list.push(*info),
            // It ended between the list and the question.
            _ if !found.lives() => {}
            _ => list.push(silent(&found)),
        }
    }
    let ended = if args.all { ended(&list)? } else { Vec::new() };
    let mut out = std::io::stdout().lock();
    match args.format {
        _ if args.quiet => {
            let ids = list.iter().map(|m| &m.id).chain(ended.iter().map(|k| &k.record.id));
            ids.into_iter().try_for_each(|id| writeln!(out, "{id}"))?;
        }
        Format::Json => {
            let running = list.iter().map(|m| json!(m));
            let all: Vec<_> = running.chain(ended.iter().map(ended_json)).collect();
            writeln!(out, "{}", serde_json::to_string(&all)?)?;
        }
        Format::Text => table(&mut out, &list, &ended)?,
    }
    Ok(0)
}

/// Kept machines that are not among those that run.
fn ended(running: &[MachineInfo]) -> anyhow::Result<Vec<Kept>> {
    let mut list = MachineStore::open()?.list()?;
    list.retain(|kept| !running.iter().any(|m| m.id == kept.record.id));
    Ok(list)
}

fn ended_json(kept: &Kept) -> serde_json::Value {
    let record = &kept.record;
    json!({
        "id": record.id, "name": record.name, "state": life::ended_state(kept), "image": record.image,
        "created": record.created, "end": kept.end, "directory": kept.directory(),
    })
}

fn table(out: &mut dyn Write, list: &[MachineInfo], ended: &[Kept]) -> std::io::Result<()> {
    let mut rows: Vec<[String; 8]> = list
        .iter()
        .map(|m| {
            let known = |text: String| if m.state == State::Unresponsive { "-".to_string() } else { text };
            [
                m.id.to_string(),
                m.name.as_ref().map_or("-".to_string(), ToString::to_string),
                known(m.engine.clone()),
                known(m.vcpus.to_string()),
                known(bytes_text(m.memory)),
                match &m.waits_for {
                    None => m.state.word().to_string(),
                    Some(_) => format!("{} (disk full)", m.state.word()),
                },
                figures::duration(Duration::from_millis(m.uptime_ms)),
                m.pid.to_string(),
            ]
        })
        .collect();
    let none = || "-".to_string();
    rows.extend(ended.iter().map(|kept| {
        let name = kept.record.name.as_ref().map_or_else(none, ToString::to_string);
        [kept.record.id.to_string(), name, none(), none(), none(), life::ended_word(kept), none(), none()]
    }));
    let heads = ["ID", "NAME", "ENGINE", "VCPUS", "MEMORY", "STATE", "UP", "PID"].map(str::to_string);
    figures::table(out, &[&[heads][..], &rows].concat())
}

/// `strata stats`.
pub fn stats(args: &StatsArgs) -> anyhow::Result<u8> {
    let all = running()?.0;
    let picked: Result<Vec<_>, _> = args.machines.iter().map(|w| Found::pick(all.clone(), w)).collect();
    let wanted = if args.machines.is_empty() { all } else { picked? };
    let mut list = Vec::new();
    for found in &wanted {
        match call(found, Action::Stats, PATIENCE).with_context(|| label(found))? {
            Reply::Stats(stats) => list.push(*stats),
            other => anyhow::bail!("{}: an answer to something else: {other:?}", label(found)),
        }
    }
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Json => writeln!(out, "{}", serde_json::to_string(&list)?)?,
        Format::Text => list.iter().try_for_each(|s| figures::print(&mut out, s))?,
    }
    Ok(0)
}

/// `strata engine`.
pub fn engine(args: &EngineArgs) -> anyhow::Result<u8> {
    let found = find(&args.machine)?;
    let action = Action::SwitchEngine { engine: args.engine.to_string() };
    let reply = call(&found, action, PATIENCE)
        .with_context(|| format!("{} cannot continue on engine {}", label(&found), args.engine))?;
    let Reply::Switched { engine, took_us } = reply else {
        anyhow::bail!("{}: an answer to something else: {reply:?}", label(&found));
    };
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Json => {
            writeln!(out, "{}", json!({ "id": found.id, "engine": engine, "took_us": took_us }))?;
        }
        Format::Text if took_us == 0 => writeln!(out, "{} is on engine {engine} already", label(&found))?,
        Format::Text => {
            let took = Duration::from_micros(took_us);
            writeln!(out, "{} continues on engine {engine}; the guest stood for {took:.1?}", label(&found))?;
        }
    }
    Ok(0)
}

/// Do something with all machines at once; each failure is told, and the worst status answered.
fn each(wanted: &[String], one: impl Fn(&str) -> anyhow::Result<String> + Sync) -> anyhow::Result<u8> {
    let one = &one;
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = wanted.iter().map(|name| scope.spawn(move || one(name))).collect();
        let died = |_| Err(anyhow::anyhow!("a defect in Strata; please report the message above"));
        threads.into_iter().map(|t| t.join().unwrap_or_else(died)).collect()
    });
    let mut worst = 0;
    for result in results {
        match result {
            Ok(line) => writeln!(std::io::stdout(), "{line}")?,
            Err(error) => worst = worst.max(crate::failure::print(&error)),
        }
    }
    Ok(worst)
}

/// Do something with machines that can be asked.
fn each_found(
    wanted: &[String],
    act: impl Fn(&Found) -> anyhow::Result<String> + Sync,
) -> anyhow::Result<u8> {
    each(wanted, |name| {
        let found = find(name)?;
        let done = act(&found).with_context(|| label(&found))?;
        Ok(format!("{}: {done}", label(&found)))
    })
}

/// `strata pause`.
pub fn pause(args: &MachinesArgs) -> anyhow::Result<u8> {
    each_found(&args.machines, |found| {
        let stands = matches!(call(found, Action::Pause, PATIENCE)?, Reply::Paused { time_stands: true });
        Ok(if stands { "paused" } else { "paused; its time goes on, for its engine shows it the host's TSC" }
            .into())
    })
}

/// `strata resume`.
pub fn resume(args: &MachinesArgs) -> anyhow::Result<u8> {
    each_found(&args.machines, |found| {
        Ok(call(found, Action::Resume, PATIENCE).map(|_| "running".to_string())?)
    })
}

/// `strata stop`.
pub fn stop(args: &StopArgs) -> anyhow::Result<u8> {
    end_all(&args.machines, args.timeout)
}

/// `strata kill`.
pub fn kill(args: &MachinesArgs) -> anyhow::Result<u8> {
    end_all(&args.machines, Duration::ZERO)
}

fn end_all(wanted: &[String], grace: Duration) -> anyhow::Result<u8> {
    let store = MachineStore::open();
    let store = store.as_ref().ok();
    each(wanted, |name| {
        let running = Running::find(name);
        let meant = match &running {
            Ok(Running::Reached(found)) => store.and_then(|s| s.find(found.id.as_str()).ok()),
            Ok(Running::Unreachable(kept)) => Some(kept.clone()),
            // Its supervisor may be about to start it again.
            Err(RegistryError::Unknown(_)) => store.and_then(|s| s.find(name).ok()),
            Err(_) => None,
        };
        meant.iter().for_each(kept::mean_to_stop);
        running?.end(grace)
    })
}

/// What the agent in the guest tells, if there is one.
fn guest_facts(found: &Found) -> Option<serde_json::Value> {
    let f = guest_client::Guest::new(&found.vsock(), GREETING).facts().ok()?;
    Some(json!({
        "hostname": f.hostname,
        "system": f.system,
        "kernel": f.kernel,
        "uptime_s": f.uptime,
        "load": f.load.map(|l| f64::from(l) / 100.0),
        "memory": f.memory,
        "memory_available": f.memory_available,
        "addresses": f.addresses,
    }))
}

/// `strata inspect`.
pub fn inspect(args: &InspectArgs) -> anyhow::Result<u8> {
    let found = find(&args.machine)?;
    let reply = call(&found, Action::Inspect, PATIENCE).with_context(|| label(&found))?;
    let Reply::Inspect(value) = reply else {
        anyhow::bail!("{}: an answer to something else: {reply:?}", label(&found));
    };
    let mut value = *value;
    if let (Some(facts), Some(object)) = (guest_facts(&found), value.as_object_mut()) {
        object.insert("guest".to_string(), facts);
    }
    // The guest has chosen some of it.
    writeln!(std::io::stdout(), "{}", escaped_json(&serde_json::to_string_pretty(&value)?))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up_and_a_silent_machine_is_in_it() {
        let info = |name: Option<&str>, state| MachineInfo {
            id: "0badcafe".parse().unwrap(),
            name: name.map(|n| n.parse().unwrap()),
            state,
            waits_for: None,
            engine: "interp".into(),
            engine_reason: String::new(),
            vcpus: 2,
            memory: 512 << 20,
            cpu: "x86-64-v2".into(),
            uptime_ms: 61_500,
            pid: 77,
        };
        let mut out = Vec::new();
        table(&mut out, &[info(Some("a-long-name"), State::Running), info(None, State::Unresponsive)], &[])
            .unwrap();
        let expect = "\
ID        NAME         ENGINE  VCPUS  MEMORY   STATE         UP      PID
0badcafe  a-long-name  interp  2      512 MiB  running       1m 01s  77
0badcafe  -            -       -      -        unresponsive  1m 01s  77
";
        assert_eq!(String::from_utf8(out).unwrap(), expect);
    }
}
