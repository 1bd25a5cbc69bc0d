/* connections - makes TCP connections on loopback, as commanded on stdin.
 *
 *   connections PORT CLIENT_CPU SERVER_CPU
 *
 *   run COUNT RATE   COUNT short connections one after another, RATE a second, or as fast as possible if that is 0;
 *                    then "ran COUNT SECONDS"
 *   hold COUNT       opens or closes connections until COUNT are open; then "held COUNT"
 *
 * It begins with "serving PID": the server's process. PORT is the server's; held connections use the next one.
 * Everything is in a network namespace of its own. Ends at the end of stdin.
 *
 * A short connection is between two processes: the client connects and sends 100 bytes; the server accepts, reads them,
 * sends 100 bytes back and closes; the client reads to the end, and closes. Each process is pinned to a processor: on a
 * single one they take half the time of two, and the scheduler alternates.
 *
 * Held connections have one end here and none elsewhere, like a connection to another host: they are opened in the
 * kernel's repair mode, which sends nothing.
 */
#define _GNU_SOURCE
#include "basics.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <linux/tcp.h>
#include <netinet/in.h>

enum {
    /* Each destination has its own range of the client's ports, so that TIME_WAIT exhausts none. */
    DESTINATIONS = 100,
    PAYLOAD = 100,
    BACKLOG = 128,
};

static const char retry[] = "run fewer connections";

static uint16_t port;

/* ---- Short connections -------------------------------------------------------------------------------------- */

static int listen_here(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int sock = must(socket(AF_INET, SOCK_STREAM, 0), "cannot open a socket", "is IPv4 there?");

    must(bind(sock, (struct sockaddr *)&address, sizeof address), "cannot bind", "is a port set aside for others?");
    must(listen(sock, BACKLOG), "cannot listen", retry);
    return sock;
}

static _Noreturn void serve(int listener)
{
    char data[PAYLOAD];

    for (;;) {
        int sock = must(accept(listener, NULL, NULL), "cannot accept", retry);

        if (recv(sock, data, sizeof data, MSG_WAITALL) == PAYLOAD)
            must((int)send(sock, data, sizeof data, MSG_NOSIGNAL), "the server cannot send", retry);
        close(sock);
    }
}

static void connect_once(uint64_t number)
{
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(port)};
    char data[PAYLOAD + 1] = {0};
    int sock = must(socket(AF_INET, SOCK_STREAM, 0), "cannot open a socket", retry);

    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)(number % DESTINATIONS));
    must(connect(sock, (struct sockaddr *)&server, sizeof server), "cannot connect", retry);
    must((int)send(sock, data, PAYLOAD, MSG_NOSIGNAL), "the client cannot send", retry);
    if (recv(sock, data, sizeof data, MSG_WAITALL) != PAYLOAD)
        die("no answer from the server", retry);
    close(sock);
}

static void run(uint64_t count, uint64_t rate)
{
    static uint64_t number;
    uint64_t began = now_ns(CLOCK_MONOTONIC);

    for (uint64_t i = 0; i < count; i++) {
        uint64_t due = rate > 0 ? began + i * 1000000000 / rate : 0;
        struct timespec until = {.tv_sec = (time_t)(due / 1000000000), .tv_nsec = (long)(due % 1000000000)};

        if (due > 0)
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        connect_once(number++);
    }
    printf("ran %" PRIu64 " %.9f\n", count, (double)(now_ns(CLOCK_MONOTONIC) - began) / 1e9);
}

/* ---- Connections that stay open ----------------------------------------------------------------------------- */

/* Connections of a keeper process: fewer than any usual limit of descriptors. */
enum { KEEPER_HOLDS = 500, MOST_KEEPERS = 2000 };

struct keeper {
    int socket; /* our end of its command socket */
    uint64_t holds;
};

static int connect_nowhere(uint64_t number)
{
    static const char remedy[] = "run as root (CAP_NET_ADMIN)";
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(port + 1))};
    int on = 1;
    int sock = must(socket(AF_INET, SOCK_STREAM, 0), "cannot open a socket", "hold fewer connections (ulimit -n)");

    server.sin_addr.s_addr = htonl(UINT32_C(0x7f010001) + (uint32_t)number);
    must(setsockopt(sock, IPPROTO_TCP, TCP_REPAIR, &on, sizeof on), "no repair mode", remedy);
    must(connect(sock, (struct sockaddr *)&server, sizeof server), "cannot connect in repair mode", remedy);
    return sock;
}

/* Holds as many as commanded, and reports when it does. */
static _Noreturn void keep(int line, uint64_t first_number)
{
    int held[KEEPER_HOLDS];
    uint64_t now = 0;
    uint64_t wanted;

    while (read(line, &wanted, sizeof wanted) == sizeof wanted) {
        for (; now < wanted; now++)
            held[now] = connect_nowhere(first_number + now);
        for (; now > wanted; now--)
            close(held[now - 1]);
        if (write(line, &now, sizeof now) != sizeof now)
            break;
    }
    _exit(0);
}

static void tell(struct keeper *keeper, uint64_t index, uint64_t wanted)
{
    int ends[2];

    if (keeper->socket == 0) {
        must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "cannot make a socket pair", "see ulimit -n");
        if (must(fork(), "cannot fork", "hold fewer connections (ulimit -u)") == 0) {
            live_with_parent();
            close(ends[0]);
            keep(ends[1], index * KEEPER_HOLDS);
        }
        close(ends[1]);
        keeper->socket = ends[0];
    }
    if (write(keeper->socket, &wanted, sizeof wanted) != sizeof wanted ||
        read(keeper->socket, &keeper->holds, sizeof keeper->holds) != sizeof keeper->holds) {
        fprintf(stderr, "connections: a process that holds connections has ended; it has said why\n");
        exit(1);
    }
}

static void hold(uint64_t count)
{
    static struct keeper keepers[MOST_KEEPERS];
    uint64_t held = 0;

    for (uint64_t i = 0; i < MOST_KEEPERS; i++) {
        uint64_t rest = count > held ? count - held : 0;
        uint64_t wanted = rest < KEEPER_HOLDS ? rest : KEEPER_HOLDS;

        if (keepers[i].holds != wanted)
            tell(&keepers[i], i, wanted);
        held += wanted;
    }
    printf("held %" PRIu64 "\n", held);
}

/*
 * On one processor the two are twice as fast as on two, and the scheduler alternates. So each is pinned.
 */
int main(int argc, char **argv)
{
    char line[128];
    int listener;
    int server;

    if (argc != 4) {
        fprintf(stderr, "usage: connections PORT CLIENT_CPU SERVER_CPU\n");
        return 2;
    }
    port = (uint16_t)strtoul(argv[1], NULL, 10);
    live_with_parent();
    take_network();
    listener = listen_here();
    server = must(fork(), "cannot fork", "see ulimit -u");
    if (server == 0) {
        live_with_parent();
        stay_on(argv[3]);
        serve(listener);
    }
    stay_on(argv[2]);
    close(listener);
    printf("serving %d\n", server);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        uint64_t count;
        uint64_t rate;

        if (sscanf(line, "run %" SCNu64 " %" SCNu64, &count, &rate) == 2)
            run(count, rate);
        else if (sscanf(line, "hold %" SCNu64, &count) == 1)
            hold(count);
        else
            printf("not understood: %s", line);
        fflush(stdout);
    }
    return 0;
}
