#ifndef INIT_H
#define INIT_H

/* Mount proc, sys, dev and tmp, and turn the kernel command line's "bench=NAME,NAME" and "bench_seconds=S" into at
 * most `room` arguments; their number. */
int init_arguments(char **arguments, int room);
/* Power the machine off. */
void init_end(void);

#endif
