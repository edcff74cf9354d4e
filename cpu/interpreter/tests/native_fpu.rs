//! Random x87 and MMX instructions on random register stacks, on the host's
//! processor and on the interpreter: registers, tags, status, memory and flags
//! must agree.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code, reason = "executes generated code on the host")]

mod host;
mod machine;

use engine::Halt;
use host::{Host, Random};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use machine::Machine;
use x86_state::{CpuState, F80, FpuState, cr4, rflags};

/// Memory operands live here, at the same address on the host and in the guest.
const DATA: u64 = 0x2000_0000;
const DATA_LEN: usize = 0x1000;
const CENTRE: u64 = DATA + 0x800;
const CODE: u64 = 0x2001_0000;

/// What the generated function loads and stores.
#[repr(C, align(64))]
struct Context {
    before: [u8; 512],
    after: [u8; 512],
    rax: u64,
    rdx: u64,
    rbx: u64,
    rdi: u64,
    rflags: u64,
    default_mxcsr: u32,
}

struct Native(Host);

impl Native {
    fn new() -> Self {
        Native(Host::new(DATA, DATA_LEN, CODE))
    }

    fn data(&mut self) -> &mut [u8] {
        self.0.data()
    }

    /// Execute `code` between loading and storing the x87, vector and some
    /// general registers.
    fn run(&mut self, code: &[u8], c: &mut Context) {
        use iced_x86::code_asm::*;
        let at = |field: usize| (rbp + field) as AsmMemoryOperand;
        let offset = |p: *const u64| p as usize - (c as *const Context as usize);
        let (o_rax, o_rdx, o_rbx) = (offset(&c.rax), offset(&c.rdx), offset(&c.rbx));
        let (o_rdi, o_flags) = (offset(&c.rdi), offset(&c.rflags));
        let mut a = CodeAssembler::new(64).unwrap();
        a.push(rbx).unwrap();
        a.push(rbp).unwrap();
        a.mov(rbp, rdi).unwrap();
        a.fninit().unwrap();
        a.fxrstor64(at(0)).unwrap();
        a.push(qword_ptr(at(o_flags))).unwrap();
        a.popfq().unwrap();
        a.mov(rax, qword_ptr(at(o_rax))).unwrap();
        a.mov(rdx, qword_ptr(at(o_rdx))).unwrap();
        a.mov(rbx, qword_ptr(at(o_rbx))).unwrap();
        a.mov(rdi, qword_ptr(at(o_rdi))).unwrap();
        a.db(code).unwrap();
        a.mov(qword_ptr(at(o_rax)), rax).unwrap();
        a.mov(qword_ptr(at(o_rdx)), rdx).unwrap();
        a.pushfq().unwrap();
        a.pop(qword_ptr(at(o_flags))).unwrap();
        a.fxsave64(at(512)).unwrap();
        a.fninit().unwrap();
        a.ldmxcsr(dword_ptr(at(o_flags + 8))).unwrap();
        a.pop(rbp).unwrap();
        a.pop(rbx).unwrap();
        a.ret().unwrap();
        let bytes = a.assemble(CODE).unwrap();
        // SAFETY: it saves what the convention keeps, and touches the context and the data.
        unsafe { self.0.call(&bytes, c) };
    }
}

impl Random {
    /// Every class of encoding, with moderate magnitudes most likely.
    fn extended(&mut self) -> F80 {
        let significand = self.next();
        let sign = (self.next() >> 48) as u16 & 0x8000;
        let near = 0x3fff - 30 + self.below(100) as u16;
        let normal = significand | 1 << 63;
        let (significand, exponent) = match self.below(12) {
            0 => (0, 0),
            1 => (1 << 63, 0x7fff),
            2 => (normal, 0x7fff),
            3 => (normal | 1 << 62, 0x7fff),
            4 => (significand >> self.below(64), 0),
            5 => (significand, near),
            6 => (normal, self.below(0x7fff) as u16),
            7 => (1 << 63 | significand << self.below(64), near),
            _ => (normal, near),
        };
        F80 { significand, sign_exponent: sign | exponent }
    }

