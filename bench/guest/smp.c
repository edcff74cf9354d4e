/* smp.*: two processors at work. A helper thread, bound to another processor, waits in a loop for its share of each
 * unit, so that no unit contains the start of a thread. */
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"

enum { PAGE = 4096, HANDOFFS = 1000, ADDITIONS = 20000, MESSAGES = 4000, SHOOTDOWNS = 20, WORK = 400000 };

typedef uint64_t share(int thread);

static share *volatile task;
static uint64_t helper_result;
static struct {
    volatile uint64_t value;
    char padding[120];
} started __attribute__((aligned(128))), ended __attribute__((aligned(128))), line __attribute__((aligned(128))),
    data __attribute__((aligned(128))), flag __attribute__((aligned(128))), stop __attribute__((aligned(128)));
static volatile uint8_t *area;

static void relax(void) { __builtin_ia32_pause(); }

static void *helper(void *cpu)
{
    bind_to_cpu((int)(intptr_t)cpu);
    for (uint64_t round = 1;; round++) {
        while (started.value != round)
            relax();
        helper_result = task(1);
        MEMORY_BARRIER();
        ended.value = round;
    }
    return NULL;
}

static const char *start_helper(void)
{
    pthread_t thread;
    if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
        return "there is one processor";
    intptr_t other = bound_cpu() == 0 ? 1 : 0;
    area = fresh_memory(4 * PAGE);
    return pthread_create(&thread, NULL, helper, (void *)other) ? "cannot start a thread" : NULL;
}

/* Both threads' results of their shares. */
static uint64_t together(share *work)
{
    task = work;
    MEMORY_BARRIER();
    uint64_t round = ++started.value;
    uint64_t mine = work(0);
    while (ended.value != round)
        relax();
    return fold(fold(1, mine), helper_result);
}

static AS_WRITTEN uint64_t alone(int thread)
{
    uint64_t seed = (uint64_t)thread + 67, sum = 0;
    for (int i = 0; i < WORK; i++)
        sum += next_random(&seed) % 4096 * 3;
    return sum;
}

static uint64_t hand_over(int thread)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < HANDOFFS; i++) {
        while (line.value % 2 != (uint64_t)thread)
            relax();
        sum += i;
        line.value = line.value + 1;
    }
    return sum;
}

static uint64_t add_shared(int thread)
{
    for (int i = 0; i < ADDITIONS; i++)
        __atomic_fetch_add(&line.value, 1 + (uint64_t)thread, __ATOMIC_SEQ_CST);
    return 0;
}

/* Message passing: who sees the flag sees the data written before it, and neither goes back. */
static uint64_t pass_messages(int thread)
{
    uint64_t wrong = 0;
    if (thread == 0) {
        for (uint64_t i = 1; i <= MESSAGES * 8; i++) {
            data.value = i;
            flag.value = i;
        }
        return 0;
    }
    for (uint64_t last = 0; last < MESSAGES * 8;) {
        uint64_t f = flag.value, d = data.value;
        wrong += d < f || f < last;
        last = f;
    }
    return wrong;
}

static uint64_t drop_pages(int thread)
{
    uint64_t sum = 0;
    if (thread == 1) {
        /* Runs in the same address space all the while, so every drop must interrupt it. */
        while (!stop.value)
            (void)area[PAGE];
        return 0;
    }
    for (int i = 0; i < SHOOTDOWNS; i++) {
        area[0] = (uint8_t)(i + 1);
        if (madvise((void *)area, PAGE, MADV_DONTNEED))
            fail("madvise");
        sum += area[0] == 0;
    }
    stop.value = 1;
    return sum;
}

static uint64_t one(void) { return alone(0); }
static uint64_t scale(void) { return together(alone); }

static uint64_t bounce(void)
{
    line.value = 0;
    return fold(together(hand_over), line.value);
}

static uint64_t atomic(void)
{
    line.value = 0;
    return fold(together(add_shared), line.value);
}

static uint64_t message_passing(void)
{
    data.value = flag.value = 0;
    return together(pass_messages);
}

static uint64_t shootdown(void)
{
    stop.value = 0;
    return together(drop_pages);
}

const struct benchmark smp_group[] = {
    {"smp.one", NULL, one, 2},
    {"smp.scale", start_helper, scale, 2},
    {"smp.line", start_helper, bounce, 2},
    {"smp.atomic", start_helper, atomic, 2},
    {"smp.mp_litmus", start_helper, message_passing, 2},
    {"smp.shootdown", start_helper, shootdown, 2},
    {0},
};
