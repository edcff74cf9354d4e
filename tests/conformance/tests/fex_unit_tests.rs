//! Instruction tests in FEX's format, on every software engine.
//!
//! The tests are not ours and not on every machine: `STRATA_FEX_TESTS` names a
//! folder of `NAME.bin` (flat code for address 0x10000) with `NAME.json` (the
//! test's CONFIG block with an added `bits` of 32 or 64); `STRATA_FEX_FILTER`
//! chooses by part of a name. `docs/conformance.md` has the figures.

use std::path::{Path, PathBuf};

use conformance::{Rig, software_engines};
use engine::{Engine, Halt};
use guest_memory::{GuestMemory, MemoryMap, Region};
use serde_json::Value;
use x86_state::{CpuState, FpuState, Segment, TableRegister, cr0, cr4, efer};

const CODE: u64 = 0x1_0000;
const TABLES: u64 = 0x60_0000;
const GDT: u64 = 0x60_4000;
const IDT: u64 = 0x60_5000;
const TSS: u64 = 0x60_6000;
const LDT: u64 = 0x60_6800;
const HANDLERS: u64 = 0x60_7000;
const INT_80: u64 = HANDLERS + 0x100;
const SYSCALL: u64 = HANDLERS + 0x200;
const HLT: u8 = 0xf4;
const STACK_TOP: u64 = 0x60_a000;
/// Features the model lacks: the test does not apply.
const ABSENT: &[&str] = &["3DNOW", "SSE4A", "CLZERO", "AFP", "EMMI", "LINUX"];

/// Tests that a processor by the manual fails, or may fail, and why.
const FAILING: &[(&str, &str)] = &[
    ("ASM/Primary/Primary_8C", "loads selectors that name no descriptor: #GP"),
    ("ASM/Primary/Primary_8C_2", "loads selectors that name no descriptor: #GP"),
    ("ASM/Primary/Primary_E8", "66h before a near CALL counts on AMD only"),
    ("ASM/Primary/Primary_E9", "66h before a near JMP counts on AMD only"),
    ("ASM/PrimaryGroup/5_FF_05", "REX.W before a far JMP counts on Intel only; the test expects AMD"),
    ("ASM/PrimaryGroup/5_FF_05_03_o64", "REX.W before a far CALL counts on Intel only; the test expects AMD"),
    (
        "ASM/PrimaryGroup/5_FF_05_03_o64_imm",
        "REX.W before a far CALL counts on Intel only; the test expects AMD",
    ),
    ("ASM/Secondary/07_XX_00", "expects the SGDT that Linux emulates under UMIP"),
    ("32Bit_ASM/Secondary/07_XX_00", "expects the SGDT that Linux emulates under UMIP"),
    ("ASM/Secondary/07_XX_04", "expects the SMSW that Linux emulates under UMIP, with upper halves kept"),
    ("ASM/VEX/vldmxcsr", "expects FEX's own MXCSR, which lacks bits"),
    ("ASM/X87/D9_F2", "FPTAN of 1: the interpreter rounds correctly, the processor recorded does not"),
    ("32Bit_ASM/X87/D9_F2", "FPTAN of 1: the interpreter rounds correctly, the processor recorded does not"),
    ("ASM/X87/D9_F9", "FYL2XP1 of 2 lies outside the defined range"),
    ("32Bit_ASM/X87/D9_F9", "FYL2XP1 of 2 lies outside the defined range"),
    ("ASM/X87/FXAM_Simple", "expects FEX's own FXAM, which has no class for zero"),
    ("ASM/X87/X87MMXInteraction", "expects FEX's own tag word, which has neither zero nor special"),
    ("ASM/modrm_oob/DDD", "3DNow!"),
    ("32Bit_ASM/Primary/Pop_Segments", "loads SS with a null selector at CPL 3: #GP"),
];

