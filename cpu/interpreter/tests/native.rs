//! Random general-purpose instructions on the host's processor and on the
//! interpreter: registers, memory and defined flags must agree.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code, reason = "executes generated code on the host")]

mod host;
mod machine;

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use engine::Halt;
use host::{Host, Random};
use machine::Machine;
use x86_state::CpuState;
use x86_state::rflags::{AF, CF, OF, PF, SF, STATUS, ZF};

/// Memory operands live here, at the same address on the host and in the guest.
const DATA: u64 = 0x2000_0000;
const DATA_LEN: usize = 0x2000;
/// Memory operands address the middle, so that displacements stay inside.
const CENTRE: u64 = DATA + 0x1000;
const CODE: u64 = 0x2001_0000;
const CASES: usize = 60_000;

/// RAX to R15 (RSP unused), then RFLAGS.
type Registers = [u64; 17];

/// The host's processor.
struct Native(Host);

impl Native {
    fn new() -> Self {
        Native(Host::new(DATA, DATA_LEN, CODE))
    }

    fn data(&mut self) -> &mut [u8] {
        self.0.data()
    }

    /// Execute `code`, which keeps RSP and falls through, between loading and
    /// storing all registers.
    fn run(&mut self, code: &[u8], regs: &mut Registers) {
        use iced_x86::code_asm::*;
        let mut a = CodeAssembler::new(64).unwrap();
        let order = [rcx, rdx, rbx, rbp, rsi, r8, r9, r10, r11, r12, r13, r14, r15];
        let number = [1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        let base = regs.as_ptr() as u64;
        for r in [rbx, rbp, r12, r13, r14, r15, rdi] {
            a.push(r).unwrap();
        }
        a.mov(rdi, base).unwrap();
        a.push(qword_ptr(rdi + 128)).unwrap();
        a.popfq().unwrap();
        a.mov(rax, qword_ptr(rdi)).unwrap();
        for (r, n) in order.into_iter().zip(number) {
            a.mov(r, qword_ptr(rdi + 8 * n)).unwrap();
        }
        a.mov(rdi, qword_ptr(rdi + 56)).unwrap();
        a.db(code).unwrap();
        a.push(rdi).unwrap();
        a.mov(rdi, base).unwrap();
        a.mov(qword_ptr(rdi), rax).unwrap();
        for (r, n) in order.into_iter().zip(number) {
            a.mov(qword_ptr(rdi + 8 * n), r).unwrap();
        }
        a.pop(rax).unwrap();
        a.mov(qword_ptr(rdi + 56), rax).unwrap();
        a.pushfq().unwrap();
        a.pop(qword_ptr(rdi + 128)).unwrap();
        a.cld().unwrap();
        for r in [rdi, r15, r14, r13, r12, rbp, rbx] {
            a.pop(r).unwrap();
        }
        a.ret().unwrap();
        let bytes = a.assemble(CODE).unwrap();
        // SAFETY: it saves what the convention keeps, and touches `regs` and the data.
        unsafe { self.0.call(&bytes, regs) };
    }
}

impl Random {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
    /// A value with boundaries of all widths likely.
    fn value(&mut self) -> u64 {
        let edges = [
            0,
            1,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            1 << 63,
            !0,
        ];
        match self.below(4) {
            0 => self.pick(&edges),
            1 => self.pick(&edges) ^ self.next() << 32,
            2 => self.below(64),
            _ => self.next(),
        }
    }
}

/// What follows the opcode.
#[derive(Clone, Copy, PartialEq)]
enum Tail {
    /// Nothing.
    None,
    /// ModRM.
    Rm,
    /// ModRM with this opcode extension.
    Ext(u8),
    /// ModRM, then an immediate byte.
    RmImm8,
    /// ModRM with extension, then an immediate byte.
    ExtImm8(u8),
    /// ModRM, then an immediate of the operand size (at most 4 bytes).
    RmImm,
    ExtImm(u8),
    /// An immediate byte.
    Imm8,
    /// An immediate of the operand size.
    Imm,
}
use Tail::*;

struct Case {
    opcode: &'static [u8],
    tail: Tail,
    /// 8-bit form: 66 and REX.W do not apply.
    byte: bool,
    /// Flags the manual defines.
    flags: u64,
    /// A mandatory prefix.
    prefix: Option<u8>,
}

const fn case(opcode: &'static [u8], tail: Tail, byte: bool, flags: u64) -> Case {
    Case { opcode, tail, byte, flags, prefix: Option::None }
}

const NO_AF: u64 = STATUS & !AF;
/// Shifts and rotates: OF is defined for a count of 1 only.
const SHIFT: u64 = STATUS & !AF & !OF;
const ROTATE: u64 = STATUS & !OF;

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let mut all = vec![
        case(&[0xfe], Ext(0), true, STATUS), case(&[0xff], Ext(0), false, STATUS),
        case(&[0xfe], Ext(1), true, STATUS), case(&[0xff], Ext(1), false, STATUS),
        case(&[0x84], Rm, true, NO_AF), case(&[0x85], Rm, false, NO_AF),
        case(&[0xa8], Imm8, true, NO_AF), case(&[0xa9], Imm, false, NO_AF),
        case(&[0xf6], ExtImm8(0), true, NO_AF), case(&[0xf7], ExtImm(0), false, NO_AF),
        case(&[0xf6], ExtImm8(1), true, NO_AF),
        case(&[0xf6], Ext(2), true, STATUS), case(&[0xf7], Ext(2), false, STATUS),
        case(&[0xf6], Ext(3), true, STATUS), case(&[0xf7], Ext(3), false, STATUS),
        case(&[0xf6], Ext(4), true, CF | OF), case(&[0xf7], Ext(4), false, CF | OF),
        case(&[0xf6], Ext(5), true, CF | OF), case(&[0xf7], Ext(5), false, CF | OF),
        case(&[0x0f, 0xaf], Rm, false, CF | OF), case(&[0x69], RmImm, false, CF | OF),
        case(&[0x6b], RmImm8, false, CF | OF),
        case(&[0x88], Rm, true, STATUS), case(&[0x89], Rm, false, STATUS),
        case(&[0x8a], Rm, true, STATUS), case(&[0x8b], Rm, false, STATUS),
        case(&[0xc6], ExtImm8(0), true, STATUS), case(&[0xc7], ExtImm(0), false, STATUS),
        case(&[0x0f, 0xb6], Rm, false, STATUS), case(&[0x0f, 0xb7], Rm, false, STATUS),
        case(&[0x0f, 0xbe], Rm, false, STATUS), case(&[0x0f, 0xbf], Rm, false, STATUS),
        case(&[0x63], Rm, false, STATUS),
        case(&[0x86], Rm, true, STATUS), case(&[0x87], Rm, false, STATUS),
        case(&[0x0f, 0xc0], Rm, true, STATUS), case(&[0x0f, 0xc1], Rm, false, STATUS),
        case(&[0x0f, 0xb0], Rm, true, STATUS), case(&[0x0f, 0xb1], Rm, false, STATUS),
        case(&[0x0f, 0xa3], Rm, false, CF | ZF), case(&[0x0f, 0xab], Rm, false, CF | ZF),
        case(&[0x0f, 0xb3], Rm, false, CF | ZF), case(&[0x0f, 0xbb], Rm, false, CF | ZF),
        case(&[0x0f, 0xba], ExtImm8(4), false, CF | ZF), case(&[0x0f, 0xba], ExtImm8(5), false, CF | ZF),
        case(&[0x0f, 0xba], ExtImm8(6), false, CF | ZF), case(&[0x0f, 0xba], ExtImm8(7), false, CF | ZF),
        case(&[0x0f, 0xbc], Rm, false, ZF), case(&[0x0f, 0xbd], Rm, false, ZF),
        case(&[0x0f, 0xa4], RmImm8, false, SHIFT), case(&[0x0f, 0xac], RmImm8, false, SHIFT),
        case(&[0x0f, 0xa5], Rm, false, SHIFT), case(&[0x0f, 0xad], Rm, false, SHIFT),
        case(&[0x98], None, false, STATUS), case(&[0x99], None, false, STATUS),
        case(&[0x9f], None, true, STATUS), case(&[0x9e], None, true, STATUS),
        case(&[0xf8], None, true, STATUS), case(&[0xf9], None, true, STATUS), case(&[0xf5], None, true, STATUS),
        case(&[0x91], None, false, STATUS), case(&[0x90], None, false, STATUS),
        case(&[0xb3], Imm8, true, STATUS),
        // PAUSE, and with REX.B XCHG.
        Case { prefix: Some(0xf3), ..case(&[0x90], None, false, STATUS) },
        Case { prefix: Some(0xf3), ..case(&[0x0f, 0xb8], Rm, false, STATUS) },
        Case { prefix: Some(0xf3), ..case(&[0x0f, 0xbc], Rm, false, CF | ZF) },
        Case { prefix: Some(0xf3), ..case(&[0x0f, 0xbd], Rm, false, CF | ZF) },
        Case { prefix: Some(0xf2), ..case(&[0x0f, 0x38, 0xf0], Rm, true, STATUS) },
        Case { prefix: Some(0xf2), ..case(&[0x0f, 0x38, 0xf1], Rm, false, STATUS) },
    ];
    const ARITHMETIC: [[&[u8]; 6]; 8] = [
        [&[0x00], &[0x01], &[0x02], &[0x03], &[0x04], &[0x05]], [&[0x08], &[0x09], &[0x0a], &[0x0b], &[0x0c], &[0x0d]],
        [&[0x10], &[0x11], &[0x12], &[0x13], &[0x14], &[0x15]], [&[0x18], &[0x19], &[0x1a], &[0x1b], &[0x1c], &[0x1d]],
        [&[0x20], &[0x21], &[0x22], &[0x23], &[0x24], &[0x25]], [&[0x28], &[0x29], &[0x2a], &[0x2b], &[0x2c], &[0x2d]],
        [&[0x30], &[0x31], &[0x32], &[0x33], &[0x34], &[0x35]], [&[0x38], &[0x39], &[0x3a], &[0x3b], &[0x3c], &[0x3d]],
    ];
    for (n, [rm8, rm, r8, r, al, ax]) in ARITHMETIC.into_iter().enumerate() {
        let flags = if matches!(n, 1 | 4 | 6) { NO_AF } else { STATUS };
        all.extend([
            case(rm8, Rm, true, flags), case(rm, Rm, false, flags), case(r8, Rm, true, flags),
            case(r, Rm, false, flags), case(al, Imm8, true, flags), case(ax, Imm, false, flags),
            case(&[0x80], ExtImm8(n as u8), true, flags), case(&[0x83], ExtImm8(n as u8), false, flags),
            case(&[0x81], ExtImm(n as u8), false, flags),
        ]);
    }
    for n in 0..8u8 {
        let flags = if n < 4 { ROTATE } else { SHIFT };
        let once = if n < 4 { STATUS } else { NO_AF };
        all.extend([
            case(&[0xc0], ExtImm8(n), true, flags), case(&[0xc1], ExtImm8(n), false, flags),
            case(&[0xd0], Ext(n), true, once), case(&[0xd1], Ext(n), false, once),
            case(&[0xd2], Ext(n), true, flags), case(&[0xd3], Ext(n), false, flags),
        ]);
    }
    const CONDITIONAL: [[&[u8]; 2]; 16] = [
        [&[0x0f, 0x40], &[0x0f, 0x90]], [&[0x0f, 0x41], &[0x0f, 0x91]], [&[0x0f, 0x42], &[0x0f, 0x92]],
        [&[0x0f, 0x43], &[0x0f, 0x93]], [&[0x0f, 0x44], &[0x0f, 0x94]], [&[0x0f, 0x45], &[0x0f, 0x95]],
        [&[0x0f, 0x46], &[0x0f, 0x96]], [&[0x0f, 0x47], &[0x0f, 0x97]], [&[0x0f, 0x48], &[0x0f, 0x98]],
        [&[0x0f, 0x49], &[0x0f, 0x99]], [&[0x0f, 0x4a], &[0x0f, 0x9a]], [&[0x0f, 0x4b], &[0x0f, 0x9b]],
        [&[0x0f, 0x4c], &[0x0f, 0x9c]], [&[0x0f, 0x4d], &[0x0f, 0x9d]], [&[0x0f, 0x4e], &[0x0f, 0x9e]],
        [&[0x0f, 0x4f], &[0x0f, 0x9f]],
    ];
    for [mov, set] in CONDITIONAL {
        all.extend([case(mov, Rm, false, STATUS), case(set, Ext(0), true, STATUS)]);
    }
    all
}

