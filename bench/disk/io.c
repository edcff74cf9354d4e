/* Process 1 of a guest that measures its disk: for each kind of access, operations and bytes a second.
 *
 * Every access is O_DIRECT, so that the guest's own cache does not answer. "depth" threads have one access each
 * under way. A line for each kind: disk: NAME OPERATIONS_PER_SECOND BYTES_PER_SECOND
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct kind {
    const char *name;
    size_t size;
    int write, random, flush, depth;
};

static const struct kind KINDS[] = {
    {"read-seq-1m", 1 << 20, 0, 0, 0, 1},  {"write-seq-1m", 1 << 20, 1, 0, 0, 1},
    {"read-rand-4k", 4096, 0, 1, 0, 1},    {"write-rand-4k", 4096, 1, 1, 0, 1},
    {"read-rand-4k-d8", 4096, 0, 1, 0, 8}, {"write-rand-4k-d8", 4096, 1, 1, 0, 8},
    {"write-4k-flush", 4096, 1, 1, 1, 1},
};

static const struct kind *kind;
static int disk;
static uint64_t blocks;
static double seconds = 3;
static atomic_ulong done;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void *work(void *seed)
{
    uint64_t random = (uintptr_t)seed * 0x9e3779b97f4a7c15u + 1, next = 0;
    void *buffer = aligned_alloc(4096, kind->size);
    memset(buffer, 0x5a, kind->size);
    double end = now() + seconds;
    while (now() < end) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        uint64_t block = kind->random ? (random >> 20) % blocks : next++ % blocks;
        off_t at = block * kind->size;
        ssize_t n = kind->write ? pwrite(disk, buffer, kind->size, at) : pread(disk, buffer, kind->size, at);
        if (n != (ssize_t)kind->size || (kind->flush && fdatasync(disk))) {
            perror("disk: access");
            break;
        }
        atomic_fetch_add(&done, 1);
    }
    free(buffer);
    return NULL;
}

int main(void)
{
    mkdir("/dev", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    if (getenv("disk_seconds"))
        seconds = atof(getenv("disk_seconds"));
    const char *path = getenv("disk_path") ? getenv("disk_path") : "/dev/nvme0n1";
    uint64_t size = 0;
    for (int i = 0; i < 100 && (disk = open(path, O_RDWR | O_DIRECT)) < 0; i++)
        usleep(50000);
    if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size)) {
        perror("disk: open");
        reboot(RB_POWER_OFF);
    }
    for (size_t k = 0; k < sizeof KINDS / sizeof *KINDS; k++) {
        pthread_t threads[8];
        kind = &KINDS[k];
        blocks = size / kind->size;
        done = 0;
        double start = now();
        for (int i = 0; i < kind->depth; i++)
            pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)(i + 1));
        for (int i = 0; i < kind->depth; i++)
            pthread_join(threads[i], NULL);
        double rate = done / (now() - start);
        printf("\ndisk: %s %.0f %.0f\n", kind->name, rate, rate * kind->size);
        fflush(stdout);
    }
    reboot(RB_POWER_OFF);
}
