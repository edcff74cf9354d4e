//! When vector instructions fault, and what FXSAVE and XSAVE write and accept.

mod machine;

use engine::Halt;
use machine::Machine;
use x86_state::{CpuState, F80, FpuState, cr0, cr4, vector};

const CODE: u64 = 0x10_0000;
const AREA: u64 = 0x10_2000;

/// 64-bit mode with everything enabled, RSI at [`AREA`], components as given.
fn machine() -> (Machine, CpuState) {
    let mut m = Machine::new(0x20_0000, "x86-64-v3");
    let mut s = m.long_mode();
    s.cr4 |= cr4::OSFXSR | cr4::OSXSAVE | cr4::OSXMMEXCPT;
    s.xcr0 = 7;
    s.gpr[6] = AREA;
    s.fpu = FpuState::init();
    (m, s)
}

/// Execute one instruction; the vector of its fault, if any. The handlers of the
/// test machine halt at an address that tells the vector.
fn step(m: &mut Machine, s: &CpuState, code: &[u8]) -> (CpuState, Option<u8>) {
    m.write(CODE, code);
    let mut s = s.clone();
    s.rip = CODE;
    let (after, halt) = m.run(&s, 1);
    if after.rip == CODE + code.len() as u64 {
        assert!(matches!(halt, Halt::Limit), "{halt:?}");
        return (after, None);
    }
    let at = after.rip.wrapping_sub(machine::HANDLERS);
    assert!(at <= 0x101, "RIP {:#x} is no handler's, {halt:?}", after.rip);
    // The limit may fall before or after the handler's HLT.
    let number = if matches!(halt, Halt::Limit) { at } else { at - 1 };
    (after, Some(number as u8))
}

fn check(what: &str, change: impl Fn(&mut CpuState), code: &[u8], want: Option<u8>) {
    let (mut m, mut s) = machine();
    change(&mut s);
    let (after, got) = step(&mut m, &s, code);
    assert_eq!(got, want, "{what}");
    if want.is_some() {
        assert_eq!(after.fpu.ymm, s.fpu.ymm, "{what}: a fault changes no vector");
    }
}

const ADDPS: &[u8] = &[0x0f, 0x58, 0x06];
const MOVUPS: &[u8] = &[0x0f, 0x10, 0x06];
const MOVAPS: &[u8] = &[0x0f, 0x28, 0x06];
const VADDPS: &[u8] = &[0xc5, 0xf0, 0x58, 0x06];
const VMOVAPS: &[u8] = &[0xc5, 0xfc, 0x28, 0x06];
const PXOR: &[u8] = &[0x66, 0x0f, 0xef, 0xc0];

#[test]
fn availability() {
    let ud = Some(vector::UD);
    let nm = Some(vector::NM);
    check("legacy, all enabled", |_| {}, PXOR, None);
    check("legacy, CR0.EM", |s| s.cr0 |= cr0::EM, PXOR, ud);
    check("legacy, CR4.OSFXSR clear", |s| s.cr4 &= !cr4::OSFXSR, PXOR, ud);
    check("legacy, CR0.TS", |s| s.cr0 |= cr0::TS, PXOR, nm);
    check("#UD comes before #NM", |s| s.cr0 |= cr0::TS | cr0::EM, PXOR, ud);
    check("VEX, all enabled", |_| {}, VADDPS, None);
    check("VEX, CR4.OSXSAVE clear", |s| s.cr4 &= !cr4::OSXSAVE, VADDPS, ud);
    check("VEX, XCR0.AVX clear", |s| s.xcr0 = 3, VADDPS, ud);
    check("VEX, CR0.TS", |s| s.cr0 |= cr0::TS, VADDPS, nm);
    check(
        "VEX ignores CR0.EM and CR4.OSFXSR",
        |s| (s.cr0, s.cr4) = (s.cr0 | cr0::EM, s.cr4 & !cr4::OSFXSR),
        VADDPS,
        None,
    );
    check("VEX.vvvv must be unused", |_| {}, &[0xc5, 0xf0, 0x28, 0x06], ud);
    check("VEX.L must be zero", |_| {}, &[0xc5, 0xfd, 0x6e, 0xc0], ud);
    check("LOCK", |_| {}, &[0xf0, 0x0f, 0x58, 0x06], ud);
}

