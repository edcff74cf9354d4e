//! What a demo run shows, as a table or JSON.

use std::io::{self, Write};

use serde::Serialize;

/// How to print the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// One JSON array.
    Json,
}

/// One engine's run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The engine.
    pub engine: String,
    /// What is known of the engine on this host.
    pub note: String,
    /// The guest got to its end and found everything right.
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
    /// What it said on the serial port.
    pub said: String,
    /// Microseconds from reset to long mode's first message.
    pub start_us: f64,
    /// Million instructions a second of a loop in ring 0.
    pub ring0_mips: f64,
    /// The same in ring 3.
    pub ring3_mips: f64,
    /// Million 64-bit words a second, written and checked.
    pub memory_mwords: f64,
    /// Timer interrupts taken, and their mean period in microseconds.
    pub ticks: u32,
    /// See `ticks`.
    pub tick_us: f64,
    /// Nanoseconds for a system call and back.
    pub syscall_ns: f64,
    /// The engine's counters.
    pub counters: Vec<(&'static str, u64)>,
}

/// Print reports.
///
/// # Errors
/// When `out` cannot be written.
pub fn print(reports: &[Report], format: Format, out: &mut dyn Write) -> io::Result<()> {
    match format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, reports)?;
            writeln!(out)
        }
        Format::Table => table(reports, out),
    }
}

fn table(reports: &[Report], out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{:<8} {:>10} {:>12} {:>12} {:>12} {:>14} {:>11}  result",
        "engine", "start", "ring 0", "ring 3", "memory", "timer", "syscall"
    )?;
    for r in reports {
        let result = match &r.error {
            None => format!("\"{}\"", r.said.trim_end()),
            Some(e) => e.clone(),
        };
        writeln!(
            out,
            "{:<8} {:>10} {:>12} {:>12} {:>12} {:>14} {:>11}  {result}",
            r.engine,
            time(r.start_us * 1000.0),
            format!("{} MIPS", figure(r.ring0_mips)),
            format!("{} MIPS", figure(r.ring3_mips)),
            format!("{} Mword/s", figure(r.memory_mwords)),
            format!("{} x {}", r.ticks, time(r.tick_us * 1000.0)),
            time(r.syscall_ns),
        )?;
    }
    writeln!(out)?;
    reports.iter().try_for_each(|r| writeln!(out, "{}: {}", r.engine, r.note))
}

/// Three significant digits, at most one after the point.
fn figure(v: f64) -> String {
    if v >= 100.0 { format!("{v:.0}") } else { format!("{v:.1}") }
}

fn time(ns: f64) -> String {
    match ns {
        n if n < 1e3 => format!("{} ns", figure(n)),
        n if n < 1e6 => format!("{} us", figure(n / 1e3)),
        n => format!("{} ms", figure(n / 1e6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        for (ns, want) in
            [(2.34, "2.3 ns"), (61_000.0, "61.0 us"), (1_500_000.0, "1.5 ms"), (420.0, "420 ns")]
        {
            assert_eq!(time(ns), want);
        }
    }
}
