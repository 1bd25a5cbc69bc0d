/* sockets - holds SOCKETS established TCP sockets, evenly in PROCESSES processes, until the end of stdin.
 *
 *   sockets SOCKETS PROCESSES [here]
 *
 * "open SOCKETS" reports that all are open. The processes are pairs: one holds the clients' ends, the other the
 * servers'. 100 bytes went through each connection either way. Their network namespace is their own and has no other
 * sockets; with "here", they are in the caller's.
 */
#define _GNU_SOURCE
#include "basics.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { PAYLOAD = 100, MOST_PROCESSES = 10000 };

static const char fewer[] = "hold fewer sockets, or in more processes (ulimit -n)";

static void pass(int sock, ssize_t (*call)(int, void *, size_t, int), const char *what)
{
    char data[PAYLOAD] = {0};

    if (call(sock, data, sizeof data, MSG_WAITALL | MSG_NOSIGNAL) != PAYLOAD)
        die(what, fewer);
}

static ssize_t send_bytes(int sock, void *data, size_t size, int flags)
{
    return send(sock, data, size, flags & MSG_NOSIGNAL);
}

/* Both ends go through the same listener, whose queue holds all. */
static void open_clients(struct sockaddr_in *server, uint64_t count)
{
    int *socks = calloc(count, sizeof *socks);

    if (socks == NULL)
        die("no memory", fewer);
    for (uint64_t i = 0; i < count; i++) {
        socks[i] = must(socket(AF_INET, SOCK_STREAM, 0), "cannot open a socket", fewer);
        must(connect(socks[i], (struct sockaddr *)server, sizeof *server), "cannot connect", fewer);
        pass(socks[i], send_bytes, "cannot send");
    }
    for (uint64_t i = 0; i < count; i++)
        pass(socks[i], recv, "cannot receive");
    free(socks);
}

static void open_servers(int listener, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        int sock = must(accept(listener, NULL, NULL), "cannot accept", fewer);

        pass(sock, recv, "cannot receive");
        pass(sock, send_bytes, "cannot send");
    }
}

/* A child sends a byte when it is ready, and lives until its parent's end of `life` is closed. */
static _Noreturn void child(int ready, int life, int listener, struct sockaddr_in *server, uint64_t count,
                            int is_server)
{
    char byte = 0;

    live_with_parent();
    if (is_server)
        open_servers(listener, count);
    else
        open_clients(server, count);
    close(listener);
    if (write(ready, &byte, 1) != 1)
        die("cannot write to the parent", "is it gone?");
    while (read(life, &byte, 1) > 0)
        ;
    _exit(0);
}

static void open_pair(const int ready[2], const int life[2], uint64_t pair, uint64_t count)
{
    /* An address for each pair: they share no ports. */
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)pair)};
    socklen_t length = sizeof server;
    int listener = must(socket(AF_INET, SOCK_STREAM, 0), "cannot open a socket", fewer);

    must(bind(listener, (struct sockaddr *)&server, sizeof server), "cannot bind", fewer);
    must(listen(listener, (int)count), "cannot listen", fewer);
    must(getsockname(listener, (struct sockaddr *)&server, &length), "cannot get the port", fewer);
    for (int is_server = 0; is_server < 2; is_server++) {
        if (must(fork(), "cannot fork", "use fewer processes (ulimit -u)") == 0) {
            close(ready[0]);
            close(life[1]);
            child(ready[1], life[0], listener, &server, count, is_server);
        }
    }
    close(listener);
}

/* Raises the limit as far as possible: the usual one is lower, for the sake of select(2). */
static void allow_descriptors(void)
{
    struct rlimit limit;

    must(getrlimit(RLIMIT_NOFILE, &limit), "cannot read the limit of descriptors", "see ulimit -n");
    limit.rlim_cur = limit.rlim_max;
    must(setrlimit(RLIMIT_NOFILE, &limit), "cannot raise the limit of descriptors", "see ulimit -n");
}

int main(int argc, char **argv)
{
    int here = argc == 4 && strcmp(argv[3], "here") == 0;
    int arguments = argc - here;
    uint64_t sockets = arguments == 3 ? strtoull(argv[1], NULL, 10) : 0;
    uint64_t processes = arguments == 3 ? strtoull(argv[2], NULL, 10) : 0;
    int ready[2];
    int life[2];
    char byte;

    if (sockets == 0 || processes == 0 || processes % 2 != 0 || processes > MOST_PROCESSES ||
        sockets % processes != 0) {
        fprintf(stderr, "usage: sockets SOCKETS PROCESSES [here]; PROCESSES even, SOCKETS a multiple of it\n");
        return 2;
    }
    live_with_parent();
    if (!here)
        take_network();
    allow_descriptors();
    must(pipe(ready), "cannot make a pipe", "see ulimit -n");
    must(pipe(life), "cannot make a pipe", "see ulimit -n");
    for (uint64_t pair = 0; pair < processes / 2; pair++)
        open_pair(ready, life, pair, sockets / processes);
    close(ready[1]);
    close(life[0]);
    for (uint64_t i = 0; i < processes; i++) {
        if (read(ready[0], &byte, 1) != 1) {
            fprintf(stderr, "sockets: a process has ended before its sockets were open; it has said why\n");
            return 1;
        }
    }
    printf("open %" PRIu64 "\n", sockets);
    fflush(stdout);
    while (getchar() != EOF)
        ;
    close(life[1]);
    while (wait(NULL) > 0)
        ;
    return 0;
}
