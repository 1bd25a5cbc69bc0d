/* tcp_table - a live table of this host's TCP connections, one line an event.
 *
 * A complete program linked with libtcpEvent.so: this file uses the library, layout.c writes the events.
 *
 * DequeuePerfEvent blocks until there is an event, however long that takes. So a thread of its own calls it and prints,
 * while the main thread waits in one poll() for whatever may end the program: a signal (read through a signalfd, so no
 * handler runs), the time given by --seconds, a reader that went away, or the last line of --count.
 */
#define _GNU_SOURCE
#include "event.h"
#include "layout.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <locale.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#ifndef TCPEVENT_VERSION
#define TCPEVENT_VERSION "(built outside its source tree)"
#endif

enum {
    ATTACH_PATIENCE_MS = 30000, /* loading takes well under a second; under emulation, several */
    ATTACH_POLL_MS = 10,
    LAST_LINE_PATIENCE_S = 1,
};

/* ---- The printing thread ------------------------------------------------------------------------------------ */

struct printer {
    bool tsv;
    uint64_t count;          /* events to print; 0: no end */
    pthread_mutex_t writing; /* held while a line is written, so that the program ends between lines */
    int finished;            /* eventfd */
    int error;               /* errno of the write that failed, set before `finished` */
};

static int print_header(struct printer *printer, struct table *table)
{
    struct line line = {.length = 0};

    if (printer->tsv)
        tsv_header(&line);
    else
        table_header(table, &line);
    return write_line(&line);
}

static void *print_events(void *argument)
{
    struct printer *printer = argument;
    struct table table;
    uint64_t one = 1;
    int error;

    table_begin(&table);
    error = print_header(printer, &table);
    for (uint64_t printed = 0; error == 0 && (printer->count == 0 || printed < printer->count); printed++) {
        struct tcp_event_t event = DequeuePerfEvent();
        struct line line = {.length = 0};

        pthread_mutex_lock(&printer->writing);
        if (printer->tsv)
            tsv_row(&line, &event);
        else
            table_row(&table, &line, &event);
        error = write_line(&line);
        pthread_mutex_unlock(&printer->writing);
    }
    printer->error = error;
    while (write(printer->finished, &one, sizeof one) < 0 && errno == EINTR)
        ;
    return NULL;
}

/* ---- The command line --------------------------------------------------------------------------------------- */

struct settings {
    bool tsv;
    uint64_t count;
    uint64_t seconds;
};

static const char help[] =
    "Usage: tcp_table [--tsv] [--count N] [--seconds N]\n"
    "Shows the TCP connections of this host as libtcpEvent.so reports them, one line an event:\n"
    "each connection when it ends, and every 6.2 seconds those that are open. Needs root.\n"
    "\n"
    "  --count N    end after N events\n"
    "  --seconds N  end after N seconds, counted from the start\n"
    "  --tsv        tab-separated raw fields for other programs; a first line, which begins\n"
    "               with #, names them and comes when the probe is at work\n"
    "  --help       this text\n"
    "  --version    the version\n"
    "\n"
    "RX and TX are bytes as the kernel counts them: an ended connection's include SYN and FIN.\n"
    "Where the probe is the plain tracepoint they can be 0 because they are not known; events do\n"
    "not say so.\n"
    "SEGS is segments in/out. KIND is `listen` for a listening socket, else `-`: events do not\n"
    "say whether a connection has ended. A terminal too narrow for all columns shows `listen`\n"
    "as the remote end; a narrower one shows no SEGS, then no USER, CMD and TIME.\n"
    "Ctrl-C ends it. Status: 0 ended as asked, 1 it failed, 2 wrong arguments.\n";

static bool parse_number(const char *text, uint64_t limit, uint64_t *number)
{
    char *end;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    *number = strtoull(text, &end, 10);
    return errno == 0 && *end == '\0' && *number >= 1 && *number <= limit;
}

static _Noreturn void reject(const char *what, const char *value, const char *remedy)
{
    fprintf(stderr, "tcp_table: %s%s%s: %s\n", what, value[0] != '\0' ? " " : "", value, remedy);
    exit(2);
}

static struct settings parse_arguments(int count, char **arguments)
{
    enum { COUNT = 256, SECONDS, TSV, HELP, VERSION };
    static const struct option options[] = {
        {"count", required_argument, NULL, COUNT}, {"seconds", required_argument, NULL, SECONDS},
        {"tsv", no_argument, NULL, TSV},           {"help", no_argument, NULL, HELP},
        {"version", no_argument, NULL, VERSION},   {NULL, 0, NULL, 0},
    };
    struct settings settings = {.tsv = false};
    int option;

