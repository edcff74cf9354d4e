//! Every SSE to AVX2, FMA, F16C, AES and SHA encoding with random operands on the
//! host's processor and on the interpreter: vectors, general registers, flags,
//! MXCSR and memory must agree.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code, reason = "executes generated code on the host")]

mod host;
mod machine;

use std::collections::BTreeSet;

use engine::Halt;
use host::{Host, Random};
use iced_x86::code_asm::*;
use iced_x86::{Code, CpuidFeature, Decoder, Instruction, Mnemonic, OpKind, Register};
use machine::Machine;
use x86_state::rflags::STATUS;

/// Memory operands live here, at the same address on the host and in the guest.
const DATA: u64 = 0x2100_0000;
const DATA_LEN: usize = 0x1000;
/// Memory operands address the middle, so that displacements stay inside.
const CENTRE: u64 = DATA + 0x800;
const CODE: u64 = 0x2101_0000;
/// Random operands for each encoding found.
const TRIALS: usize = 60;

/// What an instruction may read or change.
#[derive(Clone, Debug, PartialEq)]
#[repr(C)]
struct Registers {
    gpr: [u64; 16],
    rflags: u64,
    mxcsr: u64,
    ymm: [[u64; 4]; 16],
}

/// The host's processor: code that loads all registers, executes one
/// instruction, and stores them.
struct Native {
    host: Host,
    before: Vec<u8>,
    after: Vec<u8>,
    registers: Box<Registers>,
}

const ORDER: [(AsmRegister64, usize); 14] = [
    (rax, 0),
    (rcx, 1),
    (rdx, 2),
    (rbx, 3),
    (rbp, 5),
    (rsi, 6),
    (r8, 8),
    (r9, 9),
    (r10, 10),
    (r11, 11),
    (r12, 12),
    (r13, 13),
    (r14, 14),
    (r15, 15),
];
const VECTORS: [AsmRegisterYmm; 16] =
    [ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15];
const RDI: i32 = 7 * 8;
const RFLAGS: i32 = 16 * 8;
const MXCSR: i32 = 17 * 8;
const YMM: i32 = 18 * 8;

impl Native {
    fn new() -> Self {
        let host = Host::new(DATA, DATA_LEN, CODE);
        let registers = Box::new(Registers { gpr: [0; 16], rflags: 2, mxcsr: 0x1f80, ymm: [[0; 4]; 16] });
        let base = &raw const *registers as u64;
        let before = assemble(|a| {
            for r in [rbx, rbp, r12, r13, r14, r15] {
                a.push(r)?;
            }
            a.mov(rdi, base)?;
            for (n, y) in VECTORS.into_iter().enumerate() {
                a.vmovdqu(y, ymmword_ptr(rdi + YMM + 32 * n as i32))?;
            }
            a.ldmxcsr(dword_ptr(rdi + MXCSR))?;
            a.push(qword_ptr(rdi + RFLAGS))?;
            a.popfq()?;
            for (r, n) in ORDER {
                a.mov(r, qword_ptr(rdi + 8 * n as i32))?;
            }
            a.mov(rdi, qword_ptr(rdi + RDI))
        });
        let after = assemble(|a| {
            a.push(rdi)?;
            a.mov(rdi, base)?;
            for (r, n) in ORDER {
                a.mov(qword_ptr(rdi + 8 * n as i32), r)?;
            }
            a.pop(rax)?;
            a.mov(qword_ptr(rdi + RDI), rax)?;
            a.pushfq()?;
            a.pop(qword_ptr(rdi + RFLAGS))?;
            a.stmxcsr(dword_ptr(rdi + MXCSR))?;
            for (n, y) in VECTORS.into_iter().enumerate() {
                a.vmovdqu(ymmword_ptr(rdi + YMM + 32 * n as i32), y)?;
            }
            a.vzeroupper()?;
            a.fninit()?;
            a.mov(rax, 0x1f80_u64)?;
            a.push(rax)?;
            a.ldmxcsr(dword_ptr(rsp))?;
            a.pop(rax)?;
            for r in [r15, r14, r13, r12, rbp, rbx] {
                a.pop(r)?;
            }
            a.ret()
        });
        Native { host, before, after, registers }
    }

