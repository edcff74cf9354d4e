/* proc.*: two processes or threads on one processor, fork, exec. */
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

enum { TRIPS = 300, TURNS = 400 };

static int there[2], back[2];
static uint32_t turn;

static void echo(void)
{
    uint64_t value;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (read(there[0], &value, sizeof value) == sizeof value) {
        value = value * 3 + 1;
        if (write(back[1], &value, sizeof value) != sizeof value)
            break;
    }
    _exit(0);
}

static const char *start_echo(void)
{
    if (pipe(there) || pipe(back))
        return "pipe failed";
    pid_t child = fork();
    if (child == 0)
        echo();
    return child < 0 ? "fork failed" : NULL;
}

static uint64_t pingpong(void)
{
    uint64_t value = 1;
    for (int i = 0; i < TRIPS; i++)
        if (write(there[1], &value, sizeof value) != sizeof value ||
            read(back[0], &value, sizeof value) != sizeof value)
            fail("pipe");
    return value;
}

static void wait_for_turn(uint32_t mine)
{
    for (;;) {
        uint32_t now = __atomic_load_n(&turn, __ATOMIC_ACQUIRE);
        if (now % 2 == mine)
            return;
        syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
    }
}

static void pass_turn(void)
{
    __atomic_fetch_add(&turn, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *partner(void *unused)
{
    (void)unused;
    for (;;) {
        wait_for_turn(1);
        pass_turn();
    }
    return NULL;
}

static const char *start_partner(void)
{
    pthread_t thread;
    return pthread_create(&thread, NULL, partner, NULL) ? "cannot start a thread" : NULL;
}

static uint64_t futex(void)
{
    uint32_t first = __atomic_load_n(&turn, __ATOMIC_ACQUIRE);
    for (int i = 0; i < TURNS; i++) {
        pass_turn();
        wait_for_turn(0);
    }
    return __atomic_load_n(&turn, __ATOMIC_ACQUIRE) - first;
}

static uint64_t status_of(pid_t child)
{
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child)
        fail("fork or wait");
    return (uint64_t)status;
}

static uint64_t fork_and_wait(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < 4; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(i + 1);
        sum += status_of(child);
    }
    return sum;
}

static uint64_t fork_and_exec(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < 4; i++) {
        pid_t child = fork();
        if (child == 0) {
            execl("/proc/self/exe", "guestbench", "--exit", (char *)NULL);
            _exit(1);
        }
        sum += status_of(child);
    }
    return sum;
}

const struct benchmark process_group[] = {
    {"proc.pingpong", start_echo, pingpong, 1},
    {"proc.futex", start_partner, futex, 1},
    {"proc.fork", NULL, fork_and_wait, 1},
    {"proc.forkexec", NULL, fork_and_exec, 1},
    {0},
};
