/* app.*: whole programs of busybox on generated input. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

enum { LINES = 4000, MOST_OUTPUT = 1 << 20 };

static char input_path[256], output_path[256];
static char output[MOST_OUTPUT];

static const char *make_input(void)
{
    static const char *const words[] = {"kernel", "page", "table", "guest", "timer", "queue", "block", "entry"};
    uint64_t seed = 61;
    if (access(busybox_path, X_OK))
        return "there is no busybox";
    snprintf(input_path, sizeof input_path, "%s/input", scratch_folder);
    snprintf(output_path, sizeof output_path, "%s/output", scratch_folder);
    FILE *file = fopen(input_path, "w");
    if (!file)
        return "cannot create a file in the scratch folder";
    for (int i = 0; i < LINES; i++) {
        uint64_t r = next_random(&seed);
        fprintf(file, "%s %s %lu %s %lu\n", words[r % 8], words[r >> 8 & 7], (unsigned long)(r >> 40),
                words[r >> 16 & 7], (unsigned long)(r >> 20 & 1023));
    }
    return fclose(file) ? "cannot fill a file in the scratch folder" : NULL;
}

/* Run busybox with the input as its standard input; a checksum of what it wrote from `skip` on. */
static uint64_t run(char *const arguments[], size_t skip)
{
    pid_t child = fork();
    if (child == 0) {
        int in = open(input_path, O_RDONLY), out = open(output_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (in >= 0 && out >= 0 && dup2(in, 0) == 0 && dup2(out, 1) == 1) {
            char *const environment[] = {"LC_ALL=C", "PATH=/nowhere", NULL};
            execve(busybox_path, arguments, environment);
        }
        _exit(127);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child)
        fail("fork or wait");
    int file = open(output_path, O_RDONLY);
    ssize_t size = file < 0 ? -1 : read(file, output, sizeof output);
    if (size < 0)
        fail("reading a program's output");
    close(file);
    if (status != 0 || (size_t)size <= skip)
        return 0;
    return fold_bytes((uint64_t)size, output + skip, (size_t)size - skip);
}

static uint64_t gzip(void)
{
    /* The header holds the time. */
    return run((char *[]){"busybox", "gzip", "-c", NULL}, 10);
}

static uint64_t sort(void) { return run((char *[]){"busybox", "sort", "-k", "3", NULL}, 0); }

static uint64_t awk(void)
{
    return run((char *[]){"busybox", "awk",
                          "{ n[$1]++; s[$2] += $5; if ($3 % 7 == 1) l += length($0); x = substr($4, 1, 3); c[x]++ }"
                          " END { for (k in n) t += n[k]; for (k in s) u += s[k]; print t, u, l, c[\"gue\"] }",
                          NULL}, 0);
}

static uint64_t shell(void)
{
    return run((char *[]){"busybox", "sh", "-c",
                          "i=0 s=0; while read -r a b c d e; do i=$((i + 1)); s=$((s + e * 3 % 17));"
                          " case $a in k*) s=$((s + 1));; esac; [ $i -ge 250 ] && break; done; echo $i $s ${a%r}", NULL},
               0);
}

static uint64_t spawn(void)
{
    char script[512];
    snprintf(script, sizeof script,
             "for i in 1 2 3 4 5 6 7 8 9 10; do %s true || exit 1; done; echo $i | %s cat", busybox_path, busybox_path);
    return run((char *[]){"busybox", "sh", "-c", script, NULL}, 0);
}

const struct benchmark program_group[] = {
    {"app.gzip", make_input, gzip, 1},
    {"app.sort", make_input, sort, 1},
    {"app.awk", make_input, awk, 1},
    {"app.sh", make_input, shell, 1},
    {"app.spawn", make_input, spawn, 1},
    {0},
};
