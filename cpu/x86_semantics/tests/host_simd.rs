//! Vector, string and cryptographic operations against the processor the tests run on.
#![cfg(target_arch = "x86_64")]
#![allow(
    unsafe_code,
    reason = "the host processor is the oracle: intrinsics need features checked at run time"
)]
#![allow(unused_unsafe, reason = "some stand-ins for intrinsics in the macros are safe functions")]

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

use x86_semantics::{crypto, simd};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// A vector: random, or of elements at the boundaries where saturation,
    /// sign and equality are decided.
    fn vector(&mut self) -> u128 {
        const EDGES: [u8; 8] = [0, 1, 0x7f, 0x80, 0x81, 0xfe, 0xff, 0x40];
        let random = u128::from(self.next()) << 64 | u128::from(self.next());
        match self.next() % 3 {
            0 => random,
            1 => u128::from_le_bytes(random.to_le_bytes().map(|b| EDGES[usize::from(b & 7)])),
            _ => u128::from_le_bytes(random.to_le_bytes().map(|b| b & 3)),
        }
    }
}

const ROUNDS: usize = 1500;

fn from(v: __m128i) -> u128 {
    // SAFETY: both are 16 bytes of plain data.
    unsafe { std::mem::transmute(v) }
}
fn to(v: u128) -> __m128i {
    // SAFETY: both are 16 bytes of plain data.
    unsafe { std::mem::transmute(v) }
}

/// Two operands: ours, the host's intrinsic.
macro_rules! binary {
    ($($ours:path, $host:ident;)*) => {$({
        let mut random = Random(1 + line!() as u64);
        for _ in 0..ROUNDS {
            let (a, b) = (random.vector(), random.vector());
            // SAFETY: the test checked the host's features.
            let host = from(unsafe { $host(to(a), to(b)) });
            assert_eq!($ours(a, b), host, "{} {a:#034x} {b:#034x}: ours (left), host", stringify!($ours));
        }
    })*};
}

/// One operand.
macro_rules! unary {
    ($($ours:path, $host:ident;)*) => {$({
        let mut random = Random(1 + line!() as u64);
        for _ in 0..ROUNDS {
            let a = random.vector();
            // SAFETY: the test checked the host's features.
            let host = from(unsafe { $host(to(a)) });
            assert_eq!($ours(a), host, "{} {a:#034x}: ours (left), host", stringify!($ours));
        }
    })*};
}

/// Two operands and an immediate, for the immediates given.
macro_rules! immediate {
    ($ours:path, $host:ident: $($imm:literal)*) => {$({
        let mut random = Random(1 + line!() as u64);
        for _ in 0..200 {
            let (a, b) = (random.vector(), random.vector());
            // SAFETY: the test checked the host's features.
            let host = from(unsafe { $host::<$imm>(to(a), to(b)) });
            assert_eq!($ours(a, b, $imm as u8), host, "{} {a:#034x} {b:#034x} {}", stringify!($ours), $imm);
        }
    })*};
}

/// One operand and an immediate.
macro_rules! unary_immediate {
    ($ours:path, $host:ident: $($imm:literal)*) => {$({
        let mut random = Random(1 + line!() as u64);
        for _ in 0..200 {
            let a = random.vector();
            // SAFETY: the test checked the host's features.
            let host = from(unsafe { $host::<$imm>(to(a)) });
            assert_eq!($ours(a, $imm as u8), host, "{} {a:#034x} {}", stringify!($ours), $imm);
        }
    })*};
}

