/* ctl.*: dispatch, calls, indirect jumps, locked operations. */
#include "bench.h"

#define PLAIN __attribute__((noipa, optimize("O1")))

enum { PROGRAM = 4096, CALLS = 40000 };
enum { ADD, SUBTRACT, XOR, SHIFT, MULTIPLY, COUNT, SWAP, LOAD, STORE, SKIP, LOOP, HALT };

static uint8_t program[PROGRAM];
static uint8_t order[CALLS];

static const char *make_program(void)
{
    uint64_t seed = 47;
    for (int i = 0; i < PROGRAM - 2; i++)
        program[i] = (uint8_t)(next_random(&seed) % LOOP);
    program[PROGRAM - 2] = LOOP;
    program[PROGRAM - 1] = HALT;
    return NULL;
}

static __attribute__((noinline)) uint64_t by_switch(void)
{
    uint64_t a = 1, b = 2, memory[16] = {0}, loops = 60;
    for (const uint8_t *pc = program;; pc++) {
        switch (*pc) {
        case ADD: a += b; break;
        case SUBTRACT: b -= a ^ 5; break;
        case XOR: a ^= b >> 3; break;
        case SHIFT: b = b << 5 | b >> 59; break;
        case MULTIPLY: a *= 0x10001; break;
        case COUNT: b++; break;
        case SWAP: { uint64_t t = a; a = b; b = t; break; }
        case LOAD: a += memory[b % 16]; break;
        case STORE: memory[a % 16] = b; break;
        case SKIP: pc += b & 1 && pc[1] < LOOP; break;
        case LOOP: if (--loops) pc = program - 1; break;
        default: return a ^ b;
        }
    }
}

static __attribute__((noinline, optimize("no-gcse", "no-crossjumping"))) uint64_t by_goto(void)
{
    static const void *const labels[] = {&&add, &&subtract, &&exclusive_or, &&shift, &&multiply, &&count,
                                         &&swap, &&load, &&store, &&skip, &&loop, &&halt};
    uint64_t a = 1, b = 2, memory[16] = {0}, loops = 60;
    const uint8_t *pc = program;
#define NEXT goto *labels[*++pc]
    goto *labels[*pc];
add: a += b; NEXT;
subtract: b -= a ^ 5; NEXT;
exclusive_or: a ^= b >> 3; NEXT;
shift: b = b << 5 | b >> 59; NEXT;
multiply: a *= 0x10001; NEXT;
count: b++; NEXT;
swap: { uint64_t t = a; a = b; b = t; } NEXT;
load: a += memory[b % 16]; NEXT;
store: memory[a % 16] = b; NEXT;
skip: pc += b & 1 && pc[1] < LOOP; NEXT;
loop: if (--loops) pc = program - 1; NEXT;
halt: return a ^ b;
#undef NEXT
}

static PLAIN uint64_t fibonacci(uint64_t n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
static uint64_t fib(void) { return fibonacci(24); }

static PLAIN long takeuchi(long x, long y, long z)
{
    return y >= x ? z : takeuchi(takeuchi(x - 1, y, z), takeuchi(y - 1, z, x), takeuchi(z - 1, x, y));
}
static uint64_t tak(void) { return (uint64_t)takeuchi(14, 9, 4); }

#define STEP(n, expression) static PLAIN uint64_t step##n(uint64_t x) { return expression; }
STEP(0, x + 1) STEP(1, x ^ 0x55) STEP(2, x * 3) STEP(3, x - 7) STEP(4, x << 1 | x >> 63) STEP(5, ~x)
STEP(6, x + (x >> 9)) STEP(7, x ^ x << 3)
static uint64_t (*const steps[8])(uint64_t) = {step0, step1, step2, step3, step4, step5, step6, step7};

static const char *make_order(void)
{
    uint64_t seed = 53;
    for (int i = 0; i < CALLS; i++)
        order[i] = (uint8_t)(next_random(&seed) >> 20) % 8;
    return NULL;
}

static PLAIN uint64_t calls_at_random(void)
{
    uint64_t x = 1;
    for (int i = 0; i < CALLS; i++)
        x = steps[order[i]](x);
    return x;
}

static PLAIN uint64_t calls_of_one(void)
{
    uint64_t (*volatile step)(uint64_t) = step6;
    uint64_t x = 1;
    for (int i = 0; i < CALLS * 3; i++)
        x = step(x) + 1;
    return x;
}

static uint64_t locked(void)
{
    static volatile uint64_t word;
    uint64_t sum = 0;
    word = 0;
    for (int i = 0; i < 50000; i++) {
        sum += __atomic_fetch_add(&word, 3, __ATOMIC_SEQ_CST);
        uint64_t seen = word;
        sum += __atomic_compare_exchange_n(&word, &seen, seen + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    return sum;
}

const struct benchmark control_group[] = {
    {"ctl.switch", make_program, by_switch, 1},
    {"ctl.threaded", make_program, by_goto, 1},
    {"ctl.fib", NULL, fib, 1},
    {"ctl.tak", NULL, tak, 1},
    {"ctl.icall_rand", make_order, calls_at_random, 1},
    {"ctl.icall_mono", NULL, calls_of_one, 1},
    {"ctl.atomic", NULL, locked, 1},
    {0},
};
