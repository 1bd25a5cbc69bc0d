/* syscalls - how long the cheapest system call takes: the cost of watching for programs that do not use TCP.
 *
 *   syscalls CPU
 *
 * For each line "run COUNT" on stdin: "ran COUNT NANOSECONDS", of one getppid. Ends at the end of stdin.
 */
#define _GNU_SOURCE
#include "basics.h"

#include <inttypes.h>
#include <sys/syscall.h>

int main(int argc, char **argv)
{
    char line[128];

    if (argc != 2) {
        fprintf(stderr, "usage: syscalls CPU\n");
        return 2;
    }
    live_with_parent();
    stay_on(argv[1]);
    while (fgets(line, sizeof line, stdin) != NULL) {
        uint64_t count;
        uint64_t began = now_ns(CLOCK_MONOTONIC);

        if (sscanf(line, "run %" SCNu64, &count) != 1 || count == 0) {
            printf("not understood: %s", line);
            continue;
        }
        for (uint64_t i = 0; i < count; i++)
            syscall(SYS_getppid);
        printf("ran %" PRIu64 " %.3f\n", count, (double)(now_ns(CLOCK_MONOTONIC) - began) / (double)count);
        fflush(stdout);
    }
    return 0;
}
