/* mm.*: page faults, protection changes, faults that a program handles itself. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"

enum { PAGE = 4096, ANONYMOUS = 512, FILE_PAGES = 256, CHANGES = 1000, FAULTS = 500 };

static volatile uint8_t *area;
static volatile uint64_t faults;
static int backing = -1;

static uint8_t *map(size_t pages, int flags, int file)
{
    void *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, flags, file, 0);
    if (at == MAP_FAILED)
        fail("mmap");
    return at;
}

static uint64_t anonymous(void)
{
    uint64_t sum = 0;
    uint8_t *at = map(ANONYMOUS, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    madvise(at, ANONYMOUS * PAGE, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < ANONYMOUS; i++) {
        sum += at[i * PAGE] + i;
        at[i * PAGE] = (uint8_t)i;
    }
    for (size_t i = 0; i < ANONYMOUS; i++)
        sum += at[i * PAGE];
    munmap(at, ANONYMOUS * PAGE);
    return sum;
}

static const char *make_file(void)
{
    char path[256];
    snprintf(path, sizeof path, "%s/pages", scratch_folder);
    backing = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (backing < 0)
        return "cannot create a file in the scratch folder";
    unlink(path);
    for (int i = 0; i < FILE_PAGES; i++) {
        uint8_t page[PAGE] = {(uint8_t)i, 1};
        if (write(backing, page, PAGE) != PAGE)
            return "cannot fill a file in the scratch folder";
    }
    return NULL;
}

static uint64_t file_backed(void)
{
    uint64_t sum = 0;
    uint8_t *at = map(FILE_PAGES, MAP_SHARED, backing);
    for (size_t i = 0; i < FILE_PAGES; i++)
        sum += at[i * PAGE] + (uint64_t)at[i * PAGE + 1];
    munmap(at, FILE_PAGES * PAGE);
    return sum;
}

static const char *make_area(void)
{
    area = fresh_memory(16 * PAGE);
    return NULL;
}

static uint64_t protect(void)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < CHANGES; i++) {
        volatile uint8_t *page = area + i % 16 * PAGE;
        if (mprotect((void *)page, PAGE, PROT_READ))
            fail("mprotect");
        sum += page[0];
        if (mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE))
            fail("mprotect");
        page[0] = (uint8_t)i;
        sum += page[0];
        page[0] = 0;
    }
    return sum;
}

static void allow(int number, siginfo_t *information, void *context)
{
    (void)number;
    (void)context;
    uintptr_t page = (uintptr_t)information->si_addr & ~(uintptr_t)(PAGE - 1);
    if (page != (uintptr_t)area || mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE))
        _exit(99);
    faults++;
}

static const char *catch_fault(void)
{
    struct sigaction action = {.sa_sigaction = allow, .sa_flags = SA_SIGINFO};
    make_area();
    return sigaction(SIGSEGV, &action, NULL) ? "sigaction failed" : NULL;
}

static uint64_t handled_faults(void)
{
    faults = 0;
    for (int i = 0; i < FAULTS; i++) {
        mprotect((void *)area, PAGE, PROT_READ);
        area[8] = (uint8_t)i;
    }
    return faults * 1000 + area[8];
}

const struct benchmark paging_group[] = {
    {"mm.pf_anon", NULL, anonymous, 1},
    {"mm.pf_file", make_file, file_backed, 1},
    {"mm.mprotect", make_area, protect, 1},
    {"mm.segv", catch_fault, handled_faults, 1},
    {0},
};
