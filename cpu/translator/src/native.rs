//! Entering translated code, and the x87 registers, which stay in the host's
//! while the engine's own code (which never uses them) runs in between.
// UNSAFE: calls generated code; inline assembly for FXSAVE and FXRSTOR.
#![allow(unsafe_code, reason = "the home of transitions to generated code")]

use x86_state::{F80, FpuState};

use crate::layout::State;
use crate::signals::{Running, set_running};

/// Run translated code from `state.target` until it exits.
///
/// # Safety
/// `enter` is the entry thunk, `state.target` an address of translated code, and
/// `state` the state that lies below the store table it names.
pub(crate) unsafe fn enter(enter: u64, running: Running) {
    // SAFETY: by contract this is the thunk's address and signature.
    let thunk: extern "sysv64" fn(*mut State) = unsafe { std::mem::transmute(enter) };
    set_running(Some(running));
    thunk(running.state);
    set_running(None);
}

#[repr(C, align(16))]
struct Image([u8; 512]);

/// The x87 and MMX registers of this thread into `to` (vector registers and the
/// last-instruction pointers are not touched: they are the host's).
pub(crate) fn save_x87(to: &mut FpuState) {
    let mut image = Image([0; 512]);
    // SAFETY: FXSAVE64 writes 512 bytes to the aligned image.
    unsafe { std::arch::asm!("fxsave64 [{}]", in(reg) image.0.as_mut_ptr(), options(nostack)) };
    let b = &image.0;
    to.fcw = u16::from_le_bytes([b[0], b[1]]);
    to.fsw = u16::from_le_bytes([b[2], b[3]]);
    to.ftw = b[4];
    let top = usize::from(to.top());
    for i in 0..8 {
        let r = &b[32 + 16 * i..];
        let mut significand = [0; 8];
        significand.copy_from_slice(&r[..8]);
        to.regs[(top + i) & 7] = F80 {
            significand: u64::from_le_bytes(significand),
            sign_exponent: u16::from_le_bytes([r[8], r[9]]),
        };
    }
}

/// The x87 and MMX registers of `from` into this thread's.
pub(crate) fn load_x87(from: &FpuState) {
    let mut image = Image([0; 512]);
    let b = &mut image.0;
    b[0..2].copy_from_slice(&from.fcw.to_le_bytes());
    b[2..4].copy_from_slice(&from.fsw.to_le_bytes());
    b[4] = from.ftw;
    // SAFETY: STMXCSR writes 4 bytes within the image: FXRSTOR must keep MXCSR.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) b.as_mut_ptr().add(24), options(nostack)) };
    let top = usize::from(from.top());
    for i in 0..8 {
        let r = from.regs[(top + i) & 7];
        b[32 + 16 * i..40 + 16 * i].copy_from_slice(&r.significand.to_le_bytes());
        b[40 + 16 * i..42 + 16 * i].copy_from_slice(&r.sign_exponent.to_le_bytes());
    }
    // SAFETY: the image is complete and aligned; the vector registers it would
    // replace are declared clobbered.
    unsafe {
        std::arch::asm!("fxrstor64 [{}]", in(reg) image.0.as_ptr(), options(nostack),
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
            out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _,
            out("xmm13") _, out("xmm14") _, out("xmm15") _);
    };
}

/// Leave the x87 unit as the host's ABI wants it.
pub(crate) fn reset_x87() {
    // SAFETY: FNINIT touches only the x87 unit, which no Rust code relies on.
    unsafe { std::arch::asm!("fninit", options(nostack, nomem)) };
}
