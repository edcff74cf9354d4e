//! What x87 and MMX instructions leave behind besides results: last-instruction
//! pointers, environment images of every mode, pending exceptions, #NM, and
//! nothing at all when they fault.

mod machine;

use engine::Halt;
use machine::{CODE32, DATA, FREE, HANDLERS, Machine};
use x86_state::{CpuState, F80, cr0, vector};

const CODE: u64 = FREE;
const MEMORY: u64 = FREE + 0x1000;
const ONE: F80 = F80 { significand: 1 << 63, sign_exponent: 0x3fff };

/// Run `count` instructions of `code`.
fn run(m: &mut Machine, mut s: CpuState, code: &[u8], count: u64) -> (CpuState, Halt) {
    m.write(CODE, code);
    s.rip = CODE;
    m.run(&s, count)
}

/// The vector whose handler `code` ends in.
fn fault(m: &mut Machine, s: CpuState, code: &[u8]) -> Option<u64> {
    let (after, halt) = run(m, s, code, 100);
    assert!(matches!(halt, Halt::Idle), "{halt:?}");
    after.rip.checked_sub(HANDLERS + 1).filter(|v| *v < 256)
}

fn bytes(m: &Machine, at: u64, n: usize) -> Vec<u8> {
    let mut b = vec![0; n];
    m.memory.read_bytes(guest_memory::RamOffset(at), &mut b);
    b
}

fn full_stack(s: &mut CpuState) {
    s.fpu = x86_state::FpuState::init();
    s.fpu.ftw = 0xff;
    s.fpu.regs = [ONE; 8];
}

/// The stored last opcode is rebuilt from the decoded form: check it against
/// the bytes for every encoding an assembler would choose.
#[test]
fn last_opcode_is_that_of_the_bytes() {
    let mut m = Machine::new(0x20_0000, "x86-64-v3");
    let mut s = m.protected_mode();
    full_stack(&mut s);
    s.gpr = [MEMORY; 16];
    s.gpr[4] = FREE - 0x100;
    let mut checked = 0;
    for opcode in 0xd8..=0xdfu8 {
        for modrm in 0..=0xffu8 {
            let (mode, reg, rm) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
            let control = mode != 3 && matches!((opcode, reg), (0xd9, 4..=7) | (0xdd, 4 | 6 | 7))
                || matches!((opcode, modrm), (0xdb, 0xe0..=0xe4) | (0xdf, 0xe0));
            // SIB forms need one more byte: stack pointer, no index.
            let tail: &[u8] = match (mode, rm) {
                (3, _) => &[],
                (0, 5) => &[0, 0x10, 0x10, 0],
                (0, 4) => &[0x24],
                (0, _) => &[],
                (1, 4) => &[0x24, 8],
                (1, _) => &[8],
                (_, 4) => &[0x24, 0, 1, 0, 0],
                _ => &[0, 1, 0, 0],
            };
            let mut code = vec![opcode, modrm];
            code.extend(tail);
            let (after, _) = run(&mut m, s.clone(), &code, 1);
            let undefined = after.rip != CODE + code.len() as u64;
            if control || undefined || after.fpu.fip != CODE {
                continue;
            }
            let expected = u16::from(opcode & 7) << 8 | u16::from(modrm);
            assert_eq!(after.fpu.fop, expected, "{code:02x?}");
            assert_eq!(after.fpu.fcs, CODE32, "{code:02x?}");
            checked += 1;
        }
    }
    assert!(checked > 1_500, "{checked}");
}

#[test]
fn protected_images_name_selectors_and_offsets() {
    let mut m = Machine::new(0x20_0000, "x86-64-v3");
    let mut s = m.protected_mode();
    full_stack(&mut s);
    s.fpu.ftw = 0x7f;
    s.gpr[3] = MEMORY;
    s.gpr[7] = MEMORY + 0x100;
    // fadd dword [ebx+4]; fnstenv [edi]
    let code = [0xd8, 0x43, 0x04, 0xd9, 0x37];
    let (after, _) = run(&mut m, s.clone(), &code, 2);
    let image = bytes(&m, MEMORY + 0x100, 28);
    let field = |n: usize| u32::from_le_bytes(image[4 * n..4 * n + 4].try_into().unwrap());
    assert_eq!(field(0), 0xffff_037f);
    assert_eq!(field(1), 0xffff_0000);
    assert_eq!(field(2), 0xffff_c000, "register 7 is empty");
    assert_eq!(field(3) as u64, CODE);
    assert_eq!(field(4), u32::from(CODE32) | 0x043 << 16);
    assert_eq!(field(5) as u64, MEMORY + 4);
    assert_eq!(field(6), 0xffff_0000 | u32::from(DATA));
    assert_eq!(after.fpu.fcw, 0x37f);
    // The same with a 16-bit image.
    let code = [0xd8, 0x43, 0x04, 0x66, 0xd9, 0x37];
    run(&mut m, s, &code, 2);
    let image = bytes(&m, MEMORY + 0x100, 14);
    let field = |n: usize| u16::from_le_bytes([image[2 * n], image[2 * n + 1]]);
    let expected = [0x37f, 0, 0xc000, CODE as u16, CODE32, (MEMORY + 4) as u16, DATA];
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(field), expected);
}

