/* Failures summed up by destination and reason, so that any number of them fits into one message. */
#ifndef SUMMARY_H
#define SUMMARY_H

#include <stddef.h>
#include <stdint.h>

#include "failure.h"
#include "text.h"

enum {
    SUMMARY_DESTINATIONS = 256, /* that are kept apart; what comes to further ones is counted */
    SUMMARY_LINES = 40,         /* in a message: Slack cuts long ones */
    SUMMARY_MESSAGE_SIZE = 32768,
};

struct summary {
    uint64_t failures; /* all of them */
    size_t used;
    struct destination {
        uint64_t failures;
        uint64_t first_ns;
        struct failure last;
    } destinations[SUMMARY_DESTINATIONS];
};

void summary_add(struct summary *summary, const struct failure *failure);

/* Adds all of `more`, which is empty then. */
void summary_merge(struct summary *summary, struct summary *more);

void summary_clear(struct summary *summary);

/* The message for at least one failure, of at most SUMMARY_MESSAGE_SIZE bytes. */
void summary_put_message(struct text *text, const struct summary *summary, const char *host);

#endif
