#define _GNU_SOURCE
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "record.h"

enum { LAST_LINES_PATIENCE_MS = 1000, READER_POLL_MS = 100 };

/* ---- Opening ------------------------------------------------------------------------------------------------ */

/* Names of an open descriptor, which are links. Only the kernel can create such links. */
static bool is_descriptor(const char *path)
{
    static const char *const folders[] = {"/dev/fd/", "/proc/self/fd/"};

    if (strcmp(path, "/dev/stdout") == 0 || strcmp(path, "/dev/stderr") == 0)
        return true;
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        size_t length = strlen(folders[i]);

        if (strncmp(path, folders[i], length) == 0 && path[length] != '\0' &&
            strspn(path + length, "0123456789") == strlen(path + length))
            return true;
    }
    return false;
}

/* Follows no link: in a folder that others can write to, a link would make a privileged monitor write to a file of
 * their choice. Does not wait for the reader of a FIFO (ENXIO if there is none). */
static int open_file(const char *path)
{
    int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;

    return open(path, is_descriptor(path) ? flags : flags | O_NOFOLLOW, 0640);
}

/* As open_file, but waits for a reader until the program is to end. That cannot be polled for. */
static int open_file_with_reader(const char *path, int end_fd)
{
    struct pollfd end = {.fd = end_fd, .events = POLLIN};
    struct stat file;
    int fd = open_file(path);

    while (fd < 0 && errno == ENXIO && stat(path, &file) == 0 && S_ISFIFO(file.st_mode)) {
        if (poll(&end, 1, READER_POLL_MS) > 0) {
            errno = ENXIO;
            return -1;
        }
        fd = open_file(path);
    }
    return fd;
}

static bool is_regular(int fd)
{
    struct stat file;

    return fstat(fd, &file) == 0 && S_ISREG(file.st_mode);
}

int log_open(struct log *log, const char *path, bool json, int end_fd)
{
    memset(log, 0, sizeof *log);
    log->path = path;
    log->name = path != NULL ? path : "on standard output";
    log->json = json;
    log->starting = path != NULL;
    log->end_fd = end_fd;
    log->lines = TEXT_IN(log->lines_storage);
    log->posts = TEXT_IN(log->posts_storage);
    log->posted_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (log->posted_fd < 0)
        return errno;
    log->fd = path != NULL ? open_file_with_reader(path, end_fd) : STDOUT_FILENO;
    if (log->fd < 0)
        return errno;
    log->regular = is_regular(log->fd);
    return pthread_mutex_init(&log->lock, NULL);
}

/* ---- Writing ------------------------------------------------------------------------------------------------ */

static uint64_t count_lines(const char *text, size_t length)
{
    uint64_t lines = 0;

    for (size_t i = 0; i < length; i++)
        lines += text[i] == '\n';
    return lines;
}

/* The bytes up to the last newline; 0 if there is none. */
static size_t whole_lines(const char *text, size_t length)
{
    const char *end = memrchr(text, '\n', length);

    return end == NULL ? 0 : (size_t)(end - text) + 1;
}

/* Waits until a pipe, terminal or socket takes PIPE_BUF bytes: for ever, or for a second once the program is to end,
 * and after that not at all. A disk cannot be waited for. */
static int wait_for_reader(struct log *log)
{
    struct pollfd watched[] = {
        {.fd = log->fd, .events = POLLOUT},
        {.fd = log->ending ? -1 : log->end_fd, .events = POLLIN},
    };

    for (;;) {
        int patience = !log->ending ? -1 : log->error == ETIMEDOUT ? 0 : LAST_LINES_PATIENCE_MS;
        int ready = poll(watched, 2, patience);

        if (ready < 0 && errno != EINTR)
            return errno;
        if (ready < 0)
            continue;
        if (ready == 0)
            return ETIMEDOUT;
        if (watched[0].revents != 0)
            return 0;
        /* The main loop reads the signal itself. */
        log->ending = true;
        watched[1].fd = -1;
    }
}

/* Removes the last `half` bytes of the file, the beginning of a line that could not be written whole; unless another
 * process has appended to them. */
static bool take_back(struct log *log, size_t half)
{
    struct stat file;
    off_t end = lseek(log->fd, 0, SEEK_CUR);

    return log->regular && end >= (off_t)half && fstat(log->fd, &file) == 0 && file.st_size == end &&
           ftruncate(log->fd, end - (off_t)half) == 0 && lseek(log->fd, end - (off_t)half, SEEK_SET) >= 0;
}

/* Writes whole lines, and returns the bytes of those now in the file. If some are missing, errno says why. */
static size_t write_lines(struct log *log, const char *lines, size_t length)
{
    size_t written = 0;
    size_t whole;
    int error = 0;

    while (written < length && error == 0) {
        size_t part = length - written;
        ssize_t now;

        if (!log->regular) {
            error = wait_for_reader(log);
            if (error != 0)
                break;
            /* No more than fits without waiting, in whole lines, so that those of several writers do not mix. */
            if (part > PIPE_BUF)
                part = whole_lines(lines + written, PIPE_BUF);
            if (part == 0)
                part = PIPE_BUF;
        }
        now = write(log->fd, lines + written, part);
        if (now > 0)
            written += (size_t)now;
        else if (now == 0)
            error = EIO;
        else if (errno != EINTR && (errno != EAGAIN || log->regular))
            error = errno;
    }
    whole = whole_lines(lines, written);
    if (whole < written && !take_back(log, written - whole))
        log->half_line = true;
    errno = error;
    return whole;
}

