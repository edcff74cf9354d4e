//! Every case of the 80286 single-step suite, on every software engine.
//!
//! Cases were recorded from a real 80286. Where a modern processor differs by
//! the manual, [`EXCLUSIONS`] says so and why; everything else is exact:
//! registers, memory, defined flags.

use std::path::PathBuf;

use conformance::moo::{self, Case};
use conformance::{Rig, software_engines, suites};
use engine::Halt;
use guest_memory::GuestMemory;
use serde_json::Value;
use x86_state::{CpuModel, CpuState, Segment};

/// Cases that a modern processor must not reproduce: (file prefix, predicate, reason).
type Exclusion = (&'static str, fn(&Case) -> bool, &'static str);
const EXCLUSIONS: &[Exclusion] = &[];

/// What the suite says about itself.
struct Suite {
    folder: PathBuf,
    /// Opcode forms (`F7.6`), each a file.
    forms: Vec<String>,
    opcodes: Value,
    revoked: String,
}

impl Suite {
    fn open(folder: PathBuf) -> Self {
        let mut forms: Vec<_> = std::fs::read_dir(&folder)
            .expect("the suite's folder is readable")
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .filter_map(|n| n.strip_suffix(".MOO.gz").map(str::to_string))
            .collect();
        forms.sort();
        let metadata: Value = serde_json::from_slice(&moo::unpack(&folder.join("metadata.json.gz"))).expect("metadata");
        let revoked = std::fs::read_to_string(folder.join("revocation_list.txt")).unwrap_or_default();
        Suite { folder, forms, opcodes: metadata["opcodes"].clone(), revoked }
    }

    /// Flags that `form` leaves undefined.
    fn undefined_flags(&self, form: &str) -> u16 {
        let (opcode, extension) = form.split_once('.').unwrap_or((form, ""));
        let entry = &self.opcodes[opcode];
        let entry = if extension.is_empty() { entry } else { &entry["reg"][extension] };
        entry["flags-mask"].as_u64().map_or(0, |defined| !(defined as u16))
    }

    fn cases(&self, form: &str) -> impl Iterator<Item = Case> {
        let cases = moo::read(&self.folder.join(format!("{form}.MOO.gz")));
        cases.into_iter().filter(|c| c.hash.is_empty() || !self.revoked.contains(&c.hash))
    }
}

/// More than any case needs: a repeated string instruction takes 65,535.
const LIMIT: u64 = 70_000;

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
fn differences(rig: &mut Rig, undefined: u16, c: &Case) -> Vec<String> {
    for (a, v) in &c.initial.memory {
        let _ = rig.memory.store(u64::from(*a), &[*v]);
    }
    let state = start(rig, c);
    let (halt, end) = rig.run(&state, LIMIT);
    let mut out = Vec::new();
    if !matches!(halt, Halt::Idle) {
        out.push(format!("did not reach HLT: {halt:?}"));
    }
    let got = registers(&end);
    for (i, name) in moo::REGISTERS.iter().enumerate() {
        let want = c.last.registers[i].or(c.initial.registers[i]).unwrap_or(0);
        let mask = if i == 13 { 0x0fff & !undefined } else { 0xffff };
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
            Some(f) if *a == f => !(undefined as u8),
            Some(f) if *a == f + 1 => !((undefined >> 8) as u8) & 0x0f,
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
    let suite = Suite::open(dir);
    assert!(suite.forms.len() > 300, "the suite has {} files", suite.forms.len());
    let stride: usize = std::env::var("STRATA_STRIDE").map_or(1, |s| s.parse().expect("STRATA_STRIDE is a number"));
    let only = std::env::var("STRATA_FORM").unwrap_or_default();
    for engine in software_engines() {
        let memory = GuestMemory::flat(0x0120_0000).expect("memory");
        let mut rig = Rig::new(&*engine, CpuModel::default_model(), memory);
        let (mut ran, mut excluded, mut wrong) = (0u32, 0u32, Vec::new());
        for form in suite.forms.iter().filter(|f| f.starts_with(&only)) {
            let undefined = suite.undefined_flags(form);
            let mut bad = 0;
            for c in suite.cases(form).step_by(stride) {
                if EXCLUSIONS.iter().any(|(prefix, applies, _)| form.starts_with(prefix) && applies(&c)) {
                    excluded += 1;
                    continue;
                }
                ran += 1;
                let d = differences(&mut rig, undefined, &c);
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
