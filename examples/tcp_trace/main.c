/* tcp_trace - watches the TCP connections of this host, logs each change of state, and alerts a Slack channel of each
 * connection that could not be established.
 *
 * An example of a program that is linked with libtcpEvent.so, and uses include/tcpevent.h. `tcp_trace --help` says how
 * to use it, README.md what it writes.
 *
 * This file does what any watching program does: open, wait in poll() for events and everything else, read, close. The
 * main thread does that and writes the log. A second thread (alert.c) talks to Slack, so that reading never waits for
 * the network. Signals come through descriptors, so no handler runs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "alert.h"
#include "allowance.h"
#include "failure.h"
#include "log.h"
#include "options.h"
#include "tcpevent.h"

enum {
    BATCH = 2048, /* events read at once */
    /* Events queued while a batch is written, or while other programs have the processors. They take up to 36 MB. */
    QUEUE_SLOTS = 131072,
    PRIORITY = -10,
    LOSS_CHECK_MS = 1000,
    /* The library passes events on within a few milliseconds. */
    LAST_EVENTS_PATIENCE_MS = 50,
};

struct monitor {
    struct options options;
    struct log log;
    struct alerts *alerts; /* or NULL */
    struct tcpevent_watch *watch;
    int end_fd;    /* SIGTERM, SIGINT */
    int reopen_fd; /* SIGHUP */
    uint32_t pid;

    struct tcpevent_event events[BATCH];
    uint64_t newest_ns; /* monotonic time of the newest event seen */
    struct allowance allowance;
    uint64_t left_out; /* lines, since the last report */
    struct tcpevent_event last_left_out;
    uint64_t states;
    uint64_t failures;
    uint64_t lost_by_queue;
    uint64_t lost_by_ring;
    int64_t losses_checked_ms;
    bool losses_unchecked; /* events have come since */
};

/* ---- Events ------------------------------------------------------------------------------------------------- */

static void take_event(struct monitor *monitor, const struct tcpevent_event *event)
{
    struct failure failure;

    bool failed = failure_from_event(event, &failure) && !(failure.given_up && monitor->options.ignore_given_up);
    unsigned lines = failed ? 2 : 1;

    if (event->monotonic_ns > monitor->newest_ns)
        monitor->newest_ns = event->monotonic_ns;
    monitor->states++;
    monitor->failures += failed;
    if (allowance_take(&monitor->allowance, event, lines)) {
        log_state(&monitor->log, event);
        if (failed)
            log_failure(&monitor->log, &failure);
    } else {
        monitor->left_out += lines;
        monitor->last_left_out = *event;
    }
    if (!failed)
        return;
    /* Skips its own connections, which are to Slack: alerts about them would cause more of them while Slack is
     * unreachable. */
    if (monitor->alerts != NULL && failure.pid != monitor->pid)
        alerts_add(monitor->alerts, &failure);
}

/* Reads a batch and writes its lines. Returns the number of events, or a negative errno. */
static int take_events(struct monitor *monitor, int timeout_ms)
{
    int count = tcpevent_read(monitor->watch, monitor->events, sizeof monitor->events[0], BATCH, timeout_ms);

    if (count == -EINTR)
        return 0;
    for (int i = 0; i < count; i++)
        take_event(monitor, &monitor->events[i]);
    if (count > 0)
        monitor->losses_unchecked = true;
    log_flush(&monitor->log);
    return count;
}

/* Reports losses since the last check. They show in the counters only. */
static void check_losses(struct monitor *monitor)
{
    struct tcpevent_statistics statistics = {.size = sizeof statistics};
    uint64_t by_queue;
    uint64_t by_ring;

    monitor->losses_checked_ms = monotonic_ms();
    monitor->losses_unchecked = false;
    if (tcpevent_get_statistics(monitor->watch, &statistics) != 0)
        return;
    by_queue = statistics.shed_states + statistics.shed_closes - monitor->lost_by_queue;
    by_ring = statistics.lost_records - monitor->lost_by_ring;
    if (by_queue + by_ring == 0)
        return;
    monitor->lost_by_queue += by_queue;
    monitor->lost_by_ring += by_ring;
    log_notice(&monitor->log, LOG_WARNING, "lost %" PRIu64 " events (queue full: %" PRIu64 ", ring full: %" PRIu64 ")",
               by_queue + by_ring, by_queue, by_ring);
    if (monitor->alerts != NULL)
        alerts_add_lost(monitor->alerts, by_queue + by_ring);
}

