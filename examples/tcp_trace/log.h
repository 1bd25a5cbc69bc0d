/* The log: a file that may be rotated or full, or standard output.
 *
 * The main thread owns it: every function is for that thread, except log_post, by which other threads hand over
 * lines. So no lock is held while a disk is slow, and lines of different threads never mix. */
#ifndef LOG_H
#define LOG_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "failure.h"
#include "tcpevent.h"
#include "text.h"

enum log_level { LOG_NOTICE, LOG_WARNING };

struct log {
    const char *path; /* NULL: standard output */
    const char *name; /* for messages */
    bool json;
    int fd;
    bool regular;   /* a file on a disk, which can be cut */
    bool starting;  /* notices go to stderr as well */
    bool ending;    /* no more waiting for a reader that does not read */
    int end_fd;     /* readable when the program is to end */
    bool half_line; /* the last thing written */
    int error;      /* of the current outage, or 0 */
    uint64_t lost;  /* lines, since the last report */

    struct text lines; /* whole ones, not written yet */
    char lines_storage[256 * 1024];

    pthread_mutex_t lock;
    int posted_fd; /* an eventfd: readable when there are posts */
    struct text posts;
    uint64_t posts_left_out;
    char posts_storage[64 * 1024];
};

/* Opens the file at `path`, or standard output for NULL. Returns 0, or an errno. `end_fd` becomes readable when the
 * program is to end. */
int log_open(struct log *log, const char *path, bool json, int end_fd);

/* Writes what is left and closes. Reports on stderr what could not be written. */
void log_close(struct log *log);

/* Reopens the file after log rotation has moved it. Returns 0, or an errno and keeps the old one. */
int log_reopen(struct log *log);

/* These put a line into memory; log_flush writes them. */
void log_state(struct log *log, const struct tcpevent_event *event);
void log_failure(struct log *log, const struct failure *failure);
void log_notice(struct log *log, enum log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));
void log_flush(struct log *log);

/* As log_notice, from any thread. Does not wait for the disk. */
void log_post(struct log *log, enum log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Takes over posted lines. Call it when `posted_fd` is readable. */
void log_take_posts(struct log *log);

/* Has the reader of standard output gone? Then nothing will ever be read from there again. */
bool log_has_no_reader(const struct log *log);

#endif