    fn fpu(&mut self) -> FpuState {
        let masks = if self.below(3) == 0 { self.below(64) as u16 } else { 0x3f };
        let flags = (self.below(64) as u16) & masks;
        let top = self.below(8) as u16;
        let codes = self.next() as u16 & 0x4700;
        let ftw = match self.below(4) {
            0 => self.next() as u8,
            1 => !(1 << ((top + 7) & 7)),
            2 => self.next() as u8 | self.next() as u8,
            _ => !(1 << ((top + 7) & 7) | 1 << ((top + 6) & 7)),
        };
        let mut fpu = FpuState::init();
        fpu.fcw = masks | 0x40 | (self.below(16) as u16) << 8;
        if fpu.fcw >> 8 & 3 == 1 {
            fpu.fcw |= 0x300;
        }
        fpu.fsw = flags | top << 11 | codes;
        fpu.ftw = ftw;
        fpu.mxcsr = 0x1f80 | (self.below(4) as u32) << 13;
        fpu.regs = std::array::from_fn(|_| self.extended());
        for r in &mut fpu.ymm {
            r[0] = self.next();
            r[1] = if self.below(2) == 0 { self.next() } else { 0x41d0_0000_0040_0000 };
        }
        fpu
    }
}

/// The image FXSAVE64 makes.
fn to_image(f: &FpuState) -> [u8; 512] {
    let mut b = [0; 512];
    b[0..2].copy_from_slice(&f.fcw.to_le_bytes());
    b[2..4].copy_from_slice(&f.fsw.to_le_bytes());
    b[4] = f.ftw;
    b[24..28].copy_from_slice(&f.mxcsr.to_le_bytes());
    for n in 0..8 {
        let v = f.regs[(usize::from(f.top()) + n) & 7];
        b[32 + 16 * n..][..8].copy_from_slice(&v.significand.to_le_bytes());
        b[40 + 16 * n..][..2].copy_from_slice(&v.sign_exponent.to_le_bytes());
    }
    for (n, y) in f.ymm.iter().enumerate() {
        b[160 + 16 * n..][..8].copy_from_slice(&y[0].to_le_bytes());
        b[168 + 16 * n..][..8].copy_from_slice(&y[1].to_le_bytes());
    }
    b
}

fn from_image(b: &[u8; 512]) -> FpuState {
    let word = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    let long = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap());
    let mut f = FpuState::init();
    (f.fcw, f.fsw, f.ftw, f.mxcsr) = (word(0), word(2), b[4], long(24) as u32);
    for n in 0..8 {
        f.regs[(usize::from(f.top()) + n) & 7] =
            F80 { significand: long(32 + 16 * n), sign_exponent: word(40 + 16 * n) };
    }
    for (n, y) in f.ymm.iter_mut().enumerate() {
        (y[0], y[1]) = (long(160 + 16 * n), long(168 + 16 * n));
    }
    f
}

/// A valid instruction whose general registers are RAX and RDX at most and whose
/// memory operand is near RBX.
fn usable(code: &[u8]) -> Option<Instruction> {
    let mut d = Decoder::with_ip(64, code, CODE, DecoderOptions::NONE);
    let i = d.decode();
    let registers_fit = (0..i.op_count()).all(|n| {
        let r = i.op_register(n);
        i.op_kind(n) != OpKind::Register
            || !r.is_gpr()
            || matches!(r.full_register(), Register::RAX | Register::RDX)
    });
    let memory_fits = i.memory_base() == Register::None || i.memory_base() == Register::RBX;
    // 16-byte operands must be aligned.
    let aligned = i.memory_size().size() < 16 || i.memory_displacement64() % 16 == 0;
    (aligned && !i.is_invalid() && i.len() == code.len() && registers_fit && memory_fits).then_some(i)
}

fn modrm(r: &mut Random, code: &mut Vec<u8>) {
    let any = r.next() as u8;
    match r.below(3) {
        0 => code.push(any & 0x38 | 3),
        1 => code.extend([any & 0x38 | 0x43, r.next() as u8 & 0x78]),
        _ => code.push(any | 0xc0),
    }
}