fn number(v: &Value) -> u64 {
    match v {
        Value::String(s) => {
            let t = &s.trim().replace('_', "");
            match t.strip_prefix("0x").or_else(|| t.strip_prefix("0X")) {
                Some(h) => u64::from_str_radix(h, 16).unwrap_or_else(|e| panic!("{t}: {e}")),
                None => t.parse().unwrap_or_else(|e| panic!("{t}: {e}")),
            }
        }
        v => v.as_u64().unwrap_or_else(|| panic!("{v} is not a number")),
    }
}

fn key<'a>(config: &'a Value, name: &str) -> Option<&'a Value> {
    config.as_object()?.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v)
}

fn entries<'a>(config: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    key(config, name).and_then(Value::as_object).into_iter().flatten()
}

fn memory_for(config: &Value, code: usize) -> GuestMemory {
    let page = |v: u64| v.next_multiple_of(0x1000);
    let mut wanted = vec![
        (CODE & !0xffff, page(code as u64) + 0x2_0000),
        (TABLES, 0x1_0000),
        (0xc000_0000 - 0x1000, 0x3000),
        (0xe000_0000, 0xa000),
        (0xe7ff_f000, 0x2000),
    ];
    wanted.extend(entries(config, "MemoryRegions").map(|(a, s)| {
        let start = number(&Value::String(a.clone())) & !0xfff;
        (start, page(number(s)))
    }));
    wanted.sort_unstable();
    let mut regions: Vec<Region> = Vec::new();
    for (start, size) in wanted {
        match regions.last_mut() {
            Some(r) if r.start + r.size >= start => r.size = r.size.max(start + size - r.start),
            _ => regions.push(Region::ram(start, size)),
        }
    }
    let m = GuestMemory::new(MemoryMap::new(regions).expect("regions")).expect("memory");
    for (a, text) in entries(config, "MemoryData") {
        let bytes: Vec<u8> = text
            .as_str()
            .unwrap_or_default()
            .split_whitespace()
            .flat_map(|w| {
                let v = w.trim_start_matches("0x");
                // Each word is written with its most significant byte first.
                (0..v.len() / 2)
                    .rev()
                    .map(|i| u8::from_str_radix(&v[i * 2..i * 2 + 2], 16).expect("hex"))
                    .collect::<Vec<_>>()
            })
            .collect();
        m.store(number(&Value::String(a.clone())), &bytes).expect("memory data");
    }
    m
}

