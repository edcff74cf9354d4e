//! Every case of the 80286 single-step suite, on every software engine.
//!
//! Cases were recorded from a real 80286. Where a modern processor differs by
//! the manual, [`EXCLUSIONS`] says so and why; everything else is exact:
//! registers, memory, defined flags. `STRATA_STRIDE=n` takes every n-th case,
//! `STRATA_FORM=F7.6` one opcode form.

use std::path::PathBuf;

use conformance::moo::{self, Case};
use conformance::{Rig, software_engines, suites};
use engine::Halt;
use guest_memory::GuestMemory;
use serde_json::Value;
use x86_state::{CpuModel, CpuState, Segment};

/// A reason by the manual why a modern processor does otherwise, and the cases it applies to.
type Exclusion = (&'static str, fn(&Case) -> bool);
const EXCLUSIONS: &[Exclusion] = &[
    ("LOCK before anything but a read-modify-write of memory is #UD since the 386", |c| {
        Encoding::of(c).lock_is_invalid()
    }),
    ("instructions of 11 to 15 bytes are valid since the 386", |c| raises(c, 13) && c.bytes.len() > 11),
    ("FS and GS exist since the 386", |c| {
        raises(c, 6) && matches!(Encoding::of(c), Encoding { opcode: 0x8c | 0x8e, extension: 4 | 5, .. })
    }),
    ("a violation of the stack segment's limit is vector 12 since the 386", |c| {
        raises(c, 13) && (Encoding::of(c).pops() || Encoding::of(c).operand_is_in_stack_segment())
    }),
    ("an iteration that faults leaves CX, SI and DI as they were since the 386", |c| {
        raises(c, 13) && matches!(Encoding::of(c).opcode, 0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf)
    }),
    ("POP that faults leaves SP as it was since the 386", |c| {
        raises(c, 13) && Encoding::of(c).opcode == 0x8f
    }),
    ("this 286 takes -260 for a quotient that fits in AL", |c| {
        c.index == 952 && c.bytes == [0xf6, 0x3c, 0xf4]
    }),
    ("AAM 0 leaves the flags as they were since the 386", |c| raises(c, 0) && Encoding::of(c).opcode == 0xd4),
];

fn raises(c: &Case, vector: u8) -> bool {
    c.exception.is_some_and(|(v, _)| v == vector)
}

/// What the exclusions look at in an instruction.
struct Encoding<'a> {
    prefixes: &'a [u8],
    opcode: u8,
    modrm: u8,
    /// Bits 3 to 5 of ModRM.
    extension: u8,
}

impl<'a> Encoding<'a> {
    fn of(c: &'a Case) -> Self {
        const PREFIXES: [u8; 7] = [0x26, 0x2e, 0x36, 0x3e, 0xf0, 0xf2, 0xf3];
        let n = c.bytes.iter().take_while(|b| PREFIXES.contains(b)).count();
        let modrm = c.bytes.get(n + 1).copied().unwrap_or(0);
        Encoding { prefixes: &c.bytes[..n], opcode: c.bytes[n], modrm, extension: modrm >> 3 & 7 }
    }

    /// SDM volume 2, LOCK.
    fn lock_is_invalid(&self) -> bool {
        let lockable = match self.opcode {
            0x00..=0x37 => self.opcode & 7 < 2,
            0x80..=0x83 => self.extension != 7,
            0x86 | 0x87 => true,
            0xf6 | 0xf7 => matches!(self.extension, 2 | 3),
            0xfe | 0xff => self.extension < 2,
            _ => false,
        };
        self.prefixes.contains(&0xf0) && !(lockable && self.modrm < 0xc0)
    }

    fn pops(&self) -> bool {
        matches!(self.opcode, 0x07 | 0x17 | 0x1f | 0x58..=0x5f | 0x61 | 0x9d | 0xc2 | 0xc3 | 0xc9..=0xcb | 0xcf)
    }

    fn operand_is_in_stack_segment(&self) -> bool {
        let has_modrm = match self.opcode {
            0x00..=0x3f => self.opcode & 7 < 4,
            0x62 | 0x63 | 0x69 | 0x6b | 0x80..=0x8f | 0xc0 | 0xc1 | 0xc4..=0xc7 => true,
            0xd0..=0xd3 | 0xd8..=0xdf | 0xf6 | 0xf7 | 0xfe | 0xff => true,
            _ => false,
        };
        let segment = self.prefixes.iter().rev().find(|p| matches!(p, 0x26 | 0x2e | 0x36 | 0x3e));
        let bp_based = matches!(self.modrm & 7, 2 | 3) || self.modrm & 7 == 6 && self.modrm >= 0x40;
        has_modrm && self.modrm < 0xc0 && segment.map_or(bp_based, |p| *p == 0x36)
    }
}

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
        let metadata: Value =
            serde_json::from_slice(&moo::unpack(&folder.join("metadata.json.gz"))).expect("metadata");
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
        g(0),
        g(3),
        g(1),
        g(2),
        sel(1),
        sel(2),
        sel(3),
        sel(0),
        g(4),
        g(5),
        g(6),
        g(7),
        s.rip as u16,
        s.rflags as u16 & 0x0fff,
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
    // The suite rounds the address of the pushed flags down to even ones.
    let last = |i: usize| u32::from(c.last.registers[i].or(c.initial.registers[i]).unwrap_or(0));
    let flags_at = c.exception.map(|_| (last(5) << 4) + ((last(8) + 4) & 0xffff));
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
    let stride: usize =
        std::env::var("STRATA_STRIDE").map_or(1, |s| s.parse().expect("STRATA_STRIDE is a number"));
    let only = std::env::var("STRATA_FORM").unwrap_or_default();
    for engine in software_engines() {
        let memory = GuestMemory::flat(0x0120_0000).expect("memory");
        let mut rig = Rig::new(&*engine, CpuModel::default_model(), memory);
        let (mut ran, mut excluded, mut wrong) = (0u32, [0u32; EXCLUSIONS.len()], Vec::new());
        for form in suite.forms.iter().filter(|f| f.starts_with(&only)) {
            let undefined = suite.undefined_flags(form);
            let mut bad = 0;
            for c in suite.cases(form).step_by(stride) {
                if let Some(n) = EXCLUSIONS.iter().position(|(_, applies)| applies(&c)) {
                    excluded[n] += 1;
                    continue;
                }
                ran += 1;
                let d = differences(&mut rig, undefined, &c);
                if !d.is_empty() {
                    bad += 1;
                    if bad <= 3 {
                        wrong.push(format!(
                            "{form} #{} {} {:02x?}: {}",
                            c.index,
                            c.name,
                            c.bytes,
                            d.join(", ")
                        ));
                    }
                }
            }
            if bad > 3 {
                wrong.push(format!("{form}: {bad} cases differ"));
            }
        }
        println!("80286 on {}: {ran} cases compared", engine.name());
        for ((reason, _), n) in EXCLUSIONS.iter().zip(excluded) {
            println!("  {n} left out: {reason}");
            assert!(n > 0 || stride > 1 || !only.is_empty(), "no case needs the exclusion \"{reason}\"");
        }
        assert!(wrong.is_empty(), "{} reports\n{}", wrong.len(), wrong.join("\n"));
    }
}
