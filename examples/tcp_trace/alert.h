/* Alerts: reports failures to a Slack channel, through an incoming webhook, from a thread of its own.
 *
 * Slack takes one message a second, can be slow, and can be down for hours. Failures meanwhile are summed up. */
#ifndef ALERT_H
#define ALERT_H

#include <stdbool.h>
#include <stdint.h>

#include "failure.h"
#include "log.h"

struct alerts;

/* Failures that were not reported. */
struct alerts_undone {
    uint64_t refused;     /* by Slack, for good */
    uint64_t undelivered; /* at the end */
};

/* An http or https URL with a host? */
bool alerts_url_is_valid(const char *url);

/* Starts the thread. `ca_file`: certificate authorities to trust besides the system's, or NULL. Both texts and the
 * log must outlive it. Returns NULL on failure, and sets errno. */
struct alerts *alerts_start(const char *url, const char *ca_file, struct log *log);

/* Adds a failure to report. Returns at once. */
void alerts_add(struct alerts *alerts, const struct failure *failure);

/* Counts lost events: the next message mentions them. They alone cause none. */
void alerts_add_lost(struct alerts *alerts, uint64_t events);

/* Allows five seconds for what is left, and ends the thread. */
struct alerts_undone alerts_stop(struct alerts *alerts);

#endif
