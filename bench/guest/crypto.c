/* cry.*: ciphers and digests, in C and with the processor's own instructions. */
#include <immintrin.h>
#include <string.h>

#include "bench.h"

enum { MESSAGE = 32 << 10 };

static uint8_t message[MESSAGE], output[MESSAGE];
static uint32_t constants[64], tables[4][256], round_keys[44];
static uint8_t substitution[256];

static void make_message(void)
{
    uint64_t seed = 43;
    for (int i = 0; i < MESSAGE; i++)
        message[i] = (uint8_t)next_random(&seed);
}

static inline uint32_t rotate_right(uint32_t x, int n) { return x >> n | x << (32 - n); }
static inline uint32_t big_endian(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* The first 32 bits of the fractions of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2). */
static void make_constants(void)
{
    int n = 0;
    for (uint32_t candidate = 2; n < 64; candidate++) {
        int prime = 1;
        for (uint32_t d = 2; d * d <= candidate; d++)
            prime &= candidate % d != 0;
        if (!prime)
            continue;
        /* Largest r with r*r*r <= candidate * 2^96; its low 32 bits are wanted. */
        unsigned __int128 low = 0, high = (unsigned __int128)8 << 32;
        while (high - low > 1) {
            unsigned __int128 r = (low + high) / 2;
            /* r < 2^35: r*r*r < 2^105 does not overflow. */
            if (r * r * r <= (unsigned __int128)candidate << 96)
                low = r;
            else
                high = r;
        }
        constants[n++] = (uint32_t)low;
    }
}

static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static AS_WRITTEN void sha256_block(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = big_endian(block + 4 * i);
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + w[i - 7] + (rotate_right(a, 7) ^ rotate_right(a, 18) ^ a >> 3) +
               (rotate_right(b, 17) ^ rotate_right(b, 19) ^ b >> 10);
    }
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t t = s[7] + (rotate_right(s[4], 6) ^ rotate_right(s[4], 11) ^ rotate_right(s[4], 25)) +
                     ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[i] + w[i];
        uint32_t u = (rotate_right(s[0], 2) ^ rotate_right(s[0], 13) ^ rotate_right(s[0], 22)) +
                     ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        s[7] = s[6], s[6] = s[5], s[5] = s[4], s[4] = s[3] + t;
        s[3] = s[2], s[2] = s[1], s[1] = s[0], s[0] = t + u;
    }
    for (int i = 0; i < 8; i++)
        state[i] += s[i];
}

static const char *prepare_sha256(void)
{
    uint8_t block[64] = {'a', 'b', 'c', 0x80, [63] = 24};
    uint32_t state[8];
    make_constants();
    make_message();
    memcpy(state, start, sizeof state);
    sha256_block(state, block);
    return state[0] == 0xba7816bf && state[7] == 0xf20015ad ? NULL : "SHA-256 fails the standard's example";
}

static uint64_t sha256(void)
{
    uint32_t state[8];
    memcpy(state, start, sizeof state);
    for (int i = 0; i < MESSAGE; i += 64)
        sha256_block(state, message + i);
    return fold_bytes(1, state, sizeof state);
}

/* Two rounds at a time, as the instructions work (SDM, SHA256RNDS2). */
static __attribute__((noinline, target("sha,sse4.1"))) void sha_block(uint32_t state[8], const uint8_t *block)
{
    __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abef = _mm_set_epi32((int)state[0], (int)state[1], (int)state[4], (int)state[5]);
    __m128i cdgh = _mm_set_epi32((int)state[2], (int)state[3], (int)state[6], (int)state[7]);
    __m128i first = abef, second = cdgh, w[4];
    /* Unrolled, the schedule stays in registers. */
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        if (i < 4) {
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(block + 16 * i)), swap);
        } else {
            __m128i seventh = _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4);
            __m128i t = _mm_add_epi32(_mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]), seventh);
            w[i % 4] = _mm_sha256msg2_epu32(t, w[(i + 3) % 4]);
        }
        __m128i k = _mm_add_epi32(w[i % 4], _mm_loadu_si128((const __m128i *)(constants + 4 * i)));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, k);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(k, 0x0e));
    }
    uint32_t out[4];
    _mm_storeu_si128((__m128i *)out, _mm_add_epi32(abef, first));
    state[0] = out[3], state[1] = out[2], state[4] = out[1], state[5] = out[0];
    _mm_storeu_si128((__m128i *)out, _mm_add_epi32(cdgh, second));
    state[2] = out[3], state[3] = out[2], state[6] = out[1], state[7] = out[0];
}

static uint64_t sha_instructions(void)
{
    uint32_t state[8];
    memcpy(state, start, sizeof state);
    for (int i = 0; i < MESSAGE; i += 64)
        sha_block(state, message + i);
    return fold_bytes(1, state, sizeof state);
}

static const char *prepare_sha_instructions(void)
{
    uint32_t a, b, c, d;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "0"(7), "2"(0));
    if (!(b >> 29 & 1))
        return "the processor has no SHA instructions";
    const char *wrong = prepare_sha256();
    if (wrong)
        return wrong;
    return sha256() == sha_instructions() ? NULL : "the SHA instructions disagree with plain code";
}

static uint8_t doubled(uint8_t x) { return (uint8_t)(x << 1 ^ (x >> 7) * 0x1b); }

