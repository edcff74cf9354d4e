/* sys.* and time.*: system calls, the clock, signals, sleep. */
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

static int zero_device = -1;
static volatile uint64_t signals;

static uint64_t parent_id(void)
{
    uint64_t same = 0;
    long first = syscall(SYS_getppid);
    for (int i = 0; i < 5000; i++)
        same += (uint64_t)(syscall(SYS_getppid) == first);
    return same;
}

static const char *open_zero(void)
{
    zero_device = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    return zero_device < 0 ? "there is no /dev/zero" : NULL;
}

static uint64_t read_zero(void)
{
    char byte = 1;
    uint64_t sum = 0;
    for (int i = 0; i < 3000; i++)
        sum += (uint64_t)read(zero_device, &byte, 1) + (uint64_t)byte;
    return sum;
}

static uint64_t clock_calls(void)
{
    struct timespec last = {0}, now;
    uint64_t forward = 0;
    for (int i = 0; i < 20000; i++) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        forward += (uint64_t)(now.tv_sec > last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec >= last.tv_nsec));
        last = now;
    }
    return forward;
}

static void count_signal(int number) { signals += (uint64_t)number; }

static const char *catch_signal(void)
{
    struct sigaction action = {.sa_handler = count_signal};
    return sigaction(SIGUSR1, &action, NULL) ? "sigaction failed" : NULL;
}

static uint64_t send_signals(void)
{
    pid_t self = getpid();
    signals = 0;
    for (int i = 0; i < 1000; i++)
        kill(self, SIGUSR1);
    return signals;
}

static uint64_t sleep_shortly(void)
{
    const struct timespec pause = {0, 50000};
    uint64_t slept = 0;
    for (int i = 0; i < 40; i++)
        slept += (uint64_t)(clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL) == 0);
    return slept;
}

const struct benchmark system_group[] = {
    {"sys.getppid", NULL, parent_id, 1},
    {"sys.read_zero", open_zero, read_zero, 1},
    {"sys.clock", NULL, clock_calls, 1},
    {"sys.signal", catch_signal, send_signals, 1},
    {"time.sleep50us", NULL, sleep_shortly, 1},
    {0},
};
