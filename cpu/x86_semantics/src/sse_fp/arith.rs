//! Addition to square root, horizontal forms, dot products.

use soft_float::{Env, F32, F64, Float, fast};

use super::lanes::{from_pd, from_ps, map_pd, map_ps, pd, ps, sd, ss, with_sd, with_ss};

macro_rules! binary {
    ($($what:literal $op32:path, $op64:path => $ps:ident $pd:ident $ss:ident $sd:ident;)*) => {$(
        #[doc = concat!($what, " of four binary32 lanes.")]
        pub fn $ps(a: u128, b: u128, env: &mut Env) -> u128 {
            map_ps(a, b, |x, y| $op32(x, y, env))
        }
        #[doc = concat!($what, " of two binary64 lanes.")]
        pub fn $pd(a: u128, b: u128, env: &mut Env) -> u128 {
            map_pd(a, b, |x, y| $op64(x, y, env))
        }
        #[doc = concat!($what, " of the lowest binary32 lane; the others are `a`'s.")]
        pub fn $ss(a: u128, b: u128, env: &mut Env) -> u128 {
            with_ss(a, $op32(ss(a), ss(b), env))
        }
        #[doc = concat!($what, " of the lowest binary64 lane; the other is `a`'s.")]
        pub fn $sd(a: u128, b: u128, env: &mut Env) -> u128 {
            with_sd(a, $op64(sd(a), sd(b), env))
        }
    )*};
}

binary! {
    "Sum" fast::add32, fast::add64 => addps addpd addss addsd;
    "Difference" fast::sub32, fast::sub64 => subps subpd subss subsd;
    "Product" fast::mul32, fast::mul64 => mulps mulpd mulss mulsd;
    "Quotient" fast::div32, fast::div64 => divps divpd divss divsd;
}

/// Square root of four binary32 lanes.
pub fn sqrtps(b: u128, env: &mut Env) -> u128 {
    from_ps(ps(b).map(|x| fast::sqrt32(x, env)))
}

/// Square root of two binary64 lanes.
pub fn sqrtpd(b: u128, env: &mut Env) -> u128 {
    from_pd(pd(b).map(|x| fast::sqrt64(x, env)))
}

/// Square root of `b`'s lowest binary32 lane; the others are `a`'s.
pub fn sqrtss(a: u128, b: u128, env: &mut Env) -> u128 {
    with_ss(a, fast::sqrt32(ss(b), env))
}

/// Square root of `b`'s lowest binary64 lane; the other is `a`'s.
pub fn sqrtsd(a: u128, b: u128, env: &mut Env) -> u128 {
    with_sd(a, fast::sqrt64(sd(b), env))
}

macro_rules! horizontal {
    ($($what:literal $op32:path, $op64:path => $ps:ident $pd:ident;)*) => {$(
        #[doc = concat!($what, " of neighbouring binary32 lanes: two of `a`, then two of `b`.")]
        pub fn $ps(a: u128, b: u128, env: &mut Env) -> u128 {
            let (a, b) = (ps(a), ps(b));
            from_ps([
                $op32(a[0], a[1], env),
                $op32(a[2], a[3], env),
                $op32(b[0], b[1], env),
                $op32(b[2], b[3], env),
            ])
        }
        #[doc = concat!($what, " of the two binary64 lanes of `a` and of `b`.")]
        pub fn $pd(a: u128, b: u128, env: &mut Env) -> u128 {
            let (a, b) = (pd(a), pd(b));
            from_pd([$op64(a[0], a[1], env), $op64(b[0], b[1], env)])
        }
    )*};
}

horizontal! {
    "Sum" fast::add32, fast::add64 => haddps haddpd;
    "Difference" fast::sub32, fast::sub64 => hsubps hsubpd;
}

/// Even binary32 lanes subtracted, odd ones added.
pub fn addsubps(a: u128, b: u128, env: &mut Env) -> u128 {
    let (a, b) = (ps(a), ps(b));
    from_ps([
        fast::sub32(a[0], b[0], env),
        fast::add32(a[1], b[1], env),
        fast::sub32(a[2], b[2], env),
        fast::add32(a[3], b[3], env),
    ])
}

/// The low binary64 lane subtracted, the high one added.
pub fn addsubpd(a: u128, b: u128, env: &mut Env) -> u128 {
    let (a, b) = (pd(a), pd(b));
    from_pd([fast::sub64(a[0], b[0], env), fast::add64(a[1], b[1], env)])
}

/// DPPS: lanes chosen by `imm` bits 4-7 multiplied and summed pairwise, the sum
/// stored to the lanes chosen by bits 0-3.
pub fn dpps(a: u128, b: u128, imm: u8, env: &mut Env) -> u128 {
    let a_unchanged = a;
    let (a, b) = (ps(a), ps(b));
    let mut product = [F32::zero(false); 4];
    for (i, p) in product.iter_mut().enumerate() {
        if imm >> (4 + i) & 1 != 0 {
            *p = fast::mul32(a[i], b[i], env);
        }
    }
    if !env.next_step() {
        return a_unchanged;
    }
    let low = fast::add32(product[0], product[1], env);
    let high = fast::add32(product[2], product[3], env);
    if !env.next_step() {
        return a_unchanged;
    }
    let sum = fast::add32(low, high, env);
    from_ps([0, 1, 2, 3].map(|i| if imm >> i & 1 != 0 { sum } else { F32::zero(false) }))
}

/// DPPD: as DPPS with two binary64 lanes (`imm` bits 4-5 and 0-1).
pub fn dppd(a: u128, b: u128, imm: u8, env: &mut Env) -> u128 {
    let a_unchanged = a;
    let (a, b) = (pd(a), pd(b));
    let mut product = [F64::zero(false); 2];
    for (i, p) in product.iter_mut().enumerate() {
        if imm >> (4 + i) & 1 != 0 {
            *p = fast::mul64(a[i], b[i], env);
        }
    }
    if !env.next_step() {
        return a_unchanged;
    }
    let sum = fast::add64(product[0], product[1], env);
    from_pd([0, 1].map(|i| if imm >> i & 1 != 0 { sum } else { F64::zero(false) }))
}
