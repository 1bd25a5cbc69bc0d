/* A connection that was never established: what is said of it, in the log and to Slack. */
#ifndef FAILURE_H
#define FAILURE_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "tcpevent.h"
#include "text.h"

struct failure {
    uint64_t time_ns;
    uint64_t age_ns; /* since connect was called */
    int error;       /* errno; 0 where nothing has answered, or nothing was asked */
    bool given_up;   /* by the program, before anything answered */
    uint16_t port;
    char address[INET6_ADDRSTRLEN];
    uint32_t pid;
    char comm[16];
};

/* Is the event the end of such a connection? If so, `failure` is filled. */
bool failure_from_event(const struct tcpevent_event *event, struct failure *failure);

/* "connection refused (ECONNREFUSED)" */
void put_reason(struct text *text, const struct failure *failure);

/* "192.0.2.7:443", "[2001:db8::7]:443" */
void put_destination(struct text *text, const struct failure *failure);

/* "TCP failure detected: 192.0.2.7:443 (connection refused (ECONNREFUSED); pid 4711, command curl)" */
void put_failure(struct text *text, const struct failure *failure);

/* The command as its process gives it, made fit for a line of text. */
void put_command(struct text *text, const char comm[16]);

/* "ECONNREFUSED"; for an errno that has no name, "errno 999". */
void put_error_name(struct text *text, int error);

#endif