/* The last event stands for all: if one user has most of them, it is probably that user's. */
static void tell_what_was_left_out(struct monitor *monitor)
{
    const struct tcpevent_event *last = &monitor->last_left_out;
    char storage[64], user[16] = "unknown";
    struct text destination = TEXT_IN(storage);

    if (monitor->left_out == 0)
        return;
    if (last->known & TCPEVENT_KNOWN_UID)
        snprintf(user, sizeof user, "%" PRIu32, last->uid);
    put_endpoint(&destination, last->family, last->remote_addr, last->remote_port);
    log_notice(&monitor->log, LOG_WARNING,
               "left out %" PRIu64 " lines (--log-rate %u); the last one: user %s, pid %" PRIu32
               ", command %.*s, to %s",
               monitor->left_out, monitor->options.log_rate, user, last->pid, (int)sizeof last->comm, last->comm,
               destination.data);
    monitor->left_out = 0;
}

static void check_up(struct monitor *monitor)
{
    check_losses(monitor);
    tell_what_was_left_out(monitor);
}

/* Reads on until everything before now is in the log, but no more than the queue can hold: on a busy host there is
 * always one more event. */
static void take_last_events(struct monitor *monitor)
{
    struct timespec now;
    uint64_t end_ns;
    int count;

    clock_gettime(CLOCK_MONOTONIC, &now);
    end_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    for (int taken = 0; taken < QUEUE_SLOTS && monitor->newest_ns < end_ns; taken += count) {
        count = take_events(monitor, LAST_EVENTS_PATIENCE_MS);
        if (count <= 0)
            return;
    }
}

/* ---- The watch ---------------------------------------------------------------------------------------------- */

/* Called on a thread of the library. */
static void take_library_message(void *context, int level, const char *text)
{
    struct log *log = context;

    log_post(log, level <= TCPEVENT_LOG_WARN ? LOG_WARNING : LOG_NOTICE, "%s", text);
}

/* Returns 0, or a negative errno; the text is in tcpevent_last_error. */
static int open_watch(struct monitor *monitor)
{
    char *filter = options_filter(&monitor->options);
    struct tcpevent_options options = {
        .size = sizeof options,
        .events = TCPEVENT_EVENTS_STATES,
        .queue_slots = QUEUE_SLOTS,
        .filter = filter,
        .log = take_library_message,
        .log_context = &monitor->log,
    };
    int result = tcpevent_open(&options, &monitor->watch);

    free(filter);
    return result;
}

static void tell_what_is_watched(struct monitor *monitor)
{
    const struct options *options = &monitor->options;
    struct tcpevent_statistics statistics = {.size = sizeof statistics};
    const char *probe = "unknown";

    if (tcpevent_get_statistics(monitor->watch, &statistics) == 0) {
        if (statistics.probe == TCPEVENT_PROBE_KPROBE)
            probe = "kprobe";
        else if (statistics.probe == TCPEVENT_PROBE_TP_BTF)
            probe = "tp_btf";
        else if (statistics.probe == TCPEVENT_PROBE_TRACEPOINT)
            probe = "tracepoint";
    }
    if (monitor->alerts == NULL)
        log_notice(&monitor->log, LOG_NOTICE, "no Slack URL is set: failures are only logged");
    log_notice(&monitor->log, LOG_NOTICE, "watching TCP connections to %.1000s%s%.500s (library %s, probe %s)",
               options->destinations != NULL ? options->destinations : "all destinations",
               options->ports != NULL ? " port " : "", options->ports != NULL ? options->ports : "", tcpevent_version(),
               probe);
}

/* ---- Signals ------------------------------------------------------------------------------------------------ */

