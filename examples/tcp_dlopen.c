/* tcp_dlopen - loads libtcpEvent.so at run time and prints each event as a line of JSON.
 *
 * An example of a consumer as the first ones were written: six symbols looked up by name, a BPF program handed to
 * AddProbe, one thread that sits in DequeuePerfEvent, and a signal handler that calls cleanup() and exit() there.
 */
#define _GNU_SOURCE
#include "event.h"

#include <dlfcn.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#ifndef TCPEVENT_VERSION
#define TCPEVENT_VERSION "(built outside its source tree)"
#endif

#define DEFAULT_LIBRARY "/opt/RealTimeKql/lib/libtcpEvent.so"

/* What a consumer of the BCC days passes: C for BCC to compile. libtcpEvent.so brings a probe of its own and takes
 * this text for a sign of which consumer it has; a library that does compile it would get nothing but closes. */
static const char program[] =
    "#include <net/sock.h>\n"
    "#include <bcc/proto.h>\n"
    "\n"
    "struct closed_t { u64 when; u16 local_port; };\n"
    "BPF_PERF_OUTPUT(tcpEvents);\n"
    "\n"
    "int kprobe__tcp_set_state(struct pt_regs *ctx, struct sock *sk, int state)\n"
    "{\n"
    "    struct closed_t closed = {.when = bpf_ktime_get_ns(), .local_port = sk->__sk_common.skc_num};\n"
    "    if (state == TCP_CLOSE)\n"
    "        tcpEvents.perf_submit(ctx, &closed, sizeof(closed));\n"
    "    return 0;\n"
    "}\n";

/* ---- The library -------------------------------------------------------------------------------------------- */

static struct {
    void (*AddProbe)(const char *program);
    int (*setupBPF)(const char *program);
    unsigned (*getStatus)(void);
    struct tcp_event_t (*DequeuePerfEvent)(void);
    void (*cleanup)(void);
    void (*printCharArray)(const char *text);
} library;

static void resolve(void *handle, const char *path, const char *name, void *function, size_t size)
{
    void *symbol = dlsym(handle, name);

    if (symbol == NULL) {
        fprintf(stderr, "tcp_dlopen: %s has no symbol %s: is it libtcpEvent.so?\n", path, name);
        exit(1);
    }
    /* ISO C has no cast from an object pointer to a function pointer; POSIX says that the bits are the same. */
    memcpy(function, &symbol, size);
}

static void load(const char *path)
{
    /* All symbols now: a missing one should end the program here and not in the middle of its work. */
    void *handle = dlopen(path, RTLD_NOW);

    if (handle == NULL) {
        fprintf(stderr, "tcp_dlopen: cannot load the library: %s; give the path of libtcpEvent.so as argument\n",
                dlerror());
        exit(1);
    }
#define RESOLVE(name) resolve(handle, path, #name, &library.name, sizeof library.name)
    RESOLVE(AddProbe);
    RESOLVE(setupBPF);
    RESOLVE(getStatus);
    RESOLVE(DequeuePerfEvent);
    RESOLVE(cleanup);
    RESOLVE(printCharArray);
#undef RESOLVE
}

/* ---- JSON --------------------------------------------------------------------------------------------------- */

struct line {
    char text[4096]; /* an event of 430 bytes, each byte escaped to six, still fits */
    size_t length;
};

static void put(struct line *line, const char *text)
{
    size_t count = strlen(text);

    if (count > sizeof line->text - line->length)
        count = sizeof line->text - line->length;
    memcpy(line->text + line->length, text, count);
    line->length += count;
}

static void put_number(struct line *line, const char *name, uint64_t value)
{
    char member[64];

    snprintf(member, sizeof member, "\"%s\":%" PRIu64 ",", name, value);
    put(line, member);
}

/* A command may hold any bytes, also half a character. Each byte that is not printable ASCII becomes the code point
 * of the same number: always valid, and encoding the string as Latin-1 gives the bytes back. */
static void put_string(struct line *line, const char *name, const char *text, size_t size, const char *end)
{
    put(line, "\"");
    put(line, name);
    put(line, "\":\"");
    for (size_t i = 0; i < size && text[i] != '\0'; i++) {
        unsigned char byte = (unsigned char)text[i];
        char escaped[8];

        if (byte == '"' || byte == '\\')
            snprintf(escaped, sizeof escaped, "\\%c", byte);
        else if (byte < 0x20 || byte >= 0x7f)
            snprintf(escaped, sizeof escaped, "\\u%04x", byte);
        else
            snprintf(escaped, sizeof escaped, "%c", byte);
        put(line, escaped);
    }
    put(line, "\"");
    put(line, end);
}

static void put_event(struct line *line, const struct tcp_event_t *event)
{
    put(line, "{");
    put_number(line, "EventTime", event->EventTime);
    put_number(line, "pid", event->pid);
    put_number(line, "UserId", event->UserId);
    put_number(line, "rx_b", event->rx_b);
    put_number(line, "tx_b", event->tx_b);
    put_number(line, "tcpi_segs_out", event->tcpi_segs_out);
    put_number(line, "tcpi_segs_in", event->tcpi_segs_in);
    put_number(line, "family", event->family);
    put_number(line, "SPT", event->SPT);
    put_number(line, "DPT", event->DPT);
    put_string(line, "task", event->task, sizeof event->task, ",");
    put_string(line, "SADDR", event->SADDR, sizeof event->SADDR, ",");
    put_string(line, "DADDR", event->DADDR, sizeof event->DADDR, "}\n");
}