#[test]
fn alignment() {
    let gp = Some(vector::GP);
    let off = |n: u64| move |s: &mut CpuState| s.gpr[6] = AREA + n;
    check("ADDPS at 8", off(8), ADDPS, gp);
    check("ADDPS at 16", off(16), ADDPS, None);
    check("MOVUPS at 1", off(1), MOVUPS, None);
    check("MOVAPS at 1", off(1), MOVAPS, gp);
    check("VADDPS at 1", off(1), VADDPS, None);
    check("VMOVAPS ymm at 16", off(16), VMOVAPS, gp);
    check("VMOVAPS ymm at 32", off(32), VMOVAPS, None);
    check("FXSAVE at 8", off(8), &[0x0f, 0xae, 0x06], gp);
    check("XSAVE at 16", off(16), &[0x0f, 0xae, 0x26], gp);
}

#[test]
fn unmasked_exceptions() {
    let one_over_zero = |mxcsr: u32| {
        move |s: &mut CpuState| {
            s.fpu.mxcsr = mxcsr;
            s.fpu.ymm[0] = [0x3ff0_0000_0000_0000, 7, 0, 9];
        }
    };
    // DIVSD XMM0, XMM1
    let divsd = &[0xf2, 0x0f, 0x5e, 0xc1];
    check("masked", one_over_zero(0x1f80), divsd, None);
    check("#XM", one_over_zero(0x1d80), divsd, Some(vector::XM));
    let without = |s: &mut CpuState| {
        one_over_zero(0x1d80)(s);
        s.cr4 &= !cr4::OSXMMEXCPT;
    };
    check("#UD without CR4.OSXMMEXCPT", without, divsd, Some(vector::UD));
    let (mut m, mut s) = machine();
    one_over_zero(0x1d80)(&mut s);
    assert_eq!(step(&mut m, &s, divsd).0.fpu.mxcsr, 0x1d84, "the flag is recorded before the fault");
}

#[test]
fn mxcsr_reserved_bits() {
    let (mut m, s) = machine();
    // LDMXCSR [RSI]
    let ldmxcsr = &[0x0f, 0xae, 0x16];
    m.write(AREA, &0xffbf_u32.to_le_bytes());
    let (after, fault) = step(&mut m, &s, ldmxcsr);
    assert_eq!((fault, after.fpu.mxcsr), (None, 0xffbf));
    m.write(AREA, &0x1_1f80_u32.to_le_bytes());
    let (after, fault) = step(&mut m, &s, ldmxcsr);
    assert_eq!((fault, after.fpu.mxcsr), (Some(vector::GP), 0x1f80));
}

/// A page that is not present, then a gather, a masked load and a wide store
/// that meet it.
#[test]
fn partial_accesses() {
    let (mut m, mut s) = machine();
    // The page directory entry of 2 MiB and up: not present.
    let hole = 0x20_0000_u64;
    m.write(0x3008, &0_u64.to_le_bytes());
    let pf = Some(vector::PF);

    // VPGATHERDD XMM0, [RSI + XMM1], XMM2: element 2 is in the hole.
    m.write(AREA, &[0x11; 32]);
    s.fpu.ymm[0] = [!0; 4];
    s.fpu.ymm[1] = [4 << 32, (hole - AREA) | 8 << 32, 5, 5];
    s.fpu.ymm[2] = [!0, !0, 6, 6];
    let gather = &[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x0e];
    let (after, fault) = step(&mut m, &s, gather);
    assert_eq!(fault, pf);
    assert_eq!(after.cr2, hole);
    assert_eq!(after.fpu.ymm[0][..2], [0x1111_1111_1111_1111, !0], "two elements are done");
    assert_eq!(after.fpu.ymm[2][..2], [0, !0], "and their masks cleared");

    // VMASKMOVPS XMM0, XMM1, [RSI] with only the first element in memory.
    s.gpr[6] = hole - 4;
    s.fpu.ymm[1] = [1 << 31, 0, 0, 0];
    let (after, fault) = step(&mut m, &s, &[0xc4, 0xe2, 0x71, 0x2c, 0x06]);
    assert_eq!((fault, after.fpu.ymm[0]), (None, [0, 0, 0, 0]));
    s.fpu.ymm[1] = [1 << 31 | 1 << 63, 0, 0, 0];
    let (after, fault) = step(&mut m, &s, &[0xc4, 0xe2, 0x71, 0x2c, 0x06]);
    assert_eq!((fault, after.cr2), (pf, hole));

    // VMOVUPS [RSI], YMM0 across the edge writes nothing.
    s.gpr[6] = hole - 24;
    s.fpu.ymm[0] = [!0; 4];
    let (after, fault) = step(&mut m, &s, &[0xc5, 0xfc, 0x11, 0x06]);
    assert_eq!((fault, after.cr2), (pf, hole));
    assert_eq!(m.read_u64(hole - 24), 0);
    // FXSAVE too.
    s.gpr[6] = hole - 256;
    let (_, fault) = step(&mut m, &s, &[0x0f, 0xae, 0x06]);
    assert_eq!(fault, pf);
    assert_eq!(m.read_u64(hole - 256 + 24), 0);
}