    fn data(&mut self) -> &mut [u8] {
        self.host.data()
    }

    /// Execute one instruction from and to `registers`.
    fn run(&mut self, code: &[u8]) {
        let bytes: Vec<u8> = [&self.before, code, &self.after].concat();
        // SAFETY: it saves what the convention keeps, and touches `registers` and the data.
        unsafe { self.host.call(&bytes, &raw mut *self.registers) };
    }
}

fn assemble(f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    f(&mut a).unwrap();
    a.assemble(CODE).unwrap()
}

impl Random {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
    /// A quadword: random, two single or one double of interest, small bytes.
    fn element(&mut self) -> u64 {
        const SINGLES: [u32; 16] = [
            0,
            0x8000_0000,
            0x3f80_0000,
            0xbfc0_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0001,
            0xffa0_0000,
            1,
            0x807f_ffff,
            0x0080_0000,
            0x7f7f_ffff,
            0x4f00_0000,
            0xcf00_0001,
            0x4120_0000,
            0x3eaa_aaab,
        ];
        const DOUBLES: [u64; 16] = [
            0,
            1 << 63,
            0x3ff0_0000_0000_0000,
            0xbff8_0000_0000_0000,
            0x7ff0_0000_0000_0000,
            0xfff0_0000_0000_0000,
            0x7ff8_0000_0000_0001,
            0xfff4_0000_0000_0000,
            1,
            0x800f_ffff_ffff_ffff,
            0x0010_0000_0000_0000,
            0x7fef_ffff_ffff_ffff,
            0x41e0_0000_0000_0000,
            0xc1e0_0000_0020_0000,
            0x4024_0000_0000_0000,
            0x3fd5_5555_5555_5555,
        ];
        match self.below(6) {
            0 | 1 => self.next(),
            2 => u64::from(self.pick(&SINGLES)) << 32 | u64::from(self.pick(&SINGLES)),
            3 => self.pick(&DOUBLES),
            // Ordinary numbers of either precision.
            4 => (self.below(1000) as f64 / 7.0).to_bits(),
            _ => {
                u64::from((self.below(1000) as f32).to_bits()) << 32
                    | u64::from((self.below(99) as f32 / 3.0).to_bits())
            }
        }
    }
}

/// One encoding: legacy (0), VEX.128 (1), VEX.256 (2); W; map 1-3; mandatory prefix.
#[derive(Clone, Copy, Debug)]
struct Encoding {
    form: u8,
    wide: bool,
    map: u8,
    prefix: u8,
    opcode: u8,
}

impl Encoding {
    fn all() -> impl Iterator<Item = Encoding> {
        (0..3 * 2 * 3 * 4 * 256u32).map(|n| Encoding {
            form: (n % 3) as u8,
            wide: n / 3 % 2 != 0,
            map: (n / 6 % 3 + 1) as u8,
            prefix: (n / 18 % 4) as u8,
            opcode: (n / 72) as u8,
        })
    }

