/* guestbench: self-checking benchmarks that run as an ordinary program or as a guest's process 1.
 *
 * usage: guestbench [--seconds S] [--scratch DIR] [--busybox PATH] [NAME,NAME... | GROUP | all]...
 *        guestbench --list | --exit
 *
 * A line for each: NAME NANOSECONDS_PER_UNIT UNITS CHECKSUM NANOSECONDS_IN_ALL
 * or "NAME skipped: why", "NAME failed: why". A line "guestbench: begin NAME" goes before it.
 */
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "init.h"

enum { LEAST_BATCH_NS = 250000, LEAST_BATCHES = 3, MOST_SECONDS = 20, KILL_SECONDS = 60 };

static const struct benchmark *const groups[] = {
    integer_group, memory_group, float_group, vector_group, crypto_group, control_group, jit_group,
    system_group, paging_group, process_group, file_group, program_group, smp_group,
};

const char *scratch_folder = "/tmp";
const char *busybox_path = "/bin/busybox";
static double seconds = 0.3;

void fail(const char *what)
{
    fprintf(stderr, "guestbench: %s: %s\n", what, strerror(errno));
    _exit(98);
}

void *fresh_memory(size_t size)
{
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        fail("mmap");
    madvise(at, size, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < size; i += 4096)
        ((volatile char *)at)[i] = 0;
    return at;
}

static int bound;

int bound_cpu(void) { return bound; }

void bind_to_cpu(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        fail("sched_setaffinity");
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Time so many units; every unit must answer `expected`. */
static uint64_t time_units(const struct benchmark *b, uint64_t units, uint64_t expected)
{
    uint64_t begin = now_ns(), wrong = 0;
    for (uint64_t i = 0; i < units; i++)
        wrong |= b->unit() ^ expected;
    uint64_t took = now_ns() - begin;
    if (wrong) {
        printf("%s failed: two units answered differently\n", b->name);
        exit(97);
    }
    return took;
}

/* Measure in batches of at least LEAST_BATCH_NS: the fastest batch is the one nobody disturbed. */
static void measure(const struct benchmark *b)
{
    uint64_t begin = now_ns(), units = 2, batches = 0;
    bound = sched_getcpu();
    if (bound < 0)
        bound = 0;
    bind_to_cpu(bound);
    const char *reason = b->prepare ? b->prepare() : NULL;
    if (reason) {
        printf("%s skipped: %s\n", b->name, reason);
        return;
    }
    uint64_t sum = b->unit();
    uint64_t once = time_units(b, 1, sum);
    uint64_t batch = once ? LEAST_BATCH_NS / once + 1 : LEAST_BATCH_NS;
    double best = 1e30;
    uint64_t since = now_ns();
    for (;;) {
        double each = (double)time_units(b, batch, sum) / (double)batch;
        best = each < best ? each : best;
        units += batch;
        batches++;
        double spent = (double)(now_ns() - since) / 1e9;
        if ((spent >= seconds && batches >= LEAST_BATCHES) || spent >= MOST_SECONDS)
            break;
    }
    printf("%s %.1f %" PRIu64 " %016" PRIx64 " %" PRIu64 "\n", b->name, best, units, sum, now_ns() - begin);
}

/* In a process of its own: it may crash or hang without taking the others along. */
static void run(const struct benchmark *b)
{
    printf("guestbench: begin %s\n", b->name);
    fflush(stdout);
    tcdrain(STDOUT_FILENO);
    pid_t child = fork();
    if (child == 0) {
        alarm(KILL_SECONDS);
        measure(b);
        fflush(stdout);
        _exit(0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child)
        printf("%s failed: cannot start a process\n", b->name);
    else if (WIFSIGNALED(status))
        printf("%s failed: ended by signal %d\n", b->name, WTERMSIG(status));
    else if (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 97)
        printf("%s failed: ended with status %d\n", b->name, WEXITSTATUS(status));
    fflush(stdout);
    tcdrain(STDOUT_FILENO);
}

static int selected(const char *name, const char *wanted)
{
    size_t size = strlen(wanted);
    return strcmp(wanted, "all") == 0 || strcmp(name, wanted) == 0 ||
           (strncmp(name, wanted, size) == 0 && name[size] == '.');
}

/* All benchmarks of that name or group; their number. */
static int run_selected(const char *wanted, int only_list)
{
    int found = 0;
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++)
        for (const struct benchmark *b = groups[g]; b->name; b++) {
            if (!selected(b->name, wanted))
                continue;
            found++;
            if (only_list)
                printf("%s %u\n", b->name, b->cpus);
            else
                run(b);
        }
    return found;
}

static int run_arguments(int count, char **arguments)
{
    int status = 0;
    for (int i = 0; i < count; i++) {
        if (strcmp(arguments[i], "--list") == 0) {
            run_selected("all", 1);
        } else if (strcmp(arguments[i], "--exit") == 0) {
            return 3;
        } else if (strncmp(arguments[i], "--", 2) == 0 && i + 1 < count) {
            const char *value = arguments[++i];
            if (strcmp(arguments[i - 1], "--seconds") == 0)
                seconds = atof(value);
            else if (strcmp(arguments[i - 1], "--scratch") == 0)
                scratch_folder = value;
            else if (strcmp(arguments[i - 1], "--busybox") == 0)
                busybox_path = value;
            else
                status = 2;
        } else {
            char *rest = NULL;
            for (char *name = strtok_r(arguments[i], ",", &rest); name; name = strtok_r(NULL, ",", &rest))
                if (run_selected(name, 0) == 0) {
                    fprintf(stderr, "guestbench: no benchmark or group is named \"%s\"; see --list\n", name);
                    status = 2;
                }
        }
    }
    return status;
}

int main(int count, char **arguments)
{
    if (getpid() != 1)
        return run_arguments(count - 1, arguments + 1);
    char *given[32];
    setvbuf(stdout, NULL, _IOLBF, 0);
    int number = init_arguments(given, 32);
    printf("guestbench: start\n");
    run_arguments(number, given);
    printf("guestbench: end\n");
    fflush(stdout);
    tcdrain(STDOUT_FILENO);
    init_end();
    return 0;
}
