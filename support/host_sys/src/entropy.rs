//! The host's random numbers.
// UNSAFE: one system call that fills a buffer of ours.
#![allow(unsafe_code, reason = "getrandom has no safe wrapper here")]

/// 64 bits from the host kernel's generator (getrandom(2)), or `None` where the
/// host refuses the call.
pub fn entropy() -> Option<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the pointer and length are those of a live local buffer.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    (got == bytes.len() as isize).then(|| u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_numbers_differ() {
        assert_ne!(super::entropy().unwrap(), super::entropy().unwrap());
    }
}