fn sample() -> FpuState {
    FpuState {
        fcw: 0x27f,
        fsw: 5 << 11 | 0x100,
        ftw: 0b1010_0000,
        fop: 0x123,
        fip: 0x1111_2222_3333,
        fdp: 0x4444_5555_6666,
        fcs: 0,
        fds: 0,
        regs: std::array::from_fn(|n| F80 {
            significand: 0x8000_0000_0000_0000 + n as u64,
            sign_exponent: 0x3fff,
        }),
        mxcsr: 0x1fa0,
        ymm: std::array::from_fn(|n| [n as u64 + 1, 0x22, 0x33, 0x44 + n as u64]),
    }
}

#[test]
fn fxsave_image() {
    let (mut m, mut s) = machine();
    s.fpu = sample();
    // FXSAVE64 [RSI]
    let (_, fault) = step(&mut m, &s, &[0x48, 0x0f, 0xae, 0x06]);
    assert_eq!(fault, None);
    assert_eq!(m.read_u64(AREA), 0x0123_00a0_2900_027f);
    assert_eq!(m.read_u64(AREA + 8), 0x1111_2222_3333);
    assert_eq!(m.read_u64(AREA + 16), 0x4444_5555_6666);
    assert_eq!(m.read_u64(AREA + 24), 0xffff_0000_1fa0);
    // ST(0) is physical register 5.
    assert_eq!(m.read_u64(AREA + 32), 0x8000_0000_0000_0005);
    assert_eq!(m.read_u64(AREA + 40), 0x3fff);
    assert_eq!(m.read_u64(AREA + 160 + 15 * 16), 16);
    assert_eq!(m.read_u64(AREA + 416), 0, "nothing behind XMM15");
    // FXRSTOR64 brings all back but the upper halves.
    let mut other = s.clone();
    other.fpu = FpuState::init();
    let (after, fault) = step(&mut m, &other, &[0x48, 0x0f, 0xae, 0x0e]);
    assert_eq!(fault, None);
    let mut want = sample();
    for y in &mut want.ymm {
        (y[2], y[3]) = (0, 0);
    }
    assert_eq!(after.fpu, want);
    // The 32-bit format has 32-bit pointers and selectors.
    s.fpu.fcs = 0x23;
    step(&mut m, &s, &[0x0f, 0xae, 0x06]);
    assert_eq!(m.read_u64(AREA + 8), 0x23_2222_3333);
    // A reserved MXCSR bit changes nothing.
    m.write(AREA + 24, &0x2_0000_u32.to_le_bytes());
    let (after, fault) = step(&mut m, &other, &[0x48, 0x0f, 0xae, 0x0e]);
    assert_eq!((fault, after.fpu), (Some(vector::GP), other.fpu));
}

const XSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x26];
const XSAVEOPT64: &[u8] = &[0x48, 0x0f, 0xae, 0x36];
const XSAVEC64: &[u8] = &[0x48, 0x0f, 0xc7, 0x26];
const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x2e];

#[test]
fn xsave_round_trips() {
    for save in [XSAVE64, XSAVEOPT64, XSAVEC64] {
        let (mut m, mut s) = machine();
        s.fpu = sample();
        s.gpr[0] = !0;
        s.gpr[2] = !0;
        let (_, fault) = step(&mut m, &s, save);
        assert_eq!(fault, None);
        assert_eq!(m.read_u64(AREA + 512), 7);
        assert_eq!(m.read_u64(AREA + 520), if save == XSAVEC64 { 1 << 63 | 7 } else { 0 });
        let mut other = s.clone();
        other.fpu = FpuState::init();
        let (after, fault) = step(&mut m, &other, XRSTOR64);
        assert_eq!(fault, None);
        assert_eq!(after.fpu, sample());
        // Without SSE requested only the rest comes back; the standard format
        // loads MXCSR with AVX.
        other.gpr[0] = 5;
        let (after, _) = step(&mut m, &other, XRSTOR64);
        assert_eq!(after.fpu.ymm[3], [0, 0, 0x33, 0x47]);
        assert_eq!(after.fpu.mxcsr, if save == XSAVEC64 { 0x1f80 } else { 0x1fa0 });
    }
}

