/* Started as process 1: make the file systems programs expect, and the arguments the kernel command line gives. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init.h"

static void show(const char *what, const char *path)
{
    char text[128] = "unknown";
    FILE *file = fopen(path, "r");
    if (file) {
        if (!fgets(text, sizeof text, file))
            text[0] = 0;
        fclose(file);
    }
    text[strcspn(text, "\n")] = 0;
    printf("guestbench: %s %s\n", what, text);
}

int init_arguments(char **arguments, int room)
{
    static char line[4096];
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    mkdir("/tmp", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
    int file = open("/proc/cmdline", O_RDONLY);
    ssize_t size = file < 0 ? 0 : read(file, line, sizeof line - 1);
    if (file >= 0)
        close(file);
    line[size > 0 ? size : 0] = 0;
    show("clocksource", "/sys/devices/system/clocksource/clocksource0/current_clocksource");
    int count = 0;
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
        char *value = strchr(word, '=');
        if (strncmp(word, "bench", 5) != 0 || !value || count + 1 >= room)
            continue;
        if (strncmp(word, "bench_seconds=", 14) == 0)
            arguments[count++] = "--seconds";
        arguments[count++] = value + 1;
    }
    return count;
}

void init_end(void)
{
    sync();
    reboot(RB_POWER_OFF);
}
