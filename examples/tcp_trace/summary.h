/* Failures summed up by destination and reason, so that any number fits into one message, and the failures of one
 * user or process leave room for those of others. */
#ifndef SUMMARY_H
#define SUMMARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "failure.h"
#include "text.h"

enum {
    SUMMARY_DESTINATIONS = 256, /* listed; further ones are only counted */
    SUMMARY_LINES = 40,         /* in a message: Slack cuts long ones */
    SUMMARY_MESSAGE_SIZE = 32768,
    TOLD_DESTINATIONS = 1024,
    TOLD_FOR_MS = 600000,
};

struct summary {
    uint64_t failures; /* all of them */
    uint64_t lost;     /* events, possibly failures among them */
    size_t used;
    uint32_t hashes[SUMMARY_DESTINATIONS]; /* of destination and reason, to avoid comparing most */
    struct destination {
        uint64_t failures;
        uint64_t first_ns;
        struct failure last;
        uint32_t hash;
        bool named; /* in the last message */
    } destinations[SUMMARY_DESTINATIONS];
};

/* What recent messages have named. A destination missing here has not been reported, and comes first. */
struct told {
    struct {
        uint32_t hash;
        int64_t until_ms;
    } places[TOLD_DESTINATIONS];
};

void summary_add(struct summary *summary, const struct failure *failure);

/* Adds all of `more`, and empties it. */
void summary_merge(struct summary *summary, struct summary *more);

void summary_clear(struct summary *summary);

/* The message for at least one failure; at most SUMMARY_MESSAGE_SIZE bytes. */
void summary_put_message(struct text *text, struct summary *summary, const struct told *told, const char *host);

/* The last message has arrived: the destinations it names are reported now. */
void told_add(struct told *told, const struct summary *summary);

#endif
