//! Unmasked SSE exceptions: what MXCSR holds when the host's #XM arrives, and
//! that the destination is unchanged.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code, reason = "the oracle is the host's own instructions and signals")]

use std::arch::asm;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use x86_semantics::sse_fp::{self, Env};

/// Where the handler resumes; written by the code under test.
static RESUME: AtomicU64 = AtomicU64::new(0);
/// MXCSR at the fault, or 0.
static FAULTED: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_sigfpe(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the interrupted context, which is ours to change
    // until the handler returns; its floating-point part is always present here.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let fp = &mut *context.uc_mcontext.fpregs;
        FAULTED.store(fp.mxcsr, Ordering::SeqCst);
        fp.mxcsr = 0x1f80;
        context.uc_mcontext.gregs[libc::REG_RIP as usize] = RESUME.load(Ordering::SeqCst) as i64;
    }
}

type Host = fn(u128, u128, u32) -> (u128, u32, bool);
type Ours = fn(u128, u128, &mut Env) -> u128;

macro_rules! host {
    ($text:literal) => {
        |a: u128, b: u128, mxcsr: u32| {
            let (mut result, mut flags, saved) = (0u128, mxcsr, 0x1f80u32);
            FAULTED.store(0, Ordering::SeqCst);
            // SAFETY: only the named registers and local buffers are touched; the
            // handler resumes at label 2 with everything else as it was.
            unsafe {
                asm!(
                    "lea rax, [rip + 2f]",
                    "mov [{resume}], rax",
                    "movdqu xmm0, [{a}]",
                    "movdqu xmm1, [{b}]",
                    "ldmxcsr [{flags}]",
                    $text,
                    "2:",
                    "stmxcsr [{flags}]",
                    "ldmxcsr [{saved}]",
                    "movdqu [{r}], xmm0",
                    a = in(reg) &raw const a, b = in(reg) &raw const b,
                    r = in(reg) &raw mut result, flags = in(reg) &raw mut flags,
                    saved = in(reg) &raw const saved, resume = in(reg) RESUME.as_ptr(),
                    out("rax") _, out("xmm0") _, out("xmm1") _,
                );
            }
            let faulted = FAULTED.load(Ordering::SeqCst);
            (result, if faulted != 0 { faulted } else { flags }, faulted != 0)
        }
    };
}

const SINGLES: [u32; 14] = [
    0,
    1,
    0x80_0000,
    0x80_0001,
    0x3f80_0000,
    0x3f80_0001,
    0x4040_0000,
    0x7f7f_ffff,
    0x7f80_0000,
    0x7fc0_0000,
    0x7f80_0001,
    0xbf80_0000,
    0x7f_ffff,
    0x0d80_0000,
];
const DOUBLES: [u64; 10] = [
    0,
    1,
    0x10_0000_0000_0001,
    0x3ff0_0000_0000_0000,
    0x4008_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0x36a0_0000_0000_0001,
    0x47ef_ffff_ffff_ffff,
];

fn check(name: &str, host: Host, ours: Ours) {
    let singles = SINGLES.map(u128::from);
    let doubles = DOUBLES.map(u128::from);
    let mut operands: Vec<u128> = singles.iter().map(|v| v | 0x3f80_0000_3f80_0000_3f80_0000 << 32).collect();
    operands.extend(singles.iter().zip(singles.iter().rev()).map(|(x, y)| x | y << 32 | x << 64 | y << 96));
    operands.extend(doubles.iter().map(|v| v | 0x3ff0_0000_0000_0000 << 64));
    operands.extend(doubles.iter().zip(doubles.iter().rev()).map(|(x, y)| x | y << 64));
    for unmasked in [1u32, 2, 4, 8, 16, 32, 0x3f, 0x18, 0x12, 0x31] {
        for control in [0x1f80 & !(unmasked << 7), 0x9f80 & !(unmasked << 7)] {
            for &a in &operands {
                for &b in &operands {
                    let (value, flags, faulted) = host(a, b, control);
                    let mut env = Env::sse(control);
                    let mut got = ours(a, b, &mut env);
                    let mut got_flags = control;
                    let got_faulted = sse_fp::commit(&env, &mut got_flags);
                    if got_faulted {
                        got = a;
                    }
                    assert!(
                        (got, got_flags, got_faulted) == (value, flags, faulted),
                        "{name} mxcsr {control:#x}\n a {a:032x}\n b {b:032x}\n host {value:032x} {flags:#x} {faulted}\n ours {got:032x} {got_flags:#x} {got_faulted}"
                    );
                }
            }
        }
    }
}

#[test]
fn faults_come_with_the_same_flags() {
    // SAFETY: the handler only touches the context and two atomics.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigfpe as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGFPE, &action, std::ptr::null_mut()), 0);
    }
    check("addps", host!("addps xmm0, xmm1"), sse_fp::addps);
    check("mulps", host!("mulps xmm0, xmm1"), sse_fp::mulps);
    check("divps", host!("divps xmm0, xmm1"), sse_fp::divps);
    check("sqrtps", host!("sqrtps xmm0, xmm1"), |_, b, e| sse_fp::sqrtps(b, e));
    check("subpd", host!("subpd xmm0, xmm1"), sse_fp::subpd);
    check("mulsd", host!("mulsd xmm0, xmm1"), sse_fp::mulsd);
    check("divpd", host!("divpd xmm0, xmm1"), sse_fp::divpd);
    check("maxps", host!("maxps xmm0, xmm1"), sse_fp::maxps);
    check("cvtpd2ps", host!("cvtpd2ps xmm0, xmm1"), |_, b, e| sse_fp::cvtpd2ps(b, e));
    check("cvtps2dq", host!("cvtps2dq xmm0, xmm1"), |_, b, e| sse_fp::cvtps2dq(b, e));
    check("haddps", host!("haddps xmm0, xmm1"), sse_fp::haddps);
    check("dpps", host!("dpps xmm0, xmm1, 0xff"), |a, b, e| sse_fp::dpps(a, b, 0xff, e));
    check("cmpltps", host!("cmpltps xmm0, xmm1"), |a, b, e| sse_fp::cmpps(a, b, 1, e));
}