static void make_tables(void)
{
    uint8_t powers[256], logarithm[256] = {0}, x = 1;
    for (int i = 0; i < 256; i++) {
        powers[i] = x;
        if (i < 255)
            logarithm[x] = (uint8_t)i;
        x ^= doubled(x);
    }
    for (int i = 0; i < 256; i++) {
        uint8_t s = i == 0 ? 0 : powers[(255 - logarithm[i]) % 255];
        s = (uint8_t)(s ^ (s << 1 | s >> 7) ^ (s << 2 | s >> 6) ^ (s << 3 | s >> 5) ^ (s << 4 | s >> 4) ^ 0x63);
        substitution[i] = s;
        uint32_t row = (uint32_t)doubled(s) << 24 | (uint32_t)s << 16 | (uint32_t)s << 8 | (uint8_t)(doubled(s) ^ s);
        for (int t = 0; t < 4; t++)
            tables[t][i] = t == 0 ? row : rotate_right(row, 8 * t);
    }
}

static void expand_key(const uint8_t key[16])
{
    uint8_t constant = 1;
    for (int i = 0; i < 4; i++)
        round_keys[i] = big_endian(key + 4 * i);
    for (int i = 4; i < 44; i++) {
        uint32_t t = round_keys[i - 1];
        if (i % 4 == 0) {
            t = t << 8 | t >> 24;
            t = (uint32_t)substitution[t >> 24] << 24 | (uint32_t)substitution[t >> 16 & 255] << 16 |
                (uint32_t)substitution[t >> 8 & 255] << 8 | substitution[t & 255];
            t ^= (uint32_t)constant << 24;
            constant = doubled(constant);
        }
        round_keys[i] = round_keys[i - 4] ^ t;
    }
}

static AS_WRITTEN void aes_block(uint8_t *to, const uint8_t *from)
{
    uint32_t s[4], t[4];
    for (int i = 0; i < 4; i++)
        s[i] = big_endian(from + 4 * i) ^ round_keys[i];
    for (int round = 1; round < 10; round++) {
        for (int i = 0; i < 4; i++)
            t[i] = tables[0][s[i] >> 24] ^ tables[1][s[(i + 1) % 4] >> 16 & 255] ^
                   tables[2][s[(i + 2) % 4] >> 8 & 255] ^ tables[3][s[(i + 3) % 4] & 255] ^ round_keys[4 * round + i];
        memcpy(s, t, sizeof s);
    }
    for (int i = 0; i < 4; i++) {
        uint32_t k = round_keys[40 + i];
        to[4 * i] = (uint8_t)(substitution[s[i] >> 24] ^ k >> 24);
        to[4 * i + 1] = (uint8_t)(substitution[s[(i + 1) % 4] >> 16 & 255] ^ k >> 16);
        to[4 * i + 2] = (uint8_t)(substitution[s[(i + 2) % 4] >> 8 & 255] ^ k >> 8);
        to[4 * i + 3] = (uint8_t)(substitution[s[(i + 3) % 4] & 255] ^ k);
    }
}

static const char *prepare_aes(void)
{
    static const uint8_t expected[16] = {0x69, 0xc4, 0xe0, 0xd8, 0x6a, 0x7b, 0x04, 0x30,
                                         0xd8, 0xcd, 0xb7, 0x80, 0x70, 0xb4, 0xc5, 0x5a};
    uint8_t key[16], plain[16];
    for (int i = 0; i < 16; i++) {
        key[i] = (uint8_t)i;
        plain[i] = (uint8_t)(i * 0x11);
    }
    make_message();
    make_tables();
    expand_key(key);
    aes_block(output, plain);
    return memcmp(output, expected, 16) == 0 ? NULL : "AES fails the standard's example";
}

static uint64_t aes_tables(void)
{
    for (int i = 0; i < MESSAGE; i += 16)
        aes_block(output + i, message + i);
    return fold_bytes(2, output, 4096);
}

static const char *prepare_aes_instructions(void)
{
    uint32_t a, b, c, d;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "0"(1), "2"(0));
    return c >> 25 & 1 ? prepare_aes() : "the processor has no AES instructions";
}

static __attribute__((noinline, target("aes,sse4.1"))) uint64_t aes_instructions(void)
{
    __m128i keys[11], swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    for (int i = 0; i < 11; i++)
        keys[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(round_keys + 4 * i)), swap);
    for (int pass = 0; pass < 8; pass++) {
        for (int i = 0; i < MESSAGE; i += 64) {
            __m128i s[4];
            for (int j = 0; j < 4; j++)
                s[j] = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(message + i + 16 * j)), keys[0]);
            for (int round = 1; round < 10; round++)
                for (int j = 0; j < 4; j++)
                    s[j] = _mm_aesenc_si128(s[j], keys[round]);
            for (int j = 0; j < 4; j++)
                _mm_storeu_si128((__m128i *)(output + i + 16 * j), _mm_aesenclast_si128(s[j], keys[10]));
        }
        MEMORY_BARRIER();
    }
    /* The same key and message as with tables, so the same sum. */
    return fold_bytes(2, output, 4096);
}

const struct benchmark crypto_group[] = {
    {"cry.sha256", prepare_sha256, sha256, 1},
    {"cry.shani", prepare_sha_instructions, sha_instructions, 1},
    {"cry.aes_table", prepare_aes, aes_tables, 1},
    {"cry.aesni", prepare_aes_instructions, aes_instructions, 1},
    {0},
};
