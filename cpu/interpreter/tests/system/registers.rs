//! Control, debug and model-specific registers; system calls.

use x86_state::{CpuState, cr0, cr4, dr6, dr7, efer, msr_index, reg, rflags, vector};

use super::machine::{CODE, Machine, Outcome, STACK, TARGET, gdt};
use super::{Env, GP0, Mode, UD, long, protected, step};

/// MOV CRn, RAX.
fn write_control(
    env: &Env,
    n: u8,
    value: u64,
    prepare: impl FnOnce(&Machine, &mut CpuState),
) -> (Outcome, CpuState) {
    let code = if n == 8 { vec![0x44, 0x0f, 0x22, 0xc0] } else { vec![0x0f, 0x22, 0xc0 | n << 3] };
    let (outcome, after, _) = step(env, &code, |m, s| {
        s.gpr[reg::RAX] = value;
        prepare(m, s);
    });
    (outcome, after)
}

#[test]
fn control_register_consistency() {
    let (pe, pg, nw, cd) = (cr0::PE, cr0::PG, cr0::NW, cr0::CD);
    let l = long(0);
    let p = protected();
    let pae = cr4::PAE;
    // (environment, register, value, EFER and CR4 bits to set before, CR3, expected)
    let table = [
        (p, 0, pg, 0, 0, 0, GP0),
        (p, 0, pe | nw, 0, 0, 0, GP0),
        (p, 0, pe | nw | cd, 0, 0, 0, Outcome::Done),
        (p, 0, pe | pg, efer::LME, 0, 0, GP0),
        (p, 0, pe, 0, 0, 0, Outcome::Done),
        (l, 0, pe | pg | 1 << 32, 0, 0, 0x10000, GP0),
        (l, 0, pe, 0, 0, 0x10000, GP0),
        (l, 4, 0, 0, 0, 0x10000, GP0),
        (l, 4, pae | cr4::LA57, 0, 0, 0x10000, GP0),
        (l, 4, pae | 1 << 63, 0, 0, 0x10000, GP0),
        (l, 4, pae | cr4::PKE, 0, 0, 0x10000, GP0),
        (l, 4, pae | cr4::PCIDE, 0, 0, 0x10000, Outcome::Done),
        (l, 4, pae | cr4::PCIDE, 0, 0, 0x10008, GP0),
        (p, 4, cr4::PCIDE, 0, 0, 0, GP0),
        (p, 4, pae | cr4::PSE | cr4::PGE | cr4::OSFXSR, 0, 0, 0, Outcome::Done),
        (l, 3, 0x10000, 0, 0, 0x10000, Outcome::Done),
        (l, 3, 0x10000 | 1 << 40, 0, 0, 0x10000, GP0),
        (l, 3, 0x10000 | 1 << 63, 0, 0, 0x10000, GP0),
        (l, 3, 0x10000 | 1 << 63, 0, cr4::PCIDE, 0x10000, Outcome::Done),
        (l, 8, 15, 0, 0, 0x10000, Outcome::Done),
        (l, 8, 16, 0, 0, 0x10000, GP0),
        (l, 1, 0, 0, 0, 0x10000, UD),
        (l, 5, 0, 0, 0, 0x10000, UD),
    ];
    for (env, n, value, efer_bits, cr4_bits, cr3, expected) in table {
        let (outcome, after) = write_control(&env, n, value, |_, s| {
            s.efer |= efer_bits;
            s.cr4 |= cr4_bits;
            s.cr3 = cr3;
        });
        assert_eq!(outcome, expected, "CR{n} = {value:#x} in {env:?}");
        if outcome == Outcome::Done && n == 3 {
            assert_eq!(after.cr3, value & !(1 << 63), "the no-flush bit is not stored");
        }
    }
}

#[test]
fn long_mode_is_entered_and_left_by_paging() {
    // Compatibility mode at level 0 may turn paging off.
    let compatibility = Env { mode: Mode::Compatibility32, ..long(0) };
    let (outcome, after) = write_control(&compatibility, 0, cr0::PE, |_, _| ());
    assert_eq!((outcome, after.efer & efer::LMA, after.cr0), (Outcome::Done, 0, cr0::PE | cr0::ET));
    let contexts = |_: &Machine, s: &mut CpuState| s.cr4 |= cr4::PCIDE;
    assert_eq!(write_control(&compatibility, 0, cr0::PE, contexts).0, GP0);
    let enter = |_: &Machine, s: &mut CpuState| {
        s.efer = efer::LME;
        s.cr4 = cr4::PAE;
        s.cr3 = 0x1_0000;
    };
    let (outcome, after) = write_control(&protected(), 0, cr0::PE | cr0::PG, enter);
    assert_eq!((outcome, after.efer), (Outcome::Done, efer::LME | efer::LMA));
}

