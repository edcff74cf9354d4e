//! Every SSE floating-point function against the host processor: values and
//! MXCSR flags equal, over special values, rounding modes, DAZ, FTZ and random
//! operands.
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code, reason = "the oracle is the host's own instructions")]

use std::arch::asm;

use x86_semantics::sse_fp::{self, Env};

/// Operands in, result and MXCSR out, on the host.
type Host = fn(u128, u128, u128, u32) -> (u128, u32);
/// The same, ours.
type Ours = fn(u128, u128, u128, &mut Env) -> u128;

macro_rules! host {
    ($($text:expr),*) => {
        |a: u128, b: u128, c: u128, mxcsr: u32| {
            let mut result = 0u128;
            let mut flags = mxcsr;
            let saved = 0x1f80u32;
            // SAFETY: only the named registers and the four local buffers are
            // touched; all exceptions stay masked in `mxcsr`; the default MXCSR
            // is put back.
            unsafe {
                asm!(
                    "ldmxcsr [{flags}]",
                    "movdqu xmm0, [{a}]",
                    "movdqu xmm1, [{b}]",
                    "movdqu xmm2, [{c}]",
                    $($text,)*
                    "movdqu [{r}], xmm0",
                    "stmxcsr [{flags}]",
                    "ldmxcsr [{saved}]",
                    a = in(reg) &raw const a, b = in(reg) &raw const b, c = in(reg) &raw const c,
                    r = in(reg) &raw mut result, flags = in(reg) &raw mut flags,
                    saved = in(reg) &raw const saved,
                    out("rax") _, out("xmm0") _, out("xmm1") _, out("xmm2") _,
                );
            }
            (result, flags)
        }
    };
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn single(&mut self) -> u32 {
        let r = self.next();
        match r % 8 {
            0 => SINGLES[(r >> 8) as usize % SINGLES.len()],
            1 => (r >> 32) as u32 & 0x807f_ffff,
            2 => (r >> 32) as u32 & 0x87ff_ffff | 0x3800_0000,
            3 => (r >> 32) as u32 & 0xffff_0000,
            4 => (r >> 32) as u32 & 0x80ff_ffff | 0x3f00_0000,
            5 => (r >> 32) as u32 & 0x9fff_ffff | 0x4000_0000,
            _ => (r >> 32) as u32,
        }
    }

    fn double(&mut self) -> u64 {
        let r = self.next();
        let s = self.next();
        match r % 8 {
            0 => DOUBLES[(r >> 8) as usize % DOUBLES.len()],
            1 => s & 0x800f_ffff_ffff_ffff,
            2 => s & 0x81ff_ffff_ffff_ffff | 0x3e00_0000_0000_0000,
            3 => s & 0xffff_ffff_e000_0000,
            4 => s & 0x801f_ffff_ffff_ffff | 0x3fe0_0000_0000_0000,
            5 => s & 0x83ff_ffff_ffff_ffff | 0x4000_0000_0000_0000,
            6 => f64::from(f32::from_bits(self.single())).to_bits(),
            _ => s,
        }
    }

    fn quad(&mut self, kind: Kind) -> u128 {
        match kind {
            Kind::Single => (0..4).fold(0, |v, _| v << 32 | u128::from(self.single())),
            Kind::Double => u128::from(self.double()) << 64 | u128::from(self.double()),
            Kind::Integer => {
                let v = u128::from(self.next()) << 64 | u128::from(self.next());
                v >> (self.next() % 60)
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Single,
    Double,
    Integer,
}

const SINGLES: [u32; 30] = [
    0,
    1,
    2,
    0x7f_ffff,
    0x80_0000,
    0x80_0001,
    0x3f80_0000,
    0x3f80_0001,
    0x3f7f_ffff,
    0x3f00_0000,
    0x4000_0000,
    0x4b00_0000,
    0x4b7f_ffff,
    0x4effffff,
    0x4f00_0000,
    0x4f00_0001,
    0x5eff_ffff,
    0x5f00_0000,
    0x7f7f_ffff,
    0x7f00_0000,
    0x7f80_0000,
    0x7f80_0001,
    0x7fc0_0000,
    0x7fc1_2345,
    0x7fa0_0000,
    0x3fc0_0000,
    0x4020_0000,
    0x0040_0000,
    0x3380_0000,
    0x477f_f000,
];

const DOUBLES: [u64; 30] = [
    0,
    1,
    2,
    0xf_ffff_ffff_ffff,
    0x10_0000_0000_0000,
    0x10_0000_0000_0001,
    0x3ff0_0000_0000_0000,
    0x3ff0_0000_0000_0001,
    0x3fef_ffff_ffff_ffff,
    0x3fe0_0000_0000_0000,
    0x4000_0000_0000_0000,
    0x4330_0000_0000_0000,
    0x433f_ffff_ffff_ffff,
    0x41df_ffff_ffc0_0000,
    0x41df_ffff_ffe0_0000,
    0x41e0_0000_0000_0000,
    0x43df_ffff_ffff_ffff,
    0x43e0_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x7fe0_0000_0000_0000,
    0x7ff0_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0x7ff8_0000_0000_0000,
    0x7ff8_1234_5678_9abc,
    0x7ff4_0000_0000_0000,
    0x3810_0000_0000_0000,
    0x380f_ffff_ffff_ffff,
    0x36a0_0000_0000_0000,
    0x47ef_ffff_f000_0000,
    0x3ff8_0000_0000_0000,
];

/// MXCSR values: rounding × DAZ × FTZ, flags clear; and the common one with PE
/// already set, which takes the short way.
fn environments() -> impl Iterator<Item = u32> {
    (0..16u32).map(|n| 0x1f80 | (n & 3) << 13 | (n >> 2 & 1) << 6 | (n >> 3) << 15).chain([0x1fa0])
}

fn check(name: &str, host: Host, ours: Ours, kind: Kind, operands: usize) {
    let special: Vec<u128> = match kind {
        Kind::Single => SINGLES
            .iter()
            .flat_map(|&v| [v, v | 1 << 31])
            .map(|v| u128::from(v) * 0x1_0000_0000_0000_0000_0000_0001)
            .collect(),
        Kind::Double => DOUBLES
            .iter()
            .flat_map(|&v| [v, v | 1 << 63])
            .map(|v| u128::from(v) << 64 | u128::from(v))
            .collect(),
        Kind::Integer => vec![0, 1, u128::MAX, 1 << 31, 1 << 63, (1 << 63) - 1, (1 << 31) - 1],
    };
    let one = |a: u128, b: u128, c: u128, mxcsr: u32| {
        let (value, flags) = host(a, b, c, mxcsr);
        let mut env = Env::sse(mxcsr);
        let got = ours(a, b, c, &mut env);
        let mut got_flags = mxcsr;
        assert!(!sse_fp::commit(&env, &mut got_flags));
        assert!(
            got == value && got_flags == flags,
            "{name} mxcsr {mxcsr:#x}\n a {a:032x}\n b {b:032x}\n c {c:032x}\n host {value:032x} {flags:#x}\n ours {got:032x} {got_flags:#x}"
        );
    };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for mxcsr in environments() {
        for &b in &special {
            match operands {
                1 => one(random.quad(kind), b, 0, mxcsr),
                _ => special.iter().for_each(|&a| one(a, b, random.quad(kind), mxcsr)),
            }
        }
        for _ in 0..4_000 {
            one(random.quad(kind), random.quad(kind), random.quad(kind), mxcsr);
        }
    }
}

macro_rules! cases {
    ($($test:ident: $kind:ident $operands:literal [$($text:literal => $ours:expr;)*])*) => {$(
        #[test]
        fn $test() {
            $(check($text, host!($text), $ours, Kind::$kind, $operands);)*
        }
    )*};
}

cases! {
    arithmetic_single: Single 2 [
        "addps xmm0, xmm1" => |a, b, _, e| sse_fp::addps(a, b, e);
        "subps xmm0, xmm1" => |a, b, _, e| sse_fp::subps(a, b, e);
        "mulps xmm0, xmm1" => |a, b, _, e| sse_fp::mulps(a, b, e);
        "divps xmm0, xmm1" => |a, b, _, e| sse_fp::divps(a, b, e);
        "addss xmm0, xmm1" => |a, b, _, e| sse_fp::addss(a, b, e);
        "divss xmm0, xmm1" => |a, b, _, e| sse_fp::divss(a, b, e);
    ]
    arithmetic_double: Double 2 [
        "addpd xmm0, xmm1" => |a, b, _, e| sse_fp::addpd(a, b, e);
        "subpd xmm0, xmm1" => |a, b, _, e| sse_fp::subpd(a, b, e);
        "mulpd xmm0, xmm1" => |a, b, _, e| sse_fp::mulpd(a, b, e);
        "divpd xmm0, xmm1" => |a, b, _, e| sse_fp::divpd(a, b, e);
        "subsd xmm0, xmm1" => |a, b, _, e| sse_fp::subsd(a, b, e);
        "mulsd xmm0, xmm1" => |a, b, _, e| sse_fp::mulsd(a, b, e);
    ]
    roots: Single 1 [
        "sqrtps xmm0, xmm1" => |_, b, _, e| sse_fp::sqrtps(b, e);
        "sqrtss xmm0, xmm1" => |a, b, _, e| sse_fp::sqrtss(a, b, e);
    ]
    roots_double: Double 1 [
        "sqrtpd xmm0, xmm1" => |_, b, _, e| sse_fp::sqrtpd(b, e);
        "sqrtsd xmm0, xmm1" => |a, b, _, e| sse_fp::sqrtsd(a, b, e);
    ]
    choices_single: Single 2 [
        "minps xmm0, xmm1" => |a, b, _, e| sse_fp::minps(a, b, e);
        "maxps xmm0, xmm1" => |a, b, _, e| sse_fp::maxps(a, b, e);
        "maxss xmm0, xmm1" => |a, b, _, e| sse_fp::maxss(a, b, e);
    ]
    choices_double: Double 2 [
        "minpd xmm0, xmm1" => |a, b, _, e| sse_fp::minpd(a, b, e);
        "maxpd xmm0, xmm1" => |a, b, _, e| sse_fp::maxpd(a, b, e);
        "minsd xmm0, xmm1" => |a, b, _, e| sse_fp::minsd(a, b, e);
    ]
    horizontal: Single 2 [
        "haddps xmm0, xmm1" => |a, b, _, e| sse_fp::haddps(a, b, e);
        "hsubps xmm0, xmm1" => |a, b, _, e| sse_fp::hsubps(a, b, e);
        "addsubps xmm0, xmm1" => |a, b, _, e| sse_fp::addsubps(a, b, e);
        "dpps xmm0, xmm1, 0xff" => |a, b, _, e| sse_fp::dpps(a, b, 0xff, e);
        "dpps xmm0, xmm1, 0x71" => |a, b, _, e| sse_fp::dpps(a, b, 0x71, e);
        "dpps xmm0, xmm1, 0x9a" => |a, b, _, e| sse_fp::dpps(a, b, 0x9a, e);
    ]
    horizontal_double: Double 2 [
        "haddpd xmm0, xmm1" => |a, b, _, e| sse_fp::haddpd(a, b, e);
        "hsubpd xmm0, xmm1" => |a, b, _, e| sse_fp::hsubpd(a, b, e);
        "addsubpd xmm0, xmm1" => |a, b, _, e| sse_fp::addsubpd(a, b, e);
        "dppd xmm0, xmm1, 0x31" => |a, b, _, e| sse_fp::dppd(a, b, 0x31, e);
        "dppd xmm0, xmm1, 0x23" => |a, b, _, e| sse_fp::dppd(a, b, 0x23, e);
    ]
    round_single: Single 1 [
        "roundps xmm0, xmm1, 0" => |_, b, _, e| sse_fp::roundps(b, 0, e);
        "roundps xmm0, xmm1, 1" => |_, b, _, e| sse_fp::roundps(b, 1, e);
        "roundps xmm0, xmm1, 4" => |_, b, _, e| sse_fp::roundps(b, 4, e);
        "roundps xmm0, xmm1, 10" => |_, b, _, e| sse_fp::roundps(b, 10, e);
        "roundss xmm0, xmm1, 3" => |a, b, _, e| sse_fp::roundss(a, b, 3, e);
    ]
    round_double: Double 1 [
        "roundpd xmm0, xmm1, 0" => |_, b, _, e| sse_fp::roundpd(b, 0, e);
        "roundpd xmm0, xmm1, 2" => |_, b, _, e| sse_fp::roundpd(b, 2, e);
        "roundpd xmm0, xmm1, 12" => |_, b, _, e| sse_fp::roundpd(b, 12, e);
        "roundsd xmm0, xmm1, 9" => |a, b, _, e| sse_fp::roundsd(a, b, 9, e);
    ]
    convert_single: Single 1 [
        "cvtps2pd xmm0, xmm1" => |_, b, _, e| sse_fp::cvtps2pd(b, e);
        "cvtss2sd xmm0, xmm1" => |a, b, _, e| sse_fp::cvtss2sd(a, b, e);
        "cvtps2dq xmm0, xmm1" => |_, b, _, e| sse_fp::cvtps2dq(b, e);
        "cvttps2dq xmm0, xmm1" => |_, b, _, e| sse_fp::cvttps2dq(b, e);
        "pcmpeqd xmm0, xmm0" => |_, _, _, _| u128::MAX;
    ]
    convert_double: Double 1 [
        "cvtpd2ps xmm0, xmm1" => |_, b, _, e| sse_fp::cvtpd2ps(b, e);
        "cvtsd2ss xmm0, xmm1" => |a, b, _, e| sse_fp::cvtsd2ss(a, b, e);
        "cvtpd2dq xmm0, xmm1" => |_, b, _, e| sse_fp::cvtpd2dq(b, e);
        "cvttpd2dq xmm0, xmm1" => |_, b, _, e| sse_fp::cvttpd2dq(b, e);
    ]
    convert_integer: Integer 1 [
        "cvtdq2ps xmm0, xmm1" => |_, b, _, e| sse_fp::cvtdq2ps(b, e);
        "cvtdq2pd xmm0, xmm1" => |_, b, _, _| sse_fp::cvtdq2pd(b);
    ]
}

macro_rules! to_gpr {
    ($kind:ident, $text:literal, $ours:expr) => {
        check($text, host!($text, "pxor xmm0, xmm0", "movq xmm0, rax"), $ours, Kind::$kind, 1)
    };
}

#[test]
fn to_general_registers() {
    to_gpr!(Single, "cvtss2si eax, xmm1", |_, b, _, e| sse_fp::cvtss2si32(b, e).into());
    to_gpr!(Single, "cvtss2si rax, xmm1", |_, b, _, e| sse_fp::cvtss2si64(b, e).into());
    to_gpr!(Single, "cvttss2si eax, xmm1", |_, b, _, e| sse_fp::cvttss2si32(b, e).into());
    to_gpr!(Single, "cvttss2si rax, xmm1", |_, b, _, e| sse_fp::cvttss2si64(b, e).into());
    to_gpr!(Double, "cvtsd2si eax, xmm1", |_, b, _, e| sse_fp::cvtsd2si32(b, e).into());
    to_gpr!(Double, "cvtsd2si rax, xmm1", |_, b, _, e| sse_fp::cvtsd2si64(b, e).into());
    to_gpr!(Double, "cvttsd2si eax, xmm1", |_, b, _, e| sse_fp::cvttsd2si32(b, e).into());
    to_gpr!(Double, "cvttsd2si rax, xmm1", |_, b, _, e| sse_fp::cvttsd2si64(b, e).into());
}

macro_rules! from_gpr {
    ($text:literal, $ours:expr) => {
        check($text, host!("movq rax, xmm1", $text), $ours, Kind::Integer, 1)
    };
}

#[test]
fn from_general_registers() {
    from_gpr!("cvtsi2ss xmm0, eax", |a, b, _, e| sse_fp::cvtsi2ss32(a, b as u32, e));
    from_gpr!("cvtsi2ss xmm0, rax", |a, b, _, e| sse_fp::cvtsi2ss64(a, b as u64, e));
    from_gpr!("cvtsi2sd xmm0, eax", |a, b, _, e| sse_fp::cvtsi2sd32(a, b as u32, e));
    from_gpr!("cvtsi2sd xmm0, rax", |a, b, _, e| sse_fp::cvtsi2sd64(a, b as u64, e));
}

macro_rules! flags {
    ($kind:ident, $text:literal, $ours:path) => {
        check(
            $text,
            host!($text, "pushfq", "pop rax", "and eax, 0x8d5", "movq xmm0, rax"),
            |a, b, _, e| $ours(a, b, e).to_rflags().into(),
            Kind::$kind,
            2,
        )
    };
}

#[test]
fn ordered_and_unordered_flags() {
    flags!(Single, "comiss xmm0, xmm1", sse_fp::comiss);
    flags!(Single, "ucomiss xmm0, xmm1", sse_fp::ucomiss);
    flags!(Double, "comisd xmm0, xmm1", sse_fp::comisd);
    flags!(Double, "ucomisd xmm0, xmm1", sse_fp::ucomisd);
}

macro_rules! predicates {
    ($($imm:literal)*) => {$(
        check(
            concat!("vcmpps ", $imm),
            host!(concat!("vcmpps xmm0, xmm0, xmm1, ", $imm)),
            |a, b, _, e| sse_fp::cmpps(a, b, $imm, e),
            Kind::Single,
            2,
        );
    )*};
}

#[test]
fn all_predicates() {
    if !std::is_x86_feature_detected!("avx") {
        return;
    }
    predicates!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
    check("vcmpsd", host!("cmpsd xmm0, xmm1, 6"), |a, b, _, e| sse_fp::cmpsd(a, b, 6, e), Kind::Double, 2);
    check("vcmppd", host!("cmppd xmm0, xmm1, 1"), |a, b, _, e| sse_fp::cmppd(a, b, 1, e), Kind::Double, 2);
}

macro_rules! fma {
    ($kind:ident $text:literal $ours:expr) => {
        check($text, host!($text), $ours, Kind::$kind, 2)
    };
}

/// Operand order of the forms: 132 multiplies 1 and 3, 213 2 and 1, 231 2 and 3.
#[test]
fn fused() {
    if !std::is_x86_feature_detected!("fma") {
        return;
    }
    fma!(Single "vfmadd132ps xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fmaddps(a, c, b, e));
    fma!(Single "vfmadd213ps xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fmaddps(b, a, c, e));
    fma!(Single "vfmadd231ps xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fmaddps(b, c, a, e));
    fma!(Single "vfmsub213ps xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fmsubps(b, a, c, e));
    fma!(Single "vfnmadd213ps xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fnmaddps(b, a, c, e));
    fma!(Single "vfnmsub213ss xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fnmsubss(a, b, a, c, e));
    fma!(Double "vfmadd132pd xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fmaddpd(a, c, b, e));
    fma!(Double "vfmadd213pd xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fmaddpd(b, a, c, e));
    fma!(Double "vfmadd231sd xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fmaddsd(a, b, c, a, e));
    fma!(Double "vfmsub231pd xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fmsubpd(b, c, a, e));
    fma!(Double "vfnmadd213pd xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fnmaddpd(b, a, c, e));
    fma!(Double "vfnmsub213pd xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fnmsubpd(b, a, c, e));
    fma!(Double "vfmaddsub213pd xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fmaddsubpd(b, a, c, e));
    fma!(Single "vfmsubadd213ps xmm0, xmm1, xmm2" |a, b, c, e| sse_fp::fmsubaddps(b, a, c, e));
}

#[test]
fn half_precision() {
    if !std::is_x86_feature_detected!("f16c") {
        return;
    }
    check(
        "vcvtph2ps",
        host!("vcvtph2ps xmm0, xmm1"),
        |_, b, _, e| sse_fp::cvtph2ps(b as u64, e),
        Kind::Integer,
        1,
    );
    check(
        "vcvtph2ps",
        host!("vcvtph2ps xmm0, xmm1"),
        |_, b, _, e| sse_fp::cvtph2ps(b as u64, e),
        Kind::Single,
        1,
    );
    check(
        "vcvtps2ph 4",
        host!("vcvtps2ph xmm0, xmm1, 4"),
        |_, b, _, e| sse_fp::cvtps2ph(b, 4, e).into(),
        Kind::Single,
        1,
    );
    check(
        "vcvtps2ph 2",
        host!("vcvtps2ph xmm0, xmm1, 2"),
        |_, b, _, e| sse_fp::cvtps2ph(b, 2, e).into(),
        Kind::Single,
        1,
    );
}

/// The approximations are the host's own bits, whatever MXCSR holds, and raise
/// no flag.
#[test]
fn approximations() {
    macro_rules! approximate {
        ($($text:literal $ours:expr);* $(;)?) => {
            $(check($text, host!($text), $ours, Kind::Single, 2);)*
        };
    }
    approximate! {
        "rcpps xmm0, xmm1" |_, b, _, _| sse_fp::rcpps(b);
        "rcpss xmm0, xmm1" |a, b, _, _| sse_fp::rcpss(a, b);
        "rsqrtps xmm0, xmm1" |_, b, _, _| sse_fp::rsqrtps(b);
        "rsqrtss xmm0, xmm1" |a, b, _, _| sse_fp::rsqrtss(a, b);
    }
}