/// A user program's state as a 64-bit Linux gives it: CPL 3, 64-bit or
/// compatibility mode, identity pages. Every vector leads to a HLT of its own at
/// CPL 0, so that the program's end (HLT faults with #GP) can be told from others.
fn start(rig: &Rig, bits: u64) -> CpuState {
    let mut s = rig.reset_state();
    let store = |at: u64, v: u64| rig.memory.store(at, &v.to_le_bytes()).expect("tables");
    // Linux's selectors: 0x10 kernel code, 0x23 user 32-bit code, 0x2b user data,
    // 0x33 user 64-bit code, 0x40 task state.
    let tss = [0x0000_8b60_6000_0067, 0];
    let gdt = [
        0u64,
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0,
        tss[0],
        tss[1],
    ];
    for (i, d) in gdt.iter().enumerate() {
        store(GDT + i as u64 * 8, *d);
    }
    store(TSS + 4, STACK_TOP);
    // System calls: every one succeeds at once and returns 0 through INT 80h, 1
    // through SYSCALL.
    let gate = |v: u64, at: u64| {
        store(IDT + v * 16, at & 0xffff | 0x10 << 16 | 0xee00 << 32 | at >> 16 << 48);
        store(IDT + v * 16 + 8, at >> 32);
    };
    for v in 0..32 {
        rig.memory.store(HANDLERS + v, &[HLT]).expect("handlers");
        gate(v, HANDLERS + v);
    }
    gate(0x80, INT_80);
    rig.memory.store(INT_80, &[0x31, 0xc0, 0x48, 0xcf]).expect("xor eax, eax; iretq");
    rig.memory.store(SYSCALL, &[0xb8, 1, 0, 0, 0, 0x48, 0x0f, 0x07]).expect("mov eax, 1; sysretq");
    s.msrs.star = 0x23 << 48 | 0x10 << 32;
    s.msrs.lstar = SYSCALL;
    // The 32-bit tests load selector 0x17, which their runner makes by modify_ldt.
    store(LDT + 16, 0x00cf_f300_0000_ffff);
    // One page-directory-pointer table of 1 GiB identity pages.
    store(TABLES, (TABLES + 0x1000) | 7);
    for i in 0..512u64 {
        store(TABLES + 0x1000 + i * 8, i << 30 | 0x87);
    }
    let data = Segment { selector: 0x2b, base: 0, limit: u32::MAX, access: 0xc0f3 };
    s.segments = [data; 6];
    s.segments[1] = if bits == 64 {
        Segment { selector: 0x33, base: 0, limit: u32::MAX, access: 0xa0fb }
    } else {
        Segment { selector: 0x23, base: 0, limit: u32::MAX, access: 0xc0fb }
    };
    s.gdtr = TableRegister { base: GDT, limit: 79 };
    s.idtr = TableRegister { base: IDT, limit: 0x80f };
    s.tr = Segment { selector: 0x40, base: TSS, limit: 0x67, access: 0x8b };
    s.ldtr = Segment { selector: 0x50, base: LDT, limit: 0x17, access: 0x82 };
    s.cr0 = cr0::PG | cr0::WP | cr0::PE | cr0::ET | cr0::NE | cr0::MP | cr0::AM;
    s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE | cr4::PAE;
    s.xcr0 = 7;
    s.cr3 = TABLES;
    s.efer = efer::LME | efer::LMA | efer::SCE;
    s.fpu = FpuState::init();
    s.gpr[2] = 0;
    s.gpr[4] = 0xc000_0000 + 0x1000;
    s.rip = CODE;
    s.rflags = 0x202;
    s
}

/// The program's registers at its end: RIP, RFLAGS and RSP are in the frame of
/// the #GP that its HLT caused. Anything else is a failure.
fn program_end(rig: &Rig, halt: &Halt, mut s: CpuState) -> Result<CpuState, String> {
    let vector = s.rip.wrapping_sub(HANDLERS + 1);
    if !matches!(halt, Halt::Idle) || vector >= 32 {
        return Err(format!("{halt:?} at {:#x}", s.rip));
    }
    let word = |n: u64| {
        let mut b = [0; 8];
        rig.memory.load(s.gpr[4] + n * 8, &mut b).map(|()| u64::from_le_bytes(b)).unwrap_or(0)
    };
    let coded = u64::from(matches!(vector, 8 | 10..=14 | 17));
    let (rip, rflags, rsp) = (word(coded), word(coded + 2), word(coded + 3));
    let mut at = [0];
    let _ = rig.memory.load(rip, &mut at);
    if vector != 13 || at[0] != HLT {
        return Err(format!("exception {vector} at {rip:#x}"));
    }
    (s.rip, s.rflags, s.gpr[4]) = (rip, rflags, rsp);
    Ok(s)
}

fn check(name: &str, values: &Value, s: &CpuState) -> Vec<String> {
    const GPR: [&str; 16] = [
        "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13",
        "R14", "R15",
    ];
    let list: Vec<u64> = match values {
        Value::Array(a) => a.iter().map(number).collect(),
        v => vec![number(v)],
    };
    let got: Vec<u64> = if let Some(i) = GPR.iter().position(|g| *g == name) {
        vec![s.gpr[i]]
    } else if let Some(i) = name.strip_prefix("XMM") {
        s.fpu.ymm[i.parse::<usize>().expect("XMM number")].to_vec()
    } else if let Some(i) = name.strip_prefix("MM") {
        let r = s.fpu.regs[i.parse::<usize>().expect("MM number")];
        vec![r.significand, u64::from(r.sign_exponent)]
    } else {
        match name {
            "RIP" => vec![s.rip],
            "FS" => vec![s.segments[4].base],
            "GS" => vec![s.segments[5].base],
            _ => return vec![format!("unknown register {name}")],
        }
    };
    list.iter()
        .zip(&got)
        .enumerate()
        .filter(|(_, (w, g))| w != g)
        .map(|(i, (w, g))| format!("{name}[{i}] {g:#x} not {w:#x}"))
        .collect()
}

