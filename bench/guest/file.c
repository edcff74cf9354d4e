/* file.*: names, contents and pipes, in memory only. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"

enum { NAMES = 50, CHUNK = 64 << 10, CHUNKS = 16 };

static uint8_t *buffer;
static int content = -1, ends[2];

static void name(char *to, size_t size, const char *kind, int number)
{
    snprintf(to, size, "%s/%s%d", scratch_folder, kind, number);
}

static uint64_t metadata(void)
{
    uint64_t sum = 0;
    char path[256], other[256];
    struct stat about;
    for (int i = 0; i < NAMES; i++) {
        name(path, sizeof path, "a", i);
        int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (file < 0 || write(file, path, (size_t)i) != i || close(file))
            fail("creating a file");
    }
    for (int i = 0; i < NAMES; i++) {
        name(path, sizeof path, "a", i);
        name(other, sizeof other, "b", i);
        if (stat(path, &about) || rename(path, other))
            fail("stat or rename");
        sum = sum * 3 + (uint64_t)about.st_size;
    }
    for (int i = 0; i < NAMES; i++) {
        name(other, sizeof other, "b", i);
        sum += (uint64_t)unlink(other) + 1;
    }
    return sum;
}

static const char *make_buffer(void)
{
    uint64_t seed = 59;
    buffer = fresh_memory(CHUNK);
    for (size_t i = 0; i < CHUNK; i++)
        buffer[i] = (uint8_t)next_random(&seed);
    return NULL;
}

static const char *make_content(void)
{
    char path[256];
    name(path, sizeof path, "content", 0);
    content = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (content < 0)
        return "cannot create a file in the scratch folder";
    unlink(path);
    return make_buffer();
}

static uint64_t bandwidth(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < CHUNKS; i++)
        sum += (uint64_t)pwrite(content, buffer, CHUNK, (off_t)i * CHUNK);
    for (int i = 0; i < CHUNKS; i++)
        sum += (uint64_t)pread(content, buffer, CHUNK, (off_t)i * CHUNK);
    return fold_bytes(sum, buffer, 1024);
}

static const char *make_pipe(void)
{
    if (pipe2(ends, O_CLOEXEC))
        return "pipe failed";
    return make_buffer();
}

static uint64_t through_pipe(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < CHUNKS; i++) {
        sum += (uint64_t)write(ends[1], buffer, CHUNK / 2);
        sum += (uint64_t)read(ends[0], buffer, CHUNK / 2);
    }
    return fold_bytes(sum, buffer, 1024);
}

const struct benchmark file_group[] = {
    {"file.meta", NULL, metadata, 1},
    {"file.bw", make_content, bandwidth, 1},
    {"file.pipe", make_pipe, through_pipe, 1},
    {0},
};