static int signal_descriptor(const sigset_t *signals)
{
    return signalfd(-1, signals, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* Blocks them in this thread, and so in all threads started later, the library's too. Returns 0, or an errno. */
static int block_signals(struct monitor *monitor)
{
    sigset_t end;
    sigset_t reopen;
    struct sigaction interrupt;

    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    /* A shell ignores it for background jobs; a descriptor would receive it all the same. */
    if (sigaction(SIGINT, NULL, &interrupt) == 0 && interrupt.sa_handler != SIG_IGN)
        sigaddset(&end, SIGINT);
    sigemptyset(&reopen);
    sigaddset(&reopen, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &end, NULL);
    pthread_sigmask(SIG_BLOCK, &reopen, NULL);
    /* A reader that goes away, or a limit on the file's size, is an error of write(2), not a reason to die. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);

    monitor->end_fd = signal_descriptor(&end);
    monitor->reopen_fd = signal_descriptor(&reopen);
    return monitor->end_fd < 0 || monitor->reopen_fd < 0 ? errno : 0;
}

static bool take_signal(int fd)
{
    struct signalfd_siginfo signal;

    return read(fd, &signal, sizeof signal) == (ssize_t)sizeof signal;
}

/* From now on a signal ends the program at once: a second signal means that the user does not want to wait. */
static void unblock_end_signals(void)
{
    sigset_t end;

    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigaddset(&end, SIGINT);
    pthread_sigmask(SIG_UNBLOCK, &end, NULL);
}

static void reopen_log(struct monitor *monitor)
{
    int error = log_reopen(&monitor->log);

    if (error != 0)
        log_notice(&monitor->log, LOG_WARNING, "cannot reopen the log %s: %s; the old file stays in use",
                   monitor->log.name, strerrordesc_np(error));
}

/* ---- The loop ----------------------------------------------------------------------------------------------- */

/* Runs until a signal ends it, or it cannot go on. Returns the exit status. */
static int watch(struct monitor *monitor)
{
    enum { EVENTS, END, REOPEN, POSTS, WATCHED };
    struct pollfd watched[WATCHED] = {
        [EVENTS] = {.fd = tcpevent_fd(monitor->watch), .events = POLLIN},
        [END] = {.fd = monitor->end_fd, .events = POLLIN},
        [REOPEN] = {.fd = monitor->reopen_fd, .events = POLLIN},
        [POSTS] = {.fd = monitor->log.posted_fd, .events = POLLIN},
    };

    for (;;) {
        int64_t next_check_ms = monitor->losses_checked_ms + LOSS_CHECK_MS - monotonic_ms();
        int timeout_ms = -1; /* a quiet host is left quiet */

        if (monitor->losses_unchecked)
            timeout_ms = next_check_ms > 0 ? (int)next_check_ms : 0;
        if (poll(watched, WATCHED, timeout_ms) < 0) {
            if (errno == EINTR)
                continue;
            fprintf(stderr, "tcp_trace: cannot wait for events: %s\n", strerrordesc_np(errno));
            return 1;
        }
        /* Before the events, so that these go to the new file. */
        if (watched[REOPEN].revents != 0 && take_signal(monitor->reopen_fd))
            reopen_log(monitor);
        if (watched[EVENTS].revents != 0) {
            int count = take_events(monitor, 0);

            if (count < 0) {
                fprintf(stderr, "tcp_trace: %s\n", tcpevent_last_error());
                log_notice(&monitor->log, LOG_WARNING, "%s", tcpevent_last_error());
                return 1;
            }
        }
        if (watched[POSTS].revents != 0)
            log_take_posts(&monitor->log);
        if (monitor->losses_unchecked && monotonic_ms() - monitor->losses_checked_ms >= LOSS_CHECK_MS)
            check_up(monitor);
        log_flush(&monitor->log);
        if (log_has_no_reader(&monitor->log)) {
            fputs("tcp_trace: the log on standard output has no reader any more\n", stderr);
            return 1;
        }
        if (watched[END].revents != 0 && take_signal(monitor->end_fd))
            return 0;
    }
}

/* ---- Beginning and end -------------------------------------------------------------------------------------- */

/* Otherwise the next file opened would become standard output, and receive messages. */
static bool standard_output_is_open(void)
{
    bool is_open = fcntl(STDOUT_FILENO, F_GETFD) >= 0;

    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0)
            return false;
    return is_open;
}

/* Many busy processes leave a thread little processor time, and so make it lose events. If the priority is not
 * permitted, or another one was chosen, it stays as it is. Later threads inherit it. */
static void raise_priority(void)
{
    errno = 0;
    if (getpriority(PRIO_PROCESS, 0) == 0 && errno == 0)
        setpriority(PRIO_PROCESS, 0, PRIORITY);
}

/* Says why it does not start, in one line on stderr; in the log too, if that is a file. */
static int fail_to_start(struct monitor *monitor, const char *why)
{
    monitor->log.starting = false;
    fprintf(stderr, "tcp_trace: %s\n", why);
    if (monitor->log.path != NULL)
        log_notice(&monitor->log, LOG_WARNING, "not started: %s", why);
    return 1;
}

/* Starts them if a Slack URL is set. Returns 0, or the exit status. */
static int start_alerts(struct monitor *monitor)
{
    const struct options *options = &monitor->options;
    char storage[1024];
    struct text why = TEXT_IN(storage);

    if (options->slack_url == NULL)
        return 0;
    monitor->alerts = alerts_start(options->slack_url, options->slack_ca_file, &monitor->log);
    if (monitor->alerts != NULL)
        return 0;
    put_format(&why, "cannot start the alerts: %s", strerrordesc_np(errno));
    if (options->slack_ca_file != NULL)
        put_format(&why, "; is %s a file of certificates that can be read? (--slack-ca-file, SLACK_CA_FILE)",
                   options->slack_ca_file);
    return fail_to_start(monitor, why.data);
}

static void tell_of_alerts(struct monitor *monitor, struct alerts_undone undone)
{
    uint64_t all = undone.refused + undone.undelivered;

    if (all > 0)
        log_notice(&monitor->log, LOG_WARNING,
                   "%" PRIu64 " failures were not alerted: %" PRIu64 " refused by Slack, %" PRIu64 " not delivered",
                   all, undone.refused, undone.undelivered);
}

static int run(struct monitor *monitor)
{
    int status = start_alerts(monitor);

    if (status != 0)
        return status;
    if (open_watch(monitor) != 0) {
        if (monitor->alerts != NULL)
            alerts_stop(monitor->alerts);
        return fail_to_start(monitor, tcpevent_last_error());
    }
    log_take_posts(&monitor->log);
    tell_what_is_watched(monitor);
    log_flush(&monitor->log);
    monitor->log.starting = false;

    status = watch(monitor);

    unblock_end_signals();
    monitor->log.ending = true;
    if (status == 0)
        take_last_events(monitor);
    check_up(monitor);
    /* First of all: from here on this host's connections are as fast as without a monitor. */
    tcpevent_close(monitor->watch);
    log_flush(&monitor->log);
    if (monitor->alerts != NULL) {
        struct alerts_undone undone = alerts_stop(monitor->alerts);

        log_take_posts(&monitor->log);
        tell_of_alerts(monitor, undone);
    }
    log_notice(&monitor->log, LOG_NOTICE, "stopped: %" PRIu64 " state changes, %" PRIu64 " failures, %" PRIu64 " lost",
               monitor->states, monitor->failures, monitor->lost_by_queue + monitor->lost_by_ring);
    return status;
}

int main(int argc, char **argv)
{
    static struct monitor monitor; /* some 1.2 MB */
    bool has_output = standard_output_is_open();
    int error;
    int status;

    monitor.options = options_read(argc, argv);
    monitor.pid = (uint32_t)getpid();
    allowance_set(&monitor.allowance, monitor.options.log_rate);
    raise_priority();
    error = block_signals(&monitor);
    if (error != 0) {
        fprintf(stderr, "tcp_trace: no descriptor for signals: %s\n", strerrordesc_np(error));
        return 1;
    }
    if (monitor.options.log_file == NULL && !has_output) {
        fputs("tcp_trace: standard output is closed: open it, or give a log file by --log-file\n", stderr);
        return 1;
    }
    error = log_open(&monitor.log, monitor.options.log_file, monitor.options.json, monitor.end_fd);
    if (error != 0) {
        fprintf(stderr,
                "tcp_trace: cannot open the log %s: %s; give a file in a folder that can be written, by --log-file or "
                "LOG_FILE\n",
                monitor.log.name,
                error == ELOOP   ? "it is a symbolic link, and links are not followed"
                : error == ENXIO ? "nothing has opened it for reading"
                                 : strerrordesc_np(error));
        return 1;
    }
    status = run(&monitor);
    log_close(&monitor.log);
    close(monitor.end_fd);
    close(monitor.reopen_fd);
    options_free(&monitor.options);
    return status;
}