#[test]
fn pae_loads_its_page_directory_pointers() {
    let with_table = |entry: u64| {
        move |m: &Machine, s: &mut CpuState| {
            m.poke(0x5000, &[0; 32]);
            m.poke(0x5008, &entry.to_le_bytes());
            s.cr4 = cr4::PAE;
            s.cr3 = 0x5000;
        }
    };
    let on = cr0::PE | cr0::PG;
    assert_eq!(write_control(&protected(), 0, on, with_table(0x6000 | 1 << 1 | 1)).0, GP0, "reserved");
    let (outcome, after) = write_control(&protected(), 0, on, with_table(0x6000 | 1));
    assert_eq!((outcome, after.pdpte), (Outcome::Done, [0, 0x6001, 0, 0]));
}

#[test]
fn debug_registers() {
    let write = |n: u8| [0x0f, 0x23, 0xc0 | n << 3];
    let read = |n: u8| [0x0f, 0x21, 0xc0 | n << 3];
    // (register, value, DR7 and CR4 before, expected, value read back)
    let table = [
        (0, 0x1234, 0, 0, Outcome::Done, 0x1234),
        (6, 0xffff_ffff, 0, 0, Outcome::Done, 0xffff_eff0 | 0xf),
        (6, 0, 0, 0, Outcome::Done, dr6::FIXED),
        (7, 0xffff_ffff & !dr7::GD, 0, 0, Outcome::Done, 0xffff_07ff),
        (4, 0, 0, 0, Outcome::Done, dr6::FIXED),
        (5, 0, 0, 0, Outcome::Done, dr7::FIXED),
        (4, 0, 0, cr4::DE, UD, 0),
        (6, 1 << 32, 0, 0, GP0, 0),
        (7, 1 << 32, 0, 0, GP0, 0),
        (1, 0, dr7::GD, 0, Outcome::Fault(vector::DB, 0), 0),
    ];
    for (n, value, dr7_before, cr4_bits, expected, back) in table {
        let prepare = |_: &Machine, s: &mut CpuState| {
            s.gpr[reg::RAX] = value;
            s.dr7 |= dr7_before;
            s.cr4 |= cr4_bits;
        };
        let (outcome, after, _) = step(&long(0), &write(n), prepare);
        assert_eq!(outcome, expected, "DR{n} = {value:#x}");
        if outcome == Outcome::Done {
            let (_, read_back, _) = step(&long(0), &read(n), |_, s| {
                (s.dr, s.dr6, s.dr7) = (after.dr, after.dr6, after.dr7);
            });
            assert_eq!(read_back.gpr[reg::RAX], back, "DR{n} after {value:#x}");
        }
        if dr7_before & dr7::GD != 0 {
            assert_ne!(after.dr6 & dr6::BD, 0);
            assert_eq!(after.dr7 & dr7::GD, 0, "the handler may use the registers");
        }
    }
}

#[test]
fn model_specific_registers() {
    use msr_index::*;
    let not_canonical = 0x8000_0000_0000;
    // (index, value, accepted and read back as)
    let table = [
        (SYSENTER_CS, 0x1_0000_0008, Some(8)),
        (SYSENTER_ESP, 0xffff_8000_0000_0000, Some(0xffff_8000_0000_0000)),
        (SYSENTER_EIP, not_canonical, None),
        (LSTAR, not_canonical, None),
        (LSTAR, 0x7fff_ffff_f000, Some(0x7fff_ffff_f000)),
        (CSTAR, not_canonical, None),
        (FS_BASE, not_canonical, None),
        (GS_BASE, 0x1234, Some(0x1234)),
        (KERNEL_GS_BASE, not_canonical, None),
        (STAR, u64::MAX, Some(u64::MAX)),
        (SFMASK, 1 << 32, None),
        (SFMASK, 0x4700, Some(0x4700)),
        (TSC_AUX, 1 << 32, None),
        (TSC_AUX, 7, Some(7)),
        (EFER, efer::LME | efer::NXE | efer::SCE, Some(efer::LME | efer::LMA | efer::NXE | efer::SCE)),
        (EFER, efer::NXE, None),
        (EFER, efer::LME | 1 << 1, None),
        (PAT, 0x0007_0406_0007_0405, Some(0x0007_0406_0007_0405)),
        (PAT, 2, None),
        (PAT, 8, None),
        (MTRR_DEF_TYPE, 0xc06, Some(0xc06)),
        (MTRR_DEF_TYPE, 0xc07, None),
        (MTRR_DEF_TYPE, 0x1c06, None),
        (MTRR_PHYS_BASE0, 0x8000_0006, Some(0x8000_0006)),
        (MTRR_PHYS_BASE0, 1 << 40, None),
        (MTRR_PHYS_BASE0 + 1, 0xff_8000_0800, Some(0xff_8000_0800)),
        (MTRR_FIX64K, 0x0606_0606_0606_0606, Some(0x0606_0606_0606_0606)),
        (MTRR_FIX4K_C0000, 2, None),
        (MCG_CAP, 0, None),
        (MTRR_CAP, 0, None),
        (ARCH_CAPABILITIES, 0, None),
        (SPEC_CTRL, 0x403, Some(0x403)),
        (SPEC_CTRL, 4, None),
        (PRED_CMD, 2, None),
        (0x1234_5678, 0, None),
    ];
    for (index, value, expected) in table {
        let set = |_: &Machine, s: &mut CpuState| {
            s.gpr[reg::RCX] = index.into();
            s.gpr[reg::RAX] = value & 0xffff_ffff | 0xdead << 32;
            s.gpr[reg::RDX] = value >> 32 | 0xdead << 32;
        };
        let (outcome, after, _) = step(&long(0), &[0x0f, 0x30], set);
        let Some(back) = expected else {
            assert_eq!(outcome, GP0, "WRMSR {index:#x} = {value:#x}");
            continue;
        };
        assert_eq!(outcome, Outcome::Done, "WRMSR {index:#x} = {value:#x}");
        let (_, read, _) = step(&long(0), &[0x0f, 0x32], |_, s| {
            s.msrs = after.msrs.clone();
            s.segments = after.segments;
            s.efer = after.efer;
            s.gpr[reg::RCX] = index.into();
        });
        let got = read.gpr[reg::RAX] | read.gpr[reg::RDX] << 32;
        assert_eq!(got, back, "RDMSR {index:#x} after {value:#x}");
    }
}

