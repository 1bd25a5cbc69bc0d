/* Failures summed up by destination and reason, so that any number of them fits into one message, and the many of one
 * user, or of one process, leave room for those of others. */
#ifndef SUMMARY_H
#define SUMMARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "failure.h"
#include "text.h"

enum {
    SUMMARY_DESTINATIONS = 256, /* that are kept apart; what comes to further ones is counted */
    SUMMARY_LINES = 40,         /* in a message: Slack cuts long ones */
    SUMMARY_MESSAGE_SIZE = 32768,
    TOLD_DESTINATIONS = 1024,
    TOLD_FOR_MS = 600000,
};

struct summary {
    uint64_t failures; /* all of them */
    uint64_t lost;     /* events, among which there may have been more */
    size_t used;
    uint32_t hashes[SUMMARY_DESTINATIONS]; /* of destination and reason, so that most need not be compared */
    struct destination {
        uint64_t failures;
        uint64_t first_ns;
        struct failure last;
        uint32_t hash;
        bool named; /* in the last message that was put together */
    } destinations[SUMMARY_DESTINATIONS];
};

/* What messages have named lately. A destination that is not in it has been told to nobody, and comes first. */
struct told {
    struct {
        uint32_t hash;
        int64_t until_ms;
    } places[TOLD_DESTINATIONS];
};

void summary_add(struct summary *summary, const struct failure *failure);

/* Adds all of `more`, which is empty then. */
void summary_merge(struct summary *summary, struct summary *more);

void summary_clear(struct summary *summary);

/* The message for at least one failure, of at most SUMMARY_MESSAGE_SIZE bytes. */
void summary_put_message(struct text *text, struct summary *summary, const struct told *told, const char *host);

/* The last message has arrived: what it names is told from now on. */
void told_add(struct told *told, const struct summary *summary);

#endif
