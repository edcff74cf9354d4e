//! SSE to AVX and FMA floating point on 128-bit lanes; AVX-256 calls twice.
//!
//! Every function takes an [`Env`] made from MXCSR and leaves the exceptions it
//! raised there; [`commit`] then records them in MXCSR and tells whether #XM is
//! due, in which case the handler must not write its destination. Make one
//! environment an instruction, whatever the vector length. Scalar forms take
//! the value whose upper part they keep as the first operand.

mod approx;
mod arith;
mod compare;
mod convert;
mod fma;
mod lanes;
mod round;

pub use soft_float::Env;

pub use approx::{rcpps, rcpss, rsqrtps, rsqrtss};
pub use arith::{
    addpd, addps, addsd, addss, addsubpd, addsubps, divpd, divps, divsd, divss, dppd, dpps, haddpd, haddps,
    hsubpd, hsubps, mulpd, mulps, mulsd, mulss, sqrtpd, sqrtps, sqrtsd, sqrtss, subpd, subps, subsd, subss,
};
pub(crate) use compare::relation_flags;
pub use compare::{
    cmppd, cmpps, cmpsd, cmpss, comisd, comiss, maxpd, maxps, maxsd, maxss, minpd, minps, minsd, minss,
    ucomisd, ucomiss,
};
pub use convert::{
    cvtdq2pd, cvtdq2ps, cvtpd2dq, cvtpd2pi, cvtpd2ps, cvtph2ps, cvtpi2pd, cvtpi2ps, cvtps2dq, cvtps2pd,
    cvtps2ph, cvtps2pi, cvtsd2si32, cvtsd2si64, cvtsd2ss, cvtsi2sd32, cvtsi2sd64, cvtsi2ss32, cvtsi2ss64,
    cvtss2sd, cvtss2si32, cvtss2si64, cvttpd2dq, cvttpd2pi, cvttps2dq, cvttps2pi, cvttsd2si32, cvttsd2si64,
    cvttss2si32, cvttss2si64,
};
pub use fma::{
    fmaddpd, fmaddps, fmaddsd, fmaddss, fmaddsubpd, fmaddsubps, fmsubaddpd, fmsubaddps, fmsubpd, fmsubps,
    fmsubsd, fmsubss, fnmaddpd, fnmaddps, fnmaddsd, fnmaddss, fnmsubpd, fnmsubps, fnmsubsd, fnmsubss,
};
pub use round::{roundpd, roundps, roundsd, roundss};

/// Record in MXCSR what the operations raised. Returns true if an unmasked
/// exception is among it: the instruction faults with #XM (or #UD while
/// CR4.OSXMMEXCPT is clear) and its destination stays as it was.
#[must_use]
pub fn commit(env: &Env, mxcsr: &mut u32) -> bool {
    let reported = env.reported();
    *mxcsr |= u32::from(reported);
    env.unmasked(reported)
}