#[test]
fn real_mode_images_hold_linear_addresses() {
    const DATA_SEGMENT: u16 = 0x2000;
    let mut m = Machine::new(0x20_0000, "x86-64-v3");
    let mut s = m.real_mode();
    full_stack(&mut s);
    s.segments[3] = x86_state::Segment::real_mode(DATA_SEGMENT, false);
    s.segments[1] = x86_state::Segment::real_mode(0x3000, true);
    (s.gpr[3], s.gpr[7]) = (0x1234, 0x100);
    s.rip = 0x10;
    // fadd dword [bx+4]: 16-bit addressing, ModRM 47.
    let check = |m: &mut Machine, store: &[u8], length: usize| {
        m.write(0x3_0010, &[&[0xd8, 0x47, 0x04], store].concat());
        m.run(&s, 2);
        bytes(m, 0x2_0100, length)
    };
    let (ip, dp) = (0x3_0010u32, 0x2_1238u32);
    let image = check(&mut m, &[0xd9, 0x35], 14);
    let field = |n: usize| u16::from_le_bytes([image[2 * n], image[2 * n + 1]]);
    assert_eq!(field(3), ip as u16);
    assert_eq!(field(4), (ip >> 16 << 12) as u16 | 0x047);
    assert_eq!(field(5), dp as u16);
    assert_eq!(field(6), (dp >> 16 << 12) as u16);
    let image = check(&mut m, &[0x66, 0xd9, 0x35], 28);
    let field = |n: usize| u32::from_le_bytes(image[4 * n..4 * n + 4].try_into().unwrap());
    assert_eq!(field(3), 0xffff_0000 | ip & 0xffff);
    assert_eq!(field(4), ip >> 16 << 12 | 0x047);
    assert_eq!(field(5), 0xffff_0000 | dp & 0xffff);
    assert_eq!(field(6), dp >> 16 << 12);
}

#[test]
fn save_and_restore_round_trip_in_every_size() {
    let mut m = Machine::new(0x20_0000, "x86-64-v3");
    let mut s = m.protected_mode();
    full_stack(&mut s);
    for (n, r) in s.fpu.regs.iter_mut().enumerate() {
        r.significand |= n as u64;
    }
    (s.fpu.fsw, s.fpu.fcw, s.fpu.ftw) = (0x3800 | 0x4100 | 0x20, 0xc7f, 0b1010_0110);
    s.gpr[7] = MEMORY;
    for prefix in [&[][..], &[0x66]] {
        // fnsave [edi]; frstor [edi]
        let code = [prefix, &[0xdd, 0x37], prefix, &[0xdd, 0x27]].concat();
        let (middle, _) = run(&mut m, s.clone(), &code, 1);
        assert_eq!((middle.fpu.fcw, middle.fpu.fsw, middle.fpu.ftw), (0x37f, 0, 0));
        let (after, _) = run(&mut m, s.clone(), &code, 2);
        assert_eq!(after.fpu, s.fpu);
    }
}

/// 1/0 with ZE unmasked, then the instruction under test.
fn after_pending(m: &mut Machine, ne: bool, then: &[u8]) -> Option<u64> {
    let mut s = m.protected_mode();
    s.cr0 = s.cr0 & !cr0::NE | if ne { cr0::NE } else { 0 };
    full_stack(&mut s);
    s.fpu.fcw = 0x37b;
    s.fpu.regs[1] = F80::default();
    s.gpr[7] = MEMORY;
    // fdiv st0, st1, and a HLT behind what follows.
    let code = [&[0xd8, 0xf1], then, &[0xf4]].concat();
    fault(m, s, &code)
}