/// One instruction: optional 66, REX, opcode, ModRM with a register or
/// [RSI + disp8], immediate.
fn encode(r: &mut Random, c: &Case) -> Vec<u8> {
    let mut code = Vec::new();
    let narrow = !c.byte && r.below(4) == 0;
    if narrow {
        code.push(0x66);
    }
    code.extend(c.prefix);
    let memory = r.below(3) == 0;
    let with_rex = r.below(2) == 0;
    let mut rex = if with_rex { 0x40 | r.below(16) as u8 } else { 0 };
    if memory {
        // The base is RSI.
        rex &= !1;
    }
    if narrow || c.byte {
        rex &= !8;
    }
    if rex != 0 {
        code.push(rex);
    }
    code.extend(c.opcode);
    // RSP is the host's: never an operand (AH in byte forms without REX is fine).
    let high_bytes = c.byte && rex == 0 && c.prefix.is_none();
    let register = |r: &mut Random, extended: bool| loop {
        let n = r.below(8) as u8;
        if n != 4 || extended || high_bytes {
            return n;
        }
    };
    let modrm = |r: &mut Random, reg: Option<u8>| {
        let reg = reg.unwrap_or_else(|| register(r, rex & 4 != 0));
        if memory {
            vec![0x46 | reg << 3, r.next() as u8]
        } else {
            vec![0xc0 | reg << 3 | register(r, rex & 1 != 0)]
        }
    };
    let wide = if narrow { 2 } else { 4 };
    let (extension, immediate) = match c.tail {
        None => (Option::None, 0),
        Imm8 => (Option::None, 1),
        Imm => (Option::None, wide),
        Rm => (Some(Option::None), 0),
        RmImm8 => (Some(Option::None), 1),
        RmImm => (Some(Option::None), wide),
        Ext(n) => (Some(Some(n)), 0),
        ExtImm8(n) => (Some(Some(n)), 1),
        ExtImm(n) => (Some(Some(n)), wide),
    };
    if let Some(reg) = extension {
        let bytes = modrm(r, reg);
        code.extend(bytes);
    }
    let v = r.value().to_le_bytes();
    code.extend(&v[..immediate]);
    code
}