    /// Bytes with random registers or `[rsi + displacement]`.
    fn bytes(&self, r: &mut Random, gather: bool) -> Vec<u8> {
        let mut code = Vec::new();
        let memory = gather || r.below(2) == 0;
        let (high_reg, high_rm) = (r.below(2) as u8, if memory { 0 } else { r.below(2) as u8 });
        let high_index = if gather { r.below(2) as u8 } else { 0 };
        if self.form == 0 {
            code.extend([&[][..], &[0x66], &[0xf3], &[0xf2]][usize::from(self.prefix)]);
            code.push(0x40 | u8::from(self.wide) << 3 | high_reg << 2 | high_rm);
            code.extend([&[0x0f][..], &[0x0f, 0x38], &[0x0f, 0x3a]][usize::from(self.map - 1)]);
        } else {
            // Inverted: R X B, then vvvv, which many forms want to be unused.
            let v = if r.below(2) == 0 { 15 } else { r.below(16) as u8 };
            let rxb = (high_reg << 2 | high_index << 1 | high_rm) ^ 7;
            code.extend([0xc4, rxb << 5 | self.map]);
            code.push(u8::from(self.wide) << 7 | v << 3 | (self.form - 1) << 2 | self.prefix);
        }
        code.push(self.opcode);
        let reg = r.below(8) as u8;
        if gather {
            code.extend([0x44 | reg << 3, 0x86 | (r.below(8) as u8) << 3 & 0x38, r.below(64) as u8]);
            let sib = code.len() - 2;
            code[sib] = code[sib] & 0x3f | (r.below(4) as u8) << 6;
        } else if memory {
            // Aligned for the forms that ask for it; anywhere for the others.
            let any = r.below(2) == 0 && self.form != 0;
            code.extend([
                0x46 | reg << 3,
                if any { r.below(64) as u8 } else { [0, 32, 0x60][r.below(3) as usize] },
            ]);
        } else {
            code.push(0xc0 | reg << 3 | r.below(8) as u8);
        }
        code
    }
}

const FEATURES: [CpuidFeature; 14] = [
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::AES,
    CpuidFeature::PCLMULQDQ,
    CpuidFeature::SHA,
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::FMA,
    CpuidFeature::F16C,
    CpuidFeature::X64,
];

/// Whether the instruction is for this test: a vector instruction that does what
/// it does from registers and the data page alone.
fn wanted(i: &Instruction) -> bool {
    let features = i.cpuid_features();
    let known = features.iter().all(|f| FEATURES.contains(f)) && features != [CpuidFeature::X64];
    let registers = (0..i.op_count()).all(|n| {
        let r = i.op_register(n);
        i.op_kind(n) != OpKind::Register || !(r.is_mm() || r.full_register() == Register::RSP)
    });
    known && !elsewhere(i.mnemonic()) && registers
}

/// State that has tests of its own, and what is no vector instruction.
fn elsewhere(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        m,
        M::Ldmxcsr
            | M::Vldmxcsr
            | M::Crc32
            | M::Popcnt
            | M::Clflush
            | M::Pause
            | M::Lfence
            | M::Mfence
            | M::Sfence
    )
}

/// Memory operands whose alignment is checked in VEX encoding too.
fn aligned_always(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        i.mnemonic(),
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa
    )
}

fn is_gather(i: &Instruction) -> bool {
    i.memory_index().is_xmm() || i.memory_index().is_ymm()
}

/// The instruction of an encoding, decoded, if it is one to test.
fn generate(r: &mut Random, e: &Encoding) -> Option<(Vec<u8>, Instruction)> {
    if e.map == 1 && matches!(e.opcode, 0x38 | 0x3a) {
        // Escapes to the other maps.
        return None;
    }
    let gather = e.form != 0 && e.map == 2 && matches!(e.opcode, 0x90..=0x93);
    let mut code = e.bytes(r, gather);
    code.push(r.next() as u8);
    let mut i = Decoder::with_ip(64, &code, CODE, 0).decode();
    if i.is_invalid() || !wanted(&i) {
        return None;
    }
    if aligned_always(&i) && i.memory_displacement64() % 32 != 0 {
        let at = i.len() - 1;
        code[at] &= 0x60;
        i = Decoder::with_ip(64, &code, CODE, 0).decode();
    }
    if gather {
        let all: BTreeSet<_> =
            [i.op0_register(), i.op2_register(), i.memory_index()].map(|r| r.number()).into();
        if all.len() < 3 {
            return None;
        }
    }
    code.truncate(i.len());
    Some((code, i))
}