/* 0, or the errno that ended it. Not through stdio: the signal handler may interrupt this, and its exit() would then
 * find a stream in mid-air. */
static int write_line(const struct line *line)
{
    size_t written = 0;

    while (written < line->length) {
        ssize_t now = write(STDOUT_FILENO, line->text + written, line->length - written);
        if (now >= 0)
            written += (size_t)now;
        else if (errno != EINTR)
            return errno;
    }
    return 0;
}

/* ---- The command line --------------------------------------------------------------------------------------- */

static const char help[] =
    "Usage: tcp_dlopen [LIBRARY] [--count N] [--seconds N] [--wait N]\n"
    "Loads libtcpEvent.so and prints the TCP events of this host as JSON, one object a line.\n"
    "LIBRARY is its path, by default " DEFAULT_LIBRARY ". Needs root.\n"
    "\n"
    "  --count N    end after N events\n"
    "  --seconds N  end after N seconds, counted from the start\n"
    "  --wait N     give up where the probe is not at work after N seconds (30)\n"
    "  --help       this text\n"
    "  --version    the version\n"
    "\n"
    "Bytes of task, SADDR and DADDR that are not printable ASCII are written \\u00XX. EventTime is\n"
    "in nanoseconds, more than a JSON reader with floating-point numbers keeps.\n"
    "Ctrl-C ends it. Status: 0 ended as asked, 1 it failed, 2 wrong arguments.\n";

struct settings {
    const char *library;
    uint64_t count;
    uint64_t seconds;
    uint64_t wait;
};

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
    fprintf(stderr, "tcp_dlopen: %s%s%s: %s\n", what, value[0] != '\0' ? " " : "", value, remedy);
    exit(2);
}

static struct settings parse_arguments(int count, char **arguments)
{
    enum { COUNT = 256, SECONDS, WAIT, HELP, VERSION };
    static const struct option options[] = {
        {"count", required_argument, NULL, COUNT}, {"seconds", required_argument, NULL, SECONDS},
        {"wait", required_argument, NULL, WAIT},   {"help", no_argument, NULL, HELP},
        {"version", no_argument, NULL, VERSION},   {NULL, 0, NULL, 0},
    };
    static const char not_seconds[] = "not a number of seconds; give a whole number from 1 to 1000000000, such as 10";
    struct settings settings = {.library = DEFAULT_LIBRARY, .wait = 30};
    int option;

    opterr = 0; /* its messages give no remedy */
    while ((option = getopt_long(count, arguments, ":h", options, NULL)) != -1) {
        switch (option) {
        case COUNT:
            if (!parse_number(optarg, UINT64_MAX, &settings.count))
                reject("--count", optarg, "not a number of events; give a whole number from 1, such as 10");
            break;
        case SECONDS:
            if (!parse_number(optarg, 1000000000, &settings.seconds))
                reject("--seconds", optarg, not_seconds);
            break;
        case WAIT:
            if (!parse_number(optarg, 1000000000, &settings.wait))
                reject("--wait", optarg, not_seconds);
            break;
        case HELP:
        case 'h':
            fputs(help, stdout);
            exit(0);
        case VERSION:
            puts("tcp_dlopen " TCPEVENT_VERSION);
            exit(0);
        case ':':
            reject(arguments[optind - 1], "", "a number must follow; see tcp_dlopen --help");
        default: {
            char letter[] = {'-', (char)optopt, '\0'};
            bool is_letter = optopt > 0 && optopt < COUNT;
            reject(is_letter ? letter : arguments[optind - 1], "", "not understood; see tcp_dlopen --help");
        }
        }
    }
    if (optind < count)
        settings.library = arguments[optind++];
    if (optind < count)
        reject(arguments[optind], "", "one library is enough; see tcp_dlopen --help");
    return settings;
}

/* ---- The program -------------------------------------------------------------------------------------------- */

/* exit() is not for signal handlers in general. Consumers do it all the same, on the thread that is blocked in
 * DequeuePerfEvent, and the library has to bear that; this program leaves nothing behind for exit() to trip over. */
static void end(int signal_number)
{
    (void)signal_number;
    library.cleanup();
    exit(0);
}

static void wait_for_probe(uint64_t seconds)
{
    const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
    struct timespec start;
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &start);
    while (library.getStatus() == 0) {
        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((uint64_t)(now.tv_sec - start.tv_sec) > seconds) {
            fprintf(stderr, "tcp_dlopen: no probe after %" PRIu64 " s; --wait N waits longer\n", seconds);
            library.cleanup();
            exit(1);
        }
    }
}

int main(int argc, char **argv)
{
    struct settings settings = parse_arguments(argc, argv);
    struct sigaction action = {.sa_handler = end};
    int error = 0;

    load(settings.library);

    /* One ending at a time: a second signal must not call exit() inside exit(). */
    sigfillset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGALRM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (settings.seconds > 0) {
        struct itimerval timer = {.it_value = {.tv_sec = (time_t)settings.seconds}};
        setitimer(ITIMER_REAL, &timer, NULL);
    }

    library.AddProbe(program);
    wait_for_probe(settings.wait);
    for (uint64_t printed = 0; error == 0 && (settings.count == 0 || printed < settings.count); printed++) {
        struct tcp_event_t event = library.DequeuePerfEvent();
        struct line line = {.length = 0};

        put_event(&line, &event);
        error = write_line(&line);
    }
    library.cleanup();
    if (error != 0 && error != EPIPE) {
        fprintf(stderr, "tcp_dlopen: cannot write: %s\n", strerror(error));
        return 1;
    }
    return 0;
}