/// The host's processor and a guest of the same kind.
struct Pair {
    native: Native,
    guest: Machine,
    state: CpuState,
}

/// The one pair: its addresses are fixed.
static PAIR: LazyLock<Mutex<Pair>> = LazyLock::new(|| {
    let mut guest = Machine::new(0x2002_0000, "x86-64-v3");
    let state = guest.long_mode();
    Mutex::new(Pair { native: Native::new(), guest, state })
});

impl Pair {
    /// Execute `code` on both with memory full of `fill`; everything must agree,
    /// of the flags those in `mask`.
    #[track_caller]
    fn check(&mut self, n: usize, code: &[u8], before: &Registers, fill: u64, mask: u64) {
        let Pair { native, guest, state } = self;
        for (b, v) in native.data().iter_mut().zip(fill.to_le_bytes().iter().cycle()) {
            *b = *v;
        }
        guest.write(DATA, native.data());
        guest.write(CODE, code);
        state.gpr.copy_from_slice(&before[..16]);
        state.gpr[4] = machine::FREE;
        state.rip = CODE;
        state.rflags = before[16];
        let (after, halt) = guest.run(state, 1);
        let mut regs = *before;
        native.run(code, &mut regs);
        let context = || format!("case {n}, code {code:02x?}, before {before:x?}");
        assert!(matches!(halt, Halt::Limit), "{halt:?}: {}", context());
        assert_eq!(after.rip, CODE + code.len() as u64, "{}", context());
        for k in (0..16).filter(|k| *k != 4) {
            assert_eq!(after.gpr[k], regs[k], "register {k} (host right): {}", context());
        }
        assert_eq!(after.rflags & mask, regs[16] & mask, "flags (host right), mask {mask:x}: {}", context());
        let mut memory = vec![0; DATA_LEN];
        guest.memory.read_bytes(guest_memory::RamOffset(DATA), &mut memory);
        assert!(memory == native.data(), "memory: {}", context());
    }
}

