/* phases - what each phase of a short connection takes of the CPU time of one thread, which makes both ends, as commanded on
 * stdin.
 *
 *   phases PORT CPU
 *
 *   pass COUNT    COUNT connections; then "passed" and the median of each phase in ns: socket and bind, connect, accept,
 *                 the client's send, the server's recv, the server's send, the client's recv, the client's close, the
 *                 server's close
 *   calls COUNT   COUNT times getppid(2), which has nothing to do with TCP; then "called" and the mean in ps
 *
 * In an emulator whose clock counts instructions (tests/vm/run --count-instructions) a ns is an instruction. Everything is in a
 * network namespace of its own. Ends at the end of stdin.
 */
#define _GNU_SOURCE
#include "basics.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <sys/syscall.h>

enum {
    PHASES = 9,
    PAYLOAD = 100,
    MOST = 5000,
    /* The kernel takes a time of its own for the first connection to an address. */
    DESTINATIONS = 50,
};

static const char retry[] = "run fewer connections";

static uint64_t taken[PHASES][MOST];

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void connect_once(int listener, uint16_t port, unsigned number, unsigned place)
{
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET, .sin_port = htons(port)};
    char data[PAYLOAD] = {0};
    uint64_t at[PHASES + 1];
    int client, server;

    from.sin_addr.s_addr = to.sin_addr.s_addr = htonl(INADDR_LOOPBACK + number % DESTINATIONS);
    at[0] = now_ns(CLOCK_THREAD_CPUTIME_ID);
    client = must(socket(AF_INET, SOCK_STREAM, 0), "cannot open a socket", retry);
    must(bind(client, (struct sockaddr *)&from, sizeof from), "cannot bind", retry);
    at[1] = now_ns(CLOCK_THREAD_CPUTIME_ID);
    must(connect(client, (struct sockaddr *)&to, sizeof to), "cannot connect", retry);
    at[2] = now_ns(CLOCK_THREAD_CPUTIME_ID);
    server = must(accept(listener, NULL, NULL), "cannot accept", retry);
    at[3] = now_ns(CLOCK_THREAD_CPUTIME_ID);
    must((int)send(client, data, PAYLOAD, MSG_NOSIGNAL), "the client cannot send", retry);
    at[4] = now_ns(CLOCK_THREAD_CPUTIME_ID);
    must((int)recv(server, data, PAYLOAD, MSG_WAITALL), "the server cannot receive", retry);
    at[5] = now_ns(CLOCK_THREAD_CPUTIME_ID);
    must((int)send(server, data, PAYLOAD, MSG_NOSIGNAL), "the server cannot send", retry);
    at[6] = now_ns(CLOCK_THREAD_CPUTIME_ID);
    must((int)recv(client, data, PAYLOAD, MSG_WAITALL), "the client cannot receive", retry);
    at[7] = now_ns(CLOCK_THREAD_CPUTIME_ID);
    close(client);
    at[8] = now_ns(CLOCK_THREAD_CPUTIME_ID);
    close(server);
    at[9] = now_ns(CLOCK_THREAD_CPUTIME_ID);
    for (int phase = 0; phase < PHASES; phase++)
        taken[phase][place] = at[phase + 1] - at[phase];
}

static void pass(int listener, uint16_t port, unsigned count)
{
    static unsigned number;

    for (unsigned place = 0; place < count; place++)
        connect_once(listener, port, number++, place);
    printf("passed");
    for (int phase = 0; phase < PHASES; phase++) {
        qsort(taken[phase], count, sizeof taken[phase][0], compare);
        printf(" %" PRIu64, taken[phase][count / 2]);
    }
    putchar('\n');
}

static void call(unsigned count)
{
    uint64_t began = now_ns(CLOCK_THREAD_CPUTIME_ID);

    for (unsigned i = 0; i < count; i++)
        syscall(SYS_getppid);
    printf("called %" PRIu64 "\n", (now_ns(CLOCK_THREAD_CPUTIME_ID) - began) * 1000 / count);
}

int main(int argc, char **argv)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY)};
    char line[64], command[16];
    int listener, reuse = 1;
    unsigned count;

    if (argc != 3) {
        fputs("usage: phases PORT CPU\n", stderr);
        return 1;
    }
    live_with_parent();
    stay_on(argv[2]);
    take_network();
    setvbuf(stdout, NULL, _IOLBF, 0);
    any.sin_port = htons((uint16_t)atoi(argv[1]));
    listener = must(socket(AF_INET, SOCK_STREAM, 0), "cannot open a socket", retry);
    must(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse), "cannot set an option", retry);
    must(bind(listener, (struct sockaddr *)&any, sizeof any), "cannot bind", "is the port taken?");
    must(listen(listener, 16), "cannot listen", retry);
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (sscanf(line, "%15s %u", command, &count) != 2 || count == 0 || count > 10000000) {
            fprintf(stderr, "phases: not a command: %s", line);
            return 1;
        }
        if (strcmp(command, "pass") == 0 && count <= MOST)
            pass(listener, (uint16_t)atoi(argv[1]), count);
        else if (strcmp(command, "calls") == 0)
            call(count);
        else {
            fprintf(stderr, "phases: not a command: %s", line);
            return 1;
        }
    }
    return 0;
}