#[test]
fn arithmetic() {
    assert!(is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3"), "host older than 2008");
    binary! {
        simd::paddb, _mm_add_epi8; simd::paddw, _mm_add_epi16; simd::paddd, _mm_add_epi32;
        simd::paddq, _mm_add_epi64; simd::paddsb, _mm_adds_epi8; simd::paddsw, _mm_adds_epi16;
        simd::paddusb, _mm_adds_epu8; simd::paddusw, _mm_adds_epu16; simd::psubb, _mm_sub_epi8;
        simd::psubw, _mm_sub_epi16; simd::psubd, _mm_sub_epi32; simd::psubq, _mm_sub_epi64;
        simd::psubsb, _mm_subs_epi8; simd::psubsw, _mm_subs_epi16; simd::psubusb, _mm_subs_epu8;
        simd::psubusw, _mm_subs_epu16; simd::pavgb, _mm_avg_epu8; simd::pavgw, _mm_avg_epu16;
        simd::psignb, _mm_sign_epi8; simd::psignw, _mm_sign_epi16; simd::psignd, _mm_sign_epi32;
        simd::phaddw, _mm_hadd_epi16; simd::phaddd, _mm_hadd_epi32; simd::phaddsw, _mm_hadds_epi16;
        simd::phsubw, _mm_hsub_epi16; simd::phsubd, _mm_hsub_epi32; simd::phsubsw, _mm_hsubs_epi16;
        simd::pmullw, _mm_mullo_epi16; simd::pmulhw, _mm_mulhi_epi16; simd::pmulhuw, _mm_mulhi_epu16;
        simd::pmulhrsw, _mm_mulhrs_epi16; simd::pmulld, _mm_mullo_epi32; simd::pmuludq, _mm_mul_epu32;
        simd::pmuldq, _mm_mul_epi32; simd::pmaddwd, _mm_madd_epi16; simd::pmaddubsw, _mm_maddubs_epi16;
        simd::psadbw, _mm_sad_epu8;
    }
    unary! {
        simd::pabsb, _mm_abs_epi8; simd::pabsw, _mm_abs_epi16; simd::pabsd, _mm_abs_epi32;
        simd::phminposuw, _mm_minpos_epu16;
    }
    immediate!(simd::mpsadbw, _mm_mpsadbw_epu8: 0 1 2 3 4 5 6 7);
}

#[test]
fn logic_comparison_and_extremes() {
    assert!(is_x86_feature_detected!("sse4.2"), "host older than 2009");
    binary! {
        simd::pand, _mm_and_si128; simd::pandn, _mm_andnot_si128; simd::por, _mm_or_si128;
        simd::pxor, _mm_xor_si128; simd::pcmpeqb, _mm_cmpeq_epi8; simd::pcmpeqw, _mm_cmpeq_epi16;
        simd::pcmpeqd, _mm_cmpeq_epi32; simd::pcmpeqq, _mm_cmpeq_epi64; simd::pcmpgtb, _mm_cmpgt_epi8;
        simd::pcmpgtw, _mm_cmpgt_epi16; simd::pcmpgtd, _mm_cmpgt_epi32; simd::pcmpgtq, _mm_cmpgt_epi64;
        simd::pminub, _mm_min_epu8; simd::pminuw, _mm_min_epu16; simd::pminud, _mm_min_epu32;
        simd::pminsb, _mm_min_epi8; simd::pminsw, _mm_min_epi16; simd::pminsd, _mm_min_epi32;
        simd::pmaxub, _mm_max_epu8; simd::pmaxuw, _mm_max_epu16; simd::pmaxud, _mm_max_epu32;
        simd::pmaxsb, _mm_max_epi8; simd::pmaxsw, _mm_max_epi16; simd::pmaxsd, _mm_max_epi32;
    }
    let mut random = Random(5);
    for _ in 0..ROUNDS {
        let a = random.vector();
        let b = match random.next() % 3 {
            0 => a & random.vector(),
            1 => !a & random.vector(),
            _ => random.vector(),
        };
        // SAFETY: features checked above; casts do nothing.
        let (mask, single, double, z, c) = unsafe {
            (
                _mm_movemask_epi8(to(a)),
                _mm_movemask_ps(_mm_castsi128_ps(to(a))),
                _mm_movemask_pd(_mm_castsi128_pd(to(a))),
                _mm_testz_si128(to(a), to(b)),
                _mm_testc_si128(to(a), to(b)),
            )
        };
        assert_eq!(simd::pmovmskb(a), mask as u32);
        assert_eq!(simd::movmskps(a), single as u32);
        assert_eq!(simd::movmskpd(a), double as u32);
        let rflags = (c | z << 6) as u64;
        assert_eq!(simd::ptest([a], [b]).to_rflags(), rflags, "ptest {a:#x} {b:#x}");
        if is_x86_feature_detected!("avx") {
            // SAFETY: AVX is there.
            let (ps, pd) = unsafe {
                let (s, t) = (_mm_castsi128_ps(to(a)), _mm_castsi128_ps(to(b)));
                let (d, e) = (_mm_castsi128_pd(to(a)), _mm_castsi128_pd(to(b)));
                (_mm_testc_ps(s, t) | _mm_testz_ps(s, t) << 6, _mm_testc_pd(d, e) | _mm_testz_pd(d, e) << 6)
            };
            assert_eq!(simd::vtestps([a], [b]).to_rflags(), ps as u64);
            assert_eq!(simd::vtestpd([a], [b]).to_rflags(), pd as u64);
        }
    }
}

#[test]
fn shifts() {
    let mut random = Random(9);
    for round in 0..4000u64 {
        let a = random.vector();
        let count = if round % 4 == 0 { random.next() } else { round % 70 };
        let n = to(u128::from(count));
        macro_rules! case {
            ($($name:ident $host:ident)*) => {$(
                // SAFETY: SSE2 is part of x86-64.
                assert_eq!(simd::$name(a, count), from(unsafe { $host(to(a), n) }), "{} {count}", stringify!($name));
            )*};
        }
        case!(psllw _mm_sll_epi16 pslld _mm_sll_epi32 psllq _mm_sll_epi64 psrlw _mm_srl_epi16
            psrld _mm_srl_epi32 psrlq _mm_srl_epi64 psraw _mm_sra_epi16 psrad _mm_sra_epi32);
    }
    unary_immediate!(simd::pslldq, _mm_slli_si128: 0 1 7 15 16 200);
    unary_immediate!(simd::psrldq, _mm_srli_si128: 0 1 7 15 16 200);
    if is_x86_feature_detected!("avx2") {
        binary! {
            simd::vpsllvd, _mm_sllv_epi32; simd::vpsllvq, _mm_sllv_epi64; simd::vpsrlvd, _mm_srlv_epi32;
            simd::vpsrlvq, _mm_srlv_epi64; simd::vpsravd, _mm_srav_epi32;
        }
    }
}

fn blend_ps<const IMM: i32>(a: __m128i, b: __m128i) -> __m128i {
    // SAFETY: the test checked SSE4.1.
    unsafe { _mm_castps_si128(_mm_blend_ps::<IMM>(_mm_castsi128_ps(a), _mm_castsi128_ps(b))) }
}
fn blend_pd<const IMM: i32>(a: __m128i, b: __m128i) -> __m128i {
    // SAFETY: the test checked SSE4.1.
    unsafe { _mm_castpd_si128(_mm_blend_pd::<IMM>(_mm_castsi128_pd(a), _mm_castsi128_pd(b))) }
}
fn shuffle_ps<const IMM: i32>(a: __m128i, b: __m128i) -> __m128i {
    // SAFETY: SSE is part of x86-64.
    unsafe { _mm_castps_si128(_mm_shuffle_ps::<IMM>(_mm_castsi128_ps(a), _mm_castsi128_ps(b))) }
}
fn shuffle_pd<const IMM: i32>(a: __m128i, b: __m128i) -> __m128i {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_castpd_si128(_mm_shuffle_pd::<IMM>(_mm_castsi128_pd(a), _mm_castsi128_pd(b))) }
}
fn insert_ps<const IMM: i32>(a: __m128i, b: __m128i) -> __m128i {
    // SAFETY: the test checked SSE4.1.
    unsafe { _mm_castps_si128(_mm_insert_ps::<IMM>(_mm_castsi128_ps(a), _mm_castsi128_ps(b))) }
}
fn our_insertps(a: u128, b: u128, imm: u8) -> u128 {
    simd::insertps(a, (b >> (32 * u32::from(imm >> 6))) as u32, imm)
}