#[test]
fn xsave_of_initial_components() {
    let (mut m, mut s) = machine();
    (s.gpr[0], s.gpr[2]) = (7, 0);
    m.write(AREA, &[0xcc; 832]);
    m.write(AREA + 512, &[0; 64]);
    m.write(AREA + 512, &0xff_u64.to_le_bytes());
    step(&mut m, &s, XSAVEOPT64);
    assert_eq!(m.read_u64(AREA + 512), 0xf8, "bits not requested are kept");
    assert_eq!(m.read_u64(AREA), 0xcccc_cccc_cccc_cccc, "initial components are not written");
    assert_eq!(m.read_u64(AREA + 24), 0xffff_0000_1f80, "MXCSR is");
    m.write(AREA + 512, &0_u64.to_le_bytes());
    step(&mut m, &s, XSAVE64);
    assert_eq!(m.read_u64(AREA), 0x37f, "XSAVE writes them");
    assert_eq!(m.read_u64(AREA + 512), 0);
    // XRSTOR of absent components gives the initial configuration.
    s.fpu = sample();
    let (after, fault) = step(&mut m, &s, XRSTOR64);
    assert_eq!((fault, after.fpu), (None, FpuState::init()));
}

#[test]
fn xrstor_checks_its_header() {
    let cases: &[(&str, usize, u64, Option<u8>)] = &[
        ("as saved", 512, 7, None),
        ("a component XCR0 lacks", 512, 15, Some(vector::GP)),
        ("XCOMP_BV without compaction", 520, 1, Some(vector::GP)),
        ("bytes 16-23", 528, 1, Some(vector::GP)),
        ("bytes 24-31 are not checked in the standard format", 536, 1, None),
        ("compacted, XSTATE_BV beyond XCOMP_BV", 520, 1 << 63 | 3, Some(vector::GP)),
        ("compacted", 520, 1 << 63 | 7, None),
        ("compacted, XCOMP_BV beyond XCR0", 520, 1 << 63 | 0x17, Some(vector::GP)),
        ("MXCSR", 24, 1 << 16, Some(vector::GP)),
    ];
    for (what, at, value, want) in cases {
        let (mut m, mut s) = machine();
        s.fpu = sample();
        (s.gpr[0], s.gpr[2]) = (7, 0);
        step(&mut m, &s, XSAVE64);
        m.write(AREA + *at as u64, &value.to_le_bytes());
        let (after, got) = step(&mut m, &s, XRSTOR64);
        assert_eq!(got, *want, "{what}");
        assert_eq!(after.fpu, sample(), "{what}");
    }
    check("XSAVE without OSXSAVE", |s| s.cr4 &= !cr4::OSXSAVE, XSAVE64, Some(vector::UD));
    check("XSAVE with CR0.TS", |s| s.cr0 |= cr0::TS, XSAVE64, Some(vector::NM));
    check("FXSAVE with CR0.EM", |s| s.cr0 |= cr0::EM, &[0x0f, 0xae, 0x06], Some(vector::NM));
}

