#include "summary.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* An age is no part of it: each program that gives up does so after another one. */
static bool same_destination(const struct failure *a, const struct failure *b)
{
    return a->port == b->port && a->given_up == b->given_up && (a->given_up || a->error == b->error) &&
           strcmp(a->address, b->address) == 0;
}

static void add(struct summary *summary, const struct failure *last, uint64_t failures, uint64_t first_ns)
{
    struct destination *destination = NULL;

    summary->failures += failures;
    for (size_t i = 0; i < summary->used && destination == NULL; i++)
        if (same_destination(&summary->destinations[i].last, last))
            destination = &summary->destinations[i];
    if (destination == NULL) {
        if (summary->used == SUMMARY_DESTINATIONS)
            return;
        destination = &summary->destinations[summary->used++];
        destination->failures = 0;
        destination->first_ns = first_ns;
        destination->last = *last;
    }
    destination->failures += failures;
    if (first_ns < destination->first_ns)
        destination->first_ns = first_ns;
    if (last->time_ns >= destination->last.time_ns)
        destination->last = *last;
}

void summary_add(struct summary *summary, const struct failure *failure)
{
    add(summary, failure, 1, failure->time_ns);
}

void summary_clear(struct summary *summary)
{
    summary->failures = 0;
    summary->used = 0;
}

void summary_merge(struct summary *summary, struct summary *more)
{
    uint64_t failures = summary->failures + more->failures;

    for (size_t i = 0; i < more->used; i++)
        add(summary, &more->destinations[i].last, more->destinations[i].failures, more->destinations[i].first_ns);
    /* With those that were counted only, on either side. */
    summary->failures = failures;
    summary_clear(more);
}

/* Most failures first, then who came first. */
static int by_weight(const void *left, const void *right)
{
    const struct destination *a = *(const struct destination *const *)left;
    const struct destination *b = *(const struct destination *const *)right;

    if (a->failures != b->failures)
        return a->failures > b->failures ? -1 : 1;
    return (a->first_ns > b->first_ns) - (a->first_ns < b->first_ns);
}

static void put_line(struct text *text, const struct destination *destination)
{
    const struct failure *last = &destination->last;

    put_format(text, "\n%" PRIu64 " x ", destination->failures);
    put_destination(text, last);
    put(text, " (");
    put_reason(text, last);
    put_format(text, "; last pid %" PRIu32 ", command ", last->pid);
    put_command(text, last->comm);
    put(text, "; first ");
    put_time_of_day(text, destination->first_ns);
    put(text, " last ");
    put_time_of_day(text, last->time_ns);
    put(text, ")");
}

void summary_put_message(struct text *text, const struct summary *summary, const char *host)
{
    const struct destination *sorted[SUMMARY_DESTINATIONS];
    uint64_t others = summary->failures;
    size_t lines = summary->used < SUMMARY_LINES ? summary->used : SUMMARY_LINES;

    if (summary->failures == 1) {
        put_failure(text, &summary->destinations[0].last);
        put(text, " on ");
        put(text, host);
        return;
    }
    for (size_t i = 0; i < summary->used; i++)
        sorted[i] = &summary->destinations[i];
    qsort(sorted, summary->used, sizeof sorted[0], by_weight);
    put_format(text, "%" PRIu64 " TCP failures on %s:", summary->failures, host);
    for (size_t i = 0; i < lines; i++) {
        put_line(text, sorted[i]);
        others -= sorted[i]->failures;
    }
    if (others > 0)
        put_format(text, "\nand %" PRIu64 " failures of other destinations", others);
}
