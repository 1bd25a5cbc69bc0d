/* Common to the programs of this folder. */
#ifndef BENCH_BASICS_H
#define BENCH_BASICS_H

#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* One line: what failed, why, and what to do about it. */
static inline _Noreturn void die(const char *what, const char *remedy)
{
    fprintf(stderr, "%s: %s: %s; %s\n", program_invocation_short_name, what, strerror(errno), remedy);
    exit(1);
}

static inline int must(int result, const char *what, const char *remedy)
{
    if (result < 0)
        die(what, remedy);
    return result;
}

static inline uint64_t now_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Ends with the driver, even if that is killed; and makes sleeps exact, not 50 us late. */
static inline void live_with_parent(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1);
}

static inline void stay_on(const char *cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET((size_t)strtoul(cpu, NULL, 10), &set);
    must(sched_setaffinity(0, sizeof set, &set), "cannot stay on the processor", "name one that taskset -p $$ shows");
}

/*
 * A new network namespace: it shares no ports, TIME_WAIT sockets and sock_diag listings, and ends with the process.
 * Probes still see its connections.
 */
static inline void take_network(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int sock;

    must(unshare(CLONE_NEWNET), "cannot make a network namespace", "run as root (CAP_SYS_ADMIN)");
    sock = must(socket(AF_INET, SOCK_DGRAM, 0), "cannot open a socket", "is IPv4 there?");
    must(ioctl(sock, SIOCGIFFLAGS, &request), "cannot read the flags of lo", "is the loopback interface there?");
    request.ifr_flags |= IFF_UP;
    must(ioctl(sock, SIOCSIFFLAGS, &request), "cannot set lo up", "run as root (CAP_NET_ADMIN)");
    close(sock);
}

#endif
