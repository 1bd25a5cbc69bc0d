/* Limits the lines of the log: a flood must neither fill the disk nor keep out the lines of others.
 *
 * All lines together have an average rate. A user may have half of it, and one user's lines about one destination
 * half of that. Unused lines of the last minutes may come all at once: a busy moment is no flood. */
#ifndef ALLOWANCE_H
#define ALLOWANCE_H

#include <stdbool.h>
#include <stdint.h>

#include "tcpevent.h"

enum {
    ALLOWANCE_SAVED_S = 200, /* a burst: the lines of so many seconds */
    ALLOWANCE_USERS = 64,    /* sets of accounts */
    ALLOWANCE_DESTINATIONS = 2048,
    ALLOWANCE_WAYS = 4, /* accounts in a set */
};

/* The account of a user, or of a user and destination. A whole account may be replaced. */
struct account {
    uint64_t key;
    uint64_t whole_ns; /* when the account will be whole again */
};

struct allowance {
    uint64_t line_ns; /* the time that earns a line; 0: no limit */
    uint64_t whole_ns;
    struct account users[ALLOWANCE_USERS][ALLOWANCE_WAYS];
    struct account destinations[ALLOWANCE_DESTINATIONS][ALLOWANCE_WAYS];
};

/* `rate`: lines a second, 0 for no limit. */
void allowance_set(struct allowance *allowance, unsigned rate);

/* Takes these lines from the accounts of an event. Returns false if there are too few. */
bool allowance_take(struct allowance *allowance, const struct tcpevent_event *event, unsigned lines);

#endif