fn random_registers(r: &mut Random, i: &Instruction) -> Registers {
    let mut s = Registers {
        gpr: std::array::from_fn(|_| if r.below(2) == 0 { r.below(20) } else { r.next() }),
        rflags: 2 | r.next() & STATUS,
        // All exceptions masked, every rounding, now and then FTZ and DAZ.
        mxcsr: 0x1f80 | r.next() & if r.below(3) == 0 { 0xe07f } else { 0x603f },
        ymm: std::array::from_fn(|_| std::array::from_fn(|_| r.element())),
    };
    s.gpr[6] = CENTRE;
    s.gpr[7] = CENTRE - r.below(40);
    s.gpr[4] = 0;
    if is_gather(i) {
        // Indexes stay within the data page.
        let dwords = matches!(
            i.mnemonic(),
            Mnemonic::Vgatherdps | Mnemonic::Vgatherdpd | Mnemonic::Vpgatherdd | Mnemonic::Vpgatherdq
        );
        for v in &mut s.ymm[i.memory_index().number()] {
            let small = |v: u64| (v % 200) as i64 - 100;
            *v = if dwords {
                small(*v >> 32) as u32 as u64 | (small(*v & 0xffff) as u32 as u64) << 32
            } else {
                small(*v) as u64
            };
        }
    }
    s
}

#[test]
fn every_encoding_does_what_the_host_does() {
    let all = ["avx2", "fma", "f16c", "aes", "pclmulqdq", "sha"];
    let host = [
        is_x86_feature_detected!("avx2"),
        is_x86_feature_detected!("fma"),
        is_x86_feature_detected!("f16c"),
        is_x86_feature_detected!("aes"),
        is_x86_feature_detected!("pclmulqdq"),
        is_x86_feature_detected!("sha"),
    ];
    if host.contains(&false) {
        eprintln!("skipped: the host lacks one of {all:?}");
        return;
    }
    let mut native = Native::new();
    let mut guest = Machine::new(0x2200_0000, "x86-64-v3");
    let mut state = guest.long_mode();
    state.cr4 |= x86_state::cr4::OSXSAVE | x86_state::cr4::OSXMMEXCPT;
    state.xcr0 = 7;
    let mut r = Random(0x2545_f491_4f6c_dd1d);
    let mut seen: BTreeSet<u16> = BTreeSet::new();
    let mut failures: BTreeSet<String> = BTreeSet::new();
    for e in Encoding::all() {
        for _ in 0..TRIALS {
            let Some((code, i)) = generate(&mut r, &e) else { continue };
            let before = random_registers(&mut r, &i);
            *native.registers = before.clone();
            let fill: [u64; 16] = std::array::from_fn(|_| r.element());
            for (b, v) in native.data().chunks_exact_mut(8).zip(fill.iter().cycle()) {
                b.copy_from_slice(&v.to_le_bytes());
            }
            guest.write(DATA, native.data());
            guest.write(CODE, &code);
            state.gpr = before.gpr;
            (state.rip, state.rflags) = (CODE, before.rflags);
            (state.fpu.mxcsr, state.fpu.ymm) = (before.mxcsr as u32, before.ymm);
            let (after, halt) = guest.run(&state, 1);
            native.run(&code);
            let ours = Registers {
                gpr: after.gpr,
                rflags: after.rflags & (STATUS | 2),
                mxcsr: after.fpu.mxcsr.into(),
                ymm: after.fpu.ymm,
            };
            let mut host = (*native.registers).clone();
            (host.gpr[4], host.rflags) = (0, host.rflags & (STATUS | 2));
            let mut memory = vec![0; DATA_LEN];
            guest.memory.read_bytes(guest_memory::RamOffset(DATA), &mut memory);
            let done = matches!(halt, Halt::Limit) && after.rip == i.next_ip();
            if !done || ours != host || memory != native.data() {
                let text = describe(&before, &ours, &host);
                let first = failures.insert(format!("{:?}", i.code()));
                if first {
                    eprintln!("{:?} {code:02x?} {halt:?} rip {:x}, {text}", i.code(), after.rip);
                    let at = memory.iter().zip(native.data()).position(|(a, b)| a != b);
                    eprintln!("  memory differs at {at:x?}");
                }
            }
            seen.insert(i.code() as u16);
        }
    }
    xrstor(&mut native, &mut guest, &mut state, &mut r);
    assert!(failures.is_empty(), "{} of {} instructions differ: {failures:?}", failures.len(), seen.len());
    let missing: Vec<Code> = all_codes().filter(|c| !seen.contains(&(*c as u16))).collect();
    assert!(missing.is_empty(), "never generated: {missing:?}");
}