fn pair() -> MutexGuard<'static, Pair> {
    PAIR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Random registers with RSI at the data and random status flags.
fn registers(r: &mut Random) -> Registers {
    let mut regs: Registers = std::array::from_fn(|_| r.value());
    regs[6] = CENTRE;
    regs[16] = 2 | r.next() & STATUS;
    regs
}

#[test]
fn random_instructions_do_what_the_host_does() {
    let mut r = Random(0x9e37_79b9_7f4a_7c15);
    let cases = cases();
    for n in 0..CASES {
        let c = &cases[r.below(cases.len() as u64) as usize];
        let code = encode(&mut r, c);
        let mut regs = registers(&mut r);
        if matches!(c.opcode, [0x0f, 0xa3 | 0xab | 0xb3 | 0xbb]) {
            // Bit-string indexes stay within the data pages.
            for v in regs.iter_mut().take(16) {
                *v = (*v as i16 % 0x2000) as u64;
            }
            regs[6] = CENTRE;
            // RSI itself would be an index far beyond them.
            if code[code.len() - 2] >> 3 & 7 == 6 {
                continue;
            }
        }
        let mask = shift_mask(c, &code, &regs);
        pair().check(n, &code, &regs, r.next(), mask);
    }
}

/// Divisors are odd and the dividend's upper half is less than the divisor, so
/// that nothing faults; signed dividends are small.
#[test]
fn random_divisions_do_what_the_host_does() {
    let mut r = Random(0x1234_5678_9abc_def1);
    for n in 0..5000 {
        let signed = r.below(2) == 1;
        let (prefix, opcode, bits): (&[u8], u8, u32) =
            r.pick(&[(&[], 0xf6, 8), (&[0x66], 0xf7, 16), (&[], 0xf7, 32), (&[0x48], 0xf7, 64)]);
        let extension = if signed { 7 } else { 6 };
        let mut regs = registers(&mut r);
        let mask = u64::MAX >> (64 - bits);
        let divisor = r.value() & mask | 1;
        let high = if signed { 0 } else { r.next() % divisor };
        let low = if signed { r.value() & mask >> 1 } else { r.value() & mask };
        // A divisor of -1 or 1 leaves the quotient as large as the dividend.
        match bits {
            8 => regs[0] = regs[0] & !0xffff | high << 8 | low,
            _ => {
                regs[0] = regs[0] & !mask | low;
                regs[2] = regs[2] & !mask | high;
            }
        }
        regs[3] = regs[3] & !mask | divisor;
        let memory = r.below(2) == 0;
        let modrm = if memory { vec![0x06 | extension << 3] } else { vec![0xc3 | extension << 3] };
        let code = [prefix, &[opcode], &modrm].concat();
        // Memory is full of the divisor: its low bytes are what the operand is.
        let fill =
            if bits == 64 { divisor } else { (0..64 / bits).fold(0, |f, k| f | divisor << (k * bits)) };
        pair().check(n, &code, &regs, fill, 0);
    }
}

