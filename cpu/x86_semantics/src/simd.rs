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
mod packed_bytes;
mod permute;
mod shift;
mod shuffle;
pub mod strings;

pub use arithmetic::{
    pabsb, pabsd, pabsw, paddd, paddq, paddsw, paddusw, paddw, pavgw, phaddd, phaddsw, phaddw, phsubd,
    phsubsw, phsubw, psignb, psignd, psignw, psubd, psubq, psubsw, psubusw, psubw,
};
pub use compare::{
    movmskpd, movmskps, pand, pandn, pcmpeqd, pcmpeqq, pcmpeqw, pcmpgtd, pcmpgtq, pcmpgtw, phminposuw,
    pmaxsd, pmaxsw, pmaxud, pmaxuw, pminsd, pminsw, pminud, pminuw, por, ptest, pxor, vtestpd, vtestps,
};
pub use multiply::{
    mpsadbw, pmaddubsw, pmaddwd, pmuldq, pmulhrsw, pmulhuw, pmulhw, pmulld, pmullw, pmuludq, psadbw,
};
pub use packed_bytes::{
    paddb, paddsb, paddusb, pavgb, pcmpeqb, pcmpgtb, pmaxsb, pmaxub, pminsb, pminub, pmovmskb, pshufb, psubb,
    psubsb, psubusb,
};
pub use permute::{vpermd, vpermilpd, vpermilps, vpermq};
pub use shift::{
    pslld, pslldq, psllq, psllw, psrad, psraw, psrld, psrldq, psrlq, psrlw, vpsllvd, vpsllvq, vpsravd,
    vpsrlvd, vpsrlvq,
};
pub use shuffle::{
    blendpd, blendps, blendvpd, blendvps, insertps, movddup, movshdup, movsldup, packssdw, packsswb,
    packusdw, packuswb, palignr, pblendvb, pblendw, pmovsxbd, pmovsxbq, pmovsxbw, pmovsxdq, pmovsxwd,
    pmovsxwq, pmovzxbd, pmovzxbq, pmovzxbw, pmovzxdq, pmovzxwd, pmovzxwq, pshufd, pshufhw, pshuflw,
    punpckhbw, punpckhdq, punpckhqdq, punpckhwd, punpcklbw, punpckldq, punpcklqdq, punpcklwd, shufpd, shufps,
};
