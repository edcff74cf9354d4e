/* mem.*: dependent loads, copies, string instructions. */
#include <emmintrin.h>
#include <string.h>

#include "bench.h"

enum { LINE = 64, PAGE = 4096, COPY = 16 << 10, STRINGS = 64 << 10 };

static void **chain;
static char *source, *target;

/* A cycle through so many places, stride bytes apart, in random order. */
static const char *make_chain(size_t places, size_t stride)
{
    char *memory = fresh_memory(places * stride);
    size_t *order = fresh_memory(places * sizeof *order);
    uint64_t seed = 17;
    for (size_t i = 0; i < places; i++)
        order[i] = i;
    for (size_t i = places - 1; i > 0; i--) {
        size_t j = next_random(&seed) % (i + 1), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    for (size_t i = 0; i < places; i++) {
        /* One place a page would always meet the same cache set; spread over the page's lines. */
        size_t at = order[i], to = order[(i + 1) % places];
        size_t spread = stride >= PAGE ? LINE : 0;
        *(void **)(memory + at * stride + at % (PAGE / LINE) * spread) =
            memory + to * stride + to % (PAGE / LINE) * spread;
    }
    chain = (void **)memory;
    return NULL;
}

static const char *chain_l1(void) { return make_chain((16 << 10) / LINE, LINE); }
static const char *chain_l2(void) { return make_chain((256 << 10) / LINE, LINE); }
static const char *chain_tlb(void) { return make_chain(2048, PAGE); }
static const char *chain_memory(void) { return make_chain((64 << 20) / 256, 256); }

static AS_WRITTEN uint64_t follow(size_t steps)
{
    void **at = chain;
    for (size_t i = 0; i < steps; i++)
        at = *at;
    return (uint64_t)((char *)at - (char *)chain);
}

static uint64_t chase_l1(void) { return follow(400000); }
static uint64_t chase_l2(void) { return follow(200000); }
static uint64_t chase_tlb(void) { return follow(100000); }
static uint64_t chase_memory(void) { return follow(20000); }

static const char *make_buffers(void)
{
    uint64_t seed = 19;
    source = fresh_memory(STRINGS + PAGE);
    target = fresh_memory(STRINGS + PAGE);
    for (size_t i = 0; i < STRINGS; i += 8) {
        uint64_t value = next_random(&seed);
        memcpy(source + i, &value, 8);
    }
    return NULL;
}

static AS_WRITTEN void copy_words(uint64_t *to, const uint64_t *from, size_t words)
{
    for (size_t i = 0; i < words; i++)
        to[i] = from[i];
}

static uint64_t copy_u64(void)
{
    for (int i = 0; i < 64; i++) {
        copy_words((uint64_t *)target, (const uint64_t *)source, COPY / 8);
        MEMORY_BARRIER();
    }
    return fold_bytes(1, target, 256);
}

static AS_WRITTEN void copy_vectors(char *to, const char *from, size_t size)
{
    for (size_t i = 0; i < size; i += 64)
        for (size_t j = i; j < i + 64; j += 16)
            _mm_storeu_si128((__m128i *)(to + j), _mm_loadu_si128((const __m128i *)(from + j)));
}

static uint64_t copy_sse2(void)
{
    for (int i = 0; i < 64; i++) {
        copy_vectors(target, source, STRINGS);
        MEMORY_BARRIER();
    }
    return fold_bytes(2, target, 256);
}

static void rep_movsb(void *to, const void *from, size_t size)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

static void rep_stosq(void *to, uint64_t value, size_t count)
{
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory");
}

/* Whole buffers, then pieces of every size and alignment that code has. */
static uint64_t rep_movs(void)
{
    uint64_t seed = 23;
    for (int i = 0; i < 16; i++)
        rep_movsb(target, source, STRINGS);
    for (int i = 0; i < 1000; i++) {
        uint64_t r = next_random(&seed);
        rep_movsb(target + r % STRINGS, source + (r >> 20) % 512, (r >> 40) % 1024);
    }
    return fold_bytes(3, target, 4096);
}

static uint64_t rep_stos(void)
{
    uint64_t seed = 29;
    for (int i = 0; i < 16; i++)
        rep_stosq(target, seed * (uint64_t)(i + 1), STRINGS / 8);
    for (int i = 0; i < 1000; i++) {
        uint64_t r = next_random(&seed);
        rep_stosq(target + r % (STRINGS / 2), r, (r >> 40) % 128);
    }
    return fold_bytes(4, target, 4096);
}

static uint64_t library(void)
{
    uint64_t seed = 31, sum = 0;
    for (int i = 0; i < 2000; i++) {
        uint64_t r = next_random(&seed);
        size_t size = (r >> 40) % 2048, at = r % 1024;
        memcpy(target + at, source + (r >> 20) % 512, size);
        sum += (uint64_t)(memcmp(target + at, source + (r >> 20) % 512, size) != 0);
        memset(target + at, 0x55, size / 2);
        target[at + size] = 0;
        MEMORY_BARRIER();
        sum += strlen(target + at) * (size_t)(memchr(target + at, 0, size + 1) != NULL);
    }
    return fold_bytes(sum, target, 1024);
}

const struct benchmark memory_group[] = {
    {"mem.chase_l1", chain_l1, chase_l1, 1},
    {"mem.chase_l2", chain_l2, chase_l2, 1},
    {"mem.chase_tlb", chain_tlb, chase_tlb, 1},
    {"mem.chase_mem", chain_memory, chase_memory, 1},
    {"mem.copy_u64", make_buffers, copy_u64, 1},
    {"mem.copy_sse2", make_buffers, copy_sse2, 1},
    {"mem.rep_movs", make_buffers, rep_movs, 1},
    {"mem.rep_stos", make_buffers, rep_stos, 1},
    {"mem.libc", make_buffers, library, 1},
    {0},
};
