/* How many lines the log takes, and whose: a flood must neither fill the disk nor keep out the lines of others.
 *
 * All lines together may be so many a second on average. A user may have half of that, and what a user does with one
 * destination half of that again. Whoever was quiet may have the lines of the last minutes at once: a busy moment is no
 * flood. */
#ifndef ALLOWANCE_H
#define ALLOWANCE_H

#include <stdbool.h>
#include <stdint.h>

#include "tcpevent.h"

enum {
    ALLOWANCE_SAVED_S = 200, /* lines of so many seconds may come at once */
    ALLOWANCE_USERS = 64,    /* sets of accounts */
    ALLOWANCE_DESTINATIONS = 2048,
    ALLOWANCE_WAYS = 4, /* accounts in a set */
};

/* Of one user, or of one user and destination. One that is whole again is as good as none. */
struct account {
    uint64_t key;
    uint64_t whole_ns; /* when all that was taken will have been made up for */
};

struct allowance {
    uint64_t line_ns; /* the time that makes up for a line; 0: no limit */
    uint64_t whole_ns;
    struct account users[ALLOWANCE_USERS][ALLOWANCE_WAYS];
    struct account destinations[ALLOWANCE_DESTINATIONS][ALLOWANCE_WAYS];
};

/* `rate`: lines a second, 0 for no limit. */
void allowance_set(struct allowance *allowance, unsigned rate);

/* May an event have these lines? If so, they are taken. */
bool allowance_take(struct allowance *allowance, const struct tcpevent_event *event, unsigned lines);

#endif