#[test]
fn shuffles() {
    assert!(is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3"), "host older than 2008");
    binary! {
        simd::packsswb, _mm_packs_epi16; simd::packuswb, _mm_packus_epi16; simd::packssdw, _mm_packs_epi32;
        simd::packusdw, _mm_packus_epi32; simd::punpcklbw, _mm_unpacklo_epi8;
        simd::punpcklwd, _mm_unpacklo_epi16; simd::punpckldq, _mm_unpacklo_epi32;
        simd::punpcklqdq, _mm_unpacklo_epi64; simd::punpckhbw, _mm_unpackhi_epi8;
        simd::punpckhwd, _mm_unpackhi_epi16; simd::punpckhdq, _mm_unpackhi_epi32;
        simd::punpckhqdq, _mm_unpackhi_epi64; simd::pshufb, _mm_shuffle_epi8;
    }
    unary! {
        simd::pmovsxbw, _mm_cvtepi8_epi16; simd::pmovsxbd, _mm_cvtepi8_epi32; simd::pmovsxbq, _mm_cvtepi8_epi64;
        simd::pmovsxwd, _mm_cvtepi16_epi32; simd::pmovsxwq, _mm_cvtepi16_epi64;
        simd::pmovsxdq, _mm_cvtepi32_epi64; simd::pmovzxbw, _mm_cvtepu8_epi16;
        simd::pmovzxbd, _mm_cvtepu8_epi32; simd::pmovzxbq, _mm_cvtepu8_epi64;
        simd::pmovzxwd, _mm_cvtepu16_epi32; simd::pmovzxwq, _mm_cvtepu16_epi64;
        simd::pmovzxdq, _mm_cvtepu32_epi64;
    }
    unary_immediate!(simd::pshufd, _mm_shuffle_epi32: 0 0x1b 0xe4 0x4e 0xb1 0xff 0x93);
    unary_immediate!(simd::pshuflw, _mm_shufflelo_epi16: 0 0x1b 0xe4 0x4e 0xb1 0xff 0x93);
    unary_immediate!(simd::pshufhw, _mm_shufflehi_epi16: 0 0x1b 0xe4 0x4e 0xb1 0xff 0x93);
    immediate!(simd::shufps, shuffle_ps: 0 0x1b 0xe4 0x4e 0xb1 0xff 0x93);
    immediate!(simd::shufpd, shuffle_pd: 0 1 2 3);
    immediate!(simd::palignr, _mm_alignr_epi8: 0 1 5 15 16 17 31 32 200);
    immediate!(simd::pblendw, _mm_blend_epi16: 0 0x55 0xa3 0xff);
    immediate!(simd::blendps, blend_ps: 0 5 9 15);
    immediate!(simd::blendpd, blend_pd: 0 1 2 3);
    immediate!(our_insertps, insert_ps: 0 0x15 0x9a 0xe8 0xff);
    let mut random = Random(13);
    for _ in 0..ROUNDS {
        let (a, b, m) = (random.vector(), random.vector(), random.vector());
        // SAFETY: the test checked SSE4.1; casts do nothing.
        let (bytes, singles, doubles) = unsafe {
            let single = _mm_castsi128_ps;
            let double = _mm_castsi128_pd;
            (
                _mm_blendv_epi8(to(a), to(b), to(m)),
                _mm_castps_si128(_mm_blendv_ps(single(to(a)), single(to(b)), single(to(m)))),
                _mm_castpd_si128(_mm_blendv_pd(double(to(a)), double(to(b)), double(to(m)))),
            )
        };
        assert_eq!(simd::pblendvb(a, b, m), from(bytes));
        assert_eq!(simd::blendvps(a, b, m), from(singles));
        assert_eq!(simd::blendvpd(a, b, m), from(doubles));
    }
}

#[test]
fn permutations() {
    if !is_x86_feature_detected!("avx2") {
        eprintln!("skipped: the host lacks AVX2");
        return;
    }
    // SAFETY: both are 32 bytes of plain data.
    let wide = |v: [u128; 2]| unsafe { std::mem::transmute::<[u128; 2], __m256i>(v) };
    // SAFETY: as above.
    let narrow = |v: __m256i| unsafe { std::mem::transmute::<__m256i, [u128; 2]>(v) };
    let mut random = Random(21);
    for _ in 0..ROUNDS {
        let (a, b) = ([random.vector(), random.vector()], [random.vector(), random.vector()]);
        // SAFETY: AVX2 was checked; casts do nothing.
        unsafe {
            assert_eq!(simd::vpermd(b, a), narrow(_mm256_permutevar8x32_epi32(wide(a), wide(b))));
            assert_eq!(simd::vpermq(a, 0x1b), narrow(_mm256_permute4x64_epi64::<0x1b>(wide(a))));
            assert_eq!(simd::vpermq(a, 0xd8), narrow(_mm256_permute4x64_epi64::<0xd8>(wide(a))));
            let ps = _mm_permutevar_ps(_mm_castsi128_ps(to(a[0])), to(b[0]));
            assert_eq!(simd::vpermilps(a[0], b[0]), from(_mm_castps_si128(ps)));
            let pd = _mm_permutevar_pd(_mm_castsi128_pd(to(a[0])), to(b[0]));
            assert_eq!(simd::vpermilpd(a[0], b[0]), from(_mm_castpd_si128(pd)));
        }
    }
}

/// MMX forms, which Rust has no intrinsics for.
#[test]
fn mmx_forms() {
    let mut random = Random(31);
    for _ in 0..ROUNDS {
        let (a, b) = (random.vector() as u64, random.vector() as u64);
        macro_rules! case {
            ($($text:literal $ours:expr;)*) => {$(
                let host: u64;
                // SAFETY: only MMX registers change, and EMMS frees them for x87 again.
                unsafe {
                    std::arch::asm!("movq mm0, {a}", "movq mm1, {b}", $text, "movq {r}, mm0", "emms",
                        a = in(reg) a, b = in(reg) b, r = out(reg) host,
                        out("mm0") _, out("mm1") _, out("mm2") _, out("mm3") _, out("mm4") _, out("mm5") _,
                        out("mm6") _, out("mm7") _, out("st(0)") _, out("st(1)") _, out("st(2)") _,
                        out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _);
                }
                assert_eq!($ours, host, "{} {a:#x} {b:#x}: ours (left), host", $text);
            )*};
        }
        case! {
            "packsswb mm0, mm1" simd::mmx::packsswb(a, b);
            "packuswb mm0, mm1" simd::mmx::packuswb(a, b);
            "packssdw mm0, mm1" simd::mmx::packssdw(a, b);
            "phaddw mm0, mm1" simd::mmx::phaddw(a, b);
            "phaddd mm0, mm1" simd::mmx::phaddd(a, b);
            "phaddsw mm0, mm1" simd::mmx::phaddsw(a, b);
            "phsubw mm0, mm1" simd::mmx::phsubw(a, b);
            "phsubd mm0, mm1" simd::mmx::phsubd(a, b);
            "phsubsw mm0, mm1" simd::mmx::phsubsw(a, b);
            "punpckhbw mm0, mm1" simd::mmx::punpckhbw(a, b);
            "punpckhwd mm0, mm1" simd::mmx::punpckhwd(a, b);
            "punpckhdq mm0, mm1" simd::mmx::punpckhdq(a, b);
            "punpcklbw mm0, mm1" simd::punpcklbw(a.into(), b.into()) as u64;
            "pshufb mm0, mm1" simd::mmx::pshufb(a, b);
            "pshufw mm0, mm1, 0x1b" simd::mmx::pshufw(b, 0x1b);
            "palignr mm0, mm1, 0" simd::mmx::palignr(a, b, 0);
            "palignr mm0, mm1, 3" simd::mmx::palignr(a, b, 3);
            "palignr mm0, mm1, 11" simd::mmx::palignr(a, b, 11);
            "palignr mm0, mm1, 16" simd::mmx::palignr(a, b, 16);
            "pmuludq mm0, mm1" simd::mmx::pmuludq(a, b);
            "pmaddwd mm0, mm1" simd::pmaddwd(a.into(), b.into()) as u64;
            "pmaddubsw mm0, mm1" simd::pmaddubsw(a.into(), b.into()) as u64;
            "psadbw mm0, mm1" simd::psadbw(a.into(), b.into()) as u64;
        }
    }
    assert_eq!(simd::mmx::pinsrw(u64::MAX, 0x1234, 6), 0xffff_1234_ffff_ffff);
    assert_eq!(simd::mmx::pextrw(0x4444_3333_2222_1111, 5), 0x2222);
    assert_eq!(simd::mmx::pmovmskb(0x8000_0080_0000_00ff), 0b1001_0001);
}

#[test]
fn strings() {
    assert!(is_x86_feature_detected!("sse4.2"), "host older than 2009");
    let mut random = Random(41);
    macro_rules! imms {
        ($($imm:literal)*) => {$(
            for _ in 0..300 {
                let (a, b) = (random.vector(), random.vector());
                let length = |r: u64| match r % 4 { 0 => r as i32, 1 => -((r >> 8) as i32 % 20), _ => (r >> 8) as i32 % 20 };
                let (la, lb) = (length(random.next()), length(random.next()));
                // SAFETY: SSE4.2 was checked.
                let (ei, em, ef, ii, im, jf) = unsafe {
                    let (x, y) = (to(a), to(b));
                    (
                        _mm_cmpestri::<$imm>(x, la, y, lb) as u32,
                        from(_mm_cmpestrm::<$imm>(x, la, y, lb)),
                        [_mm_cmpestrc::<$imm>(x, la, y, lb), _mm_cmpestrz::<$imm>(x, la, y, lb),
                            _mm_cmpestrs::<$imm>(x, la, y, lb), _mm_cmpestro::<$imm>(x, la, y, lb)],
                        _mm_cmpistri::<$imm>(x, y) as u32,
                        from(_mm_cmpistrm::<$imm>(x, y)),
                        [_mm_cmpistrc::<$imm>(x, y), _mm_cmpistrz::<$imm>(x, y),
                            _mm_cmpistrs::<$imm>(x, y), _mm_cmpistro::<$imm>(x, y)],
                    )
                };
                let flags = |f: [i32; 4]| (f[0] | f[1] << 6 | f[2] << 7 | f[3] << 11) as u64;
                let e = simd::strings::explicit(a, la.into(), b, lb.into(), $imm as u8);
                let got = (e.index($imm as u8), e.mask($imm as u8), e.flags.to_rflags());
                assert_eq!(got, (ei, em, flags(ef)), "explicit {:#x}: {a:#034x} {la} {b:#034x} {lb}", $imm);
                let i = simd::strings::implicit(a, b, $imm as u8);
                let got = (i.index($imm as u8), i.mask($imm as u8), i.flags.to_rflags());
                assert_eq!(got, (ii, im, flags(jf)), "implicit {:#x}: {a:#034x} {b:#034x}", $imm);
            }
        )*};
    }
    imms!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        0x10 0x15 0x1a 0x1f 0x20 0x24 0x30 0x31 0x36 0x38 0x3a 0x3d
        0x40 0x41 0x44 0x45 0x48 0x4c 0x4d 0x50 0x5a 0x70 0x77 0x79 0x7c 0x7f);
}

