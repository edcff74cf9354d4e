//! Integer semantics against the processor the tests run on.
#![cfg(target_arch = "x86_64")]
#![allow(
    unsafe_code,
    reason = "the host processor is the oracle: its instructions are run with inline assembly"
)]

use std::arch::{asm, is_x86_feature_detected};

use x86_semantics::flags::Flags;
use x86_semantics::{bits, int, muldiv, shift};

const CF: u64 = 1;
const PF: u64 = 4;
const AF: u64 = 0x10;
const ZF: u64 = 0x40;
const SF: u64 = 0x80;
const OF: u64 = 0x800;
const ALL: u64 = CF | PF | AF | ZF | SF | OF;

/// Whether the host leaves undefined flags as the functions under test state.
fn same_vendor() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    leaf.ebx == u32::from_le_bytes(*b"Auth")
}

/// `defined` on any processor, every flag where the vendor is known.
fn compared(defined: u64) -> u64 {
    if same_vendor() { ALL } else { defined }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// An operand: often at a boundary, where flags are decided.
    fn operand(&mut self) -> u64 {
        const EDGES: [u64; 14] = [
            0,
            1,
            2,
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
            u64::MAX,
        ];
        match self.next() % 4 {
            0 => EDGES[(self.next() % 14) as usize],
            1 => self.next() & self.next() & self.next(),
            _ => self.next(),
        }
    }
}

/// Compare `ours` with `host` for random operands. Both give (rax, rdx, rflags);
/// `bits` is how much of rax and rdx counts.
fn check(
    what: &str,
    bits: u32,
    defined: impl Fn(u64) -> u64,
    host: impl Fn(u64, u64, u64, u64) -> (u64, u64, u64),
    ours: impl Fn(u64, u64, u64, Flags) -> (u64, u64, Flags),
) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mask = u64::MAX >> (64 - bits);
    for _ in 0..4000 {
        let (a, b, c, f) = (random.operand(), random.operand(), random.operand(), random.next() & ALL);
        let (x, y, g) = host(a, b, c, f);
        let (p, q, h) = ours(a, b, c, Flags::from_rflags(f));
        let flags = compared(defined(c));
        assert_eq!(
            (x & mask, y & mask, g & flags),
            (p & mask, q & mask, h.to_rflags() & flags),
            "{what} {bits}: a {a:#x}, b {b:#x}, c {c:#x}, flags {f:#x}: host (left) and ours differ"
        );
    }
}

/// One line a two-operand instruction, all widths.
macro_rules! binary {
    ($name:literal, $defined:expr, $ours:expr) => {
        binary!(@ u8 $name, " al, dl", $defined, $ours);
        binary!(@wide $name, $defined, $ours);
    };
    (@wide $name:literal, $defined:expr, $ours:expr) => {
        binary!(@ u16 $name, " ax, dx", $defined, $ours);
        binary!(@ u32 $name, " eax, edx", $defined, $ours);
        binary!(@ u64 $name, " rax, rdx", $defined, $ours);
    };
    (@ $t:ident $name:literal, $args:literal, $defined:expr, $ours:expr) => {
        check(
            concat!($name, $args), <$t>::BITS, |_| $defined,
            |a, b, c, flags| {
                let (mut a, mut b, mut flags) = (a, b, flags & ALL | 2);
                // SAFETY: only the listed registers and flags change; pushes are balanced.
                unsafe {
                    asm!("push {f}", "popfq", concat!($name, $args), "pushfq", "pop {f}", f = inout(reg) flags,
                        inout("rax") a, inout("rdx") b, in("rcx") c);
                }
                (a, b, flags & ALL)
            },
            |a: u64, b: u64, _c: u64, f: Flags| {
                let (r, g) = $ours(a as $t, b as $t, f);
                (r as u64, b, g)
            },
        )
    };
}

/// As `binary`, with the count in CL as third operand.
macro_rules! counted {
    ($name:literal, $ours:expr) => {
        counted!(@ u8 $name, " al, cl", $ours);
        counted!(@ u16 $name, " ax, cl", $ours);
        counted!(@ u32 $name, " eax, cl", $ours);
        counted!(@ u64 $name, " rax, cl", $ours);
    };
    (@ $t:ident $name:literal, $args:literal, $ours:expr) => {
        check(
            concat!($name, $args), <$t>::BITS,
            |c| match c & if <$t>::BITS == 64 { 63 } else { 31 } {
                0 => ALL,
                1 => ALL & !AF,
                n if n < u64::from(<$t>::BITS) => ALL & !AF & !OF,
                _ => PF | ZF | SF,
            },
            |a, b, c, flags| {
                let (mut a, mut flags) = (a, flags & ALL | 2);
                // SAFETY: only the listed registers and flags change; pushes are balanced.
                unsafe {
                    asm!("push {f}", "popfq", concat!($name, $args), "pushfq", "pop {f}", f = inout(reg) flags,
                        inout("rax") a, in("rdx") b, in("rcx") c);
                }
                (a, b, flags & ALL)
            },
            |a: u64, b: u64, c: u64, f: Flags| {
                let (r, g) = $ours(a as $t, b as $t, c as u8, f);
                (r as u64, b, g)
            },
        )
    };
}