fn x87_instruction(r: &mut Random) -> Vec<u8> {
    let mut code = Vec::new();
    if r.below(8) == 0 {
        code.push(0x66);
    }
    code.push(0xd8 + r.below(8) as u8);
    modrm(r, &mut code);
    code
}

fn mmx_instruction(r: &mut Random) -> Vec<u8> {
    let mut code = Vec::new();
    match r.below(12) {
        0 => code.push(0xf3),
        1 => code.push(0xf2),
        2 => code.push(0x66),
        3 => code.push(0x48),
        _ => {}
    }
    match r.below(6) {
        0 => code.extend([0x0f, 0x38, r.below(0x20) as u8]),
        1 => code.extend([0x0f, 0x3a, 0x0f]),
        _ => code.extend([0x0f, r.next() as u8]),
    }
    let opcode = code[code.len() - 1];
    modrm(r, &mut code);
    let three = code.contains(&0x3a);
    if three || matches!(opcode, 0x70..=0x73 | 0xc4 | 0xc5) {
        code.push(r.next() as u8 & 0x4f);
    }
    code
}

/// Instructions whose results hardware does not round correctly.
fn transcendental(c: Code) -> bool {
    matches!(
        c,
        Code::F2xm1
            | Code::Fyl2x
            | Code::Fptan
            | Code::Fpatan
            | Code::Fyl2xp1
            | Code::Fsincos
            | Code::Fsin
            | Code::Fcos
    )
}

fn close(a: &FpuState, b: &FpuState) -> bool {
    let near = a.regs.iter().zip(&b.regs).all(|(x, y)| {
        x.sign_exponent.abs_diff(y.sign_exponent) <= 1
            && x.significand.wrapping_sub(y.significand).wrapping_add(1) <= 2
            || x.significand == 1 << 63 && y.significand == u64::MAX
            || y.significand == 1 << 63 && x.significand == u64::MAX
    });
    near && (a.fsw ^ b.fsw) & !0x200 == 0 && a.ftw == b.ftw
}

/// Outside the range for which the manual defines the function.
fn undefined(i: &Instruction, f: &FpuState) -> bool {
    let exponent = f.regs[usize::from(f.top())].sign_exponent & 0x7fff;
    match i.code() {
        Code::F2xm1 => exponent >= 0x3fff,
        Code::Fyl2xp1 => exponent >= 0x3ffd,
        _ => false,
    }
}

/// Instructions that clear C1 by Intel's manual and leave it alone on others'
/// processors.
fn c1_left_alone(c: Code) -> bool {
    matches!(c, Code::Fcomi_st0_sti | Code::Fcomip_st0_sti | Code::Fucomi_st0_sti | Code::Fucomip_st0_sti)
}

fn differences(host: &FpuState, ours: &FpuState) -> String {
    let mut text = format!(
        "host fcw {:x} fsw {:x} ftw {:x} mxcsr {:x}\nours fcw {:x} fsw {:x} ftw {:x} mxcsr {:x}\n",
        host.fcw, host.fsw, host.ftw, host.mxcsr, ours.fcw, ours.fsw, ours.ftw, ours.mxcsr
    );
    for n in (0..8).filter(|&n| host.regs[n] != ours.regs[n]) {
        text += &format!("R{n} host {:x?} ours {:x?}\n", host.regs[n], ours.regs[n]);
    }
    for n in (0..16).filter(|&n| host.ymm[n] != ours.ymm[n]) {
        text += &format!("XMM{n} host {:x?} ours {:x?}\n", host.ymm[n], ours.ymm[n]);
    }
    text
}