#[test]
fn random_string_instructions_do_what_the_host_does() {
    const DF: u64 = x86_state::rflags::DF;
    let mut r = Random(0x0dd0_beef_1234_0001);
    for n in 0..10_000 {
        let operation = r.pick(&[0xa4, 0xa6, 0xaa, 0xac, 0xae]);
        let width: (&[u8], u8) = r.pick(&[(&[], 0), (&[0x66], 1), (&[], 1), (&[0x48], 1)]);
        let repeat: &[u8] = r.pick(&[&[], &[0xf3], &[0xf2]]);
        // An address-size prefix truncates the registers to 32 bits.
        let narrow: &[u8] = r.pick(&[&[], &[], &[0x67]]);
        let code = [repeat, narrow, width.0, &[operation | width.1]].concat();
        let mut regs = registers(&mut r);
        let junk = if narrow.is_empty() { 0 } else { r.next() << 32 };
        regs[6] = junk | (CENTRE + r.below(64));
        regs[7] = junk | (CENTRE + r.below(64));
        regs[1] = junk | r.below(70);
        regs[16] |= if r.below(3) == 0 { DF } else { 0 };
        // Few different bytes, so that comparisons go on for a while.
        let any = r.next();
        let fill = r.pick(&[0, 0x0101_0101_0101_0101, any & 0x0100_0000_0001_0000, any]);
        regs[0] = r.pick(&[fill, fill.rotate_left(8), !any]);
        pair().check(n, &code, &regs, fill, STATUS | DF);
    }
}

/// An instruction of the BMI, ADX or MOVBE extensions.
struct Newer {
    /// VEX map and pp, or `None` for a legacy 0F 38 encoding with this prefix.
    vex: Option<(u8, u8)>,
    prefix: &'static [u8],
    opcode: u8,
    extension: Option<u8>,
    immediate: bool,
    flags: u64,
}