#[test]
fn addition_subtraction_and_logic() {
    binary!("add", ALL, |a, b, _| int::add(a, b));
    binary!("adc", ALL, int::adc);
    binary!("sub", ALL, |a, b, _| int::sub(a, b));
    binary!("sbb", ALL, int::sbb);
    binary!("and", ALL & !AF, |a, b, _| int::and(a, b));
    binary!("or", ALL & !AF, |a, b, _| int::or(a, b));
    binary!("xor", ALL & !AF, |a, b, _| int::xor(a, b));
    binary!(@ u8 "inc", " al", ALL, |a, _, f| int::inc(a, f));
    binary!(@ u16 "inc", " ax", ALL, |a, _, f| int::inc(a, f));
    binary!(@ u32 "inc", " eax", ALL, |a, _, f| int::inc(a, f));
    binary!(@ u64 "inc", " rax", ALL, |a, _, f| int::inc(a, f));
    binary!(@ u8 "dec", " al", ALL, |a, _, f| int::dec(a, f));
    binary!(@ u16 "dec", " ax", ALL, |a, _, f| int::dec(a, f));
    binary!(@ u32 "dec", " eax", ALL, |a, _, f| int::dec(a, f));
    binary!(@ u64 "dec", " rax", ALL, |a, _, f| int::dec(a, f));
    binary!(@ u8 "neg", " al", ALL, |a, _, _| int::neg(a));
    binary!(@ u16 "neg", " ax", ALL, |a, _, _| int::neg(a));
    binary!(@ u32 "neg", " eax", ALL, |a, _, _| int::neg(a));
    binary!(@ u64 "neg", " rax", ALL, |a, _, _| int::neg(a));
}

#[test]
fn shifts_and_rotates() {
    counted!("shl", |a, _, n, f| shift::shl(a, n, f));
    counted!("shr", |a, _, n, f| shift::shr(a, n, f));
    counted!("sar", |a, _, n, f| shift::sar(a, n, f));
    counted!("rol", |a, _, n, f| shift::rol(a, n, f));
    counted!("ror", |a, _, n, f| shift::ror(a, n, f));
    counted!("rcl", |a, _, n, f| shift::rcl(a, n, f));
    counted!("rcr", |a, _, n, f| shift::rcr(a, n, f));
    counted!(@ u16 "shld", " ax, dx, cl", shift::shld);
    counted!(@ u32 "shld", " eax, edx, cl", shift::shld);
    counted!(@ u64 "shld", " rax, rdx, cl", shift::shld);
    counted!(@ u16 "shrd", " ax, dx, cl", shift::shrd);
    counted!(@ u32 "shrd", " eax, edx, cl", shift::shrd);
    counted!(@ u64 "shrd", " rax, rdx, cl", shift::shrd);
}

#[test]
fn multiplication() {
    // MUL and IMUL write RDX: the operand comes from RDX, as binary! passes it.
    binary!(@ u64 "imul", " rax, rdx", CF | OF, muldiv::imul_truncating);
    binary!(@ u32 "imul", " eax, edx", CF | OF, muldiv::imul_truncating);
    binary!(@ u16 "imul", " ax, dx", CF | OF, muldiv::imul_truncating);
}

/// One-operand multiplication and division: rdx:rax by rcx.
macro_rules! wide {
    ($text:literal) => {
        |a: u64, b: u64, c: u64, flags: u64| {
            let (mut a, mut b, mut flags) = (a, b, flags & ALL | 2);
            // SAFETY: only the listed registers and flags change; pushes are balanced.
            unsafe {
                asm!("push {f}", "popfq", $text, "pushfq", "pop {f}", f = inout(reg) flags,
                    inout("rax") a, inout("rdx") b, in("rcx") c);
            }
            (a, b, flags & ALL)
        }
    };
}