/// XRSTOR of images with every combination of components asked for and present,
/// in both formats.
fn xrstor(native: &mut Native, guest: &mut Machine, state: &mut x86_state::CpuState, r: &mut Random) {
    const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x2e];
    for n in 0..2 * 8 * 8_u64 {
        let (compacted, present, requested) = (n & 1, n >> 1 & 7, n >> 4 & 7);
        let mut image = [0; 832];
        for b in &mut image[160..] {
            *b = r.next() as u8;
        }
        image[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        let mxcsr = 0x1f80 | r.next() as u32 & 0xe07f;
        image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        image[512..576].fill(0);
        image[512] = present as u8;
        if compacted != 0 {
            image[520..528].copy_from_slice(&(1_u64 << 63 | present | 1).to_le_bytes());
        }
        let at = (CENTRE - DATA) as usize;
        native.data()[at..at + image.len()].copy_from_slice(&image);
        let mut before = random_registers(r, &Instruction::default());
        (before.gpr[0], before.gpr[2]) = (requested, 0);
        *native.registers = before.clone();
        guest.write(DATA, native.data());
        guest.write(CODE, XRSTOR64);
        state.gpr = before.gpr;
        (state.rip, state.fpu.mxcsr, state.fpu.ymm) = (CODE, before.mxcsr as u32, before.ymm);
        let (after, halt) = guest.run(state, 1);
        native.run(XRSTOR64);
        let context = format!("{halt:?}: compacted {compacted}, present {present}, requested {requested}");
        assert_eq!(after.rip, CODE + 4, "{context}");
        assert_eq!(after.fpu.ymm, native.registers.ymm, "{context}: ours (left), host");
        assert_eq!(u64::from(after.fpu.mxcsr), native.registers.mxcsr, "{context}: ours (left), host");
    }
}

/// Every code the test is to have met: those of [`FEATURES`] without MMX registers.
fn all_codes() -> impl Iterator<Item = Code> {
    Code::values().filter(|c| {
        let features = c.cpuid_features();
        let known = features.iter().all(|f| FEATURES.contains(f)) && features != [CpuidFeature::X64];
        known && !elsewhere(c.mnemonic()) && !format!("{c:?}").contains("_mm")
    })
}

/// The differences, host on the right.
fn describe(before: &Registers, ours: &Registers, host: &Registers) -> String {
    let mut s = String::new();
    for n in 0..16 {
        if ours.gpr[n] != host.gpr[n] {
            s += &format!("gpr {n}: {:x} / {:x}; ", ours.gpr[n], host.gpr[n]);
        }
        if ours.ymm[n] != host.ymm[n] {
            s += &format!("ymm {n}: {:x?} / {:x?}; ", ours.ymm[n], host.ymm[n]);
        }
    }
    s += &format!("rflags {:x} / {:x}, mxcsr {:x} / {:x}", ours.rflags, host.rflags, ours.mxcsr, host.mxcsr);
    s + &format!(", before {:x?} mxcsr {:x} gpr {:x?}", before.ymm, before.mxcsr, before.gpr)
}