fn compare(
    native: &mut Native,
    cases: usize,
    seed: u64,
    generate: fn(&mut Random) -> Vec<u8>,
    wanted: fn(&Instruction) -> bool,
) {
    let mut guest = Machine::new(0x2002_0000, "x86-64-v3");
    let mut state: CpuState = guest.long_mode();
    state.cr4 |= cr4::OSXMMEXCPT;
    let mut r = Random(seed);
    let (mut done, mut kinds) = (0, std::collections::BTreeSet::new());
    while done < cases {
        let code = generate(&mut r);
        let Some(i) = usable(&code).filter(wanted) else { continue };
        let fpu = r.fpu();
        if undefined(&i, &fpu) {
            continue;
        }
        done += 1;
        kinds.insert(i.code() as u16);
        let gpr = [r.next(), r.next(), CENTRE, CENTRE + 0x80 + r.below(16)];
        let flags = 2 | r.next() & rflags::STATUS;
        for chunk in native.data().chunks_exact_mut(16) {
            let v = r.extended();
            chunk[..8].copy_from_slice(&v.significand.to_le_bytes());
            chunk[8..10].copy_from_slice(&v.sign_exponent.to_le_bytes());
            if r.below(3) == 0 {
                let double = (f64::from_bits(r.next() >> 2 | 0x3000 << 48)).to_bits();
                chunk[..8].copy_from_slice(&double.to_le_bytes());
            }
        }
        guest.write(DATA, native.data());
        guest.write(CODE, &code);
        (state.gpr[0], state.gpr[2], state.gpr[3], state.gpr[7]) = (gpr[0], gpr[1], gpr[2], gpr[3]);
        state.rip = CODE;
        state.rflags = flags;
        state.fpu = fpu.clone();
        let mut c = Context {
            before: to_image(&fpu),
            after: [0; 512],
            rax: gpr[0],
            rdx: gpr[1],
            rbx: gpr[2],
            rdi: gpr[3],
            rflags: flags,
            default_mxcsr: 0x1f80,
        };
        let (after, halt) = guest.run(&state, 1);
        native.run(&code, &mut c);
        let context = || {
            format!(
                "{i} {code:02x?} gpr {gpr:x?}\nfcw {:x} fsw {:x} ftw {:x}\n{:x?}",
                fpu.fcw, fpu.fsw, fpu.ftw, fpu.regs
            )
        };
        assert!(matches!(halt, Halt::Limit), "{halt:?}: {}", context());
        assert_eq!(after.rip, CODE + code.len() as u64, "faulted: {}", context());
        let mut ours = after.fpu.clone();
        // The pointers have a test of their own: processors differ in them.
        (ours.fop, ours.fip, ours.fdp, ours.fcs, ours.fds) = (0, 0, 0, 0, 0);
        let mut host = from_image(&c.after);
        if c1_left_alone(i.code()) {
            host.fsw &= !0x200;
        }
        let equal = ours == host || transcendental(i.code()) && close(&ours, &host);
        assert!(equal, "{}\n{}", context(), differences(&host, &ours));
        assert_eq!((after.gpr[0], after.gpr[2]), (c.rax, c.rdx), "host right: {}", context());
        assert_eq!(after.rflags & rflags::STATUS, c.rflags & rflags::STATUS, "host right: {}", context());
        let mut memory = vec![0; DATA_LEN];
        guest.memory.read_bytes(guest_memory::RamOffset(DATA), &mut memory);
        let differs = memory.iter().zip(native.data()).position(|(a, b)| a != b);
        assert!(
            differs.is_none(),
            "{}\nmemory from {differs:?}\nhost {:02x?}\nours {:02x?}",
            context(),
            &native.data()[0x800..0x900],
            &memory[0x800..0x900]
        );
    }
    assert!(kinds.len() > 60, "only {} kinds of instruction", kinds.len());
}

#[test]
fn x87_and_mmx_do_what_the_host_does() {
    let mut native = Native::new();
    compare(&mut native, 60_000, 0x9e37_79b9_7f4a_7c15, x87_instruction, |i| i.mnemonic() != Mnemonic::Wait);
    // MMX handlers are those with an MMX register, and EMMS.
    compare(&mut native, 40_000, 0x1234_5678_9abc_def1, mmx_instruction, |i| {
        let mm = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm());
        let now = format!("{:?}", i.code()).starts_with("D3NOW");
        (mm || i.code() == Code::Emms) && !now
    });
}
