//! The x87's packed decimal integers: 18 digits, two a byte, and a sign byte
//! (SDM volume 1, 4.7.2).

use crate::env::{Env, Rounding, exception};
use crate::format::Operand;
use crate::integer::to_signed;

const DIGITS: u32 = 18;
const LIMIT: i64 = 10i64.pow(DIGITS);
/// The packed decimal indefinite, as FBSTP stores it.
pub const BCD_INDEFINITE: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];

/// The value of a packed decimal. Digits above 9 count with their binary value,
/// as processors do with this undefined input.
pub fn from_bcd(bytes: [u8; 10]) -> Operand {
    let magnitude = bytes[..9]
        .iter()
        .rev()
        .fold(0u64, |v, b| v.wrapping_mul(100).wrapping_add(u64::from(b >> 4) * 10 + u64::from(b & 15)));
    Operand::from_parts(bytes[9] & 0x80 != 0, 63, magnitude)
}

/// Round to an integer and pack. `None`, with IE raised, if it has more than 18 digits.
pub fn to_bcd(a: Operand, rounding: Rounding, env: &mut Env) -> Option<[u8; 10]> {
    let before = *env;
    let v = to_signed(a, 64, rounding, env)?;
    if v.unsigned_abs() >= LIMIT as u64 {
        *env = before;
        env.raise(exception::IE);
        return None;
    }
    let mut bytes = [0; 10];
    let mut rest = v.unsigned_abs();
    for b in &mut bytes[..9] {
        let two = (rest % 100) as u8;
        *b = (two / 10) * 16 + two % 10;
        rest /= 100;
    }
    bytes[9] = u8::from(a.sign) << 7;
    Some(bytes)
}
