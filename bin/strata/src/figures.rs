//! Statistics for people.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use board::bytes_text;
use vm_api::{MachineStats, VcpuFigures};

/// `950 ms`, `12.3 s`, `1m 01s`, `2h 03m`, `4d 05h`.
pub fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0 => format!("{} ms", d.as_millis()),
        1..60 => format!("{:.1} s", d.as_secs_f64()),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d {:02}h", s / 86_400, s / 3600 % 24),
    }
}

/// Bytes in the largest unit of which there is one, with a digit after the point.
pub fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{:.1} GiB", b as f64 / (1u64 << 30) as f64),
        b if b >= 1 << 20 => format!("{:.1} MiB", b as f64 / (1u64 << 20) as f64),
        b if b >= 1 << 10 => format!("{:.1} KiB", b as f64 / 1024.0),
        b => format!("{b} bytes"),
    }
}

/// Rows whose columns line up, the heads first.
pub fn table<const N: usize>(out: &mut dyn Write, rows: &[[String; N]]) -> std::io::Result<()> {
    let widths: [usize; N] =
        std::array::from_fn(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0));
    for row in rows {
        let line: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", line.join("  ").trim_end())?;
    }
    Ok(())
}

/// One machine's figures.
pub fn print(out: &mut dyn Write, s: &MachineStats) -> std::io::Result<()> {
    let m = &s.info;
    let name = m.name.as_ref().map_or(String::new(), |n| format!(" ({n})"));
    let up = duration(Duration::from_millis(m.uptime_ms));
    let guest = duration(Duration::from_millis(s.guest_time_ms));
    writeln!(
        out,
        "{}{name}: {} on {}, up {up}, guest time {guest}, {} resets",
        m.id,
        m.state.word(),
        m.engine,
        s.resets
    )?;
    writeln!(
        out,
        "  memory   {} given, {} touched; process {} resident, {} of it besides, {} of processor time",
        bytes_text(m.memory),
        size(s.guest_resident),
        size(s.process_resident),
        size(s.process_resident.saturating_sub(s.guest_resident)),
        duration(Duration::from_millis(s.process_cpu_ms)),
    )?;
    let devices: Vec<_> = s.devices.iter().map(|(name, n)| format!("{name} {n}")).collect();
    writeln!(out, "  devices  {}", devices.join(", "))?;
    s.vcpus.iter().enumerate().try_for_each(|(i, v)| vcpu(out, i, v))
}

fn vcpu(out: &mut dyn Write, index: usize, v: &VcpuFigures) -> std::io::Result<()> {
    let mut first = Vec::new();
    if let (Some(percent), Some(halts)) = (v.halted_percent, v.halts) {
        first.push(format!("halted {percent:.1} % of its time, {halts} halts"));
    }
    if let Some(retired) = v.retired {
        first.push(format!("{retired} instructions"));
    }
    first.extend(translation(&v.counters));
    writeln!(out, "  vcpu {index:<3} {}", first.join("; "))?;
    for (name, value) in &v.counters {
        writeln!(out, "    {value:>14} {name}")?;
    }
    Ok(())
}

/// What the translator's counters say together.
fn translation(counters: &BTreeMap<String, u64>) -> Vec<String> {
    let count = |name: &str| counters.get(name).copied();
    let per = |a: Option<u64>, b: Option<u64>| Some(a? as f64 / b.filter(|b| *b > 0)? as f64);
    // A look-up that finds nothing translates.
    let found =
        count("block_lookups").zip(count("blocks_translated")).map(|(all, new)| all.saturating_sub(new));
    let hits =
        per(found, count("block_lookups")).map(|r| format!("{:.1} % of block look-ups hit", r * 100.0));
    let cost = per(count("translate_ns"), count("instructions_translated"))
        .map(|ns| format!("{ns:.0} ns to translate an instruction"));
    let growth = per(count("host_bytes_translated"), count("guest_bytes_translated"))
        .map(|r| format!("{r:.1} bytes of code a guest byte"));
    [hits, cost, growth].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_short() {
        for (ms, text) in [
            (0, "0 ms"),
            (950, "950 ms"),
            (12_340, "12.3 s"),
            (61_500, "1m 01s"),
            (7_380_000, "2h 03m"),
            (363_600_000, "4d 05h"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
        for (bytes, text) in
            [(7, "7 bytes"), (1536, "1.5 KiB"), (45_193_626, "43.1 MiB"), (3 << 30, "3.0 GiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn the_translators_rates_come_from_its_counters_and_nothing_else_has_them() {
        let of = |list: &[(&str, u64)]| {
            translation(&list.iter().map(|(n, v)| (n.to_string(), *v)).collect::<BTreeMap<_, _>>())
        };
        let jit = of(&[
            ("block_lookups", 200),
            ("blocks_translated", 50),
            ("instructions_translated", 10),
            ("translate_ns", 900),
            ("guest_bytes_translated", 40),
            ("host_bytes_translated", 180),
        ]);
        let expect = [
            "75.0 % of block look-ups hit",
            "90 ns to translate an instruction",
            "4.5 bytes of code a guest byte",
        ];
        assert_eq!(jit, expect);
        assert!(of(&[("kvm_exits", 3), ("block_lookups", 0)]).is_empty());
    }
}
