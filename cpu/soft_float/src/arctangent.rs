//! FPATAN.

use crate::add::Wide;
use crate::env::{Env, exception};
use crate::format::{Float, Operand};
use crate::nan::{propagate2, special};

/// Pi.
const PI: Wide = Wide::new(1, 0xc90fdaa2_2168c234_c4c6628b_80dc1cd1);
/// Three quarters of pi.
const PI_3_4: Wide = Wide::new(1, 0x96cbe3f9_990e91a7_9394c9e8_a0a5159d);
/// Terms of the series for |u| <= 1/32: the rest is below 2^-140.
const TERMS: u32 = 13;

/// Arc tangents of 1/16, 2/16, ... 16/16.
const SIXTEENTHS: [Wide; 16] = [
    Wide::new(-5, 0xffaaddb9_67ef4e36_cb2792dc_0e2e0d51),
    Wide::new(-4, 0xfeadd4d5_617b6e32_c897989f_3e888ef8),
    Wide::new(-3, 0xbdcbda5e_72d81134_7b0b4f88_1c9c7488),
    Wide::new(-3, 0xfadbafc9_6406eb15_6dc79ef5_f7a217e6),
    Wide::new(-2, 0x9b13b9b8_3f5e5e69_c5abb498_d27af328),
    Wide::new(-2, 0xb7b0ca0f_26f78473_8aa32122_dcfe4483),
    Wide::new(-2, 0xd327761e_611fe5b6_427c95e9_001e7136),
    Wide::new(-2, 0xed63382b_0dda7b45_6fe445ec_bc3a8d03),
    Wide::new(-1, 0x832bf4a6_d9867e2a_4b6a09cb_61a515c1),
    Wide::new(-1, 0x8f005d5e_f7f59f9b_5c835e16_65c43748),
    Wide::new(-1, 0x9a2f80e6_71bdda20_4226f8e2_204ff3bd),
    Wide::new(-1, 0xa4bc7d19_34f70924_19a87f2a_457dac9f),
    Wide::new(-1, 0xaeac4c38_b4d8c080_14725e2f_3e52070a),
    Wide::new(-1, 0xb8053e2b_c2319e73_cb2da552_10a4443d),
    Wide::new(-1, 0xc0ce85b8_ac526640_89dd62c4_6e92fa25),
    Wide::new(-1, 0xc90fdaa2_2168c234_c4c6628b_80dc1cd1),
];

/// The angle of the point (x, y), from -pi to pi: the arc tangent of y / x.
pub fn arctangent<F: Float>(x: Operand, y: Operand, env: &mut Env) -> F {
    if special(&x) || special(&y) {
        return propagate2(x, y, env);
    }
    if x.denormal || y.denormal {
        env.raise(exception::DE);
    }
    let half_pi = PI.scaled(-1);
    let angle = match (x.is_infinite(), y.is_infinite()) {
        (true, true) if x.sign => PI_3_4,
        (true, true) => PI.scaled(-2),
        (false, true) => half_pi,
        _ if y.is_zero() || x.is_infinite() => {
            if !x.sign {
                return F::zero(y.sign);
            }
            PI
        }
        _ if x.is_zero() => half_pi,
        _ => finite(Wide::from_operand(x), Wide::from_operand(y).negated_if(y.sign)),
    };
    angle.negated_if(y.sign).round(env)
}

/// The angle of a point with positive `y` and `x` not zero.
fn finite(x: Wide, y: Wide) -> Wide {
    let width = x.negated_if(x.sign);
    let steep = (y.exponent, y.significand) > (width.exponent, width.significand);
    let acute = if steep { PI.scaled(-1).minus(up_to_one(width.over(y))) } else { up_to_one(y.over(width)) };
    if x.sign { PI.minus(acute) } else { acute }
}

/// The arc tangent of `t` from 0 to 1.
fn up_to_one(t: Wide) -> Wide {
    let nearest = if t.exponent < -5 {
        0
    } else {
        // t * 32, rounded down, gives the nearest sixteenth.
        let halves = (t.significand >> (127 - 5 - t.exponent)) as usize;
        halves.div_ceil(2)
    };
    let Some(base) = nearest.checked_sub(1).and_then(|n| SIXTEENTHS.get(n)) else {
        return series(t);
    };
    let c = Wide::from_integer(nearest as u128, -4);
    let u = t.minus(c).over(Wide::ONE.plus(t.times(c)));
    base.plus(series(u))
}

/// u - u^3/3 + u^5/5 - ...
fn series(u: Wide) -> Wide {
    let square = u.times(u);
    let last = Wide::ONE.over_integer(2 * TERMS + 1);
    let sum = (0..TERMS).rev().fold(last, |s, k| Wide::ONE.over_integer(2 * k + 1).minus(square.times(s)));
    u.times(sum)
}