#[test]
fn time_stamp_counter_and_its_adjustment() {
    let write = |index: u32, value: u64| {
        let set = |_: &Machine, s: &mut CpuState| {
            s.gpr[reg::RCX] = index.into();
            s.gpr[reg::RAX] = value & 0xffff_ffff;
            s.gpr[reg::RDX] = value >> 32;
            s.tsc_offset = 1_000_000;
        };
        step(&long(0), &[0x0f, 0x30], set).1
    };
    // Virtual time stands at zero, so the counter is the offset.
    let s = write(msr_index::TSC, 5_000_000);
    assert_eq!((s.tsc_offset, s.msrs.tsc_adjust), (5_000_000, 4_000_000));
    let s = write(msr_index::TSC_ADJUST, 10);
    assert_eq!((s.tsc_offset, s.msrs.tsc_adjust), (1_000_010, 10));
    let disabled = |_: &Machine, s: &mut CpuState| s.cr4 |= cr4::TSD;
    assert_eq!(step(&long(3), &[0x0f, 0x31], disabled).0, GP0);
    assert_eq!(step(&long(0), &[0x0f, 0x31], disabled).0, Outcome::Done);
}

fn with_calls(s: &mut CpuState) {
    s.efer |= efer::SCE;
    let user = u64::from(gdt::code64(3) | 3) - 16;
    s.msrs.star = u64::from(gdt::code64(0)) << 32 | user << 48;
    s.msrs.lstar = TARGET;
    s.msrs.sfmask = rflags::IF | rflags::DF;
    s.msrs.sysenter_cs = u64::from(gdt::code64(0));
    s.msrs.sysenter_eip = TARGET;
    s.msrs.sysenter_esp = STACK - 0x100;
}

#[test]
fn system_calls() {
    let flags = rflags::FIXED | rflags::IF | rflags::DF | rflags::CF;
    let call = |_: &Machine, s: &mut CpuState| {
        with_calls(s);
        s.rflags = flags;
    };
    let (outcome, s, _) = step(&long(3), &[0x0f, 0x05], call);
    assert_eq!((outcome, s.cpl(), s.rip), (Outcome::Done, 0, TARGET));
    assert_eq!((s.gpr[reg::RCX], s.gpr[reg::R11]), (CODE + 2, flags));
    assert_eq!(s.rflags, rflags::FIXED | rflags::CF);
    assert_eq!((s.segments[1].selector, s.segments[2].selector), (gdt::code64(0), gdt::code64(0) + 8));
    assert_eq!((s.segments[1].access, s.segments[2].access), (0xa09b, 0xc093));

    let back = |rip: u64| {
        move |_: &Machine, s: &mut CpuState| {
            with_calls(s);
            s.gpr[reg::RCX] = rip;
            s.gpr[reg::R11] = rflags::IF | rflags::ZF | rflags::RF | rflags::VM;
        }
    };
    let (outcome, s, _) = step(&long(0), &[0x48, 0x0f, 0x07], back(TARGET));
    assert_eq!((outcome, s.cpl(), s.rip), (Outcome::Done, 3, TARGET));
    assert_eq!(s.rflags, rflags::FIXED | rflags::IF | rflags::ZF);
    assert_eq!(s.segments[1].selector, gdt::code64(3) | 3);
    let sysret = [0x48, 0x0f, 0x07];
    assert_eq!(step(&long(0), &sysret, back(1 << 47)).0, GP0, "not canonical");
    assert_eq!(step(&long(3), &sysret, back(TARGET)).0, GP0);
    let compatibility = Env { mode: Mode::Compatibility32, ..long(0) };
    assert_eq!(step(&compatibility, &[0x0f, 0x07], back(TARGET)).0, UD);
    assert_eq!(step(&compatibility, &[0x0f, 0x05], call).0, UD);
    assert_eq!(step(&long(3), &[0x0f, 0x05], |_, _| ()).0, UD, "EFER.SCE clear");
}

