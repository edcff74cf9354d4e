//! The host's processor as the reference: memory at fixed addresses, generated
//! code executed, random numbers that repeat.
#![allow(unsafe_code, reason = "executes generated code on the host")]

const PAGE: usize = 0x1000;

/// Data and a page of code at addresses of the caller's choice, the same as in
/// the guest.
pub struct Host {
    data: u64,
    len: usize,
    code: u64,
}

impl Host {
    /// Map both.
    pub fn new(data: u64, len: usize, code: u64) -> Self {
        for (at, len) in [(data, len), (code, PAGE)] {
            // SAFETY: NOREPLACE maps only where nothing is; the low addresses are
            // outside everything the process uses.
            let p = unsafe {
                libc::mmap(
                    at as *mut _,
                    len,
                    libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                    -1,
                    0,
                )
            };
            assert_eq!(p as u64, at);
        }
        Host { data, len, code }
    }

    /// The data.
    pub fn data(&mut self) -> &mut [u8] {
        // SAFETY: mapped by `new`, and reached through this borrow only.
        unsafe { std::slice::from_raw_parts_mut(self.data as *mut u8, self.len) }
    }

    /// Execute a function with one argument.
    ///
    /// # Safety
    /// The bytes are a function of the C convention for the code's address that
    /// changes nothing but the data and what the argument points to.
    pub unsafe fn call<T>(&mut self, function: &[u8], argument: *mut T) {
        assert!(function.len() <= PAGE);
        // SAFETY: the code's page is mapped and nobody else executes it; the rest
        // is the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(function.as_ptr(), self.code as *mut u8, function.len());
            let f: extern "C" fn(*mut T) = std::mem::transmute(self.code as *const ());
            f(argument);
        }
    }
}

/// xorshift, so that failures repeat.
pub struct Random(pub u64);

impl Random {
    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}