#[test]
fn random_bmi_adx_and_movbe_do_what_the_host_does() {
    let vex = |map, pp, opcode, extension, flags| Newer {
        vex: Some((map, pp)),
        prefix: &[],
        opcode,
        extension,
        immediate: map == 3,
        flags,
    };
    let legacy = |prefix, opcode| Newer {
        vex: Option::None,
        prefix,
        opcode,
        extension: Option::None,
        immediate: false,
        flags: STATUS,
    };
    let arithmetic = ZF | SF | CF | OF;
    let cases = [
        vex(2, 0, 0xf2, Option::None, arithmetic),   // ANDN
        vex(2, 0, 0xf3, Some(1), arithmetic),        // BLSR
        vex(2, 0, 0xf3, Some(2), arithmetic),        // BLSMSK
        vex(2, 0, 0xf3, Some(3), arithmetic),        // BLSI
        vex(2, 0, 0xf5, Option::None, arithmetic),   // BZHI
        vex(2, 2, 0xf5, Option::None, STATUS),       // PEXT
        vex(2, 3, 0xf5, Option::None, STATUS),       // PDEP
        vex(2, 3, 0xf6, Option::None, STATUS),       // MULX
        vex(2, 0, 0xf7, Option::None, ZF | CF | OF), // BEXTR
        vex(2, 1, 0xf7, Option::None, STATUS),       // SHLX
        vex(2, 2, 0xf7, Option::None, STATUS),       // SARX
        vex(2, 3, 0xf7, Option::None, STATUS),       // SHRX
        vex(3, 3, 0xf0, Option::None, STATUS),       // RORX
        legacy(&[0x66], 0xf6),                       // ADCX
        legacy(&[0xf3], 0xf6),                       // ADOX
        legacy(&[], 0xf0),                           // MOVBE load
        legacy(&[], 0xf1),                           // MOVBE store
        legacy(&[0x66], 0xf0),
        legacy(&[0x66], 0xf1),
    ];
    let mut r = Random(0xfeed_face_cafe_beef);
    // Any register but RSP.
    let register = |r: &mut Random| loop {
        let n = r.below(16) as u8;
        if n != 4 {
            return n;
        }
    };
    for n in 0..10_000 {
        let c = &cases[r.below(cases.len() as u64) as usize];
        let movbe = c.vex.is_none() && c.opcode != 0xf6;
        let memory = movbe || r.below(3) == 0;
        let (wide, reg, rm, other) = (r.below(2) as u8, register(&mut r), register(&mut r), register(&mut r));
        let reg = c.extension.unwrap_or(reg);
        let rm = if memory { 6 } else { rm };
        let mut code = c.prefix.to_vec();
        match c.vex {
            Some((map, pp)) => {
                let vvvv = if c.immediate { 15 } else { !other & 15 };
                code.push(0xc4);
                code.push((!reg >> 3 & 1) << 7 | 1 << 6 | (!rm >> 3 & 1) << 5 | map);
                code.push(wide << 7 | vvvv << 3 | pp);
            }
            Option::None => {
                code.push(0x40 | wide << 3 | (reg >> 3) << 2 | rm >> 3);
                code.extend([0x0f, 0x38]);
            }
        }
        code.push(c.opcode);
        code.push(if memory { 0x46 } else { 0xc0 } | (reg & 7) << 3 | rm & 7);
        if memory {
            code.push(r.next() as u8);
        }
        if c.immediate {
            code.push(r.next() as u8);
        }
        let regs = registers(&mut r);
        let fill = r.value();
        pair().check(n, &code, &regs, fill, c.flags);
    }
}

/// The flags to compare: of 16-bit SHLD and SHRD with a count above 16 nothing
/// is defined.
fn shift_mask(c: &Case, code: &[u8], before: &Registers) -> u64 {
    let count = match c.opcode {
        [0x0f, 0xa4 | 0xac] => code[code.len() - 1],
        [0x0f, 0xa5 | 0xad] => before[1] as u8,
        [0xc0 | 0xc1] => code[code.len() - 1],
        [0xd2 | 0xd3] => before[1] as u8,
        _ => return c.flags,
    } & 63;
    let wide = code.iter().take(2).any(|b| b & 0xf8 == 0x48);
    let count = if wide { count } else { count & 31 };
    let bits = if c.byte {
        8
    } else if code[0] == 0x66 {
        16
    } else {
        32
    };
    let double = matches!(c.opcode, [0x0f, ..]);
    match count {
        0 | 1 => c.flags | OF,
        n if double && n > bits && bits == 16 => 0,
        n if !double && n >= bits && c.flags == SHIFT => SF | ZF | PF,
        _ => c.flags,
    }
}