#[test]
fn fast_system_calls_and_bases() {
    let call = |_: &Machine, s: &mut CpuState| {
        with_calls(s);
        s.rflags |= rflags::IF;
    };
    let (outcome, s, _) = step(&long(3), &[0x0f, 0x34], call);
    assert_eq!((outcome, s.cpl(), s.rip, s.gpr[reg::RSP]), (Outcome::Done, 0, TARGET, STACK - 0x100));
    assert_eq!(s.rflags & rflags::IF, 0);
    assert_eq!(step(&long(3), &[0x0f, 0x34], |_, _| ()).0, GP0, "SYSENTER_CS is null");
    let exit = |_: &Machine, s: &mut CpuState| {
        with_calls(s);
        s.gpr[reg::RDX] = TARGET;
        s.gpr[reg::RCX] = 0x5000;
    };
    let (outcome, s, _) = step(&long(0), &[0x48, 0x0f, 0x35], exit);
    assert_eq!((outcome, s.cpl(), s.rip, s.gpr[reg::RSP]), (Outcome::Done, 3, TARGET, 0x5000));
    assert_eq!(s.segments[1].selector, (gdt::code64(0) + 32) | 3);
    assert_eq!(step(&long(3), &[0x0f, 0x35], exit).0, GP0);

    let bases = |_: &Machine, s: &mut CpuState| {
        s.msrs.kernel_gs_base = 0x1111;
        s.segments[5].base = 0x2222;
        s.cr4 |= cr4::FSGSBASE;
        s.gpr[reg::RAX] = 0x3333;
    };
    let (_, s, _) = step(&long(0), &[0x0f, 0x01, 0xf8], bases);
    assert_eq!((s.msrs.kernel_gs_base, s.segments[5].base), (0x2222, 0x1111));
    assert_eq!(step(&long(3), &[0x0f, 0x01, 0xf8], bases).0, GP0);
    assert_eq!(step(&protected(), &[0x0f, 0x01, 0xf8], bases).0, UD);
    let (_, s, _) = step(&long(3), &[0xf3, 0x48, 0x0f, 0xae, 0xc8], bases);
    assert_eq!(s.gpr[reg::RAX], 0x2222, "RDGSBASE");
    let (_, s, _) = step(&long(3), &[0xf3, 0x48, 0x0f, 0xae, 0xd0], bases);
    assert_eq!(s.segments[4].base, 0x3333, "WRFSBASE");
    assert_eq!(step(&long(3), &[0xf3, 0x48, 0x0f, 0xae, 0xd0], |_, _| ()).0, UD, "CR4.FSGSBASE clear");
}

/// Outside 64-bit code a general register's upper half is no part of the operand.
#[test]
fn moves_to_control_and_debug_registers_are_of_32_bits_outside_64_bit_code() {
    let compatibility = Env { mode: Mode::Compatibility32, ..long(0) };
    let upper = 0xffff_8000_0000_0000;
    let (outcome, after) = write_control(&compatibility, 3, upper | 0x1_0000, |_, _| ());
    assert_eq!((outcome, after.cr3), (Outcome::Done, 0x1_0000));
    let (outcome, after) = write_control(&compatibility, 2, upper | 5, |_, _| ());
    assert_eq!((outcome, after.cr2), (Outcome::Done, 5));
    let (outcome, after) = write_control(&compatibility, 4, upper | cr4::PAE, |_, _| ());
    assert_eq!((outcome, after.cr4), (Outcome::Done, cr4::PAE));
    for (n, value) in [(0u8, 0x1234), (6, dr6::FIXED), (7, dr7::FIXED)] {
        let code = [0x0f, 0x23, 0xc0 | n << 3];
        let (outcome, after, _) = step(&compatibility, &code, |_, s| s.gpr[reg::RAX] = upper | value);
        let got = match n {
            6 => after.dr6,
            7 => after.dr7,
            _ => after.dr[0],
        };
        assert_eq!((outcome, got), (Outcome::Done, value), "DR{n}");
    }
}
