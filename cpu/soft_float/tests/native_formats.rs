//! Round-to-nearest arithmetic against Rust's own `f32` and `f64`, on any host;
//! and the other rounding modes against what rounding means.

use soft_float::{Env, F32, F64, Float, Rounding, add, convert, div, exception, fast, fma, mul, sqrt, sub};

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Any bits, or an exponent near one, or a short significand.
    fn double(&mut self) -> f64 {
        let (r, kind) = (self.next(), self.next() % 4);
        f64::from_bits(match kind {
            0 => r,
            1 => r & 0x800f_ffff_ffff_ffff | (0x3f0 + (r >> 54 & 0x1f)) << 52,
            2 => r & 0x83ff_ff00_0000_0000 | 0x3e00 << 48,
            _ => r & 0x801f_ffff_ffff_ffff,
        })
    }
}

const MASKED: u32 = 0x1f80;

fn same(got: u64, expected: f64, what: &str) {
    let both_nan = f64::from_bits(got).is_nan() && expected.is_nan();
    assert!(
        both_nan || got == expected.to_bits(),
        "{what}: got {got:#x}, expected {:#x}",
        expected.to_bits()
    );
}

#[test]
fn nearest_is_what_the_language_computes() {
    let mut r = Random(1);
    for _ in 0..200_000 {
        let (a, b, c) = (r.double(), r.double(), r.double());
        let (x, y, z) = (F64(a.to_bits()).unpack(), F64(b.to_bits()).unpack(), F64(c.to_bits()).unpack());
        let what = |op: &str| format!("{a:e} {op} {b:e} ({c:e})");
        let e = &mut Env::sse(MASKED);
        same(add::<F64>(x, y, e).0, a + b, &what("+"));
        same(sub::<F64>(x, y, e).0, a - b, &what("-"));
        same(mul::<F64>(x, y, e).0, a * b, &what("*"));
        same(div::<F64>(x, y, e).0, a / b, &what("/"));
        same(sqrt::<F64>(x, e).0, a.sqrt(), &what("sqrt"));
        same(fma::<F64>(x, y, z, e).0, a.mul_add(b, c), &what("fma"));
        let single: F32 = convert(x, e);
        let expected = a as f32;
        assert!(expected.is_nan() || single.0 == expected.to_bits(), "{a:e} to binary32");
    }
}

/// The short way must agree with the integer way in value and in what becomes
/// of MXCSR, whether PE was recorded before or not.
#[test]
fn short_way_changes_nothing() {
    type Op<T> = fn(T, T, &mut Env) -> T;
    let doubles: [(Op<F64>, Op<F64>); 4] = [
        (fast::add64, |a, b, e| add(a.unpack(), b.unpack(), e)),
        (fast::sub64, |a, b, e| sub(a.unpack(), b.unpack(), e)),
        (fast::mul64, |a, b, e| mul(a.unpack(), b.unpack(), e)),
        (fast::div64, |a, b, e| div(a.unpack(), b.unpack(), e)),
    ];
    let singles: [(Op<F32>, Op<F32>); 4] = [
        (fast::add32, |a, b, e| add(a.unpack(), b.unpack(), e)),
        (fast::sub32, |a, b, e| sub(a.unpack(), b.unpack(), e)),
        (fast::mul32, |a, b, e| mul(a.unpack(), b.unpack(), e)),
        (fast::div32, |a, b, e| div(a.unpack(), b.unpack(), e)),
    ];
    let mut r = Random(2);
    for _ in 0..100_000 {
        let (a, b) = (r.double(), r.double());
        for mxcsr in [MASKED, MASKED | u32::from(exception::PE)] {
            let check = |short: (u64, Env), long: (u64, Env)| {
                let recorded = |e: Env| e.flags | mxcsr as u8;
                assert_eq!(
                    (short.0, recorded(short.1)),
                    (long.0, recorded(long.1)),
                    "{a:e} {b:e} {mxcsr:#x}"
                );
            };
            for (short, long) in doubles {
                let (x, y) = (F64(a.to_bits()), F64(b.to_bits()));
                let (mut e, mut f) = (Env::sse(mxcsr), Env::sse(mxcsr));
                let (s, l) = (short(x, y, &mut e).0, long(x, y, &mut f).0);
                check((s, e), (l, f));
            }
            for (short, long) in singles {
                let (x, y) = (F32((a as f32).to_bits()), F32((b as f32).to_bits()));
                let (mut e, mut f) = (Env::sse(mxcsr), Env::sse(mxcsr));
                let (s, l) = (short(x, y, &mut e).0, long(x, y, &mut f).0);
                check((s.into(), e), (l.into(), f));
            }
        }
    }
}

/// Rounded down, up and to zero enclose the exact value: they differ by one
/// unit exactly when the result is inexact, and nearest is one of them.
#[test]
fn directed_rounding_encloses() {
    let mut r = Random(3);
    let mut inexact = 0;
    for _ in 0..100_000 {
        let (a, b) = (F64(r.double().to_bits()).unpack(), F64(r.double().to_bits()).unpack());
        let results = [Rounding::Nearest, Rounding::Down, Rounding::Up, Rounding::Zero].map(|rounding| {
            let mut e = Env { rounding, ..Env::sse(MASKED) };
            let q: F64 = div(a, b, &mut e);
            (f64::from_bits(q.0), e.flags)
        });
        let [(nearest, flags), (down, _), (up, _), (zero, _)] = results;
        if nearest.is_nan() {
            continue;
        }
        let exact = flags & exception::PE == 0;
        inexact += u32::from(!exact);
        assert_eq!(exact, down.to_bits() == up.to_bits(), "{a:?} / {b:?}: {results:?}");
        assert!(nearest == down || nearest == up, "{a:?} / {b:?}: {results:?}");
        assert_eq!(zero, if down.is_sign_negative() && up <= 0.0 { up } else { down }, "{results:?}");
    }
    assert!(inexact > 10_000);
}