enum Verdict {
    Pass,
    Fail(String),
    Absent,
}

fn run(engine: &dyn Engine, bin: &Path) -> Verdict {
    let config: Value =
        serde_json::from_slice(&std::fs::read(bin.with_extension("json")).expect("config")).expect("JSON");
    let features = key(&config, "HostFeatures").and_then(Value::as_array).cloned().unwrap_or_default();
    if features.iter().filter_map(Value::as_str).any(|f| ABSENT.contains(&f.to_uppercase().as_str())) {
        return Verdict::Absent;
    }
    let code = std::fs::read(bin).expect("code");
    let memory = memory_for(&config, code.len());
    memory.store(CODE, &code).expect("code fits");
    let model = "x86-64-v3,+vaes,+vpclmulqdq".parse().expect("the model exists");
    let mut rig = Rig::new(engine, model, memory);
    let state = start(&rig, config["bits"].as_u64().expect("bits"));
    let (halt, end) = rig.run_freely(&state, std::time::Duration::from_secs(10));
    let end = match program_end(&rig, &halt, end) {
        Ok(end) => end,
        Err(why) => return Verdict::Fail(why),
    };
    let wrong: Vec<String> =
        entries(&config, "RegData").flat_map(|(n, v)| check(&n.to_uppercase(), v, &end)).collect();
    if wrong.is_empty() { Verdict::Pass } else { Verdict::Fail(wrong.join(", ")) }
}

fn collect(dir: &Path, out: &mut Vec<PathBuf>) {
    for e in std::fs::read_dir(dir).expect("a readable folder").flatten() {
        let p = e.path();
        if p.is_dir() {
            collect(&p, out);
        } else if p.extension().is_some_and(|x| x == "bin") {
            out.push(p);
        }
    }
}

#[test]
fn what_fails_has_a_reason() {
    let Some(dir) = std::env::var_os("STRATA_FEX_TESTS").map(PathBuf::from) else {
        println!("skipped: STRATA_FEX_TESTS does not name a folder of assembled tests");
        return;
    };
    let mut files = Vec::new();
    collect(&dir, &mut files);
    files.sort();
    let filter = std::env::var("STRATA_FEX_FILTER").unwrap_or_default();
    assert!(files.len() > 2400 || !filter.is_empty(), "only {} tests in {}", files.len(), dir.display());
    let mut wrong = Vec::new();
    for engine in software_engines() {
        for (bits, folder) in [(64, "ASM"), (32, "32Bit_ASM")] {
            let (mut pass, mut absent, mut fails) = (0, 0, Vec::new());
            for f in files.iter().filter(|f| f.starts_with(dir.join(folder))) {
                let name = f.strip_prefix(&dir).unwrap_or(f).with_extension("").display().to_string();
                if !name.contains(&filter) {
                    continue;
                }
                let verdict = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&*engine, f)));
                match verdict {
                    Ok(Verdict::Pass) => pass += 1,
                    Ok(Verdict::Absent) => absent += 1,
                    Ok(Verdict::Fail(why)) => fails.push((name, why)),
                    Err(_) => fails.push((name, "the host panicked".to_string())),
                }
            }
            let engine = engine.name();
            println!(
                "FEX {bits}-bit on {engine}: {pass} pass, {} fail, {absent} need features the model lacks",
                fails.len()
            );
            for (name, why) in fails {
                match FAILING.iter().find(|(known, _)| *known == name) {
                    Some((_, reason)) => println!("  {name}: {why} ({reason})"),
                    None => wrong.push(format!("{name} on {engine}: {why}")),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} tests fail without a reason\n{}", wrong.len(), wrong.join("\n"));
}
