//! Comparisons, minimum and maximum.

use soft_float::{Env, F32, F64, Float, Operand, Relation, compare};

use super::lanes::{map_pd, map_ps, sd, ss, with_sd, with_ss};
use crate::flags::Flags;

/// One of the 32 AVX predicates (SDM volume 2, CMPPD, table 3-1); SSE uses the
/// first eight.
fn predicate(a: Operand, b: Operand, imm: u8, env: &mut Env) -> bool {
    // Which of less, equal, greater, unordered make the predicate true. The
    // upper 16 predicates repeat these with the other response to quiet NaNs.
    const L: u8 = 1;
    const E: u8 = 2;
    const G: u8 = 4;
    const U: u8 = 8;
    const TRUE_FOR: [u8; 16] = [
        E,
        L,
        L | E,
        U,
        L | G | U,
        E | G | U,
        G | U,
        L | E | G,
        E | U,
        L | U,
        L | E | U,
        0,
        L | G,
        E | G,
        G,
        L | E | G | U,
    ];
    let ordered_kind = matches!(imm & 3, 1 | 2);
    let signaling = ordered_kind != (imm & 16 != 0);
    let relation = match compare(a, b, signaling, env) {
        Relation::Less => L,
        Relation::Equal => E,
        Relation::Greater => G,
        Relation::Unordered => U,
    };
    TRUE_FOR[usize::from(imm & 15)] & relation != 0
}

fn mask32(a: F32, b: F32, imm: u8, env: &mut Env) -> F32 {
    F32(if predicate(a.unpack(), b.unpack(), imm, env) { u32::MAX } else { 0 })
}

fn mask64(a: F64, b: F64, imm: u8, env: &mut Env) -> F64 {
    F64(if predicate(a.unpack(), b.unpack(), imm, env) { u64::MAX } else { 0 })
}

/// CMPPS with predicate `imm` (bits 0-4).
pub fn cmpps(a: u128, b: u128, imm: u8, env: &mut Env) -> u128 {
    map_ps(a, b, |x, y| mask32(x, y, imm, env))
}

/// CMPPD with predicate `imm` (bits 0-4).
pub fn cmppd(a: u128, b: u128, imm: u8, env: &mut Env) -> u128 {
    map_pd(a, b, |x, y| mask64(x, y, imm, env))
}

/// CMPSS with predicate `imm` (bits 0-4).
pub fn cmpss(a: u128, b: u128, imm: u8, env: &mut Env) -> u128 {
    with_ss(a, mask32(ss(a), ss(b), imm, env))
}

/// CMPSD with predicate `imm` (bits 0-4).
pub fn cmpsd(a: u128, b: u128, imm: u8, env: &mut Env) -> u128 {
    with_sd(a, mask64(sd(a), sd(b), imm, env))
}

/// ZF PF CF by relation; OF SF AF clear.
pub(crate) fn relation_flags(r: Relation) -> Flags {
    Flags::from_rflags(match r {
        Relation::Less => 1,
        Relation::Equal => 0x40,
        Relation::Greater => 0,
        Relation::Unordered => 0x45,
    })
}

/// COMISS.
pub fn comiss(a: u128, b: u128, env: &mut Env) -> Flags {
    relation_flags(compare(ss(a).unpack(), ss(b).unpack(), true, env))
}

/// COMISD.
pub fn comisd(a: u128, b: u128, env: &mut Env) -> Flags {
    relation_flags(compare(sd(a).unpack(), sd(b).unpack(), true, env))
}

/// UCOMISS.
pub fn ucomiss(a: u128, b: u128, env: &mut Env) -> Flags {
    relation_flags(compare(ss(a).unpack(), ss(b).unpack(), false, env))
}

/// UCOMISD.
pub fn ucomisd(a: u128, b: u128, env: &mut Env) -> Flags {
    relation_flags(compare(sd(a).unpack(), sd(b).unpack(), false, env))
}

/// `a` if the relation is `wanted`, else `b`: also when they are equal (zeros of
/// either sign) or one is a NaN (SDM volume 2, MAXPS).
fn choose<F: Float>(a: F, b: F, wanted: Relation, env: &mut Env) -> F {
    let (x, y) = (a.unpack(), b.unpack());
    let (value, operand) = if compare(x, y, true, env) == wanted { (a, x) } else { (b, y) };
    if operand.denormal && env.daz { F::zero(operand.sign) } else { value }
}

macro_rules! choice {
    ($($what:literal $wanted:ident => $ps:ident $pd:ident $ss:ident $sd:ident;)*) => {$(
        #[doc = concat!($what, " of four binary32 lanes.")]
        pub fn $ps(a: u128, b: u128, env: &mut Env) -> u128 {
            map_ps(a, b, |x, y| choose(x, y, Relation::$wanted, env))
        }
        #[doc = concat!($what, " of two binary64 lanes.")]
        pub fn $pd(a: u128, b: u128, env: &mut Env) -> u128 {
            map_pd(a, b, |x, y| choose(x, y, Relation::$wanted, env))
        }
        #[doc = concat!($what, " of the lowest binary32 lane; the others are `a`'s.")]
        pub fn $ss(a: u128, b: u128, env: &mut Env) -> u128 {
            with_ss(a, choose(ss(a), ss(b), Relation::$wanted, env))
        }
        #[doc = concat!($what, " of the lowest binary64 lane; the other is `a`'s.")]
        pub fn $sd(a: u128, b: u128, env: &mut Env) -> u128 {
            with_sd(a, choose(sd(a), sd(b), Relation::$wanted, env))
        }
    )*};
}

choice! {
    "Minimum" Less => minps minpd minss minsd;
    "Maximum" Greater => maxps maxpd maxss maxsd;
}
