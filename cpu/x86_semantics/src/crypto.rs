//! AES, carry-less multiplication and SHA (SDM volume 2; FIPS 197, FIPS 180-4).

mod aes;
mod sha;

pub use aes::{aesdec, aesdeclast, aesenc, aesenclast, aesimc, aeskeygenassist};
pub use sha::{sha1msg1, sha1msg2, sha1nexte, sha1rnds4, sha256msg1, sha256msg2, sha256rnds2};

/// PCLMULQDQ: carry-less product of one quadword of each, chosen by bits 0 and 4
/// of `imm`.
pub fn pclmulqdq(a: u128, b: u128, imm: u8) -> u128 {
    let x = u128::from((a >> (64 * u32::from(imm & 1))) as u64);
    let mut y = (b >> (64 * u32::from(imm >> 4 & 1))) as u64;
    let mut product = 0;
    while y != 0 {
        product ^= x << y.trailing_zeros();
        y &= y - 1;
    }
    product
}