    opterr = 0; /* its messages give no remedy */
    while ((option = getopt_long(count, arguments, ":h", options, NULL)) != -1) {
        switch (option) {
        case COUNT:
            if (!parse_number(optarg, UINT64_MAX, &settings.count))
                reject("--count", optarg, "not a number of events; give a whole number from 1, such as --count 10");
            break;
        case SECONDS:
            if (!parse_number(optarg, 1000000000, &settings.seconds))
                reject("--seconds", optarg,
                       "not a number of seconds; give a whole number from 1 to 1000000000, such as --seconds 10");
            break;
        case TSV:
            settings.tsv = true;
            break;
        case HELP:
        case 'h':
            fputs(help, stdout);
            exit(0);
        case VERSION:
            puts("tcp_table " TCPEVENT_VERSION);
            exit(0);
        case ':':
            reject(arguments[optind - 1], "", "a number must follow; see tcp_table --help");
        default: {
            char letter[] = {'-', (char)optopt, '\0'};
            bool is_letter = optopt > 0 && optopt < COUNT;
            reject(is_letter ? letter : arguments[optind - 1], "", "not understood; see tcp_table --help");
        }
        }
    }
    if (optind < count)
        reject(arguments[optind], "", "takes options only; see tcp_table --help");
    return settings;
}

/* ---- The main thread ---------------------------------------------------------------------------------------- */

static int64_t monotonic_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The signals that end the program, as a descriptor. Blocked before any thread starts, so in all of them. */
static int ending_signals(void)
{
    struct sigaction hangup;
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    /* nohup(1) ignores it; a signalfd would receive it all the same. */
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN)
        sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

/* Waits until something ends the program, and starts the printer once the probe works. Returns the exit status. */
static int supervise(const struct settings *settings, struct printer *printer, int64_t start)
{
    enum { SIGNALS, FINISHED, OUTPUT, WATCHED };
    /* Without events to wait for, poll still reports a closed output, even while no TCP event comes. */
    struct pollfd watched[WATCHED] = {
        [SIGNALS] = {.fd = ending_signals(), .events = POLLIN},
        [FINISHED] = {.fd = printer->finished, .events = POLLIN},
        [OUTPUT] = {.fd = STDOUT_FILENO, .events = 0},
    };
    bool printing = false;

    if (watched[SIGNALS].fd < 0 || watched[FINISHED].fd < 0) {
        perror("tcp_table: signalfd, eventfd");
        return 1;
    }
    AddProbe(NULL);
    for (;;) {
        int64_t now = monotonic_ms();
        int64_t wait = INT_MAX;

        if (!printing) {
            bool attached = getStatus() == 1;
            pthread_t thread;

            wait = ATTACH_POLL_MS;
            if (!attached && now - start >= ATTACH_PATIENCE_MS)
                fprintf(stderr, "tcp_table: no probe after %d s: only open connections will be shown\n",
                        ATTACH_PATIENCE_MS / 1000);
            if (attached || now - start >= ATTACH_PATIENCE_MS) {
                int error = pthread_create(&thread, NULL, print_events, printer);
                if (error != 0) {
                    fprintf(stderr, "tcp_table: cannot start a thread: %s\n", strerror(error));
                    return 1;
                }
                pthread_detach(thread);
                printing = true;
                wait = INT_MAX;
            }
        }
        if (settings->seconds > 0) {
            int64_t left = start + (int64_t)settings->seconds * 1000 - now;
            if (left <= 0)
                return 0;
            if (left < wait)
                wait = left;
        }
        if (poll(watched, WATCHED, (int)wait) < 0 && errno != EINTR) {
            perror("tcp_table: poll");
            return 1;
        }
        if (watched[FINISHED].revents != 0) {
            if (printer->error == 0 || printer->error == EPIPE || printer->error == EIO)
                return 0; /* EIO: the terminal is gone */
            fprintf(stderr, "tcp_table: cannot write: %s\n", strerror(printer->error));
            return 1;
        }
        if (watched[SIGNALS].revents != 0 || watched[OUTPUT].revents != 0)
            return 0;
    }
}

int main(int argc, char **argv)
{
    int64_t start = monotonic_ms();
    struct settings settings = parse_arguments(argc, argv);
    /* Static: the printing thread still exists, blocked, when main returns. */
    static struct printer printer = {.writing = PTHREAD_MUTEX_INITIALIZER};
    struct timespec patience;
    int status;

    /* Output has no reader; and the next file opened would become the standard output. */
    if (fcntl(STDOUT_FILENO, F_GETFL) < 0)
        return 0;
    setlocale(LC_CTYPE, "");
    tzset();
    signal(SIGPIPE, SIG_IGN);
    printer.tsv = settings.tsv;
    printer.count = settings.count;
    printer.finished = eventfd(0, EFD_CLOEXEC);

    status = supervise(&settings, &printer, start);
    cleanup();
    /* Never unlocked, so that the end cuts no line in half. Times out in case a reader has stopped reading. */
    clock_gettime(CLOCK_REALTIME, &patience);
    patience.tv_sec += LAST_LINE_PATIENCE_S;
    pthread_mutex_timedlock(&printer.writing, &patience);
    return status;
}
