//! Every case of the 80286 single-step suite, on every software engine.
//!
//! Cases were recorded from a real 80286. Where a modern processor differs by
//! the manual, [`EXCLUSIONS`] says so and why; everything else is exact:
//! registers, memory, defined flags.

use conformance::moo::{self, Case};
use conformance::{Rig, software_engines, suites};
use engine::Halt;
use guest_memory::GuestMemory;
use x86_state::{CpuModel, CpuState, Segment};

/// Flags that an instruction leaves undefined by the manual: (opcode file, mask, reason).
const UNDEFINED: &[(&str, u16, &str)] = &[];

/// Cases that a modern processor must not reproduce: (file prefix, predicate, reason).
type Exclusion = (&'static str, fn(&Case) -> bool, &'static str);
const EXCLUSIONS: &[Exclusion] = &[];

const CF: u16 = 1;
const PF: u16 = 4;
const AF: u16 = 0x10;
const ZF: u16 = 0x40;
const SF: u16 = 0x80;
const OF: u16 = 0x800;

/// Flags of the opcode form (`F7.6`) that the suite's own metadata calls undefined.
fn undefined_flags(form: &str) -> u16 {
    let _ = (CF, PF, AF, ZF, SF, OF);
    UNDEFINED.iter().filter(|(f, ..)| *f == form).fold(0, |m, (_, mask, _)| m | mask)
}

fn start(rig: &Rig, c: &Case) -> CpuState {
    let r: Vec<u16> = c.initial.registers.iter().map(|v| v.unwrap_or(0)).collect();
    let mut s = rig.reset_state();
    // ax bx cx dx .. sp bp si di to the encoding order.
    for (from, to) in [(0, 0), (2, 1), (3, 2), (1, 3), (8, 4), (9, 5), (10, 6), (11, 7)] {
        s.gpr[to] = u64::from(r[from]);
    }
    for (from, to) in [(7, 0), (4, 1), (5, 2), (6, 3)] {
        s.segments[to] = Segment::real_mode(r[from], to == 1);
    }
    s.idtr.limit = 0x3ff;
    s.rip = u64::from(r[12]);
    s.rflags = u64::from(r[13] & 0x0fd7 | 2);
    s
}

fn registers(s: &CpuState) -> [u16; 14] {
    let g = |i: usize| s.gpr[i] as u16;
    let sel = |i: usize| s.segments[i].selector;
    [
        g(0), g(3), g(1), g(2), sel(1), sel(2), sel(3), sel(0), g(4), g(5), g(6), g(7),
        s.rip as u16, s.rflags as u16 & 0x0fff,
    ]
}

/// Run one case; the differences found, empty when exact.
fn differences(rig: &mut Rig, form: &str, c: &Case) -> Vec<String> {
    for (a, v) in &c.initial.memory {
        let _ = rig.memory.store(u64::from(*a), &[*v]);
    }
    let state = start(rig, c);
    let (halt, end) = rig.run(&state, 200_000);
    let mut out = Vec::new();
    if !matches!(halt, Halt::Idle) {
        out.push(format!("did not reach HLT: {halt:?}"));
    }
    let ignore = undefined_flags(form);
    let got = registers(&end);
    for (i, name) in moo::REGISTERS.iter().enumerate() {
        let want = c.last.registers[i].or(c.initial.registers[i]).unwrap_or(0);
        let mask = if i == 13 { 0x0fff & !ignore } else { 0xffff };
        if got[i] & mask != want & mask {
            out.push(format!("{name} {:04x} not {want:04x}", got[i]));
        }
    }
    let flags_at = c.exception.map(|(_, at)| at);
    let mut expected: std::collections::BTreeMap<u32, u8> = c.initial.memory.iter().copied().collect();
    expected.extend(c.last.memory.iter().copied());
    for (a, want) in &expected {
        let mut b = [0];
        let _ = rig.memory.load(u64::from(*a), &mut b);
        let mask = match flags_at {
            Some(f) if *a == f => !(ignore as u8),
            Some(f) if *a == f + 1 => !((ignore >> 8) as u8) & 0x0f,
            _ => 0xff,
        };
        if b[0] & mask != want & mask {
            out.push(format!("[{a:05x}] {:02x} not {want:02x}", b[0]));
        }
    }
    for a in expected.keys() {
        let _ = rig.memory.store(u64::from(*a), &[0]);
    }
    out
}

#[test]
fn all_cases_are_exact() {
    let Some(dir) = suites().map(|s| s.join("80286")) else {
        println!("skipped: the 80286 suite is not on this machine (set STRATA_SUITES)");
        return;
    };
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .expect("the suite's folder is readable")
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter_map(|n| n.strip_suffix(".MOO.gz").map(str::to_string))
        .collect();
    files.sort();
    assert!(files.len() > 300, "the suite has {} files", files.len());
    for engine in software_engines() {
        let memory = GuestMemory::flat(0x0120_0000).expect("memory");
        let mut rig = Rig::new(&*engine, CpuModel::default_model(), memory);
        let (mut ran, mut excluded, mut wrong) = (0u32, 0u32, Vec::new());
        for form in &files {
            let mut bad = 0;
            for c in moo::read(&dir.join(format!("{form}.MOO.gz"))) {
                if EXCLUSIONS.iter().any(|(prefix, applies, _)| form.starts_with(prefix) && applies(&c)) {
                    excluded += 1;
                    continue;
                }
                ran += 1;
                let d = differences(&mut rig, form, &c);
                if !d.is_empty() {
                    bad += 1;
                    if bad <= 3 {
                        wrong.push(format!("{form} #{} {} {:02x?}: {}", c.index, c.name, c.bytes, d.join(", ")));
                    }
                }
            }
            if bad > 3 {
                wrong.push(format!("{form}: {bad} cases differ"));
            }
        }
        println!("80286 on {}: {ran} cases exact or listed below, {excluded} excluded by reason", engine.name());
        assert!(wrong.is_empty(), "{} reports\n{}", wrong.len(), wrong.join("\n"));
    }
}
