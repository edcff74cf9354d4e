/* int.*: integer loops, tables, carries. */
#include <string.h>

#include "bench.h"

/* TEXT: more than branch predictors learn by heart; whether they do would be chance. */
enum { SIEVE = 300000, SORTED = 40000, SLOTS = 1 << 14, TEXT = 1 << 19 };

static uint8_t composite[SIEVE];
static uint32_t unsorted[SORTED], sorted[SORTED];
static uint64_t slots[SLOTS];
static uint8_t text[TEXT], packed[TEXT * 2], unpacked[TEXT];

static AS_WRITTEN uint64_t sieve(void)
{
    uint64_t sum = 0;
    memset(composite, 0, sizeof composite);
    for (uint32_t i = 2; i < SIEVE; i++) {
        if (composite[i])
            continue;
        sum += i;
        for (uint64_t j = (uint64_t)i * i; j < SIEVE; j += i)
            composite[j] = 1;
    }
    return sum;
}

static const char *make_unsorted(void)
{
    uint64_t seed = 1;
    for (int i = 0; i < SORTED; i++)
        unsorted[i] = (uint32_t)next_random(&seed);
    return NULL;
}

static AS_WRITTEN void quicksort(uint32_t *a, long low, long high)
{
    while (high - low > 12) {
        uint32_t pivot = a[(low + high) / 2];
        long i = low, j = high;
        while (i <= j) {
            while (a[i] < pivot)
                i++;
            while (a[j] > pivot)
                j--;
            if (i <= j) {
                uint32_t t = a[i];
                a[i++] = a[j];
                a[j--] = t;
            }
        }
        if (j - low < high - i) {
            quicksort(a, low, j);
            low = i;
        } else {
            quicksort(a, i, high);
            high = j;
        }
    }
    for (long i = low + 1; i <= high; i++) {
        uint32_t value = a[i];
        long j = i;
        for (; j > low && a[j - 1] > value; j--)
            a[j] = a[j - 1];
        a[j] = value;
    }
}

static uint64_t sort(void)
{
    uint64_t sum = 0;
    memcpy(sorted, unsorted, sizeof sorted);
    quicksort(sorted, 0, SORTED - 1);
    for (int i = 1; i < SORTED; i++)
        sum = sum * 31 + sorted[i] + (sorted[i - 1] > sorted[i]);
    return sum;
}

static AS_WRITTEN uint64_t hash(void)
{
    uint64_t seed = 7, sum = 0;
    memset(slots, 0, sizeof slots);
    for (int i = 0; i < SLOTS * 3; i++) {
        uint64_t key = next_random(&seed) % (SLOTS / 2) + 1;
        uint64_t at = (key * 0x9e3779b97f4a7c15u) >> 50;
        while (slots[at] && slots[at] != key)
            at = (at + 1) % SLOTS;
        sum += slots[at] ? at : 1;
        slots[at] = key;
    }
    return sum;
}

static const char *make_sorted(void)
{
    for (int i = 0; i < SORTED; i++)
        sorted[i] = (uint32_t)i * 97 + 5;
    return NULL;
}

static AS_WRITTEN uint64_t binary_search(void)
{
    uint64_t seed = 3, sum = 0;
    for (int n = 0; n < 20000; n++) {
        uint32_t wanted = (uint32_t)(next_random(&seed) % (SORTED * 97u));
        int low = 0, high = SORTED;
        while (low < high) {
            int middle = (low + high) / 2;
            if (sorted[middle] < wanted)
                low = middle + 1;
            else
                high = middle;
        }
        sum += (uint64_t)low;
    }
    return sum;
}

static AS_WRITTEN uint64_t divide(void)
{
    uint64_t seed = 11, sum = 0;
    for (int i = 0; i < 60000; i++) {
        uint64_t a = next_random(&seed), b = (a >> 37) | 1;
        uint32_t c = (uint32_t)a, d = (uint32_t)(b >> 9) | 1;
        OPAQUE(b);
        OPAQUE(d);
        sum += a / b + a % b;
        sum ^= (uint64_t)((int32_t)c / (int32_t)d) << 7;
    }
    return sum;
}

