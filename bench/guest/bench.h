/* What every group of benchmarks and the driver share. */
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>

struct benchmark {
    const char *name;
    /* Makes inputs and checks known answers; NULL, or why it cannot run here. May itself be NULL. */
    const char *(*prepare)(void);
    /* One unit of work. Its checksum depends on the work alone, so it is the same on every machine. */
    uint64_t (*unit)(void);
    /* Processors needed; rows that need one are bound to one. */
    unsigned cpus;
};

/* Each ends with an element whose name is NULL. */
extern const struct benchmark integer_group[], memory_group[], float_group[], vector_group[], crypto_group[],
    control_group[], jit_group[], system_group[], paging_group[], process_group[], file_group[], program_group[],
    smp_group[];

/* Folder for scratch files, in memory (tmpfs). */
extern const char *scratch_folder;
/* Static busybox that the whole programs run. */
extern const char *busybox_path;

/* Page-aligned zeroed memory, touched, without huge pages; ends the process if there is none. */
void *fresh_memory(size_t size);
/* End the process with a message: a step failed that never fails on a working machine. */
void fail(const char *what) __attribute__((noreturn));
/* Processor that the driver bound the benchmark to. */
int bound_cpu(void);
void bind_to_cpu(int cpu);

/* The xorshift64 sequence; state must not be 0. */
static inline uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

/* Mix a value into a checksum; the order of values matters. */
static inline uint64_t fold(uint64_t sum, uint64_t value)
{
    sum = (sum ^ value) * 0x9e3779b97f4a7c15u;
    return sum ^ (sum >> 29);
}

static inline uint64_t fold_bytes(uint64_t sum, const void *bytes, size_t size)
{
    const unsigned char *p = bytes;
    for (size_t i = 0; i < size; i++)
        sum = (sum ^ p[i]) * 0x100000001b3u;
    return sum;
}

/* The compiler must have written all memory and may not keep what it read. */
#define MEMORY_BARRIER() __asm__ volatile("" ::: "memory")
/* The compiler must compute the value and forget what it knows of it. */
#define OPAQUE(value) __asm__ volatile("" : "+r"(value))

/* Loops that are to stay as written: no vectors, no calls of memcpy in their place. */
#define AS_WRITTEN __attribute__((noinline, optimize("no-tree-vectorize", "no-tree-loop-distribute-patterns")))

#endif
