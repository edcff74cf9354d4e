//! Integer operations of MMX to AVX2 on 128-bit lanes (SDM volume 2).
//!
//! Each function has the manual's legacy mnemonic and computes one 128-bit lane;
//! AVX-256 forms that work within lanes call twice. Operands stand in the order
//! destination, source (VEX: first source, second source). Where a 64-bit MMX
//! form is not simply the low half of this, [`mmx`] has it.

mod arithmetic;
mod compare;
mod lanes;
pub mod mmx;
mod multiply;
mod permute;
mod shift;
mod shuffle;
pub mod strings;

pub use arithmetic::{
    pabsb, pabsd, pabsw, paddb, paddd, paddq, paddsb, paddsw, paddusb, paddusw, paddw, pavgb, pavgw, phaddd,
    phaddsw, phaddw, phsubd, phsubsw, phsubw, psignb, psignd, psignw, psubb, psubd, psubq, psubsb, psubsw,
    psubusb, psubusw, psubw,
};
pub use compare::{
    movmskpd, movmskps, pand, pandn, pcmpeqb, pcmpeqd, pcmpeqq, pcmpeqw, pcmpgtb, pcmpgtd, pcmpgtq, pcmpgtw,
    phminposuw, pmaxsb, pmaxsd, pmaxsw, pmaxub, pmaxud, pmaxuw, pminsb, pminsd, pminsw, pminub, pminud,
    pminuw, pmovmskb, por, ptest, pxor, vtestpd, vtestps,
};
pub use multiply::{
    mpsadbw, pmaddubsw, pmaddwd, pmuldq, pmulhrsw, pmulhuw, pmulhw, pmulld, pmullw, pmuludq, psadbw,
};
pub use permute::{vpermd, vpermilpd, vpermilps, vpermq};
pub use shift::{
    pslld, pslldq, psllq, psllw, psrad, psraw, psrld, psrldq, psrlq, psrlw, vpsllvd, vpsllvq, vpsravd,
    vpsrlvd, vpsrlvq,
};
pub use shuffle::{
    blendpd, blendps, blendvpd, blendvps, insertps, movddup, movshdup, movsldup, packssdw, packsswb,
    packusdw, packuswb, palignr, pblendvb, pblendw, pmovsxbd, pmovsxbq, pmovsxbw, pmovsxdq, pmovsxwd,
    pmovsxwq, pmovzxbd, pmovzxbq, pmovzxbw, pmovzxdq, pmovzxwd, pmovzxwq, pshufb, pshufd, pshufhw, pshuflw,
    punpckhbw, punpckhdq, punpckhqdq, punpckhwd, punpcklbw, punpckldq, punpcklqdq, punpcklwd, shufpd, shufps,
};