fn sha1rnds4<const IMM: i32>(a: __m128i, b: __m128i) -> __m128i {
    // SAFETY: the test checked SHA.
    unsafe { _mm_sha1rnds4_epu32::<IMM>(a, b) }
}

#[test]
fn cryptography() {
    if is_x86_feature_detected!("aes") {
        binary! {
            crypto::aesenc, _mm_aesenc_si128; crypto::aesenclast, _mm_aesenclast_si128;
            crypto::aesdec, _mm_aesdec_si128; crypto::aesdeclast, _mm_aesdeclast_si128;
        }
        unary! { crypto::aesimc, _mm_aesimc_si128; }
        unary_immediate!(crypto::aeskeygenassist, _mm_aeskeygenassist_si128: 0 1 0x36 0xff);
    }
    if is_x86_feature_detected!("pclmulqdq") {
        immediate!(crypto::pclmulqdq, _mm_clmulepi64_si128: 0 1 0x10 0x11);
    }
    if is_x86_feature_detected!("sha") {
        binary! {
            crypto::sha1nexte, _mm_sha1nexte_epu32; crypto::sha1msg1, _mm_sha1msg1_epu32;
            crypto::sha1msg2, _mm_sha1msg2_epu32; crypto::sha256msg1, _mm_sha256msg1_epu32;
            crypto::sha256msg2, _mm_sha256msg2_epu32;
        }
        immediate!(crypto::sha1rnds4, sha1rnds4: 0 1 2 3);
        let mut random = Random(51);
        for _ in 0..ROUNDS {
            let (a, b, k) = (random.vector(), random.vector(), random.vector());
            // SAFETY: SHA was checked.
            let host = from(unsafe { _mm_sha256rnds2_epu32(to(a), to(b), to(k)) });
            assert_eq!(crypto::sha256rnds2(a, b, k), host);
        }
    }
}
