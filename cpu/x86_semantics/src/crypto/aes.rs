//! AES-NI: one round an instruction, on the state in column order.

/// Product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
const fn product(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut r) = (a, b, 0);
    while b != 0 {
        if b & 1 != 0 {
            r ^= a;
        }
        a = a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 };
        b >>= 1;
    }
    r
}

/// The S-box and its inverse (FIPS 197, 5.1.1).
const TABLES: ([u8; 256], [u8; 256]) = {
    let (mut sbox, mut inverse) = ([0; 256], [0; 256]);
    // 3 generates the multiplicative group, 0xf6 is its inverse: walking both
    // gives every element with its inverse.
    let (mut p, mut q) = (1u8, 1u8);
    loop {
        p = product(p, 3);
        q = product(q, 0xf6);
        let s = q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4) ^ 0x63;
        sbox[p as usize] = s;
        inverse[s as usize] = p;
        if p == 1 {
            break;
        }
    }
    sbox[0] = 0x63;
    inverse[0x63] = 0;
    (sbox, inverse)
};
static SBOX: [u8; 256] = TABLES.0;
static INVERSE_SBOX: [u8; 256] = TABLES.1;

/// MixColumns and its inverse of a column whose first byte is given and whose
/// others are zero; the contributions of the others are rotations of it.
const COLUMNS: ([u32; 256], [u32; 256]) = {
    let (mut mix, mut unmix) = ([0; 256], [0; 256]);
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        mix[i] = u32::from_le_bytes([product(b, 2), b, b, product(b, 3)]);
        unmix[i] = u32::from_le_bytes([product(b, 14), product(b, 9), product(b, 13), product(b, 11)]);
        i += 1;
    }
    (mix, unmix)
};
static MIX: [u32; 256] = COLUMNS.0;
static UNMIX: [u32; 256] = COLUMNS.1;

/// Bytes after ShiftRows: row r of column c comes from column c + r.
#[inline(always)]
fn shift_rows(state: u128) -> [u8; 16] {
    let s = state.to_le_bytes();
    std::array::from_fn(|i| s[(i + 4 * (i & 3)) & 15])
}

/// Bytes after InvShiftRows.
#[inline(always)]
fn unshift_rows(state: u128) -> [u8; 16] {
    let s = state.to_le_bytes();
    std::array::from_fn(|i| s[(i + 16 - 4 * (i & 3)) & 15])
}

/// Every column through `table` (MIX or UNMIX).
#[inline(always)]
fn columns(state: [u8; 16], table: &[u32; 256]) -> u128 {
    let column = |c: usize| {
        (0..4).fold(0, |sum, r| sum ^ table[usize::from(state[4 * c + r])].rotate_left(8 * r as u32))
    };
    (0..4).fold(0, |v, c| v | u128::from(column(c)) << (32 * c))
}

/// AESENC: one round of encryption.
pub fn aesenc(state: u128, key: u128) -> u128 {
    columns(shift_rows(state).map(|b| SBOX[usize::from(b)]), &MIX) ^ key
}

/// AESENCLAST: the last round of encryption.
pub fn aesenclast(state: u128, key: u128) -> u128 {
    u128::from_le_bytes(shift_rows(state).map(|b| SBOX[usize::from(b)])) ^ key
}

/// AESDEC: one round of the equivalent inverse cipher.
pub fn aesdec(state: u128, key: u128) -> u128 {
    columns(unshift_rows(state).map(|b| INVERSE_SBOX[usize::from(b)]), &UNMIX) ^ key
}

/// AESDECLAST: the last round of decryption.
pub fn aesdeclast(state: u128, key: u128) -> u128 {
    u128::from_le_bytes(unshift_rows(state).map(|b| INVERSE_SBOX[usize::from(b)])) ^ key
}

/// AESIMC: InvMixColumns of a round key.
pub fn aesimc(key: u128) -> u128 {
    columns(key.to_le_bytes(), &UNMIX)
}

/// AESKEYGENASSIST with round constant `rcon`.
pub fn aeskeygenassist(key: u128, rcon: u8) -> u128 {
    let word = |n: u32| (key >> (32 * n)) as u32;
    let substitute = |w: u32| u32::from_le_bytes(w.to_le_bytes().map(|b| SBOX[usize::from(b)]));
    let (x1, x3) = (substitute(word(1)), substitute(word(3)));
    let turned = |x: u32| x.rotate_right(8) ^ u32::from(rcon);
    [x1, turned(x1), x3, turned(x3)].into_iter().rev().fold(0, |v, w| v << 32 | u128::from(w))
}