#[test]
fn outside_64_bit_mode() {
    // 32-bit protected mode: eight registers.
    let mut m = Machine::new(0x20_0000, "x86-64-v3");
    let mut s = m.protected_mode();
    s.cr4 |= cr4::OSFXSR | cr4::OSXSAVE;
    s.xcr0 = 7;
    s.gpr[6] = AREA;
    s.fpu = sample();
    step(&mut m, &s, &[0x0f, 0xae, 0x06]);
    assert_eq!(m.read_u64(AREA + 160 + 7 * 16), 8);
    assert_eq!(m.read_u64(AREA + 160 + 8 * 16), 0, "XMM8 is not saved");
    // VZEROALL
    let (after, fault) = step(&mut m, &s, &[0xc5, 0xfc, 0x77]);
    assert_eq!(fault, None);
    assert_eq!((after.fpu.ymm[7], after.fpu.ymm[8]), ([0; 4], sample().ymm[8]));
    // A segment whose base is not aligned decides, not the offset alone.
    s.segments[3].base = 8;
    s.gpr[6] = AREA + 8;
    assert_eq!(step(&mut m, &s, MOVAPS).1, None);
    s.gpr[6] = AREA;
    assert_eq!(step(&mut m, &s, MOVAPS).1, Some(vector::GP));
    // Real mode knows legacy SSE, but no VEX: VADDPS XMM0, XMM1, XMM0.
    let mut s = m.real_mode();
    s.cr4 |= cr4::OSFXSR | cr4::OSXSAVE;
    s.xcr0 = 7;
    let low = 0x8000;
    for (code, want) in
        [(PXOR, 4), (&[0xc5, 0xf0, 0x58, 0xc0][..], machine::HANDLERS + u64::from(vector::UD) - low)]
    {
        m.write(low, code);
        s.rip = low;
        let (after, _) = m.run(&s, 1);
        assert!(after.rip.wrapping_sub(low).abs_diff(want) <= 1, "{code:x?}: RIP {:#x}", after.rip);
    }
}

/// Linear addresses count, not offsets, wherever a segment has a base.
#[test]
fn alignment_counts_the_segment_base() {
    let gs = |n: u64| {
        move |s: &mut CpuState| {
            s.segments[5].base = AREA + 8;
            s.gpr[6] = n;
        }
    };
    // GS: CVTPD2PI MM0, [RSI]; GS: CVTTPD2PI MM0, [RSI]
    for code in [[0x65, 0x66, 0x0f, 0x2d, 0x06], [0x65, 0x66, 0x0f, 0x2c, 0x06]] {
        check("linear address at 16", gs(8), &code, None);
        check("linear address at 8", gs(0), &code, Some(vector::GP));
    }
}

/// VMOVUPS of 32 bytes by GS, the offset aligned and the linear address across a page's end.
#[test]
fn a_wide_store_that_faults_leaves_memory_as_it_was() {
    let (mut m, mut s) = machine();
    s.segments[5].base = 0x1f_fff0 - 0xfe0;
    s.gpr[6] = 0xfe0;
    s.fpu.ymm[0] = [u64::MAX; 4];
    // The 2 MiB behind are not mapped.
    m.write(0x3008, &[0; 8]);
    let (after, fault) = step(&mut m, &s, &[0x65, 0xc5, 0xfc, 0x11, 0x06]);
    assert_eq!((fault, after.cr2), (Some(vector::PF), 0x20_0000));
    assert_eq!((m.read_u64(0x1f_fff0), m.read_u64(0x1f_fff8)), (0, 0));
}

/// ANDN, PEXT, RORX, SHLX, MULX, BLSR: VEX-encoded, though of general registers.
#[test]
fn vex_is_undefined_in_real_mode() {
    let table: [(&str, &[u8]); 6] = [
        ("ANDN EAX, ECX, EDX", &[0xc4, 0xe2, 0x70, 0xf2, 0xc2]),
        ("PEXT EAX, ECX, EDX", &[0xc4, 0xe2, 0x72, 0xf5, 0xc2]),
        ("RORX EAX, EDX, 1", &[0xc4, 0xe3, 0x7b, 0xf0, 0xc2, 1]),
        ("SHLX EAX, EDX, ECX", &[0xc4, 0xe2, 0x71, 0xf7, 0xc2]),
        ("MULX EAX, ECX, EDX", &[0xc4, 0xe2, 0x73, 0xf6, 0xc2]),
        ("BLSR EAX, EDX", &[0xc4, 0xe2, 0x78, 0xf3, 0xca]),
    ];
    for (name, code) in table {
        let mut m = Machine::new(0x20_0000, "x86-64-v3");
        let mut s = m.real_mode();
        s.gpr = [0x55; 16];
        s.gpr[4] = 0x800;
        s.rip = 0x1000;
        m.write(0x1000, code);
        let (after, _) = m.run(&s, 1);
        assert_eq!(after.rip, machine::HANDLERS + u64::from(vector::UD), "{name} in real mode");
        assert_eq!(after.gpr[..4], s.gpr[..4], "{name} in real mode");
        let mut s = m.protected_mode();
        s.rip = 0x1000;
        let (after, _) = m.run(&s, 1);
        assert_eq!(after.rip, 0x1000 + code.len() as u64, "{name} in protected mode");
    }
}
