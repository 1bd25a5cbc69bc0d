/* Alerts: tells a Slack channel of failures, through an incoming webhook, from a thread of its own.
 *
 * Slack takes one message a second, can be slow, and can be down for hours. Whatever comes meanwhile is summed up. */
#ifndef ALERT_H
#define ALERT_H

#include <stdbool.h>
#include <stdint.h>

#include "failure.h"
#include "log.h"

struct alerts;

/* What was not alerted. */
struct alerts_undone {
    uint64_t refused;     /* by Slack, for good */
    uint64_t undelivered; /* when the end came */
};

/* An http or https URL with a host? */
bool alerts_url_is_valid(const char *url);

/* Starts the thread. `ca_file`: certificate authorities to trust besides the system's, or NULL. Both texts and the log
 * must outlive it. NULL where it cannot be started, and errno says why. */
struct alerts *alerts_start(const char *url, const char *ca_file, struct log *log);

/* Adds a failure to what is to be told. Returns at once. */
void alerts_add(struct alerts *alerts, const struct failure *failure);

/* So many events were lost: the next message says so. None is sent for that alone. */
void alerts_add_lost(struct alerts *alerts, uint64_t events);

/* Gives what is left five seconds, and ends the thread. */
struct alerts_undone alerts_stop(struct alerts *alerts);

#endif
