/* jit.*: code that is patched, code that shares a page with its data, fresh code. */
#include <string.h>
#include <sys/mman.h>

#include "bench.h"

enum { CODE = 128 << 10, FUNCTION = 32 };

typedef uint64_t function(uint64_t);
static uint8_t *code;

static const char *make_code_memory(void)
{
    code = mmap(NULL, CODE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED)
        return "the kernel gives no memory that is writable and executable";
    memset(code, 0xcc, CODE);
    return NULL;
}

/* mov rax, rdi; add rax, constant; rol rax, 7; xor rax, constant; ret */
static void write_function(uint8_t *at, uint32_t constant)
{
    static const uint8_t body[] = {0x48, 0x89, 0xf8, 0x48, 0x05, 0, 0, 0, 0, 0x48, 0xc1, 0xc0, 7,
                                   0x48, 0x35, 0, 0, 0, 0, 0xc3};
    memcpy(at, body, sizeof body);
    constant &= 0x7fffffff;
    memcpy(at + 5, &constant, 4);
    memcpy(at + 15, &constant, 4);
}

static uint64_t call(const uint8_t *at, uint64_t x)
{
    function *f;
    memcpy(&f, &at, sizeof f);
    return f(x);
}

/* One constant of a function changes before each call. */
static uint64_t patch(void)
{
    uint64_t x = 1;
    write_function(code, 1);
    for (uint32_t i = 0; i < 1000; i++) {
        memcpy(code + 5, &i, 4);
        MEMORY_BARRIER();
        x = call(code, x);
    }
    return x;
}

/* The function counts its calls in the page it runs in: inc qword [rip + 512]; lea rax, [rdi + 1]; ret */
static uint64_t data_beside(void)
{
    static const uint8_t body[] = {0x48, 0xff, 0x05, 0xf9, 1, 0, 0, 0x48, 0x8d, 0x47, 1, 0xc3};
    uint64_t x = 0, count = 0;
    memcpy(code, body, sizeof body);
    memcpy(code + 512, &count, 8);
    for (int i = 0; i < 1000; i++)
        x = call(code, x);
    memcpy(&count, code + 512, 8);
    return x * 1000003 + count;
}

/* New functions each time, each called twice. */
static uint64_t cold(void)
{
    uint64_t x = 1;
    for (uint32_t at = 0; at < CODE; at += FUNCTION)
        write_function(code + at, at * 2654435761u);
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t at = 0; at < CODE; at += FUNCTION)
            x = call(code + at, x);
    return x;
}

const struct benchmark jit_group[] = {
    {"jit.smc_patch", make_code_memory, patch, 1},
    {"jit.smc_data", make_code_memory, data_beside, 1},
    {"jit.cold_code", make_code_memory, cold, 1},
    {0},
};
