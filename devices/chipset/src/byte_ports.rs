//! Chips on an 8-bit bus: wider accesses reach them as one access a byte, lowest port first.

pub(crate) fn read(offset: u16, size: u8, mut byte: impl FnMut(u16) -> u8) -> u32 {
    (0..u16::from(size.min(4))).fold(0, |value, i| value | u32::from(byte(offset.wrapping_add(i))) << (8 * i))
}

pub(crate) fn write(offset: u16, size: u8, value: u32, mut byte: impl FnMut(u16, u8)) {
    for i in 0..u16::from(size.min(4)) {
        byte(offset.wrapping_add(i), (value >> (8 * i)) as u8);
    }
}