#[test]
fn pending_exceptions_wait_for_the_next_waiting_instruction() {
    let mut m = Machine::new(0x20_0000, "x86-64-v3");
    let mf = Some(u64::from(vector::MF));
    let cases: [(&str, &[u8], Option<u64>); 12] = [
        ("fwait", &[0x9b], mf),
        ("fld1", &[0xd9, 0xe8], mf),
        ("fldcw", &[0xd9, 0x2f], mf),
        ("fxch", &[0xd9, 0xc9], mf),
        ("movd mm0, eax", &[0x0f, 0x6e, 0xc0], mf),
        ("emms", &[0x0f, 0x77], mf),
        ("fnop", &[0xd9, 0xd0], mf),
        ("fnstsw ax", &[0xdf, 0xe0], None),
        ("fnstcw", &[0xd9, 0x3f], None),
        ("fnclex, fld1", &[0xdb, 0xe2, 0xd9, 0xe8], None),
        ("fninit, fld1", &[0xdb, 0xe3, 0xd9, 0xe8], None),
        ("fnstenv, fld1", &[0xd9, 0x37, 0xd9, 0xe8], None),
    ];
    for (name, code, expected) in cases {
        assert_eq!(after_pending(&mut m, true, code), expected, "{name}");
        assert_eq!(after_pending(&mut m, false, code), None, "{name} with NE clear");
    }
}

#[test]
fn unavailable_by_control_register() {
    let mut m = Machine::new(0x20_0000, "x86-64-v3");
    let (nm, ud) = (Some(u64::from(vector::NM)), Some(u64::from(vector::UD)));
    let (fwait, fld1, fnstsw, movq): (&[u8], &[u8], &[u8], &[u8]) =
        (&[0x9b], &[0xd9, 0xe8], &[0xdf, 0xe0], &[0x0f, 0x6f, 0xc1]);
    let cases = [
        (cr0::TS, fwait, None),
        (cr0::MP, fwait, None),
        (cr0::TS | cr0::MP, fwait, nm),
        (cr0::EM, fwait, None),
        (cr0::TS, fld1, nm),
        (cr0::EM, fld1, nm),
        (cr0::MP, fld1, None),
        (cr0::TS, fnstsw, nm),
        (cr0::EM, fnstsw, nm),
        (cr0::TS, movq, nm),
        (cr0::EM, movq, ud),
        (cr0::EM | cr0::TS, movq, ud),
    ];
    for (bits, code, expected) in cases {
        let mut s = m.protected_mode();
        s.cr0 |= bits;
        s.fpu = x86_state::FpuState::init();
        let code = [code, &[0xf4]].concat();
        assert_eq!(fault(&mut m, s, &code), expected, "CR0 {bits:#x} {code:02x?}");
    }
}

/// A store that faults half-way must leave memory, stack and flags as they were.
#[test]
fn faulting_stores_change_nothing() {
    let mut m = Machine::new(0x60_0000, "x86-64-v3");
    let mut s = m.long_mode();
    // 2 MiB page at 4 MiB not present; operands start just below.
    const HOLE: u64 = 0x40_0000;
    m.write(0x3000 + 8 * 2, &0u64.to_le_bytes());
    full_stack(&mut s);
    s.fpu.regs[0] = F80 { significand: 0xffff_ffff_ffff_ffff, sign_exponent: 0x3fff };
    s.gpr[7] = HOLE - 8;
    let cases: [(&str, &[u8]); 8] = [
        ("fstp m80", &[0xdb, 0x3f]),
        ("fbstp", &[0xdf, 0x37]),
        ("fnsave", &[0xdd, 0x37]),
        ("fnstenv", &[0xd9, 0x37]),
        ("fistp m64 at +4", &[0xdf, 0x7f, 0x04]),
        ("fst m32 at +6", &[0xd9, 0x57, 0x06]),
        ("fld m80", &[0xdb, 0x2f]),
        ("movq m64, mm1 at +4", &[0x0f, 0x7f, 0x4f, 0x04]),
    ];
    for (name, code) in cases {
        let before = bytes(&m, HOLE - 16, 16);
        let mut with_halt = code.to_vec();
        with_halt.push(0xf4);
        let (after, halt) = run(&mut m, s.clone(), &with_halt, 100);
        assert!(matches!(halt, Halt::Idle), "{name}: {halt:?}");
        assert_eq!(after.rip, HANDLERS + u64::from(vector::PF) + 1, "{name}");
        assert_eq!(after.fpu, s.fpu, "{name}");
        assert_eq!(after.cr2, HOLE, "{name}");
        assert_eq!(bytes(&m, HOLE - 16, 16), before, "{name}");
    }
}