static const char *reason(int error)
{
    return error == ETIMEDOUT ? "its reader does not read" : strerrordesc_np(error);
}

/* Ends an outage, if the file takes a line again: ends the half line, and reports the gap. */
static bool tell_of_gap(struct log *log)
{
    char storage[RECORD_SIZE];
    struct text line = TEXT_IN(storage);
    char notice[RECORD_NOTICE_SIZE];

    if (log->half_line) {
        if (write_lines(log, "\n", 1) == 0)
            return false;
        log->half_line = false;
    }
    if (log->lost == 0) {
        log->error = 0;
        return true;
    }
    snprintf(notice, sizeof notice, "%" PRIu64 " lines of the log were lost: %s", log->lost, reason(log->error));
    put_notice_record(&line, wall_clock_ns(), true, notice, log->json);
    if (write_lines(log, line.data, line.length) < line.length)
        return false;
    log->lost = 0;
    log->error = 0;
    return true;
}

void log_flush(struct log *log)
{
    size_t written = 0;

    if (log->lines.length == 0)
        return;
    if (log->error == 0 || tell_of_gap(log))
        written = write_lines(log, log->lines.data, log->lines.length);
    if (written < log->lines.length) {
        int error = errno;

        log->lost += count_lines(log->lines.data + written, log->lines.length - written);
        /* Once for each outage. */
        if (log->error == 0 && !(error == EPIPE && log->path == NULL))
            fprintf(stderr, "tcp_trace: cannot write the log %s: %s; lines are lost until it can be written\n",
                    log->name, reason(error));
        log->error = error;
    }
    log->lines.length = 0;
}

bool log_has_no_reader(const struct log *log)
{
    /* EIO of something that is no file: the terminal is gone. */
    return log->path == NULL && (log->error == EPIPE || (log->error == EIO && !log->regular));
}

int log_reopen(struct log *log)
{
    int fd;

    log_flush(log);
    if (log->path == NULL)
        return 0;
    fd = open_file(log->path);
    if (fd < 0)
        return errno;
    if (close(log->fd) != 0)
        fprintf(stderr, "tcp_trace: the end of the log %s may be lost: %s\n", log->name, strerrordesc_np(errno));
    log->fd = fd;
    log->regular = is_regular(fd);
    log->half_line = false;
    return 0;
}

void log_close(struct log *log)
{
    log_take_posts(log);
    log_flush(log);
    if (log->lost > 0 && !log_has_no_reader(log))
        fprintf(stderr, "tcp_trace: %" PRIu64 " lines of the log were lost: %s\n", log->lost, reason(log->error));
    if (log->path != NULL && close(log->fd) != 0)
        fprintf(stderr, "tcp_trace: the end of the log %s may be lost: %s\n", log->name, strerrordesc_np(errno));
    close(log->posted_fd);
    pthread_mutex_destroy(&log->lock);
}

/* ---- Lines -------------------------------------------------------------------------------------------------- */

/* Room for one more line. */
static struct text *next_line(struct log *log)
{
    if (log->lines.size - log->lines.length <= RECORD_SIZE)
        log_flush(log);
    return &log->lines;
}

void log_state(struct log *log, const struct tcpevent_event *event)
{
    put_state_record(next_line(log), event, log->json);
}

void log_failure(struct log *log, const struct failure *failure)
{
    put_failure_record(next_line(log), failure, log->json);
}

/* Notices about the monitor itself must be visible even if there is no log yet, or none any more. */
static void copy_to_stderr(const struct log *log, size_t start)
{
    if (log->starting || (log->error != 0 && !log_has_no_reader(log)))
        fwrite(log->lines.data + start, 1, log->lines.length - start, stderr);
}

void log_notice(struct log *log, enum log_level level, const char *format, ...)
{
    struct text *line = next_line(log);
    size_t start = line->length;
    char notice[RECORD_NOTICE_SIZE];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(notice, sizeof notice, format, arguments);
    va_end(arguments);
    put_notice_record(line, wall_clock_ns(), level == LOG_WARNING, notice, log->json);
    copy_to_stderr(log, start);
}

/* ---- Lines of other threads --------------------------------------------------------------------------------- */

void log_post(struct log *log, enum log_level level, const char *format, ...)
{
    char notice[RECORD_NOTICE_SIZE];
    uint64_t one = 1;
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(notice, sizeof notice, format, arguments);
    va_end(arguments);
    pthread_mutex_lock(&log->lock);
    if (log->posts.size - log->posts.length > RECORD_SIZE)
        put_notice_record(&log->posts, wall_clock_ns(), level == LOG_WARNING, notice, log->json);
    else
        log->posts_left_out++;
    pthread_mutex_unlock(&log->lock);
    /* It fails only at the maximal count: then it is readable anyway. */
    if (write(log->posted_fd, &one, sizeof one) < 0)
        return;
}

void log_take_posts(struct log *log)
{
    uint64_t posted;
    uint64_t left_out;
    size_t start;

    if (read(log->posted_fd, &posted, sizeof posted) < 0)
        return; /* nothing was posted since */
    if (log->lines.size - log->lines.length <= log->posts.size)
        log_flush(log);
    start = log->lines.length;
    pthread_mutex_lock(&log->lock);
    put_bytes(&log->lines, log->posts.data, log->posts.length);
    log->posts.length = 0;
    left_out = log->posts_left_out;
    log->posts_left_out = 0;
    pthread_mutex_unlock(&log->lock);
    copy_to_stderr(log, start);
    if (left_out > 0)
        log_notice(log, LOG_WARNING, "%" PRIu64 " messages were left out here: too many at once", left_out);
}
