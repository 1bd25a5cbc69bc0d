/* The log: a file that may be moved away and full, or standard output.
 *
 * One thread, the main one, owns it: every function is for that thread, but for log_post, by which others hand their
 * lines over. So no lock is held while a disk is slow, and no line can land between those of another. */
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
    bool ending;    /* a reader that does not read is not waited for any more */
    int end_fd;     /* readable when the program is to end */
    bool half_line; /* the last thing written */
    int error;      /* of the outage that is on, or 0 */
    uint64_t lost;  /* lines, since that was last told */

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

/* Writes what is left and closes. Tells on stderr what could not be written. */
void log_close(struct log *log);

/* Opens the file anew, after log rotation has moved it away. Returns 0, or an errno and goes on with the old one. */
int log_reopen(struct log *log);

/* These put a line into memory; log_flush writes all of them. */
void log_state(struct log *log, const struct tcpevent_event *event);
void log_failure(struct log *log, const struct failure *failure);
void log_notice(struct log *log, enum log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));
void log_flush(struct log *log);

/* As log_notice, from any thread. Does not wait for the disk. */
void log_post(struct log *log, enum log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Takes over what was posted. To be called when `posted_fd` is readable. */
void log_take_posts(struct log *log);

/* Has the reader of standard output gone? Nothing will ever be read from there again. */
bool log_has_no_reader(const struct log *log);

#endif