/* a += b, both of so many 64-bit limbs, limbs > 0: a carry that lives across iterations. */
static AS_WRITTEN uint64_t add_limbs(uint64_t *a, const uint64_t *b, uint64_t limbs)
{
    uint64_t t, carry;
    __asm__ volatile("xor %k[t], %k[t]\n"
                     "1: mov (%[b]), %[t]\n"
                     "adc %[t], (%[a])\n"
                     "lea 8(%[a]), %[a]\n"
                     "lea 8(%[b]), %[b]\n"
                     "dec %[n]\n"
                     "jnz 1b\n"
                     "setc %b[c]\n"
                     "movzbl %b[c], %k[c]\n"
                     : [t] "=&r"(t), [c] "=&r"(carry), [a] "+r"(a), [b] "+r"(b), [n] "+r"(limbs)
                     :
                     : "memory", "cc");
    return carry;
}

static uint64_t add_carry(void)
{
    static uint64_t a[256], b[256];
    uint64_t seed = 5, sum = 0;
    for (int i = 0; i < 256; i++) {
        a[i] = 0;
        b[i] = next_random(&seed);
    }
    for (int i = 0; i < 1000; i++)
        sum += add_limbs(a, b, 256);
    return fold_bytes(sum, a, sizeof a);
}

static const char *make_text(void)
{
    static const char *const words[] = {"page ", "table ", "virtual ", "machine ", "of ", "the ", "guest ", "run\n"};
    uint64_t seed = 13;
    for (size_t at = 0; at < TEXT;) {
        const char *word = words[next_random(&seed) % 8];
        for (; *word && at < TEXT; word++)
            text[at++] = (uint8_t)*word;
        if (next_random(&seed) % 8 == 0 && at < TEXT)
            text[at++] = (uint8_t)next_random(&seed);
    }
    return NULL;
}

/* Byte-oriented LZ77: 0,literal or length,distance (2 bytes). */
static AS_WRITTEN size_t pack(void)
{
    static uint32_t last[4096];
    size_t out = 0;
    memset(last, 0, sizeof last);
    for (size_t at = 0; at < TEXT;) {
        size_t length = 0, distance = 0;
        if (at + 4 < TEXT) {
            uint32_t head;
            memcpy(&head, text + at, 4);
            uint32_t *slot = &last[(head * 2654435761u) >> 20];
            size_t from = *slot;
            *slot = (uint32_t)at;
            distance = at - from;
            if (distance > 0 && distance < 65536)
                while (length < 255 && at + length < TEXT && text[from + length] == text[at + length])
                    length++;
        }
        if (length >= 4) {
            packed[out++] = (uint8_t)length;
            packed[out++] = (uint8_t)distance;
            packed[out++] = (uint8_t)(distance >> 8);
            at += length;
        } else {
            packed[out++] = 0;
            packed[out++] = text[at++];
        }
    }
    return out;
}

static AS_WRITTEN uint64_t lempel_ziv(void)
{
    size_t size = pack(), out = 0;
    for (size_t at = 0; at < size;) {
        size_t length = packed[at++];
        if (length == 0) {
            unpacked[out++] = packed[at++];
            continue;
        }
        size_t distance = packed[at] | (size_t)packed[at + 1] << 8;
        at += 2;
        for (; length > 0; length--, out++)
            unpacked[out] = unpacked[out - distance];
    }
    if (out != TEXT || memcmp(text, unpacked, TEXT) != 0)
        return 0;
    return size;
}

const struct benchmark integer_group[] = {
    {"int.sieve", NULL, sieve, 1},
    {"int.sort", make_unsorted, sort, 1},
    {"int.hash", NULL, hash, 1},
    {"int.bsearch", make_sorted, binary_search, 1},
    {"int.div", NULL, divide, 1},
    {"int.adc", NULL, add_carry, 1},
    {"int.lz", make_text, lempel_ziv, 1},
    {0},
};