#[test]
fn widening_multiplication() {
    macro_rules! case {
        ($t:ident, $text:literal, $ours:expr) => {
            check(
                $text,
                <$t>::BITS,
                |_| CF | OF,
                wide!($text),
                |a, _, c, f| {
                    let (lo, hi, f) = $ours(a as $t, c as $t, f);
                    (lo as u64, hi as u64, f)
                },
            );
        };
    }
    case!(u16, "mul cx", muldiv::mul);
    case!(u32, "mul ecx", muldiv::mul);
    case!(u64, "mul rcx", muldiv::mul);
    case!(u16, "imul cx", muldiv::imul);
    case!(u32, "imul ecx", muldiv::imul);
    case!(u64, "imul rcx", muldiv::imul);
    for a in 0..=255u8 {
        for b in 0..=255u8 {
            let (lo, hi, f) = muldiv::mul(a, b, Flags::default());
            assert_eq!(u16::from_le_bytes([lo, hi]), u16::from(a) * u16::from(b));
            assert_eq!((f.cf(), f.of()), (hi != 0, hi != 0));
            let (lo, hi, f) = muldiv::imul(a, b, Flags::default());
            let product = i16::from(a as i8) * i16::from(b as i8);
            assert_eq!(i16::from_le_bytes([lo, hi]), product);
            assert_eq!((f.cf(), f.of()), (i8::try_from(product).is_err(), i8::try_from(product).is_err()));
        }
    }
}

#[test]
fn flags_of_division() {
    if !same_vendor() {
        return;
    }
    macro_rules! case {
        ($text:literal, $f:expr) => {{
            let mut flags: u64 = $f | 2;
            // SAFETY: 0:99 / 7 does not trap; pushes are balanced.
            unsafe {
                asm!("push {f}", "popfq", $text, "pushfq", "pop {f}", f = inout(reg) flags,
                    inout("rax") 99u64 => _, inout("rdx") 0u64 => _, in("rcx") 7u64);
            }
            let ours = muldiv::division_flags(Flags::from_rflags($f)).to_rflags();
            assert_eq!(flags & ALL, ours, "{} from {:#x}", $text, $f);
        }};
    }
    for f in [0, CF, OF, CF | OF, ALL, ALL & !CF, ALL & !OF] {
        case!("div cx", f);
        case!("div ecx", f);
        case!("div rcx", f);
        case!("idiv ecx", f);
        case!("idiv rcx", f);
    }
}

#[test]
fn division() {
    macro_rules! case {
        ($t:ident, $signed:ident, $wide:ident, $insn:literal, $ours:expr) => {{
            let mut random = Random(77);
            let mut quotients = 0;
            for _ in 0..20000 {
                let (hi, lo, d) = (random.operand() as $t, random.operand() as $t, random.operand() as $t);
                // Small upper halves, so that quotients often fit.
                let hi = match random.next() % 4 { 0 => hi, 1 => (lo as $signed >> (<$t>::BITS - 1)) as $t, _ => hi % d.max(2) / 2 };
                let n = ((hi as $wide) << <$t>::BITS) | lo as $wide;
                let exact = n.checked_div(d as $signed as $wide);
                let want = exact.filter(|q| *q as $signed as $wide == *q).map(|_| {
                    let (q, r): ($t, $t);
                    // SAFETY: the quotient fits, so the division does not trap.
                    unsafe { asm!($insn, d = in(reg) d, inout("rax") lo => q, inout("rdx") hi => r) };
                    (q, r)
                });
                quotients += u32::from(want.is_some());
                assert_eq!(want, $ours(hi, lo, d), "{} {hi:#x}:{lo:#x} / {d:#x}", $insn);
            }
            assert!(quotients > 5000, "{quotients}");
        }};
    }
    // The quotient check above is exact in a type wider than the dividend.
    case!(u16, u16, u64, "div {d:x}", muldiv::div);
    case!(u32, u32, u64, "div {d:e}", muldiv::div);
    case!(u64, u64, u128, "div {d}", muldiv::div);
    case!(u16, i16, i32, "idiv {d:x}", muldiv::idiv);
    case!(u32, i32, i64, "idiv {d:e}", muldiv::idiv);
    case!(u64, i64, i128, "idiv {d}", muldiv::idiv);
    assert_eq!(muldiv::div(1u8, 0, 2), Some((0x80, 0)));
    assert_eq!(muldiv::div(2u8, 0, 2), None);
    assert_eq!(muldiv::idiv(0xffu8, 0x80, 0xff), None, "-128 / -1");
    assert_eq!(muldiv::idiv(0xffu8, 0x81, 0xff), Some((0x7f, 0)));
    assert_eq!(muldiv::idiv(0u8, 7, 0xfe), Some((0xfd, 1)));
}

