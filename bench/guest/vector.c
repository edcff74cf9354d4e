/* vec.*: packed arithmetic, SSE and AVX2. */
#include <immintrin.h>
#include <string.h>

#include "bench.h"

enum { SIDE = 64, BYTES = 32 << 10 };

static float left[SIDE * SIDE], right[SIDE * SIDE], product[SIDE * SIDE];
static uint8_t *pixels, *mask;

static const char *make_matrices(void)
{
    uint64_t seed = 37;
    for (int i = 0; i < SIDE * SIDE; i++) {
        left[i] = (float)(int64_t)(next_random(&seed) % 2001) / 1000.0f - 1.0f;
        right[i] = (float)(int64_t)(next_random(&seed) % 2001) / 1000.0f - 1.0f;
    }
    return NULL;
}

static __attribute__((noinline)) uint64_t matrix_product(void)
{
    for (int i = 0; i < SIDE; i++) {
        for (int j = 0; j < SIDE; j += 8) {
            __m128 a = _mm_setzero_ps(), b = _mm_setzero_ps();
            for (int k = 0; k < SIDE; k++) {
                __m128 l = _mm_set1_ps(left[i * SIDE + k]);
                a = _mm_add_ps(a, _mm_mul_ps(l, _mm_loadu_ps(&right[k * SIDE + j])));
                b = _mm_add_ps(b, _mm_mul_ps(l, _mm_loadu_ps(&right[k * SIDE + j + 4])));
            }
            _mm_storeu_ps(&product[i * SIDE + j], a);
            _mm_storeu_ps(&product[i * SIDE + j + 4], b);
        }
    }
    return fold_bytes(1, product, sizeof product / 16);
}

static const char *make_pixels(void)
{
    uint64_t seed = 41;
    pixels = fresh_memory(BYTES);
    mask = fresh_memory(BYTES);
    for (int i = 0; i < BYTES; i += 8) {
        uint64_t value = next_random(&seed);
        memcpy(pixels + i, &value, 8);
    }
    return NULL;
}

static __attribute__((noinline)) uint64_t sse2_integers(void)
{
    __m128i sum = _mm_setzero_si128(), factor = _mm_set1_epi16(0x0123);
    for (int round = 0; round < 16; round++) {
        for (int i = 0; i < BYTES; i += 16) {
            __m128i v = _mm_load_si128((const __m128i *)(pixels + i));
            __m128i low = _mm_mullo_epi16(v, factor), high = _mm_mulhi_epu16(v, factor);
            __m128i mixed = _mm_xor_si128(_mm_unpacklo_epi8(low, high), _mm_adds_epu8(v, low));
            mixed = _mm_min_epu8(_mm_shuffle_epi32(mixed, 0x1b), _mm_srli_epi32(high, 3));
            _mm_store_si128((__m128i *)(mask + i), _mm_cmpgt_epi16(mixed, low));
            sum = _mm_add_epi32(sum, _mm_madd_epi16(mixed, high));
        }
    }
    return fold_bytes(fold_bytes(2, &sum, 16), mask, 4096);
}

static const char *make_wide_pixels(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") ? make_pixels() : "the processor has no AVX2";
}

static __attribute__((noinline, target("avx2"))) uint64_t avx2_integers(void)
{
    __m256i sum = _mm256_setzero_si256(), factor = _mm256_set1_epi16(0x0123);
    for (int round = 0; round < 32; round++) {
        for (int i = 0; i < BYTES; i += 32) {
            __m256i v = _mm256_load_si256((const __m256i *)(pixels + i));
            __m256i low = _mm256_mullo_epi16(v, factor), high = _mm256_mulhi_epu16(v, factor);
            __m256i mixed = _mm256_xor_si256(_mm256_unpacklo_epi8(low, high), _mm256_adds_epu8(v, low));
            mixed = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(mixed, low), 0x1b);
            mixed = _mm256_min_epu8(mixed, _mm256_srlv_epi32(high, _mm256_set1_epi32(3)));
            _mm256_store_si256((__m256i *)(mask + i), _mm256_cmpgt_epi16(mixed, low));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(mixed, high));
        }
    }
    uint8_t last[32];
    _mm256_storeu_si256((__m256i *)last, sum);
    return fold_bytes(fold_bytes(3, last, 32), mask, 4096);
}

const struct benchmark vector_group[] = {
    {"vec.matmul_ps", make_matrices, matrix_product, 1},
    {"vec.sse2int", make_pixels, sse2_integers, 1},
    {"vec.avx2int", make_wide_pixels, avx2_integers, 1},
    {0},
};