#[test]
fn bit_test_scan_and_count() {
    binary!(@wide "bt", ALL & !(OF | SF | AF | PF), |a, b, f| (a, bits::bt(a, b, f)));
    binary!(@wide "bts", ALL & !(OF | SF | AF | PF), bits::bts);
    binary!(@wide "btr", ALL & !(OF | SF | AF | PF), bits::btr);
    binary!(@wide "btc", ALL & !(OF | SF | AF | PF), bits::btc);
    binary!(@wide "bsf", ZF, |a, b, _| scanned(a, bits::bsf(b)));
    binary!(@wide "bsr", ZF, |a, b, _| scanned(a, bits::bsr(b)));
    if is_x86_feature_detected!("lzcnt") && is_x86_feature_detected!("bmi1") {
        binary!(@wide "lzcnt", CF | ZF, |_, b, f| bits::lzcnt(b, f));
        binary!(@wide "tzcnt", CF | ZF, |_, b, f| bits::tzcnt(b, f));
    }
    if is_x86_feature_detected!("popcnt") {
        binary!(@wide "popcnt", ALL, |_, b, _| bits::popcnt(b));
    }
}

fn scanned<T>(old: T, (found, f): (Option<T>, Flags)) -> (T, Flags) {
    (found.unwrap_or(old), f)
}

#[test]
fn bit_manipulation() {
    if !is_x86_feature_detected!("bmi1") || !is_x86_feature_detected!("bmi2") {
        eprintln!("skipped: the host lacks BMI");
        return;
    }
    macro_rules! both {
        ($name:literal, $r32:literal, $r64:literal, $defined:expr, $ours:expr) => {
            binary!(@ u32 $name, $r32, $defined, $ours);
            binary!(@ u64 $name, $r64, $defined, $ours);
        };
    }
    let most = ALL & !(AF | PF);
    both!("andn", " eax, eax, edx", " rax, rax, rdx", most, |a, b, _| bits::andn(a, b));
    both!("blsi", " eax, edx", " rax, rdx", most, |_, b, _| bits::blsi(b));
    both!("blsmsk", " eax, edx", " rax, rdx", most, |_, b, _| bits::blsmsk(b));
    both!("blsr", " eax, edx", " rax, rdx", most, |_, b, _| bits::blsr(b));
    both!("bextr", " eax, eax, edx", " rax, rax, rdx", most & !SF, |a, b, _| bits::bextr(a, b));
    both!("bzhi", " eax, eax, edx", " rax, rax, rdx", most, |a, b, _| bits::bzhi(a, b));
    both!("pdep", " eax, eax, edx", " rax, rax, rdx", ALL, |a, b, f| (bits::pdep(a, b), f));
    both!("pext", " eax, eax, edx", " rax, rax, rdx", ALL, |a, b, f| (bits::pext(a, b), f));
    both!("shlx", " eax, eax, edx", " rax, rax, rdx", ALL, |a, b, f| (bits::shlx(a, b), f));
    both!("shrx", " eax, eax, edx", " rax, rax, rdx", ALL, |a, b, f| (bits::shrx(a, b), f));
    both!("sarx", " eax, eax, edx", " rax, rax, rdx", ALL, |a, b, f| (bits::sarx(a, b), f));
    both!("rorx", " eax, eax, 13", " rax, rax, 13", ALL, |a, _, f| (bits::rorx(a, 13), f));
    both!("rorx", " eax, eax, 43", " rax, rax, 43", ALL, |a, _, f| (bits::rorx(a, 43), f));
}

#[test]
fn byte_swap_checksum_and_carry_chains() {
    binary!(@ u32 "bswap", " eax", ALL, |a, _, f| (bits::bswap_register(a), f));
    binary!(@ u64 "bswap", " rax", ALL, |a, _, f| (bits::bswap_register(a), f));
    assert_eq!(bits::bswap(0x1234u16), 0x3412);
    if is_x86_feature_detected!("sse4.2") {
        binary!(@ u32 "crc32", " eax, edx", ALL, |a, b, f| (bits::crc32(a, b), f));
        binary!(@ u64 "crc32", " rax, rdx", ALL, |a, b: u64, f| (u64::from(bits::crc32(a as u32, b)), f));
        binary!(@ u32 "crc32", " eax, dx", ALL, |a, b, f| (bits::crc32(a, b as u16), f));
        binary!(@ u32 "crc32", " eax, dl", ALL, |a, b, f| (bits::crc32(a, b as u8), f));
    }
    if is_x86_feature_detected!("adx") {
        binary!(@ u32 "adcx", " eax, edx", ALL, bits::adcx);
        binary!(@ u64 "adcx", " rax, rdx", ALL, bits::adcx);
        binary!(@ u32 "adox", " eax, edx", ALL, bits::adox);
        binary!(@ u64 "adox", " rax, rdx", ALL, bits::adox);
    }
}
